"""Score a segmenter on a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from hfseg.data import SegmentationData
from hfseg.data.images import Sample
from hfseg.errors import UserError
from hfseg.evaluation.panels import draw_samples
from hfseg.evaluation.processes import added_up
from hfseg.evaluation.protocol import protocol
from hfseg.evaluation.split import Split, batched
from hfseg.evaluation.tallies import PixelTally, SegmentTally
from hfseg.inference_settings import check_tile, read_tta
from hfseg.labels import LabelSchema
from hfseg.segmenter import Segmenter


class Evaluator:
    """Scores a segmenter on a split, at the original size of every image.

    Args:
        data: The data.
        split: Which split.
        batch_size: Images of one size per forward pass.
        on_bad_sample: `stop`, or `skip` and count.
        limit: Score the first n images only.
        channels: Bands that the network takes.
        schema: How to read the label maps; that of the data if not given.
        to_model: Class id of the data -> class id of the model; None where they are the same.
        tile: As for `Segmenter`: 0 for whole images, None for what the segmenter does. So for the other:
        tta: As for `Segmenter`; empty for none.
        max_detections: Of a class in an image, the best ones that count for average precision.

    Raises:
        UserError: For tiles or views that cannot be.
    """

    def __init__(self, data: SegmentationData, split: str, *, batch_size: int = 8, on_bad_sample: str = "stop",
                 limit: int | None = None, channels: int = 3, schema: LabelSchema | None = None,
                 to_model: np.ndarray | None = None, tile: int | None = None,
                 tta: str | Iterable[str | float] | None = None, max_detections: int = 100):
        check_tile(tile or None)
        self.tile, self.tta = tile, None if tta is None else read_tta(tta)
        self.batch_size, self.max_detections = batch_size, max_detections
        self.split = Split(data, split, schema=schema or data.schema, channels=channels, to_model=to_model, limit=limit,
                           ahead=batch_size, on_bad_sample=on_bad_sample)

    @property
    def skipped(self) -> list[str]:
        """What is wrong with the samples that the last run passed over."""
        return self.split.skipped

    def run(self, segmenter: Segmenter, *, objective: Any = None, accelerator: Accelerator | None = None,
            verbose: bool = True) -> dict:
        """Scores the segmenter; with several processes each takes every n-th image, and counts are added up.

        Args:
            segmenter: What predicts.
            objective: Loss of (logits, labels), averaged over images as `loss`. With tiles it gets the blended logits
                of an image in one piece, which then have to fit into memory. Of a network that computes its own loss,
                a `MaskLoss`.
            accelerator: Of a run with several processes.
            verbose: Whether to show a progress bar.

        Returns:
            Plain Python values: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` by name and
            more scores, `loss`, `num_images`, `protocol`. A class that never occurs scores None. For instances
            `mask_ap` and its kin, for panoptic maps `panoptic_quality`.

        Raises:
            BadSample: When a sample cannot be used and `on_bad_sample` is `stop`.
            UserError: When not one image could be scored.
        """
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        split, tally = self.split, self._tally(self._as_wanted(segmenter), objective)
        split.skipped, images = [], 0
        with closing(split.share(rank, world, verbose)) as samples:
            for batch in batched(samples, self.batch_size):
                tally.add(batch)
                images += len(batch)
        skipped = len(split.skipped)
        if world > 1:
            tally.gather(accelerator)
            images, skipped = added_up(accelerator, np.array([images, skipped])).tolist()
        if images == 0:
            raise UserError(f"not one image of the split {split.name} could be scored",
                            fix=split.skipped[0] if split.skipped else "check the data")
        return {**tally.results(images), "num_images": images,
                "protocol": protocol(split, tally.segmenter, skipped, self.max_detections)}

    def _tally(self, segmenter: Segmenter, objective: Any) -> PixelTally | SegmentTally:
        config = segmenter.model.config
        names = [config.id2label[i] for i in range(config.num_labels)]
        if segmenter.task == "semantic":
            return PixelTally(segmenter, self.split, names, objective)
        return SegmentTally(segmenter, self.split, names, self.max_detections, objective)

    def _as_wanted(self, segmenter: Segmenter) -> Segmenter:
        return segmenter.using(tile=self.tile, tta=self.tta)

    def measures(self) -> list:
        """Returns what a score depends on besides the weights: scores compare where it is equal.

        Returns:
            Plain values: the data and its split, how many images, a hash of which ones, and tiles and views if the
            evaluator was given any.
        """
        data, name, length = self.split.data, self.split.name, self.split.length
        ids = [] if data.streaming else data[name]["image_id"][:length]
        which = hashlib.sha256("\n".join(map(str, ids)).encode("utf-8", "replace")).hexdigest()
        shown = [self.tile or None, list(self.tta or ())]  # nothing where there is nothing, as in earlier versions
        return [data.source, name, length, which, *(shown if any(shown) else ())]

    def samples(self, count: int) -> list[Sample]:
        """Decodes a few samples, spread over the split.

        Args:
            count: How many.

        Returns:
            At most as many; bad ones are left out if `on_bad_sample` is `skip`.
        """
        return self.split.spread(count)

    def draw_samples(self, segmenter: Segmenter, folder: Path, count: int) -> list[Path]:
        """Draws panels of image, truth and prediction, spread over the split.

        Args:
            segmenter: What predicts.
            folder: Where the PNGs go; made when needed.
            count: How many.

        Returns:
            The files.
        """
        return draw_samples(self._as_wanted(segmenter), self.split, folder, count)

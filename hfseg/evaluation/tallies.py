"""What is counted on the way through a split: pixels by true and predicted class, or objects found and missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hfseg.data.images import Sample
from hfseg.errors import UserError
from hfseg.evaluation.mask_loss import MaskLoss
from hfseg.evaluation.processes import added_up
from hfseg.evaluation.split import Numbered, Split
from hfseg.metrics.scorers import SCORERS
from hfseg.metrics.scores import scores_from_matrix, to_json_ready
from hfseg.ops import confusion_counts, upsample_confusion
from hfseg.segmenter import Segmenter


class PixelTally:
    """Counts pixels in one matrix, for the semantic task.

    Args:
        segmenter: What predicts.
        split: What is true.
        names: Classes of the model.
        objective: Loss of (logits, labels), or that of a network which computes its own, averaged over images; None
            for none.
    """

    def __init__(self, segmenter: Segmenter, split: Split, names: Sequence[str], objective: Any = None):
        self.watched = objective if isinstance(objective, MaskLoss) else None
        self.segmenter = self.watched.watching(segmenter) if self.watched else segmenter
        self.split, self.names, self.objective = split, names, None if self.watched else objective
        self.matrix = np.zeros((len(names), len(names)), np.int64)
        self.loss = 0.0

    def add(self, batch: list[Numbered]) -> None:
        """Predicts and counts some images of one shape.

        Args:
            batch: Numbers and samples.
        """
        for part in self.watched.parts(batch) if self.watched else [batch]:
            self._add([sample for _, sample in part])

    def _add(self, samples: list[Sample]) -> None:
        count, ignored = len(self.names), self.split.ignore_index
        if self.objective is None and self.segmenter.needs_tiles(samples[0].image.shape):  # logits are never whole
            for sample, prediction in zip(samples, self.segmenter.predict_maps([one.image for one in samples])):
                self.matrix += confusion_counts(self.split.reference(sample), prediction, count, ignored)
            return
        for logits, reference in self._compared(samples):
            self.matrix += upsample_confusion(logits, reference, count, ignored)
            if self.objective is not None:
                labels = torch.from_numpy(reference.astype(np.int64))[None].to(logits.device)
                self.loss += float(self.objective(logits[None], labels))

    def _compared(self, samples: list[Sample]) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Logits (n, h, w) and reference (H, W) of each sample, such that the one stretched lies on the other."""
        if not self.segmenter.needs_tiles(samples[0].image.shape):
            logits = self.segmenter.logits([sample.image for sample in samples])
            yield from zip(logits, map(self.split.reference, samples))
            return
        for sample in samples:
            tiles, reference = self.segmenter.tiles(sample.image), self.split.reference(sample).astype(np.int64)
            beyond = [(0, covered - side) for covered, side in zip(tiles.covered, reference.shape)]
            yield tiles.logits(), np.pad(reference, beyond, constant_values=self.split.ignore_index)

    def gather(self, accelerator: Accelerator) -> None:
        """Adds what the other processes counted.

        Args:
            accelerator: Of the run.
        """
        self.matrix = added_up(accelerator, self.matrix)
        if self.watched:
            self.watched.gather(accelerator)
        [self.loss] = added_up(accelerator, np.array([self.loss], np.float64))

    def results(self, images: int) -> dict[str, Any]:
        """Scores the split.

        Args:
            images: How many were counted.

        Returns:
            Plain values.
        """
        results = scores_from_matrix(self.matrix, self.names)
        loss = self.watched.total if self.watched else self.loss
        results["loss"] = loss / images if self.objective is not None or self.watched else None
        results = to_json_ready(results)
        results["per_category_confusion"] = {  # by true class, the pixels of each predicted one
            name: {self.names[other]: int(row[other]) for other in np.flatnonzero(row)}
            for name, row in zip(self.names, self.matrix)
        }
        return results


class SegmentTally:
    """Compares objects: every detection counts in average precision, and the map as it is in panoptic quality.

    Args:
        segmenter: What predicts; `segmenter` is then the one whose settings score.
        split: What is true.
        names: Classes of the model.
        max_detections: Of a class in an image, the best ones that count for average precision.
        watched: The loss of a network that computes its own, averaged over images; None for none.

    Raises:
        UserError: For data of label maps alone.
    """

    def __init__(self, segmenter: Segmenter, split: Split, names: Sequence[str], max_detections: int,
                 watched: MaskLoss | None = None):
        if split.data.task == "semantic":
            raise UserError("the model tells objects apart, and the data was read as label maps",
                            "data with objects", "load_data(..., task='instance') or 'panoptic'")
        things = [i in segmenter.things for i in range(len(names))]
        self.scorer = SCORERS[segmenter.task](len(names), things, max_detections)
        if segmenter.task == "instance":
            segmenter = segmenter.using(threshold=0.0, overlaps=True,
                                        max_segments=max(max_detections, segmenter.rules.max_segments or 100))
        self.segmenter = watched.watching(segmenter) if watched else segmenter
        self.split, self.names, self.watched = split, names, watched

    def add(self, batch: list[Numbered]) -> None:
        """Predicts and compares some images of one shape.

        Args:
            batch: Numbers and samples.
        """
        for part in self.watched.parts(batch) if self.watched else [batch]:
            found = self.segmenter.segments([sample.image for _, sample in part])
            for (number, sample), one in zip(part, found, strict=True):
                self.scorer.add(number, one, sample, self.split.to_model)

    def gather(self, accelerator: Accelerator) -> None:
        """Adds what the other processes compared.

        Args:
            accelerator: Of the run.
        """
        self.scorer.gather(accelerator)
        if self.watched:
            self.watched.gather(accelerator)

    def results(self, images: int) -> dict[str, Any]:
        """Scores the split.

        Args:
            images: How many were compared.

        Returns:
            Plain values.
        """
        loss = {"loss": self.watched.total / images if self.watched else None}
        return {"task": self.segmenter.task, **to_json_ready(self.scorer.scores(self.names) | loss)}

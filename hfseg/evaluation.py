"""The one evaluator: training, `hfseg evaluate`, cards and demo all score with it.

Each prediction is compared at the image's own size, and all that is kept is one integer matrix.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from hfseg.data import SegmentationData, load_recipe_data
from hfseg.data.alignment import align_classes
from hfseg.data.images import Sample, read_row
from hfseg.drawing import draw_panels, draw_segment_panels, to_rgb
from hfseg.errors import BadSample, UserError
from hfseg.inference.reading import read_ahead
from hfseg.inference_settings import check_tile, read_tta
from hfseg.labels import LabelSchema
from hfseg.metrics.scorers import SCORERS
from hfseg.metrics.scores import scores_from_matrix, to_json_ready
from hfseg.models import saved_schema
from hfseg.ops import confusion_counts, upsample_confusion
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import RECIPE
from hfseg.segmenter import Segmenter

_INPUTS = 3  # pictures that samples/inputs holds
SEGMENT_PROTOCOL = {
    "instance": {
        "scored_at": "the original size of each image; mask logits upsampled bilinearly before the threshold",
        "averaging": "COCO: the mean over IoU thresholds 0.50 to 0.95 and classes of the area under the precision "
                     "envelope; an object's area is that which its annotation states, as for pycocotools, or else "
                     "that of its mask; the boundary score takes the smaller of the IoU of masks and that of their "
                     "boundaries",
    },
    "panoptic": {
        "scored_at": "the original size of each image; mask logits upsampled bilinearly before the threshold",
        "averaging": "panoptic quality per class over the whole split, and the mean over the classes that occur; "
                     "pixels without truth count for nothing",
    },
}


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
        self.max_detections = max_detections
        self.data, self.split, self.schema = data, split, schema or data.schema
        self.batch_size, self.on_bad_sample, self.limit = batch_size, on_bad_sample, limit
        self.channels, self.to_model = channels, to_model
        check_tile(tile or None)
        self.tile, self.tta = tile, None if tta is None else read_tta(tta)
        # In a model's ids, 255 may be a class: what is ignored in the data gets an id after all of them.
        self.ignore_index = self.schema.ignore_index if to_model is None else int(np.iinfo(np.uint16).max) + 1
        self.skipped: list[str] = []

    def run(self, segmenter: Segmenter, *, objective=None, accelerator: Accelerator | None = None,
            verbose: bool = True) -> dict:
        """Scores the segmenter; with several processes each takes every n-th image, and counts are added up.

        Args:
            segmenter: What predicts.
            objective: Loss of (logits, labels), averaged over images as `loss`. With tiles it gets the blended logits
                of an image in one piece, which then have to fit into memory.
            accelerator: Of a run with several processes.
            verbose: Whether to show a progress bar.

        Returns:
            Plain Python values: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` by name and
            more scores, `loss`, `num_images`, `protocol`. A class that never occurs scores None. For instances
            `mask_ap` and its kin, for panoptic maps `panoptic_quality`, and no loss.

        Raises:
            BadSample: When a sample cannot be used and `on_bad_sample` is `stop`.
            UserError: When not one image could be scored.
        """
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        names = [segmenter.model.config.id2label[i] for i in range(segmenter.model.config.num_labels)]
        if segmenter.task != "semantic":
            return self._run_segments(segmenter, names, accelerator if world > 1 else None, rank, world, verbose)
        matrix = np.zeros((len(names), len(names)), np.int64)
        totals = np.zeros(3, np.float64)  # loss, images, skipped
        self.skipped, segmenter = [], self._as_wanted(segmenter)
        with closing(self._samples(rank, world, verbose)) as samples:
            for batch in _grouped((sample for _, sample in samples), self.batch_size):
                totals[1] += len(batch)
                if objective is None and segmenter.needs_tiles(batch[0].image.shape):  # logits are never whole
                    for sample, prediction in zip(batch, segmenter.predict_maps([sample.image for sample in batch])):
                        matrix += confusion_counts(self._reference(sample), prediction, len(names), self.ignore_index)
                    continue
                for logits, reference in self._compared(segmenter, batch):
                    matrix += upsample_confusion(logits, reference, len(names), self.ignore_index)
                    if objective is not None:
                        labels = torch.from_numpy(reference.astype(np.int64))[None].to(logits.device)
                        totals[0] += float(objective(logits[None], labels))
        totals[2] = len(self.skipped)
        if world > 1:
            matrix, totals = self._added_up(accelerator, matrix, totals)
        if totals[1] == 0:
            raise UserError(f"not one image of the split {self.split} could be scored",
                            fix=self.skipped[0] if self.skipped else "check the data")
        results = scores_from_matrix(matrix, names)
        results["loss"] = totals[0] / totals[1] if objective is not None else None
        results = to_json_ready(results)
        results["per_category_confusion"] = {  # by true class, the pixels of each predicted one
            name: {names[other]: int(row[other]) for other in np.flatnonzero(row)} for name, row in zip(names, matrix)
        }
        results["num_images"] = int(totals[1])
        results["protocol"] = self._protocol(segmenter, int(totals[2]))
        return results

    def _run_segments(self, segmenter: Segmenter, names: list[str], accelerator: Accelerator | None, rank: int,
                      world: int, verbose: bool) -> dict:
        """Scores what is told apart: every detection counts in average precision, and the map as it is in quality."""
        self._refuse_maps()
        segmenter = self._as_wanted(segmenter)
        things = [i in segmenter.things for i in range(len(names))]
        scorer = SCORERS[segmenter.task](len(names), things, self.max_detections)
        if segmenter.task == "instance":
            segmenter = segmenter.using(threshold=0.0, overlaps=True,
                                        max_segments=max(self.max_detections, segmenter.rules.max_segments))
        self.skipped, counts = [], np.zeros(2, np.int64)
        with closing(self._samples(rank, world, verbose)) as samples:
            for batch in _grouped(samples, self.batch_size, lambda pair: pair[1].image.shape):
                found = segmenter.segments([sample.image for _, sample in batch])
                for (number, sample), one in zip(batch, found, strict=True):
                    scorer.add(number, one, sample, self.to_model)
                counts[0] += len(batch)
        counts[1] = len(self.skipped)
        if accelerator:
            scorer.gather(accelerator)
            counts = accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum").cpu().numpy()
        if counts[0] == 0:
            raise UserError(f"not one image of the split {self.split} could be scored",
                            fix=self.skipped[0] if self.skipped else "check the data")
        results = to_json_ready(scorer.scores(names))
        protocol = self._protocol(segmenter, int(counts[1]))
        protocol |= SEGMENT_PROTOCOL[segmenter.task] | {"task": segmenter.task}
        rules = segmenter.rules
        if segmenter.task == "instance":
            protocol["max_detections"] = self.max_detections
        else:
            protocol["threshold"] = rules.threshold
            protocol["overlap_mask_area_threshold"] = rules.overlap_mask_area_threshold
        return {"task": segmenter.task, **results, "loss": None, "num_images": int(counts[0]), "protocol": protocol}

    def _refuse_maps(self) -> None:
        if self.data.task == "semantic":
            raise UserError("the model tells objects apart, and the data was read as label maps",
                            "data with objects", "load_data(..., task='instance') or 'panoptic'")

    def measures(self) -> list:
        """Returns what a score depends on besides the weights: scores compare where it is equal.

        Returns:
            Plain values: the data and its split, how many images, a hash of which ones, and tiles and views if the
            evaluator was given any.
        """
        ids = [] if self.data.streaming else self.data[self.split]["image_id"][: self._length()]
        which = hashlib.sha256("\n".join(map(str, ids)).encode("utf-8", "replace")).hexdigest()
        shown = [self.tile or None, list(self.tta or ())]  # nothing where there is nothing, as in earlier versions
        return [self.data.source, self.split, self._length(), which, *(shown if any(shown) else ())]

    def draw_samples(self, segmenter: Segmenter, folder: Path, count: int) -> list[Path]:
        """Draws panels of image, truth and prediction, spread over the split.

        Args:
            segmenter: What predicts.
            folder: Where the PNGs go; made when needed.
            count: How many.

        Returns:
            The files.
        """
        files = []
        folder.mkdir(parents=True, exist_ok=True)
        segmenter = self._as_wanted(segmenter)
        names = list(segmenter.model.config.id2label.values())
        for sample in self.samples(count):
            file = folder / f"{len(files):02d}_{Path(sample.name).stem[:60]}.png"
            self._draw_panels(segmenter, sample, names, file)
            if self.channels == 3 and len(files) < _INPUTS:  # for the hub's widget, which wants pictures to try
                (folder / "inputs").mkdir(exist_ok=True)
                shown = Image.fromarray(to_rgb(sample.image))
                shown.thumbnail((1024, 1024))
                shown.save(folder / "inputs" / f"{len(files):02d}.png", optimize=True)
            files.append(file)
        return files

    def _draw_panels(self, segmenter: Segmenter, sample: Sample, names: list[str], file: Path) -> None:
        if segmenter.task == "semantic":
            [prediction] = segmenter.predict_maps([sample.image])
            draw_panels(sample.image, self._reference(sample), prediction, names, segmenter.palette, file)
            return
        [found] = segmenter.segments([sample.image])
        truth = sample.segments.relabelled(self.to_model)
        ids = truth.flat()
        labels = {i + 1: int(label) for i, label in enumerate(truth.labels) if label >= 0 and not truth.crowd[i]}
        draw_segment_panels(sample.image, (ids, labels), (
            found.segment_map, {s["id"]: s["label_id"] for s in found.segments}), names, segmenter.palette, file)

    def samples(self, count: int) -> list[Sample]:
        """Decodes a few samples, spread over the split.

        Args:
            count: How many.

        Returns:
            At most as many; bad ones are left out if `on_bad_sample` is `skip`.
        """
        total = self._length()
        picked = np.unique(np.linspace(0, max(0, total - 1), count).astype(int)) if total else np.arange(count)
        return [sample for _, sample in self._rows(set(picked.tolist()))] if count else []

    def _length(self) -> int | None:
        if self.data.streaming:
            return self.limit
        count = len(self.data[self.split])
        return min(count, self.limit) if self.limit else count

    def _as_wanted(self, segmenter: Segmenter) -> Segmenter:
        return segmenter.using(tile=self.tile, tta=self.tta)

    def _compared(self, segmenter: Segmenter, batch: list[Sample]) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Logits (n, h, w) and reference (H, W) of each sample, such that the one stretched lies on the other."""
        if not segmenter.needs_tiles(batch[0].image.shape):
            logits = segmenter.logits([sample.image for sample in batch])
            yield from zip(logits, map(self._reference, batch))
            return
        for sample in batch:
            tiles, reference = segmenter.tiles(sample.image), self._reference(sample).astype(np.int64)
            beyond = [(0, covered - side) for covered, side in zip(tiles.covered, reference.shape)]
            yield tiles.logits(), np.pad(reference, beyond, constant_values=self.ignore_index)

    def _rows(self, wanted: set[int]) -> Iterator[tuple[int, Sample]]:
        """Decodes the rows of these numbers, passing over what cannot be used."""
        rows = self.data[self.split]
        if not self.data.streaming:
            return self._decoded((i, rows[i]) for i in sorted(wanted))
        return self._decoded((i, row) for i, row in enumerate(rows.take(max(wanted) + 1)) if i in wanted)

    def _decoded(self, rows: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, Sample]]:
        """Decodes rows while the network computes, passing over what cannot be used."""

        def read(pair: tuple[int, dict]) -> tuple[int, Sample]:
            return pair[0], read_row(pair[1], self.schema, self.channels)

        with closing(read_ahead(read, rows, ahead=self.batch_size)) as items:
            for item in items:
                if not isinstance(item, Exception):
                    yield item
                elif self.on_bad_sample == "skip" and isinstance(item, BadSample):
                    self.skipped.append(str(item))
                else:
                    raise item

    def _samples(self, rank: int, world: int, verbose: bool) -> Iterator[tuple[int, Sample]]:
        length = self._length()
        if length is None:  # a stream without a limit: one pass, every n-th row
            bar = tqdm(self.data[self.split], desc="evaluation", disable=not verbose, leave=False, delay=2)
            decoded = self._decoded((i, row) for i, row in enumerate(bar) if i % world == rank)
        else:
            mine = set(range(rank, length, world))
            decoded = tqdm(self._rows(mine), total=len(mine), desc="evaluation", unit="img", leave=False, delay=2,
                           disable=not (verbose and rank == 0))
        yield from decoded

    def _reference(self, sample: Sample) -> np.ndarray:
        if self.to_model is None:
            return sample.semantic_map
        table = np.full(max(self.schema.ignore_index, len(self.to_model)) + 1, self.ignore_index, np.int64)
        table[: len(self.to_model)] = self.to_model
        return table[sample.semantic_map]

    @staticmethod
    def _added_up(accelerator: Accelerator, matrix: np.ndarray, totals: np.ndarray):
        # Counts travel as int64 and sums as float64 on CPU; MPS has neither, and runs one process.
        counts = accelerator.reduce(torch.from_numpy(matrix).to(accelerator.device), "sum").cpu().numpy()
        sums = accelerator.reduce(torch.from_numpy(totals).to(accelerator.device), "sum").cpu().numpy()
        return counts, sums

    def _protocol(self, segmenter: Segmenter, skipped: int) -> dict:
        import transformers

        import hfseg

        processor = segmenter.processor
        return {
            "split": self.split,
            "data": self.data.source,
            "data_revision": self.data.revision,
            "resize": dict(processor.size) if getattr(processor, "do_resize", False) else None,
            "scored_at": "the original size of each image; logits upsampled bilinearly before the argmax",
            "ignore_index": self.schema.ignore_index,
            "averaging": "one confusion matrix over all pixels of the split; classes that occur in neither "
                         "reference nor prediction are left out of the mean",
            # An image that is larger than a tile is not resized, but its windows where the network takes one size only.
            "tile": {"size": segmenter.tile, "overlap": segmenter.tile_overlap,
                     "windows_resized": segmenter.resizes_windows} if segmenter.tile else None,
            "test_time_augmentation": list(segmenter.tta) or None,
            "skipped_images": skipped,
            "date": datetime.date.today().isoformat(),
            "versions": {"hfseg": hfseg.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__, "python": platform.python_version()},
        }


def evaluate(model, data, *, split: str | None = None, batch_size: int = 8, limit: int | None = None,
             on_bad_sample: str = "stop", tile: int | None = None, tta: str | Iterable[str | float] | None = None,
             overrides: Sequence[str] = (), revision: str | None = None, token: str | None = None,
             task: str | None = None, max_detections: int | None = None, verbose: bool = False, say=None) -> dict:
    """Scores a model on a split of some data, at the original size of every image.

    A run of hfseg reads the label maps as it did in training. The classes of any other checkpoint are aligned with
    the data's by name.

    Args:
        model: A `Segmenter`, a model that `load_model` returned, or a run directory, folder or hub id.
        data: What `load_data` returned, or a path or hub id.
        split: Which split; by default the one for validation.
        batch_size: Images of one size per forward pass.
        limit: Score the first n images only.
        on_bad_sample: `stop` or `skip`.
        tile: Side of the windows in which larger images are computed, as for `Segmenter`; 0 for whole images, None for
            what the segmenter does or the run's recipe says.
        tta: Test-time augmentation, as for `Segmenter`; empty for none, None as for `tile`.
        overrides: Flags such as `["--data.labels.binary", "true"]`, for a path or hub id that needs them.
        revision: Of a model on the hub.
        token: Hub token.
        task: `semantic`, `instance` or `panoptic`, for models that do several; what it was trained for if None.
        max_detections: Of a class in an image, the best ones that count for average precision; 100, as COCO has it, or
            what the run's recipe says.
        verbose: Whether to show a progress bar.
        say: Called with lines for people, such as the table of aligned classes.

    Returns:
        What eval_results.json holds: `mean_iou`, `per_category_iou`, `protocol`...

    Raises:
        UserError: When the classes cannot be aligned, or data or model cannot be read.

    Example:
        >>> results = evaluate("hfseg/shapes-segformer", "shapes/source", limit=4)
        >>> results["num_images"], results["mean_iou"] > 0.3
        (4, True)
    """
    say = say or (lambda line: None)
    if isinstance(model, torch.nn.Module):
        if getattr(model, "image_processor", None) is None:
            raise UserError("a model without its image processor", "what hfseg.load_model returned, a Segmenter, a "
                            "folder or a hub id", "hfseg.Segmenter(model, processor)")
        model = Segmenter(model, model.image_processor)
    if isinstance(model, Segmenter):
        segmenter, trained = model, None
    elif not isinstance(model, (str, Path)):
        raise UserError(f"a model of type {type(model).__name__}", "a Segmenter, a model, a folder or a hub id")
    else:
        segmenter = Segmenter.from_pretrained(str(model), revision=revision, token=token,
                                              **({"task": task} if task else {}))
        trained = saved_schema(str(model), revision, token)
        if (Path(str(model)) / RECIPE).is_file():  # so that the score of the run is found again
            said = load_recipe(str(model)).eval
            max_detections = max_detections or said.max_detections
            tile, tta = said.tile if tile is None else tile, said.tta if tta is None else tta
    if isinstance(data, (str, Path)):
        run = str(model) if trained and Path(str(model)).is_dir() else os.devnull
        overrides = ["--task", segmenter.task, *overrides]
        data = _open(run, str(data), overrides, on_bad_sample, trained)
    elif not isinstance(getattr(data, "schema", None), LabelSchema):
        raise UserError(f"data of type {type(data).__name__} without a label schema", "what hfseg.load_data returned, "
                        "a folder or a hub id", "hfseg.load_data(PATH)")
    for note in data.notes:
        say(f"data: {note}")
    schema = data.schema
    names = [segmenter.model.config.id2label[i] for i in range(segmenter.model.config.num_labels)]
    merged = getattr(data.labels, "merge", None)  # asked for here and now, so it holds
    assumed = schema.origin.startswith("assumed") and not data.labels.given
    fits = trained and (trained.reads(schema) or (assumed and trained.covers(schema)))
    if fits and list(trained.names) == names and not merged:
        schema = trained  # the same stored values; what was merged or dropped for training is so here too
    chosen = data.find_split(split) if split else data.validation or data.train or next(iter(data))
    if chosen == data.train and not split:
        say("note: there is no validation split; this scores the training split")
    evaluator = Evaluator(
        data, chosen, schema=schema, batch_size=batch_size, on_bad_sample=on_bad_sample, limit=limit,
        channels=segmenter.channels, to_model=align_classes(schema, names, say), tile=tile, tta=tta,
        max_detections=max_detections or 100,
    )  # fmt: skip
    results = evaluator.run(segmenter, verbose=verbose)
    for text in evaluator.skipped:
        say(f"skipped: {text}")
    return results


def _open(run: str, path: str, overrides: Sequence[str], on_bad_sample: str,
          trained: LabelSchema | None) -> SegmentationData:
    """Opens a run's own data as its recipe does, held-out split included, and other data by what it says itself."""
    own = None
    if (Path(run) / RECIPE).is_file():
        trained_on = load_recipe(run).data.path
        if trained_on == path or (Path(path).exists() and Path(path).resolve() == Path(trained_on).resolve()):
            own = run
    defaults = [] if own else ["--data.validation_fraction", "0"]
    return load_recipe_data(
        load_recipe(own, [*defaults, *overrides, "--data.path", path, "--data.on_bad_sample", on_bad_sample]),
        fallback=trained,
    )


def _grouped(samples: Iterator, size: int, shape=lambda sample: sample.image.shape) -> Iterator[list]:
    """Gathers neighbours of one shape, so that they go through the network together."""
    group: list = []
    for sample in samples:
        if group and (len(group) == size or shape(sample) != shape(group[0])):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group

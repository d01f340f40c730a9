"""The one evaluator: training, `hfseg evaluate`, cards and demo all score with it.

Each prediction is compared at the image's own size, and all that is kept is one integer matrix.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from hfseg.data import SegmentationData, load_recipe_data
from hfseg.data.images import Sample, read_row
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.metrics.scores import scores_from_matrix, to_json_ready
from hfseg.models import saved_schema
from hfseg.ops import confusion_counts, upsample_argmax
from hfseg.recipe_reading import load_recipe
from hfseg.result import draw_panels
from hfseg.run_directory import RECIPE
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
    """

    def __init__(self, data: SegmentationData, split: str, *, batch_size: int = 8, on_bad_sample: str = "stop",
                 limit: int | None = None, channels: int = 3, schema: LabelSchema | None = None,
                 to_model: np.ndarray | None = None):
        self.data, self.split, self.schema = data, split, schema or data.schema
        self.batch_size, self.on_bad_sample, self.limit = batch_size, on_bad_sample, limit
        self.channels, self.to_model = channels, to_model
        # In a model's ids, 255 may be a class: what is ignored in the data gets an id after all of them.
        self.ignore_index = self.schema.ignore_index if to_model is None else int(np.iinfo(np.uint16).max) + 1
        self.skipped: list[str] = []

    def run(self, segmenter: Segmenter, *, objective=None, accelerator: Accelerator | None = None,
            verbose: bool = True) -> dict:
        """Scores the segmenter; with several processes each takes every n-th image, and counts are added up.

        Args:
            segmenter: What predicts.
            objective: Loss of (logits, labels), averaged over images as `loss`.
            accelerator: Of a run with several processes.
            verbose: Whether to show a progress bar.

        Returns:
            Plain Python values: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_category_iou` by name and
            more scores, `loss`, `num_images`, `protocol`. A class that never occurs scores None.

        Raises:
            BadSample: When a sample cannot be used and `on_bad_sample` is `stop`.
            UserError: When not one image could be scored.
        """
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        names = [segmenter.model.config.id2label[i] for i in range(segmenter.model.config.num_labels)]
        matrix = np.zeros((len(names), len(names)), np.int64)
        totals = np.zeros(3, np.float64)  # loss, images, skipped
        self.skipped = []
        for batch in _grouped(self._samples(rank, world, verbose), self.batch_size):
            logits = segmenter.logits([sample.image for sample in batch])
            size = batch[0].image.shape[:2]
            predictions = upsample_argmax(logits, size).cpu().numpy()
            for number, (sample, prediction) in enumerate(zip(batch, predictions)):
                reference = self._reference(sample)
                matrix += confusion_counts(reference, prediction, len(names), self.ignore_index)
                if objective is not None:
                    labels = torch.from_numpy(reference.astype(np.int64))[None].to(logits.device)
                    totals[0] += float(objective(logits[number][None], labels))
                totals[1] += 1
        totals[2] = len(self.skipped)
        if world > 1:
            matrix, totals = self._added_up(accelerator, matrix, totals)
        if totals[1] == 0:
            raise UserError(f"not one image of the split {self.split} could be scored",
                            fix=self.skipped[0] if self.skipped else "check the data")
        results = scores_from_matrix(matrix, names)
        results["loss"] = totals[0] / totals[1] if objective is not None else None
        results = to_json_ready(results)
        results["num_images"] = int(totals[1])
        results["protocol"] = self._protocol(segmenter, int(totals[2]))
        return results

    def measures(self) -> list:
        """Returns what a score depends on besides the weights: scores compare where it is equal.

        Returns:
            Plain values: the data and its split, how many images, and a hash of which ones.
        """
        ids = [] if self.data.streaming else self.data[self.split]["image_id"][: self._length()]
        which = hashlib.sha256("\n".join(map(str, ids)).encode("utf-8", "replace")).hexdigest()
        return [self.data.source, self.split, self._length(), which]

    def draw_samples(self, segmenter: Segmenter, folder: Path, count: int) -> list[Path]:
        """Draws panels of image, truth and prediction, spread over the split.

        Args:
            segmenter: What predicts.
            folder: Where the PNGs go; made when needed.
            count: How many.

        Returns:
            The files.
        """
        total = self._length()
        picked = np.unique(np.linspace(0, max(0, total - 1), count).astype(int)) if total else np.arange(count)
        wanted, files = set(picked.tolist()), []
        folder.mkdir(parents=True, exist_ok=True)
        names = list(segmenter.model.config.id2label.values())
        for _, sample in self._rows(wanted):
            [prediction] = segmenter.predict_maps([sample.image])
            file = folder / f"{len(files):02d}_{Path(sample.name).stem[:60]}.png"
            draw_panels(sample.image, self._reference(sample), prediction, names, segmenter.palette, file)
            files.append(file)
        return files

    def _length(self) -> int | None:
        if self.data.streaming:
            return self.limit
        count = len(self.data[self.split])
        return min(count, self.limit) if self.limit else count

    def _rows(self, wanted: set[int]) -> Iterator[tuple[int, Sample]]:
        """Decodes the rows of these numbers, passing over what cannot be used."""
        rows = self.data[self.split]
        source = ((i, rows[i]) for i in sorted(wanted)) if not self.data.streaming else enumerate(
            rows.take(max(wanted) + 1))
        for index, row in source:
            if index in wanted:
                try:
                    yield index, read_row(row, self.schema, self.channels)
                except BadSample as error:
                    if self.on_bad_sample != "skip":
                        raise
                    self.skipped.append(str(error))

    def _samples(self, rank: int, world: int, verbose: bool) -> Iterator[Sample]:
        length = self._length()
        if length is None:  # a stream without a limit: one pass, every n-th row
            for index, row in enumerate(tqdm(self.data[self.split], desc="evaluation", disable=not verbose,
                                             leave=False, delay=2)):
                if index % world == rank:
                    try:
                        yield read_row(row, self.schema, self.channels)
                    except BadSample as error:
                        if self.on_bad_sample != "skip":
                            raise
                        self.skipped.append(str(error))
            return
        mine = set(range(rank, length, world))
        bar = tqdm(self._rows(mine), total=len(mine), desc="evaluation", unit="img", leave=False, delay=2,
                   disable=not (verbose and rank == 0))
        for _, sample in bar:
            yield sample

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
            "test_time_augmentation": None,
            "skipped_images": skipped,
            "date": datetime.date.today().isoformat(),
            "versions": {"hfseg": hfseg.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__, "python": platform.python_version()},
        }


def evaluate(model, data, *, split: str | None = None, batch_size: int = 8, limit: int | None = None,
             on_bad_sample: str = "stop", overrides: Sequence[str] = (), revision: str | None = None,
             token: str | None = None, verbose: bool = False, say=None) -> dict:
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
        overrides: Flags such as `["--data.labels.binary", "true"]`, for a path or hub id that needs them.
        revision: Of a model on the hub.
        token: Hub token.
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
        segmenter = Segmenter.from_pretrained(str(model), revision=revision, token=token)
        trained = saved_schema(str(model), revision, token)
    if isinstance(data, (str, Path)):
        run = str(model) if trained and Path(str(model)).is_dir() else os.devnull
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
        channels=segmenter.channels, to_model=align_classes(schema, names, say),
    )  # fmt: skip
    results = evaluator.run(segmenter, verbose=verbose)
    for text in evaluator.skipped:
        say(f"skipped: {text}")
    return results


def align_classes(schema: LabelSchema, names: list[str], say=lambda line: None) -> np.ndarray | None:
    """Matches the data's classes with the model's by name.

    Args:
        schema: Of the data.
        names: Classes of the model, in order.
        say: Prints a line.

    Returns:
        Model id per data id, or None when they are the same.

    Raises:
        UserError: When a class of the data is unknown to the model.
    """
    if list(schema.names) == names:
        return None
    match = schema.align(names)
    left = [name for name, target in zip(schema.names, match) if target < 0]
    if left:
        raise UserError(
            f"the model does not know these classes of the data: {', '.join(left[:20])}",
            f"the model's classes: {', '.join(names[:40])}" + (", ..." if len(names) > 40 else ""),
            "name them alike with --data.labels.names, merge them with --data.labels.merge, or leave them out with "
            "--data.labels.drop",
        )
    for target in set(match):
        same = [name for name, found in zip(schema.names, match) if found == target]
        if len(same) > 1:
            raise UserError(f"several classes of the data are called {names[target]!r} by the model: {', '.join(same)}",
                            "one class each", f"--data.labels.merge '{{{names[target]}: {json.dumps(same)}}}'")
    say("classes aligned by name:")
    for class_id, (name, target) in enumerate(zip(schema.names, match)):
        say(f"  {class_id:>4} {name:<24} -> {target:>4} {names[target]}")
    return np.asarray(match, np.int64)


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


def _grouped(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Gathers neighbours of one shape, so that they go through the network together."""
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == size or sample.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group

"""Score any model on any data: a run as it was trained, other checkpoints by the names of their classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from hfseg.data import SegmentationData, load_recipe_data
from hfseg.data.alignment import align_classes
from hfseg.errors import UserError
from hfseg.evaluation.evaluator import Evaluator
from hfseg.labels import LabelSchema
from hfseg.models import saved_schema
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import RECIPE
from hfseg.segmenter import Segmenter


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
    segmenter = _open_model(model, revision, token, task)
    run = str(model) if isinstance(model, (str, Path)) else None
    trained = saved_schema(run, revision, token) if run else None
    if run and (Path(run) / RECIPE).is_file():  # so that the score of the run is found again
        said = load_recipe(run).eval
        max_detections = max_detections or said.max_detections
        tile, tta = said.tile if tile is None else tile, said.tta if tta is None else tta
    if isinstance(data, (str, Path)):
        own = run if trained and Path(run).is_dir() else os.devnull
        data = _open_data(own, str(data), ["--task", segmenter.task, *overrides], on_bad_sample, trained)
    elif not isinstance(getattr(data, "schema", None), LabelSchema):
        raise UserError(f"data of type {type(data).__name__} without a label schema", "what hfseg.load_data returned, "
                        "a folder or a hub id", "hfseg.load_data(PATH)")
    for note in data.notes:
        say(f"data: {note}")
    names = [segmenter.model.config.id2label[i] for i in range(segmenter.model.config.num_labels)]
    schema = _schema(data, trained, names)
    chosen = data.find_split(split) if split else data.validation or data.train or next(iter(data))
    if chosen == data.train and not split:
        say("note: there is no validation split; this scores the training split")
    evaluator = Evaluator(
        data, chosen, schema=schema, batch_size=batch_size, on_bad_sample=on_bad_sample, limit=limit,
        channels=segmenter.channels, to_model=align_classes(schema, names, say), tile=tile, tta=tta,
        max_detections=max_detections or 100,
    )  # fmt: skip
    if evaluator.split.whole:
        say(f"note: the first {limit} images of the {evaluator.split.whole} of {chosen} are scored, and no others")
    results = evaluator.run(segmenter, verbose=verbose)
    for text in evaluator.skipped:
        say(f"skipped: {text}")
    return results


def _open_model(model: Any, revision: str | None, token: str | None, task: str | None) -> Segmenter:
    if isinstance(model, Segmenter):
        return model
    if isinstance(model, torch.nn.Module):
        if getattr(model, "image_processor", None) is None:
            raise UserError("a model without its image processor", "what hfseg.load_model returned, a Segmenter, a "
                            "folder or a hub id", "hfseg.Segmenter(model, processor)")
        return Segmenter(model, model.image_processor)
    if not isinstance(model, (str, Path)):
        raise UserError(f"a model of type {type(model).__name__}", "a Segmenter, a model, a folder or a hub id")
    return Segmenter.from_pretrained(str(model), revision=revision, token=token, **({"task": task} if task else {}))


def _schema(data: SegmentationData, trained: LabelSchema | None, names: list[str]) -> LabelSchema:
    """How to read the label maps: as in training where that fits, for what was merged or dropped then is so here."""
    schema = data.schema
    merged = getattr(data.labels, "merge", None)  # asked for here and now, so it holds
    assumed = schema.origin.startswith("assumed") and not data.labels.given
    fits = trained and (trained.reads(schema) or (assumed and trained.covers(schema)))
    return trained if fits and list(trained.names) == names and not merged else schema


def _open_data(run: str, path: str, overrides: Sequence[str], on_bad_sample: str,
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

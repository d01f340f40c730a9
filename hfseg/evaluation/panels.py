"""Pictures of image, truth and prediction, side by side."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from hfseg.data.images import Sample
from hfseg.drawing import draw_panels, draw_segment_panels, to_rgb
from hfseg.evaluation.split import Split
from hfseg.segmenter import Segmenter

_INPUTS = 3  # pictures that samples/inputs holds


def draw_samples(segmenter: Segmenter, split: Split, folder: Path, count: int) -> list[Path]:
    """Draws panels of image, truth and prediction, spread over the split.

    Args:
        segmenter: What predicts.
        split: What is true.
        folder: Where the PNGs go; made when needed.
        count: How many.

    Returns:
        The files.
    """
    files: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for sample in split.spread(count):
        file = folder / f"{len(files):02d}_{Path(sample.name).stem[:60]}.png"
        _draw(segmenter, split, sample, file)
        if split.channels == 3 and len(files) < _INPUTS:  # for the hub's widget, which wants pictures to try
            (folder / "inputs").mkdir(exist_ok=True)
            shown = Image.fromarray(to_rgb(sample.image))
            shown.thumbnail((1024, 1024))
            shown.save(folder / "inputs" / f"{len(files):02d}.png", optimize=True)
        files.append(file)
    return files


def _draw(segmenter: Segmenter, split: Split, sample: Sample, file: Path) -> None:
    names = list(segmenter.model.config.id2label.values())
    if segmenter.task == "semantic":
        [prediction] = segmenter.predict_maps([sample.image])
        draw_panels(sample.image, split.reference(sample), prediction, names, segmenter.palette, file)
        return
    [found] = segmenter.segments([sample.image])
    truth = sample.segments.relabelled(split.to_model)
    labels = {i + 1: int(label) for i, label in enumerate(truth.labels) if label >= 0 and not truth.crowd[i]}
    draw_segment_panels(sample.image, (truth.flat(), labels), (
        found.segment_map, {s["id"]: s["label_id"] for s in found.segments}), names, segmenter.palette, file)

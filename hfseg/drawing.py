"""Pictures of maps: colours over an image, and panels that show where a prediction errs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hfseg.labels import Colour

_PANEL = 360  # pixels of a panel's longer side
_GAP, _LINE, _FONT = 12, 24, 15
_PAPER, _INK, _ERROR = (255, 255, 255), (24, 24, 27), (220, 38, 38)


def draw_panels(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Colour],
    path: str | os.PathLike | None = None,
) -> Image.Image:
    """Draw image, truth, prediction and errors side by side, over a legend with the IoU in this image.

    Unlabelled truth is hatched, and errors are red.

    Args:
        image: (H, W) or (H, W, C).
        truth: (H, W) class ids; a value that is no class is unlabelled.
        prediction: (H, W) class ids.
        names: Class names by class id.
        palette: (red, green, blue) per class id.
        path: Where to write the picture, as PNG.

    Returns:
        The picture.
    """
    unlabelled = truth >= len(names)
    wrong = (truth != prediction) & ~unlabelled
    scale = _PANEL / max(truth.shape)
    height, width = (max(1, round(side * scale)) for side in truth.shape)
    at = np.ix_(*(np.arange(n) * side // n for n, side in zip((height, width), truth.shape, strict=True)))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    photo = np.array(Image.fromarray(to_rgb(image)).resize((width, height), resampling))
    hatch = np.where((np.arange(height)[:, None] + np.arange(width)) // 4 % 2, 60, 100).astype(np.uint8)[..., None]

    truth_panel = paint(truth[at], palette[: len(names)], photo, 0.85)
    truth_panel = np.where(unlabelled[at][..., None], hatch, truth_panel)
    pale = (0.3 * photo.mean(axis=2, keepdims=True) + 170).astype(np.uint8)
    errors = np.where(unlabelled[at][..., None], hatch, pale).repeat(3, axis=2)[..., :3]
    errors[wrong[at]] = _ERROR
    panels = {
        "image": photo,
        "truth": truth_panel,
        "prediction": paint(prediction[at], palette[: len(names)], photo, 0.85),
        f"errors: {wrong.sum() / max(1, (~unlabelled).sum()):.1%} of pixels": errors,
    }

    legend = []
    for i in np.union1d(truth[~unlabelled], prediction).tolist():
        true, predicted = truth == i, (prediction == i) & ~unlabelled
        union = (true | predicted).sum()
        iou = f"  IoU {(true & predicted).sum() / union:.2f}" if union else ""
        legend.append((tuple(palette[i]), names[i] + iou))
    if unlabelled.any():
        legend.append(((80, 80, 80), "unlabelled"))
    picture = _sheet(panels, legend)
    if path is not None:
        picture.save(path)
    return picture


def draw_segment_panels(
    image: np.ndarray,
    truth: tuple[np.ndarray, Mapping[int, int]],
    prediction: tuple[np.ndarray, Mapping[int, int]],
    names: Sequence[str],
    palette: Sequence[Colour],
    path: str | os.PathLike | None = None,
) -> Image.Image:
    """Draw image, truth and prediction side by side, every object outlined and shaded, over a legend of counts.

    Args:
        image: (H, W) or (H, W, C).
        truth: (H, W) ids of the true objects, and the class id of each; other ids are none.
        prediction: The same of the predicted ones.
        names: Class names by class id.
        palette: (red, green, blue) per class id.
        path: Where to write the picture, as PNG.

    Returns:
        The picture.
    """
    shape = truth[0].shape
    scale = _PANEL / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    at = np.ix_(*(np.arange(n) * side // n for n, side in zip((height, width), shape, strict=True)))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    photo = np.array(Image.fromarray(to_rgb(image)).resize((width, height), resampling))
    panels = {"image": photo}
    for title, (ids, labels) in (("truth", truth), ("prediction", prediction)):
        panels[f"{title}: {len(labels)} segments"] = paint_segments(ids[at], labels, palette, photo)
    legend = []
    for i, name in enumerate(names):
        counts = [sum(label == i for label in labels.values()) for _, labels in (truth, prediction)]
        if any(counts):
            legend.append((tuple(palette[i]), f"{name}  {counts[0]} true, {counts[1]} predicted"))
    picture = _sheet(panels, legend)
    if path is not None:
        picture.save(path)
    return picture


def paint_segments(
    ids: np.ndarray, labels: Mapping[int, int], palette: Sequence[Colour], image: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
    """Colour objects over an image: each a shade of its class's colour, with an outline.

    Args:
        ids: (H, W) ids of objects.
        labels: Class id of each object; other ids show the image.
        palette: (red, green, blue) per class id.
        image: (H, W, C) under it.
        alpha: How opaque the shades are.

    Returns:
        (H, W, 3) uint8.
    """
    known = np.array(sorted(labels), np.int64)
    place = np.zeros(ids.shape, np.int64)  # 0 for none
    if len(known):
        found = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        place = np.where(known[found] == ids, found + 1, 0)
    colours = np.zeros((len(known) + 1, 3), np.float32)
    colours[1:] = segment_colours([labels[key] for key in known.tolist()], palette)
    base = to_rgb(image).astype(np.float32)
    edge = np.zeros(ids.shape, bool)
    for axis in (0, 1):
        differs = np.diff(place, axis=axis) != 0
        edge |= np.insert(differs, 0, False, axis) | np.insert(differs, differs.shape[axis], False, axis)
    edge &= place > 0
    shown = np.where((place > 0)[..., None], base + alpha * (colours[place] - base), base)
    shown[edge] = 0.25 * shown[edge] + 0.75 * np.minimum(colours[place[edge]] * 0.6 + 100, 255)
    return np.rint(shown).astype(np.uint8)


def segment_colours(labels: Sequence[int], palette: Sequence[Colour]) -> np.ndarray:
    """Choose a colour for each object, near that of its class; of any hue where there is one class.

    Args:
        labels: Class id of each object.
        palette: (red, green, blue) per class id.

    Returns:
        (N, 3) float32, 0 to 255.
    """
    colours = np.zeros((len(labels), 3), np.float32)
    seen: dict[int, int] = {}
    for i, label in enumerate(labels):
        colours[i] = _shade(palette[label], seen.get(label, 0), len(palette) == 1)
        seen[label] = seen.get(label, 0) + 1
    return colours


def _shade(colour: Colour, number: int, alone: bool) -> tuple[float, ...]:
    import colorsys

    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    turn = number * 0.61803398875 % 1
    hue = hue + (turn if alone else 0.16 * (turn - 0.5) * (number > 0))
    value = min(1.0, max(0.35, value * (1 - 0.35 * ((number * 0.7548776662) % 1) * (number > 0))))
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue % 1, max(saturation, 0.5 * alone), value))


def _sheet(panels: Mapping[str, np.ndarray], legend: Sequence[tuple[Colour, str]]) -> Image.Image:
    """Lay out titled panels in a row and a legend in columns below."""
    font = ImageFont.load_default(_FONT)
    height, width = next(iter(panels.values())).shape[:2]
    titles = max(font.getlength(title) for title in panels)
    step = int(max(width, titles)) + _GAP
    entry = int(max((font.getlength(text) for _, text in legend), default=0)) + 3 * _GAP + _FONT
    total = step * len(panels) + _GAP
    columns = max(1, (total - _GAP) // entry)
    lines = -(-len(legend) // columns)
    sheet = Image.new("RGB", (max(total, entry + _GAP), _LINE + height + 2 * _GAP + lines * _LINE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(panels.items()):
        draw.text((_GAP + i * step, _LINE // 2), title, _INK, font, anchor="lm")
        sheet.paste(Image.fromarray(panel), (_GAP + i * step, _LINE))
    for i, (colour, text) in enumerate(legend):
        left, middle = _GAP + i % columns * entry, _LINE + height + _GAP + i // columns * _LINE + _LINE // 2
        half = _FONT // 2
        draw.rectangle((left, middle - half, left + 2 * half, middle + half), colour, outline=_INK)
        draw.text((left + 2 * half + 8, middle), text, _INK, font, anchor="lm")
    return sheet


def paint(
    ids: np.ndarray,
    palette: Sequence[Colour],
    image: np.ndarray | None,
    alpha: float,
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """Colour the ids that the palette has, over an image if there is one; (H, W, 3) uint8."""
    colours = np.zeros((max(int(ids.max()) + 1, len(palette)), 3), dtype=np.float32)
    colours[: len(palette)] = palette
    if image is None:
        return colours.astype(np.uint8)[ids]
    segments = ids if segments is None else segments
    edge = np.zeros(ids.shape, dtype=bool)  # the last pixel before another segment
    edge[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edge[:-1] |= segments[:-1] != segments[1:]
    opacity = np.where(edge, (1 + alpha) / 2, alpha) * (ids < len(palette))
    base = to_rgb(image).astype(np.float32)
    return np.rint(base + opacity[..., None].astype(np.float32) * (colours[ids] - base)).astype(np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Show any array as (H, W, 3) uint8: the first three bands, stretched where they are not 8-bit."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype == np.uint8:
        return image
    image = np.nan_to_num(image.astype(np.float32))
    low, high = image.min(), image.max()
    return np.rint((image - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)

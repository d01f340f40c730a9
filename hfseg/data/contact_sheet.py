"""A picture of training samples as the network sees them: image beside coloured map, and a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
BACKGROUND, INK, QUIET = (250, 250, 250), (33, 37, 41), (134, 142, 150)
GAP, MARGIN, TEXT = 4, 16, 14  # pixels


def contact_sheet(
    samples: Iterable[tuple[Tensor, Tensor]],
    path: str | Path,
    palette: Sequence[Colour],
    ignore_index: int,
    *,
    names: Sequence[str] | None = None,
    ignore_colour: Colour = (60, 60, 66),
    columns: int = 3,
    title: str = "",
    side: int = 240,
) -> Path:
    """Draws augmented samples, image beside map, with a legend of the classes and their shares.

    Args:
        samples: Images (C, H, W) and maps of class ids (H, W), as `Augmentation` gives them; any sizes.
        path: The file to write; its suffix says the format.
        palette: A colour per class.
        ignore_index: The id that is drawn striped, as unlabelled.
        names: A name per class; numbers if not given.
        ignore_colour: Colour under the stripes.
        columns: Samples per row.
        title: A line above all.
        side: Height of each sample in pixels; smaller ones are enlarged, larger ones reduced.

    Returns:
        `path`.
    """
    names = [str(k) for k in range(len(palette))] if names is None else list(names)
    counts = np.zeros(len(palette) + 1, np.int64)
    pairs = []
    for image, semantic_map in samples:
        ids = semantic_map.numpy().astype(np.int64)
        ids = np.where(ids == ignore_index, len(palette), ids)
        counts += np.bincount(ids.ravel(), minlength=len(counts))
        size = (max(1, round(side * ids.shape[1] / ids.shape[0])), side)
        photo = Image.fromarray(_displayed(image.numpy())).resize(size, Image.Resampling.BICUBIC)
        ids = np.asarray(Image.fromarray(ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        pairs.append((photo, Image.fromarray(_coloured(ids, palette, ignore_colour))))

    font, large = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT + 6)
    columns = max(1, min(columns, len(pairs)))
    cell = max((2 * photo.width + GAP for photo, _ in pairs), default=side)
    width = max(2 * MARGIN + columns * cell + (columns - 1) * MARGIN, 480)
    entries = _legend(names, palette, counts, ignore_colour)
    places, legend_height = _flow([font.getlength(label) for label, _ in entries], width - 2 * MARGIN)
    top = MARGIN + (TEXT + 22 if title else 0)
    rows = -(-len(pairs) // columns)
    bottom = top + rows * (side + MARGIN)
    sheet = Image.new("RGB", (width, bottom + legend_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN), title, INK, large)
    for number, (photo, coloured) in enumerate(pairs):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * (cell + MARGIN), top + row * (side + MARGIN)
        sheet.paste(photo, (x, y))
        sheet.paste(coloured, (x + photo.width + GAP, y))
    for (label, swatch), (x, y) in zip(entries, places, strict=True):
        x, y = x + MARGIN, y + bottom
        sheet.paste(Image.fromarray(swatch), (x, y))
        draw.text((x + TEXT + 8, y - 1), label, QUIET if label.endswith(" 0 %") else INK, font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _displayed(image: np.ndarray) -> np.ndarray:
    """(C, H, W) of any kind as (H, W, 3) uint8: the first three bands, or the first as grey."""
    image = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
    if image.dtype != np.uint8:
        low, high = np.nanpercentile(image, (1, 99))
        image = np.nan_to_num((image - low) / max(high - low, 1e-9)).clip(0, 1) * 255
    return np.ascontiguousarray(image.transpose(1, 2, 0).astype(np.uint8))


def _coloured(ids: np.ndarray, palette: Sequence[Colour], ignore_colour: Colour) -> np.ndarray:
    """(H, W) ids, the last for unlabelled, as colours; unlabelled pixels are striped, which no class is."""
    colours = np.array([*palette, ignore_colour], np.uint8)[ids]
    rows, columns = np.indices(ids.shape, sparse=True)
    stripe = (ids == len(palette)) & ((rows + columns) % 10 < 3)
    colours[stripe] = colours[stripe] // 2 + 96
    return colours


def _legend(
    names: list[str], palette: Sequence[Colour], counts: np.ndarray, ignore_colour: Colour
) -> list[tuple[str, np.ndarray]]:
    """A label with the share of the pixels, and a square swatch, for every class and for unlabelled."""
    swatches = [_coloured(np.full((TEXT, TEXT), k), palette, ignore_colour) for k in range(len(counts))]
    for swatch in swatches:  # a line around, or a white class would vanish on the paper
        swatch[[0, -1]] = swatch[:, [0, -1]] = 120
    shares = 100 * counts / max(1, counts.sum())
    labels = [f"{name} {share:.2g} %" if share < 10 else f"{name} {share:.0f} %"
              for name, share in zip([*names, "unlabelled"], shares, strict=True)]  # fmt: skip
    return list(zip(labels, swatches, strict=True))


def _flow(lengths: list[float], width: int) -> tuple[list[tuple[int, int]], int]:
    """Places entries in columns of one width, row after row; returns the places and the height."""
    step = int(max(lengths, default=0)) + TEXT + 32
    per_row = max(1, width // step)
    height = -(-len(lengths) // per_row) * (TEXT + 8)
    return [(k % per_row * step, k // per_row * (TEXT + 8)) for k in range(len(lengths))], height

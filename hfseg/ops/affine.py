"""Sampling under an affine map, compiled: an image bilinearly, a map of ids by the nearest pixel.

A map of places is (2, 3) float64: pixel (y, x) of the result lies at row `places[0] @ (y, x, 1)` and column
`places[1] @ (y, x, 1)` of the source, where whole numbers are the centres of pixels. Scaling, cropping, turning and
flipping in one, so that each pixel is computed once, and only those that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hfseg.ops.compiled import compiled

_FAST = {"contract"}  # a product and a sum may be one operation
_TIE = 1e-7  # pixels: half-way between two pixels the later one is taken, whatever the rounding of the map


def affine_nearest(ids: np.ndarray, places: np.ndarray, outside: int, out: np.ndarray) -> np.ndarray:
    """Takes for each pixel the id of the source's pixel whose centre is nearest.

    Args:
        ids: (H, W) integers.
        places: (2, 3) float64.
        outside: What stands where the source has no pixel.
        out: (h, w) of a type that holds every id and `outside`; written.

    Returns:
        `out`.

    Example:
        >>> ids, shift = np.array([[1, 2], [3, 4]]), np.array([[1.0, 0, 0], [0, 1, 1]])
        >>> affine_nearest(ids, shift, -1, np.empty((2, 2), np.int64))
        array([[ 2, -1],
               [ 4, -1]])
    """
    _nearest(np.ascontiguousarray(ids), places, outside, out)
    return out


def affine_bilinear(image: np.ndarray, places: np.ndarray, where: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Interpolates an image where asked; beyond the centres of its outermost pixels these go on.

    Bytes and float32 are computed in float32, places too: exact to 1e-4 of a pixel in a source of 1000 x 1000.

    Args:
        image: (H, W, C) uint8, float32 or float64.
        places: (2, 3) float64.
        where: (h, w) bool, which pixels to write.
        out: (C, h, w) of the image's type, contiguous; written.

    Returns:
        `out`.

    Example:
        >>> image, between = np.array([[[10], [20]]], np.uint8), np.array([[1.0, 0, 0], [0, 1, 0.5]])
        >>> affine_bilinear(image, between, np.ones((1, 2), bool), np.empty((1, 1, 2), np.uint8))
        array([[[15, 20]]], dtype=uint8)
    """
    if image.dtype != np.uint8:
        _interpolate(np.ascontiguousarray(image), places, where, out)
        return out
    words = np.empty(image.shape[:2], np.uint32)
    for first in range(0, len(out), 4):
        _pack(image, first, words)
        _interpolate_words(words, places, where, out[first : first + 4])
    return out


def reach(place: Sequence[float], size: tuple[int, int]) -> tuple[int, int]:
    """Returns which rows (or columns) of the source a result covers, outermost edges of its pixels included.

    Args:
        place: A row of the map of places.
        size: (h, w) of the result.

    Returns:
        The first and the one after the last; they may lie beyond the source.

    Example:
        >>> reach([0.5, 0, -0.25], (4, 4))
        (0, 2)
    """
    ends = [sorted((-0.5 * step, (side - 0.5) * step)) for step, side in zip(place, size, strict=False)]
    low, high = (place[2] + 0.5 + down + across for down, across in zip(*ends, strict=True))
    return math.floor(low + 1e-6), math.ceil(high - 1e-6)


@compiled(fastmath=_FAST)
def _nearest(ids, places, outside, out):
    height, width = ids.shape
    rows, columns = out.shape
    flat = ids.reshape(-1)
    offset, inside = np.empty(columns, np.uint64), np.empty(columns, np.bool_)
    row_step, column_step = places[0, 1], places[1, 1]
    level = row_step == 0 and places[1, 0] == 0  # every row takes the same columns
    aimed = False
    for y in range(rows):
        row, column = places[0, 0] * y + places[0, 2] + (0.5 + _TIE), places[1, 0] * y + places[1, 2] + (0.5 + _TIE)
        base = np.uint64(0)
        if level:
            if row < 0 or row >= height:
                out[y] = outside
                continue
            base, row = np.uint64(np.int64(row) * width), 0.0
        if not (level and aimed):
            for x in range(columns):
                r, c = row_step * x + row, column_step * x + column
                inside[x] = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                r, c = min(max(r, 0.0), height - 1.0), min(max(c, 0.0), width - 1.0)
                offset[x] = np.int32(r) * width + np.int32(c)
            aimed = True
        for x in range(columns):
            here = flat[base + offset[x]]
            out[y, x] = here if inside[x] else outside


@compiled
def _span(where):
    """The first wanted pixel of a row, and the one after the last."""
    first, last = 0, len(where)
    while first < last and not where[first]:
        first += 1
    while first < last and not where[last - 1]:
        last -= 1
    return first, last


@compiled(fastmath=_FAST)
def _aim(places, y, first, height, width, offset, down, across):
    """Writes, for pixels of row y from column `first` on, which pixel of the source is the upper left one of the four
    around the wanted place, and how far that lies below it and to the right."""
    exact = down.dtype.type
    row_step, column_step = exact(places[0, 1]), exact(places[1, 1])
    row = exact(places[0, 0] * y + places[0, 1] * first + places[0, 2])
    column = exact(places[1, 0] * y + places[1, 1] * first + places[1, 2])
    bottom, right = np.int32(max(height - 2, 0)), np.int32(max(width - 2, 0))
    for x in range(len(offset)):
        r = min(max(row_step * exact(x) + row, exact(0)), exact(height - 1))
        c = min(max(column_step * exact(x) + column, exact(0)), exact(width - 1))
        whole_r, whole_c = min(np.int32(r), bottom), min(np.int32(c), right)
        offset[x] = whole_r * np.int32(width) + whole_c
        down[x], across[x] = r - exact(whole_r), c - exact(whole_c)


@compiled
def _pack(image, first, words):
    """Packs up to four channels of bytes into a word."""
    height, width, channels = image.shape
    last = channels - 1
    second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    for y in range(height):
        for x in range(width):
            words[y, x] = (
                np.uint32(image[y, x, first]) | np.uint32(image[y, x, second]) << np.uint32(8)
                | np.uint32(image[y, x, third]) << np.uint32(16) | np.uint32(image[y, x, fourth]) << np.uint32(24)
            )  # fmt: skip


@compiled(fastmath=_FAST)
def _interpolate_words(words, places, where, out):
    """Gathers the four neighbours of all pixels of a row first, whole words; then the arithmetic runs in vectors."""
    height, width = words.shape
    rows, columns = where.shape
    flat = words.reshape(-1)
    to_right, to_below = np.uint64(width > 1), np.uint64(width if height > 1 else 0)
    offset = np.empty(columns, np.uint32)
    down, across = np.empty(columns, np.float32), np.empty(columns, np.float32)
    corners = np.empty((4, columns), np.uint32)
    parts = corners.view(np.uint8)
    for y in range(rows):
        first, last = _span(where[y])
        count = last - first
        _aim(places, y, first, height, width, offset[:count], down, across)
        for x in range(count):
            i = np.uint64(offset[x])
            corners[0, x], corners[1, x] = flat[i], flat[i + to_right]
            i += to_below
            corners[2, x], corners[3, x] = flat[i], flat[i + to_right]
        for channel in range(len(out)):
            _blend(parts[0, channel:], parts[1, channel:], parts[2, channel:], parts[3, channel:], down, across,
                   where[y, first:last], out[channel, y, first:last])  # fmt: skip


@compiled(fastmath=_FAST)
def _blend(upper_left, upper_right, lower_left, lower_right, down, across, where, line):
    """Blends every fourth byte."""
    for x in range(len(line)):
        a, b = np.float32(upper_left[4 * x]), np.float32(upper_right[4 * x])
        c, d = np.float32(lower_left[4 * x]), np.float32(lower_right[4 * x])
        upper, lower = a + (b - a) * across[x], c + (d - c) * across[x]
        value = np.uint8(np.int32(upper + (lower - upper) * down[x] + np.float32(0.5)))
        before = line[x]  # read in any case, or this would not run in vectors
        line[x] = value if where[x] else before


@compiled(fastmath=_FAST)
def _interpolate(image, places, where, out):
    height, width, channels = image.shape
    rows, columns = where.shape
    flat = image.reshape(-1)
    to_right = np.uint64(channels if width > 1 else 0)
    to_below = np.uint64(width * channels if height > 1 else 0)
    offset = np.empty(columns, np.uint32)
    down, across = np.empty(columns, image.dtype), np.empty(columns, image.dtype)
    for y in range(rows):
        first, last = _span(where[y])
        _aim(places, y, first, height, width, offset[: last - first], down, across)
        for x in range(last - first):
            if where[y, first + x]:
                for channel in range(channels):
                    i = np.uint64(offset[x]) * np.uint64(channels) + np.uint64(channel)
                    j = i + to_below
                    upper = flat[i] + (flat[i + to_right] - flat[i]) * across[x]
                    lower = flat[j] + (flat[j + to_right] - flat[j]) * across[x]
                    out[channel, y, first + x] = upper + (lower - upper) * down[x]

"""Masks at an image's own size from coarse logits: each in one step, and only where it may reach, compiled.

Between the centres of the logits they are interpolated bilinearly (`align_corners=False`); the crop of a padding and
the stretch to the image are part of the same map. A mask's empty surroundings are never computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hfseg.ops.compiled import compiled


def grid(padded: Sequence[int], content: Sequence[int], logits: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Says where the pixels of an image lie among logits that cover its padded input.

    Args:
        padded: (height, width) of the input that the logits cover.
        content: (height, width) of the image in its upper left corner.
        logits: (h, w).
        size: (H, W) of the image itself.

    Returns:
        (4,): row = a i + b of pixel row i, column = c j + d of pixel column j.

    Example:
        >>> grid((32, 32), (32, 32), (8, 8), (16, 16)).tolist()
        [0.5, -0.25, 0.5, -0.25]
    """
    steps = [inside / whole * count / side
             for inside, whole, count, side in zip(content, padded, logits, size, strict=True)]
    return np.array([steps[0], steps[0] / 2 - 0.5, steps[1], steps[1] / 2 - 0.5])


def boxed(boxes: np.ndarray, logits: Sequence[int]) -> np.ndarray:
    """Says where the pixels of an image lie among logits that fill boxes.

    Args:
        boxes: (K, 4) left, top, right, bottom in pixels of the image.
        logits: (h, w).

    Returns:
        (K, 4), as `grid`.

    Example:
        >>> boxed(np.array([[4.0, 0, 12, 4]]), (4, 4)).tolist()
        [[1.0, 0.0, 0.5, -2.25]]
    """
    left, top, right, bottom = boxes.T
    down, across = logits[0] / np.maximum(bottom - top, 1e-6), logits[1] / np.maximum(right - left, 1e-6)
    return np.stack([down, (0.5 - top) * down - 0.5, across, (0.5 - left) * across - 0.5], 1)


def reach(logits: np.ndarray, places: np.ndarray, size: Sequence[int], level: float,
          boxes: np.ndarray | None = None) -> np.ndarray:
    """Finds the pixels that each mask may cover.

    Args:
        logits: (K, h, w) float32.
        places: (K, 4) from `grid` or `boxed`.
        size: (H, W) of the image.
        level: The logit above which a pixel is covered.
        boxes: (K, 4) left, top, right, bottom in pixels, beyond which a mask does not go.

    Returns:
        (K, 4) int64: the first row, the one after the last, the first column, the one after the last.
    """
    above = logits > level
    found = np.zeros((len(logits), 4), np.int64)
    for axis, (side, lines) in enumerate(zip(size, (above.any(2), above.any(1)), strict=True)):
        step, shift = places[:, 2 * axis], places[:, 2 * axis + 1]
        first, last = lines.argmax(1), lines.shape[1] - 1 - lines[:, ::-1].argmax(1)
        # What lies beyond the outermost centres is as they are, so that these reach to the border.
        start = np.where(first == 0, 0, np.ceil((first - 1 - shift) / step))
        stop = np.where(last == lines.shape[1] - 1, side, np.floor((last + 1 - shift) / step) + 1)
        if boxes is not None:
            start = np.maximum(start, np.ceil(boxes[:, 1 - axis] - 0.5))
            stop = np.minimum(stop, np.floor(boxes[:, 3 - axis] - 0.5) + 1)
        found[:, 2 * axis], found[:, 2 * axis + 1] = np.clip(start, 0, side), np.clip(stop, 0, side)
    found[~above.any((1, 2)), 1] = 0
    found[~above.any((1, 2)), 0] = 0
    return found


def cover(logits: np.ndarray, places: np.ndarray, reached: np.ndarray, size: Sequence[int],
          level: float) -> np.ndarray:
    """Tells which pixels each mask covers.

    Args:
        logits: (K, h, w) float32.
        places: (K, 4) from `grid` or `boxed`.
        reached: (K, 4) from `reach`.
        size: (H, W).
        level: The logit above which a pixel is covered.

    Returns:
        (K, H, W) bool.

    Example:
        >>> logits = np.array([[[4.0, -4.0]]], np.float32)
        >>> places = grid((1, 2), (1, 2), (1, 2), (1, 4))[None]
        >>> cover(logits, places, reach(logits, places, (1, 4), 0.0), (1, 4), 0.0).tolist()
        [[[True, True, False, False]]]
    """
    masks = np.zeros((len(logits), *size), bool)
    if len(logits):
        _cover(np.ascontiguousarray(logits, np.float32), places, reached, np.float32(level), masks)
    return masks


def contest(logits: np.ndarray, scores: np.ndarray, places: np.ndarray, reached: np.ndarray, size: Sequence[int],
            level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives each pixel to the mask that covers it with the largest score times probability.

    Args:
        logits: (K, h, w) float32.
        scores: (K,) float32.
        places: (K, 4) from `grid` or `boxed`.
        reached: (K, 4) from `reach`.
        size: (H, W).
        level: The logit above which a pixel is covered.

    Returns:
        (H, W) int32, the mask's number from 1, 0 for none; (K,) pixels that each covers; (K,) pixels that it won.
    """
    winner, best = np.zeros(size, np.int32), np.zeros(size, np.float32)
    covered = np.zeros(len(logits), np.int64)
    if len(logits):
        _contest(np.ascontiguousarray(logits, np.float32), np.asarray(scores, np.float32), places, reached,
                 np.float32(level), winner, best, covered)
    return winner, covered, np.bincount(winner.ravel(), minlength=len(logits) + 1)[1:]


def logit(probability: float) -> float:
    """Returns the logit of a probability.

    Args:
        probability: 0 to 1.

    Returns:
        Minus infinity to infinity.
    """
    if not 0 < probability < 1:
        return math.inf if probability >= 1 else -math.inf
    return math.log(probability / (1 - probability))


@compiled
def _between(position, last):
    """The two neighbours that a position lies between, and its share of the second."""
    at = min(max(position, 0.0), float(last))
    first = int(at)
    return first, min(first + 1, last), np.float32(at - first)


@compiled
def _bilinear(upper, lower, share, left, right, part):
    above = upper[left] + part * (upper[right] - upper[left])
    under = lower[left] + part * (lower[right] - lower[left])
    return above + share * (under - above)


@compiled
def _cover(logits, places, reached, level, masks):
    rows, columns = logits.shape[1] - 1, logits.shape[2] - 1
    for k in range(len(logits)):
        down, below, across, beside = places[k]
        for i in range(reached[k, 0], reached[k, 1]):
            top, bottom, share = _between(down * i + below, rows)
            upper, lower = logits[k, top], logits[k, bottom]
            for j in range(reached[k, 2], reached[k, 3]):
                left, right, part = _between(across * j + beside, columns)
                masks[k, i, j] = _bilinear(upper, lower, share, left, right, part) > level


@compiled
def _contest(logits, scores, places, reached, level, winner, best, covered):
    rows, columns = logits.shape[1] - 1, logits.shape[2] - 1
    one = np.float32(1)
    for k in range(len(logits)):
        down, below, across, beside = places[k]
        count = 0
        for i in range(reached[k, 0], reached[k, 1]):
            top, bottom, share = _between(down * i + below, rows)
            upper, lower = logits[k, top], logits[k, bottom]
            for j in range(reached[k, 2], reached[k, 3]):
                left, right, part = _between(across * j + beside, columns)
                value = _bilinear(upper, lower, share, left, right, part)
                if value > level:
                    count += 1
                    if scores[k] > best[i, j]:  # else not even a sure mask would win
                        value = scores[k] / (one + np.exp(-value))
                        if value > best[i, j]:
                            best[i, j] = value
                            winner[i, j] = k + 1
        covered[k] = count

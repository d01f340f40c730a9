"""COCO run-length codes of masks, in the compressed string form, equal to what pycocotools writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from hfseg.errors import UserError


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as COCO run-length code.

    Args:
        mask: (H, W), bool or integers; non-zero is inside.

    Returns:
        `{"size": [H, W], "counts": str}`, ready for JSON; `counts` equals pycocotools' bytes, decoded as ASCII.

    Example:
        >>> encode(np.array([[0, 1], [0, 1]]))
        {'size': [2, 2], 'counts': '22'}
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise UserError(f"a mask of shape {mask.shape}", "(height, width)")
    flat = mask.astype(bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], [0] if flat[:1].any() else [], changes, [flat.size]]).astype(np.int64)
    return {"size": list(mask.shape), "counts": _to_string(np.diff(edges))}


def encode_part(mask: np.ndarray, corner: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """Encode a mask that is known in a rectangle and empty elsewhere, at the cost of the rectangle.

    Args:
        mask: (h, w) bool.
        corner: (top, left) of the rectangle in the whole.
        size: (H, W) of the whole.

    Returns:
        What `encode` gives for the whole mask.

    Example:
        >>> encode_part(np.array([[True], [True]]), (0, 1), (2, 2))
        {'size': [2, 2], 'counts': '22'}
    """
    (top, left), (height, width), (rows, columns) = corner, size, mask.shape
    framed = np.zeros((columns, rows + 2), bool)
    framed[:, 1:-1] = mask.T
    column, row = np.nonzero(framed[:, 1:] != framed[:, :-1])
    edges = (left + column) * height + top + row  # where a run starts, where it stops, and so on
    goes_on = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # in the next column
    edges = np.delete(edges, [*(2 * goes_on + 1), *(2 * goes_on + 2)])
    total = height * width
    edges = np.concatenate([[0], edges, [] if len(edges) and edges[-1] == total else [total]]).astype(np.int64)
    return {"size": [int(height), int(width)], "counts": _to_string(np.diff(edges))}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode COCO run-length code, compressed (str or bytes) or not (list of counts).

    Args:
        rle: `{"size": [H, W], "counts": ...}`.

    Returns:
        (H, W) bool.

    Raises:
        UserError: When the counts do not add up to the size.

    Example:
        >>> decode({"size": [2, 2], "counts": "22"}).tolist()
        [[False, True], [False, True]]
    """
    counts, (height, width) = _counts(rle), rle["size"]
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def area(rle: Mapping[str, Any]) -> int:
    """Count the pixels inside.

    Args:
        rle: As for `decode`.

    Returns:
        Number of pixels.

    Example:
        >>> area({"size": [2, 2], "counts": "22"})
        2
    """
    return int(_counts(rle)[1::2].sum())


def areas(codes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Count the pixels inside each of many masks.

    Args:
        codes: Compressed ones, as pycocotools takes them.

    Returns:
        (N,) int64.

    Example:
        >>> areas([{"size": [2, 2], "counts": "22"}] * 300).sum()
        np.int64(600)
    """
    # pycocotools 2.0.11 counts the codes themselves in 8 bits.
    parts = [coco.area(list(codes[start : start + 255])) for start in range(0, len(codes), 255)]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def bbox(rle: Mapping[str, Any]) -> list[int]:
    """Find the smallest box around the pixels inside.

    Args:
        rle: As for `decode`.

    Returns:
        [left, top, width, height] in pixels; all 0 for an empty mask.

    Example:
        >>> bbox({"size": [2, 2], "counts": "22"})
        [1, 0, 1, 2]
    """
    height = rle["size"][0]
    ends = _counts(rle).cumsum()
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts] - 1
    if not len(starts):
        return [0, 0, 0, 0]
    (left, right), (tops, bottoms) = (
        (starts[0] // height, stops[-1] // height),
        (starts % height, stops % height),
    )
    if (starts // height != stops // height).any():  # a run over a column's end touches both borders
        top, bottom = 0, height - 1
    else:
        top, bottom = tops.min(), bottoms.max()
    return [int(left), int(top), int(right - left + 1), int(bottom - top + 1)]


def _counts(rle: Mapping[str, Any]) -> np.ndarray:
    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, str | bytes):
        counts = _from_string(counts)
    counts = np.asarray(counts, dtype=np.int64)
    if counts.sum() != height * width or (counts < 0).any():
        raise UserError(
            f"run lengths of {counts.sum()} pixels for a mask of {height} x {width}",
            f"{height * width} pixels, the size as [height, width]",
        )
    return counts


# The string form: from the fourth run on, a run is stored as its difference to the run two before. Each number
# becomes groups of 5 bits, lowest first, as characters from "0" on; bit 6 says that more follow, and the highest
# bit of the last group is the sign.


def _to_string(counts: np.ndarray) -> str:
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    characters = []  # per round: the numbers that are still being written, and their next character
    writing = np.arange(len(rest))
    while len(writing):
        group = rest[writing] & 31
        rest[writing] >>= 5
        more = rest[writing] != np.where(group & 16, -1, 0)
        characters.append((writing, group + 32 * more + 48))
        writing = writing[more]
    if not characters:
        return ""
    order = np.argsort(np.concatenate([numbers for numbers, _ in characters]), kind="stable")
    return np.concatenate([codes for _, codes in characters])[order].astype(np.uint8).tobytes().decode("ascii")


def _from_string(text: str | bytes) -> np.ndarray:
    codes = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64)
    codes -= 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise UserError("broken run-length string", "characters '0' to 'o', complete numbers", "encode the mask again")
    lasts = np.flatnonzero(codes & 32 == 0)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    groups = np.repeat(firsts, lasts - firsts + 1)
    values = np.add.reduceat((codes & 31) << 5 * (np.arange(len(codes)) - groups), firsts)
    values -= np.where(codes[lasts] & 16, 1 << 5 * (lasts - firsts + 1), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values

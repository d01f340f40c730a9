"""One object, seen in several windows or views: which masks are the same one, and what becomes of them.

Where two windows overlap, both show the same pixels. Masks of one class that agree there are one object, whichever
part of it lies in which window; so it does not matter how large objects are, or where they are cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hfseg.inference.segments import Found, Piece

_AGREE = 0.5  # the IoU from which two masks are one object
_MARGIN = 4  # pixels from a window's border within which a mask may have been cut: networks see so fine at best


@dataclass(frozen=True)
class Window:
    """A part of an image.

    Args:
        top: Its first row.
        bottom: The one after the last.
        left: Its first column.
        right: The one after the last.
    """

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where it lies in the image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def shared(self, other: Window) -> Window | None:
        """Gives what two windows have in common.

        Args:
            other: The other one.

        Returns:
            A window, or None.
        """
        top, bottom = max(self.top, other.top), min(self.bottom, other.bottom)
        left, right = max(self.left, other.left), min(self.right, other.right)
        return Window(top, bottom, left, right) if top < bottom and left < right else None


def lay_windows(size: Sequence[int], tile: int, overlap: float) -> list[Window]:
    """Lays windows over an image, evenly, so that neighbours overlap by at least the share that is wanted.

    Args:
        size: (H, W).
        tile: Longest side of a window, in pixels.
        overlap: Share of it.

    Returns:
        The windows, row by row.

    Example:
        >>> [window.left for window in lay_windows((50, 100), 64, 0.25)]
        [0, 36]
    """
    sides = []
    for pixels in size:
        length, shared = min(tile, pixels), round(overlap * tile)
        count = 1 if pixels <= tile else -(-(pixels - shared) // (tile - shared))
        starts = [round(i * (pixels - length) / max(1, count - 1)) for i in range(count)]
        sides.append([(start, start + length) for start in starts])
    return [Window(*rows, *columns) for rows in sides[0] for columns in sides[1]]


def merge_windows(seen: Sequence[tuple[Window, Sequence[Piece]]], size: Sequence[int]) -> list[Piece]:
    """Makes whole objects of what windows show of them.

    Of an object that some window shows whole, the mask there holds, and of several the best one; of one that is cut
    everywhere, all parts together. Its score is that of its best part. What a border cuts, and another window shows
    with all around it, is left to that window, which knows better what it is.

    Args:
        seen: Windows of an image with the objects in each, in pixels of the image.
        size: (H, W) of the image.

    Returns:
        The objects, best first.
    """
    windows, merged = [window for window, _ in seen], []
    kept = [[piece for piece in pieces if not _is_cut(piece, window, size)
             or all(_is_cut(piece, other, size) for other in windows)] for window, pieces in seen]
    for group in _groups(kept, windows):
        best = max(piece.score for _, piece in group)
        whole = [piece for number, piece in group if not _is_cut(piece, seen[number][0], size)]
        piece = max(whole, key=lambda one: one.score) if whole else _union([piece for _, piece in group])
        merged.append(replace(piece, score=best))
    return sorted(merged, key=lambda piece: -piece.score)


def merge_views(views: Sequence[Sequence[Piece]], window: Window) -> list[Piece]:
    """Makes one list of objects of what several views of the same pixels show.

    An object has the mask that scored best, and the mean of its scores: 0 from a view that does not show it.

    Args:
        views: The objects of each view, in the same pixels.
        window: Those pixels.

    Returns:
        The objects, best first.
    """
    merged = []
    for group in _groups([list(pieces) for pieces in views], [window] * len(views)):
        pieces = [piece for _, piece in group]
        score = sum(piece.score for piece in pieces) / len(views)
        merged.append(replace(max(pieces, key=lambda piece: piece.score), score=score))
    return sorted(merged, key=lambda piece: -piece.score)


def merge_maps(seen: Iterable[tuple[Window, Found]], size: Sequence[int], fuse: Sequence[int]) -> Found:
    """Makes one panoptic map of those of windows. Each pixel is as in the window in which it lies deepest.

    Args:
        seen: Windows, row by row, and the segments of each.
        size: (H, W) of the image.
        fuse: Class ids that are one segment each: stuff.

    Returns:
        The segments of the image.
    """
    ids, depth = np.zeros(size, np.int32), np.zeros(size, np.int32)
    segments: list[dict[str, Any]] = [{"label_id": -1, "score": 0.0}]  # of all windows; the first stands for none
    origin, pairs, recent = [-1], [], []
    for number, (window, found) in enumerate(seen):
        table = np.zeros(max((one["id"] for one in found.segments), default=0) + 1, np.int32)
        for one in found.segments:
            table[one["id"]] = len(segments)
            segments.append(one)
            origin.append(number)
        here = table[found.segment_map]
        recent = [(other, there) for other, there in recent if other.bottom > window.top]  # flat memory
        for other, there in recent:
            pairs += _agreeing(there, other, here, window, segments)
        recent.append((window, here))
        deep = _depth(window, size)
        deeper = deep > depth[window.slices]
        ids[window.slices][deeper], depth[window.slices][deeper] = here[deeper], deep[deeper]
    chosen = _united(len(segments), origin, (pair for pair in pairs if segments[pair[1]]["label_id"] not in fuse))
    first: dict[int, int] = {}
    for number, one in enumerate(segments[1:], start=1):
        if one["label_id"] in fuse:
            chosen[number] = first.setdefault(one["label_id"], number)
    return _numbered(chosen[ids], chosen, segments)


def _numbered(ids: np.ndarray, chosen: np.ndarray, segments: Sequence[dict[str, Any]]) -> Found:
    """Segments with ids from 1, those that are seen, each with the best score of its parts."""
    scores = np.zeros(len(segments))
    np.maximum.at(scores, chosen, [one["score"] for one in segments])
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=1))
    present = present[present > 0]
    table = np.zeros(len(segments), np.int32)
    table[present] = np.arange(1, len(present) + 1)
    kept = [{"id": int(table[k]), "label_id": segments[k]["label_id"], "score": float(scores[k])} for k in present]
    return Found(table[ids], kept)


def _agreeing(there: np.ndarray, other: Window, here: np.ndarray, window: Window,
              segments: Sequence[dict[str, Any]]) -> Iterator[tuple[float, int, int]]:
    """IoU and numbers of segments of one class that agree where two windows overlap."""
    shared = other.shared(window)
    if shared is None:
        return
    a, b = (_cut(array, (one.top, one.left), shared).ravel().astype(np.int64)
            for array, one in ((there, other), (here, window)))
    both, counts = np.unique(a * len(segments) + b, return_counts=True)
    areas = [dict(zip(*np.unique(one, return_counts=True), strict=True)) for one in (a, b)]
    for pair, count in zip(both.tolist(), counts.tolist(), strict=True):
        i, j = divmod(pair, len(segments))
        if i and j and segments[i]["label_id"] == segments[j]["label_id"]:
            share = count / (areas[0][i] + areas[1][j] - count)
            if share >= _AGREE:
                yield float(share), i, j


def _groups(seen: Sequence[Sequence[Piece]], windows: Sequence[Window]) -> Iterator[list[tuple[int, Piece]]]:
    """Pieces that are one object, each with the number of its window."""
    flat = [(number, piece) for number, pieces in enumerate(seen) for piece in pieces]
    origin = [number for number, _ in flat]
    starts = np.cumsum([0, *map(len, seen)])
    boxes = np.array([piece.box for _, piece in flat], np.int64).reshape(-1, 4)
    labels = np.array([piece.label_id for _, piece in flat])
    pairs = []
    for a in range(len(windows)):
        for b in range(a + 1, len(windows)):
            shared = windows[a].shared(windows[b])
            if shared is None:
                continue
            inside = [_inside(boxes, slice(starts[n], starts[n + 1]), shared) for n in (a, b)]
            for i in inside[0]:
                near = inside[1][_meet(boxes[i], boxes[inside[1]]) & (labels[inside[1]] == labels[i])]
                for j in near:
                    share = _iou(flat[i][1], flat[j][1], shared)
                    if share >= _AGREE:
                        pairs.append((share, i, j))
    chosen, members = _united(len(flat), origin, pairs), defaultdict(list)
    for number, one in enumerate(chosen.tolist()):
        members[one].append(flat[number])
    yield from members.values()


def _united(count: int, origin: Sequence[int], pairs: Iterable[tuple[float, int, int]]) -> np.ndarray:
    """The number of the group that each belongs to: the surest pairs first, and no two of one window in a group."""
    group, members = np.arange(count), {i: [i] for i in range(count)}
    windows = [{one} for one in origin]
    for _, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        a, b = sorted((int(group[i]), int(group[j])))
        if a == b or windows[a] & windows[b]:
            continue
        windows[a] |= windows[b]
        members[a] += members.pop(b)
        group[members[a]] = a
    return group


def _inside(boxes: np.ndarray, part: slice, window: Window) -> np.ndarray:
    edges = np.array([window.top, window.bottom, window.left, window.right])
    return np.arange(part.start, part.stop)[_meet(edges, boxes[part])]


def _meet(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return ((boxes[:, 0] < box[1]) & (boxes[:, 1] > box[0]) & (boxes[:, 2] < box[3]) & (boxes[:, 3] > box[2]))


def _iou(a: Piece, b: Piece, window: Window) -> float:
    """IoU of two masks that reach into a window, there."""
    frames = [Window(*piece.box).shared(window) for piece in (a, b)]
    areas = [np.count_nonzero(_cut(piece.mask, (piece.top, piece.left), frame))
             for piece, frame in zip((a, b), frames, strict=True)]
    common = frames[0].shared(frames[1])
    if common is None:
        return 0.0
    left, right = (_cut(piece.mask, (piece.top, piece.left), common) for piece in (a, b))
    both = np.count_nonzero(left & right)
    return both / max(1, sum(areas) - both)


def _cut(array: np.ndarray, corner: tuple[int, int], window: Window) -> np.ndarray:
    """The part of an array, whose first element is the pixel `corner`, that lies in a window."""
    (top, left) = corner
    return array[window.top - top : window.bottom - top, window.left - left : window.right - left]


def _is_cut(piece: Piece, window: Window, size: Sequence[int]) -> bool:
    """Whether a mask reaches a border of a window within the image, or beyond."""
    top, bottom, left, right = piece.box
    return ((window.top > 0 and top < window.top + _MARGIN) or (window.left > 0 and left < window.left + _MARGIN)
            or (window.bottom < size[0] and bottom > window.bottom - _MARGIN)
            or (window.right < size[1] and right > window.right - _MARGIN))


def _union(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    boxes = np.array([piece.box for piece in pieces])
    top, left = boxes[:, 0].min(), boxes[:, 2].min()
    mask = np.zeros((boxes[:, 1].max() - top, boxes[:, 3].max() - left), bool)
    for piece in pieces:
        rows, columns = slice(piece.top - top, piece.box[1] - top), slice(piece.left - left, piece.box[3] - left)
        mask[rows, columns] |= piece.mask
    return replace(pieces[0], mask=mask, top=int(top), left=int(left))


def _depth(window: Window, size: Sequence[int]) -> np.ndarray:
    """How far the pixels of a window lie from its borders within the image, from 1."""
    sides = []
    for first, last, whole in ((window.top, window.bottom, size[0]), (window.left, window.right, size[1])):
        at = np.arange(first, last)
        before = at - first + 1 if first else np.full(len(at), whole + 1)
        after = last - at if last < whole else np.full(len(at), whole + 1)
        sides.append(np.minimum(before, after))
    return np.minimum.outer(*sides).astype(np.int32)

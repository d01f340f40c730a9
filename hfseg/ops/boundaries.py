"""The exact outlines of masks, along the edges of pixels."""

from __future__ import annotations

import numpy as np


def trace_polygons(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Trace the outline of a mask as polygons with holes that cover exactly its pixels.

    Pixel (row y, column x) is the square from (x, y) to (x + 1, y + 1). Pixels that touch only at a corner belong
    to different polygons. No ring passes a point twice, so the polygons are valid for geometry libraries.

    Args:
        mask: (H, W) bool.

    Returns:
        Polygons, each a list of rings, the outer one first, then its holes. A ring is (N, 2) int corner points
        (x, y), not repeated at the end. By the shoelace formula outer rings have positive area, holes negative.

    Example:
        >>> trace_polygons(np.array([[True, True]]))[0][0].tolist()
        [[0, 0], [2, 0], [2, 1], [0, 1]]
    """
    mask = np.asarray(mask, dtype=bool)
    y, x, vertical, below = _corners(mask)
    rings = [piece for ring in _cycles(vertical, below) for piece in _split(ring, y, x)]
    points = [np.stack([x[ring], y[ring]], axis=1) for ring in rings]
    outer = [_twice_area(ring) > 0 for ring in points]
    if all(outer):
        return [[ring] for ring in points]
    return _nest(points, outer, mask.shape)


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the corners of the outline, row by row, and the vertical edge that leaves each.

    Corners 2k and 2k + 1 are the ends of a horizontal edge. A point where two pixels touch diagonally is two
    corners: the first ends the edge on its left, the second begins the one on its right.

    Returns:
        y (N,), x (N,), the corner at the other end of the vertical edge (N,), and whether the pixel to the lower
        right is inside (N,).
    """
    padded = np.pad(mask, 1)
    above_left, above = padded[:-1, :-1], padded[:-1, 1:]
    left, here = padded[1:, :-1], padded[1:, 1:]
    diagonal = (above_left == here) & (above == left) & (above != here)
    corner = (above_left ^ above ^ left ^ here) | diagonal
    y, x = np.nonzero(corner)
    twice = diagonal[y, x]
    falling = above_left[y, x]  # the two pixels lie at the upper left and the lower right
    y, x = np.repeat(y, 1 + twice), np.repeat(x, 1 + twice)
    # In a column, edges are found in pairs as well. A corner stays with its pixel: the one that ends the left edge
    # goes up where the pixels are falling, down where they rise.
    second = np.zeros(len(y), dtype=bool)
    ends = np.cumsum(1 + twice) - 1
    second[ends[twice & falling]] = True
    second[ends[twice & ~falling] - 1] = True
    order = np.lexsort((second, y, x))
    vertical = np.empty_like(order)
    vertical[order[0::2]], vertical[order[1::2]] = order[1::2], order[0::2]
    return y, x, vertical, here[y, x]


def _cycles(vertical: np.ndarray, below: np.ndarray) -> list[list[int]]:
    """Walk along horizontal and vertical edges in turn until the ring closes, the mask always on the right hand."""
    partner = vertical.tolist()
    seen = bytearray(len(partner))
    rings = []
    for start in range(0, len(partner), 2):
        ring, corner = [], start if below[start] else start + 1
        while not seen[corner]:
            seen[corner] = seen[corner ^ 1] = True
            ring += [corner, corner ^ 1]
            corner = partner[corner ^ 1]
        if ring:
            rings.append(ring)
    return rings


def _split(ring: list[int], y: np.ndarray, x: np.ndarray) -> list[list[int]]:
    """Cut a ring that touches itself into rings that do not: an outline and the holes that touch it."""
    points = list(zip(y[ring].tolist(), x[ring].tolist(), strict=True))
    if len(set(points)) == len(points):
        return [ring]
    pieces, path, place = [], [], {}
    for corner, point in zip(ring, points, strict=True):
        if point in place:
            start = place[point]
            pieces.append(path[start:])
            for dropped in path[start:]:
                del place[y[dropped].item(), x[dropped].item()]
            del path[start:]
        place[point] = len(path)
        path.append(corner)
    return [*pieces, path]


def _nest(points: list[np.ndarray], outer: list[bool], shape: tuple[int, int]) -> list[list[np.ndarray]]:
    """Give every hole to the outline around it."""
    ring_at = np.full((shape[0], shape[1] + 1), -1)  # the ring whose vertical edge lies left of the pixel
    first = []
    for i, ring in enumerate(points):
        ahead = np.roll(ring, -1, axis=0)
        for (column, top), (_, bottom) in zip(np.minimum(ring, ahead), np.maximum(ring, ahead), strict=True):
            ring_at[top:bottom, column] = i
        first.append(tuple(ring[np.lexsort((ring[:, 0], ring[:, 1]))[0]]))
    polygons = {i: [ring] for i, ring in enumerate(points) if outer[i]}
    owner = {i: i for i in polygons}
    # Left of a hole's first corner lies the mask, up to an edge of the outline or of a hole that came before.
    for i in sorted((i for i in range(len(points)) if not outer[i]), key=lambda i: first[i][::-1]):
        column, row = first[i]
        edges = ring_at[row, :column]
        owner[i] = owner[int(edges[np.flatnonzero(edges >= 0)[-1]])]
        polygons[owner[i]].append(points[i])
    return list(polygons.values())


def _twice_area(ring: np.ndarray) -> int:
    ahead = np.roll(ring, -1, axis=0)
    return int((ring[:, 0] * ahead[:, 1] - ahead[:, 0] * ring[:, 1]).sum())

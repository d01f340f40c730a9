"""Average precision of masks as COCO has it, from one image at a time.

Of an image stays, for each detection, its score, and at each threshold and range of areas whether it found an object
and whether it counts. Numbers equal pycocotools', which takes the area of an object from its annotation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from hfseg.errors import UserError
from hfseg.ops import rle
from hfseg.ops.compiled import compiled

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
_BORDER = 0.02  # of the diagonal: how far from its outline a mask's boundary reaches


class Detections:
    """What average precision is made of.

    Args:
        num_labels: Number of classes.
        boundary: Whether to count boundaries, too: the smaller of the IoU of masks and that of their boundaries
            (Cheng et al., Boundary IoU, arXiv 2103.16562).
        max_detections: Of a class in an image, the best ones that count.

    Example:
        >>> detections, mask = Detections(1), np.eye(8, dtype=np.uint8)
        >>> code = coco.encode(np.asfortranarray(mask))
        >>> detections.add(0, [code], [0], [0.9], [code], [0])
        >>> round(detections.scores(["line"])["mask_ap"], 3)
        1.0
    """

    def __init__(self, num_labels: int, boundary: bool = False, max_detections: int = 100):
        self.num_labels, self.boundary, self.max_detections = num_labels, boundary, max_detections
        self.images: list[tuple[int, list]] = []

    def add(self, number: int, codes: Sequence[Mapping], labels: Sequence[int], scores: Sequence[float],
            true_codes: Sequence[Mapping], true_labels: Sequence[int], crowd: Sequence[bool] | None = None,
            true_areas: Sequence[float] | None = None) -> None:
        """Compares one image.

        Args:
            number: Of the image: scores that are equal are ranked by it.
            codes: COCO run-length codes of the detections.
            labels: Class id of each.
            scores: Score of each.
            true_codes: Codes of the objects.
            true_labels: Class id of each.
            crowd: Whether each is a crowd, which is not to be found, and in which detections do not count.
            true_areas: Area of each object in pixels as its annotation states it, which decides whether it is small,
                medium or large. None, and NaN for one object: that of its mask.

        Raises:
            UserError: When a class is none, or lengths differ.
        """
        labels, true_labels = np.asarray(labels, np.int64), np.asarray(true_labels, np.int64)
        scores = np.asarray(scores, np.float64)
        crowd = np.zeros(len(true_labels), bool) if crowd is None else np.asarray(crowd, bool)
        if not len(codes) == len(labels) == len(scores) or not len(true_codes) == len(true_labels) == len(crowd):
            raise UserError(f"{len(codes)} masks, {len(labels)} labels and {len(scores)} scores", "as many of each")
        areas = rle.areas(true_codes).astype(np.float64)
        if true_areas is not None:
            areas = np.where(np.isnan(true_areas), areas, true_areas)
        for values in (labels, true_labels):
            if len(values) and not 0 <= values.min() <= values.max() < self.num_labels:
                raise UserError(f"label ids {np.unique(values)[:10].tolist()}", f"0 to {self.num_labels - 1}")
        found = []
        for label in np.union1d(labels, true_labels).tolist():
            mine, true = np.flatnonzero(labels == label), np.flatnonzero(true_labels == label)
            mine = mine[np.argsort(-scores[mine], kind="mergesort")[: self.max_detections]]
            ours, theirs = [codes[i] for i in mine], [true_codes[i] for i in true]
            hidden = crowd[true]
            ious = np.zeros((len(mine), len(true)))
            if len(mine) and len(true):
                ious = np.asarray(coco.iou(ours, theirs, hidden.astype(np.uint8).tolist()))
            sizes = rle.areas(ours).astype(np.float64)
            kinds = [_match(ious, sizes, areas[true], hidden)]
            if self.boundary:
                if len(mine) and len(true):
                    edges = [[boundary_of(code) for code in some] for some in (ours, theirs)]
                    ious = np.minimum(ious, coco.iou(*edges, hidden.astype(np.uint8).tolist()))
                kinds.append(_match(ious, sizes, areas[true], hidden))
            found.append((label, scores[mine], kinds))
        self.images.append((number, found))

    def merge(self, images: Sequence[tuple[int, list]]) -> None:
        """Adds what another process compared.

        Args:
            images: Its `images`.
        """
        self.images += list(images)

    def scores(self, names: Sequence[str]) -> dict[str, Any]:
        """Scores what was compared.

        Args:
            names: Class names.

        Returns:
            `mask_ap`, `mask_ap50`, `mask_ap75`, `mask_ap_small`, `_medium`, `_large`; `mask_ar_1`, `_10`, `_100` (the
            last one is `max_detections`, and there are none above it), `_small`, `_medium`, `_large`;
            `per_category_ap` by name; with boundaries also `boundary_ap`, `boundary_ap50`, `boundary_ap75`. NaN where
            there is no object.
        """
        ordered = [found for _, found in sorted(self.images, key=lambda image: image[0])]
        precision, recall = self._accumulate(ordered, 0)
        result = {
            "mask_ap": _mean(precision[:, :, :, 0]), "mask_ap50": _mean(precision[0, :, :, 0]),
            "mask_ap75": _mean(precision[5, :, :, 0]),
            **{f"mask_ap_{area}": _mean(precision[:, :, :, a]) for a, area in enumerate(AREAS) if a},
            **{f"mask_ar_{most}": _mean(recall[:, :, 0, m]) for m, most in enumerate(self._limits)},
            **{f"mask_ar_{area}": _mean(recall[:, :, a, -1]) for a, area in enumerate(AREAS) if a},
            "per_category_ap": {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)},
        }  # fmt: skip
        if self.boundary:
            precision, _ = self._accumulate(ordered, 1)
            result |= {"boundary_ap": _mean(precision[:, :, :, 0]), "boundary_ap50": _mean(precision[0, :, :, 0]),
                       "boundary_ap75": _mean(precision[5, :, :, 0])}
        return result

    @property
    def _limits(self) -> tuple[int, ...]:
        return (*(most for most in (1, 10) if most < self.max_detections), self.max_detections)

    def _accumulate(self, ordered: list, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Precision (thresholds, recalls, classes, areas) and recall (thresholds, classes, areas, limits); -1: none."""
        limits = self._limits
        precision = -np.ones((len(THRESHOLDS), len(RECALLS), self.num_labels, len(AREAS)))
        recall = -np.ones((len(THRESHOLDS), self.num_labels, len(AREAS), len(limits)))
        by_class: list[list] = [[] for _ in range(self.num_labels)]
        for found in ordered:
            for label, scores, kinds in found:
                by_class[label].append((scores, *kinds[kind]))
        for k, parts in enumerate(by_class):
            for a in range(len(AREAS) if parts else 0):
                objects = sum(int(counted[a]) for *_, counted in parts)
                if not objects:
                    continue
                for m, most in enumerate(limits):
                    scores = np.concatenate([part[0][:most] for part in parts])
                    order = np.argsort(-scores, kind="mergesort")
                    hits, left = (np.concatenate([part[i][a, :, :most] for part in parts], 1)[:, order] for i in (1, 2))
                    right, wrong = (np.cumsum(one & ~left, axis=1).astype(np.float64) for one in (hits, ~hits))
                    for t in range(len(THRESHOLDS)):
                        tp, fp = right[t], wrong[t]
                        recall[t, k, a, m] = tp[-1] / objects if len(tp) else 0.0
                        if m == len(limits) - 1:
                            exact = tp / np.maximum(tp + fp, np.spacing(1))
                            best = np.maximum.accumulate(exact[::-1])[::-1]
                            places = np.searchsorted(tp / objects, RECALLS, side="left")
                            reached = places < len(best)
                            row = np.zeros(len(RECALLS))
                            row[reached] = best[places[reached]]
                            precision[t, :, k, a] = row
        return precision, recall


def boundary_of(code: Mapping) -> dict[str, Any]:
    """Returns the part of a mask that lies near its outline, the image's border included.

    Args:
        code: COCO run-length code.

    Returns:
        The same of the pixels no further from the outside than 2 % of the image's diagonal, along rows and columns.
    """
    from scipy.ndimage import minimum_filter1d

    height, width = code["size"]
    reach = max(1, round(_BORDER * np.hypot(height, width)))
    mask = coco.decode(code)
    left, top, wide, high = (int(side) for side in coco.toBbox(code))
    window = np.pad(mask[top : top + high, left : left + wide], 1)
    core = window
    for axis in (0, 1):
        core = minimum_filter1d(core, 2 * reach + 1, axis=axis, mode="constant", cval=0)
    edge = np.zeros_like(mask)
    edge[top : top + high, left : left + wide] = (window - core)[1:-1, 1:-1]
    return coco.encode(np.asfortranarray(edge))


def _match(ious: np.ndarray, sizes: np.ndarray, true_sizes: np.ndarray,
           crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each detection found an object, (areas, thresholds, detections), whether it is left out, and how many
    objects count, (areas,)."""
    shape = (len(AREAS), len(THRESHOLDS), len(sizes))
    hits, left, counted = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(len(AREAS), np.int64)
    for a, (low, high) in enumerate(AREAS.values()):
        ignored = crowd | (true_sizes < low) | (true_sizes > high)
        order = np.argsort(ignored, kind="mergesort")
        counted[a] = (~ignored).sum()
        _find(np.ascontiguousarray(ious[:, order]), ignored[order], crowd[order], THRESHOLDS, hits[a], left[a])
        left[a] |= ~hits[a] & ((sizes < low) | (sizes > high))
    return hits, left, counted


@compiled
def _find(ious, ignored, crowd, thresholds, hits, left):
    detections, objects = ious.shape
    for t in range(len(thresholds)):
        taken = np.zeros(objects, np.bool_)
        for d in range(detections):
            best, place = min(thresholds[t], 1 - 1e-10), -1
            for g in range(objects):
                if taken[g] and not crowd[g]:
                    continue
                if place > -1 and not ignored[place] and ignored[g]:
                    break  # objects that count come first, and one of them was found
                if ious[d, g] < best:
                    continue
                best, place = ious[d, g], g
            if place > -1:
                hits[t, d], left[t, d], taken[place] = True, ignored[place], True


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if len(values) else float("nan")

"""Panoptic quality from counts alone.

A predicted and a true segment of one class match if their IoU is above one half; at most one pair of each can be.

    PQ = sum of the IoUs of matches / (matches + half the unmatched predictions + half the unmatched truths) = SQ x RQ

Pixels without truth count for nothing. A region of many objects that nobody told apart (crowd) is not to be found, and
a prediction that lies for more than half in it, or in pixels without truth, is no mistake. Source: Kirillov et al.,
Panoptic Segmentation (arXiv 1801.00868), and COCO's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hfseg.errors import UserError
from hfseg.ops import pair_counts

_UNIT = 1 << 40  # IoUs are added up as whole numbers of this part: in any order, on any number of processes, alike


class PanopticCounts:
    """What panoptic quality is made of: per class the sum of IoUs, true positives, false ones, and misses.

    Args:
        num_labels: Number of classes.

    Example:
        >>> counts = PanopticCounts(1)
        >>> one = np.array([[1, 1, 0]])
        >>> counts.add(one, [{"id": 1, "label_id": 0}], one, [{"id": 1, "label_id": 0}])
        >>> counts.scores(["cat"])["panoptic_quality"]
        1.0
    """

    def __init__(self, num_labels: int):
        self.counts = np.zeros((num_labels, 4), np.int64)

    def add(self, prediction: np.ndarray, segments: Sequence[Mapping[str, Any]], reference: np.ndarray,
            truth: Sequence[Mapping[str, Any]]) -> None:
        """Counts one image.

        Args:
            prediction: (H, W) ids of predicted segments; an id that `segments` does not list is none.
            segments: Of each `id` and `label_id`.
            reference: (H, W) ids of true segments; an id that `truth` does not list has no truth.
            truth: Of each `id`, `label_id` and perhaps `iscrowd`.

        Raises:
            UserError: When the maps differ in size, or a class is none.
        """
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.shape != reference.shape or prediction.ndim != 2:
            raise UserError(f"maps of {prediction.shape} and {reference.shape}", "(height, width), both alike")
        for entry in (*segments, *truth):
            if not 0 <= entry["label_id"] < len(self.counts):
                raise UserError(f"label_id {entry['label_id']}", f"0 to {len(self.counts) - 1}")
        guessed, true = _Table(segments), _Table(truth)
        rows, columns, found = pair_counts(reference, prediction)
        table = np.zeros((len(truth) + 1, len(segments) + 1), np.int64)  # the last row and column: none
        np.add.at(table, np.ix_(true.places(rows), guessed.places(columns)), found)
        inside = table[:-1, :-1]
        areas, predicted = table[:-1].sum(1), table[:, :-1].sum(0)
        nowhere = table[-1, :-1]
        union = areas[:, None] + (predicted - nowhere) - inside
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(union > 0, inside / union, 0.0)
        same = true.labels[:, None] == guessed.labels
        match = (iou > 0.5) & same & ~true.crowd[:, None]
        for row, column in np.argwhere(match):
            self.counts[true.labels[row], 0] += round(iou[row, column] * _UNIT)
            self.counts[true.labels[row], 1] += 1
        missed = ~match.any(1) & ~true.crowd & (areas > 0)
        excused = nowhere + (inside * (same & true.crowd[:, None])).sum(0)
        wrong = ~match.any(0) & (predicted > 0) & (2 * excused <= predicted)
        np.add.at(self.counts[:, 2], guessed.labels[wrong], 1)
        np.add.at(self.counts[:, 3], true.labels[missed], 1)

    def scores(self, names: Sequence[str], is_thing: Sequence[bool] | None = None) -> dict[str, Any]:
        """Scores what was counted.

        Args:
            names: Class names.
            is_thing: Of each class; all are if None.

        Returns:
            `panoptic_quality`, `segmentation_quality` and `recognition_quality`, means over the classes that occur, of
            all of them, and with `_things` and `_stuff` behind of those; `per_category_pq`, `_sq` and `_rq` by name,
            NaN for a class that does not occur; `num_classes_averaged`.
        """
        total, tp, fp, fn = (self.counts[:, i].astype(np.float64) for i in range(4))
        total /= _UNIT
        weight = tp + fp / 2 + fn / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            pq, rq = (np.where(weight > 0, part / weight, np.nan) for part in (total, tp))
            sq = np.where(weight > 0, np.where(tp > 0, total / np.maximum(tp, 1), 0.0), np.nan)
        thing = np.ones(len(names), bool) if is_thing is None else np.asarray(is_thing, bool)
        result: dict[str, Any] = {}
        for ending, chosen in (("", np.ones(len(names), bool)), ("_things", thing), ("_stuff", ~thing)):
            for name, values in (("panoptic", pq), ("segmentation", sq), ("recognition", rq)):
                seen = values[chosen & (weight > 0)]
                result[f"{name}_quality{ending}"] = float(seen.mean()) if len(seen) else float("nan")
        for name, values in (("pq", pq), ("sq", sq), ("rq", rq)):
            result[f"per_category_{name}"] = dict(zip(names, values.tolist(), strict=True))
        result["num_classes_averaged"] = int((weight > 0).sum())
        return result


class _Table:
    """Segments by id."""

    def __init__(self, segments: Sequence[Mapping[str, Any]]):
        self.ids = np.array([entry["id"] for entry in segments], np.int64)
        self.labels = np.array([entry["label_id"] for entry in segments], np.int64)
        self.crowd = np.array([bool(entry.get("iscrowd")) for entry in segments], bool)
        self.order = np.argsort(self.ids, kind="stable")

    def places(self, values: np.ndarray) -> np.ndarray:
        """Which segment each id is; the number of segments for one that is none."""
        if not len(self.ids):
            return np.zeros(len(values), np.int64)
        found = np.minimum(np.searchsorted(self.ids, values, sorter=self.order), len(self.ids) - 1)
        place = self.order[found]
        return np.where(self.ids[place] == values, place, len(self.ids))

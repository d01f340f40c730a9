"""What the evaluator keeps of each image, and makes scores of, by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfseg.data.images import Sample
from hfseg.metrics.average_precision import Detections
from hfseg.metrics.panoptic import PanopticCounts
from hfseg.metrics.scores import scores_from_areas
from hfseg.ops import confusion_counts, rle

MAIN_SCORE = {"semantic": "mean_iou", "instance": "mask_ap", "panoptic": "panoptic_quality"}
SHOWN = {
    "semantic": ("mean_iou", "mean_accuracy", "overall_accuracy"),
    "instance": ("mask_ap", "mask_ap50", "mask_ap75"),
    "panoptic": ("panoptic_quality", "segmentation_quality", "recognition_quality"),
}
"""Scores for logs and charts; the first is what best weights are chosen by."""
WORDS = {
    "mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "overall accuracy",
    "mask_ap": "mask AP", "mask_ap50": "mask AP50", "mask_ap75": "mask AP75", "boundary_ap": "boundary AP",
    "panoptic_quality": "PQ", "segmentation_quality": "SQ", "recognition_quality": "RQ",
}  # fmt: skip


class InstanceScorer:
    """Average precision of masks, and of their boundaries.

    Args:
        num_labels: Classes of the model.
        is_thing: Unused; every class is one.
        max_detections: Of a class in an image, the best ones that count.
    """

    def __init__(self, num_labels: int, is_thing: Sequence[bool] = (), max_detections: int = 100):
        self.detections = Detections(num_labels, boundary=True, max_detections=max_detections)

    def add(self, number: int, found: Any, sample: Sample, to_model: np.ndarray | None) -> None:
        """Compares one image.

        Args:
            number: Of the image in its split.
            found: What a `Segmenter` found.
            sample: The image with its objects.
            to_model: Class id of the data -> class id of the model.
        """
        truth = sample.segments.relabelled(to_model)
        known = np.flatnonzero(truth.labels >= 0)
        codes = truth.codes()
        predicted = [{**segment["rle"], "counts": segment["rle"]["counts"].encode("ascii")} if "rle" in segment else
                     rle.encode(found.segment_map == segment["id"]) for segment in found.segments]
        self.detections.add(
            number, predicted, [segment["label_id"] for segment in found.segments],
            [segment["score"] for segment in found.segments], [codes[i] for i in known], truth.labels[known],
            truth.crowd[known], None if truth.areas is None else truth.areas[known],
        )  # fmt: skip

    def gather(self, accelerator: Any) -> None:
        """Adds what the other processes compared.

        Args:
            accelerator: Of the run.
        """
        from accelerate.utils import gather_object

        self.detections.images = list(gather_object(self.detections.images))

    def scores(self, names: Sequence[str]) -> dict[str, Any]:
        """Scores the split.

        Args:
            names: Class names of the model.

        Returns:
            Scores by name.
        """
        return self.detections.scores(names)


class PanopticScorer:
    """Panoptic quality, and mean IoU of the classes.

    Args:
        num_labels: Classes of the model.
        is_thing: Of each of them.
        max_detections: Unused.
    """

    def __init__(self, num_labels: int, is_thing: Sequence[bool], max_detections: int = 100):
        self.counts, self.is_thing = PanopticCounts(num_labels), is_thing
        self.matrix = np.zeros((num_labels, num_labels + 1), np.int64)  # the last column: no segment

    def add(self, number: int, found: Any, sample: Sample, to_model: np.ndarray | None) -> None:
        """Compares one image; arguments as for instances."""
        truth = sample.segments.relabelled(to_model)
        ids = truth.flat()
        listed = [{"id": i + 1, "label_id": int(label), "iscrowd": bool(crowd)}
                  for i, (label, crowd) in enumerate(zip(truth.labels, truth.crowd, strict=True)) if label >= 0]
        ids, listed = self._joined(ids, listed)
        self.counts.add(found.segment_map, found.segments, ids, listed)
        n = len(self.matrix)
        reference = truth.semantic_map(n + 1, np.int64)
        table = np.full(max((s["id"] for s in found.segments), default=0) + 1, n, np.int64)
        for segment in found.segments:
            table[segment["id"]] = segment["label_id"]
        self.matrix += confusion_counts(reference, table[found.segment_map], n + 1, n + 1)[:-1]

    def _joined(self, ids: np.ndarray, listed: list[dict]) -> tuple[np.ndarray, list[dict]]:
        """Stuff is one segment, however many regions the data has of it."""
        first: dict[int, int] = {}
        table, kept = np.arange(int(ids.max()) + 1), []
        for segment in listed:
            label = segment["label_id"]
            if not self.is_thing[label] and not segment["iscrowd"] and label in first:
                if segment["id"] < len(table):
                    table[segment["id"]] = first[label]
                continue
            if not segment["iscrowd"]:
                first.setdefault(label, segment["id"])
            kept.append(segment)
        return table[ids], kept

    def gather(self, accelerator: Any) -> None:
        """Adds what the other processes counted.

        Args:
            accelerator: Of the run.
        """
        import torch

        for name, owner in (("counts", self.counts), ("matrix", self)):
            mine = torch.from_numpy(getattr(owner, name)).to(accelerator.device)
            setattr(owner, name, accelerator.reduce(mine, "sum").cpu().numpy())

    def scores(self, names: Sequence[str]) -> dict[str, Any]:
        """Scores the split.

        Args:
            names: Class names of the model.

        Returns:
            Scores by name.
        """
        matrix = self.matrix
        found = scores_from_areas(np.diagonal(matrix), matrix.sum(0)[:-1], matrix.sum(1))
        kept = {key: found[key] for key in ("mean_iou", "mean_accuracy", "overall_accuracy")}
        kept["per_category_iou"] = dict(zip(names, found["per_category_iou"].tolist(), strict=True))
        return {**self.counts.scores(names, self.is_thing), **kept}


SCORERS = {"instance": InstanceScorer, "panoptic": PanopticScorer}

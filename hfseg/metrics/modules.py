"""Panoptic quality and average precision of masks as `evaluate` modules that keep counts and matches, never maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import evaluate
import numpy as np
from pycocotools import mask as coco

from hfseg.errors import UserError
from hfseg.metrics.average_precision import Detections
from hfseg.metrics.panoptic import PanopticCounts


class _Streaming(evaluate.Metric):
    """What both share: pairs are counted as they come."""

    num_labels: int

    def __init__(self, num_labels: int, **kwargs):
        if kwargs.get("num_process", 1) != 1:
            raise UserError(f"num_process={kwargs['num_process']}", "1", "`merge` what other processes counted")
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.reset()

    def reset(self) -> None:
        """Forget all that was added."""
        raise NotImplementedError

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Count one image."""
        if prediction is None or reference is None:
            raise UserError("an image is missing", "a prediction and a reference")
        self._count(prediction, reference)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Count a batch of images."""
        if predictions is None or references is None or len(predictions) != len(references):
            raise UserError("predictions and references that do not go together", "as many of each")
        for prediction, reference in zip(predictions, references, strict=True):
            self._count(prediction, reference)

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Score all that was added, the given images included, and start anew."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self._compute(None, None)
        self.reset()
        return scores

    def _info(self):
        anything = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__class__.__doc__), citation="", inputs_description=str(self.__class__.__doc__),
            features=datasets.Features({"predictions": anything, "references": anything}),
        )  # fmt: skip

    def _count(self, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        raise NotImplementedError


class PanopticQuality(_Streaming):
    """PQ, SQ and RQ over a stream of panoptic maps in constant memory.

    Predictions and references are dicts: `segment_map` (height, width) of ids, and `segments_info`, a list with `id`,
    `label_id` and, in references, perhaps `iscrowd`.

    Args:
        num_labels: Number of classes.
        things: Class ids whose objects are told apart; all if None.
        **kwargs: What every `evaluate` module takes.

    Example:
        >>> metric = PanopticQuality(num_labels=2)
        >>> one = {"segment_map": np.array([[1, 1, 2]]),
        ...        "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}]}
        >>> metric.add(prediction=one, reference=one)
        >>> metric.compute()["panoptic_quality"]
        1.0
    """

    def __init__(self, num_labels: int, things: Iterable[int] | None = None, **kwargs):
        self.things = set(range(num_labels) if things is None else things)
        super().__init__(num_labels, **kwargs)

    def reset(self) -> None:
        """Forget all that was added."""
        self.counter = PanopticCounts(self.num_labels)

    def merge(self, counts: np.ndarray) -> None:
        """Add what another process counted: its `counter.counts`."""
        self.counter.counts += counts

    def _count(self, prediction, reference) -> None:
        self.counter.add(np.asarray(prediction["segment_map"]), prediction["segments_info"],
                         np.asarray(reference["segment_map"]), reference["segments_info"])

    def _compute(self, predictions, references):
        names = range(self.num_labels)
        return self.counter.scores(names, [i in self.things for i in names])


class MaskAP(_Streaming):
    """COCO's average precision and recall of masks over a stream of images.

    Predictions and references are dicts: `masks` (each (height, width), or a COCO run-length code), `labels` (class
    ids), and `scores` in predictions, or perhaps `iscrowd` and `area` in references.

    Args:
        num_labels: Number of classes.
        boundary: Whether to score boundaries, too.
        max_detections: Of a class in an image, the best ones that count.
        **kwargs: What every `evaluate` module takes.

    Example:
        >>> metric, mask = MaskAP(num_labels=1), np.eye(4, dtype=bool)
        >>> metric.add(prediction={"masks": [mask], "labels": [0], "scores": [0.5]},
        ...            reference={"masks": [mask], "labels": [0]})
        >>> round(metric.compute()["mask_ap"], 3)
        1.0
    """

    def __init__(self, num_labels: int, boundary: bool = False, max_detections: int = 100, **kwargs):
        self.boundary, self.max_detections = boundary, max_detections
        super().__init__(num_labels, **kwargs)

    def reset(self) -> None:
        """Forget all that was added."""
        self.detections, self.images = Detections(self.num_labels, self.boundary, self.max_detections), 0

    def merge(self, images: list) -> None:
        """Add what another process compared: its `detections.images`, numbered after all of this one's."""
        self.detections.merge([(self.images + number, found) for number, found in images])
        self.images += len(images)

    def _count(self, prediction, reference) -> None:
        self.detections.add(
            self.images, _codes(prediction["masks"]), prediction["labels"], prediction["scores"],
            _codes(reference["masks"]), reference["labels"], reference.get("iscrowd"), reference.get("area"),
        )  # fmt: skip
        self.images += 1

    def _compute(self, predictions, references):
        return self.detections.scores(range(self.num_labels))


def _codes(masks) -> list[dict]:
    return [mask if isinstance(mask, Mapping) else coco.encode(np.asfortranarray(np.asarray(mask, np.uint8)))
            for mask in masks]

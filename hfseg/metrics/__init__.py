"""Streaming metrics: `load` gives `evaluate` modules, `scores` the plain functions under them.

Importing this costs nothing; `evaluate` itself (seconds) is imported by `load` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hfseg.errors import one_of
from hfseg.metrics.scores import scores_from_matrix, to_json_ready

if TYPE_CHECKING:
    import evaluate

__all__ = ["METRICS", "load", "scores_from_matrix", "to_json_ready"]

METRICS = {
    "mean_iou": ("hfseg.metrics.mean_iou", "MeanIoU"),
    "mask_ap": ("hfseg.metrics.modules", "MaskAP"),
    "panoptic_quality": ("hfseg.metrics.modules", "PanopticQuality"),
}
"""Where each metric lives. A new one is a file and a line here."""


def load(name: str, **options) -> evaluate.Metric:
    """Load a metric as an `evaluate` module.

    Args:
        name: `mean_iou`, `mask_ap` or `panoptic_quality`.
        **options: What the metric takes: see `hfseg.metrics.mean_iou.MeanIoU`, and `MaskAP` and `PanopticQuality` in
            `hfseg.metrics.modules`.

    Returns:
        The metric, with `add`, `add_batch` and `compute`.

    Raises:
        UserError: When there is no metric of that name.

    Example:
        >>> metric = load("mean_iou", num_labels=2)
        >>> metric.add_batch(predictions=[[[0, 1]], [[1]]], references=[[[0, 1]], [[0]]])
        >>> round(metric.compute()["mean_iou"], 3)
        0.5
    """
    module, attribute = METRICS[one_of(name, METRICS, "metric")]
    return getattr(importlib.import_module(module), attribute)(**options)

"""Exact numeric kernels on arrays and tensors. They know no models."""

from hfseg.ops.boundaries import trace_polygons
from hfseg.ops.confusion import confusion_counts, pair_counts
from hfseg.ops.upsample import upsample_argmax, upsample_confusion, upsample_logits, upsample_threshold
from hfseg.ops.upsample_cross_entropy import upsample_cross_entropy

__all__ = [
    "confusion_counts",
    "pair_counts",
    "trace_polygons",
    "upsample_argmax",
    "upsample_confusion",
    "upsample_cross_entropy",
    "upsample_logits",
    "upsample_threshold",
]

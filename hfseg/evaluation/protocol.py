"""How a score came about, in words and numbers: what a card says beside it."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import torch
import transformers

import hfseg
from hfseg.evaluation.split import Split
from hfseg.segmenter import Segmenter

_PIXELS_AT = "the original size of each image; logits upsampled bilinearly before the argmax"
_PIXELS = ("one confusion matrix over all pixels of the split; classes that occur in neither reference nor prediction "
           "are left out of the mean")
_MASKS_AT = "the original size of each image; mask logits upsampled bilinearly before the threshold"
_SEGMENTS = {
    "instance": {
        "scored_at": _MASKS_AT,
        "averaging": "COCO: the mean over IoU thresholds 0.50 to 0.95 and classes of the area under the precision "
                     "envelope; an object's area is that which its annotation states, as for pycocotools, or else "
                     "that of its mask; the boundary score takes the smaller of the IoU of masks and that of their "
                     "boundaries",
    },
    "panoptic": {
        "scored_at": _MASKS_AT,
        "averaging": "panoptic quality per class over the whole split, and the mean over the classes that occur; "
                     "pixels without truth count for nothing",
    },
}  # fmt: skip


def protocol(split: Split, segmenter: Segmenter, skipped: int, max_detections: int) -> dict[str, Any]:
    """Writes down how a split was scored.

    Args:
        split: The split.
        segmenter: What predicted.
        skipped: Images that could not be used.
        max_detections: Of a class in an image, the best ones that counted for average precision.

    Returns:
        Plain values.
    """
    processor, rules, task = segmenter.processor, segmenter.rules, segmenter.task
    written = {
        "split": split.name,
        "images_in_split": split.whole,  # of which the first ones alone were scored
        "data": split.data.source,
        "data_revision": split.data.revision,
        "resize": dict(processor.size) if getattr(processor, "do_resize", False) else None,
        "scored_at": _PIXELS_AT,
        "ignore_index": split.schema.ignore_index,
        "averaging": _PIXELS,
        # An image that is larger than a tile is not resized, but its windows where the network takes one size only.
        "tile": {"size": segmenter.tile, "overlap": segmenter.tile_overlap,
                 "windows_resized": segmenter.resizes_windows} if segmenter.tile else None,
        "test_time_augmentation": list(segmenter.tta) or None,
        "skipped_images": skipped,
        "date": datetime.date.today().isoformat(),
        "versions": {"hfseg": hfseg.__version__, "torch": torch.__version__,
                     "transformers": transformers.__version__, "python": platform.python_version()},
    }  # fmt: skip
    if task == "semantic":
        return written
    written |= _SEGMENTS[task] | {"task": task}
    if task == "instance":
        return {**written, "max_detections": max_detections}
    return {**written, "threshold": rules.threshold,
            "overlap_mask_area_threshold": rules.overlap_mask_area_threshold}

"""How sure a map is: computed when it is read, from what little has to be kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from hfseg.ops.upsample import upsample_argmax

_KEPT_PER_PIXEL = 16  # logits that a result may keep to compute its confidence from, per pixel of the image


def _share(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest score of each pixel as a share of all."""
    whole = F.interpolate(scores[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return whole.amax(0) / whole.sum(0).clamp(min=1e-12)


def confidence_of(
    logits: Tensor, size: tuple[int, int], scores: bool = False
) -> np.ndarray | Callable[[], np.ndarray]:
    """Gives the confidence of one image, or what computes it when it is asked for: an exponential per class and pixel.

    Args:
        logits: (C, h, w).
        size: (H, W) of the image.
        scores: Whether these are no logits but what is linear in probabilities.

    Returns:
        (H, W), or a function that gives it.
    """
    if scores:
        logits = logits.cpu().clone()
        return lambda: _share(logits, size).numpy()
    if logits.numel() > _KEPT_PER_PIXEL * size[0] * size[1]:  # too much to keep
        return upsample_argmax(logits, size, return_confidence=True)[1].cpu().numpy()
    alone = logits.untyped_storage().nbytes() == logits.numel() * logits.element_size()
    kept = logits.to("cpu", copy=not alone)  # not the batch it is part of, nor memory of a GPU
    return lambda: upsample_argmax(kept, size, return_confidence=True)[1].numpy()

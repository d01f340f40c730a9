"""Several views of an image, one answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from hfseg.inference_settings import views


def averaged_logits(
    network: Callable[[Tensor], Tensor], pixel_values: Tensor, tta: Iterable[str | float], step: int = 1
) -> Tensor:
    """Average what a network says about flipped and scaled views of images.

    The mean is that of the probabilities, each view's softmax, at the resolution of the logits of the unscaled image.

    Args:
        network: Gives logits (B, C, h, w) of pixel values.
        pixel_values: (B, channels, H, W), as the network takes them.
        tta: Flips and scales as `read_tta` gives them; all their combinations, and the images as they are, count
            alike.
        step: Scaled sides are rounded to a multiple of it, in pixels: a network of patches loses what is over.

    Returns:
        (B, C, h, w) float32: the logarithms of the mean probabilities, whose softmax these are.
    """
    total, resized, count = None, {}, 0
    for scale, axes in views(tta):
        if scale not in resized:  # the views of one scale follow each other
            resized = {scale: scaled(pixel_values, scale, step)}
        logits = network(resized[scale].flip(axes)).flip(axes).float()
        if total is not None and logits.shape != total.shape:
            logits = F.interpolate(logits, size=total.shape[-2:], mode="bilinear", align_corners=False)
        log_probabilities = logits.log_softmax(dim=1)
        total = log_probabilities if total is None else torch.logaddexp(total, log_probabilities)
        count += 1
    return total - math.log(count)


def scaled(pixel_values: Tensor, scale: float, step: int) -> Tensor:
    """Makes images larger or smaller.

    Args:
        pixel_values: (B, channels, H, W).
        scale: 1 leaves them as they are.
        step: The sides are rounded to a multiple of it, in pixels.

    Returns:
        (B, channels, h, w).
    """
    if scale == 1:
        return pixel_values
    size = [max(1, round(side * scale / step)) * step for side in pixel_values.shape[-2:]]
    wide = F.interpolate(pixel_values.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return wide.to(pixel_values.dtype)

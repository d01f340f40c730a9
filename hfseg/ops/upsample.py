"""From logits at the network's resolution to labels at the image's, without the full-size logits in between."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STRIP_ELEMENTS = {"cpu": 300_000}  # upsampled logits that exist at a time: on CPU what its cache holds
_STRIP_ELEMENTS_ELSEWHERE = 16_000_000  # on GPU enough to fill it


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample logits bilinearly, pixel centres aligned as in every `interpolate(align_corners=False)`.

    Args:
        logits: (C, h, w) or (B, C, h, w), any float type.
        size: (height, width) wanted.

    Returns:
        (C, H, W) or (B, C, H, W) float32.
    """
    batched = _batched(logits, size).float()
    full = F.interpolate(batched, size=tuple(size), mode="bilinear", align_corners=False)
    return full if logits.ndim == 4 else full[0]


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], *, return_confidence: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Give every pixel the class with the largest bilinearly upsampled logit.

    Equal to `interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)`, up to ties within
    rounding, but the upsampled logits exist a few rows at a time: memory beyond the result does not depend on
    `size`. A tie goes to the smallest class id. As in torch, NaN counts as the largest value: a pixel that a NaN
    logit reaches gets the first class that is NaN there, and NaN as its confidence.

    Args:
        logits: (C, h, w) or (B, C, h, w). float16 and bfloat16 are computed in float32.
        size: (height, width) wanted.
        return_confidence: Also return how sure the winner is.

    Returns:
        (H, W) or (B, H, W) class ids: uint8 up to 256 classes, int16 up to 32,768, else int32. With
        `return_confidence` a tuple of these and the softmax probability of the winner, same shape, float32.

    Raises:
        ValueError: When logits or size have the wrong shape.

    Example:
        >>> upsample_argmax(torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]]), (2, 4)).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    batched = _batched(logits, size)
    if batched.dtype != torch.float64:
        batched = batched.float()
    (batch, classes, rows, _), (height, width) = batched.shape, size
    labels = torch.empty((batch, height, width), dtype=_label_type(classes), device=logits.device)
    confidence = torch.empty((batch, height, width), device=logits.device) if return_confidence else None

    # The source position of an output row, as interpolate defines it. Row numbers stay on the CPU: reading them
    # from a GPU would wait for it in every strip.
    source = ((torch.arange(height, dtype=batched.dtype) + 0.5) * (rows / height) - 0.5).clamp_(min=0)
    upper = source.long().clamp_(max=rows - 1)
    lower = (upper + 1).clamp_(max=rows - 1)
    weight = (source - upper)[:, None].to(logits.device)
    finite = bool(batched.isfinite().all())
    budget = _STRIP_ELEMENTS.get(logits.device.type, _STRIP_ELEMENTS_ELSEWHERE)
    step = max(1, budget // (batch * classes * width))
    for top in range(0, height, step):
        strip = slice(top, min(top + step, height))
        first, last = int(upper[strip.start]), int(lower[strip.stop - 1])
        wide = _stretch_rows(batched[:, :, first : last + 1], width)
        a, b = (wide[:, :, (at[strip] - first).to(logits.device)] for at in (upper, lower))
        share = weight[strip]
        values = a * (1 - share) + b * share
        if not finite:  # 0 * infinity is NaN, and a weight of 0 means that the row is not there
            values = torch.where(share == 0, a, values)
        best, winner = values.max(dim=1)
        labels[:, strip] = winner
        if confidence is not None:
            confidence[:, strip] = 1 / (values - best[:, None]).exp_().sum(dim=1)
    if logits.ndim == 3:
        labels, confidence = labels[0], None if confidence is None else confidence[0]
    return labels if confidence is None else (labels, confidence)


def _stretch_rows(logits: Tensor, width: int) -> Tensor:
    """Upsample along the width alone."""
    if logits.shape[3] == width:
        return logits
    batch, classes, rows, columns = logits.shape
    flat = F.interpolate(logits.reshape(batch, classes * rows, columns), size=width, mode="linear", align_corners=False)
    return flat.view(batch, classes, rows, width)


def _batched(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.ndim not in (3, 4) or 0 in logits.shape[-3:] or not logits.is_floating_point():
        raise ValueError(f"logits are {tuple(logits.shape)} {logits.dtype}, not (C, h, w) or (B, C, h, w) floats")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}, not (height, width) of at least 1")
    return logits if logits.ndim == 4 else logits[None]


def _label_type(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 32768 else torch.int32

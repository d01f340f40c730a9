"""Cross-entropy of upsampled logits, and its gradient, without the full-size logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hfseg.ops.strips import strips_of


def upsample_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the mean cross-entropy of bilinearly upsampled logits, strip by strip.

    Value and gradient equal those of `F.cross_entropy(F.interpolate(logits, labels.shape[-2:], mode="bilinear"),
    labels, ...)`, but no tensor of C x H x W exists, neither for the value nor for the gradient: the gradient of each
    strip is brought down to the logits' own size at once. Without a labelled pixel value and gradient are 0, where
    torch gives NaN. An infinite or NaN logit may make the value NaN at ignored pixels, too.

    Args:
        logits: (B, C, h, w), any float type; computed in float32 at least.
        labels: Class ids, (B, H, W), any integers.
        weight: Weight per class, (C,), or None.
        ignore_index: The label of pixels that count for nothing.
        label_smoothing: e of the target (1 - e) one-hot + e / C.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: When the shapes do not fit.

    Example:
        >>> loss = upsample_cross_entropy(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1, 255]]]))
        >>> round(float(loss), 4)  # log 4
        1.3863
    """
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels) or 0 in (*logits.shape, *labels.shape):
        raise ValueError(f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}, not (B, C, h, w) and "
                         "(B, H, W)")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(f"weight is {tuple(weight.shape)} for {logits.shape[1]} classes")
    labels = labels.long()
    with torch.autocast(logits.device.type, enabled=False):
        return _UpsampleCrossEntropy.apply(logits, labels, weight, ignore_index, label_smoothing)


class _UpsampleCrossEntropy(torch.autograd.Function):
    """The gradient is made along with the value, since both need the same exponentials."""

    @staticmethod
    def forward(ctx, logits, labels, weight, ignore_index, label_smoothing):
        real = torch.promote_types(logits.dtype, torch.float32)
        size, classes = labels.shape[-2:], logits.shape[1]
        valid = labels != ignore_index
        weight = torch.ones(classes) if weight is None else weight
        weight = weight.to(logits.device, real)
        pixel_weight = torch.where(valid, weight[torch.where(valid, labels, 0)], 0)
        total_weight = pixel_weight.sum()
        scale = torch.where(total_weight > 0, 1 / total_weight, 0)
        wants_gradient = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=real, device=logits.device)
        gradient = torch.zeros(logits.shape, dtype=real, device=logits.device) if wants_gradient else None
        for image, (coarse, target) in enumerate(zip(logits.detach().to(real), labels, strict=True)):
            for strip in strips_of(classes, coarse.shape[1], size, coarse):
                part = target[strip.rows]
                kept = valid[image, strip.rows]
                index = torch.where(kept, part, 0)[:, None]
                share = pixel_weight[image, strip.rows][:, None]
                values = strip.upsampled(coarse)  # (rows, C, W)
                values -= values.amax(1, keepdim=True)
                at_label = values.gather(1, index)
                if label_smoothing:
                    spread = torch.where(kept[:, None], label_smoothing / classes, 0)
                    smoothed = (values * weight[:, None]).sum(1, keepdim=True)
                exponentials = values.exp_()
                mass = exponentials.sum(1, keepdim=True)
                log_mass = mass.log()
                losses = (1 - label_smoothing) * share * (log_mass - at_label)
                if label_smoothing:
                    losses = losses + spread * (weight.sum() * log_mass - smoothed)
                total += losses.sum()
                if wants_gradient:
                    # d/dv of the above: (share' + spread') softmax - share' one-hot - spread' weight
                    outer = (1 - label_smoothing) * share
                    factor = outer + spread * weight.sum() if label_smoothing else outer
                    slope = exponentials.mul_(factor / mass)
                    slope.scatter_add_(1, index, -outer)
                    if label_smoothing:
                        slope -= spread * weight[:, None]
                    strip.add_gradient(slope, gradient[image])
        if wants_gradient:
            # In full precision: loss scaling multiplies it before it is rounded to the logits' type.
            ctx.save_for_backward(gradient.mul_(scale))
            ctx.dtype = logits.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        [gradient] = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None, None, None, None

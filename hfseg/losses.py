"""The losses by name, on logits at the label maps' size. `objective.py` adds them up.

Most losses are a function of a few sums over pixels, so that some rows of pixels can be looked at at a time: `sums`
of these, then the `value` of all sums. A loss that has to see all
pixels at once (a sort, a choice of the hardest) is a function of all `Pixels`, `whole`. To add one, write the
functions and their line in `LOSSES`. Averages are over the labelled pixels of the batch in hand (of each micro-batch
and process, that is, where gradients are accumulated or distributed). No labelled pixel: loss and gradient are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfseg.recipe import LossConfig


@dataclass(frozen=True)
class Pixels:
    """What the losses share, computed once for a batch, or for a strip of it, at the size of the label maps.

    Args:
        log_probs: Logarithms of the class probabilities, (B, C, H, W), float32 or float64.
        labels: Class ids, (B, H, W), int64; `ignore_index` where unlabelled.
        valid: Where `labels` is not `ignore_index`, (B, H, W), bool.
        cross_entropy: -log p of the label at every pixel, unweighted, 0 where unlabelled, (B, H, W).
        weight: Class weight of the label at every pixel (1 without weights), 0 where unlabelled, (B, H, W).
        class_weights: Weight per class, (C,), or None.
    """

    log_probs: Tensor
    labels: Tensor
    valid: Tensor
    cross_entropy: Tensor
    weight: Tensor
    class_weights: Tensor | None

    def mean_sums(self, values: Tensor) -> Tensor:
        """Returns what the mean of (B, H, W) `values` over the labelled pixels, weighted by class, is made of.

        Args:
            values: One per pixel.

        Returns:
            (2, 1): the weighted sum and the sum of the weights.
        """
        return torch.stack([(values * self.weight).sum(), self.weight.sum()])[:, None]


@dataclass(frozen=True)
class Loss:
    """A loss: sums and their value, or a function of the whole.

    Args:
        sums: Of some pixels: (k, n), to be added up over all.
        value: Of the sums over all pixels: the loss, a scalar.
        whole: Of all pixels: the loss, a scalar.
    """

    sums: Callable[[Pixels, LossConfig], Tensor] | None = None
    value: Callable[[Tensor, LossConfig], Tensor] | None = None
    whole: Callable[[Pixels, LossConfig], Tensor] | None = None


def mean_value(sums: Tensor, config: LossConfig) -> Tensor:
    """Returns the mean that `Pixels.mean_sums` prepared."""
    return _ratio(sums[0, 0], sums[1, 0])


def cross_entropy(pixels: Pixels, config: LossConfig) -> Tensor:
    """Cross-entropy: the mean of -log p(label), weighted by class, as `torch.nn.functional.cross_entropy`.

    With label smoothing e the target is (1 - e) one-hot + e / C (Szegedy et al. 2016, arXiv 1512.00567,
    section 7). A recipe with this loss alone goes by `hfseg.ops.upsample_cross_entropy`, which is the same and
    faster.
    """
    sums = pixels.mean_sums(pixels.cross_entropy)
    if config.label_smoothing == 0:
        return sums
    weights = pixels.class_weights
    spread = -pixels.log_probs if weights is None else -pixels.log_probs * weights[:, None, None]
    spread = torch.where(pixels.valid, spread.mean(1), 0.0).sum()
    return torch.stack([torch.lerp(sums[0], spread[None], config.label_smoothing), sums[1]])


def ohem(pixels: Pixels, config: LossConfig) -> Tensor:
    """Online hard example mining: cross-entropy over the `ohem_fraction` of the pixels that have most of it.

    Shrivastava et al. 2016 (arXiv 1604.03540), per pixel and over the batch; class weights enter after the
    choice.
    """
    kept = math.ceil(config.ohem_fraction * int(pixels.valid.sum()))
    hardness = torch.where(pixels.valid, pixels.cross_entropy.detach(), -1.0).flatten()
    hardest = hardness.topk(kept, sorted=False).indices
    weight = pixels.weight.flatten()[hardest]
    return _ratio((pixels.cross_entropy.flatten()[hardest] * weight).sum(), weight.sum())


def focal(pixels: Pixels, config: LossConfig) -> Tensor:
    """Focal loss: the mean of (1 - p)^gamma * -log p, p the probability of the label, weighted by class.

    Lin et al. 2017 (arXiv 1708.02002), equation 5, with the class weights as alpha; gamma 0 is cross-entropy.
    """
    miss = -torch.expm1(-pixels.cross_entropy)
    # The floor keeps the gradient of miss ** gamma finite at miss = 0 (unlabelled pixels) when gamma < 1.
    return pixels.mean_sums(miss.clamp_min(torch.finfo(miss.dtype).eps) ** config.focal_gamma * pixels.cross_entropy)


def overlap(pixels: Pixels, config: LossConfig) -> Tensor:
    """Returns what the overlap losses are made of: (3, C), sum(p y), sum y and sum p over the labelled pixels."""
    batch, num_classes, height = pixels.log_probs.shape[:3]
    rows = torch.arange(batch * height, device=pixels.labels.device).view(batch, height, 1)
    bins = (rows * num_classes + torch.where(pixels.valid, pixels.labels, 0)).flatten()

    def per_class(values: Tensor) -> Tensor:
        """Sums (B, H, W) by label; row by row first, since float32 loses what is small beside a long sum."""
        values = torch.where(pixels.valid, values, 0.0).flatten()
        return values.new_zeros(batch * height * num_classes).index_add(0, bins, values).view(-1, num_classes).sum(0)

    true_positive = per_class((-pixels.cross_entropy).exp())
    count = per_class(torch.ones_like(pixels.cross_entropy))
    predicted = torch.where(pixels.valid[:, None], pixels.log_probs.exp(), 0.0).sum((2, 3)).sum(0)
    return torch.stack([true_positive, count, predicted])


def dice(sums: Tensor, config: LossConfig) -> Tensor:
    """Dice loss: 1 - 2 sum(p y) / (sum p + sum y), the mean over the classes that the batch contains.

    Milletari et al. 2016 (arXiv 1606.04797) without the squares; sums over the labelled pixels of the batch.
    Classes count equally, whatever the class weights. It is Tversky's loss with alpha = beta = 1/2.
    """
    return _tversky(sums, 0.5, 0.5, config.binary)


def tversky(sums: Tensor, config: LossConfig) -> Tensor:
    """Tversky loss: 1 - TP / (TP + alpha FP + beta FN), the mean over the classes that the batch contains.

    Salehi et al. 2017 (arXiv 1706.05721), equation 4, with TP = sum(p y), FP = sum(p (1 - y)) and
    FN = sum((1 - p) y) over the labelled pixels of the batch.
    """
    return _tversky(sums, config.tversky_alpha, config.tversky_beta, config.binary)


def _tversky(sums: Tensor, alpha: float, beta: float, foreground_only: bool) -> Tensor:
    true_positive, count, predicted = sums
    mass = true_positive + alpha * (predicted - true_positive) + beta * (count - true_positive)
    return _scored(1 - _ratio(true_positive, mass), count > 0, foreground_only)


def lovasz(pixels: Pixels, config: LossConfig) -> Tensor:
    """Lovász-softmax: the convex extension of 1 - IoU, the mean over the classes in the batch.

    Berman et al. 2018 (arXiv 1705.08790), equations 8, 9 and 11, with the batch as one image. Errors |y - p|
    are sorted, the largest first, and each is weighted by what its pixel adds to the Jaccard loss of those
    before it.
    """
    where = pixels.valid.flatten().nonzero()[:, 0]
    labels = pixels.labels.flatten()[where]
    num_classes = pixels.log_probs.shape[1]
    present = torch.bincount(labels, minlength=num_classes) > 0
    losses = [
        0 * pixels.cross_entropy.sum()
    ] * num_classes  # absent classes, on the graph so that backward works
    for k, is_present in enumerate(present.tolist()):
        if not is_present or (k == 0 and config.binary):
            continue
        truth = labels == k
        probs = pixels.log_probs[:, k].flatten()[where].exp()
        errors, order = (truth.to(probs.dtype) - probs).abs().sort(descending=True)
        truth = truth[order]
        # Counted in int64 and without differences of nearby numbers: exact for any number of pixels.
        found = truth.cumsum(0)
        intersection = (found[-1] - found).to(errors.dtype)
        union = found[-1] + (~truth).cumsum(0)
        before = (union - 1).clamp_min(1).to(errors.dtype)
        losses[k] = (errors * (torch.where(truth, 1, intersection / before) / union)).sum()
    return _scored(torch.stack(losses), present, config.binary)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, mean_value),
    "ohem": Loss(whole=ohem),
    "focal": Loss(focal, mean_value),
    "dice": Loss(overlap, dice),
    "tversky": Loss(overlap, tversky),
    "lovasz": Loss(whole=lovasz),
}


def _scored(class_values: Tensor, present: Tensor, foreground_only: bool) -> Tensor:
    """The mean of (C,) values over the classes present in the batch, (C,) bool."""
    if foreground_only:
        class_values, present = class_values[1:], present[1:]
    return _ratio((class_values * present).sum(), present.sum())


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 with a zero gradient where nothing was counted."""
    return total / torch.where(count > 0, count, 1)

"""What is minimised: losses by name, added up with weights, on logits at their own resolution.

Every loss is a function of `Pixels` and the recipe's `loss` section. To add one, write the function and its
line in `LOSSES`. Averages are over the labelled pixels of the batch in hand (of each micro-batch and process,
that is, where gradients are accumulated or distributed). No labelled pixel: loss and gradient are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfseg.errors import UserError, one_of
from hfseg.recipe import LossConfig


@dataclass(frozen=True)
class Pixels:
    """What the losses share, computed once per batch at the size of the label maps.

    Args:
        log_probs: Logarithms of the class probabilities, (B, C, H, W), float32 or float64.
        labels: Class ids, (B, H, W), int64; `ignore_index` where unlabelled.
        valid: Where `labels` is not `ignore_index`, (B, H, W), bool.
        cross_entropy: -log p of the label at every pixel, unweighted, 0 where unlabelled, (B, H, W).
        weight: Class weight of the label at every pixel (1 without weights), 0 where unlabelled, (B, H, W).
        class_weights: Weight per class, (C,), or None.
        foreground_only: Whether the overlap losses count class 1 of two alone.
    """

    log_probs: Tensor
    labels: Tensor
    valid: Tensor
    cross_entropy: Tensor
    weight: Tensor
    class_weights: Tensor | None
    foreground_only: bool

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean of (B, H, W) `values` over the labelled pixels, weighted by class."""
        return _ratio((values * self.weight).sum(), self.weight.sum())

    def scored(self, class_values: Tensor, present: Tensor) -> Tensor:
        """Returns the mean of (C,) `class_values` over the classes `present` in the batch, (C,) bool."""
        if self.foreground_only:
            class_values, present = class_values[1:], present[1:]
        return _ratio((class_values * present).sum(), present.sum())


def cross_entropy(pixels: Pixels, config: LossConfig) -> Tensor:
    """Cross-entropy: the mean of -log p(label), weighted by class, as `torch.nn.functional.cross_entropy`.

    With label smoothing e the target is (1 - e) one-hot + e / C (Szegedy et al. 2016, arXiv 1512.00567,
    section 7).
    """
    loss = pixels.mean(pixels.cross_entropy)
    if config.label_smoothing == 0:
        return loss
    weights = pixels.class_weights
    spread = -pixels.log_probs if weights is None else -pixels.log_probs * weights[:, None, None]
    spread = torch.where(pixels.valid, spread.mean(1), 0.0)
    return torch.lerp(loss, _ratio(spread.sum(), pixels.weight.sum()), config.label_smoothing)


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
    return pixels.mean(
        miss.clamp_min(torch.finfo(miss.dtype).eps) ** config.focal_gamma * pixels.cross_entropy
    )


def dice(pixels: Pixels, config: LossConfig) -> Tensor:
    """Dice loss: 1 - 2 sum(p y) / (sum p + sum y), the mean over the classes that the batch contains.

    Milletari et al. 2016 (arXiv 1606.04797) without the squares; sums over the labelled pixels of the batch.
    Classes count equally, whatever the class weights. It is Tversky's loss with alpha = beta = 1/2.
    """
    return _tversky(pixels, 0.5, 0.5)


def tversky(pixels: Pixels, config: LossConfig) -> Tensor:
    """Tversky loss: 1 - TP / (TP + alpha FP + beta FN), the mean over the classes that the batch contains.

    Salehi et al. 2017 (arXiv 1706.05721), equation 4, with TP = sum(p y), FP = sum(p (1 - y)) and
    FN = sum((1 - p) y) over the labelled pixels of the batch.
    """
    return _tversky(pixels, config.tversky_alpha, config.tversky_beta)


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
        if not is_present or (k == 0 and pixels.foreground_only):
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
        losses[k] = torch.dot(errors, torch.where(truth, 1, intersection / before) / union)
    return pixels.scored(torch.stack(losses), present)


LOSSES: dict[str, Callable[[Pixels, LossConfig], Tensor]] = {
    "cross_entropy": cross_entropy,
    "ohem": ohem,
    "focal": focal,
    "dice": dice,
    "tversky": tversky,
    "lovasz": lovasz,
}


class Objective(nn.Module):
    """The weighted sum of the losses that a recipe names; made by `build_loss`.

    Logits of any resolution are upsampled to the label maps' (bilinear, `align_corners=False`) once, and
    their log-softmax is shared. Everything is computed in float32 at least, under autocast too.

    With `binary`, class 1 of two is scored by one sigmoid: on the only logit, where the network gives one,
    else on the difference of two. A softmax over two logits is that sigmoid, so per-pixel losses stay the
    same numbers; the overlap losses (dice, tversky, lovasz) count class 1 alone, not the mean of both.

    Args:
        config: The recipe's `loss` section.
        num_labels: Number of classes.
        ignore_index: The label of pixels that count for nothing.
        class_weights: Weight per class, (num_labels,), for cross_entropy, ohem and focal; None: all alike.
    """

    def __init__(
        self, config: LossConfig, num_labels: int, ignore_index: int, class_weights: Tensor | None = None
    ):
        super().__init__()
        self.config, self.num_labels, self.ignore_index = config, num_labels, ignore_index
        # Not part of any state: the recipe and the data say what the weights are.
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss of a batch.

        Args:
            logits: (B, C, h, w), any float type; C = num_labels, or 1 when binary.
            labels: Class ids, (B, H, W), int64.

        Returns:
            A scalar, float32 (float64 for float64 logits).

        Raises:
            UserError: When the number of logits does not fit the labels.
        """
        with torch.autocast(logits.device.type, enabled=False):
            pixels = self.pixels(logits, labels)
            terms = (weight * LOSSES[name](pixels, self.config) for name, weight in self.config.terms.items())
            return torch.stack(list(terms)).sum()

    def pixels(self, logits: Tensor, labels: Tensor) -> Pixels:
        """Returns what the losses share, at the labels' size."""
        allowed = (1, 2) if self.config.binary else (self.num_labels,)
        if logits.shape[1] not in allowed:
            raise UserError(
                f"the network gives {logits.shape[1]} logit(s) per pixel for {self.num_labels} classes",
                " or ".join(map(str, allowed)),
                "--loss.binary true" if logits.shape[1] == 1 else "load the network with these labels",
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        log_probs = F.log_softmax(logits, 1)
        valid = labels != self.ignore_index
        weights = None if self.class_weights is None else self.class_weights.to(log_probs)
        weight = valid.to(log_probs.dtype)
        if weights is not None:
            weight = weight * weights[torch.where(valid, labels, 0)]
        return Pixels(
            log_probs=log_probs,
            labels=labels,
            valid=valid,
            cross_entropy=F.nll_loss(log_probs, labels, ignore_index=self.ignore_index, reduction="none"),
            weight=weight,
            class_weights=weights,
            foreground_only=self.config.binary,
        )


def build_loss(
    config: LossConfig, num_labels: int, ignore_index: int, class_weights: Tensor | None = None
) -> Objective:
    """Makes the objective that a recipe declares.

    Args:
        config: The recipe's `loss` section.
        num_labels: Number of classes.
        ignore_index: The label of pixels that count for nothing.
        class_weights: (num_labels,) as given by `class_weights`, or None.

    Returns:
        A module: `objective(logits (B, C, h, w), labels (B, H, W))` gives a scalar.

    Raises:
        UserError: When a loss is unknown or a number is out of its range.

    Example:
        >>> objective = build_loss(LossConfig(terms={"cross_entropy": 1.0, "dice": 0.5}), 3, 255)
        >>> labels = torch.zeros(2, 8, 8, dtype=torch.int64)
        >>> round(float(objective(torch.zeros(2, 3, 4, 4), labels)), 4)  # log 3 + 0.5 * (1 - 2/4)
        1.3486
    """
    if not config.terms:
        raise UserError(
            "loss.terms is empty", "at least one of " + ", ".join(LOSSES), "--loss.terms.cross_entropy 1"
        )
    for name, weight in config.terms.items():
        one_of(name, LOSSES, "loss")
        _check(0 <= weight < math.inf, f"loss.terms.{name}", weight, "a finite number, 0 or more")
    _check(any(config.terms.values()), "loss.terms", config.terms, "at least one weight above 0")
    _check(0 <= config.label_smoothing < 1, "loss.label_smoothing", config.label_smoothing, "0 <= x < 1")
    _check(0 < config.ohem_fraction <= 1, "loss.ohem_fraction", config.ohem_fraction, "0 < x <= 1")
    _check(config.focal_gamma >= 0, "loss.focal_gamma", config.focal_gamma, "0 or more")
    _check(config.tversky_alpha >= 0, "loss.tversky_alpha", config.tversky_alpha, "0 or more")
    _check(config.tversky_beta >= 0, "loss.tversky_beta", config.tversky_beta, "0 or more")
    if config.binary and num_labels != 2:
        raise UserError(
            f"loss.binary is on, and the data has {num_labels} classes", "2 classes", "--loss.binary false"
        )
    return Objective(config, num_labels, ignore_index, class_weights)


def class_weights(
    value: str | Sequence[float] | dict[str, float] | None,
    frequencies: Sequence[float] | None,
    names: Sequence[str],
) -> Tensor | None:
    """Turns the recipe's `loss.class_weights` into one weight per class.

    `auto` is the square root of median-frequency balancing (Eigen & Fergus 2015, arXiv 1411.4734):
    w = sqrt(median f / f), kept within 0.1 to 10, then divided by the mean. The root, because the full ratio
    lets a class that covers one pixel in a thousand outshout all others. Classes that never occur weigh 1 and
    enter neither median nor mean.

    Args:
        value: None, `auto`, a list in the order of the classes, or a map by name (others weigh 1).
        frequencies: Labelled pixels (or shares) per class in the training split; only `auto` asks for them.
        names: Class names, in order.

    Returns:
        float32, (len(names),), or None when `value` is None. Lists and maps are taken as they are.

    Raises:
        UserError: When names, count or numbers are not right.

    Example:
        >>> class_weights("auto", [900, 90, 10], ["road", "car", "sign"])
        tensor([0.2198, 0.6951, 2.0852])
        >>> class_weights({"sign": 4}, None, ["road", "car", "sign"])
        tensor([1., 1., 4.])
    """
    what = "loss.class_weights"
    if value is None:
        return None
    if isinstance(value, str):
        one_of(value, ["auto"], "value of " + what)
        if frequencies is None:
            raise UserError(
                f"{what} is auto, and the class frequencies are not known", fix=f"list them in {what}"
            )
        counts = torch.as_tensor(frequencies, dtype=torch.float64)
        seen = counts > 0
        if not seen.any():
            raise UserError(f"{what} is auto, and no pixel of the training split is labelled")
        weights = torch.ones_like(counts)
        weights[seen] = (counts[seen].quantile(0.5) / counts[seen]).sqrt().clamp(0.1, 10)
        weights[seen] /= weights[seen].mean()
        return weights.float()
    if isinstance(value, dict):
        value = {one_of(name, names, "class in " + what): weight for name, weight in value.items()}
        value = [value.get(name, 1.0) for name in names]
    if len(value) != len(names):
        raise UserError(
            f"{what} has {len(value)} numbers for {len(names)} classes", "one per class: " + ", ".join(names)
        )
    _check(all(0 <= w < math.inf for w in value) and any(value), what, value, "finite, 0 or more, not all 0")
    return torch.tensor(value, dtype=torch.float32)


def _tversky(pixels: Pixels, alpha: float, beta: float) -> Tensor:
    batch, num_classes = pixels.log_probs.shape[:2]
    images = torch.arange(batch, device=pixels.labels.device)[:, None, None]
    bins = (images * num_classes + torch.where(pixels.valid, pixels.labels, 0)).flatten()

    def per_class(values: Tensor) -> Tensor:
        """Sums (B, H, W) by label; image by image first, since float32 stops counting at 2^24."""
        values = torch.where(pixels.valid, values, 0.0).flatten()
        return (
            values.new_zeros(batch * num_classes).index_add(0, bins, values).view(batch, num_classes).sum(0)
        )

    true_positive = per_class((-pixels.cross_entropy).exp())
    count = per_class(torch.ones_like(pixels.cross_entropy))
    predicted = torch.where(pixels.valid[:, None], pixels.log_probs.exp(), 0.0).sum((2, 3)).sum(0)
    mass = true_positive + alpha * (predicted - true_positive) + beta * (count - true_positive)
    return pixels.scored(1 - _ratio(true_positive, mass), count > 0)


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 with a zero gradient where nothing was counted."""
    return total / torch.where(count > 0, count, 1)


def _check(right: bool, what: str, value: object, allowed: str) -> None:
    if not right:
        raise UserError(f"{what} is {value}", allowed)

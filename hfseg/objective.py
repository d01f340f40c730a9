"""What is minimised: the weighted sum of the losses that a recipe names, on logits at their own resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hfseg.errors import UserError, one_of
from hfseg.labels import LabelSchema
from hfseg.losses import LOSSES, Pixels
from hfseg.models.candidates import Targets
from hfseg.models.families import Family
from hfseg.ops.strips import Strip, strips_of
from hfseg.ops.upsample_cross_entropy import upsample_cross_entropy
from hfseg.recipe import LossConfig

_SMALL = 16_000_000  # full-size logits that are computed at once: strips would cost time, and hardly save memory


class Objective(nn.Module):
    """The weighted sum of the losses that a recipe names; made by `build_loss`.

    Logits of any resolution are upsampled to the label maps' (bilinear, `align_corners=False`) once, and
    their log-softmax is shared: some rows at a time, for value and gradient, where the full-size logits would be
    large and no loss has to see all pixels at once. Everything is computed in float32 at least, under autocast too.

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
            logits, config = self._checked(logits), self.config
            used = {name: LOSSES[name] for name in config.terms}
            if list(used) == ["cross_entropy"]:
                values = [upsample_cross_entropy(
                    logits, labels, weight=self.class_weights, ignore_index=self.ignore_index,
                    label_smoothing=config.label_smoothing,
                )]  # fmt: skip
            elif all(loss.sums for loss in used.values()) and labels.numel() * logits.shape[1] > _SMALL:
                sums = _SumsByStrips.apply(logits, labels, self)
                values = [loss.value(part, config) for loss, part in zip(used.values(), sums, strict=True)]
            else:
                if logits.shape[-2:] != labels.shape[-2:]:
                    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
                pixels = self.pixels(logits, labels)
                values = [loss.whole(pixels, config) if loss.whole else loss.value(loss.sums(pixels, config), config)
                          for loss in used.values()]
            return sum(weight * value for weight, value in zip(config.terms.values(), values, strict=True))

    def _checked(self, logits: Tensor) -> Tensor:
        """The logits of two classes or more, in float32 at least."""
        allowed = (1, 2) if self.config.binary else (self.num_labels,)
        if logits.shape[1] not in allowed:
            raise UserError(
                f"the network gives {logits.shape[1]} logit(s) per pixel for {self.num_labels} classes",
                " or ".join(map(str, allowed)),
                "--loss.binary true" if logits.shape[1] == 1 else "load the network with these labels",
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)

    def pixels(self, logits: Tensor, labels: Tensor) -> Pixels:
        """Returns what the losses share.

        Args:
            logits: (B, C, H, W), at the labels' size.
            labels: (B, H, W).

        Returns:
            Log-probabilities and what belongs to them.
        """
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
        )

    def sums(self, values: Tensor, labels: Tensor) -> list[Tensor]:
        """Returns the sums of every loss over some rows.

        Args:
            values: Upsampled logits, (R, C, W).
            labels: (R, W).

        Returns:
            (k, n) for each of the recipe's losses.
        """
        pixels = self.pixels(values[:, :, None], labels[:, None])
        return [LOSSES[name].sums(pixels, self.config) for name in self.config.terms]


class _SumsByStrips(torch.autograd.Function):
    """The sums of all losses of an objective. Strips are computed anew for the gradient, which depends on all sums."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, labels)
        ctx.objective = objective
        totals: list[Tensor] = []
        for _, strip, coarse, part in _strips(logits, labels):
            sums = objective.sums(strip.upsampled(coarse), part)
            wide = torch.float32 if logits.device.type == "mps" else torch.float64  # float32 stops counting at 2^24
            sums = [value.to(wide) for value in sums]
            totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
        return tuple(total.to(logits.dtype) for total in totals)

    @staticmethod
    @once_differentiable
    def backward(ctx, *slopes: Tensor) -> tuple:
        logits, labels = ctx.saved_tensors
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for image, strip, coarse, part in _strips(logits, labels):
            with torch.enable_grad():
                values = strip.upsampled(coarse).requires_grad_()
                sums = ctx.objective.sums(values, part)
            [slope] = torch.autograd.grad(sums, values, slopes, materialize_grads=True)
            strip.add_gradient(slope, gradient[image])
        return gradient, None, None


def _strips(logits: Tensor, labels: Tensor) -> Iterator[tuple[int, Strip, Tensor, Tensor]]:
    """Gives (image number, strip, its logits (C, h, w), its labels (R, W))."""
    for image, (coarse, target) in enumerate(zip(logits.detach(), labels, strict=True)):
        for strip in strips_of(len(coarse), coarse.shape[1], tuple(target.shape), coarse):
            yield image, strip, coarse, target[strip.rows]


class PixelLoss:
    """The loss of a per-pixel network on a batch.

    Args:
        objective: Of logits and labels.
        model: The network, unwrapped.
        auxiliary: Where the logits of its auxiliary head are collected.
    """

    def __init__(self, objective: Objective, model: nn.Module, auxiliary: list[Tensor]):
        self.objective, self.model, self.auxiliary = objective, model, auxiliary

    def __call__(self, network: nn.Module, pixel_values: Tensor, batch: dict) -> Tensor:
        """Computes it.

        Args:
            network: The network, as wrapped for training.
            pixel_values: (B, C, H, W), on the device.
            batch: With `labels` (B, H, W).

        Returns:
            A scalar.
        """
        labels = batch["labels"].to(pixel_values.device, non_blocking=True).long()
        self.auxiliary.clear()
        loss = self.objective(network(pixel_values=pixel_values).logits, labels)
        for logits in self.auxiliary:
            loss = loss + self.model.config.auxiliary_loss_weight * self.objective(logits, labels)
        return loss


class ModelLoss:
    """The loss that a network computes itself, of masks: matched, with its auxiliary ones, in float32.

    Args:
        family: Its record, which says how it wants its targets.
        model: The network, unwrapped.
        task: What it learns.
        schema: The classes.
    """

    def __init__(self, family: Family, model: nn.Module, task: str, schema: LabelSchema):
        self.family, self.model, self.task, self.schema = family, model, task, schema
        criterion = getattr(model, "criterion", None)
        if isinstance(criterion, nn.Module):
            criterion.forward = _InFloat32(criterion.forward)
        elif model.loss_type is not None:  # DETR and its kin match in what transformers calls their loss function
            model.loss_function = _InFloat32(model.loss_function)

    def __call__(self, network: nn.Module, pixel_values: Tensor, batch: dict) -> Tensor:
        """Computes it.

        Args:
            network: The network, as wrapped for training.
            pixel_values: (B, C, H, W), on the device.
            batch: With the `masks` (N, H, W) and `classes` (N,) of each image.

        Returns:
            A scalar.
        """
        device = pixel_values.device
        masks, classes = ([one.to(device, non_blocking=True) for one in batch[key]] for key in ("masks", "classes"))
        step, size = self.family.step(self.model.config), pixel_values.shape[-2:]
        beyond = (0, -size[1] % step, 0, -size[0] % step)
        if any(beyond):
            pixel_values, masks = F.pad(pixel_values, beyond), [F.pad(one, beyond) for one in masks]
        return self.given(network, pixel_values, masks, classes).loss.squeeze()

    def given(self, network: nn.Module, pixel_values: Tensor, masks: Sequence[Tensor],
              classes: Sequence[Tensor]) -> Any:
        """Runs the network with targets.

        Args:
            network: The network, perhaps as wrapped for training.
            pixel_values: (B, C, H, W), padded to what it can take.
            masks: Of each image (N, H, W), bool.
            classes: Of each image (N,).

        Returns:
            What it returns, with its `loss`.
        """
        targets = Targets(masks, classes, self.task, self.schema.names)
        return network(pixel_values=pixel_values, **self.family.feed(self.model, targets))


class _InFloat32:
    """Calls a function outside of autocast, with float32 in place of half precision: costs of matching decide, and
    half precision makes ties of them."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *arguments, **named):
        tensors = (value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
        with torch.autocast(next(tensors).device.type, enabled=False):
            return self.function(*map(_widened, arguments), **{key: _widened(value) for key, value in named.items()})


def _widened(value):
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        return {key: _widened(part) for key, part in value.items()}
    return type(value)(map(_widened, value)) if type(value) in (list, tuple) else value


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


def _check(right: bool, what: str, value: object, allowed: str) -> None:
    if not right:
        raise UserError(f"{what} is {value}", allowed)

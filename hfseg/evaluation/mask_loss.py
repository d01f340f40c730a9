"""The loss of networks that compute their own, on the images that are scored, from the same forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.nn import functional as F

from hfseg.data.images import Sample
from hfseg.data.pixels import resize_map
from hfseg.data.preparation import MaskTargets
from hfseg.errors import UserError
from hfseg.evaluation.processes import added_up
from hfseg.evaluation.split import Numbered
from hfseg.objective import ModelLoss
from hfseg.segmenter import Segmenter


class MaskLoss:
    """Adds up the losses of images, each by itself: the same with any batches, on any number of processes.

    What is drawn at random (the points at which masks are compared, the boxes that are learnt from) is drawn by the
    number of the image. Targets are made as for training, without augmentation: crowds are nobody's.

    Args:
        loss: Of training.
        ignore_index: The class id of pixels without a class.
    """

    def __init__(self, loss: ModelLoss, ignore_index: int):
        self.family, self.model, self.task, self.schema = loss.family, loss.model, loss.task, loss.schema
        self.loss, self.total = loss, 0.0
        self.targets = MaskTargets(loss.task, loss.schema.is_thing, ignore_index)
        self.batch: Sequence[Numbered] = ()
        criterion = getattr(self.model, "criterion", None)
        self.by_image = _ByImage(criterion.forward) if isinstance(criterion, nn.Module) else None
        if self.by_image:
            criterion.forward = self.by_image

    def watching(self, segmenter: Segmenter) -> Segmenter:
        """Makes a segmenter whose forward passes compute the loss, too.

        Args:
            segmenter: Of the network.

        Returns:
            Another one, which shares the network.

        Raises:
            UserError: For one that sees images in tiles or views, of which there are no targets.
        """
        if segmenter.tile or segmenter.tta:
            raise UserError("a loss of tiles or views", "whole images as they are", "leave eval.tile and eval.tta out")
        self.total = 0.0
        other = copy(segmenter)
        other.watch = self
        return other

    def parts(self, batch: list[Numbered]) -> Iterator[list[Numbered]]:
        """Yields what goes through the network together: some losses have to see an image by itself.

        Args:
            batch: Images of one shape.
        """
        together = self.by_image or self.family.losses_apart
        for self.batch in [batch] if together else [[one] for one in batch]:
            yield self.batch

    def forward(self, pixel_values: Tensor, content: tuple[int, int], asked: Mapping[str, Any]) -> Any:
        """Runs the network on the images of the last part, in evaluation mode, and adds their losses up.

        Args:
            pixel_values: (B, C, H, W), padded.
            content: (height, width) of the images within.
            asked: What else the network takes when nothing is learnt.

        Returns:
            What the network returns, predictions included.
        """
        numbers = [number for number, _ in self.batch]
        fed = [self._targets(sample, pixel_values, content) for _, sample in self.batch]
        if self.family.losses_apart:
            for number, one, pixels in zip(numbers, fed, pixel_values, strict=True):
                with _learning(self.model), drawn(number, pixels.device):
                    self.total += float(self.loss.given(self.model, pixels[None], *zip(one)).loss)
            return self.model(pixel_values=pixel_values, **asked)
        with ExitStack() as entered:
            if self.by_image:
                entered.enter_context(self.by_image.over(numbers))
            else:
                entered.enter_context(drawn(numbers[0], pixel_values.device))
            # Each process scores other images: a number of objects that is averaged over all would wait for them.
            entered.enter_context(mock.patch.object(PartialState, "_shared_state", {}))
            outputs = self.loss.given(self.model, pixel_values, *zip(*fed))
        self.total += float(outputs.loss) * len(numbers)
        return outputs

    def gather(self, accelerator: Accelerator) -> None:
        """Adds the losses of the other processes.

        Args:
            accelerator: Of the run.
        """
        [self.total] = added_up(accelerator, np.array([self.total], np.float64))

    def _targets(self, sample: Sample, like: Tensor, content: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Masks (N, H, W) and classes (N,), as large as the padded image."""
        segments = sample.segments
        if segments is not None:
            segments = segments.transformed(lambda layer: resize_map(torch.from_numpy(layer), *content).numpy())
        found = self.targets(resize_map(torch.from_numpy(sample.semantic_map), *content), segments)
        beyond = (0, like.shape[-1] - content[1], 0, like.shape[-2] - content[0])
        return F.pad(found["masks"], beyond).to(like.device), found["classes"].to(like.device)


class _ByImage:
    """Calls the loss of a batch for each image, and averages; for a batch that is learnt from, as ever."""

    def __init__(self, function: Any):
        self.function = function
        self.numbers: list[int] | None = None

    @contextmanager
    def over(self, numbers: list[int]) -> Iterator[None]:
        """Within, images are seen one by one.

        Args:
            numbers: Of the images of the batch in their split.
        """
        self.numbers = numbers
        try:
            yield
        finally:
            self.numbers = None

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        if self.numbers is None:
            return self.function(*arguments, **named)
        numbers, self.numbers = self.numbers, None  # it calls itself for auxiliary outputs
        try:
            found = []
            for i, number in enumerate(numbers):
                values = [_only(value, i) for value in arguments]
                others = {key: _only(value, i) for key, value in named.items()}
                first = next(value for value in (*values, *others.values()) if isinstance(value, Tensor))
                with drawn(number, first.device):
                    found.append(self.function(*values, **others))
            return {key: torch.stack([one[key].float() for one in found]).mean(0) for key in found[0]}
        finally:
            self.numbers = numbers


def _only(value: Any, i: int) -> Any:
    """The part of an argument that is about image i: tensors begin with the batch, and so do lists of tensors."""
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.dim() else value
    if isinstance(value, Mapping):
        return {key: _only(one, i) for key, one in value.items()}
    if isinstance(value, list | tuple) and value:
        return [value[i]] if isinstance(value[0], Tensor) else [_only(one, i) for one in value]
    return value


@contextmanager
def drawn(seed: int, device: torch.device) -> Iterator[None]:
    """Within, random numbers follow from the seed; what is drawn afterwards is as if nothing had been.

    Args:
        seed: Any.
        device: Where they are drawn, too, beside the CPU.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _learning(model: nn.Module) -> Iterator[None]:
    """Training mode for a network that has losses in it alone, but for what keeps statistics or drops activations."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, _ in modes:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or "drop" in type(module).__name__.lower():
            module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

"""What a network says about images of one size: in its own pixels, padded, in views, in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfseg.errors import UserError, one_of
from hfseg.inference.evaluation_mode import EvaluationMode
from hfseg.inference.test_time_augmentation import averaged_logits
from hfseg.models.families import FAMILIES

_LEAST_PIXELS = 32  # networks halve the sides five times, and fail on less


class ForwardPass:
    """The lower half of a `Segmenter`, whose arguments these are.

    Its parts are methods of the segmenter, since a profile times them there.
    """

    task: str
    tile: int | None
    tta: tuple[str | float, ...]
    resizes_windows: bool
    watch: Any = None  # what computes the loss of the images that go through, too, in training's evaluations

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        device: str | torch.device | None,
        dtype: torch.dtype | str | None,
        *,
        channels_last: bool,
        compile: bool,
    ):
        if isinstance(dtype, str):
            dtype = getattr(torch, one_of(dtype, ("float32", "float16", "bfloat16"), "dtype"))
        try:
            self.model = model.to(device=device, dtype=dtype) if device is not None or dtype is not None else model
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"cannot compute on {device!r}: {str(error).splitlines()[0]}", "a device of this machine",
                            "device=None takes the best there is") from error
        self.channels_last = channels_last
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compile:
            self.model.compile()
        self.processor = processor
        self.family = FAMILIES.get(getattr(model.config, "model_type", None))
        self._mode = EvaluationMode(self.model)

    def _logits(self, images: Sequence[np.ndarray], whole: bool) -> Tensor:
        """Logits of images of one size: whole ones as the processor wants them, or windows as they are."""
        with self._mode.inference():
            pixel_values = self._pixel_values(images, resize=whole or self.resizes_windows)
            if self.tta:
                logits = averaged_logits(self._network, pixel_values, self.tta, patch_size(self.model.config))
            else:
                logits = self._network(pixel_values)
            self._refuse_nan(logits)
        return logits

    @staticmethod
    def _refuse_nan(logits: Tensor) -> None:
        if logits.sum().isnan() and logits.isnan().any():  # the sum is cheap, and NaN too where infinities cancel
            raise UserError("the network gives NaN instead of class scores",
                            fix="its weights diverged in training or are damaged; or its numbers are too large for "
                            "half precision: dtype float32")

    @property
    def _gives_scores(self) -> bool:
        """Whether what stands for logits is linear in probabilities: the masks of each class, added up. Where windows
        or views are averaged by their probabilities, it is their logarithm."""
        return self.family is not None and self.family.predicts_masks and not (self.tile or self.tta)

    def _pixel_values(self, images: Sequence[np.ndarray], resize: bool = True) -> Tensor:
        # Cropping loses pixels, and where a processor pads is its secret: `_pad` does that in the open.
        unwanted = ("do_center_crop", "do_pad") if resize else ("do_center_crop", "do_pad", "do_resize")
        off = {key: False for key in unwanted if getattr(self.processor, key, None)}
        kinds = [np.float32 if image.dtype == np.uint16 else image.dtype for image in images]
        images = [np.require(image, kind, "W") for image, kind in zip(images, kinds, strict=True)]  # torch warns else
        values = self.processor(list(images), input_data_format="channels_last", **off)["pixel_values"]
        values = [torch.as_tensor(value) for value in values]
        pixel_values = values[0][None] if len(values) == 1 else torch.stack(values)  # one image is not copied
        parameter = next(self.model.parameters())
        return pixel_values.to(parameter.device, parameter.dtype)

    def _network(self, pixel_values: Tensor) -> Tensor:
        """Logits of pixel values, padded to what the network can take; they lie on what was not padded."""
        outputs, padded, content = self._forward(pixel_values)
        if self.family is not None and self.family.predicts_masks:
            logits = self.family.read(outputs).semantic_scores()
            logits = logits if self._gives_scores else logits.clamp(min=1e-12).log()
        else:
            logits = outputs.logits
        if padded != content:
            whole = F.interpolate(logits.float(), size=padded, mode="bilinear", align_corners=False)
            logits = whole[..., : content[0], : content[1]]
        return logits

    def _forward(self, pixel_values: Tensor) -> tuple[Any, tuple[int, int], tuple[int, int]]:
        """What the model returns, the (height, width) that it was given, and that of the image in it."""
        padded, content = self._pad(pixel_values)
        if self.channels_last:
            padded = padded.contiguous(memory_format=torch.channels_last)
        asked = self.family.ask(self.model, self.task, len(padded)) if self.family and self.family.ask else {}
        outputs = self.watch.forward(padded, content, asked) if self.watch else self.model(pixel_values=padded, **asked)
        return outputs, tuple(padded.shape[-2:]), content

    def _pad(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad right and bottom by zeros, the mean, to what the processor would pad to and networks can take."""
        height, width = pixel_values.shape[-2:]
        pads = getattr(self.processor, "do_pad", None)
        step = (getattr(self.processor, "size_divisor", None) if pads else None) or 1
        if self.family is not None:
            step = math.lcm(step, self.family.step(self.model.config))
        least = (getattr(self.processor, "pad_size", None) if pads else None) or {"height": 1, "width": 1}
        if self.family is not None and self.family.keeps_aspect:  # then there is one size
            least = dict(zip(("height", "width"), self.family.input_size(self.model.config), strict=True))
        target = [
            -(-max(size, least[side], _LEAST_PIXELS) // step) * step
            for size, side in ((height, "height"), (width, "width"))
        ]
        return F.pad(pixel_values, (0, target[1] - width, 0, target[0] - height)), (height, width)


def patch_size(config: Any) -> int:
    """Tells what images should be a multiple of, since a network of patches leaves out what is over.

    Args:
        config: Of the network.

    Returns:
        Pixels.
    """
    sizes = [getattr(part, "patch_size", None) for part in (config, getattr(config, "backbone_config", None))]
    return next((size for size in sizes if isinstance(size, int)), 1)


def by_shape(images: Sequence[np.ndarray]) -> dict[tuple[int, ...], list[int]]:
    """Groups images that can be computed together.

    Args:
        images: (H, W, C) arrays.

    Returns:
        By shape, the positions of the images that have it.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        members.setdefault(image.shape, []).append(i)
    return members

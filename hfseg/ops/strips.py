"""A few rows at a time of logits that are upsampled bilinearly, and of the gradient that comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_ELEMENTS = {"cpu": 1_000_000}  # upsampled logits that exist at a time: on CPU about what its caches hold
_ELEMENTS_ELSEWHERE = 16_000_000  # on GPU enough to fill it


@dataclass(frozen=True)
class Strip:
    """Some rows of the output, and what is needed to go there and back.

    Args:
        rows: Output rows.
        source: The coarse rows that they are made of.
        mix: (R, r), the weights of the coarse rows in the output rows.
        width: Of the output, W.
    """

    rows: slice
    source: slice
    mix: Tensor
    width: int

    def upsampled(self, logits: Tensor) -> Tensor:
        """Upsamples an image's logits to these rows.

        Args:
            logits: (C, h, w).

        Returns:
            (R, C, W).
        """
        coarse = logits[:, self.source].transpose(0, 1)
        wide = F.interpolate(coarse, size=self.width, mode="linear", align_corners=False)
        return torch.mm(self.mix, wide.flatten(1)).view(len(self.mix), *wide.shape[1:])

    def upsampled_with_infinities(self, logits: Tensor) -> Tensor:
        """Does the same for logits that may be infinite or NaN: a weight of 0 then means that a row is not there.

        Args:
            logits: (C, h, w).

        Returns:
            (R, C, W), NaN where NaN or both infinities reach.
        """
        coarse = logits[:, self.source].transpose(0, 1)
        left, shares = source_positions(logits.shape[2], self.width, str(logits.dtype).split(".")[1])
        right = np.minimum(left + 1, logits.shape[2] - 1)
        sides = zip((left, right), torch.from_numpy(shares).to(logits.device).unbind(1), strict=True)
        wide = sum(torch.where(share > 0, share * coarse[..., side], 0) for side, share in sides)
        return torch.stack([torch.where(share > 0, share * wide, 0).sum(0) for share in self.mix[:, :, None, None]])

    def add_gradient(self, slope: Tensor, gradient: Tensor) -> None:
        """Brings the gradient of these rows down to the logits' size.

        Args:
            slope: (R, C, W), with respect to the upsampled logits.
            gradient: (C, h, w), added to.
        """
        rows, classes, width = self.mix.shape[1], slope.shape[1], gradient.shape[2]
        wide = torch.mm(self.mix.t(), slope.flatten(1)).view(rows, classes, self.width)
        coarse = torch.ops.aten.upsample_linear1d_backward(wide, [self.width], [rows, classes, width], False, None)
        gradient[:, self.source] += coarse.transpose(0, 1)


def strips_of(classes: int, coarse_rows: int, size: tuple[int, int], like: Tensor) -> Iterator[Strip]:
    """Cuts the upsampled logits of an image into strips that fit the cache.

    Args:
        classes: Number of classes.
        coarse_rows: Height of the logits.
        size: (height, width) of the output.
        like: A tensor of the device and float type to compute in.

    Yields:
        The strips, from the top.

    Example:
        >>> logits = torch.rand(2, 3, 4)
        >>> parts = [strip.upsampled(logits) for strip in strips_of(2, 3, (9, 8), logits)]
        >>> torch.cat(parts).shape
        torch.Size([9, 2, 8])
    """
    height, width = size
    upper, shares = source_positions(coarse_rows, height, str(like.dtype).split(".")[1])
    lower = np.minimum(upper + 1, coarse_rows - 1)
    budget = _ELEMENTS.get(like.device.type, _ELEMENTS_ELSEWHERE)
    step = max(1, budget // (classes * width))
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        first, last = int(upper[rows.start]), int(lower[rows.stop - 1])
        mix = np.zeros((rows.stop - rows.start, last - first + 1), shares.dtype)
        number = np.arange(len(mix))
        mix[number, upper[rows] - first] = shares[rows, 0]
        mix[number, lower[rows] - first] += shares[rows, 1]
        yield Strip(rows, slice(first, last + 1), torch.from_numpy(mix).to(like.device), width)


def source_positions(inputs: int, outputs: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Says where the pixels of an output lie in the input, as `interpolate(align_corners=False)` computes it.

    Args:
        inputs: Pixels along an axis of the input.
        outputs: Pixels along that axis of the output.
        dtype: Float type to compute in.

    Returns:
        (outputs,) the input pixel before each, and (outputs, 2) the weights of that one and of the next.

    Example:
        >>> source_positions(2, 4, "float32")[1][:, 1].tolist()
        [0.0, 0.25, 0.75, 0.25]
    """
    real = np.dtype(dtype).type
    scale = real(inputs) / real(outputs)
    at = np.maximum(scale * (np.arange(outputs, dtype=dtype) + real(0.5)) - real(0.5), real(0))
    before = np.minimum(at.astype(np.int64), inputs - 1)
    share = np.clip(at - before.astype(dtype), real(0), real(1))
    return before, np.stack([real(1) - share, share], axis=1)

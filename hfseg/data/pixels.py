"""What augmentation does to pixels, without a draw: images are (C, H, W), maps (H, W)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad


def workable(image: Tensor) -> Tensor:
    """The image in a type that v2's kernels know."""
    return image if image.dtype == torch.uint8 or image.is_floating_point() else image.float()


def recolour(image: Tensor, brightness: float, contrast: float, saturation: float, turn: float) -> Tensor:
    """Brightness, contrast and, on three channels, saturation and hue, turned by radians: one linear map of colours.

    Hue is turned in the chroma plane of YIQ, which is linear; HSV's takes ten times as long.
    """
    channels = image.shape[0]
    values = image.reshape(channels, -1).to(torch.promote_types(image.dtype, torch.float32))
    centre = values.mean(1, keepdim=True)
    if channels == 3:
        # Rows: luma, I, Q of the NTSC standard.
        yiq = values.new_tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
        chroma = values.new_tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        colours = torch.linalg.inv(yiq) @ chroma @ yiq
        centre = (yiq[:1] @ centre).expand(3, 1)
        values = torch.addmm(
            (brightness * (1 - contrast)) * centre, (brightness * contrast) * colours, values
        )
    else:
        values = brightness * (contrast * values + (1 - contrast) * centre)
    return stored_as(image.dtype, values).reshape(image.shape)


def blur(image: Tensor, sigma: float, reach: int) -> Tensor:
    """v2's Gaussian blur, as one pass down and one across: 14 products a pixel in place of 49."""
    # The span of v2's kernel: its last taps lie at reach * sqrt(1/2) pixels.
    weights = torch.linspace(-reach, reach, 2 * reach + 1).div(math.sqrt(2) * sigma).square().neg().softmax(0).tolist()
    values = pad(image.to(torch.promote_types(image.dtype, torch.float32))[None], [reach] * 4, mode="reflect")[0]
    for axis in (1, 2):
        length = image.shape[axis]
        total = values.narrow(axis, 0, length) * weights[0]
        for step, weight in enumerate(weights[1:], 1):
            total.add_(values.narrow(axis, step, length), alpha=weight)
        values = total
    return stored_as(image.dtype, values)


def sharpen(image: Tensor, factor: float) -> Tensor:
    """v2's sharpening: away from the mean of the 3 x 3 pixels around, in which the middle counts five times."""
    if min(image.shape[-2:]) <= 2:
        return image
    values = image.to(torch.promote_types(image.dtype, torch.float32), copy=True)
    low, high = (0, 255) if image.dtype == torch.uint8 else values.aminmax()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    inner = values[:, 1:-1, 1:-1]
    blurred = (rows[:, :, :-2] + rows[:, :, 1:-1]).add_(rows[:, :, 2:]).add_(inner, alpha=4).mul_(1 / 13)
    inner.mul_(factor).add_(blurred, alpha=1 - factor)
    return stored_as(image.dtype, values.clamp_(low, high))


def rotate(image: Tensor, semantic_map: Tensor, angle: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Turns by `angle` degrees against the clock and keeps the middle of `size`, sampling nothing beyond it.

    v2 turns all of the window, with a mask of what is inside, of which there is no need: the window was cut so large
    that the middle lies inside it.
    """
    (height, width), (rows, columns) = image.shape[-2:], size
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # float32 holds every id below 2^24 exactly.
    exact = torch.float32 if semantic_map.dtype == torch.int16 else torch.float64
    x = torch.arange(columns, dtype=exact) + ((width - columns) // 2 + (1 - width) / 2)
    y = torch.arange(rows, dtype=exact)[:, None] + ((height - rows) // 2 + (1 - height) / 2)
    across = torch.complex(x * (2 * cos / width), x * (2 * sin / height))
    down = torch.complex(y * (-2 * sin / width), y * (2 * cos / height))
    grid = torch.view_as_real(across + down)[None]  # (x, y) of every pixel, in one addition
    sample = partial(grid_sample, padding_mode="border", align_corners=False)
    ids = sample(semantic_map[None, None].to(exact), grid, mode="nearest")[0, 0]
    values = image[None].to(torch.promote_types(image.dtype, torch.float32))
    return stored_as(image.dtype, sample(values, grid.to(values.dtype))[0]), ids.to(semantic_map.dtype)


def packed(image: Tensor) -> Tensor:
    """A window of an image with its channels innermost, copied row by row: v2 would copy it byte by byte."""
    if image.shape[0] == 1 or image.stride(0) != 1 or image.is_contiguous():
        return image
    return torch.from_numpy(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)


def stored_as(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Values in the type of an image; numpy casts to bytes in a quarter of torch's time."""
    if dtype != torch.uint8:
        return values.to(dtype)
    return torch.from_numpy(values.clamp_(0, 255).round_().numpy().astype(np.uint8))


def put(into: Tensor, values: Tensor, where: np.ndarray) -> Tensor:
    """A copy with other values at some pixels; `torch.where` takes five times as long on bytes."""
    result = into.clone(memory_format=torch.contiguous_format)
    np.copyto(result.numpy(), values.numpy(), where=where)
    return result


def in_unit_range(image: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a kernel channel by channel; v2 wants one or three channels, and floats between 0 and 1."""
    if image.dtype == torch.uint8:
        return operation(image[:, None])[:, 0]
    low, high = image.aminmax()
    if not high > low:
        return image
    return operation((image[:, None] - low) / (high - low))[:, 0] * (high - low) + low


def resize_map(semantic_map: Tensor, height: int, width: int) -> Tensor:
    """Nearest by indexing: exact for every id, and about the same pixel centres as the bilinear image.

    v2 resizes masks through float32, and by legacy `nearest`, which lies half a pixel off.
    """
    ids = semantic_map.numpy()
    for axis, size in ((1, width), (0, height)):
        length = ids.shape[axis]
        if size != length:
            ids = ids.take((2 * np.arange(size) + 1) * length // (2 * size), axis)
    return torch.from_numpy(ids)

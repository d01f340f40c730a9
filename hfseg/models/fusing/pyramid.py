"""Convolutions of upsampled maps, without upsampling them first: most of the work in heads of many kinds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def convolve_upsampled(levels: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """Returns a 3x3 convolution of the channels of all levels, each upsampled to the size of the first.

    A convolution is a sum over its taps of a 1x1 convolution and a shift. The 1x1 convolutions commute with the
    upsampling, so they run at a level's own size, where there are fewer positions. What is left, upsampling and shift,
    is the same for every channel and apart for rows and columns: two matrix products.

    Args:
        levels: (B, C_i, H_i, W_i) maps, the first (B, C_0, H, W) as large as the result.
        weight: (D, sum of C_i, 3, 3), with zero padding of 1, a stride of 1 and no bias.

    Returns:
        (B, D, H, W), channels last: `conv2d(cat([up(level) for level in levels], 1), weight, padding=1)`, where `up` is
        bilinear without aligned corners.

    Example:
        >>> levels, weight = [torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4)], torch.randn(5, 5, 3, 3)
        >>> up = F.interpolate(levels[1], size=(8, 8), mode="bilinear", align_corners=False)
        >>> plain = F.conv2d(torch.cat([levels[0], up], 1), weight, padding=1)
        >>> torch.allclose(convolve_upsampled(levels, weight), plain, atol=1e-4)
        True
    """
    full, *smaller = levels
    batch, _, height, width = full.shape
    slices = weight.split([level.shape[1] for level in levels], dim=1)
    by_row, upsampled_columns = [], []
    for level, part in zip(smaller, slices[1:]):
        rows, columns = (_upsample_and_shift(*sides, part) for sides in zip(level.shape[2:], (height, width)))
        by_row += rows
        # (W, W_i x 3): position before tap, as the products below leave them.
        by_column = torch.stack(columns, dim=2).flatten(1).expand(batch * level.shape[2], -1, -1)
        positions = level.permute(0, 2, 3, 1)
        for row in range(3):
            taps = part[:, :, row].permute(2, 0, 1).flatten(0, 1)  # (3 D, C_i)
            mixed = F.linear(positions, taps).reshape(batch * level.shape[2], level.shape[3] * 3, -1)
            upsampled_columns.append(torch.bmm(by_column, mixed).view(batch, level.shape[2], -1))
    result = F.conv2d(full, slices[0], padding=1)
    result = result.permute(0, 2, 3, 1).reshape(batch, height, -1)
    if smaller:
        # Under autocast the matrices still have the data type of the parameters.
        by_row = torch.cat(by_row, dim=1).to(result.dtype).expand(batch, -1, -1)
        result = result.baddbmm_(by_row, torch.cat(upsampled_columns, dim=1).to(result.dtype))
    return result.view(batch, height, width, -1).permute(0, 3, 1, 2)


def project_upsampled(
    levels: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], bias: torch.Tensor | None, size: Sequence[int]
) -> torch.Tensor:
    """Returns a 1x1 convolution of the channels of all levels, each resized to one size.

    The convolution acts on channels and the resizing on positions, so they commute: each is done where there are fewer
    positions.

    Args:
        levels: (B, C_i, H_i, W_i) maps, the smallest first: the bias costs least there, and resizing leaves a constant
            as it is.
        weights: (D, C_i) of each.
        bias: (D), or None.
        size: (height, width) of the result.

    Returns:
        (B, D, H, W), channels last: the sum of what `weights` make of the maps, resized bilinearly without aligned
        corners.

    Example:
        >>> level, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2)
        >>> plain = F.conv2d(F.interpolate(level, size=(8, 8), mode="bilinear"), weight[:, :, None, None])
        >>> torch.allclose(project_upsampled([level], [weight], None, (8, 8)), plain, atol=1e-5)
        True
    """
    result = None
    for level, weight in zip(levels, weights, strict=True):
        if level.shape[2] * level.shape[3] > size[0] * size[1]:
            level = F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        # Channels last: a linear map is fastest there on the CPU, and so are upsampling and its backward.
        mixed = F.linear(level.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        bias = None
        if mixed.shape[2:] != tuple(size):
            mixed = F.interpolate(mixed, size=size, mode="bilinear", align_corners=False)
        # In place, but into a tensor of this function that no backward reads.
        result = mixed if result is None else result.add_(mixed)
    return result


def pyramid_levels(head: nn.Module, encoder_hidden_states: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the maps that the plain heads upsample and concatenate: the first half of their forward.

    Args:
        head: A head of UPerNet, BEiT or Data2Vec-Vision.
        encoder_hidden_states: (B, C_i, H_i, W_i) maps, the largest first.

    Returns:
        (B, D, H_i, W_i) maps, the largest first.
    """
    levels = [lateral(encoder_hidden_states[i]) for i, lateral in enumerate(head.lateral_convs)]
    levels.append(head.psp_forward(encoder_hidden_states))
    for i in range(len(levels) - 1, 0, -1):
        levels[i - 1] = levels[i - 1] + F.interpolate(
            levels[i], size=levels[i - 1].shape[2:], mode="bilinear", align_corners=False
        )
    return [convolution(level) for convolution, level in zip(head.fpn_convs, levels)] + levels[-1:]


def example_pyramid(channels: list[int], like: torch.Tensor, side: int = 21) -> tuple[tuple, dict]:
    """Returns random maps of odd sizes as arguments of a head, each half of the one before, rounded up.

    Args:
        channels: The channels of each map.
        like: A parameter, for the data type and the device.
        side: Height of the first map.

    Returns:
        Positional arguments and keyword arguments.
    """
    sizes, maps = (side, side - 4), []
    for count in channels:
        maps.append(torch.randn(2, count, *sizes, dtype=like.dtype, device=like.device))
        sizes = tuple((side + 1) // 2 for side in sizes)
    return (maps,), {}


def _upsample_and_shift(side: int, target: int, like: torch.Tensor) -> list[torch.Tensor]:
    """Returns, for the taps before, at and after a position, the (target, side) matrix that upsamples and shifts."""
    unit = torch.eye(side, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32, device=like.device)
    upsample = F.interpolate(unit[None], size=target, mode="linear", align_corners=False)[0].T.to(like.dtype)
    padded = F.pad(upsample, (0, 0, 1, 1))
    return [padded[tap : tap + target] for tap in range(3)]

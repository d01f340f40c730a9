"""Multi-scale deformable attention without its samples: on the CPU one compiled pass forward and one back.

The source samples every level with `grid_sample`, keeps (heads, head_dim, queries, points) of it, multiplies by the
attention weights and adds up. Here each query's sum is made as its points are read, and the pass back reads them again,
so only value, locations and weights are kept. Same function, same zero padding (`align_corners=False`).

Source: Zhu et al., Deformable DETR, 2021, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hfseg.models.fusing.guards import ordinary
from hfseg.ops.compiled import compiled, share_out

_FAST = {"reassoc", "contract"}  # lets sums over channels be vectorised; infinities and NaN keep their meaning


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Adds up, for every query and head, bilinear samples of the value maps by their attention weights.

    Args:
        value: (batch, pixels of all levels, heads, head_dim).
        shapes: (height, width) of each level, in the order of the pixels.
        locations: (batch, queries, heads, levels, points, 2), x and y as shares of width and height; what lies outside
            a map counts as zero.
        weights: (batch, queries, heads, levels, points).

    Returns:
        (batch, queries, heads * head_dim).

    Example:
        >>> value = torch.arange(4.0).view(1, 4, 1, 1)
        >>> centre = torch.full((1, 1, 1, 1, 1, 2), 0.5)
        >>> deformable_attention(value, [(2, 2)], centre, torch.ones(1, 1, 1, 1, 1)).item()
        1.5
    """
    dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), weights.dtype)
    if torch.is_autocast_enabled("cpu"):  # where grid_sample, too, computes in float32
        dtype = torch.promote_types(dtype, torch.float32)
    full = dtype in (torch.float32, torch.float64)
    if value.device.type != "cpu" or not full or not ordinary(value, locations, weights):
        return _level_by_level(value, shapes, locations, weights)
    shapes = np.array([(int(height), int(width)) for height, width in shapes], dtype=np.int64)
    value, locations, weights = (tensor.to(dtype).contiguous() for tensor in (value, locations, weights))
    return _CompiledSampling.apply(value, shapes, locations, weights)


NOTE = "samples are added up as they are read, and read again in the pass back instead of kept"
# The layers of a transformers module of deformable attention, in Mask2Former and in OneFormer.
PARTS = dict.fromkeys(("sampling_offsets", "attention_weights", "value_proj", "output_proj"), nn.Linear)


def attend(
    module: nn.Module,
    queries: Tensor,
    pixels: Tensor,
    padding: Tensor | None,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    """Does the forward of a deformable attention module, from queries that hold their position embeddings.

    Args:
        module: Has the layers `PARTS`, `n_heads`, `n_levels`, `n_points` and `d_model`.
        queries: (batch, queries, d_model).
        pixels: (batch, pixels of all levels, d_model).
        padding: (batch, pixels of all levels), True where a pixel is none, or None.
        references: (batch, queries, levels, 2) points or (batch, queries, levels, 4) boxes, as shares of the map.
        shapes: (height, width) of each level.

    Returns:
        (batch, queries, d_model) and the weights (batch, queries, heads, levels, points).

    Raises:
        ValueError: When references are neither points nor boxes, or the shapes do not add up to the pixels.
    """
    batch, count, _ = queries.shape
    length = pixels.shape[1]
    if sum(height * width for height, width in shapes) != length:
        raise ValueError(f"the levels {list(shapes)} have another number of pixels than the {length} given")
    heads, levels, points = module.n_heads, module.n_levels, module.n_points
    value = module.value_proj(pixels)
    if padding is not None:
        value = value.masked_fill(padding[..., None], 0.0)
    value = value.view(batch, length, heads, module.d_model // heads)
    offsets = module.sampling_offsets(queries).view(batch, count, heads, levels, points, 2)
    weights = module.attention_weights(queries).view(batch, count, heads, levels * points)
    weights = F.softmax(weights, -1).view(batch, count, heads, levels, points)
    if references.shape[-1] == 2:
        sizes = torch.tensor([(width, height) for height, width in shapes], device=references.device)
        locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    elif references.shape[-1] == 4:
        centres, extents = references[:, :, None, :, None].split(2, dim=-1)
        locations = centres + offsets / points * extents * 0.5
    else:
        raise ValueError(f"Last dim of reference_points must be 2 or 4, but got {references.shape[-1]}")
    return module.output_proj(deformable_attention(value, shapes, locations, weights)), weights


def attention_example(module: nn.Module) -> dict:
    """Returns small inputs of a deformable attention module, by name, with points inside and outside of the maps."""
    weight = module.value_proj.weight
    like = {"device": weight.device, "dtype": weight.dtype}
    shapes = [(level + 3, level + 2) for level in range(module.n_levels)]
    length = sum(height * width for height, width in shapes)
    return {
        "hidden_states": torch.randn(2, length, module.d_model, **like),
        "attention_mask": torch.rand(2, length, device=weight.device) < 0.1,
        "encoder_hidden_states": torch.randn(2, length, module.d_model, **like),
        "position_embeddings": torch.randn(2, length, module.d_model, **like),
        "reference_points": torch.rand(2, length, module.n_levels, 2, **like),
        "spatial_shapes_list": shapes,
    }


def _level_by_level(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The source's computation, which holds one level's product at a time."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    total = 0
    for level, pixels in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        maps = pixels.flatten(2).transpose(1, 2).reshape(batch * heads, dim, *shapes[level])
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (samples * share).sum(-1)
    return total.view(batch, heads * dim, queries).transpose(1, 2).contiguous()


class _CompiledSampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, shapes: np.ndarray, locations: Tensor, weights: Tensor) -> Tensor:
        batch, queries, heads = locations.shape[:3]
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        total = value.new_empty(batch, queries, heads, value.shape[-1])
        arrays = [tensor.detach().numpy() for tensor in (value, locations, weights, total)]
        work = weights.numel() * value.shape[-1]

        # One head at a time: its share of the value maps stays in the cache.
        def share(image: int, first: int, last: int) -> None:
            _add_up(shapes, *(array[image] for array in arrays), first, last)

        share_out(share, heads, work, batch)
        return total.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        value, locations, weights = ctx.saved_tensors
        batch, _, heads, dim = value.shape
        results = (torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights))
        inputs = (value, locations, weights, gradient.contiguous().view(batch, -1, heads, dim))
        arrays = [tensor.detach().numpy() for tensor in (*inputs, *results)]

        # A head's gradient of the value maps belongs to one thread alone.
        def share(image: int, first: int, last: int) -> None:
            _spread(ctx.shapes, *(array[image] for array in arrays), first, last)

        share_out(share, heads, weights.numel() * dim, batch)
        return results[0], None, results[1], results[2]


@compiled(fastmath=_FAST)
def _add_up(shapes, value, locations, weights, total, first, last):
    queries, levels, points = weights.shape[0], weights.shape[2], weights.shape[3]
    dim = value.shape[2]
    kind = value.dtype.type  # numba would take float32 with an integer to float64, which is twice as slow
    for head in range(first, last):
        for query in range(queries):
            out = total[query, head]
            out[:] = 0
            start = 0
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                for point in range(points):
                    weight = weights[query, head, level, point]
                    x = locations[query, head, level, point, 0] * kind(width) - kind(0.5)
                    y = locations[query, head, level, point, 1] * kind(height) - kind(0.5)
                    if not (-1 < x < width and -1 < y < height):
                        if not (np.isfinite(x) and np.isfinite(y)):
                            out[:] = np.nan
                        continue
                    left, top = int(np.floor(x)), int(np.floor(y))
                    right_share, low_share = x - kind(left), y - kind(top)
                    left_share, top_share = kind(1) - right_share, kind(1) - low_share
                    corner = start + top * width + left
                    if left >= 0 and top >= 0 and left + 1 < width and top + 1 < height:
                        a, b = weight * left_share * top_share, weight * right_share * top_share
                        c, d = weight * left_share * low_share, weight * right_share * low_share
                        above_left, above_right = value[corner, head], value[corner + 1, head]
                        below_left, below_right = value[corner + width, head], value[corner + width + 1, head]
                        for i in range(dim):
                            out[i] += a * above_left[i] + b * above_right[i] + c * below_left[i] + d * below_right[i]
                        continue
                    for down in range(2):
                        for along in range(2):
                            if 0 <= top + down < height and 0 <= left + along < width:
                                share = (right_share if along else left_share) * (low_share if down else top_share)
                                part = weight * share
                                pixel = value[corner + down * width + along, head]
                                for i in range(dim):
                                    out[i] += part * pixel[i]
                start += height * width


@compiled(fastmath=_FAST)
def _spread(shapes, value, locations, weights, gradient, to_value, to_locations, to_weights, first, last):
    queries, levels, points = weights.shape[0], weights.shape[2], weights.shape[3]
    dim = value.shape[2]
    kind = value.dtype.type  # numba would take float32 with an integer to float64, which is twice as slow
    for head in range(first, last):
        for query in range(queries):
            grad = gradient[query, head]
            start = 0
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                for point in range(points):
                    weight = weights[query, head, level, point]
                    x = locations[query, head, level, point, 0] * kind(width) - kind(0.5)
                    y = locations[query, head, level, point, 1] * kind(height) - kind(0.5)
                    if not (-1 < x < width and -1 < y < height):
                        nothing = (x - x) + (y - y)  # NaN where a location is not a number
                        to_weights[query, head, level, point] = nothing
                        to_locations[query, head, level, point, :] = nothing
                        continue
                    left, top = int(np.floor(x)), int(np.floor(y))
                    right_share, low_share = x - kind(left), y - kind(top)
                    left_share, top_share = kind(1) - right_share, kind(1) - low_share
                    corner = start + top * width + left
                    at_a, at_b, at_c, at_d = kind(0), kind(0), kind(0), kind(0)  # gradient times value at the corners
                    if left >= 0 and top >= 0 and left + 1 < width and top + 1 < height:
                        a, b = weight * left_share * top_share, weight * right_share * top_share
                        c, d = weight * left_share * low_share, weight * right_share * low_share
                        above_left, above_right = value[corner, head], value[corner + 1, head]
                        below_left, below_right = value[corner + width, head], value[corner + width + 1, head]
                        to_a, to_b = to_value[corner, head], to_value[corner + 1, head]
                        to_c, to_d = to_value[corner + width, head], to_value[corner + width + 1, head]
                        for i in range(dim):
                            at_a += grad[i] * above_left[i]
                            at_b += grad[i] * above_right[i]
                            at_c += grad[i] * below_left[i]
                            at_d += grad[i] * below_right[i]
                        for i in range(dim):
                            to_a[i] += a * grad[i]
                            to_b[i] += b * grad[i]
                            to_c[i] += c * grad[i]
                            to_d[i] += d * grad[i]
                    else:
                        for down in range(2):
                            for along in range(2):
                                if 0 <= top + down < height and 0 <= left + along < width:
                                    share = (right_share if along else left_share) * (low_share if down else top_share)
                                    pixel = value[corner + down * width + along, head]
                                    to_pixel = to_value[corner + down * width + along, head]
                                    product = kind(0)
                                    for i in range(dim):
                                        product += grad[i] * pixel[i]
                                        to_pixel[i] += weight * share * grad[i]
                                    if down:
                                        if along:
                                            at_d = product
                                        else:
                                            at_c = product
                                    elif along:
                                        at_b = product
                                    else:
                                        at_a = product
                    above = left_share * at_a + right_share * at_b
                    below = left_share * at_c + right_share * at_d
                    to_weights[query, head, level, point] = top_share * above + low_share * below
                    along_x = top_share * (at_b - at_a) + low_share * (at_d - at_c)
                    to_locations[query, head, level, point, 0] = weight * kind(width) * along_x
                    to_locations[query, head, level, point, 1] = weight * kind(height) * (below - above)
                start += height * width

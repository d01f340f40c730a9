"""Masked attention of Mask2Former, OneFormer and EoMT: mask logits, where queries may not look, and the looking.

Masks of inner layers are there for two: the loss, and the attention of the next layer. The loss needs them whole. For
the attention they are resized to a few pixels, which commutes with the product that they are: where nobody else asks,
the pixel embedding is resized, once for all layers, and multiplied after. In the pass back, masks that no target was
matched to have no gradient, which is nine tenths of it where an image has ten objects for a hundred queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hfseg.models.fusing.guards import ordinary

UNSEEN_NOTE = "where nobody asks for the masks of inner layers, a resized pixel embedding is multiplied for attention"
OUTPUT = nn.modules.linear.NonDynamicallyQuantizableLinear  # what MultiheadAttention projects its output with


def mask_logits(embeddings: Tensor, pixels: Tensor) -> Tensor:
    """Multiplies mask embeddings by pixel embeddings; the pass back leaves out masks whose gradient is zero.

    Args:
        embeddings: (batch, queries, channels).
        pixels: (batch, channels, height, width).

    Returns:
        (batch, queries, height, width).

    Example:
        >>> mask_logits(torch.ones(1, 2, 3), torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 2, 4, 5])
    """
    # Elsewhere than on the CPU, to look for zeros would wait for the device.
    if pixels.device.type != "cpu" or not _full(embeddings, pixels):
        return torch.einsum("bqc,bchw->bqhw", embeddings, pixels)
    return _SparseProduct.apply(embeddings, pixels.flatten(2)).unflatten(2, pixels.shape[2:])


def _full(embeddings: Tensor, pixels: Tensor) -> bool:
    device = pixels.device.type
    return (
        embeddings.dtype == pixels.dtype
        and embeddings.dtype in (torch.float32, torch.float64)
        and ordinary(embeddings, pixels)
        and not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))
    )


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings: Tensor, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(embeddings, pixels)
        return torch.bmm(embeddings, pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        embeddings, pixels = ctx.saved_tensors
        to_embeddings = torch.zeros_like(embeddings)
        to_pixels = torch.empty_like(pixels)
        for image, used in enumerate((gradient != 0).any(-1)):
            [rows] = used.nonzero(as_tuple=True)
            part = gradient[image, rows]
            to_embeddings[image, rows] = part @ pixels[image].T
            torch.mm(embeddings[image, rows].T, part, out=to_pixels[image])
        return to_embeddings, to_pixels


def attention_mask(masks: Tensor, size: Sequence[int], heads: int) -> Tensor:
    """Says where each query may not look, from its mask: the source's values, bit by bit.

    Args:
        masks: (batch, queries, height, width) logits.
        size: (height, width) of the features that are attended to.
        heads: How often it is repeated.

    Returns:
        (batch * heads, queries, pixels), True where not to look.
    """
    resized = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False)
    outside = resized.sigmoid().flatten(2) < 0.5
    return outside[:, None].expand(-1, heads, -1, -1).flatten(0, 1)


class _Unseen:
    """How many more masks only the attention looks at, and the last pixel embedding at the sizes asked for so far."""

    def __init__(self, count: int):
        self.count = count
        self.pixels: Tensor | None = None
        self.resized: dict[tuple[int, ...], Tensor] = {}


_unseen: ContextVar[_Unseen | None] = ContextVar("hfseg_unseen_masks", default=None)


def unseen_masks(count: int) -> AbstractContextManager[None]:
    """Returns a context which tells mask predictors that nobody but the attention asks for the masks they make first.

    Args:
        count: How many; 0 for none.
    """
    return _told(count) if count else nullcontext()


@contextmanager
def _told(count: int) -> Iterator[None]:
    token = _unseen.set(_Unseen(count))
    try:
        yield
    finally:
        _unseen.reset(token)


def small_masks(embeddings: Tensor, pixels: Tensor, size: Sequence[int]) -> Tensor | None:
    """Makes the masks of an inner layer at the size that the attention needs, where nobody else asks for them.

    Args:
        embeddings: (batch, queries, channels).
        pixels: (batch, channels, height, width).
        size: (height, width) of the features that are attended to.

    Returns:
        What `mask_logits`, resized bilinearly, would be up to rounding: (batch, queries, *size). None where the whole
        masks are needed, which is said by `unseen_masks`.

    Example:
        >>> embeddings, pixels = torch.ones(1, 2, 3), torch.ones(1, 3, 8, 8)
        >>> with unseen_masks(1):
        ...     print(small_masks(embeddings, pixels, (2, 4)).shape, small_masks(embeddings, pixels, (2, 4)))
        torch.Size([1, 2, 2, 4]) None
    """
    if not _full(embeddings, pixels):
        return None
    state = _unseen.get()
    if state is None or not state.count:
        return None
    state.count -= 1
    if pixels is not state.pixels:
        state.pixels, state.resized = pixels, {}
    size = tuple(size)
    if size not in state.resized:
        state.resized[size] = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    return torch.einsum("bqc,bchw->bqhw", embeddings, state.resized[size])


def cross_attention(
    layer: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attends without keeping or averaging the attention weights.

    Args:
        layer: One that `why_not_attention` has nothing against.
        queries: (queries, batch, channels).
        keys: (pixels, batch, channels).
        values: (pixels, batch, channels).
        mask: (batch * heads, queries, pixels), True where not to look.

    Returns:
        (queries, batch, channels).
    """
    batch, heads = queries.shape[1], layer.num_heads
    parts = zip((queries, keys, values), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    split = [F.linear(*part).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for part in parts]
    if mask is not None:
        mask = mask.unflatten(0, (batch, heads))
        # On the CPU to compare is cheap, and a mask is kept for the pass back as numbers.
        if mask.device.type == "cpu" and torch.equal(mask, mask[:, :1].expand_as(mask)):
            mask = mask[:, :1]
        mask = ~mask
    states = F.scaled_dot_product_attention(*split, attn_mask=mask)
    return layer.out_proj(states.permute(2, 0, 1, 3).flatten(2))


def why_not_attention(layer: nn.MultiheadAttention) -> str | None:
    """Returns why `cross_attention` cannot stand in for a layer whose type is right, or None."""
    if layer.in_proj_weight is None or layer.in_proj_bias is None:
        return "has separate projections or no bias"
    if layer.bias_k is not None or layer.add_zero_attn or layer.batch_first:
        return "is another attention"
    return None


def in_residuals(
    states: Tensor, parts: Sequence[tuple[Callable[[Tensor], Tensor], nn.Module]], norm_first: bool
) -> Tensor:
    """Adds what each part makes of the states to them, and normalises before or after."""
    for part, norm in parts:
        states = states + part(norm(states)) if norm_first else norm(states + part(states))
    return states

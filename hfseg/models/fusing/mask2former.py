"""Mask2Former: deformable attention without its samples, a sparser gradient of the masks, a loss without repetitions.

Swin-T at 512x512: most of the source's time beside the matrix products is in these four places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mask2former import modeling_mask2former as source

from hfseg.models.fusing import mask_loss
from hfseg.models.fusing.deformable import NOTE, PARTS, attend, attention_example
from hfseg.models.fusing.framework import stand_in, why_not_plain


@stand_in
class FusedDeformableAttention(source.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """Adds up a query's samples as they are read."""

    note = NOTE
    reads = mask_loss.reads(source.__name__, ("forward", "with_pos_embed"), ["multi_scale_deformable_attention"])

    def why_not(self) -> str | None:
        return why_not_plain(self, PARTS)

    def example(self) -> tuple[tuple, dict]:
        return (), attention_example(self)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes_list: list[tuple[int, int]] | None = None,
        level_start_index: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if self.why_not():
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, position_embeddings,
                reference_points, spatial_shapes_list, level_start_index, output_attentions,
            )  # fmt: skip
        hidden_states = self.with_pos_embed(hidden_states, position_embeddings)
        return attend(self, hidden_states, encoder_hidden_states, attention_mask, reference_points, spatial_shapes_list)


@stand_in
class FusedDecoderLayer(source.Mask2FormerMaskedAttentionDecoderLayer):
    """Attends to the pixels without keeping the attention weights, where nobody asks for them."""

    note = "cross-attention weights are neither averaged nor kept, and the mask is one for all heads"
    reads = ("forward", "forward_post", "forward_pre", "with_pos_embed")

    def why_not(self) -> str | None:
        reason = why_not_plain(self, {"cross_attn": nn.MultiheadAttention, "cross_attn.out_proj": _OUTPUT})
        if reason is None and (self.cross_attn.in_proj_weight is None or self.cross_attn.in_proj_bias is None):
            reason = "cross_attn has separate projections or no bias"
        return reason

    def example(self) -> tuple[tuple, dict]:
        like = {"device": self.fc1.weight.device, "dtype": self.fc1.weight.dtype}
        queries, pixels = torch.randn(5, 2, self.embed_dim, **like), torch.randn(7, 2, self.embed_dim, **like)
        mask = torch.zeros(2 * self.cross_attn.num_heads, 5, 7, dtype=torch.bool, device=like["device"])
        mask[:, 1:, 2:5] = True
        places = torch.randn(7, 2, self.embed_dim, **like)
        return (queries, 0, None, [places], torch.randn_like(queries), [pixels], mask), {}

    def forward(
        self,
        hidden_states: Tensor,
        level_index: int | None = None,
        attention_mask: Tensor | None = None,
        position_embeddings: list[Tensor] | None = None,
        query_position_embeddings: Tensor | None = None,
        encoder_hidden_states: list[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, ...]:
        rates = (self.dropout, self.activation_dropout, self.cross_attn.dropout)
        if output_attentions or encoder_attention_mask is None or (self.training and any(rates)) or self.why_not():
            return super().forward(
                hidden_states, level_index, attention_mask, position_embeddings, query_position_embeddings,
                encoder_hidden_states, encoder_attention_mask, output_attentions,
            )  # fmt: skip

        def look(states: Tensor) -> Tensor:
            pixels = encoder_hidden_states[level_index]
            keys = self.with_pos_embed(pixels, position_embeddings[level_index])
            queries = self.with_pos_embed(states, query_position_embeddings)
            return _cross_attention(self.cross_attn, queries, keys, pixels, encoder_attention_mask)

        def exchange(states: Tensor) -> Tensor:
            return self.self_attn(hidden_states=states, position_embeddings=query_position_embeddings)[0]

        def think(states: Tensor) -> Tensor:
            return self.fc2(self.activation_fn(self.fc1(states)))

        norms = (self.cross_attn_layer_norm, self.self_attn_layer_norm, self.final_layer_norm)
        for part, norm in zip((look, exchange, think), norms, strict=True):
            if self.pre_norm:
                hidden_states = hidden_states + part(norm(hidden_states))
            else:
                hidden_states = norm(hidden_states + part(hidden_states))
        return (hidden_states,)


_OUTPUT = nn.modules.linear.NonDynamicallyQuantizableLinear  # what MultiheadAttention projects its output with


def _cross_attention(
    layer: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """(queries, batch, channels) from sequences first; the mask is (batch * heads, queries, keys), True = not there."""
    batch, heads = queries.shape[1], layer.num_heads
    parts = zip((queries, keys, values), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    split = [F.linear(*part).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for part in parts]
    mask = mask.unflatten(0, (batch, heads))
    # On the CPU to compare is cheap, and a mask is kept for the pass back as numbers.
    if mask.device.type == "cpu" and torch.equal(mask, mask[:, :1].expand_as(mask)):
        mask = mask[:, :1]
    states = F.scaled_dot_product_attention(*split, attn_mask=~mask)
    return layer.out_proj(states.permute(2, 0, 1, 3).flatten(2))


@stand_in
class FusedMaskPredictor(source.Mask2FormerMaskPredictor):
    """Repeats the attention mask over heads as bits, and sends back the gradient of matched masks only."""

    note = "the gradient skips masks that no target was matched to; attention masks are repeated as bits"
    reads = ("forward",)

    def why_not(self) -> str | None:
        return None  # the one child is called as before

    def example(self) -> tuple[tuple, dict]:
        weight = next(self.parameters())
        channels = self.mask_embedder.layers[-1].layers[0].out_features
        like = {"device": weight.device, "dtype": weight.dtype}
        return (torch.randn(5, 2, self.hidden_size, **like), torch.randn(2, channels, 12, 8, **like), (6, 4)), {}

    def forward(
        self, outputs: Tensor, pixel_embeddings: Tensor, attention_mask_target_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        masks = mask_loss.mask_logits(self.mask_embedder(outputs.transpose(0, 1)), pixel_embeddings)
        return masks, mask_loss.attention_mask(masks, attention_mask_target_size, self.num_heads)


@stand_in
class FusedMatcher(source.Mask2FormerHungarianMatcher):
    """Locates the points of an image once for all masks, and takes the costs from one matrix product."""

    note = mask_loss.MATCHER_NOTE
    reads = mask_loss.reads(source.__name__, ("forward",), mask_loss.COST_FUNCTIONS)
    why_not = mask_loss.why_not_matcher
    example = mask_loss.example
    forward = mask_loss.match


@stand_in
class FusedLoss(source.Mask2FormerLoss):
    """Samples matched masks and targets without a padded copy of all targets and without sorting points."""

    note = mask_loss.LOSS_NOTE
    reads = mask_loss.reads(source.__name__, mask_loss.LOSS_METHODS, mask_loss.LOSS_FUNCTIONS)
    why_not = mask_loss.why_not_loss
    loss_masks = mask_loss.mask_losses

    def example(self) -> tuple[tuple, dict]:
        return mask_loss.example(self, self.empty_weight, self.num_labels)

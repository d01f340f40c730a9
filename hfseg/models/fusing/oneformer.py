"""OneFormer: Mask2Former's deformable attention, masked attention and loss, under other names.

Its output holds the masks of all layers, so these cannot be left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.oneformer import modeling_oneformer as source

from hfseg.models.fusing import mask_loss
from hfseg.models.fusing.deformable import NOTE, PARTS, attend, attention_example
from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import why_not_plain
from hfseg.models.fusing.masked_attention import (
    OUTPUT,
    attention_mask,
    cross_attention,
    in_residuals,
    mask_logits,
    why_not_attention,
)


@stand_in
class FusedDeformableAttention(source.OneFormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """Adds up a query's samples as they are read."""

    note = NOTE
    reads = mask_loss.reads(source.__name__, ("forward", "with_pos_embed"), ["multi_scale_deformable_attention"])

    def why_not(self) -> str | None:
        return why_not_plain(self, PARTS)

    def example(self) -> tuple[tuple, dict]:
        inputs = attention_example(self)
        shapes = torch.tensor(inputs["spatial_shapes_list"], device=inputs["hidden_states"].device)
        return (), {**inputs, "spatial_shapes": shapes}

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        output_attentions: bool = False,
        spatial_shapes_list: list[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.why_not():
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, position_embeddings,
                reference_points, spatial_shapes, level_start_index, output_attentions, spatial_shapes_list,
            )  # fmt: skip
        hidden_states = self.with_pos_embed(hidden_states, position_embeddings)
        return attend(self, hidden_states, encoder_hidden_states, attention_mask, reference_points, spatial_shapes_list)


_ATTENTION_NOTE = "attention weights are neither averaged nor kept"


def _why_not_attention(module: nn.Module, *names: str) -> str | None:
    for name in names:
        reason = why_not_plain(module, {name: nn.MultiheadAttention, f"{name}.out_proj": OUTPUT})
        if reason is None and (found := why_not_attention(module.get_submodule(name))):
            reason = f"{name} {found}"
        if reason is not None:
            return reason
    return None


@stand_in
class FusedQueryLayer(source.OneFormerTransformerDecoderQueryTransformerDecoderLayer):
    """Attends to all pixels without the attention weights, which nobody is given."""

    note = _ATTENTION_NOTE
    reads = ("forward", "forward_post", "forward_pre", "with_pos_embed")

    def why_not(self) -> str | None:
        return _why_not_attention(self, "self_attn", "multihead_attn")

    def example(self) -> tuple[tuple, dict]:
        like = {"device": self.linear1.weight.device, "dtype": self.linear1.weight.dtype}
        width = self.linear1.in_features
        queries, pixels = torch.randn(5, 2, width, **like), torch.randn(7, 2, width, **like)
        return (queries, pixels), {"pos": torch.randn_like(pixels), "query_pos": torch.randn_like(queries)}

    def forward(
        self,
        output: Tensor,
        memory: Tensor,
        output_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        output_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        masks = (output_mask, memory_mask, output_key_padding_mask, memory_key_padding_mask)
        parts = (self.self_attn, self.multihead_attn)
        drops = self.training and any([*(part.dropout for part in parts), self.dropout.p])
        if drops or any(mask is not None for mask in masks) or self.why_not():
            return super().forward(output, memory, *masks, pos, query_pos)

        def exchange(states: Tensor) -> Tensor:
            queries = self.with_pos_embed(states, query_pos)
            return cross_attention(self.self_attn, queries, queries, states)

        def look(states: Tensor) -> Tensor:
            queries = self.with_pos_embed(states, query_pos)
            return cross_attention(self.multihead_attn, queries, self.with_pos_embed(memory, pos), memory)

        def think(states: Tensor) -> Tensor:
            return self.linear2(self.dropout(self.activation(self.linear1(states))))

        kept = ((exchange, self.dropout1), (look, self.dropout2), (think, self.dropout3))
        norms = (self.norm1, self.norm2, self.norm3)
        parts = [(lambda states, part=part, drop=drop: drop(part(states)), norm)
                 for (part, drop), norm in zip(kept, norms, strict=True)]  # fmt: skip
        return in_residuals(output, parts, self.normalize_before)


@stand_in
class FusedOneFormerDecoderLayer(source.OneFormerTransformerDecoderLayer):
    """Attends to the pixels without keeping the attention weights, where nobody asks for them."""

    note = f"{_ATTENTION_NOTE}, and the mask is one for all heads"
    reads = ("forward", *(f"{source.__name__}:OneFormerTransformerDecoderCrossAttentionLayer.{name}"
                          for name in ("forward", "forward_post", "forward_pre", "with_pos_embed")))  # fmt: skip

    def why_not(self) -> str | None:
        kind = source.OneFormerTransformerDecoderCrossAttentionLayer
        return why_not_plain(self, {"cross_attn": kind}) or _why_not_attention(self, "cross_attn.multihead_attn")

    def example(self) -> tuple[tuple, dict]:
        weight = self.cross_attn.multihead_attn.out_proj.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        queries, pixels = torch.randn(5, 2, self.embed_dim, **like), torch.randn(7, 2, self.embed_dim, **like)
        mask = torch.zeros(2 * self.cross_attn.multihead_attn.num_heads, 5, 7, dtype=torch.bool, device=weight.device)
        mask[:, 1:, 2:5] = True
        mask[:, 3] = True  # nowhere to look
        return (0, queries, [pixels], [torch.randn_like(pixels)], mask, torch.randn_like(queries)), {}

    def forward(
        self,
        index: int,
        output: Tensor,
        multi_stage_features: list[Tensor],
        multi_stage_positional_embeddings: list[Tensor],
        attention_mask: Tensor | None = None,
        query_embeddings: Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, ...]:
        layer = self.cross_attn
        drops = self.training and (layer.multihead_attn.dropout or layer.dropout.p)
        if output_attentions or attention_mask is None or drops or self.why_not():
            return super().forward(
                index, output, multi_stage_features, multi_stage_positional_embeddings, attention_mask,
                query_embeddings, output_attentions,
            )  # fmt: skip
        level = index % self.num_feature_levels
        pixels = multi_stage_features[level]
        keys = layer.with_pos_embed(pixels, multi_stage_positional_embeddings[level])
        # A query that may look nowhere looks everywhere.
        mask = attention_mask & ~attention_mask.all(-1, keepdim=True)

        def look(states: Tensor) -> Tensor:
            queries = layer.with_pos_embed(states, query_embeddings)
            return layer.dropout(cross_attention(layer.multihead_attn, queries, keys, pixels, mask))

        output = in_residuals(output, [(look, layer.norm)], layer.normalize_before)
        output, _ = self.self_attn(output, output_mask=None, output_key_padding_mask=None, query_pos=query_embeddings)
        return (self.ffn(output),)


@stand_in
class FusedOneFormerDecoder(source.OneFormerTransformerDecoder):
    """Repeats the attention mask over heads as bits, and sends back the gradient of matched masks only."""

    note = "the gradient skips masks that no target was matched to; attention masks are repeated as bits"
    reads = ("forward", "forward_prediction_heads")

    def why_not(self) -> str | None:
        replaced = "forward_prediction_heads" in self.__dict__
        return "its forward_prediction_heads was replaced" if replaced else None  # children are called as before

    def example(self) -> tuple[tuple, dict]:
        weight = self.query_input_projection.weight
        width, like = weight.shape[0], {"device": weight.device, "dtype": weight.dtype}
        embedder = nn.Embedding(5, width, **like)
        sizes = [(2, 3), (3, 4), (5, 4)]
        return (), {
            "task_token": torch.randn(1, 2, width, **like),
            "multi_stage_features": [torch.randn(h * w, 2, width, **like) for h, w in sizes],
            "multi_stage_positional_embeddings": [torch.randn(h * w, 2, width, **like) for h, w in sizes],
            "mask_features": torch.randn(2, weight.shape[1], 6, 8, **like),
            "query_features": torch.randn(2, width, 6, 8, **like),
            "query_embeddings": torch.randn(5, 2, width, **like),
            "query_embedder": embedder,
            "size_list": sizes,
        }

    def forward_prediction_heads(
        self, output: Tensor, mask_features: Tensor, attention_mask_target_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        states = self.decoder_norm(output).transpose(0, 1)
        masks = mask_logits(self.mask_embed(states), mask_features)
        return self.class_embed(states), masks, attention_mask(masks, attention_mask_target_size, self.num_heads)


@stand_in
class FusedOneFormerMatcher(source.OneFormerHungarianMatcher):
    """Locates the points of an image once for all masks, and takes the costs from one matrix product."""

    note = mask_loss.MATCHER_NOTE
    reads = mask_loss.reads(source.__name__, ("forward",), mask_loss.COST_FUNCTIONS)
    why_not = mask_loss.why_not_matcher
    example = mask_loss.example
    forward = mask_loss.match


@stand_in
class FusedOneFormerLoss(source.OneFormerLoss):
    """Samples matched masks and targets without a padded copy of all targets and without sorting points."""

    note = mask_loss.LOSS_NOTE
    reads = mask_loss.reads(source.__name__, mask_loss.LOSS_METHODS, mask_loss.LOSS_FUNCTIONS)
    why_not = mask_loss.why_not_loss
    loss_masks = mask_loss.mask_losses

    def example(self) -> tuple[tuple, dict]:
        positions, inputs = mask_loss.example(self, self.empty_weight, self.num_classes)
        nothing = {"contrastive_queries_logits": None, "text_queries": None, "calculate_contrastive_loss": False}
        return positions, {**inputs, **nothing}

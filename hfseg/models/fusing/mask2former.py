"""Mask2Former: deformable attention without its samples, a sparser gradient of the masks, a loss without repetitions,
and no masks of inner layers where nobody asks for them.

Swin-T at 512x512: most of the source's time beside the matrix products is in these places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.mask2former import modeling_mask2former as source

from hfseg.models.fusing import mask_loss
from hfseg.models.fusing.deformable import NOTE, PARTS, attend, attention_example
from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import ordinary, why_not_plain
from hfseg.models.fusing.masked_attention import (
    OUTPUT,
    UNSEEN_NOTE,
    attention_mask,
    cross_attention,
    in_residuals,
    mask_logits,
    small_masks,
    unseen_masks,
    why_not_attention,
)


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
        reason = why_not_plain(self, {"cross_attn": nn.MultiheadAttention, "cross_attn.out_proj": OUTPUT})
        if reason is None and (found := why_not_attention(self.cross_attn)):
            reason = f"cross_attn {found}"
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
            return cross_attention(self.cross_attn, queries, keys, pixels, encoder_attention_mask)

        def exchange(states: Tensor) -> Tensor:
            return self.self_attn(hidden_states=states, position_embeddings=query_position_embeddings)[0]

        def think(states: Tensor) -> Tensor:
            return self.fc2(self.activation_fn(self.fc1(states)))

        norms = (self.cross_attn_layer_norm, self.self_attn_layer_norm, self.final_layer_norm)
        parts = list(zip((look, exchange, think), norms, strict=True))
        return (in_residuals(hidden_states, parts, self.pre_norm),)


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
        embeddings = self.mask_embedder(outputs.transpose(0, 1))
        small = small_masks(embeddings, pixel_embeddings, attention_mask_target_size)
        masks = mask_logits(embeddings, pixel_embeddings) if small is None else small
        return masks, attention_mask(masks, attention_mask_target_size, self.num_heads)


@stand_in
class FusedMask2Former(source.Mask2FormerForUniversalSegmentation):
    """Says to its mask predictor when only the last masks are asked for: in inference without auxiliary logits."""

    note = UNSEEN_NOTE
    reads = (
        "forward", "get_auxiliary_logits", f"{source.__name__}:Mask2FormerModel.forward",
        f"{source.__name__}:Mask2FormerTransformerModule.forward",
        f"{source.__name__}:Mask2FormerMaskedAttentionDecoder.forward",
    )  # fmt: skip
    example = None  # computes nothing itself

    def why_not(self) -> str | None:
        return why_not_plain(self, _AROUND_MASKS)

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> source.Mask2FormerForUniversalSegmentationOutput:
        auxiliary = self.config.output_auxiliary_logits if output_auxiliary_logits is None else output_auxiliary_logits
        asked = auxiliary or self.training or (mask_labels is not None and class_labels is not None)
        seen = asked or not ordinary(pixel_values) or self.why_not()
        with unseen_masks(0 if seen else len(self.model.transformer_module.decoder.layers)):
            return super().forward(
                pixel_values, mask_labels, class_labels, pixel_mask, output_hidden_states, output_auxiliary_logits,
                output_attentions, return_dict, **kwargs,
            )  # fmt: skip


# Whoever watches one of these may see the masks.
_AROUND_MASKS = {
    "model": source.Mask2FormerModel,
    "model.transformer_module": source.Mask2FormerTransformerModule,
    "model.transformer_module.decoder": source.Mask2FormerMaskedAttentionDecoder,
    "model.transformer_module.decoder.mask_predictor": (source.Mask2FormerMaskPredictor, FusedMaskPredictor),
}


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
    example = mask_loss.loss_example

"""OneFormer: Mask2Former's deformable attention and loss, under other names."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.oneformer import modeling_oneformer as source

from hfseg.models.fusing import mask_loss
from hfseg.models.fusing.deformable import NOTE, PARTS, attend, attention_example
from hfseg.models.fusing.framework import stand_in, why_not_plain


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

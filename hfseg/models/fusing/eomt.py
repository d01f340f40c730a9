"""EoMT and EoMT-DINOv3: their loss, which is Mask2Former's, and inner masks that nobody asks for.

Their network is a plain vision transformer. Published checkpoints were trained until inference needs no masked
attention; one that is fine-tuned without that has masks in each of its last layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.models.eomt import modeling_eomt as source
from transformers.models.eomt_dinov3 import modeling_eomt_dinov3 as dinov3

from hfseg.models.fusing import mask_loss
from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import ordinary
from hfseg.models.fusing.masked_attention import UNSEEN_NOTE, small_masks, unseen_masks

_READS = ("forward", "predict")


def _unseen(model: nn.Module, pixel_values: Tensor, *labels: list[Tensor] | None) -> int:
    """How many masks of inner layers there will be that nobody but the attention looks at."""
    if model.training or all(one is not None for one in labels) or not ordinary(pixel_values) or model.why_not():
        return 0
    return int((model.attn_mask_probs > 0).sum())


def _predict(model: nn.Module, states: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Masks and classes; where only the attention looks at the masks, they have its size, to which the source would
    resize them."""
    queries, pixels = states[:, : model.config.num_queries], states[:, model.config.num_queries + prefix :]
    pixels = model.upscale_block(pixels.transpose(1, 2).unflatten(2, model.grid_size))
    embeddings = model.mask_head(queries)
    masks = small_masks(embeddings, pixels, model.grid_size)
    if masks is None:
        masks = torch.einsum("bqc,bchw->bqhw", embeddings, pixels)
    return masks, model.class_predictor(queries)


def _forward_of(original: type[nn.Module]) -> Callable:
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        patch_offsets: list[Tensor] | None = None,
        **kwargs,
    ):
        given = {"mask_labels": mask_labels, "class_labels": class_labels, "patch_offsets": patch_offsets}
        with unseen_masks(_unseen(self, pixel_values, mask_labels, class_labels)):
            return original.forward(self, pixel_values, **given, **kwargs)

    return forward


def _why_not(model: nn.Module) -> str | None:
    return "its predict was replaced" if "predict" in model.__dict__ else None


@stand_in
class FusedEomt(source.EomtForUniversalSegmentation):
    """Makes masks that only the attention looks at as small as it needs them."""

    note = UNSEEN_NOTE
    reads = _READS
    example = None  # `predict` is the source's, but for the size of the product
    why_not = _why_not

    forward = _forward_of(source.EomtForUniversalSegmentation)

    def predict(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return _predict(self, logits, self.embeddings.num_prefix_tokens)


@stand_in
class FusedEomtDinov3(dinov3.EomtDinov3ForUniversalSegmentation):
    """Makes masks that only the attention looks at as small as it needs them."""

    note = UNSEEN_NOTE
    reads = _READS
    example = None  # `predict` is the source's, but for the size of the product
    why_not = _why_not

    forward = _forward_of(dinov3.EomtDinov3ForUniversalSegmentation)

    def predict(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return _predict(self, logits, self.num_prefix_tokens)


@stand_in
class FusedEomtMatcher(source.EomtHungarianMatcher):
    """Locates the points of an image once for all masks, and takes the costs from one matrix product."""

    note = mask_loss.MATCHER_NOTE
    reads = mask_loss.reads(source.__name__, ("forward",), mask_loss.COST_FUNCTIONS)
    why_not = mask_loss.why_not_matcher
    example = mask_loss.example
    forward = mask_loss.match


@stand_in
class FusedEomtLoss(source.EomtLoss):
    """Samples matched masks and targets without a padded copy of all targets and without sorting points."""

    note = mask_loss.LOSS_NOTE
    reads = mask_loss.reads(source.__name__, mask_loss.LOSS_METHODS, mask_loss.LOSS_FUNCTIONS)
    why_not = mask_loss.why_not_loss
    loss_masks = mask_loss.mask_losses
    example = mask_loss.loss_example


@stand_in
class FusedEomtDinov3Matcher(dinov3.EomtDinov3HungarianMatcher):
    """Locates the points of an image once for all masks, and takes the costs from one matrix product."""

    note = mask_loss.MATCHER_NOTE
    reads = mask_loss.reads(dinov3.__name__, ("forward",), mask_loss.COST_FUNCTIONS)
    why_not = mask_loss.why_not_matcher
    example = mask_loss.example
    forward = mask_loss.match


@stand_in
class FusedEomtDinov3Loss(dinov3.EomtDinov3Loss):
    """Samples matched masks and targets without a padded copy of all targets and without sorting points."""

    note = mask_loss.LOSS_NOTE
    reads = mask_loss.reads(dinov3.__name__, mask_loss.LOSS_METHODS, mask_loss.LOSS_FUNCTIONS)
    why_not = mask_loss.why_not_loss
    loss_masks = mask_loss.mask_losses
    example = mask_loss.loss_example

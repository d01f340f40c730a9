"""EoMT and EoMT-DINOv3: their loss, which is Mask2Former's. Their network is a plain vision transformer."""

from __future__ import annotations

from transformers.models.eomt import modeling_eomt as source
from transformers.models.eomt_dinov3 import modeling_eomt_dinov3 as dinov3

from hfseg.models.fusing import mask_loss
from hfseg.models.fusing.framework import stand_in


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

    def example(self) -> tuple[tuple, dict]:
        return mask_loss.example(self, self.empty_weight, self.num_labels)


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

    def example(self) -> tuple[tuple, dict]:
        return mask_loss.example(self, self.empty_weight, self.num_labels)

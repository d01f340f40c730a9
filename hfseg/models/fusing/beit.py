"""BEiT's head: its last 3x3 convolution before the upsampling."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.beit.modeling_beit import BeitConvLayer, BeitUperHead

from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import is_convolution, why_not_plain
from hfseg.models.fusing.pyramid import convolve_upsampled, example_pyramid, pyramid_levels


@stand_in
class FusedBeitUperHead(BeitUperHead):
    """The head with its largest convolution done at each level's own resolution; see `convolve_upsampled`."""

    note = "the 3x3 convolution of all levels applied before their upsampling"
    reads = ("forward", "transformers.models.beit.modeling_beit:BeitConvLayer")

    def why_not(self) -> str | None:
        """Returns why the plain forward has to run, or None."""
        reason = why_not_plain(self, {"fpn_bottleneck": BeitConvLayer, "fpn_bottleneck.convolution": nn.Conv2d})
        if reason is None:
            convolution = self.fpn_bottleneck.convolution
            if not (is_convolution(convolution, 3) and convolution.bias is None):
                reason = "fpn_bottleneck has another convolution"
        return reason

    def example(self) -> tuple[tuple, dict]:
        """Returns maps of odd sizes."""
        return example_pyramid(self.in_channels, self.classifier.weight)

    def forward(self, encoder_hidden_states: list[torch.Tensor]) -> torch.Tensor:
        """Returns the logits of the plain head.

        Args:
            encoder_hidden_states: (B, C_i, H_i, W_i) maps, the largest first.

        Returns:
            (B, num_labels, H_0, W_0).
        """
        if self.why_not() is not None:
            return super().forward(encoder_hidden_states)
        bottleneck = self.fpn_bottleneck
        output = convolve_upsampled(pyramid_levels(self, encoder_hidden_states), bottleneck.convolution.weight)
        output = bottleneck.activation(bottleneck.normalization(output))
        return self.classifier(output).contiguous()

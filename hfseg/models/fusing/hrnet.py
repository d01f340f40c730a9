"""HRNet's head: its 1x1 convolution before the upsampling."""

from __future__ import annotations

import torch
from torch import nn

from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import is_convolution, why_not_plain
from hfseg.models.fusing.pyramid import example_pyramid, project_upsampled
from hfseg.models.networks.hrnet import HRNetHead


@stand_in
class FusedHRNetHead(HRNetHead):
    """The head with each branch's part of the convolution done at the branch's own resolution."""

    note = "the 1x1 convolution of all branches applied before their upsampling"
    reads = ("__init__", "forward")

    def why_not(self) -> str | None:
        """Returns why the plain forward has to run, or None."""
        reason = why_not_plain(self, {"0": nn.Conv2d})
        if reason is None and not is_convolution(self[0], 1):
            reason = "it has another convolution"
        return reason

    def example(self) -> tuple[tuple, dict]:
        """Returns branches of odd sizes."""
        return example_pyramid(list(self.channels), self[0].weight)

    def forward(self, branches: list[torch.Tensor]) -> torch.Tensor:
        """Returns what the plain head does.

        Args:
            branches: (B, C_i, H_i, W_i) maps, the largest first.

        Returns:
            (B, sum of C_i, H_0, W_0).
        """
        if self.why_not() is not None:
            return super().forward(branches)
        convolution, norm, activation = self
        weights = convolution.weight.flatten(1).split([branch.shape[1] for branch in branches], dim=1)
        mixed = project_upsampled(branches[::-1], weights[::-1], convolution.bias, branches[0].shape[2:])
        return activation(norm(mixed.contiguous()))

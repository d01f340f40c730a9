"""Train the head on frozen features."""

from __future__ import annotations

from torch import nn

from hfseg.models import Family


def feature_extraction(model: nn.Module, family: Family) -> None:
    """Freezes the backbone; its BatchNorm layers then stay in evaluation mode.

    Args:
        model: The network.
        family: Its record, which tells head from backbone.
    """
    for name, parameter in model.named_parameters():
        if not family.is_head(name):
            parameter.requires_grad_(False)

"""Fine-tune everything."""

from __future__ import annotations

from torch import nn

from hfseg.models import Family


def full(model: nn.Module, family: Family) -> None:
    """Leaves every parameter trainable.

    Args:
        model: The network.
        family: Its record.
    """

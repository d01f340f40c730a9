"""Train the head and the last stages of the backbone."""

from __future__ import annotations

from torch import nn

from hfseg.errors import UserError
from hfseg.models import Family
from hfseg.transfer.stages import backbone_stages


def partial(model: nn.Module, family: Family, stages: int) -> None:
    """Freezes the backbone but for its last stages; what is frozen stays in evaluation mode.

    Args:
        model: The network.
        family: Its record, which tells head from backbone.
        stages: How many of the last stages train.

    Raises:
        UserError: When the backbone has not that many.
    """
    order = backbone_stages(model, family)
    if not 1 <= stages <= len(order):
        raise UserError(f"transfer.stages is {stages}, and this backbone has {len(order)}", f"1 to {len(order)}")
    frozen = {name for names in order[: len(order) - stages] for name in names}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)

"""The bands that a network takes, and how a pretrained one is made to take others."""

from __future__ import annotations

import torch
from torch import nn

from hfseg.errors import UserError
from hfseg.models.load_report import LoadReport


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def input_channels(model: nn.Module) -> int:
    """Counts the bands that a network takes.

    Args:
        model: The network.

    Returns:
        Those of its first convolution.
    """
    return _first_convolution(model)[1].in_channels


def adapt_channels(model: nn.Module, channels: int, report: LoadReport) -> None:
    """Makes a network take another number of bands.

    Keeps the filters of the known bands, gives further ones their mean, and rescales all: a picture that is the same in
    every band gives the response that it gave before.

    Args:
        model: The network, changed in place.
        channels: Bands that it shall take.
        report: Gets a note.

    Raises:
        UserError: When its first convolution looks at each band by itself.
    """
    name, old = _first_convolution(model)
    if old.groups != 1:
        raise UserError(f"{report.name} takes {old.in_channels} bands and cannot be adapted to {channels}")
    was = old.in_channels
    mean = old.weight.detach().mean(1, keepdim=True)
    known = old.weight.detach() if channels > was else mean[:, :0]
    weight = torch.cat([known, mean.expand(-1, channels - known.shape[1], -1, -1)], 1) * (was / channels)
    # In place: it may be a convolution of a library's own kind, which pads by itself.
    old.weight, old.in_channels = nn.Parameter(weight), channels
    for part in (model.config, getattr(model.config, "backbone_config", None), *model.modules()):
        if isinstance(getattr(part, "num_channels", None), int):
            part.num_channels = channels
    model.config.num_channels = channels  # also where a family keeps it in the backbone's configuration alone
    report.notes.append(f"{name} adapted from {was} to {channels} bands")

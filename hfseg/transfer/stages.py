"""The stages of a backbone, in order: what `partial` counts."""

from __future__ import annotations

import re

from torch import nn

from hfseg.models import Family

_BLOCK = re.compile(r"(?<!\dx)\d+$")  # layer3 and stages.2, and not conv_3x3
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)


def backbone_stages(model: nn.Module, family: Family) -> list[list[str]]:
    """Sorts the parameters of a backbone into its stages.

    A stage is a numbered block: `layer3`, `stages.2`, `blocks.5`. Blocks of one number belong together (`patch_embed4`,
    `block4`). Single layers belong to the block before them, those at the start to the first. A plain list of layers,
    as VGG is, is cut where it pools.

    Args:
        model: The network.
        family: Its record, which tells head from backbone.

    Returns:
        Names of parameters, stage by stage, from the image to the head.

    Example:
        >>> from hfseg.models import family_of, load_model
        >>> model, _ = load_model("hfseg/unet", backbone="resnet18", weights="random")
        >>> stages = backbone_stages(model, family_of(model.config))
        >>> [names[0] for names in stages[:2]], len(stages)
        (['encoder.conv1.weight', 'encoder.layer2.0.conv1.weight'], 4)
    """
    parts = _parts("", model, family)
    blocks = any(kind == "block" for _, kind, _ in parts)
    stages: dict[int, list[str]] = {}
    waiting: list[str] = []
    current = None
    for name, kind, parameters in parts:
        if kind == "block":
            current = int(_BLOCK.search(name)[0])
        elif kind == "pooling" and not blocks and stages:
            current = None
        elif not blocks and current is None and parameters:
            current = len(stages)
        if not parameters:
            continue
        if current is None:
            waiting += parameters
        else:
            stages.setdefault(current, []).extend(parameters)
    ordered = [stages[number] for number in sorted(stages)] or [[]]
    ordered[0] = waiting + ordered[0]
    return [names for names in ordered if names]


def _parts(path: str, module: nn.Module, family: Family) -> list[tuple[str, str, list[str]]]:
    """(name, kind, parameters) of the blocks, layers and poolings of a backbone, in order."""
    own = [name for name, _ in module.named_parameters(path, recurse=False) if not family.is_head(name)]
    parts = [(path, "layer", own)] if own else []
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        parameters = [one for one, _ in child.named_parameters(inside) if not family.is_head(one)]
        if not parameters:
            if isinstance(child, _POOLINGS):
                parts.append((inside, "pooling", []))
        elif not any(True for _ in child.children()):
            parts.append((inside, "layer", parameters))
        elif path and _BLOCK.search(name):  # not the network itself, such as mobilenet_v2
            parts.append((inside, "block", parameters))
        else:
            parts += _parts(inside, child, family)
    return parts

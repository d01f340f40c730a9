"""A network and its forward pass without memory or arithmetic: does it work, and what does it cost?"""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig
from transformers.initialization import meta_device_safe_creation_ops

from hfseg.errors import UserError
from hfseg.models.configs import auto_class, config_errors
from hfseg.models.families import family_of
from hfseg.models.networks.framework import NetworkConfig
from hfseg.models.quiet import quiet_transformers


def dry_run(name: str, config: PreTrainedConfig, size: tuple[int, int]) -> tuple[nn.Module, int | None]:
    """Builds a network on the meta device and lets it compute the logits of one image.

    Args:
        name: What the user gave.
        config: What to build.
        size: (height, width) of the image.

    Returns:
        The network, without values, and its multiplications and additions, each counted; None for networks that
        propose masks, most of which depend on what they see.

    Raises:
        UserError: When it cannot be built, or not take such an image; some backbones of timm take one size only, and
            some do not pad.

    Example:
        >>> from transformers import SegformerConfig
        >>> model, operations = dry_run("segformer", SegformerConfig(), (64, 64))
        >>> next(model.parameters()).device.type, operations
        ('meta', 210722816)
    """
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)
    family = family_of(config)
    try:
        with quiet_transformers(), torch.device("meta"), torch.no_grad(), config_errors(name):
            try:
                with meta_device_safe_creation_ops():
                    model = auto_class(family).from_config(config).eval()
                if family.read is not None:
                    return model, None
                with FlopCounterMode(display=False) as counted:
                    model(pixel_values=torch.empty(1, getattr(config, "num_channels", 3), *size))
            except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                inner = getattr(config, "backbone_config", None)
                backbone = config.backbone if isinstance(config, NetworkConfig) else inner and inner.model_type
                if backbone is None:
                    raise
                reason = " ".join(str(error).split())[:200] or "its library does not say why"
                raise UserError(
                    f"{name} cannot use the backbone {backbone}: {reason}",
                    "a backbone for images of any size, such as resnet34 (for hfseg/dpt: vit_small_patch16_224)",
                    f"`hfseg models --backbone {backbone}` lists the networks that can; look at model.config, too",
                ) from error
    finally:
        log.setLevel(level)
    return model, counted.get_total_flops()

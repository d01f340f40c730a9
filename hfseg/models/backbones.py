"""Backbones by name, of transformers and of timm, for those networks of transformers that take any."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, PreTrainedConfig, TimmBackboneConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from hfseg.errors import UserError
from hfseg.models.networks.framework import IMAGENET_MEAN, IMAGENET_STD, Pretraining, copy_into
from hfseg.models.networks.weights import load_timm, pretrain

_ENCODER = "model.pixel_level_module.encoder"
HOSTS = {  # model types whose configuration holds any `backbone_config`, and where the network has what it builds
    "upernet": "backbone", "mask2former": _ENCODER, "maskformer": _ENCODER, "detr": "detr.model.backbone.model",
}  # fmt: skip
FREEZES_NORMS = ("detr",)  # by itself, and thereby lost the activations that timm keeps in norms which were not frozen
MAPS = 4  # of features that their heads read


def is_backbone_type(name: str) -> bool:
    """Returns whether a name stands for a kind of backbone, without weights.

    Args:
        name: What the user gave.

    Example:
        >>> is_backbone_type("dinov2"), is_backbone_type("facebook/dinov2-small")
        (True, False)
    """
    return name in MODEL_FOR_BACKBONE_MAPPING_NAMES and name in CONFIG_MAPPING


def is_timm(name: str) -> bool:
    """Returns whether a name is that of a network of timm, and neither a type of transformers nor a folder.

    Args:
        name: What the user gave.

    Example:
        >>> is_timm("tf_efficientnet_lite0"), is_timm("swin"), is_timm("facebook/dinov2-small")
        (True, False, False)
    """
    if is_backbone_type(name) or "/" in name or Path(name).is_dir():
        return False
    import timm

    return timm.is_model(name)


def backbone_config(name: str, hub: dict) -> PreTrainedConfig:
    """Returns the configuration of a backbone that gives four maps: its stages, or evenly spaced layers.

    Args:
        name: A model type such as `swin`, the hub id or folder of any checkpoint of one, or a network of timm.
        hub: Revision, token and trust.

    Returns:
        It, for `backbone_config` of a network.

    Raises:
        UserError: When transformers has no backbone of this type.
        OSError: When nothing is found under the name.

    Example:
        >>> config = backbone_config("dinov2", {})
        >>> config.out_features
        ['stage3', 'stage6', 'stage9', 'stage12']
    """
    if is_timm(name):
        import timm

        stages = timm.create_model(name, features_only=True).feature_info.reduction()
        chosen = [i for i, stride in enumerate(stages) if stride >= 4][-MAPS:]
        return TimmBackboneConfig(backbone=name, out_indices=chosen)
    if is_backbone_type(name):
        fields = CONFIG_MAPPING[name]().to_json_string(use_diff=False)  # some backbones cannot do with their own tuples
        config = CONFIG_MAPPING[name].from_dict(json.loads(fields))
    else:
        config = AutoConfig.from_pretrained(name, **hub)
        if config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
            raise UserError(f"{name} is a {config.model_type}, and transformers has no backbone of this type",
                            ", ".join(MODEL_FOR_BACKBONE_MAPPING_NAMES))
    stages = [stage for stage in config.stage_names if stage != "stem"]
    config.out_features = [stages[len(stages) * (level + 1) // MAPS - 1] for level in range(MAPS)][-len(stages):]
    return config


def pretrain_backbone(model: nn.Module, name: str, hub: dict, file: str | None = None) -> Pretraining:
    """Gives the backbone of a network the weights of a checkpoint.

    Args:
        model: The network, with three bands.
        name: Hub id or folder, or a network of timm.
        hub: Revision, token and trust.
        file: With weights of timm's network, in place of those that timm offers.

    Returns:
        Where they came from, and how images were normalised for them.

    Raises:
        UserError: When they leave more than norms to chance.
        OSError: When they cannot be had.
    """
    config, backbone = model.config.backbone_config, model.get_submodule(HOSTS[model.config.model_type])
    if is_timm(name):
        body = getattr(backbone, "_backbone", backbone)
        return pretrain(model, name, lambda weights: load_timm(body, name, config.out_indices, weights), file)
    # AutoBackbone asks the hub for folders, too.
    kind = type(AutoBackbone.from_config(config))
    if (theirs := AutoConfig.from_pretrained(name, **hub).model_type) != config.model_type:
        raise UserError(f"{name} is a {theirs}, and {model.config.model_type} wants its weights in other names",
                        "a backbone of another type, or none", "start from a checkpoint of the whole network, such as "
                        "facebook/maskformer-swin-tiny-coco, or from mask2former")
    origin, info = kind.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True,
                                        use_safetensors=True, **hub)
    # The norms of the maps are not part of classifiers.
    missing = sorted(key for key in info["missing_keys"] if "norm" not in key)
    if missing:
        raise UserError(f"{name} lacks {len(missing)} weights of the backbone, such as {missing[0]}",
                        "a checkpoint that save_pretrained wrote whole")
    copy_into(backbone, origin.state_dict())
    try:
        processor = AutoImageProcessor.from_pretrained(name, **hub)
        mean, std = processor.image_mean, processor.image_std
    except (OSError, ValueError, AttributeError):  # many repositories of backbones hold none
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Pretraining(name, tuple(mean), tuple(std))

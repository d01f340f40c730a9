"""Checkpoints that segmentation-models-pytorch saved itself, such as those of `smp-hub` on the hub."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import SegformerImageProcessor
from transformers.utils import cached_file

from hfseg.errors import one_of
from hfseg.models.networks.smp import DECODERS, SmpConfig, SmpForSemanticSegmentation, build

_NOT_OPTIONS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")


def is_smp(content: dict) -> bool:
    """Tells whether a config.json is the library's own.

    Args:
        content: Of config.json.

    Returns:
        True where it names a class of the library and no model type.
    """
    return "_model_class" in content and "model_type" not in content and "encoder_name" in content


def smp_config(content: dict) -> SmpConfig:
    """Translates the library's configuration.

    Activations and the classification head are left out: segmentation needs logits.

    Args:
        content: Of config.json.

    Returns:
        The same network as a configuration of hfseg; its logits have the image's size, as the library's.

    Raises:
        UserError: For a class that hfseg does not know.

    Example:
        >>> config = smp_config({"_model_class": "FPN", "encoder_name": "resnet18", "classes": 4, "in_channels": 3})
        >>> config.architecture, config.num_labels, config.upsample
        ('fpn', 4, True)
    """
    names = {kind: name for name, kind in DECODERS.items()}
    kind = one_of(content["_model_class"], names, "network of segmentation-models-pytorch")
    options = {key: value for key, value in content.items() if key not in _NOT_OPTIONS and not key.startswith("_")}
    return SmpConfig(
        architecture=names[kind], backbone=content["encoder_name"], num_channels=content.get("in_channels", 3),
        num_labels=content.get("classes", 1), options=options, upsample=True,
    )  # fmt: skip


def load_smp(source: str, config: SmpConfig, hub: dict) -> SmpForSemanticSegmentation:
    """Loads the weights as the library does, names of its earlier versions included.

    Args:
        source: Hub id or folder.
        config: From `smp_config`.
        hub: Revision and token.

    Returns:
        The network.
    """
    file = cached_file(source, "model.safetensors", revision=hub["revision"], token=hub["token"])
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("classification_head.")}
    network = build(config)
    network.load_state_dict(weights)
    model = SmpForSemanticSegmentation(config)
    model.load_state_dict(network.state_dict())
    return model


def smp_processor(source: str, config: SmpConfig, hub: dict) -> tuple[SegformerImageProcessor, str]:
    """Makes an image processor from what lies beside a checkpoint of the library.

    Args:
        source: Hub id or folder.
        config: From `smp_config`.
        hub: Revision and token.

    Returns:
        The processor, and a sentence about where its numbers come from.
    """
    processor = SegformerImageProcessor(do_reduce_labels=False)
    processor.do_resize = False
    try:
        file = cached_file(source, "albumentations_config_eval.json", revision=hub["revision"], token=hub["token"])
        steps = json.loads(Path(file).read_text(encoding="utf-8"))["transform"]["transforms"]
    except (OSError, KeyError, ValueError):
        return processor, ("it does not say how its images were normalised: ImageNet's mean and standard deviation are "
                           "assumed")
    for step in steps:
        kind = step["__class_fullname__"].rsplit(".", 1)[-1]
        if kind == "Normalize":
            largest = step.get("max_pixel_value", 255.0)  # mean and deviation are shares of it
            processor.image_mean = [value * largest / 255 for value in step["mean"]]
            processor.image_std = [value * largest / 255 for value in step["std"]]
        elif kind == "Resize":
            processor.do_resize, processor.size = True, {"height": step["height"], "width": step["width"]}
    return processor, "images are prepared as albumentations_config_eval.json says"

"""hfseg's own networks: the table of names, and their place in transformers' Auto classes."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerImageProcessorPil,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from hfseg.models.networks.detector import Detector
from hfseg.models.networks.framework import NetworkConfig, SegmentationNetwork
from hfseg.models.networks.hrnet import HRNetConfig, HRNetForSemanticSegmentation
from hfseg.models.networks.mask_rcnn import MaskRcnnConfig, MaskRcnnForInstanceSegmentation
from hfseg.models.networks.segnet import SegNetConfig, SegNetForSemanticSegmentation
from hfseg.models.networks.smp import DECODERS, SmpConfig, SmpForSemanticSegmentation
from hfseg.models.networks.torchvision import TorchvisionConfig, TorchvisionForSemanticSegmentation
from hfseg.models.networks.yolact import YolactConfig, YolactForInstanceSegmentation

PREFIX = "hfseg/"
MODELS: dict[type[NetworkConfig], type[SegmentationNetwork]] = {
    SmpConfig: SmpForSemanticSegmentation,
    TorchvisionConfig: TorchvisionForSemanticSegmentation,
    SegNetConfig: SegNetForSemanticSegmentation,
    HRNetConfig: HRNetForSemanticSegmentation,
    MaskRcnnConfig: MaskRcnnForInstanceSegmentation,
    YolactConfig: YolactForInstanceSegmentation,
}


@dataclass(frozen=True)
class Architecture:
    """What a name such as `hfseg/unet` stands for.

    Attributes:
        config: The configuration's class.
        backbone: The one that it takes if none is named.
        fields: Further fields of the configuration.
    """

    config: type[NetworkConfig]
    backbone: str
    fields: dict = field(default_factory=dict)


_BACKBONES = {"segformer": "mit_b0", "dpt": "vit_small_patch16_224"}
ARCHITECTURES: dict[str, Architecture] = {
    **{name: Architecture(SmpConfig, _BACKBONES.get(name, "resnet34"), {"architecture": name}) for name in DECODERS},
    "fcn": Architecture(TorchvisionConfig, "resnet50", {"architecture": "fcn"}),
    "deeplabv3-torchvision": Architecture(TorchvisionConfig, "resnet50", {"architecture": "deeplabv3"}),
    "lraspp": Architecture(TorchvisionConfig, "mobilenet_v3_large", {"architecture": "lraspp"}),
    "segnet": Architecture(SegNetConfig, "vgg16_bn"),
    "hrnet": Architecture(HRNetConfig, "hrnet_w18"),
    "mask-rcnn": Architecture(MaskRcnnConfig, "resnet50"),
    "yolact": Architecture(YolactConfig, "resnet50"),
}


def architecture_of(name: str) -> Architecture | None:
    """Returns the architecture that a model's name stands for.

    Args:
        name: What the user gave, such as `hfseg/unet`.

    Returns:
        A line of the table, or None for everything else.

    Example:
        >>> architecture_of("hfseg/unet").backbone, architecture_of("nvidia/mit-b0")
        ('resnet34', None)
    """
    return ARCHITECTURES.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None


def register() -> None:
    """Makes transformers' Auto classes and pipelines know hfseg's own networks; any number of times."""
    for config, model in MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        detects = issubclass(model, Detector)
        kind = AutoModelForInstanceSegmentation if detects else AutoModelForSemanticSegmentation
        kind.register(config, model, exist_ok=True)
        AutoImageProcessor.register(config, exist_ok=True, image_processor_classes={
            "torchvision": SegformerImageProcessor, "pil": SegformerImageProcessorPil})
        # Pipelines look the class up here, and complain of others.
        if not detects:
            MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(config.model_type, model.__name__)

"""FCN, DeepLabV3 and LR-ASPP as torchvision has them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hfseg.errors import one_of
from hfseg.models.networks.framework import (
    AuxiliaryHead,
    NetworkConfig,
    Pretraining,
    SegmentationNetwork,
    copy_into,
)

HEADS = ("fcn", "deeplabv3", "lraspp")
RESNETS = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2")
MOBILENETS = ("mobilenet_v3_large", "mobilenet_v3_small")


class TorchvisionConfig(NetworkConfig):
    """Configuration of a segmentation network of torchvision.

    Attributes:
        architecture: `fcn`, `deeplabv3` or `lraspp`.
        backbone: A residual network of bottlenecks, or a MobileNetV3; LR-ASPP takes the latter alone.
        auxiliary: Whether fcn and deeplabv3 get an auxiliary head for training.
    """

    model_type = "hfseg_torchvision"

    architecture: str = "fcn"
    backbone: str = "resnet50"
    auxiliary: bool = True


class TorchvisionForSemanticSegmentation(SegmentationNetwork):
    """A network of torchvision; parameters have its names, but for `auxiliary_head.head`, its `aux_classifier`.

    The last one (resnet: two) of the backbone's strides are dilations, so that features have an eighth of the image's
    sides (mobilenet: a sixteenth).

    Args:
        config: What to build.

    Example:
        >>> import torch
        >>> config = TorchvisionConfig(architecture="lraspp", backbone="mobilenet_v3_small", num_labels=5)
        >>> TorchvisionForSemanticSegmentation(config).eval()(torch.zeros(1, 3, 64, 80)).logits.shape
        torch.Size([1, 5, 8, 10])
    """

    config_class = TorchvisionConfig
    multiple = 16

    def __init__(self, config: TorchvisionConfig):
        from torchvision.models._utils import IntermediateLayerGetter
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead
        from torchvision.models.segmentation.fcn import FCNHead
        from torchvision.models.segmentation.lraspp import LRASPPHead

        super().__init__(config)
        one_of(config.architecture, HEADS, "architecture")
        lite = config.architecture == "lraspp"
        one_of(config.backbone, MOBILENETS if lite else RESNETS + MOBILENETS, f"backbone of {config.architecture}")
        trunk = classifier(config.backbone)
        if config.backbone in MOBILENETS:
            trunk = trunk.features
            strided = [0, *(i for i, block in enumerate(trunk) if getattr(block, "_is_cn", False)), len(trunk) - 1]
            low, middle, last = str(strided[-4]), str(strided[-4]), str(strided[-1])
            widths = {name: trunk[int(name)].out_channels for name in (low, last)}
        else:
            low, middle, last = "layer2", "layer3", "layer4"
            widths = {middle: trunk.fc.in_features // 2, last: trunk.fc.in_features}
        self.auxiliary_head = None
        if lite:
            self.backbone = IntermediateLayerGetter(trunk, {low: "low", last: "high"})
            self.classifier = LRASPPHead(widths[low], widths[last], config.num_labels, 128)
        else:
            taken = {last: "out", **({middle: "aux"} if config.auxiliary else {})}
            self.backbone = IntermediateLayerGetter(trunk, taken)
            head = FCNHead if config.architecture == "fcn" else DeepLabHead
            self.classifier = head(widths[last], config.num_labels)
            if config.auxiliary:
                self.auxiliary_head = AuxiliaryHead(FCNHead(widths[middle], config.num_labels))
        if config.num_channels != 3:
            first = next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))
            first.in_channels = config.num_channels
            first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, config.num_channels,
                                                               *first.kernel_size))
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        self.finish()

    def network_logits(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.backbone(pixel_values)
        if self.config.architecture == "lraspp":
            return self.classifier(features), None
        return self.classifier(features["out"]), features.get("aux")

    def load_backbone(self, weights: Mapping[str, Tensor] | None) -> Pretraining:
        from torchvision.models import get_model_weights

        about = get_model_weights(self.config.backbone).DEFAULT
        if weights is None:
            source, weights = f"torchvision's {about}", about.get_state_dict(progress=True, check_hash=True)
        else:
            source = self.config.backbone
        if self.config.backbone in MOBILENETS:
            weights = {name.removeprefix("features."): tensor for name, tensor in weights.items()}
        copy_into(self.backbone, weights)
        recipe = about.transforms()
        return Pretraining(source, tuple(recipe.mean), tuple(recipe.std))


def classifier(backbone: str) -> nn.Module:
    """Builds the classifier that a backbone is cut from, dilated as torchvision does it.

    Args:
        backbone: Its name.

    Returns:
        The classifier, with random weights.
    """
    from torchvision.models import get_model

    if backbone in MOBILENETS:
        return get_model(backbone, weights=None, dilated=True)
    return get_model(backbone, weights=None, replace_stride_with_dilation=[False, True, True])

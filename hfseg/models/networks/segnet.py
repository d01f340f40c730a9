"""SegNet: a VGG16 encoder, and its mirror, which puts each maximum back where it was."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from hfseg.errors import one_of
from hfseg.models.networks.framework import NetworkConfig, Pretraining, SegmentationNetwork, copy_into


class SegNetConfig(NetworkConfig):
    """Configuration of SegNet.

    Attributes:
        backbone: `vgg16_bn`; its ImageNet weights fit the default widths and depths.
        widths: Channels of each stage.
        depths: Convolutions of each stage.
    """

    model_type = "hfseg_segnet"

    backbone: str = "vgg16_bn"
    widths: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 3, 3, 3)


class SegNetForSemanticSegmentation(SegmentationNetwork):
    """Convolutions with batch norm between five poolings and five unpoolings by the indices of the maxima.

    Source: Badrinarayanan, Kendall and Cipolla, SegNet (arXiv 1511.00561). The decoder mirrors the encoder; its last
    convolution gives the classes, at the image's own resolution.

    Args:
        config: What to build.

    Example:
        >>> import torch
        >>> model = SegNetForSemanticSegmentation(SegNetConfig(widths=[8] * 5, depths=[1] * 5, num_labels=5)).eval()
        >>> model(torch.zeros(1, 3, 64, 80)).logits.shape
        torch.Size([1, 5, 64, 80])
    """

    config_class = SegNetConfig

    def __init__(self, config: SegNetConfig):
        super().__init__(config)
        one_of(config.backbone, ["vgg16_bn"], "backbone of segnet")
        widths, depths = list(config.widths), list(config.depths)
        if len(widths) != len(depths) or not widths or min(depths) < 1:
            raise ValueError(f"{len(widths)} widths and {len(depths)} depths: as many, and 1 or more convolutions each")
        self.multiple = 2 ** len(widths)
        below = [config.num_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            convolutions([into] + [width] * depth) for into, width, depth in zip(below, widths, depths))
        # Where the encoder widens, its mirror narrows in its last convolution; the classes come in place of the bands.
        self.decoder = nn.ModuleList(
            convolutions([width] * depth + [out])
            for width, depth, out in reversed(list(zip(widths[1:], depths[1:], widths[:-1]))))
        self.decoder.append(convolutions([widths[0]] * depths[0]))
        self.classifier = nn.Conv2d(widths[0], config.num_labels, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.finish()

    def network_logits(self, pixel_values: Tensor) -> tuple[Tensor, None]:
        hidden, places = pixel_values, []
        for stage in self.encoder:
            hidden, indices = self.pool(stage(hidden))
            places.append(indices)
        for stage in self.decoder:
            hidden = stage(self.unpool(hidden, places.pop()))
        return self.classifier(hidden), None

    def load_backbone(self, weights: Mapping[str, Tensor] | None) -> Pretraining:
        source = "vgg16_bn"
        if weights is None:
            import timm

            origin = timm.create_model("vgg16_bn", pretrained=True)
            source, weights = f"timm's {origin.pretrained_cfg.get('hf_hub_id')}", origin.state_dict()
        # A VGG is a flat list, in which poolings and activations count, too.
        features = {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
        numbers = sorted({int(name.split(".")[1]) for name in features})
        own = {name.rsplit(".", 1)[0]: None for name in self.encoder.state_dict()}
        if len(numbers) != len(own):
            raise ValueError(f"it has {len(numbers)} layers with weights in `features`, the encoder {len(own)}")
        place = dict(zip(numbers, own))
        copy_into(self.encoder, {f"{place[int(name.split('.')[1])]}.{name.split('.')[2]}": tensor
                                 for name, tensor in features.items()})
        return Pretraining(source)


def convolutions(widths: list[int]) -> nn.Sequential:
    """Makes 3 x 3 convolutions, each with batch norm and ReLU.

    Args:
        widths: Channels before the first, between them, and after the last.

    Returns:
        The layers; sides stay as they are.
    """
    layers: list[nn.Module] = []
    for into, out in pairwise(widths):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        nn.init.kaiming_normal_(layers[-3].weight, nonlinearity="relu")
        nn.init.zeros_(layers[-3].bias)
    return nn.Sequential(*layers)

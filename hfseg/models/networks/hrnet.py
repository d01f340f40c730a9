"""HRNet: timm's high-resolution features under the HRNetV2 head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfseg.errors import UserError
from hfseg.models.networks.framework import NetworkConfig, Pretraining, SegmentationNetwork, copy_into


class HRNetConfig(NetworkConfig):
    """Configuration of HRNetV2.

    Attributes:
        backbone: An HRNet of timm, such as `hrnet_w18_small`, `hrnet_w18`, `hrnet_w48`.
    """

    model_type = "hfseg_hrnet"

    backbone: str = "hrnet_w18"


class HRNetHead(nn.Sequential):
    """Stretches all branches to the size of the first, joins and mixes them.

    Args:
        channels: Of each branch.
    """

    def __init__(self, channels: Sequence[int]):
        width = sum(channels)
        super().__init__(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.channels = tuple(channels)

    def forward(self, branches: list[Tensor]) -> Tensor:
        """Mixes the branches.

        Args:
            branches: (B, C_i, H_i, W_i) maps, the largest first.

        Returns:
            (B, sum of C_i, H_0, W_0).
        """
        first, *others = branches
        others = [F.interpolate(one, size=first.shape[-2:], mode="bilinear", align_corners=False) for one in others]
        return super().forward(torch.cat([first, *others], 1))


class HRNetForSemanticSegmentation(SegmentationNetwork):
    """Four branches from a quarter to a thirty-second of the sides, stretched to a quarter, joined and classified.

    Source: Wang et al., Deep High-Resolution Representation Learning (arXiv 1908.07919), figure 4b: HRNetV2.

    Args:
        config: What to build.

    Example:
        >>> import torch
        >>> model = HRNetForSemanticSegmentation(HRNetConfig(backbone="hrnet_w18_small", num_labels=5)).eval()
        >>> model(torch.zeros(1, 3, 64, 96)).logits.shape
        torch.Size([1, 5, 16, 24])
    """

    config_class = HRNetConfig

    def __init__(self, config: HRNetConfig):
        super().__init__(config)
        self.backbone = features(config.backbone, in_chans=config.num_channels)
        self.head = HRNetHead(self.backbone.feature_info.channels())
        self.classifier = nn.Conv2d(sum(self.head.channels), config.num_labels, 1)
        self.finish()

    def network_logits(self, pixel_values: Tensor) -> tuple[Tensor, None]:
        return self.classifier(self.head(self.backbone(pixel_values))), None

    def load_backbone(self, weights: Mapping[str, Tensor] | None) -> Pretraining:
        overlay = {} if weights is None else {"pretrained_cfg_overlay": {"state_dict": dict(weights)}}
        origin = features(self.config.backbone, pretrained=True, **overlay)
        if weights is not None:  # timm takes what is there, and says nothing of what is not
            copy_into(self.backbone, weights)
        copy_into(self.backbone, origin.state_dict())
        about = origin.pretrained_cfg
        return Pretraining(f"timm's {about.get('hf_hub_id') or self.config.backbone}", tuple(about["mean"]),
                           tuple(about["std"]))


def features(backbone: str, **options) -> nn.Module:
    """Builds an HRNet of timm without its classifier.

    Args:
        backbone: Its name.
        **options: For timm.

    Returns:
        A module that gives the four branches.

    Raises:
        UserError: When timm has no such HRNet.
    """
    import timm

    if not backbone.startswith("hrnet_") or not timm.is_model(backbone):
        raise UserError(f"there is no HRNet {backbone!r}", ", ".join(timm.list_models("hrnet_*")))
    return timm.create_model(backbone, features_only=True, feature_location="", out_indices=(1, 2, 3, 4), **options)

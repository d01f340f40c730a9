"""Mask R-CNN as torchvision has it, on any convolutional network of timm."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from hfseg.models.networks.detector import Detector, DetectorConfig, DetectorOutput, joined

_LEVELS = ("0", "1", "2", "3")


class MaskRcnnConfig(DetectorConfig):
    """Configuration of Mask R-CNN.

    Attributes:
        anchor_sizes: Side in pixels of the boxes that the five levels of the pyramid begin with: about the sizes of the
            objects.
        representation_size: Width of the head that classifies boxes.
        proposals: How many boxes the first stage hands on, in training and otherwise.
        boxes_per_image: How many of them the second stage learns from.
    """

    model_type = "hfseg_mask_rcnn"

    anchor_sizes: tuple[int, ...] | list[int] = (32, 64, 128, 256, 512)
    representation_size: int = 1024
    proposals: int = 1000
    boxes_per_image: int = 512


# Boxes and scores are float32 whatever the network computes in: half precision places boxes up to four pixels apart,
# and they are matched with objects, or suppress each other, by what they overlap.


class _AnchorGenerator(AnchorGenerator):
    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device):
        super().set_cell_anchors(torch.float32, device)


class _BoxCoder(BoxCoder):
    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        return super().decode(rel_codes.float(), boxes)


class _ProposalNetwork(RegionProposalNetwork):
    def filter_proposals(self, proposals: Tensor, objectness: Tensor, *rest):
        return super().filter_proposals(proposals, objectness.float(), *rest)


class _Heads(RoIHeads):
    def postprocess_detections(self, class_logits: Tensor, *rest):
        return super().postprocess_detections(class_logits.float(), *rest)


class _RoIAlign(MultiScaleRoIAlign):
    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        kind = next(iter(x.values())).dtype
        return super().forward({name: level.float() for name, level in x.items()}, boxes, image_shapes).to(kind)


class MaskRcnnForInstanceSegmentation(Detector):
    """Boxes are proposed, then each is classified, moved and given a mask of 28 x 28.

    Source: He et al., Mask R-CNN (arXiv 1703.06870), with a pyramid.

    Args:
        config: What to build.

    Example:
        >>> config = MaskRcnnConfig(backbone="resnet18", fpn_channels=16, representation_size=32, num_labels=2)
        >>> output = MaskRcnnForInstanceSegmentation(config).eval()(torch.zeros(1, 3, 64, 64))
        >>> output.masks.shape[-2:], output.pasted
        (torch.Size([28, 28]), True)
    """

    config_class = MaskRcnnConfig

    def __init__(self, config: MaskRcnnConfig):
        super().__init__(config)
        width, classes = config.fpn_channels, config.num_labels + 1  # the first one is the background
        body = self.body((1, 2, 3, 4))
        pyramid = FeaturePyramidNetwork(body.feature_info.channels(), width, LastLevelMaxPool())
        self.backbone = nn.ModuleDict({"body": body, "fpn": pyramid})
        anchors = _AnchorGenerator(tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * 5)
        kept = {"training": config.proposals, "testing": config.proposals}
        self.rpn = _ProposalNetwork(anchors, RPNHead(width, 3), 0.7, 0.3, 256, 0.5, kept, kept, 0.7)
        self.roi_heads = _Heads(
            _RoIAlign(_LEVELS, 7, 2), TwoMLPHead(width * 49, config.representation_size),
            FastRCNNPredictor(config.representation_size, classes), 0.5, 0.5, config.boxes_per_image, 0.25, None,
            config.score_threshold, config.nms_threshold, config.detections_per_image,
            _RoIAlign(_LEVELS, 14, 2), MaskRCNNHeads(width, (width,) * 4, 1),
            MaskRCNNPredictor(width, width, classes),
        )  # fmt: skip
        for part in (self.rpn, self.roi_heads):
            part.box_coder = _BoxCoder(part.box_coder.weights)
        self.finish()

    def backbone_module(self) -> nn.Module:
        return self.backbone["body"]

    def _features(self, pixel_values: Tensor) -> dict[str, Tensor]:
        levels = self.backbone["body"](pixel_values)
        return self.backbone["fpn"](OrderedDict(zip(_LEVELS, levels, strict=True)))

    def losses(self, pixel_values: Tensor, size: tuple[int, int], targets: list[dict[str, Tensor]]) -> dict:
        images, features = ImageList(pixel_values, [size] * len(pixel_values)), self._features(pixel_values)
        proposals, first = self.rpn(images, features, targets)
        _, second = self.roi_heads(features, proposals, images.image_sizes, targets)
        return {**first, **second}

    def detect(self, pixel_values: Tensor, size: tuple[int, int]) -> DetectorOutput:
        images, features = ImageList(pixel_values, [size] * len(pixel_values)), self._features(pixel_values)
        proposals, _ = self.rpn(images, features)
        found, _ = self.roi_heads(features, proposals, images.image_sizes)
        return joined([
            {"scores": one["scores"], "labels": one["labels"] - 1, "boxes": one["boxes"],
             "masks": torch.logit(one["masks"][:, 0].float(), eps=1e-6)} for one in found
        ], self.config.num_labels, pasted=True)  # fmt: skip

"""What hfseg's own detectors share: a body of timm, what they return, and images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers.utils import ModelOutput

from hfseg.errors import UserError
from hfseg.models.networks.framework import NetworkConfig, Pretraining, SegmentationNetwork
from hfseg.models.networks.weights import load_timm


class DetectorConfig(NetworkConfig):
    """What the configurations of detectors hold.

    Attributes:
        backbone: A convolutional network of timm that gives features at several strides.
        fpn_channels: Width of the pyramid.
        freeze_batch_norm: Whether the body's BatchNorm keeps its statistics; set where it has pretrained ones, since
            batches of detectors are small.
        score_threshold: Detections below are left out.
        nms_threshold: Of two detections whose boxes have a larger IoU, the better one stays.
        detections_per_image: At most.
    """

    model_type = "hfseg_detector"

    backbone: str = "resnet50"
    fpn_channels: int = 256
    freeze_batch_norm: bool = False
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100


@dataclass
class DetectorOutput(ModelOutput):
    """What a detector returns.

    Attributes:
        loss: In training, the sum of its losses.
        loss_dict: These, by name.
        probabilities: (B, N, num_labels), one of them above 0 for each detection; none where an image has fewer.
        masks: (B, N, h, w) logits, over the image or, if `pasted`, over each box.
        boxes: (B, N, 4) left, top, right, bottom in pixels of the pixel values.
        pasted: Whether masks fill their boxes.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    probabilities: Tensor | None = None
    masks: Tensor | None = None
    boxes: Tensor | None = None
    pasted: bool | None = None


class Detector(SegmentationNetwork):
    """A network that finds objects; subclasses define `detect` and `losses`."""

    config_class = DetectorConfig

    def body(self, out_indices: tuple[int, ...]) -> nn.Module:
        """Builds the backbone.

        Args:
            out_indices: Which of timm's stages; 1 is at a quarter of the sides, where there are five.

        Returns:
            A module that gives a list of features.

        Raises:
            UserError: When timm has no such network, or it gives no features.
        """
        import timm

        name = self.config.backbone
        if not timm.is_model(name):
            raise UserError(f"there is no backbone {name!r}", "a convolutional network of timm, such as resnet50")
        try:
            return timm.create_model(name, features_only=True, out_indices=out_indices,
                                     in_chans=self.config.num_channels)
        except (RuntimeError, AttributeError, AssertionError, IndexError) as error:
            raise UserError(f"the backbone {name} gives no features at strides 4 to 32: {error}",
                            "a convolutional network of timm, such as resnet50") from error

    def load_backbone(self, weights: Mapping[str, Tensor] | None) -> Pretraining:
        body = self.backbone_module()
        found = load_timm(body, self.config.backbone, body.feature_info.out_indices, weights)
        self.config.freeze_batch_norm = True
        self.train(self.training)
        return found

    def backbone_module(self) -> nn.Module:
        """Returns the body."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Detector:
        """Switches to training, but for frozen statistics.

        Args:
            mode: Whether to train.

        Returns:
            The network.
        """
        super().train(mode)
        if mode and self.config.freeze_batch_norm:
            for module in self.backbone_module().modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def detect(self, pixel_values: Tensor, size: tuple[int, int]) -> DetectorOutput:
        """Finds objects.

        Args:
            pixel_values: (B, num_channels, H, W), padded.
            size: (height, width) of the images within.

        Returns:
            Detections.
        """
        raise NotImplementedError

    def losses(self, pixel_values: Tensor, size: tuple[int, int], targets: list[dict[str, Tensor]]) -> dict:
        """Computes what is minimised.

        Args:
            pixel_values: (B, num_channels, H, W), padded.
            size: (height, width) of the images within.
            targets: Of each image `boxes` (N, 4) left, top, right, bottom in pixels, `labels` (N,) from 1, and `masks`
                (N, H, W) uint8.

        Returns:
            Losses by name.
        """
        raise NotImplementedError

    def forward(self, pixel_values: Tensor, labels: list[dict] | None = None, **kwargs) -> DetectorOutput:
        """Computes detections, or, in training mode with labels, the loss.

        Args:
            pixel_values: (B, num_channels, H, W), of any size.
            labels: Of each image `class_labels` (N,) int64, `boxes` (N, 4) centre x, centre y, width, height in shares
                of the image, and `masks` (N, H, W).

        Returns:
            `loss` and `loss_dict`, or `probabilities`, `masks` and `boxes`.
        """
        size = tuple(pixel_values.shape[-2:])
        target = [-(-max(side, self.least) // self.multiple) * self.multiple for side in size]
        padded = F.pad(pixel_values, (0, target[1] - size[1], 0, target[0] - size[0]))
        if not self.training:
            return self.detect(padded, size)
        if labels is None:
            raise ValueError("in training mode, labels are needed")
        scale = pixel_values.new_tensor([size[1], size[0], size[1], size[0]])
        targets = [{
            "boxes": box_convert(one["boxes"], "cxcywh", "xyxy") * scale, "labels": one["class_labels"] + 1,
            "masks": F.pad(one["masks"], (0, target[1] - size[1], 0, target[0] - size[0])).to(torch.uint8),
        } for one in labels]  # fmt: skip
        found = self.losses(padded, size, targets)
        return DetectorOutput(loss=sum(found.values()), loss_dict=found)


def joined(detections: list[dict[str, Tensor]], num_labels: int, pasted: bool) -> DetectorOutput:
    """Stacks the detections of several images.

    Args:
        detections: Of each image `scores` (N,), `labels` (N,) class ids, `boxes` (N, 4) and `masks` (N, h, w) logits.
        num_labels: Number of classes.
        pasted: Whether masks fill their boxes.

    Returns:
        All, filled up with nothing.
    """
    most = max(max(len(one["scores"]) for one in detections), 1)
    first = detections[0]["masks"]
    probabilities = first.new_zeros((len(detections), most, num_labels))
    boxes = first.new_zeros((len(detections), most, 4))
    masks = first.new_full((len(detections), most, *first.shape[1:]), -10)
    for i, one in enumerate(detections):
        count = len(one["scores"])
        probabilities[i, torch.arange(count), one["labels"]] = one["scores"].to(probabilities)
        boxes[i, :count], masks[i, :count] = one["boxes"].to(boxes), one["masks"]
    return DetectorOutput(probabilities=probabilities, masks=masks, boxes=boxes, pasted=pasted)

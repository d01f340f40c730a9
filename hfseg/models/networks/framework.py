"""What hfseg's own networks have in common: any input size, the loss, and safe building, saving and loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from hfseg.ops.upsample_cross_entropy import upsample_cross_entropy

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NetworkConfig(PreTrainedConfig):
    """What the configurations of all of hfseg's own networks hold.

    Attributes:
        backbone: Name of the backbone in the library that builds it.
        num_channels: Bands of the images.
        auxiliary_loss_weight: Weight of the loss of the auxiliary head, where the network has one.
        semantic_loss_ignore_index: The label that counts for nothing, when the network computes a loss itself.
    """

    model_type = "hfseg_network"

    backbone: str = "resnet34"
    num_channels: int = 3
    auxiliary_loss_weight: float = 0.4
    semantic_loss_ignore_index: int = 255


@dataclass(frozen=True)
class Pretraining:
    """Weights that a backbone started from: where they came from, and how images were normalised for them.

    Attributes:
        source: In words, for the load report.
        mean: Per band, of values from 0 to 1 (or to 255, see below).
        std: Per band.
        largest: What a white pixel was: 1 or 255.
        bgr: Whether the bands were blue, green, red.
    """

    source: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    largest: float = 1.0
    bgr: bool = False


class SegmentationNetwork(PreTrainedModel):
    """A network that takes images of any size, and gives logits that lie on them.

    Subclasses build themselves in `__init__` and end it with `finish()`; they define `network_logits`, set `multiple`
    and, where they can, define `load_backbone`.

    Attributes:
        multiple: Sides that the network can take are multiples of this many pixels.
        least: And no shorter than this.
    """

    config_class = NetworkConfig
    main_input_name = "pixel_values"
    multiple, least = 32, 32

    def finish(self) -> None:
        """Keeps what the libraries initialised: `post_init` would replace it by its own."""
        for tensor in (*self.parameters(), *self.buffers()):
            if not tensor.is_meta:
                tensor._is_hf_initialized = True
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "init_non_persistent_buffers"):  # timm's: from_pretrained leaves these tables empty
            module.init_non_persistent_buffers()

    def network_logits(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the logits of images whose sides the network can take.

        Args:
            pixel_values: (B, num_channels, H, W).

        Returns:
            (B, num_labels, h, w), at any resolution; and what `self.auxiliary_head` takes, where there is one.
        """
        raise NotImplementedError

    def load_backbone(self, weights: Mapping[str, Tensor] | None) -> Pretraining:
        """Gives the backbone pretrained weights; the network has three bands then.

        Args:
            weights: The state dict of a classifier, or None for what the library offers, from its hub.

        Returns:
            Where they came from, and how images were normalised for them.
        """
        raise NotImplementedError

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> SemanticSegmenterOutput:
        """Computes logits, and the loss if there are labels.

        Args:
            pixel_values: (B, num_channels, H, W), of any size.
            labels: Class ids, (B, H, W), int64.

        Returns:
            `logits` (B, num_labels, h, w), at the network's own resolution: stretched to H x W, they lie on the image.
            `loss`: mean cross-entropy, if labels are given.
        """
        size = tuple(pixel_values.shape[-2:])
        target = [-(-max(side, self.least) // self.multiple) * self.multiple for side in size]
        # Zero is the mean colour, and what convolutions see beyond the border anyway.
        padded = F.pad(pixel_values, (0, target[1] - size[1], 0, target[0] - size[0]))
        logits, features = self.network_logits(padded)
        logits, auxiliary = on_image(logits, tuple(target), size), None
        if features is not None and self.training:
            auxiliary = self.auxiliary_head(features, tuple(target), size)
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            loss = upsample_cross_entropy(logits, labels, ignore_index=ignored)
            if auxiliary is not None:
                more = upsample_cross_entropy(auxiliary, labels, ignore_index=ignored)
                loss = loss + self.config.auxiliary_loss_weight * more
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class AuxiliaryHead(nn.Module):
    """A head on features from halfway, for training alone, whose logits lie on the image.

    Args:
        head: Takes features, gives logits.
    """

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Computes logits.

        Args:
            features: (B, C, h, w) of the padded image.
            padded: Its (height, width).
            size: (height, width) of the image in its upper left corner.

        Returns:
            (B, num_labels, h', w').
        """
        return on_image(self.head(features), padded, size)


def on_image(logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Cuts the logits of a padded image to those of the image in its upper left corner.

    Args:
        logits: (B, C, h, w), which lie on the padded image.
        padded: Its (height, width) in pixels.
        size: (height, width) of the image.

    Returns:
        (B, C, h', w'): a part of `logits` where the image ends between two of them, else stretched to the pixels.

    Example:
        >>> on_image(torch.zeros(1, 2, 8, 8), (32, 32), (24, 32)).shape, on_image(
        ...     torch.zeros(1, 2, 8, 8), (32, 32), (23, 32)).shape
        (torch.Size([1, 2, 6, 8]), torch.Size([1, 2, 23, 32]))
    """
    if padded == size:
        return logits
    ends = [side * count / whole for side, count, whole in zip(size, logits.shape[-2:], padded)]
    if any(end != int(end) for end in ends):
        logits, ends = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False), size
    return logits[..., : int(ends[0]), : int(ends[1])]


def copy_into(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies a state dict into a backbone; what the backbone has no place for, such as a classifier, is left out.

    Args:
        module: The backbone.
        weights: Names and tensors.

    Raises:
        ValueError: When a weight of the backbone is missing or has another shape.
    """
    own = module.state_dict()
    wrong = [name for name, tensor in own.items()
             if (weights[name].shape != tensor.shape if name in weights else not name.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(own)} weights are missing or have another shape, such as {wrong[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if name in weights:
                tensor.copy_(weights[name])

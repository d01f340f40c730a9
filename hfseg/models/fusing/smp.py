"""Decoders of segmentation-models-pytorch: what is linear applied before the upsampling."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.segformer.decoder import MLP, SegformerDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn

from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import is_convolution, why_not_plain
from hfseg.models.fusing.pyramid import convolve_upsampled, example_pyramid, project_upsampled
from hfseg.models.fusing.self_check import without_autocast

_MODULES = "segmentation_models_pytorch.base.modules:Conv2dReLU"


@stand_in
class FusedSegformerDecoder(SegformerDecoder):
    """SegFormer's decoder, which does what transformers' head does: see `FusedSegformerDecodeHead`."""

    note = "each stage's projection composed with the fuse convolution, before the upsampling"
    reads = ("__init__", "forward", "segmentation_models_pytorch.decoders.segformer.decoder:MLP", _MODULES)

    def why_not(self) -> str | None:
        """Returns why the plain forward has to run, or None."""
        names: dict[str, type] = {"fuse_stage": Conv2dReLU, "fuse_stage.0": nn.Conv2d}
        for stage in range(len(self.mlp_stage)):
            names[f"mlp_stage.{stage}"], names[f"mlp_stage.{stage}.linear"] = MLP, nn.Linear
        reason = why_not_plain(self, names)
        if reason is None and not is_convolution(self.fuse_stage[0], 1):
            reason = "fuse_stage has another convolution"
        return reason

    def example(self) -> tuple[tuple, dict]:
        """Returns an image and maps of odd sizes."""
        like = self.fuse_stage[0].weight
        (maps,), _ = example_pyramid([stage.linear.in_features for stage in self.mlp_stage][::-1], like)
        image = torch.randn(2, 3, 84, 68, dtype=like.dtype, device=like.device)
        return ([image, *maps],), {}

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Returns the map of the plain decoder.

        Args:
            features: The image and (B, C_i, H_i, W_i) maps, the largest first.

        Returns:
            (B, D, H, W), a quarter of the image's sides.
        """
        if self.why_not() is not None:
            return super().forward(features)
        size = tuple(side // 4 for side in features[0].shape[2:])
        stages = (features[2:] if features[1].size(1) == 0 else features[1:])[::-1]
        convolution, norm, activation = self.fuse_stage
        # Composed in full precision also under autocast; half precision is rounded to once, at the end.
        kept = convolution.weight.dtype
        exact = kept if kept == torch.float64 else torch.float32
        with without_autocast(features[0].device.type):
            slices = convolution.weight.to(exact).flatten(1).chunk(len(self.mlp_stage), dim=1)
            weights = [(part @ stage.linear.weight.to(exact)).to(kept) for part, stage in zip(slices, self.mlp_stage)]
            bias = sum(part @ stage.linear.bias.to(exact) for part, stage in zip(slices, self.mlp_stage))
            if convolution.bias is not None:
                bias = bias + convolution.bias
        # Batch statistics of channels-last tensors have a hundred times the rounding error on the CPU.
        return activation(norm(project_upsampled(stages, weights, bias.to(kept), size).contiguous()))


@stand_in
class FusedUPerNetDecoder(UPerNetDecoder):
    """UPerNet's decoder with its largest convolution done at each level's own resolution; see `convolve_upsampled`."""

    note = "the 3x3 convolution of all levels applied before their upsampling"
    reads = ("forward", _MODULES)

    def why_not(self) -> str | None:
        """Returns why the plain forward has to run, or None."""
        reason = why_not_plain(self, {"fusion_block": Conv2dReLU, "fusion_block.0": nn.Conv2d})
        if reason is None:
            convolution = self.fusion_block[0]
            if not (is_convolution(convolution, 3) and convolution.bias is None):
                reason = "fusion_block has another convolution"
        return reason

    def example(self) -> tuple[tuple, dict]:
        """Returns an image and maps of odd sizes."""
        channels = [3, 1, *(norm.normalized_shape[0] for norm in self.feature_norms)]
        return example_pyramid(channels, self.fusion_block[0].weight, side=84)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Returns the map of the plain decoder.

        Args:
            features: The image and (B, C_i, H_i, W_i) maps, the largest first.

        Returns:
            (B, D, H, W), a quarter of the image's sides.
        """
        if self.why_not() is not None:
            return super().forward(features)
        *lateral, last = [norm(feature) for norm, feature in zip(self.feature_norms, features[2:], strict=True)]
        levels = [self.psp(last)]
        for block, feature in zip(self.fpn_lateral_blocks, lateral[::-1]):
            levels.append(block(levels[-1], feature))
        levels = [levels[0], *(block(level) for block, level in zip(self.fpn_conv_blocks, levels[1:]))]
        convolution, norm, activation = self.fusion_block
        return activation(norm(convolve_upsampled(levels[::-1], convolution.weight).contiguous()))

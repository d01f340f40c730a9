"""BEiT's head, which Data2Vec-Vision has, too: its last 3x3 convolution before the upsampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.models.beit.modeling_beit import BeitConvLayer, BeitUperHead
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionConvLayer, Data2VecVisionUperHead

from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import is_convolution, why_not_plain
from hfseg.models.fusing.pyramid import convolve_upsampled, example_pyramid, pyramid_levels

_NOTE = "the 3x3 convolution of all levels applied before their upsampling"


def _why_not(head: nn.Module, layer: type[nn.Module]) -> str | None:
    reason = why_not_plain(head, {"fpn_bottleneck": layer, "fpn_bottleneck.convolution": nn.Conv2d})
    if reason is None:
        convolution = head.fpn_bottleneck.convolution
        if not (is_convolution(convolution, 3) and convolution.bias is None):
            reason = "fpn_bottleneck has another convolution"
    return reason


def _example(head: nn.Module) -> tuple[tuple, dict]:
    return example_pyramid(head.in_channels, head.classifier.weight)


def _forward_of(original: type[nn.Module]) -> Callable:
    def forward(self, encoder_hidden_states: list[torch.Tensor]) -> torch.Tensor:
        if self.why_not() is not None:
            return original.forward(self, encoder_hidden_states)
        bottleneck = self.fpn_bottleneck
        output = convolve_upsampled(pyramid_levels(self, encoder_hidden_states), bottleneck.convolution.weight)
        output = bottleneck.activation(bottleneck.normalization(output))
        return self.classifier(output).contiguous()

    return forward


@stand_in
class FusedBeitUperHead(BeitUperHead):
    """The head with its largest convolution done at each level's own resolution; see `convolve_upsampled`."""

    note = _NOTE
    reads = ("forward", "transformers.models.beit.modeling_beit:BeitConvLayer")
    example = _example
    forward = _forward_of(BeitUperHead)

    def why_not(self) -> str | None:
        return _why_not(self, BeitConvLayer)


@stand_in
class FusedData2VecVisionUperHead(Data2VecVisionUperHead):
    """The same head under another name."""

    note = _NOTE
    reads = ("forward", "transformers.models.data2vec.modeling_data2vec_vision:Data2VecVisionConvLayer")
    example = _example
    forward = _forward_of(Data2VecVisionUperHead)

    def why_not(self) -> str | None:
        return _why_not(self, Data2VecVisionConvLayer)

"""Tiny models of every family with a head that is fused, and how their outputs are compared."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    Data2VecVisionConfig,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
)

from hfseg.models.fusing import fuse, is_fused, stand_in
from hfseg.models.networks import HRNetConfig, SmpConfig, register

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
       "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
CONFIGS = {
    "segformer": SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
                                 decoder_hidden_size=12, classifier_dropout_prob=0.0, drop_path_rate=0.0),
    "upernet": UperNetConfig(
        backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1],
                                     out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=12, auxiliary_channels=8, auxiliary_in_channels=8,
    ),
    "beit": BeitConfig(**VIT, out_indices=[1, 2, 3, 4], auxiliary_channels=8, drop_path_rate=0.0),
    "data2vec-vision": Data2VecVisionConfig(**VIT, out_indices=[1, 2, 3, 4], auxiliary_channels=8, drop_path_rate=0.0),
    # Five maps, the first larger than the result; four, behind one without channels.
    "hfseg/segformer": SmpConfig(architecture="segformer", backbone="tu-test_resnet",
                                 options={"decoder_segmentation_channels": 12}),
    "hfseg/segformer, four": SmpConfig(architecture="segformer", backbone="tu-test_convnext",
                                       options={"decoder_segmentation_channels": 12}),
    "hfseg/upernet": SmpConfig(architecture="upernet", backbone="tu-test_convnext", options={"decoder_channels": 12}),
    "hfseg/hrnet": HRNetConfig(backbone="hrnet_w18_small"),
}  # fmt: skip
HEADS = {"segformer": "decode_head", "upernet": "decode_head", "beit": "decode_head", "data2vec-vision": "decode_head",
         "hfseg/segformer": "decoder", "hfseg/segformer, four": "decoder", "hfseg/upernet": "decoder",
         "hfseg/hrnet": "head"}  # fmt: skip
register()


def build(family: str = "segformer", dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    """A tiny model none of whose numbers is a special one, batch statistics included."""
    config = copy.deepcopy(CONFIGS[family])
    config.id2label = {i: str(i) for i in range(5)}
    config.label2id = {str(i): i for i in range(5)}
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(config)
    scramble(model)
    return model.to(dtype).eval()


def scramble(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)


def pixels(batch: int = 2, size: tuple[int, int] = (32, 32), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-6)


def logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=inputs).logits


def reason(model: nn.Module) -> str:
    """Why the head of a model is left alone."""
    ((name, text),) = fuse(model).fuse_report.left_alone
    assert name.endswith("decode_head") and not model.fuse_report.fused
    assert not any(is_fused(module) for module in model.modules())
    return text


@stand_in
class FusedWholeModel(SegformerForSemanticSegmentation):
    note = "nothing"
    reads = ("forward",)

    def why_not(self):
        return None

    def example(self):
        return (), {"pixel_values": torch.randn(1, 3, 32, 32)}

"""hfseg's own networks: what every family must do, on small backbones."""

from __future__ import annotations

import pytest

from model_tester import CHECKS, Case, maker

RESNET, MOBILE = "tu-test_resnet", "mobilenet_v3_small"
NARROW = {"options": {"decoder_channels": [16, 16, 8, 8, 8]}}
CASES = {
    "unet": Case("hfseg/unet", RESNET, NARROW),
    "unetplusplus": Case("hfseg/unetplusplus", RESNET, NARROW),
    "fpn": Case("hfseg/fpn", "tu-test_efficientnet",
                {"options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}}),
    "pspnet": Case("hfseg/pspnet", "tu-test_efficientnet", {"options": {"psp_out_channels": 32}},
                   unused=("encoder.model.blocks.3", "encoder.model.blocks.4")),  # it reads three stages
    "deeplabv3": Case("hfseg/deeplabv3", RESNET, {"options": {"decoder_channels": 16}}),
    "deeplabv3plus": Case("hfseg/deeplabv3plus", RESNET, {"options": {"decoder_channels": 16}}),
    "pan": Case("hfseg/pan", RESNET, {"options": {"decoder_channels": 16}}),
    "linknet": Case("hfseg/linknet", RESNET),
    "manet": Case("hfseg/manet", RESNET, {"options": {**NARROW["options"], "decoder_pab_channels": 8}}),
    "upernet": Case("hfseg/upernet", "tu-test_convnext", {"options": {"decoder_channels": 16}}),
    "segformer": Case("hfseg/segformer", "mit_b0", {"options": {"decoder_segmentation_channels": 16}}),
    "dpt": Case("hfseg/dpt", "tu-test_vit", {"options": {
        "decoder_intermediate_channels": [8, 8, 16, 16], "decoder_fusion_channels": 16}},
                unused=("encoder.model.norm",)),
    "fcn": Case("hfseg/fcn", MOBILE),
    "deeplabv3-torchvision": Case("hfseg/deeplabv3-torchvision", MOBILE),
    "lraspp": Case("hfseg/lraspp", MOBILE),
    "segnet": Case("hfseg/segnet", None, {"widths": [8, 8, 16, 16, 16], "depths": [1, 1, 2, 1, 1]}, rate=0.02),
    "hrnet": Case("hfseg/hrnet", "hrnet_w18_small"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with maker(CASES, tmp_path_factory) as make:
        yield make


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_network(check, name, made):
    check(made(name))

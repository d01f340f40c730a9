"""Backbones by name, under networks of transformers, and backbones that networks of hfseg cannot use."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from hfseg.errors import UserError
from hfseg.models import family_of, load_for_inference, load_model
from hfseg.models.backbones import HOSTS
from hfseg.models.dry_run import dry_run
from mask_networks import CONFIGS

LABELS = ["road", "car", "tree"]
SMALL = {"hidden_size": 16, "auxiliary_channels": 8}
CLASSIFIERS = {
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(
        hidden_size=24, num_hidden_layers=8, num_attention_heads=2, image_size=56)),
    "swin": lambda: SwinForImageClassification(SwinConfig(embed_dim=12, depths=[1] * 4, num_heads=[1, 1, 2, 2])),
    "convnext": lambda: ConvNextForImageClassification(ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_s_backbone_gives_the_same_features_and_brings_its_normalisation(kind, tmp_path):
    torch.manual_seed(0)
    classifier = CLASSIFIERS[kind]().eval()
    classifier.save_pretrained(tmp_path / "classifier")
    BitImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "classifier")
    folder = str(tmp_path / "classifier")
    model, processor = load_model("upernet", LABELS, backbone=folder, config=SMALL)
    assert processor.image_mean == [0.1, 0.2, 0.3]
    assert f"the backbone has the weights of {folder}" in str(model.load_report)
    assert all(name.startswith(("decode_head.", "auxiliary_head.")) for name in model.load_report.new)
    pixels = torch.randn(1, 3, 224, 224)  # transformers' classifier with Swin takes no small ones
    with torch.no_grad():
        hidden = getattr(classifier, kind)(pixels, output_hidden_states=True)
        last = model.backbone(pixels, output_hidden_states=True)
    found, expected = (one.flatten(2).transpose(1, 2) if one.ndim == 4 else one
                       for one in (last.hidden_states[-1], hidden.hidden_states[-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(last.feature_maps) == 4
    assert model(pixel_values=torch.randn(1, 3, 45, 61)).logits.shape == (1, 3, 45, 61)
    model.save_pretrained(tmp_path / "b")
    processor.save_pretrained(tmp_path / "b")
    again, _ = load_for_inference(str(tmp_path / "b"))
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    more, processor = load_model("upernet", LABELS, backbone=folder, config=SMALL, channels=5)
    assert more(pixel_values=torch.randn(1, 5, 64, 64)).logits.shape[1] == 3 and len(processor.image_mean) == 5


def test_a_type_of_backbone_is_random_and_a_wrong_one_is_refused(tmp_path):
    model, _ = load_model("upernet", LABELS, backbone="resnet", config=SMALL)
    assert "all weights are random" in str(model.load_report)
    with pytest.raises(UserError, match="upernet cannot use the backbone hiera"):
        load_model("upernet", LABELS, backbone="hiera")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="is a vit, and transformers has no backbone"):
        load_model("upernet", LABELS, backbone=str(tmp_path))
    with pytest.raises(UserError, match="takes no backbone by name"):
        load_model("segformer", LABELS, backbone="swin")


@pytest.mark.parametrize(("name", "backbone"), [
    ("hfseg/fpn", "inception_v3"),  # does not pad
    ("hfseg/unet", "coat_mini"),  # takes one size
    ("hfseg/fpn", "nest_base"),  # gives three maps
    ("hfseg/deeplabv3plus", "xception"),  # cannot be dilated
    ("hfseg/dpt", "resnet50"),
    ("hfseg/unet", "test_vit"),
])  # fmt: skip
def test_a_backbone_that_would_fail_later_is_refused_at_once(name, backbone):
    with pytest.raises(UserError, match=f"{name} cannot use the backbone {backbone}: .+"):
        load_model(name, LABELS, backbone=backbone, weights="random")


@pytest.mark.parametrize(("name", "backbone"), [
    *(("hfseg/unet", backbone) for backbone in (
        "resnet18", "vgg11_bn", "inceptionv4", "xception", "densenet121", "mobilenet_v2", "mobilenetv3_small_100",
        "efficientnet-b0", "tf_efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256", "mit_b0", "pvt_v2_b0")),
    *(("hfseg/dpt", backbone) for backbone in ("vit_small_patch14_dinov2", "vit_small_patch16_dinov3",
                                               "vit_small_patch8_224", "vit_small_patch32_224")),
])  # fmt: skip
def test_backbones_take_images_of_any_size(name, backbone):
    """Without arithmetic; tests of each network compute."""
    from hfseg.models.configs import load_config

    config = load_config(name, name, "random", {}, {"revision": None, "token": None}, backbone=backbone)
    for size in ((45, 61), (130, 257)):
        dry_run(name, config, size)


def test_dinov2_s_patches_of_14_pixels_lie_on_the_image():
    """Logits of a shifted patch grid would not: what is left of the middle must be told from what is right of it."""
    torch.manual_seed(0)
    model, _ = load_model("hfseg/dpt", LABELS, backbone="vit_tiny_patch16_224", weights="random")
    assert model.multiple == 32
    model, _ = load_model("hfseg/dpt", LABELS, backbone="vit_small_patch14_dinov2", weights="random",
                          config={"options": {"decoder_intermediate_channels": [8, 8, 16, 16],
                                              "decoder_fusion_channels": 16}})  # fmt: skip
    assert model.multiple == 28
    with torch.no_grad():
        logits = model(pixel_values=torch.randn(1, 3, 56, 84)).logits
    assert logits.shape[-2:] == (32, 48)  # eight for 14 pixels


@pytest.mark.parametrize("name", ["mask2former", "maskformer", "detr", "upernet"])
def test_a_network_of_timm_gives_its_own_features_under_a_network_of_transformers(name, tmp_path):
    import timm

    torch.manual_seed(0)
    classifier = timm.create_model("mobilenetv3_small_050").eval()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    arguments = {"config": SMALL if name == "upernet" else CONFIGS[name].copy()}
    arguments["config"].pop("backbone_config", None)
    model, processor = load_model(name, LABELS, backbone="mobilenetv3_small_050",
                                  backbone_weights=str(tmp_path / "classifier.pth"), **arguments)
    family = family_of(model.config)
    assert all(family.is_head(key) for key in model.load_report.new) and model.load_report.loaded > 100
    assert model.load_report.backbone_weights == "ImageNet weights of mobilenetv3_small_050 from a file"
    backbone = model.eval().get_submodule(HOSTS[name])
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = classifier.forward_intermediates(pixels, indices=[1, 2, 3, 4], intermediates_only=True)
        found = getattr(backbone, "_backbone", backbone)(pixels)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    model.train()
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert bool(norms) == (name == "upernet")
    model.save_pretrained(tmp_path / "b")
    processor.save_pretrained(tmp_path / "b")
    again, _ = load_for_inference(str(tmp_path / "b"))
    with torch.no_grad():
        one, two = (network.eval()(pixel_values=pixels) for network in (model, again))
    torch.testing.assert_close(one[0] if name == "upernet" else one.logits if name == "detr" else
                               one.masks_queries_logits, two[0] if name == "upernet" else two.logits
                               if name == "detr" else two.masks_queries_logits)
    more, processor = load_model(name, LABELS, backbone="mobilenetv3_small_050", channels=5,
                                 backbone_weights=str(tmp_path / "classifier.pth"), **arguments)
    more.eval()(pixel_values=torch.randn(1, 5, 64, 64))
    assert len(processor.image_mean) == 5


def test_frozen_norms_keep_their_activations():
    """DETR replaces norms; timm has activations in its own."""
    model, _ = load_model("detr", LABELS, backbone="mobilenetv3_small_050", weights="random", config={
        key: value for key, value in CONFIGS["detr"].items() if key != "backbone_config"})
    names = {type(module).__name__ for module in model.get_submodule(HOSTS["detr"]).modules()}
    assert "FrozenBatchNormAct2d" in names and "DetrFrozenBatchNorm2d" not in names

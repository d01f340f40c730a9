"""Checkpoints of segmentation-models-pytorch itself, and sizes against the libraries and papers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import hfseg
from hfseg.errors import UserError
from hfseg.models import load_for_inference, load_model
from hfseg.models.listing import count, list_models, print_models
from hfseg.models.networks.smp import DECODERS

smp = pytest.importorskip("segmentation_models_pytorch")


def checkpoint(folder, kind, **options):
    torch.manual_seed(0)
    network = getattr(smp, kind)(encoder_weights=None, classes=4, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize(("kind", "options"), [
    ("Unet", {"encoder_name": "resnet18", "decoder_channels": [32, 16, 8, 8, 8], "aux_params": {"classes": 2}}),
    ("Segformer", {"encoder_name": "mit_b0", "decoder_segmentation_channels": 32}),
    ("DeepLabV3Plus", {"encoder_name": "tu-test_resnet", "decoder_channels": 16, "in_channels": 4}),
    ("FPN", {"encoder_name": "tu-test_efficientnet"}),
    ("DPT", {"encoder_name": "tu-test_vit", "decoder_fusion_channels": 16, "dynamic_img_size": True}),
])  # fmt: skip
def test_a_folder_that_the_library_saved_gives_the_same_logits(kind, options, tmp_path):
    network = checkpoint(tmp_path / "a", kind, **options)
    model, processor = load_for_inference(str(tmp_path / "a"))
    pixels = torch.randn(2, options.get("in_channels", 3), 64, 96)
    with torch.no_grad():
        expected = network(pixels)
        expected = expected[0] if isinstance(expected, tuple) else expected
        found = model(pixel_values=pixels).logits
    torch.testing.assert_close(found, expected)
    assert "ImageNet's mean and standard deviation are assumed" in str(model.load_report)
    model.save_pretrained(tmp_path / "b")
    processor.save_pretrained(tmp_path / "b")
    again, _ = load_for_inference(str(tmp_path / "b"))
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=pixels).logits, expected)
        assert again(pixel_values=pixels[:, :, :45, :61]).logits.shape[-2:] == (45, 61)


def test_the_library_s_evaluation_transforms_are_followed(tmp_path):
    checkpoint(tmp_path, "Unet", encoder_name="resnet18", decoder_channels=[32, 16, 8, 8, 8])
    steps = [{"__class_fullname__": "Resize", "height": 64, "width": 96},
             {"__class_fullname__": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
              "max_pixel_value": 1.0}]  # fmt: skip
    (tmp_path / "albumentations_config_eval.json").write_text(json.dumps({"transform": {"transforms": steps}}))
    _, processor = load_for_inference(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    found = processor(image, return_tensors="pt")["pixel_values"][0].numpy()
    expected = (image - np.array(steps[1]["mean"])) / np.array(steps[1]["std"])
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)
    result = hfseg.Segmenter.from_pretrained(tmp_path)(np.zeros((40, 50, 3), np.uint8))
    assert result.semantic_map.shape == (40, 50)
    tuned, processor = load_model(str(tmp_path), ["a", "b", "c"], channels=4)
    assert tuned(pixel_values=torch.zeros(1, 4, 64, 64)).logits.shape == (1, 3, 64, 64) and not processor.do_resize


def test_a_class_of_the_library_that_is_not_known(tmp_path):
    checkpoint(tmp_path, "Unet", encoder_name="resnet18")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "_model_class": "Unett"}))
    with pytest.raises(UserError, match="did you mean 'Unet'"):
        load_for_inference(str(tmp_path))


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "dpt"])
def test_as_many_parameters_as_the_library(name):
    with torch.device("meta"):
        network = smp.create_model(name, "resnet18", None, classes=21)
    assert count(f"hfseg/{name}", "resnet18").parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "backbone", "parameters"), [
    ("hfseg/fcn", "resnet50", 35_322_218),  # torchvision's tables, 21 classes, auxiliary head included
    ("hfseg/fcn", "resnet101", 54_314_346),
    ("hfseg/deeplabv3-torchvision", "resnet50", 42_004_074),
    ("hfseg/lraspp", "mobilenet_v3_large", 3_221_538),
])  # fmt: skip
def test_as_many_parameters_as_torchvision_states(name, backbone, parameters):
    assert count(name, backbone).parameters == parameters


def test_torchvision_s_own_checkpoint_computes_the_same():
    """By its names; the logits are those that torchvision stretches to the image."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    ours, _ = load_model("hfseg/lraspp", ["a", "b", "c"], weights="random")
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = torch.nn.functional.interpolate(ours(pixel_values=pixels).logits, size=(64, 96), mode="bilinear")
        torch.testing.assert_close(found, theirs(pixels)["out"])


def _on_lite(pattern):
    try:
        return list_models(f"hfseg/{pattern}", backbone="tf_efficientnet_lite0", max_parameters=4)
    except UserError:
        return []


def test_the_list_counts_and_filters(capsys):
    rows = list_models("torchvision")
    assert [row.name for row in rows] == ["hfseg/fcn", "hfseg/deeplabv3-torchvision", "hfseg/lraspp"]
    assert [row.name for row in list_models("torchvision", max_gflops=10)] == ["hfseg/lraspp"]
    assert {row.name for row in list_models("mit-b", max_parameters=14)} == {"nvidia/mit-b0", "nvidia/mit-b1"}
    instances = {row.name: row for row in list_models("instance", task="instance")}
    assert {"mask2former", "rf_detr", "hfseg/mask-rcnn", "hfseg/yolact"} <= instances.keys()
    assert instances["mask2former"].task == "semantic, instance, panoptic" and instances["rf_detr"].gflops is None
    on_lite = [row for part in ("linknet", "pspnet", "manet", "dpt", "fcn", "segnet") for row in _on_lite(part)]
    assert {"hfseg/linknet", "hfseg/pspnet"} == {row.name for row in on_lite}
    assert all(row.backbone == "tf_efficientnet_lite0" for row in on_lite)
    print_models([*rows, instances["rf_detr"]])
    printed = capsys.readouterr().out
    assert "35.32 M" in printed and printed.endswith("M                  instance\n")
    for wrong in ({"pattern": "no such thing"}, {"backbone": "resnet188"}, {"pattern": "yolact", "task": "panoptic"}):
        with pytest.raises(UserError):
            list_models(**wrong)
    with pytest.raises(UserError, match="that of rf_detr is not counted"):
        list_models("rf_detr", max_gflops=10)


def test_the_flops_are_those_of_a_count_by_hand():
    """SegNet's 26 convolutions at 512 x 512: two operations per weight and output."""
    widths, depths = [64, 128, 256, 512, 512], [2, 2, 3, 3, 3]
    total = 0
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        below, mirrored = ([3, *widths][stage], [21, *widths][stage])
        down = [(below, width)] + [(width, width)] * (depth - 1)
        up = [(width, width)] * (depth - 1) + [(width, mirrored)]
        total += sum(2 * 9 * into * out * (512 >> stage) ** 2 for into, out in down + up)
    assert count("hfseg/segnet", "vgg16_bn").gflops * 1e9 == total

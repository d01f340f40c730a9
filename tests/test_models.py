"""Loading: what is kept, what is new, what is refused; every family of the table."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BeitConfig,
    Data2VecVisionConfig,
    DPTConfig,
    MobileNetV2Config,
    MobileViTConfig,
    MobileViTV2Config,
    ResNetConfig,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerImageProcessor,
    UperNetConfig,
)

import hfseg
from hfseg.errors import UserError
from hfseg.labels import LabelSchema
from hfseg.models import FAMILIES, family_of, load_for_inference, load_model
from hfseg.models.networks import MODELS
from hfseg.transfer import plan_transfer
from runs import TINY, environment, small_recipe

SCHEMA = LabelSchema.from_names(["road", "car", "tree"])
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16,
       "image_size": 32, "patch_size": 8}  # fmt: skip
CONFIGS = {
    "segformer": SegformerConfig(**TINY),
    "upernet": UperNetConfig(
        backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1],
                                     out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=8,
    ),
    "dpt": DPTConfig(**VIT, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, backbone_out_indices=[0, 1, 2, 3],
                     reassemble_factors=[4, 2, 1, 0.5], auxiliary_loss_weight=0.4),
    "beit": BeitConfig(**VIT, out_indices=[1, 2, 3, 4], auxiliary_channels=8),
    "data2vec-vision": Data2VecVisionConfig(**VIT, out_indices=[1, 2, 3, 4], auxiliary_channels=8),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.1, finegrained_output=False),
    "mobilevit": MobileViTConfig(hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
                                 num_attention_heads=2, aspp_out_channels=8),
    "mobilevitv2": MobileViTV2Config(width_multiplier=0.25, base_attn_unit_dims=[32, 32, 32], n_attn_blocks=[1, 1, 1],
                                     aspp_out_channels=8),
}  # fmt: skip


def test_every_family_of_the_table_is_tested():
    """Here, in test_networks, or in test_mask_families."""
    per_pixel = {name for name, family in FAMILIES.items() if not family.predicts_masks}
    assert {name for name in per_pixel if not name.startswith("hfseg_")} == set(CONFIGS)
    assert {name for name in FAMILIES if name.startswith("hfseg_")} == {config.model_type for config in MODELS}


def save(folder, config, names=("a", "b")):
    """A checkpoint as transformers writes it."""
    from transformers import AutoModelForSemanticSegmentation

    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(config)
    model.save_pretrained(folder)
    SegformerImageProcessor(do_reduce_labels=True, size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_loads_relabels_trains_and_loads_again(name, tmp_path):
    save(tmp_path / "old", CONFIGS[name])
    model, processor = load_model(str(tmp_path / "old"), SCHEMA)
    family = family_of(model.config)
    assert processor.do_reduce_labels is False
    assert model.config.id2label == SCHEMA.id2label
    pixels = torch.rand(2, 3, *(family.input_size(model.config) or (64, 64)))
    logits = model(pixel_values=pixels).logits
    assert logits.shape[:2] == (2, 3)

    for strategy in ("full", "feature_extraction"):
        plan = plan_transfer(model, family, strategy, 1e-3)
        plan.set_train_mode(model)
        logits = model(pixel_values=pixels).logits
        torch.nn.functional.cross_entropy(logits, torch.zeros(2, *logits.shape[-2:], dtype=torch.int64)).backward()
        grouped = [p for group in plan.groups for p in group["params"]]
        trained = [p for p in model.parameters() if p.requires_grad]
        assert len(grouped) == len({id(p) for p in grouped}) == len(trained)
        assert {family.is_head(n) for n, p in model.named_parameters() if p.requires_grad} == (
            {True} if strategy == "feature_extraction" else {True, False}
        )

    model.eval()
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    again, _ = load_for_inference(str(tmp_path / "new"))
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_labels_of_another_kind_never_keep_the_old_head(tmp_path):
    """The same number of classes with other names is another task."""
    old = save(tmp_path, CONFIGS["segformer"], ("cat", "dog", "Car"))
    model, _ = load_model(str(tmp_path), SCHEMA)
    before, after = (m.decode_head.classifier.weight for m in (old, model))
    torch.testing.assert_close(after[1], before[2])  # car, known by name
    assert not torch.allclose(after[0], before[0]) and not torch.allclose(after[2], before[2])
    assert model.load_report.kept_classes == ["car"]
    assert "decode_head.classifier.weight" in model.load_report.new
    torch.testing.assert_close(model.decode_head.linear_fuse.weight, old.decode_head.linear_fuse.weight)


def test_the_same_labels_keep_the_head_in_any_order(tmp_path):
    old = save(tmp_path, CONFIGS["segformer"], ("tree", "road", "car"))
    model, _ = load_model(str(tmp_path), SCHEMA)
    torch.testing.assert_close(model.decode_head.classifier.weight, old.decode_head.classifier.weight[[1, 2, 0]])
    assert model.load_report.new == []


def test_a_classification_checkpoint_gives_its_backbone(tmp_path):
    SegformerForImageClassification(SegformerConfig(**TINY, num_labels=7)).save_pretrained(tmp_path)
    model, processor = load_model(str(tmp_path), SCHEMA, weights="pretrained")
    report = model.load_report
    assert all(name.startswith("decode_head.") for name in report.new) and report.new
    assert {name.split(".")[0] for name in report.dropped} == {"classifier"}
    assert type(processor) is SegformerImageProcessor and processor.do_resize is False
    with pytest.raises(UserError, match="no finished segmentation model"):
        load_for_inference(str(tmp_path))


def test_wrong_shapes_and_lacking_weights_are_refused(tmp_path):
    save(tmp_path, CONFIGS["segformer"])
    with pytest.raises(UserError, match="does not fit its configuration"):
        load_model(str(tmp_path), SCHEMA, config={"hidden_sizes": [8, 8, 16, 32]})
    with pytest.raises(UserError, match=r"hidden_size'(.|\n)*did you mean 'hidden_sizes'"):
        load_model(str(tmp_path), SCHEMA, config={"hidden_size": [8]})
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.startswith("segformer."))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is missing"):
        load_model(str(tmp_path), SCHEMA)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:999])
    with pytest.raises(UserError, match="train it again"):
        load_model(str(tmp_path), SCHEMA)


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_other_numbers_of_bands(channels, tmp_path):
    """A grey picture in every band gives what it gave in three bands."""
    old = save(tmp_path, CONFIGS["segformer"]).eval()
    model, processor = load_model(str(tmp_path), channels=channels)
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = old(pixel_values=grey.expand(1, 3, 64, 64)).logits
        found = model(pixel_values=grey.expand(1, channels, 64, 64)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert len(processor.image_mean) == len(processor.image_std) == channels
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    again, processor = load_for_inference(str(tmp_path / "new"))
    pixels = processor(torch.randint(0, 255, (channels, 40, 40), dtype=torch.uint8), return_tensors="pt",
                       input_data_format="channels_first")["pixel_values"]  # fmt: skip
    assert again(pixel_values=pixels).logits.shape[1] == 2


@pytest.mark.parametrize("name", ["nobody/nothing", "./not-there", "resnet", "a/b/c", "segfomer"])
def test_a_name_that_is_not_there(name):
    with pytest.raises(UserError) as caught:
        load_model(name, SCHEMA)
    assert name in str(caught.value)


def test_no_network_says_that_a_local_path_or_random_weights_work():
    with pytest.raises(UserError, match=r"--model\.weights random"):
        load_model("nvidia/mit-b0", SCHEMA)
    model, _ = load_model("nvidia/mit-b0", SCHEMA, weights="random")
    assert model.config.hidden_sizes == [32, 64, 160, 256]


def test_the_shipped_checkpoint_is_small_and_loads_with_transformers_alone(tmp_path):
    """In a process where hfseg cannot be imported, and with the same outputs."""
    from hfseg.models.configs import SHIPPED

    folder = SHIPPED / "shapes-segformer"
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 5e6
    model, processor = load_for_inference("hfseg/shapes-segformer")
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    code = """
import sys, numpy as np, torch
sys.modules["hfseg"] = None
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
folder, out = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
processor = AutoImageProcessor.from_pretrained(folder)
with torch.inference_mode():
    logits = model(**processor(np.load(out + "/image.npy"), return_tensors="pt")).logits
np.save(out + "/logits.npy", logits.numpy())
print(list(model.config.id2label.values()))
"""
    done = subprocess.run([sys.executable, "-c", code, folder, tmp_path], env=environment(), capture_output=True,
                          text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        mine = model(**processor(image, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), mine, atol=1e-5)
    assert json.loads(done.stdout.replace("'", '"')) == list(model.config.id2label.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_trains_and_is_evaluated(name, tmp_path):
    save(tmp_path / "checkpoint", CONFIGS[name])
    recipe = small_recipe(tmp_path / "run", max_steps=2, per_device_train_batch_size=2)
    recipe.model.name, recipe.model.config, recipe.data.image_size = str(tmp_path / "checkpoint"), {}, None
    size = family_of(CONFIGS[name]).input_size(CONFIGS[name])
    recipe.augment.crop_size = size or (64, 64)
    recipe.data.image_size = size or (64, 64)
    assert hfseg.train(recipe, verbose=False)["loss"] > 0
    recipe.train.per_device_train_batch_size, recipe.output_dir = 1, str(tmp_path / "alone")
    try:
        hfseg.train(recipe, verbose=False)
    except UserError as error:
        assert "2 or more images" in str(error)


@pytest.mark.parametrize("overrides", [{"depths": [1]}, {"hidden_sizes": "abc"}, {"hidden_act": "foo"}])
def test_a_configuration_that_cannot_be_built(overrides):
    with pytest.raises(UserError, match="cannot be built with"):
        load_model("segformer", labels=SCHEMA, config=overrides)


def test_beit_starts_from_its_name():
    small = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 16,
             "image_size": 32, "patch_size": 8}  # fmt: skip
    model, _ = load_model("beit", labels=SCHEMA, config=small)
    assert model.config.num_labels == 3


def test_class_ids_that_are_not_0_to_n_and_names_that_repeat(tmp_path):
    save(tmp_path / "a", SegformerConfig(**TINY), names=("road", "car", "road"))
    assert load_for_inference(str(tmp_path / "a"))[0].config.id2label == {0: "road", 1: "car", 2: "road (2)"}
    content = json.loads((tmp_path / "a/config.json").read_text())
    content["id2label"] = {"1": "road", "2": "car", "3": "sky"}
    content["label2id"] = {"road": 1, "car": 2, "sky": 3}
    (tmp_path / "a/config.json").write_text(json.dumps(content))
    for load in (load_for_inference, lambda path: load_model(path, labels=SCHEMA)):
        with pytest.raises(UserError, match="the ids 0 to 2"):
            load(str(tmp_path / "a"))


def test_pickled_weights_and_wrong_arguments(tmp_path):
    save(tmp_path / "a", SegformerConfig(**TINY))
    torch.save(load_file(tmp_path / "a/model.safetensors"), tmp_path / "a/pytorch_model.bin")
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled"):
        load_for_inference(str(tmp_path / "a"))
    for wrong in ({"weights": "foo"}, {"image_size": -3}, {"image_size": (0, 4)}):
        with pytest.raises(UserError):
            load_model("segformer", labels=SCHEMA, **wrong)
    model, processor = load_model("segformer", labels=["a", "b"], config=TINY)
    assert model.config.id2label == {0: "a", 1: "b"} and model.image_processor is processor


def test_a_network_of_one_size_gets_it(tmp_path):
    save(tmp_path / "a", CONFIGS["dpt"])
    processor = json.loads((tmp_path / "a/preprocessor_config.json").read_text())
    (tmp_path / "a/preprocessor_config.json").write_text(json.dumps({**processor, "do_resize": False}))
    from hfseg import Segmenter

    assert Segmenter.from_pretrained(tmp_path / "a")(np.zeros((40, 60, 3), np.uint8)).semantic_map.shape == (40, 60)


def test_overrides_leave_the_layers_that_a_checkpoint_reads(tmp_path):
    save(tmp_path / "a", CONFIGS["beit"])
    for overrides in ({}, {"drop_path_rate": 0.2}):
        model, _ = load_model(str(tmp_path / "a"), config=overrides)
        assert list(model.config.out_indices) == [1, 2, 3, 4]


def test_an_adapted_network_knows_its_bands_when_it_is_loaded_again(tmp_path):
    save(tmp_path / "a", CONFIGS["upernet"])
    model, processor = load_model(str(tmp_path / "a"), labels=SCHEMA, channels=5)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "b")
    segmenter = hfseg.Segmenter.from_pretrained(tmp_path / "b")
    assert segmenter.channels == 5
    assert segmenter(np.zeros((64, 64, 5), np.uint8)).semantic_map.shape == (64, 64)

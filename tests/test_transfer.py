"""Strategies: what trains, when, at which rate; and that a resumed run switches as an uninterrupted one."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from test_models import CONFIGS, save
from test_networks import CASES

import hfseg
from hfseg.errors import UserError
from hfseg.models import family_of, load_model
from hfseg.recipe import TrainConfig
from hfseg.training.optimization import build_optimizer, set_learning_rate
from hfseg.transfer import STRATEGIES, plan_transfer
from hfseg.transfer.stages import backbone_stages
from runs import small_recipe

OWN = ("unet", "upernet", "dpt", "segformer", "fcn", "segnet", "hrnet")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    known = {}

    def make(name):
        if name not in known:
            if name in CONFIGS:
                folder = tmp_path_factory.mktemp(name)
                save(folder, copy.deepcopy(CONFIGS[name]))
                known[name] = load_model(str(folder))[0]
            else:
                case = CASES[name.removeprefix("hfseg/")]
                known[name] = load_model(case.name, ["a", "b"], backbone=case.backbone, config=case.config,
                                         weights="random")[0]
        return known[name]

    return make


NAMES = [*CONFIGS, *(f"hfseg/{name}" for name in OWN)]


@pytest.mark.parametrize("name", NAMES)
def test_stages_hold_every_parameter_of_the_backbone_once(name, model_of):
    model = model_of(name)
    family = family_of(model.config)
    stages = backbone_stages(model, family)
    found = [parameter for names in stages for parameter in names]
    assert sorted(found) == sorted(n for n, _ in model.named_parameters() if not family.is_head(n))
    assert len(stages) > 1


@pytest.mark.parametrize(("name", "backbone", "count", "last"), [
    ("hfseg/unet", "resnet18", 4, "encoder.layer4.0.conv1.weight"),
    ("hfseg/unet", "vgg11", 5, "encoder.features.16.weight"),
    ("hfseg/unet", "tf_efficientnet_lite0", 7, "encoder.model.blocks.6.0.conv_pw.weight"),
    ("hfseg/unet", "mit_b0", 4, "encoder.patch_embed4.proj.weight"),
    ("hfseg/unet", "test_convnext", 4, "encoder.model.stages_3.downsample.0.weight"),
    ("hfseg/fcn", "resnet50", 4, "backbone.layer4.0.conv1.weight"),
    ("hfseg/hrnet", "hrnet_w18_small", 4, "backbone.stage4.0.branches.0.0.conv1.weight"),
    ("hfseg/segnet", "vgg16_bn", 5, "encoder.4.0.weight"),
])  # fmt: skip
def test_stages_are_those_of_the_papers(name, backbone, count, last):
    from transformers import AutoModelForSemanticSegmentation
    from transformers.initialization import meta_device_safe_creation_ops

    from hfseg.models.configs import load_config

    hub = {"revision": None, "token": None, "trust_remote_code": False}
    with torch.device("meta"), meta_device_safe_creation_ops():
        model = AutoModelForSemanticSegmentation.from_config(load_config(name, name, "random", {}, hub,
                                                                         backbone=backbone))
    stages = backbone_stages(model, family_of(model.config))
    assert len(stages) == count
    assert stages[-1][0] == last


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_frozen_stays_bit_by_bit(name, strategy, model_of):
    """One step with a huge rate: weights and BatchNorm statistics of what is frozen stay, all else moves."""
    model = copy.deepcopy(model_of(name))
    family = family_of(model.config)
    order = backbone_stages(model, family)
    plan = plan_transfer(model, family, strategy, 0.1, stages=1, head_steps=1)
    optimizer = build_optimizer(plan.groups, TrainConfig(optimizer="sgd", momentum=0.0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan.set_train_mode(model)
    pixels = torch.randn(2, 3, *(family.input_size(model.config) or (64, 64)))
    moves = {
        "full": lambda key: True, "feature_extraction": family.is_head, "head_then_full": family.is_head,
        "partial": lambda key: family.is_head(key) or key in order[-1],
    }[strategy]  # fmt: skip

    def step(number):
        plan.at_step(number, 2, model, optimizer)
        set_learning_rate(optimizer, 1.0)
        model(pixel_values=pixels).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(0)
    after, parameters = model.state_dict(), dict(model.named_parameters())
    for key, value in before.items():
        if key in parameters and not moves(key):
            assert torch.equal(after[key], value), f"{key} moved"
    assert any(not torch.equal(after[key], before[key]) for key in parameters if moves(key))
    resting = [key for key in parameters if not moves(key)]
    statistics = [key for key in before if key.endswith("running_mean")
                  and any(key.rsplit(".", 1)[0] + ".weight" == one for one in resting)]
    assert all(torch.equal(after[key], before[key]) for key in statistics)
    if strategy == "head_then_full":
        before = {key: value.clone() for key, value in model.state_dict().items()}
        step(1)
        backbone = [key for key in parameters if not family.is_head(key)]
        assert sum(not torch.equal(model.state_dict()[key], before[key]) for key in backbone) > len(backbone) / 2
        assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_the_table_says_what_trains(model_of):
    model = copy.deepcopy(model_of("hfseg/unet"))
    family = family_of(model.config)
    table = plan_transfer(model, family, "partial", 1e-3, stages=2).table()
    assert table.count("trains") == 2 and table.count("frozen") == 1 + len(backbone_stages(model, family)) - 2
    resting = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert f"{resting:,}" in table
    assert "the head alone for 20% of the run, then everything at 0.001" in plan_transfer(
        model, family, "head_then_full", 1e-3).table()
    for wrong in (0, 99):
        with pytest.raises(UserError, match="this backbone has"):
            plan_transfer(model, family, "partial", 1e-3, stages=wrong)
    plan = plan_transfer(model, family, "head_then_full", 1e-3, head_steps=5)
    with pytest.raises(UserError, match=r"head_steps is 5, and the run has 5"):
        plan.at_step(0, 5, model, build_optimizer(plan.groups, TrainConfig()))


@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_run_resumed_before_at_and_after_the_switch_is_the_same(start, tmp_path, whole_run):
    whole, recipe = whole_run
    resumed = copy.deepcopy(recipe)
    resumed.output_dir = str(tmp_path / "again")
    resumed.train.resume = str(whole / "checkpoints" / f"step-{start:08d}")
    hfseg.train(resumed, verbose=False)
    last = "checkpoints/step-00000006/model.safetensors"
    expected, found = load_file(whole / last), load_file(tmp_path / "again" / last)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    first = load_file(whole / "checkpoints/step-00000003/model.safetensors")
    begin = load_file(whole / "checkpoints/step-00000001/model.safetensors")
    changed = {key for key in first if not torch.equal(first[key], begin[key])}
    assert changed and all(key.startswith("decode_head.") for key in changed)  # the backbone waits for step 3
    assert any(not torch.equal(expected[key], first[key]) for key in expected if not key.startswith("decode_head."))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    recipe = small_recipe(folder, max_steps=6, save_steps=1, save_total_limit=10)
    recipe.transfer.strategy, recipe.transfer.head_steps = "head_then_full", 3
    recipe.eval.eval_steps = 6
    hfseg.train(recipe, verbose=False)
    return folder, recipe

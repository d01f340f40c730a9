"""A fused model is the same model: outputs, gradients, files, copies."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from fusing_models import CONFIGS, HEADS, FusedWholeModel, assert_close, build, logits, pixels, scramble
from hfseg.models import fusing
from hfseg.models.fusing import fuse, is_fused, unfuse
from hfseg.models.fusing.pyramid import convolve_upsampled, project_upsampled


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_outputs_are_those_of_the_plain_model(family, dtype, tolerance):
    model, inputs = build(family, dtype), pixels(dtype=dtype)
    wanted = logits(model, inputs)
    with torch.enable_grad():
        wanted_with_grad = model(pixel_values=inputs).logits
    assert fuse(model) is model
    assert is_fused(model.get_submodule(HEADS[family])) and not model.fuse_report.left_alone
    assert_close(logits(model, inputs), wanted, tolerance)
    assert_close(model(pixel_values=inputs).logits, wanted_with_grad, tolerance)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_and_batch_statistics_are_those_of_the_plain_model(family, training):
    model = build(family, torch.float64).train(training)
    other = fuse(copy.deepcopy(model))
    inputs, losses = pixels(dtype=torch.float64), []
    weights = torch.randn(logits(build(family, torch.float64), inputs).shape, dtype=torch.float64)
    for one in (model, other):
        losses.append((one(pixel_values=inputs).logits * weights).sum())
        losses[-1].backward()
    assert_close(losses[1], losses[0], 1e-12)
    plain = dict(model.named_parameters())
    assert any(parameter.grad is not None for parameter in plain.values())
    scale = max(parameter.grad.abs().max() for parameter in plain.values() if parameter.grad is not None)
    for name, parameter in other.named_parameters():
        if plain[name].grad is None:
            assert parameter.grad is None, name
        else:
            assert (parameter.grad - plain[name].grad).abs().max() <= 1e-11 * scale, name
    for (name, one), two in zip(model.named_buffers(), other.buffers()):
        assert torch.allclose(one.double(), two.double(), rtol=1e-10, atol=1e-12), name


@settings(max_examples=25)
@given(st.data())
def test_segformer_head_of_any_stages_and_sizes(data):
    count = data.draw(st.integers(1, 5))
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=count, max_size=count))
    channels = data.draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    batch, train = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    config = SegformerConfig(num_encoder_blocks=count, hidden_sizes=channels, decoder_hidden_size=7, num_labels=3,
                             classifier_dropout_prob=0.0)  # fmt: skip
    head = SegformerDecodeHead(config).double().eval()
    scramble(head)
    other = fuse(copy.deepcopy(head))
    assert is_fused(other)
    stages = [torch.randn(batch, c, *size).double() for c, size in zip(channels, sizes)]
    if train and batch * sizes[0][0] * sizes[0][1] > 1:
        head.train()
        other.train()
    with torch.no_grad():
        assert_close(other(stages), head(stages), 1e-9)


@settings(max_examples=25)
@given(st.data())
def test_convolution_of_upsampled_maps_of_any_sizes(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
    channels = data.draw(st.lists(st.integers(1, 4), min_size=len(sizes), max_size=len(sizes)))
    levels = [torch.randn(data.draw(st.just(2)), c, *size).double() for c, size in zip(channels, sizes)]
    weight = torch.randn(3, sum(channels), 3, 3).double()
    stacked = [F.interpolate(x, size=sizes[0], mode="bilinear", align_corners=False) for x in levels]
    wanted = F.conv2d(torch.cat(stacked, dim=1), weight, padding=1)
    assert_close(convolve_upsampled(levels, weight), wanted, 1e-12)


@settings(max_examples=25)
@given(st.data())
def test_projection_of_maps_that_are_larger_and_smaller_than_the_result(data):
    sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
    size, sizes = data.draw(sides), data.draw(st.lists(sides, min_size=1, max_size=4))
    levels = [torch.randn(2, number + 1, *one).double() for number, one in enumerate(sizes)]
    weights, bias = [torch.randn(3, level.shape[1]).double() for level in levels], torch.randn(3).double()
    stacked = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in levels]
    wanted = F.conv2d(torch.cat(stacked, 1), torch.cat(weights, 1)[:, :, None, None], bias)
    assert_close(project_upsampled(levels, weights, bias, size), wanted, 1e-12)


def test_convolution_of_upsampled_maps_passes_gradcheck():
    levels = [torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True) for size in ((5, 4), (3, 2), (1, 1))]
    weight = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, *maps: convolve_upsampled(list(maps), w), (weight, *levels))


@pytest.mark.parametrize("size", [(33, 47), (64, 32), (40, 88)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_odd_sizes_one_image_and_channels_last(size, layout):
    for family in ("segformer", "upernet"):
        model, inputs = build(family), pixels(1, size).to(memory_format=layout)
        model = model.to(memory_format=layout)
        wanted = logits(model, inputs)
        assert_close(logits(fuse(model), inputs), wanted, 1e-4)


@pytest.mark.parametrize("family", ["segformer", "upernet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_the_truth_as_the_plain_model(family, dtype):
    head = build(family).get_submodule(HEADS[family])
    if family == "segformer":  # in eight channels, chance decides
        head = SegformerDecodeHead(SegformerConfig()).eval()
        scramble(head)
    fused = fuse(copy.deepcopy(head).to(dtype))
    assert is_fused(fused), fused.fuse_report
    (inputs, *rest), _ = fused.example()
    inputs = [list(inputs)] if isinstance(inputs, (list, tuple)) else [inputs, *rest]
    promoted = [[x.float() for x in one] if isinstance(one, list) else one.float() for one in inputs]
    with torch.no_grad():
        truth, found, plain = head(*promoted), fused(*inputs), unfuse(copy.deepcopy(fused))(*inputs)
    assert found.dtype == dtype
    errors = [(value.float() - truth).square().mean().sqrt() for value in (found, plain)]
    assert errors[0] <= 1.3 * errors[1]


def test_batch_statistics_are_exact_in_single_precision():
    """Those that torch takes of channels-last tensors are not, where the mean is large beside the spread."""
    torch.manual_seed(0)
    head = SegformerDecodeHead(SegformerConfig(decoder_hidden_size=32, num_labels=9, classifier_dropout_prob=0.0))
    for linear in head.linear_projections:
        nn.init.constant_(linear.proj.bias, 1.0)
    stages = [torch.randn(2, size, 128 >> i, 128 >> i) for i, size in enumerate((32, 64, 160, 256))]

    def outputs(head, dtype):
        return head.to(dtype).train()(tuple(stage.to(dtype) for stage in stages)).double()

    truth = outputs(copy.deepcopy(head), torch.float64)
    assert (outputs(fuse(head), torch.float32) - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("family", CONFIGS)
def test_autocast(family):
    model, inputs = build(family), pixels()
    truth = logits(model, inputs)
    fused = fuse(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = logits(model, inputs), logits(fused, inputs)
        fused(pixel_values=inputs).logits.float().sum().backward()
    assert found.dtype == plain.dtype
    assert (found - truth).square().mean() <= 2 * (plain - truth).square().mean()
    assert all(p.grad.isfinite().all() for p in fused.parameters() if p.grad is not None)


# The same model


@pytest.mark.parametrize("family", CONFIGS)
def test_state_and_files_do_not_change_and_unfuse_takes_everything_back(family, tmp_path):
    model = build(family)
    wanted = logits(copy.deepcopy(model), pixels())
    before = copy.deepcopy(model.state_dict())
    types = [type(module) for module in model.modules()]
    flags = {name: module.training for name, module in model.named_modules()}
    model.save_pretrained(tmp_path / "plain")
    random = torch.get_rng_state()
    fuse(model)
    report = copy.deepcopy(model.fuse_report)
    fuse(model)
    assert model.fuse_report == report and report.fused
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: module.training for name, module in model.named_modules()} == flags
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert repr(model) == repr(unfuse(copy.deepcopy(model)))

    model.save_pretrained(tmp_path / "fused")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fused" / name).read_bytes()
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "fused").eval()
    assert not any(is_fused(module) for module in again.modules())
    assert_close(logits(again, pixels()), logits(model, pixels()), 1e-4)

    assert unfuse(model) is model
    assert [type(module) for module in model.modules()] == types and not hasattr(model, "fuse_report")
    assert torch.equal(logits(model, pixels()), wanted)


def test_a_whole_model_that_is_swapped_keeps_its_name_in_files(tmp_path, monkeypatch):
    original = SegformerForSemanticSegmentation
    key = f"{original.__module__}:{original.__name__}"
    digest = fusing.sources.digest(original, FusedWholeModel)
    monkeypatch.setitem(fusing.REWRITES, key, fusing.Rewrite(f"{__name__}:FusedWholeModel", {digest}))
    model = build()
    model.save_pretrained(tmp_path / "plain")
    fuse(model)
    assert type(model) is FusedWholeModel and model.fuse_report.fused[0][0] == "model"
    model.save_pretrained(tmp_path / "fused")
    assert json.loads((tmp_path / "fused" / "config.json").read_text())["architectures"] == [original.__name__]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fused" / name).read_bytes()
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert type(pickle.loads(pickle.dumps(model))) is FusedWholeModel
    assert type(unfuse(model)) is original


@pytest.mark.parametrize("family", CONFIGS)
def test_copies_and_pickles_stay_fused(family):
    # Copied before the first forward: with it, transformers sets hooks that no model can be pickled with.
    model, inputs = fuse(build(family)), pixels()
    wanted = logits(copy.deepcopy(model), inputs)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)):
        assert is_fused(other.get_submodule(HEADS[family])) and other.fuse_report == model.fuse_report
        assert torch.equal(logits(other, inputs), wanted)
    assert is_fused(model.get_submodule(HEADS[family]))
    assert not is_fused(unfuse(other).get_submodule(HEADS[family]))


def test_gradient_checkpointing():
    model = build(dtype=torch.float64).train()
    other = fuse(copy.deepcopy(model))
    other.gradient_checkpointing_enable()
    for one in (model, other):
        one(pixel_values=pixels(dtype=torch.float64)).logits.square().mean().backward()
    for one, two in zip(model.parameters(), other.parameters()):
        assert torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-12)


def test_data_parallel(tmp_path):
    model = build(dtype=torch.float64).train()
    other = fuse(copy.deepcopy(model))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(other)
        for one in (model, wrapped):
            one(pixel_values=pixels(dtype=torch.float64)).logits.square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for one, two in zip(model.parameters(), other.parameters()):
        assert torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-12)


def head_and_stages() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The part that is fused: what is around it takes long to trace."""
    generator = torch.Generator().manual_seed(2)
    sizes = zip((8, 8, 16, 16), (8, 4, 2, 1))
    return build().decode_head, tuple(torch.randn(2, c, side, side, generator=generator) for c, side in sizes)


def test_export():
    head, stages = head_and_stages()
    with torch.no_grad():
        wanted = head(stages)
        program = torch.export.export(fuse(head), (stages,))
        assert_close(program.module()(stages), wanted, 1e-4)
    # The graph is the fused one: no concatenation of the upsampled stages.
    assert not any("aten.cat" in str(node.target) for node in program.graph.nodes)


@torch.no_grad()
def test_compile_traces_the_fused_forward_without_a_break():
    head, stages = head_and_stages()
    wanted = head(stages)
    fuse(head)
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    assert_close(compiled(stages), wanted, 1e-4)
    head.linear_fuse.register_forward_hook(lambda module, args, output: output * 0)
    found = torch.compile(head, backend="eager")(stages)  # a hook after compiling is met by a new trace
    assert_close(found, unfuse(copy.deepcopy(head))(stages), 1e-4)
    assert not torch.allclose(found, wanted)




def test_the_same_seed_drops_out_the_same():
    model, inputs = build(classifier_dropout_prob=0.5).train(), pixels()
    found = []
    for one in (copy.deepcopy(model), fuse(copy.deepcopy(model))):
        torch.manual_seed(3)
        found.append(one(pixel_values=inputs).logits)
    assert_close(*found, 1e-4)

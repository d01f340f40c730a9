"""A fused model is the same model: outputs, gradients, files, copies; and whatever is not plain is left alone."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    Data2VecVisionConfig,
    MobileViTConfig,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinModel,
    UperNetConfig,
)
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from hfseg.errors import UserError
from hfseg.models import fusing
from hfseg.models.fusing import fuse, is_fused, swin, unfuse
from hfseg.models.fusing.pyramid import convolve_upsampled, project_upsampled
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


# The same function


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


@fusing.stand_in
class FusedWholeModel(SegformerForSemanticSegmentation):
    note = "nothing"
    reads = ("forward",)

    def why_not(self):
        return None

    def example(self):
        return (), {"pixel_values": torch.randn(1, 3, 32, 32)}


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


# Left alone


def test_nothing_to_fuse():
    for model in (nn.Linear(2, 2), AutoModelForSemanticSegmentation.from_config(MobileViTConfig())):
        report = fuse(model).fuse_report
        assert (report.fused, report.left_alone, str(report)) == ([], [], "nothing to fuse")
    unfuse(nn.Linear(2, 2))
    with pytest.raises(UserError, match="given a str"):
        fuse("nvidia/mit-b0")


class MyHead(SegformerDecodeHead):
    pass


def test_a_subclass_is_left_alone():
    model = build()
    model.decode_head.__class__ = MyHead
    assert reason(model) == "MyHead is a subclass of SegformerDecodeHead"
    assert type(model.decode_head) is MyHead


def _hook(model):
    model.decode_head.linear_fuse.register_forward_hook(lambda module, args, output: output + 1)


def _pre_hook(model):
    model.decode_head.linear_projections[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def _backward_hook(model):
    model.decode_head.linear_projections[1].proj.register_full_backward_hook(lambda module, grads, outputs: None)


def _replaced_forward(model):
    child = model.decode_head.linear_fuse
    child.forward = lambda inputs: F.conv2d(inputs, child.weight) + 1


def _parametrized(model):
    torch.nn.utils.parametrizations.weight_norm(model.decode_head.linear_projections[0].proj)


def _other_child(model):
    model.decode_head.linear_fuse = nn.Sequential(model.decode_head.linear_fuse, nn.Tanh())


def _other_convolution(model):
    model.decode_head.linear_fuse = nn.Conv2d(48, 12, 3, padding=1, bias=False)


def _quantised(model):
    weight = model.decode_head.linear_fuse.weight

    class Packed(nn.Parameter):
        pass

    model.decode_head.linear_fuse.weight = Packed(weight.detach())


WRAPPINGS = {
    _hook: "linear_fuse has hooks",
    _pre_hook: "linear_projections.1 has hooks",
    _backward_hook: "linear_projections.1.proj has hooks",
    _replaced_forward: "linear_fuse has a replaced forward",
    _parametrized: "linear_projections.0.proj is a ParametrizedLinear, not a Linear",
    _other_child: "linear_fuse is a Sequential, not a Conv2d",
    _other_convolution: "linear_fuse is another convolution",
    _quantised: "linear_fuse has a weight of type Packed, torch.float32",
}


@pytest.mark.parametrize("wrap", WRAPPINGS, ids=lambda wrap: wrap.__name__.strip("_"))
def test_what_is_not_plain_is_left_alone_and_computed_plainly_when_it_comes_later(wrap):
    before, after, inputs = build(), fuse(build()), pixels()
    for model in (before, after):
        torch.manual_seed(0)
        wrap(model)
    assert reason(before) == WRAPPINGS[wrap]
    assert is_fused(after.decode_head) and after.decode_head.why_not() == WRAPPINGS[wrap]
    assert torch.equal(logits(after, inputs), logits(before, inputs))


def test_a_replaced_forward_of_the_head_itself_is_left_alone():
    model = build()
    model.decode_head.forward = lambda stages: stages[0]
    assert reason(model) == "its forward was replaced"


def test_hooks_on_what_still_runs_do_not_stand_in_the_way():
    model, seen = build(), []
    model.decode_head.register_forward_hook(lambda *_: seen.append("head"))
    model.decode_head.batch_norm.register_forward_hook(lambda *_: seen.append("norm"))
    model.decode_head.classifier.register_forward_hook(lambda *_: seen.append("classifier"))
    wanted = logits(model, pixels())
    seen.clear()
    assert is_fused(fuse(model, check=False).decode_head)
    assert_close(logits(model, pixels()), wanted, 1e-4)
    assert seen == ["norm", "classifier", "head"]


def test_an_unknown_source_is_left_alone(monkeypatch):
    import transformers

    def forward(self, encoder_hidden_states, **kwargs):
        """Another one."""
        return self.classifier(encoder_hidden_states[0])

    model = build()
    fusing.sources.digest.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(SegformerDecodeHead, "forward", forward)
        assert reason(model) == f"unknown version of SegformerDecodeHead (transformers {transformers.__version__})"
    fusing.sources.digest.cache_clear()
    assert fuse(model).fuse_report.fused


def test_the_digest_reads_code_only(tmp_path, monkeypatch):
    texts = {
        "one": 'class A:\n    def forward(self, x: int) -> int:\n        """Doc."""\n        return x  # same\n',
        "two": "class A:\n\n    def forward(self, x):\n        return (x)\n",
        "three": "class A:\n    def forward(self, x):\n        return -x\n",
    }
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in texts.items():
        (tmp_path / f"digest_{name}.py").write_text(text)
    kinds = [fusing.sources.find(f"digest_{name}:A") for name in texts]
    one, two, three = (fusing.sources.digest(kind, FusedWholeModel) for kind in kinds)
    assert one == two != three


def test_the_table_is_printed(capsys):
    fusing.print_digests()
    printed = capsys.readouterr().out
    assert "unknown" not in printed and len(printed.splitlines()) == len(fusing.REWRITES)


def test_a_self_check_that_fails_puts_the_plain_class_back(monkeypatch):
    from hfseg.models.fusing.segformer import FusedSegformerDecodeHead as Fused

    composed = Fused._composed
    model, inputs = build().train(), pixels()
    state, wanted = copy.deepcopy(model.state_dict()), logits(copy.deepcopy(model).eval(), inputs)
    with monkeypatch.context() as patch:
        patch.setattr(Fused, "_composed", lambda self, folds: (composed(self, folds)[0], composed(self, folds)[1] + 1))
        assert reason(model).startswith("the check found a difference of ")
        assert is_fused(fuse(copy.deepcopy(model), check=False).decode_head)
    with monkeypatch.context() as patch:
        patch.setattr(Fused, "example", lambda self: 1 / 0)
        assert reason(model) == "the check failed: ZeroDivisionError: division by zero"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(model.eval(), inputs), wanted)


def test_a_model_without_memory_is_fused_unchecked():
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(CONFIGS["segformer"])
    assert fuse(model).fuse_report.fused and model(torch.empty(1, 3, 32, 32, device="meta")).logits.is_meta


def test_a_last_stage_that_is_not_reshaped_is_computed_plainly():
    model = build(reshape_last_stage=False)
    head = model.decode_head
    stages = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4), torch.randn(1, 16, 2, 2), torch.randn(1, 4, 16)]
    stages[3] = torch.randn(1, 16, 16)
    wanted = head(stages)
    assert is_fused(fuse(model).decode_head)
    assert torch.equal(head(stages), wanted)


def test_projections_without_a_bias():
    model, inputs = build(), pixels()
    for linear in model.decode_head.linear_projections:
        linear.proj.bias = None
    wanted = logits(model, inputs)
    assert is_fused(fuse(model).decode_head)
    assert_close(logits(model, inputs), wanted, 1e-4)


@pytest.mark.parametrize("sharded", ["decode_head.linear_fuse", "decode_head", ""])
def test_sharded_parameters(sharded, tmp_path):
    from torch.distributed.fsdp import fully_shard

    model, inputs = build(), pixels()
    wanted = logits(copy.deepcopy(model), inputs)
    fuse(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for name in dict.fromkeys((sharded, "")):
            fully_shard(model.get_submodule(name), mesh=mesh)
        found = model(pixel_values=inputs).logits
        found.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_close(found, wanted, 1e-4)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_low_rank_adapters_before_and_after():
    peft = pytest.importorskip("peft")
    model, inputs = build(), pixels()

    def adapt(model):
        torch.manual_seed(0)
        settings = peft.LoraConfig(target_modules=["linear_fuse", "proj"], r=2, init_lora_weights=False)
        return peft.get_peft_model(model, settings).eval()

    fused = adapt(fuse(copy.deepcopy(model)))
    plain = adapt(copy.deepcopy(model))
    wanted = logits(plain, inputs)
    assert not torch.allclose(wanted, logits(model, inputs), atol=1e-3)
    assert torch.equal(logits(fused, inputs), wanted)
    assert "not a " in reason(plain)

    settings = peft.LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["decode_head"])
    kept = fuse(peft.get_peft_model(copy.deepcopy(model), settings).eval())
    assert len(kept.fuse_report.fused) == 2  # the copy that trains and the original
    assert_close(logits(kept, inputs), logits(model, inputs), 1e-4)


def test_no_generator_is_seeded_but_the_one_that_draws(monkeypatch):
    """`torch.manual_seed` reaches those of every device, where nothing would put them back."""
    model, seeded = build(), []
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeded.append(seed))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeded.append(seed))
    before = torch.get_rng_state()
    assert fuse(model).fuse_report.fused and not seeded
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_the_self_check_sees_what_only_training_does(wrong, monkeypatch):
    config = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    assert fuse(SwinModel(config)).fuse_report.fused
    right = getattr(swin._LinearOfGelu, wrong)

    def changed(*arguments):
        result = right(*arguments)
        return (5 * result[0], *result[1:]) if isinstance(result, tuple) else 5 * result

    monkeypatch.setattr(swin._LinearOfGelu, wrong, staticmethod(changed))
    report = fuse(SwinModel(config)).fuse_report
    assert not report.fused and all("the check found a difference" in reason for _, reason in report.left_alone)


def test_the_same_seed_drops_out_the_same():
    model, inputs = build(classifier_dropout_prob=0.5).train(), pixels()
    found = []
    for one in (copy.deepcopy(model), fuse(copy.deepcopy(model))):
        torch.manual_seed(3)
        found.append(one(pixel_values=inputs).logits)
    assert_close(*found, 1e-4)


def test_unfuse_lets_go_of_accelerates_hooks():
    model, inputs = build(), pixels()
    wanted = logits(model, inputs)
    fuse(model)
    dispatch_model(model, {"segformer": "cpu", "decode_head": "cpu"}, main_device="cpu", force_hooks=True)
    unfuse(model)
    assert_close(logits(model, inputs), wanted, 1e-4)
    remove_hook_from_submodules(model)
    assert_close(logits(model, inputs), wanted, 1e-4)


def test_aligned_corners_and_global_hooks_are_computed_plainly():
    model, inputs = build("upernet"), pixels()
    fuse(model).decode_head.align_corners = True
    found = logits(model, inputs)
    assert_close(found, logits(unfuse(model), inputs), 1e-6)
    model = fuse(build())
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 1.5 * output if isinstance(module, nn.Conv2d) else None)
    try:
        found = logits(model, inputs)
        assert_close(found, logits(unfuse(model), inputs), 1e-6)
    finally:
        handle.remove()


def test_functional_transforms_and_second_derivatives_of_swin():
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    plain = SwinModel(config).double()
    plain.set_attn_implementation("eager")  # which can be differentiated twice, and forward
    fused, inputs = fuse(copy.deepcopy(plain)), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    slopes = []
    for model in (plain, fused):
        parameters = dict(model.named_parameters())
        tangent = {name: torch.ones_like(value) for name, value in parameters.items()}
        call = lambda p, model=model: torch.func.functional_call(model, p, (inputs,)).last_hidden_state  # noqa: E731
        slopes.append([torch.func.jvp(call, (parameters,), (tangent,))[1]])
        image = inputs.clone().requires_grad_()
        [first] = torch.autograd.grad(model(image).last_hidden_state.square().sum(), image, create_graph=True)
        slopes[-1] += torch.autograd.grad(first.square().sum(), image)
    for one, other in zip(*slopes, strict=True):
        assert_close(one, other, 1e-9)

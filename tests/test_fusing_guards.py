"""Whatever is not plain is left alone, or computed plainly, and the report says why."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSemanticSegmentation,
    MobileViTConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinModel,
)
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from fusing_models import CONFIGS, FusedWholeModel, assert_close, build, logits, pixels, reason
from hfseg.errors import UserError
from hfseg.models import fusing
from hfseg.models.fusing import fuse, is_fused, swin, unfuse


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

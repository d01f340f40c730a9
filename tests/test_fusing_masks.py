"""Mask2Former, OneFormer, EoMT: fused, they compute what transformers computes, for the same random points."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.models.mask2former import modeling_mask2former as source
from transformers.models.swin.modeling_swin import SwinMLP

from hfseg.models.fusing import REWRITES, Rewrite, deformable, fuse, is_fused, mask_loss, masked_attention, unfuse

SIDE = 64
POINTS = {"train_num_points": 50}


def swin() -> SwinConfig:
    stages = [f"stage{number}" for number in range(1, 5)]
    return SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, out_features=stages)


def mask2former(**other) -> nn.Module:
    config = {
        "backbone_config": swin(), "feature_size": 32, "mask_feature_size": 16, "hidden_dim": 32, "num_labels": 5,
        "num_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 4, "num_queries": 7,
        "encoder_feedforward_dim": 16, "dim_feedforward": 16,
    }  # fmt: skip
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**{**config, **POINTS, **other}))


def oneformer() -> nn.Module:
    return OneFormerForUniversalSegmentation(OneFormerConfig(
        backbone_config=swin(), conv_dim=64, mask_dim=64, hidden_dim=64, num_labels=5, num_attention_heads=4,
        encoder_layers=2, decoder_layers=4, num_queries=7, encoder_feedforward_dim=16, dim_feedforward=16,
        query_dec_layers=1, text_encoder_width=64, text_encoder_num_layers=1, text_encoder_context_length=5,
        text_encoder_vocab_size=20, text_encoder_n_ctx=4, task_seq_len=5, common_stride=4, use_auxiliary_loss=True,
        is_training=True, **POINTS,
    ))  # fmt: skip


def eomt(kind=EomtForUniversalSegmentation, config=EomtConfig) -> nn.Module:
    return kind(config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=SIDE,
        patch_size=16, num_blocks=1, num_queries=7, num_labels=5, num_upscale_blocks=1, num_register_tokens=1, **POINTS,
    ))  # fmt: skip


def eomt_dinov3() -> nn.Module:
    return eomt(EomtDinov3ForUniversalSegmentation, EomtDinov3Config)


FAMILIES = {f.__name__: f for f in (mask2former, oneformer, eomt, eomt_dinov3)}


@pytest.fixture
def double():
    """transformers draws points in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(build) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    for name, parameter in model.named_parameters():  # zero at first, which would hide most of the attention
        if "sampling_offsets" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch(model: nn.Module, counts=(3, 1), sizes=((SIDE, SIDE), (SIDE, SIDE))) -> dict:
    torch.manual_seed(1)
    inputs = {
        "pixel_values": torch.randn(len(counts), 3, SIDE, SIDE),
        "mask_labels": [(torch.rand(n, *size) > 0.5).to(torch.get_default_dtype()) for n, size in zip(counts, sizes)],
        "class_labels": [torch.arange(n) % 5 for n in counts],
    }
    if "oneformer" in type(model).__module__:
        inputs["task_inputs"] = torch.randint(0, 20, (len(counts), 5))
        inputs["text_inputs"] = torch.randint(0, 20, (len(counts), 3, 5))
    return inputs


def step(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(2)
    loss = model(**inputs).loss
    model.zero_grad(set_to_none=True)
    loss.sum().backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(model: nn.Module, inputs: dict, tolerance: float) -> None:
    loss, gradients = step(model, inputs)
    report = fuse(model).fuse_report
    assert report.fused and not report.left_alone, str(report)
    fused_loss, fused_gradients = step(model, inputs)
    torch.testing.assert_close(fused_loss, loss, rtol=tolerance, atol=tolerance)
    assert fused_gradients.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values()).item()
    for name, gradient in gradients.items():
        limit = tolerance * max(gradient.abs().max().item(), 1e-3 * largest)
        difference = (fused_gradients[name] - gradient).abs().max().item()
        assert difference <= limit, f"{name}: {difference:.1e}, of {gradient.abs().max():.1e}"


# -- whole models


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_model(family, double):
    model = made(FAMILIES[family]).train()
    if family == "oneformer":
        model.criterion.loss_contrastive = lambda *_: {}  # it is in single precision always, and fails in double
    compare(model, batch(model), 1e-9)


@pytest.mark.parametrize("counts", [(0, 2), (0, 0), (9, 1)], ids=["an empty image", "no target", "more than queries"])
def test_loss_with_few_and_many_targets(counts, double):
    model = made(mask2former).train()
    compare(model, batch(model, counts), 1e-9)


def test_loss_with_targets_of_two_sizes(double):
    model = made(mask2former).train()
    compare(model, batch(model, (2, 3), ((40, 56), (64, 32))), 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_in_single_precision(family):
    # A point or a bit of an attention mask may fall on the other side by rounding: hence not tighter.
    model = made(FAMILIES[family]).train()
    compare(model, batch(model), 1e-3)


def test_norms_first(double):
    model = made(lambda: mask2former(pre_norm=True)).train()
    compare(model, batch(model), 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_gives_the_same(family, double):
    model = made(FAMILIES[family]).eval()
    inputs = {k: v for k, v in batch(model).items() if k not in ("mask_labels", "class_labels")}
    more = {} if family.startswith("eomt") else {"output_auxiliary_logits": True}
    outputs = []
    for change in (unfuse, fuse):
        change(model)
        torch.manual_seed(3)  # OneFormer drops out in eval mode, too, while config.is_training is set
        with torch.no_grad():
            outputs.append(model(**inputs, **more))
    plain, fused = outputs
    assert plain.keys() == fused.keys()
    torch.testing.assert_close(fused.masks_queries_logits, plain.masks_queries_logits)
    torch.testing.assert_close(fused.class_queries_logits, plain.class_queries_logits)
    if family == "mask2former":
        for one, other in zip(fused.auxiliary_logits, plain.auxiliary_logits, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["mask2former", "oneformer"])
def test_attentions_are_returned_where_asked_for(family, double):
    model = made(FAMILIES[family]).eval()
    inputs = {k: v for k, v in batch(model).items() if not k.endswith("_labels")} | {"output_attentions": True}
    found = []
    for change in (unfuse, fuse):
        torch.manual_seed(3)
        found.append(change(model)(**inputs).attentions)
    assert found[0] is not None
    torch.testing.assert_close(*found)


# -- masks that only the attention looks at


def products(model: nn.Module, inputs: dict, monkeypatch) -> list[tuple[int, ...]]:
    """The sizes of the masks that an inference makes, layer by layer."""
    sizes = []
    einsum, multiply = torch.einsum, masked_attention._SparseProduct.apply

    def noted(embeddings, pixels):
        sizes.append(pixels.shape[2])
        return multiply(embeddings, pixels)

    def seen(equation, embeddings, pixels):
        sizes.append(pixels.shape[2] * pixels.shape[3])
        return einsum(equation, embeddings, pixels)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "einsum", seen)
        patch.setattr(masked_attention._SparseProduct, "apply", noted)
        torch.manual_seed(3)
        model(**inputs)
    return sizes


def test_inner_masks_are_made_small_where_nobody_asks_for_them(monkeypatch):
    pixels = {"pixel_values": torch.randn(2, 3, SIDE, SIDE)}
    model = fuse(made(mask2former).eval())
    assert products(model, pixels, monkeypatch) == [4, 16, 64, 256]  # of 1/32, 1/16, 1/8, then the masks of 1/4
    assert products(model, pixels | {"output_auxiliary_logits": True}, monkeypatch) == [256] * 4
    assert products(model, batch(model), monkeypatch) == [256] * 4
    model.config.output_auxiliary_logits = True
    assert products(model, pixels, monkeypatch) == [256] * 4
    for build in (eomt, eomt_dinov3):
        model = fuse(made(build).eval())
        assert products(model, pixels, monkeypatch) == [16, 64]
        assert products(model, batch(model), monkeypatch) == [64, 64]
        model.attn_mask_probs.zero_()  # as in what is published: no masked attention in inference
        assert products(model, pixels, monkeypatch) == [64]
        model.predict = model.predict
        assert "predict was replaced" in fuse(unfuse(model)).fuse_report.left_alone[0][1]


def test_whoever_watches_inner_masks_sees_them_whole(monkeypatch):
    model, pixels = fuse(made(mask2former).eval()), {"pixel_values": torch.randn(2, 3, SIDE, SIDE)}
    predictor, seen = model.model.transformer_module.decoder.mask_predictor, []
    handle = predictor.register_forward_hook(lambda module, args, output: seen.append(output[0].shape[2:]))
    assert products(model, pixels, monkeypatch) == [256] * 4 and seen == [(16, 16)] * 4
    handle.remove()
    model.model.register_forward_hook(lambda module, args, output: seen.append(len(output.masks_queries_logits)))
    assert products(model, pixels, monkeypatch) == [256] * 4
    assert "model has hooks" in dict(fuse(unfuse(model)).fuse_report.left_alone)["model"]


def test_inferences_in_threads_do_not_meet(double):
    model = fuse(made(mask2former).eval())
    inputs = [{"pixel_values": torch.randn(1, 3, side, side)} for side in (64, 96, 64, 128)]
    with torch.no_grad():
        wanted = [unfuse(copy.deepcopy(model))(**one).masks_queries_logits for one in inputs]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda one: model(**one, output_auxiliary_logits=len(one) > 1), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.masks_queries_logits, other)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mask2former", "eomt"])
def test_compiled_as_the_plain_model_is(family):
    model = made(FAMILIES[family]).eval()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = model(pixel_values=pixels).masks_queries_logits
        found = torch.compile(fuse(model), backend="eager")(pixel_values=pixels).masks_queries_logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_version_that_nobody_read_is_left_alone(family, monkeypatch):
    for key, rewrite in REWRITES.items():
        monkeypatch.setitem(REWRITES, key, Rewrite(rewrite.fused, {"another"}))
    model = fuse(made(FAMILIES[family]))
    assert not any(map(is_fused, model.modules())) and not model.fuse_report.fused
    assert all(reason.startswith("unknown version of ") for _, reason in model.fuse_report.left_alone)
    assert len(model.fuse_report.left_alone) > 1


@pytest.mark.parametrize("build", [mask2former, lambda: mask2former(dropout=0.1)], ids=["", "dropout"])
def test_runs_under_autocast(build):
    model = fuse(made(build)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = step(model, batch(model))
    exact, _ = step(made(lambda: mask2former()).train(), batch(model))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    torch.testing.assert_close(loss.float(), exact, rtol=0.2, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_is_taken_back_exactly_and_leaves_no_trace(family, tmp_path):
    model = made(FAMILIES[family])
    classes = [type(module) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model).save_pretrained(tmp_path)
    again = classes[0].from_pretrained(tmp_path)
    assert not any(map(is_fused, again.modules()))
    for other in (again, model, copy.deepcopy(model)):
        torch.testing.assert_close(dict(other.state_dict()), state, rtol=0, atol=0)
    # The whole model cannot be pickled, plain or fused: transformers puts local functions on a Swin as hooks.
    parts = nn.ModuleList(part for part in model.modules() if is_fused(part) and part is not model)
    for whole, other in ((model, copy.deepcopy(model)), (parts, pickle.loads(pickle.dumps(parts)))):
        assert [type(module) for module in other.modules()] == [type(module) for module in whole.modules()]
    assert [type(module) for module in unfuse(model).modules()] == classes


# -- what keeps a module plain


def test_hooks_keep_the_plain_way():
    model = made(mask2former)
    layer = model.model.pixel_level_module.decoder.encoder.layers[0].self_attn
    seen = []
    handle = layer.value_proj.register_forward_hook(lambda *_: seen.append(1))
    report = fuse(model).fuse_report
    [(name, reason)] = report.left_alone
    assert name.endswith("decoder.encoder.layers.0.self_attn") and "value_proj has hooks" in reason
    handle.remove()
    assert not fuse(model).fuse_report.left_alone
    decoder = model.model.transformer_module.decoder.layers[0]
    decoder.cross_attn.register_forward_hook(lambda *_: seen.append(2))
    assert "cross_attn has hooks" in decoder.why_not()
    model(**batch(model))
    assert seen == [2]


def test_replaced_methods_of_the_loss_are_called():
    model = made(mask2former).train()
    model.criterion.calculate_uncertainty = lambda logits: logits
    [(name, reason)] = fuse(model).fuse_report.left_alone
    assert name == "criterion" and "calculate_uncertainty was replaced" in reason
    del model.criterion.calculate_uncertainty
    assert is_fused(fuse(model).criterion)
    calls = []
    model.criterion.calculate_uncertainty = lambda logits: calls.append(1) or logits
    model(**batch(model))
    assert len(calls) == 4  # a layer each


# -- deformable attention

plain_attention = source.multi_scale_deformable_attention


def inputs_of_attention(seed, batch, shapes, queries, heads, dim, points, spread, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    length = sum(height * width for height, width in shapes)
    sizes = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, length, heads, dim, generator=generator, dtype=dtype)
    locations = 0.5 + spread * torch.randn(*sizes, 2, generator=generator, dtype=dtype)
    weights = torch.randn(sizes, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    queries=st.integers(1, 4),
    heads=st.integers(1, 3),
    dim=st.integers(1, 5),
    points=st.integers(1, 3),
    spread=st.sampled_from([0.1, 0.5, 3.0]),
)
def test_attention_is_that_of_the_source(seed, batch, shapes, queries, heads, dim, points, spread):
    tensors = inputs_of_attention(seed, batch, shapes, queries, heads, dim, points, spread)
    outputs = [f(tensors[0], shapes, *tensors[1:]) for f in (plain_attention, deformable.deformable_attention)]
    torch.testing.assert_close(outputs[1], outputs[0])
    weight = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, tensors, weight) for output in outputs]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_attention_without_the_compiled_loop_is_the_same(monkeypatch):
    tensors = inputs_of_attention(0, 2, [(3, 4), (2, 2)], 5, 2, 3, 2, 0.4)
    compiled = deformable.deformable_attention(tensors[0], [(3, 4), (2, 2)], *tensors[1:])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    plain = deformable.deformable_attention(tensors[0], [(3, 4), (2, 2)], *tensors[1:])
    torch.testing.assert_close(compiled, plain)
    assert compiled.grad_fn.name() != plain.grad_fn.name()


def test_gradient_of_attention():
    shapes = [(3, 4), (2, 2)]
    tensors = inputs_of_attention(3, 2, shapes, 3, 2, 2, 2, 0.4)
    assert torch.autograd.gradcheck(lambda v, *rest: deformable.deformable_attention(v, shapes, *rest), tensors)


def test_attention_in_threads():
    shapes = [(16, 16), (8, 8)]
    tensors = inputs_of_attention(3, 2, shapes, 200, 4, 16, 4, 0.4, torch.float32)
    threads = torch.get_num_threads()
    results = []
    for number in (1, 3):
        torch.set_num_threads(number)
        output = deformable.deformable_attention(tensors[0], shapes, *tensors[1:])
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_undefined_location_gives_an_undefined_output(bad):
    value, locations, weights = (t.detach() for t in inputs_of_attention(0, 1, [(3, 3)], 2, 1, 2, 1, 0.2))
    locations[0, 1, 0, 0, 0, 0] = bad
    for f in (plain_attention, deformable.deformable_attention):
        output = f(value, [(3, 3)], locations, weights)
        assert output[0, 0].isfinite().all() and output[0, 1].isnan().all()


def test_attention_refuses_other_shapes():
    layer = made(mask2former).model.pixel_level_module.decoder.encoder.layers[0].self_attn
    fuse(layer)
    _, inputs = layer.example()
    with pytest.raises(ValueError, match="another number of pixels"):
        layer(**{**inputs, "spatial_shapes_list": [(2, 2)] * 3})


def test_attention_with_boxes_as_references(double):
    layer = made(mask2former).model.pixel_level_module.decoder.encoder.layers[0].self_attn
    inputs = {**fuse(layer).example()[1], "reference_points": torch.rand(2, 38, 3, 4)}
    fused = layer(**inputs)
    torch.testing.assert_close(fused, unfuse(layer)(**inputs))


# -- the pieces of the loss


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), queries=st.integers(1, 6), targets=st.integers(0, 8), scale=st.sampled_from([1, 30]))
def test_matching_is_that_of_the_source(seed, queries, targets, scale):
    matcher = source.Mask2FormerHungarianMatcher(2.0, 5.0, 5.0, num_points=40)
    generator = torch.Generator().manual_seed(seed)
    inputs = (
        scale * torch.randn(2, queries, 8, 9, generator=generator),
        torch.randn(2, queries, 4, generator=generator),
        [(torch.rand(n, 20, 16, generator=generator) > 0.5).float() for n in (targets, 1)],
        [torch.randint(0, 3, (n,), generator=generator) for n in (targets, 1)],
    )
    torch.manual_seed(seed)
    plain = matcher(*inputs)
    after = torch.rand(1)
    torch.manual_seed(seed)
    torch.testing.assert_close(mask_loss.match(matcher, *inputs), plain)
    assert torch.rand(1) == after  # as many random numbers were drawn


def test_an_undefined_mask_is_matched_last():
    matcher = source.Mask2FormerHungarianMatcher(2.0, 5.0, 5.0, num_points=40)
    masks = torch.randn(1, 3, 8, 8)
    masks[0, 1] = float("nan")
    found = [(torch.rand(2, 16, 16) > 0.5).float()], [torch.tensor([0, 1])]
    [(queries, _)] = mask_loss.match(matcher, masks, torch.randn(1, 3, 4), *found)
    assert queries.tolist() == [0, 2]


@pytest.mark.parametrize("rows", [[], [0, 3], [0, 1, 2, 3]])
def test_gradient_of_masks_with_zero_rows(rows):
    embeddings = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    pixels = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(2, 4, 5, 6, dtype=torch.float64)
    weight[1, rows] = torch.randn(len(rows), 5, 6, dtype=torch.float64)
    outputs = torch.einsum("bqc,bchw->bqhw", embeddings, pixels), masked_attention.mask_logits(embeddings, pixels)
    torch.testing.assert_close(outputs[1], outputs[0])
    gradients = [torch.autograd.grad(output, (embeddings, pixels), weight) for output in outputs]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_attention_masks_are_the_same_bits():
    predictor = source.Mask2FormerMaskPredictor(8, 4, 6)
    inputs = torch.randn(5, 2, 8), torch.randn(2, 6, 24, 16), (7, 5)
    plain = predictor(*inputs)
    torch.testing.assert_close(fuse(predictor)(*inputs), plain, rtol=0, atol=0)
    assert plain[1].any() and not plain[1].all()


def test_a_resized_embedding_gives_resized_masks():
    torch.manual_seed(0)
    embeddings, pixels = torch.randn(2, 9, 16).double(), torch.randn(2, 16, 24, 40).double()
    whole = masked_attention.mask_logits(embeddings, pixels)
    sizes = [(12, 20), (6, 10), (5, 7), (12, 20), (24, 40)]
    with masked_attention.unseen_masks(len(sizes)):
        for size in sizes:
            wanted = F.interpolate(whole, size=size, mode="bilinear", align_corners=False)
            torch.testing.assert_close(masked_attention.small_masks(embeddings, pixels, size), wanted)
        assert masked_attention.small_masks(embeddings, pixels, sizes[0]) is None
    assert masked_attention.small_masks(embeddings, pixels, sizes[0]) is None
    with masked_attention.unseen_masks(2):  # another embedding, and one of half precision
        masked_attention.small_masks(embeddings, pixels, (6, 10))
        wanted = F.interpolate(masked_attention.mask_logits(embeddings, 2 * pixels), size=(6, 10), mode="bilinear")
        assert masked_attention.small_masks(embeddings.half(), pixels.half(), (6, 10)) is None
        torch.testing.assert_close(masked_attention.small_masks(embeddings, 2 * pixels, (6, 10)), wanted)


def test_attention_where_heads_have_masks_of_their_own(double):
    layer = made(mask2former).model.transformer_module.decoder.layers[0]
    args, _ = fuse(layer).example()
    mask = torch.rand(args[-1].shape) < 0.4
    mask[:, :, 0] = False
    fused = layer(*args[:-1], mask)
    torch.testing.assert_close(fused, unfuse(layer)(*args[:-1], mask))


@pytest.mark.parametrize("wanted", [True, False], ids=["all train", "frozen"])
def test_feed_forward_of_swin_keeps_less(wanted, double):
    layer = SwinMLP(swin(), 8)
    layer.fc2.requires_grad_(wanted)
    states = torch.randn(2, 5, 8, requires_grad=True)

    def run():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
            output = layer(states)
        wrt = [states, *(p for p in layer.parameters() if p.requires_grad)]
        return len(set(kept)), output, torch.autograd.grad(output.square().sum(), wrt)

    kept, output, gradients = run()
    fuse(layer)
    fewer, fused_output, fused_gradients = run()
    torch.testing.assert_close(fused_output, output)
    torch.testing.assert_close(fused_gradients, gradients)
    assert fewer == kept - 1 if wanted else fewer <= kept

"""The losses against torch's own, against definitions written out, and on input that breaks others."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hfseg.errors import UserError
from hfseg.losses import LOSSES
from hfseg.objective import build_loss, class_weights
from hfseg.ops import strips
from hfseg.recipe import LossConfig

IGNORE = 255
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0])


def batch(seed: int = 0, classes: int = 4, size: int = 6, dtype=torch.float64, ignored: float = 0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, size, size, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (2, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return logits, labels


def loss(name: str, logits, labels, weights=None, **fields):
    classes = 2 if fields.get("binary") else logits.shape[1]
    return build_loss(LossConfig(terms={name: 1.0}, **fields), classes, IGNORE, weights)(logits, labels)


def jaccard(truth, mistaken) -> float:
    """1 - IoU of the prediction that is wrong at exactly the `mistaken` pixels."""
    predicted = truth ^ mistaken
    return 1 - int((truth & predicted).sum()) / int((truth | predicted).sum())


def literal_lovasz(logits, labels, classes) -> float:
    """Berman et al., equation 8: sorted errors, times the rise of the Jaccard loss as each turns wrong."""
    valid = labels != IGNORE
    probs = logits.softmax(1).movedim(1, -1)[valid]
    values = []
    for k in classes:
        truth = labels[valid] == k
        if truth.any():
            errors, order = (truth.double() - probs[:, k]).abs().sort(descending=True)
            mistaken, value, before = torch.zeros_like(truth), 0.0, 0.0
            for error, pixel in zip(errors, order, strict=True):
                mistaken[pixel] = True
                after = jaccard(truth, mistaken)
                value, before = value + float(error) * (after - before), after
            values.append(value)
    return sum(values) / len(values)


def literal_tversky(logits, labels, alpha, beta, classes) -> float:
    valid = labels != IGNORE
    probs, values = logits.softmax(1).movedim(1, -1)[valid], []
    for k in classes:
        truth, p = (labels[valid] == k).double(), probs[:, k]
        if truth.any():
            hit, false_positive, false_negative = (
                (p * truth).sum(),
                (p * (1 - truth)).sum(),
                ((1 - p) * truth).sum(),
            )
            values.append(1 - hit / (hit + alpha * false_positive + beta * false_negative))
    return float(sum(values) / len(values))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(weights, smoothing):
    logits, labels = batch()
    expected = F.cross_entropy(
        logits,
        labels,
        weight=None if weights is None else weights.double(),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(
        loss("cross_entropy", logits, labels, weights, label_smoothing=smoothing), expected
    )


def test_logits_are_upsampled_to_the_labels():
    logits, labels = batch(size=12)
    small = logits[:, :, :3, :4]
    full = F.interpolate(small, size=(12, 12), mode="bilinear", align_corners=False)
    for name in LOSSES:
        torch.testing.assert_close(loss(name, small, labels), loss(name, full, labels))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_0_and_ohem_of_all_are_cross_entropy(weights):
    logits, labels = batch()
    expected = loss("cross_entropy", logits, labels, weights)
    torch.testing.assert_close(loss("focal", logits, labels, weights, focal_gamma=0.0), expected)
    torch.testing.assert_close(loss("ohem", logits, labels, weights, ohem_fraction=1.0), expected)


def test_focal_is_its_definition():
    logits, labels = batch()
    valid = labels != IGNORE
    p = logits.softmax(1).movedim(1, -1)[valid].gather(1, labels[valid][:, None])
    expected = ((1 - p) ** 1.5 * -p.log()).mean()
    torch.testing.assert_close(loss("focal", logits, labels, focal_gamma=1.5), expected)


def test_ohem_is_the_mean_of_the_hardest_pixels():
    logits, labels = batch()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[labels != IGNORE]
    kept = math.ceil(0.3 * len(losses))
    expected = losses.sort(descending=True).values[:kept].mean()
    torch.testing.assert_close(loss("ohem", logits, labels, ohem_fraction=0.3), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), ignored=st.floats(0, 0.8))
def test_overlap_losses_are_their_definitions(seed, classes, ignored):
    logits, labels = batch(seed, classes, size=4, ignored=ignored)
    if (labels == IGNORE).all():
        return
    everything = range(classes)
    lovasz = loss("lovasz", logits, labels).item()
    assert lovasz == pytest.approx(literal_lovasz(logits, labels, everything), abs=1e-9)
    assert 0 <= lovasz <= 1
    tversky = loss("tversky", logits, labels, tversky_alpha=0.3, tversky_beta=0.7).item()
    assert tversky == pytest.approx(literal_tversky(logits, labels, 0.3, 0.7, everything))
    dice = loss("dice", logits, labels).item()
    assert dice == pytest.approx(literal_tversky(logits, labels, 0.5, 0.5, everything))
    assert dice == pytest.approx(loss("tversky", logits, labels, tversky_alpha=0.5, tversky_beta=0.5).item())


def test_overlap_losses_of_a_certain_prediction_are_one_minus_the_scores():
    """With probabilities 0 and 1, dice is 1 - F1 and both Lovász and Tversky(1, 1) are 1 - IoU."""
    torch.manual_seed(3)
    labels, predicted = torch.randint(0, 3, (2, 1, 8, 8))
    logits = 1000 * F.one_hot(predicted, 3).movedim(-1, 1).double()
    cut = [((labels == k) & (predicted == k)).sum() for k in range(3)]
    both = [(labels == k).sum() + (predicted == k).sum() for k in range(3)]
    iou = sum(1 - c / (b - c) for c, b in zip(cut, both, strict=True)) / 3
    f1 = sum(1 - 2 * c / b for c, b in zip(cut, both, strict=True)) / 3
    assert loss("dice", logits, labels).item() == pytest.approx(f1.item())
    assert loss("lovasz", logits, labels).item() == pytest.approx(iou.item())
    assert loss("tversky", logits, labels, tversky_alpha=1.0, tversky_beta=1.0).item() == pytest.approx(
        iou.item()
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right(name):
    logits, labels = batch(size=4)
    logits = logits[:, :, :2, :2].requires_grad_()
    # Lovász and OHEM are smooth here too: no two errors of random logits are equal.
    assert torch.autograd.gradcheck(lambda x: loss(name, x, labels, WEIGHTS, label_smoothing=0.1), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_nothing(name):
    logits, labels = batch()
    expected = loss(name, logits, labels, WEIGHTS)
    changed = torch.where((labels == IGNORE)[:, None], 50.0, logits).requires_grad_()
    value = loss(name, changed, labels, WEIGHTS)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert not changed.grad.movedim(1, -1)[labels == IGNORE].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.1, "focal_gamma": 0.5}])
def test_nothing_labelled_is_exactly_zero(name, fields):
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    value = loss(name, logits, torch.full((2, 6, 6), IGNORE), WEIGHTS, **fields)
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_an_unlabelled_image_beside_a_labelled_one_contributes_nothing(name):
    logits, labels = batch(ignored=0.0)
    labels[1] = IGNORE
    logits.requires_grad_()
    value = loss(name, logits, labels)
    torch.testing.assert_close(value, loss(name, logits[:1], labels[:1]))
    value.backward()
    assert not logits.grad[1].any() and logits.grad[0].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_huge_logits_and_a_batch_of_one_class_stay_finite(name, gamma):
    for magnitude in (1e4, 1e20):
        logits = magnitude * torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        logits.requires_grad_()
        value = loss(name, logits, torch.ones(1, 5, 5, dtype=torch.int64), focal_gamma=gamma)
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing(name):
    _, labels = batch(ignored=0.1)
    logits = 100.0 * F.one_hot(labels.clamp_max(3), 4).movedim(-1, 1)
    assert loss(name, logits, labels).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_statistics_are_float32_under_autocast(name):
    logits, labels = batch(dtype=torch.float32, size=40)
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(name, logits, labels, WEIGHTS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(name, logits.float(), labels, WEIGHTS))


@pytest.mark.parametrize("name", LOSSES)
def test_one_logit_is_the_difference_of_two(name):
    logits, labels = batch(classes=2)
    one = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(
        loss(name, one, labels, WEIGHTS[:2], binary=True),
        loss(name, logits, labels, WEIGHTS[:2], binary=True),
    )


def test_binary_is_the_sigmoid_and_overlap_counts_the_foreground_alone():
    logits, labels = batch(classes=2)
    valid = labels != IGNORE
    z = (logits[:, 1] - logits[:, 0])[valid]
    expected = F.binary_cross_entropy_with_logits(z, labels[valid].double())
    torch.testing.assert_close(loss("cross_entropy", logits, labels, binary=True), expected)
    foreground = loss("dice", logits, labels, binary=True).item()
    assert foreground == pytest.approx(literal_tversky(logits, labels, 0.5, 0.5, [1]))
    assert loss("lovasz", logits, labels, binary=True).item() == pytest.approx(
        literal_lovasz(logits, labels, [1])
    )


def test_terms_add_up_with_their_weights():
    logits, labels = batch()
    objective = build_loss(
        LossConfig(terms={"cross_entropy": 1.0, "dice": 0.5, "lovasz": 0.0}), 4, IGNORE, None
    )
    expected = loss("cross_entropy", logits, labels) + 0.5 * loss("dice", logits, labels)
    torch.testing.assert_close(objective(logits, labels), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_batch_gives_the_same_bits(name):
    logits, labels = batch(dtype=torch.float32, size=64)
    values = {loss(name, logits, labels, WEIGHTS).item() for _ in range(3)}
    assert len(values) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": {"crossentropy": 1.0}}, "cross_entropy"),
        ({"terms": {}}, "empty"),
        ({"terms": {"dice": -1.0}}, "loss.terms.dice"),
        ({"terms": {"dice": math.nan}}, "loss.terms.dice"),
        ({"terms": {"dice": 0.0}}, "above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ohem_fraction": 0.0}, "ohem_fraction"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"tversky_beta": -0.1}, "tversky_beta"),
        ({"binary": True}, "2 classes"),
    ],
)
def test_wrong_recipes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        build_loss(LossConfig(**fields), 3, IGNORE, None)


def test_a_wrong_number_of_logits_is_refused():
    _, labels = batch()
    with pytest.raises(UserError, match="5 logit"):
        build_loss(LossConfig(), 4, IGNORE, None)(torch.zeros(2, 5, 3, 3), labels)
    with pytest.raises(UserError, match="binary true"):
        build_loss(LossConfig(), 2, IGNORE, None)(torch.zeros(2, 1, 3, 3), labels)


def test_class_weights_as_given():
    names = ["road", "car", "sign"]
    assert class_weights(None, None, names) is None
    assert class_weights([1, 2, 3.5], None, names).tolist() == [1, 2, 3.5]
    assert class_weights({"car": 4}, None, names).tolist() == [1, 4, 1]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_automatic_weights_are_bounded_and_fall_with_the_frequency(counts):
    names = [str(k) for k in range(len(counts))]
    if not any(counts):
        with pytest.raises(UserError, match="labelled"):
            class_weights("auto", counts, names)
        return
    weights = class_weights("auto", counts, names)
    seen = [(count, weight) for count, weight in zip(counts, weights.tolist(), strict=True) if count]
    assert sum(weight for _, weight in seen) / len(seen) == pytest.approx(1, rel=1e-5)
    ordered = [weight for _, weight in sorted(seen)]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(ordered))
    assert max(ordered) / min(ordered) <= 100 * (1 + 1e-5)
    assert all(weights[k] == 1 for k, count in enumerate(counts) if not count)


@pytest.mark.parametrize(
    ("value", "frequencies", "message"),
    [
        ("automatic", [1, 1], "auto"),
        ("auto", None, "not known"),
        ([1.0], None, "2 classes"),
        ([1.0, -1.0], None, "finite"),
        ([0.0, 0.0], None, "not all 0"),
        ([1.0, math.inf], None, "finite"),
        ({"rood": 2.0}, None, "road"),
    ],
)
def test_wrong_class_weights_are_refused(value, frequencies, message):
    with pytest.raises(UserError, match=message):
        class_weights(value, frequencies, ["road", "car"])


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("elements", [1, 300, 10**6])
def test_strips_give_value_and_gradient_of_the_whole(elements, binary, monkeypatch):
    """Some rows at a time, or all pixels at once: the same sums, the same loss, the same gradient."""
    monkeypatch.setitem(strips._ELEMENTS, "cpu", elements)
    monkeypatch.setattr("hfseg.objective._SMALL", 0)
    classes = 2 if binary else 4
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, classes, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (3, 17, 20), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    config = LossConfig(terms={"cross_entropy": 1.0, "dice": 0.5, "focal": 2.0, "tversky": 0.3}, binary=binary,
                        label_smoothing=0.1)
    objective = build_loss(config, classes, IGNORE, WEIGHTS[:classes])
    found = objective(logits, labels)
    pixels = objective.pixels(F.interpolate(logits, size=(17, 20), mode="bilinear"), labels)
    values = {name: LOSSES[name].value(LOSSES[name].sums(pixels, config), config) for name in config.terms}
    expected = sum(weight * values[name] for name, weight in config.terms.items())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("terms", [{"cross_entropy": 1.0}, {"cross_entropy": 1.0, "dice": 1.0}, {"focal": 1.0}])
def test_the_full_size_logits_never_exist(terms, monkeypatch):
    monkeypatch.setitem(strips._ELEMENTS, "cpu", 20_000)
    monkeypatch.setattr("hfseg.objective._SMALL", 0)
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in (result if isinstance(result, tuple) else [result])
                           if isinstance(t, torch.Tensor))
            return result

    logits = torch.randn(1, 10, 16, 16, requires_grad=True)
    labels = torch.randint(0, 10, (1, 256, 256))
    with Sizes():
        build_loss(LossConfig(terms=terms), 10, IGNORE)(logits, labels).backward()
    assert max(largest) <= 256 * 256 < 10 * 256 * 256  # nothing larger than the label map


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
def test_large_images_keep_their_precision(name):
    """Sums over millions of pixels, most of them small beside the sum."""
    generator = torch.Generator().manual_seed(0)
    logits = 0.01 * torch.randn(1, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (1, 1500, 1500), generator=generator)
    labels[labels == 2] = 0
    fields = {"name": name, "labels": labels}
    exact, found = loss(logits=logits.double(), **fields), loss(logits=logits, **fields)
    assert float(found) == pytest.approx(float(exact), rel=2e-5)

"""Kernels against independent oracles: interpolate + argmax, scikit-learn, pycocotools, and rasterising back."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from scipy import ndimage
from sklearn.metrics import confusion_matrix

from hfseg.errors import UserError
from hfseg.ops import (
    confusion_counts,
    pair_counts,
    rle,
    strips,
    trace_polygons,
    upsample,
    upsample_argmax,
    upsample_confusion,
    upsample_cross_entropy,
    upsample_logits,
    upsample_threshold,
)
from hfseg.ops.compiled import compiled, share_out

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def assert_argmax_of(labels, full):
    """Labels are the argmax of the full-size logits, but for ties within rounding."""
    best = full.max(dim=1).values
    chosen = full.gather(1, labels.long()[:, None])[:, 0]
    assert torch.all(best - chosen <= 1e-5 * best.abs().clamp(min=1))
    assert (labels.long() == full.argmax(1)).float().mean() > 0.999


# -- upsample -----------------------------------------------------------------------------------------------


shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
sizes = st.tuples(st.integers(1, 50), st.integers(1, 50))


def drawn_logits(shape, seed: int, kind: str):
    """Logits that are easy, hard or mean to the upsampling kernels."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    if kind == "smooth":
        coarse = torch.randn((*shape[:2], 3, 3), generator=generator)
        return torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic")
    if kind == "few values":  # ties, and planes that are equal
        return noise.round()
    if kind == "equal planes":
        return noise[:, :1].expand(shape).clone()
    if kind == "huge":
        return noise * 1e30
    if kind == "one pixel":
        return torch.where(torch.arange(noise[0, 0].numel()).view(shape[2:]) == seed % noise[0, 0].numel(), noise, 0.0)
    return noise


kinds = st.sampled_from(["random", "smooth", "few values", "equal planes", "huge", "one pixel"])


@settings(max_examples=150, deadline=None)
@given(shapes, sizes, st.integers(0, 2**20), kinds)
def test_upsample_argmax_is_interpolate_then_argmax(shape, size, seed, kind):
    logits = drawn_logits(shape, seed, kind)
    full = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    labels, confidence = upsample_argmax(logits, size, return_confidence=True)
    assert torch.equal(upsample_argmax(logits, size), labels)
    best, chosen = full.max(1).values, full.gather(1, labels.long()[:, None])[:, 0]
    assert torch.all(best - chosen <= 1e-5 * full.abs().amax().clamp(min=1e-30))
    torch.testing.assert_close(upsample_logits(logits, size), full)
    assert torch.all((confidence <= 1) & (confidence >= 0.999 / shape[1]))
    if kind != "huge":  # there, the softmax of two nearly equal logits is decided by their rounding
        torch.testing.assert_close(confidence, full.softmax(1).max(1).values, atol=2e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(shapes, sizes, st.integers(0, 2**20), kinds, st.sampled_from([1, 100, 10**6]))
def test_strips_give_what_cells_give(shape, size, seed, kind, elements):
    logits = drawn_logits(shape, seed, kind)
    by_cells, sure = upsample_argmax(logits, size, return_confidence=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "_has_cells", lambda logits: False)
        patch.setitem(strips._ELEMENTS, "cpu", elements)
        by_strips, sure_by_strips = upsample_argmax(logits, size, return_confidence=True)
    full = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    gap = full.gather(1, by_cells.long()[:, None]) - full.gather(1, by_strips.long()[:, None])
    assert gap.abs().max() <= 1e-5 * full.abs().amax().clamp(min=1e-30)
    if kind != "huge":
        torch.testing.assert_close(sure, sure_by_strips, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("classes", "size"), [(1000, (70, 90)), (150, (400, 300)), (7, (900, 700))])
def test_threads_and_many_classes_change_nothing(threads, classes, size):
    logits = torch.randn(2, classes, 24, 31, generator=torch.Generator().manual_seed(3))
    full = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_argmax_of(upsample_argmax(logits, size), full)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [1e-3, 1, 30, 1e3, 1e5, 1e7, 1e9])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_the_softmax_is_as_exact_as_the_plain_one_however_far_apart_the_logits_lie(scale, offset):
    logits = scale * torch.randn(1, 60, 8, 8, generator=torch.Generator().manual_seed(5)).clamp(-3, 3) + offset
    truth, plain = (torch.nn.functional.interpolate(x, size=(50, 60), mode="bilinear", align_corners=False).softmax(1)
                    .max(1).values for x in (logits.double(), logits))
    _, confidence = upsample_argmax(logits, (50, 60), return_confidence=True)
    assert confidence.max() <= 1
    assert (confidence - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_machine_without_more_threads_leaves_nothing_out(allowed, monkeypatch):
    """The second thread is refused while the first is at work already."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("hfseg.ops.compiled._pools", {})
    start, started = threading.Thread.start, []

    def refuse(thread):
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    def work(image: int, first: int, last: int) -> int:
        time.sleep(0.005)
        return last - first

    assert sum(share_out(work, 1000, work=10**9)) == 1000


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(ZeroDivisionError):
        share_out(lambda image, first, last: 1 // (first - 500), 1000, work=10**9)


def test_a_full_disk_costs_the_next_process_time_and_nothing_else():
    """numba writes after the first call; under this limit no file can grow."""
    code = """
import resource, tempfile, os
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
import torch
from hfseg.ops import upsample_threshold
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
assert upsample_threshold(torch.ones(1, 2, 2), (5, 5)).all()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@settings(max_examples=100, deadline=None)
@given(shapes, sizes, st.integers(0, 2**20), kinds, st.sampled_from([255, 0, None, -7]),
       st.sampled_from([np.uint8, np.uint16, np.int64, np.int16]))
def test_counts_without_a_map_are_the_counts_of_the_map(shape, size, seed, kind, ignore, dtype):
    logits, classes = drawn_logits(shape, seed, kind)[0], shape[1]
    reference = np.random.default_rng(seed).integers(0, classes, size).astype(dtype)
    if ignore is not None and np.array(ignore).astype(dtype) == ignore:
        reference[:2] = ignore
    expected = confusion_counts(reference, upsample_argmax(logits, size).numpy(), classes, ignore)
    assert np.array_equal(upsample_confusion(logits, reference, ignore_index=ignore), expected)
    assert np.array_equal(upsample_confusion(logits, torch.from_numpy(reference.astype(np.int32)),
                                             ignore_index=ignore), expected)


def test_counts_without_a_map_list_values_outside_the_labels():
    reference = np.zeros((6, 6), np.uint8)
    reference[2, 3] = 9
    with pytest.raises(UserError, match="reference values outside the labels: 9"):
        upsample_confusion(torch.randn(3, 2, 2), reference)
    with pytest.raises(ValueError, match="reference"):
        upsample_confusion(torch.randn(1, 3, 2, 2), reference)


@settings(max_examples=100, deadline=None)
@given(shapes, sizes, st.integers(0, 2**20), kinds, st.sampled_from([0.0, 0.5, -1.25]),
       st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_threshold_is_interpolate_then_compare(shape, size, seed, kind, threshold, dtype):
    logits = drawn_logits(shape, seed, kind).to(dtype)
    wide = logits if dtype == torch.float64 else logits.float()
    full = torch.nn.functional.interpolate(wide, size=size, mode="bilinear", align_corners=False)
    found = upsample_threshold(logits, size, threshold)
    wrong = found != (full > threshold)
    assert found.dtype == torch.bool
    assert torch.all((full - threshold).abs()[wrong] <= 1e-5 * full.abs().amax())
    assert torch.equal(upsample_threshold(logits[0], size, threshold), found[0])


def test_threshold_of_nan_is_false():
    logits = torch.ones(1, 1, 2, 2)
    logits[0, 0, 0, 0] = float("nan")
    full = torch.nn.functional.interpolate(logits, size=(6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(upsample_threshold(logits, (6, 6)), full > 0)


def test_many_threads_may_call_at_the_same_time():
    logits = torch.randn(1, 40, 64, 64)
    expected = upsample_argmax(logits, (400, 400))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: upsample_argmax(logits, (400, 400)), range(12)))
    assert all(torch.equal(labels, expected) for labels in found)


def test_a_forked_process_gets_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert sum(_rows_done(0)) == 1000
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert sum(pool.apply_async(_rows_done, (0,)).get(timeout=60)) == 1000


def _rows_done(_: int) -> list[int]:
    return share_out(lambda image, first, last: last - first, 1000, work=10**9)


def test_compiled_code_is_kept_for_the_next_process(tmp_path):
    """The second process loads what the first one compiled, and a folder that cannot be written is no error."""
    code = """
import sys, torch
from hfseg.ops import upsample_argmax
assert upsample_argmax(torch.tensor([[[1.0]], [[2.0]]]), (3, 3)).min() == 1
from hfseg.ops import cells
print(sum(cells.label_rows.stats.cache_hits.values()), sum(cells.label_rows.stats.cache_misses.values()))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
            for _ in range(2)]  # fmt: skip
    assert [run.stdout.split() for run in runs] == [["0", "1"], ["1", "0"]]


def test_code_that_cannot_be_kept_is_compiled_all_the_same(monkeypatch):
    njit, options = numba.njit, []

    def no_place(*args, **kwargs):
        options.append(kwargs)
        if kwargs.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **kwargs)

    monkeypatch.setattr(numba, "njit", no_place)
    assert compiled(lambda x: x + 1)(1) == 2
    assert [kwargs.get("cache") for kwargs in options] == [True, None]


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("size", [(13, 22), (5, 4), (1, 1), (40, 3)])
def test_upsample_cross_entropy_is_interpolate_then_cross_entropy(size, smoothing, weights, monkeypatch):
    monkeypatch.setitem(strips._ELEMENTS, "cpu", 200)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (3, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[0, 0, 0] = 2
    weights = None if weights is None else torch.tensor(weights)
    full = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    expected = torch.nn.functional.cross_entropy(full, labels, None if weights is None else weights.double(),
                                                 ignore_index=255, label_smoothing=smoothing)
    found = upsample_cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found, logits), torch.autograd.grad(3 * expected, logits))


def test_upsample_cross_entropy_without_labels_is_zero():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = upsample_cross_entropy(logits, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_upsample_cross_entropy_takes_every_float_type(dtype):
    logits = torch.randn(2, 6, 7, 9).to(dtype).requires_grad_()
    labels = torch.randint(0, 6, (2, 30, 33))
    full = torch.nn.functional.interpolate(logits.float(), size=(30, 33), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.cross_entropy(full, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsample_cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


def test_upsample_cross_entropy_keeps_small_gradients_for_loss_scaling():
    logits = torch.randn(2, 150, 16, 16, generator=torch.Generator().manual_seed(1)).half().requires_grad_()
    labels = torch.randint(0, 150, (2, 64, 64), generator=torch.Generator().manual_seed(2))
    exact = logits.detach().double().requires_grad_()
    full = torch.nn.functional.interpolate(exact, size=(64, 64), mode="bilinear", align_corners=False)
    [expected] = torch.autograd.grad(65536 * torch.nn.functional.cross_entropy(full, labels), exact)
    [found] = torch.autograd.grad(65536 * upsample_cross_entropy(logits, labels), logits)
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_upsample_cross_entropy_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="labels"):
        upsample_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="weight"):
        upsample_cross_entropy(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), weight=torch.ones(4))


def test_counts_take_every_kind_of_integer():
    reference = np.array([[0, 1], [2, 1]])
    logits = torch.nn.functional.one_hot(torch.from_numpy(reference)).permute(2, 0, 1).float()
    for kind in (">i4", ">u2", "u8", "i1"):
        assert np.array_equal(upsample_confusion(logits, reference.astype(kind)), np.diag([1, 2, 1]))
        assert np.array_equal(confusion_counts(reference.astype(kind), reference, 3), np.diag([1, 2, 1]))
    with pytest.raises(UserError, match="18446744073709551615"):
        confusion_counts(np.array([2**64 - 1], np.uint64), np.array([0]), 3, ignore_index=-1)


def test_maps_of_no_class_ids_are_refused_before_they_fill_the_memory():
    values = np.arange(6000) + 10_000
    with pytest.raises(UserError, match="6000 and 6000 different values"):
        pair_counts(values, values)


@pytest.mark.parametrize("size", [(128, 192), (97, 131), (20, 31), (32, 48)])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_upsample_argmax_takes_every_float_type(size, kind):
    logits = torch.randn(2, 19, 32, 48, generator=torch.Generator().manual_seed(1)).to(kind)
    wide = logits if kind == torch.float64 else logits.float()
    full = torch.nn.functional.interpolate(wide, size=size, mode="bilinear", align_corners=False)
    assert_argmax_of(upsample_argmax(logits, size), full)


def test_upsample_argmax_takes_channels_last_and_one_image():
    logits = torch.randn(2, 5, 9, 7)
    expected = upsample_argmax(logits, (30, 20))
    assert torch.equal(upsample_argmax(logits.contiguous(memory_format=torch.channels_last), (30, 20)), expected)
    assert torch.equal(upsample_argmax(logits[0], (30, 20)), expected[0])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, 9 * x], -1)[..., 0],
        lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[..., 1:, 1:-2],
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
        lambda x: x.flip(1).requires_grad_(),
        lambda x: x[:0],
        lambda x: x[:, :1],
    ],
    ids=["transposed", "strided", "a window", "expanded", "with gradient", "no image", "one class"],
)
def test_upsample_takes_every_layout(view):
    logits = view(torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(1)))
    plain = logits.detach().clone(memory_format=torch.contiguous_format)
    labels, confidence = upsample_argmax(logits, (30, 20), return_confidence=True)
    full = upsample_logits(plain, (30, 20)) if len(plain) else plain.new_empty(0, 5, 30, 20)
    assert labels.shape == confidence.shape == (len(logits), 30, 20) and not confidence.requires_grad
    if len(plain):
        assert_argmax_of(labels, full)
    torch.testing.assert_close(confidence, full.softmax(1).amax(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(upsample_threshold(logits, (30, 20)), upsample_threshold(plain, (30, 20)))


@pytest.mark.parametrize(("classes", "kind"), [(256, torch.uint8), (257, torch.int16), (32769, torch.int32)])
def test_label_type_holds_every_class(classes, kind):
    logits = torch.zeros(classes, 1, 1)
    logits[-1] = 1
    labels = upsample_argmax(logits, (2, 2))
    assert labels.dtype == kind
    assert (labels == classes - 1).all()


def test_strips_never_hold_the_full_logits(monkeypatch):
    monkeypatch.setattr(upsample, "_has_cells", lambda logits: False)
    monkeypatch.setitem(strips._ELEMENTS, "cpu", 50_000)
    held, upsampled = [], strips.Strip.upsampled
    monkeypatch.setattr(strips.Strip, "upsampled", lambda *a: held.append(upsampled(*a)) or held[-1])
    upsample_argmax(torch.randn(40, 16, 16), (512, 256))  # 5 million values at full size
    assert max(part.numel() for part in held) <= 100_000


def test_ties_go_to_the_smallest_id_and_nan_wins_like_in_torch():
    assert upsample_argmax(torch.zeros(3, 2, 2), (5, 5)).max() == 0
    logits = torch.zeros(1, 3, 2, 4)
    logits[0, 2, 0, 0] = float("nan")
    full = torch.nn.functional.interpolate(logits, size=(8, 16), mode="bilinear", align_corners=False)
    labels, confidence = upsample_argmax(logits, (8, 16), return_confidence=True)
    assert torch.equal(labels.long(), full.argmax(1))
    assert torch.equal(confidence.isnan(), full.isnan().any(1))


@pytest.mark.parametrize("logits", [torch.zeros(3, 4), torch.zeros(0, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long)])
def test_upsample_refuses_what_are_no_logits(logits):
    with pytest.raises(ValueError, match="logits are"):
        upsample_argmax(logits, (4, 4))
    with pytest.raises(ValueError, match="size is"):
        upsample_argmax(torch.zeros(3, 4, 4), (0, 4))


# -- counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.uint16])
def test_confusion_counts_equal_scikit_learn(kind):
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 7, (2, 40, 30)).astype(kind)
    reference[3:9] = 100
    prediction[4] = 120  # wherever the reference is ignored, anything may be predicted
    kept = reference != 100
    expected = confusion_matrix(reference[kept], prediction[kept], labels=range(7))
    counts = confusion_counts(reference, prediction, 7, ignore_index=100)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected)
    if kind != np.uint16:
        tensors = confusion_counts(torch.from_numpy(reference), torch.from_numpy(prediction), 7, 100)
        assert tensors.dtype == torch.int64
        assert np.array_equal(tensors.numpy(), expected)


def test_many_classes_do_not_overflow_small_types():
    reference = np.full((3, 3), 250, dtype=np.uint8)
    assert confusion_counts(reference, reference, 251, 255)[250, 250] == 9
    tensor = torch.from_numpy(reference)
    assert confusion_counts(tensor, tensor, 251, 255)[250, 250] == 9


def test_all_ignored_counts_nothing():
    ignored = np.full((4, 4), 255, dtype=np.uint8)
    assert confusion_counts(ignored, np.zeros((4, 4), np.uint8), 3, 255).sum() == 0


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_values_outside_the_labels_are_listed(make):
    good, bad = make([[0, 1, 2, 255]]), make([[0, 5, 5, 9]])
    with pytest.raises(UserError, match=r"prediction values outside the labels: 5 \(2 pixels\)"):
        confusion_counts(good, bad, 3, 255)
    with pytest.raises(UserError, match=r"reference values outside the labels: 5 \(2 pixels\), 9 \(1 pixels\)"):
        confusion_counts(bad, good, 3, 255)
    with pytest.raises(UserError, match="-1"):
        confusion_counts(make([-1]), make([0]), 3, 255)
    with pytest.raises(UserError, match="shape"):
        confusion_counts(make([0, 1]), make([0]), 3, 255)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([(0, 5), (-3, 3), (0, 70000), (4094, 4098)]))
def test_pair_counts_find_every_pair(data, span):
    values = st.integers(*span)
    pairs = data.draw(st.lists(st.tuples(values, values), max_size=40))
    reference, prediction = (np.array([p[k] for p in pairs], dtype=np.int64) for k in (0, 1))
    rows, columns, counts = pair_counts(reference, prediction)
    found = {(rows[i].item(), columns[j].item()): counts[i, j].item() for i, j in zip(*np.nonzero(counts), strict=True)}
    assert found == {pair: pairs.count(pair) for pair in set(pairs)}
    assert (np.diff(rows) > 0).all()
    assert (np.diff(columns) > 0).all()


def test_pair_counts_take_whole_floats_and_bools_and_refuse_the_rest():
    _, _, counts = pair_counts(np.array([1.0, 1.0]), np.array([True, False]))
    assert counts[1].tolist() == [1, 1]
    for bad in ([0.5, 1], [np.nan, 1], [np.inf, 1]):
        with pytest.raises(UserError, match="whole numbers"):
            pair_counts(np.array(bad), np.array([0, 0]))


# -- run-length codes ---------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(masks)
def test_rle_equals_pycocotools(mask):
    code = rle.encode(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert code["counts"].encode() == theirs["counts"]
    assert code["size"] == theirs["size"]
    assert np.array_equal(rle.decode(code), mask)
    assert np.array_equal(rle.decode(theirs), mask)  # bytes
    assert rle.area(code) == coco.area(theirs)
    assert rle.bbox(code) == coco.toBbox(theirs).tolist()


def test_rle_of_large_masks_with_long_runs():
    rng = np.random.default_rng(0)
    mask = np.zeros((1500, 1100), dtype=bool)
    mask[200:1400, 300:1000] = True
    mask[rng.integers(0, 1500, 300), rng.integers(0, 1100, 300)] ^= True
    code = rle.encode(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert code["counts"].encode() == theirs["counts"]
    assert np.array_equal(rle.decode(code), mask)


def test_rle_reads_plain_counts_and_refuses_broken_ones():
    assert rle.decode({"size": [2, 3], "counts": [1, 2, 3]}).sum() == 2
    for counts in ("22", [3], [5, -1, 2], "2\x7f", "2P"):
        with pytest.raises(UserError):
            rle.decode({"size": [2, 3], "counts": counts})


# -- outlines -----------------------------------------------------------------------------------------------


def rasterise(rings, shape):
    """Fill by the even-odd rule, independent of how the rings were traced."""
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1), "edges follow the pixels, and no corner lies on a straight line"
            crossings[min(y0, y1) : max(y0, y1), x0] += x0 == x1
    return np.cumsum(crossings[:, :-1], axis=1) % 2 == 1


def twice_area(ring):
    ahead = np.roll(ring, -1, axis=0)
    return (ring[:, 0] * ahead[:, 1] - ahead[:, 0] * ring[:, 1]).sum()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_polygons_cover_exactly_the_mask(mask):
    polygons = trace_polygons(mask)
    covered = np.zeros(mask.shape, dtype=int)
    for outer, *holes in polygons:
        assert twice_area(outer) > 0
        assert all(twice_area(hole) < 0 for hole in holes)
        filled = rasterise([outer], mask.shape)
        for hole in holes:
            assert filled[rasterise([hole], mask.shape)].all(), "a hole lies in its own outline"
        for ring in (outer, *holes):
            assert len(np.unique(ring, axis=0)) == len(ring), "no ring passes a point twice"
        covered += rasterise([outer, *holes], mask.shape)
    assert np.array_equal(covered, mask.astype(int))  # all of it, nothing else, and nothing twice
    assert len(polygons) == ndimage.label(mask)[1]  # 4-connected parts


def test_known_outlines():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    [[outer, hole]] = trace_polygons(ring)
    assert sorted(outer.tolist()) == [[0, 0], [0, 3], [3, 0], [3, 3]]
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert len(trace_polygons(np.eye(3, dtype=bool))) == 3
    assert trace_polygons(np.zeros((3, 3), bool)) == []
    island = np.zeros((7, 7), bool)
    island[:] = True
    island[1:6, 1:6] = False
    island[3, 3] = True
    assert sorted(len(polygon) for polygon in trace_polygons(island)) == [1, 2]


def test_a_masked_logit_reaches_no_pixel_that_it_has_no_share_in():
    logits = torch.zeros(2, 3, 3)
    logits[0], logits[1] = -1, -5
    logits[1, 1, 2] = -torch.inf
    for size in ((3, 3), (3, 6)):
        assert not upsample_argmax(logits, size).any()


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_the_code_of_a_part_is_that_of_the_whole(seed, height, width):
    random = np.random.default_rng(seed)
    (top, bottom), (left, right) = (sorted(random.choice(side + 1, 2, replace=False)) for side in (height, width))
    whole = np.zeros((height, width), bool)
    whole[top:bottom, left:right] = random.random((bottom - top, right - left)) < random.random() * 1.5
    part = whole[top:bottom, left:right]
    assert rle.encode_part(part, (top, left), (height, width)) == rle.encode(whole)

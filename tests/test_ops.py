"""Kernels against independent oracles: interpolate + argmax, scikit-learn, pycocotools, and rasterising back."""

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
    trace_polygons,
    upsample,
    upsample_argmax,
    upsample_logits,
)

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def assert_argmax_of(labels, full):
    """Labels are the argmax of the full-size logits, but for ties within rounding."""
    best = full.max(dim=1).values
    chosen = full.gather(1, labels.long()[:, None])[:, 0]
    assert torch.all(best - chosen <= 1e-5 * best.abs().clamp(min=1))
    assert (labels.long() == full.argmax(1)).float().mean() > 0.999


# -- upsample -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.integers(0, 2**20),
    st.sampled_from([1, 100, 10**6]),
)
def test_upsample_argmax_is_interpolate_then_argmax(shape, size, seed, strip):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    full = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(upsample._STRIP_ELEMENTS, "cpu", strip)
        labels, confidence = upsample_argmax(logits, size, return_confidence=True)
    assert_argmax_of(labels, full)
    torch.testing.assert_close(confidence, full.softmax(1).max(1).values, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(upsample_logits(logits, size), full)


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


@pytest.mark.parametrize(("classes", "kind"), [(256, torch.uint8), (257, torch.int16), (32769, torch.int32)])
def test_label_type_holds_every_class(classes, kind):
    logits = torch.zeros(classes, 1, 1)
    logits[-1] = 1
    labels = upsample_argmax(logits, (2, 2))
    assert labels.dtype == kind
    assert (labels == classes - 1).all()


def test_upsample_argmax_never_holds_the_full_logits(monkeypatch):
    monkeypatch.setitem(upsample._STRIP_ELEMENTS, "cpu", 50_000)
    sizes, stretch = [], upsample._stretch_rows
    monkeypatch.setattr(upsample, "_stretch_rows", lambda *a: sizes.append(stretch(*a)) or sizes[-1])
    upsample_argmax(torch.randn(40, 16, 16), (512, 256))  # 5 million values at full size
    assert max(part.numel() for part in sizes) <= 100_000


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

"""The metric against a written-out definition, torchmetrics, and its own promises: streaming, merging, pickling."""

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hfseg.metrics
from hfseg.errors import UserError
from hfseg.metrics import scores_from_matrix, to_json_ready
from hfseg.ops import confusion_counts

SHARED_KEYS = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy")


def defined(predictions, references, num_labels, ignore_index, label_map=None, reduce_labels=False, nan_to_num=None):
    """The definition of evaluate's mean_iou, written out class by class and pixel by pixel.

    References are mapped, then reduced (0 and 255 become 255, v becomes v - 1), then pixels with `ignore_index`
    are left out on both sides. Values outside 0..n-1 belong to no class.
    """
    both, predicted, true = (np.zeros(num_labels) for _ in range(3))
    for prediction, reference in zip(predictions, references, strict=True):
        for p, r in zip(np.ravel(prediction).tolist(), np.ravel(reference).tolist(), strict=True):
            r = label_map.get(r, r) if label_map else r
            if reduce_labels:
                r = 255 if r in (0, 255) else r - 1
            if r == ignore_index:
                continue
            if 0 <= p < num_labels:
                predicted[p] += 1
                both[p] += p == r
            if 0 <= r < num_labels:
                true[r] += 1
    with np.errstate(all="ignore"):
        iou, accuracy = both / (predicted + true - both), both / true
        values = [
            iou[~np.isnan(iou)].mean() if (~np.isnan(iou)).any() else np.nan,
            accuracy[~np.isnan(accuracy)].mean() if (~np.isnan(accuracy)).any() else np.nan,
            both.sum() / true.sum(),
            iou,
            accuracy,
        ]
    if nan_to_num is not None:
        values = [np.nan_to_num(value, nan=nan_to_num) for value in values]
    return dict(zip(SHARED_KEYS, values, strict=True))


def assert_same(found, expected):
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, equal_nan=True, err_msg=key)


@pytest.fixture(scope="module")
def metric():
    return hfseg.metrics.load("mean_iou")


@st.composite
def problems(draw):
    kind = draw(st.sampled_from([np.uint8, np.int64, np.int32, np.uint16]))
    n = draw(st.sampled_from([1, 2, 3, 19]))
    values = st.sampled_from([*range(n), n, n + 1, 254, 255] + ([-1, 70000] if kind in (np.int64, np.int32) else []))
    maps = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        count = shape[0] * shape[1]
        pair = [draw(st.lists(values, min_size=count, max_size=count)) for _ in range(2)]
        maps.append([np.array(flat, dtype=kind).reshape(shape) for flat in pair])
    options = {
        "num_labels": n,
        "ignore_index": draw(st.sampled_from([255, 0, 1, 254, 65535, None])),
        "label_map": draw(st.sampled_from([None, {0: 1, 1: 0}, {2: 255, 254: 0}])),
        "reduce_labels": draw(st.booleans()),
        "nan_to_num": draw(st.sampled_from([None, 0, -1])),
    }
    return [m[0] for m in maps], [m[1] for m in maps], options


@settings(max_examples=150, deadline=None)
@given(problems())
def test_values_are_those_of_the_definition(problem):
    predictions, references, options = problem
    metric = hfseg.metrics.load("mean_iou")
    expected = defined(predictions, references, **options)
    assert_same(metric.compute(predictions=predictions, references=references, **options), expected)
    # The same one by one, with the options given at the start or only at the end.
    early = hfseg.metrics.load("mean_iou", **options)
    for prediction, reference in zip(predictions, references, strict=True):
        early.add(prediction=prediction, reference=reference)
        metric.add_batch(predictions=[prediction], references=[reference])
    assert_same(early.compute(), expected)
    assert_same(metric.compute(**options), expected)


def test_the_example_of_the_documentation_of_evaluate(metric):
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    scores = metric.compute(
        predictions=predictions, references=references, num_labels=10, ignore_index=255, reduce_labels=False
    )
    assert scores["mean_iou"] == pytest.approx(0.4775)
    assert scores["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert scores["overall_accuracy"] == pytest.approx(0.5263157894736842)
    np.testing.assert_allclose(scores["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    assert scores["num_classes_averaged"] == 10


def test_precision_recall_and_f1_equal_torchmetrics(metric):
    from torchmetrics.functional.classification import (
        multiclass_f1_score,
        multiclass_jaccard_index,
        multiclass_precision,
        multiclass_recall,
    )

    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 6, (2, 3, 40, 50))
    references[rng.random(references.shape) < 0.2] = 255
    scores = metric.compute(predictions=predictions, references=references, num_labels=6)
    given = torch.from_numpy(predictions), torch.from_numpy(references)
    for key, function in (
        ("iou", multiclass_jaccard_index),
        ("precision", multiclass_precision),
        ("recall", multiclass_recall),
        ("f1", multiclass_f1_score),
    ):
        theirs = function(*given, num_classes=6, average="none", ignore_index=255)
        np.testing.assert_allclose(scores[f"per_category_{key}"], theirs, rtol=1e-5)
    assert scores["mean_iou"] == pytest.approx(scores["per_category_iou"].mean())


def test_absent_classes_are_nan_and_left_out_of_the_mean(metric):
    scores = metric.compute(predictions=[[[0, 0, 2]]], references=[[[0, 0, 0]]], num_labels=4)
    np.testing.assert_array_equal(scores["per_category_iou"], [2 / 3, np.nan, 0, np.nan])
    assert scores["num_classes_averaged"] == 2  # class 2 was predicted, so it counts as wrong
    assert scores["mean_iou"] == pytest.approx(1 / 3)
    nothing = metric.compute(predictions=[[[0]]], references=[[[255]]], num_labels=2)
    assert math.isnan(nothing["mean_iou"])
    assert nothing["num_classes_averaged"] == 0


def test_compute_starts_anew(metric):
    for _ in range(2):
        scores = metric.compute(predictions=[[[0, 1]]], references=[[[1, 1]]], num_labels=2)
        assert (scores["mean_iou"], scores["overall_accuracy"]) == (0.25, 0.5)
        assert len(metric) == 0


def test_merging_parts_gives_the_whole():
    rng = np.random.default_rng(1)
    predictions, references = rng.integers(0, 7, (2, 6, 9, 9))  # five labels: 5 and 6 are none
    references[0] = 255
    whole = hfseg.metrics.load("mean_iou", num_labels=5)
    whole.add_batch(predictions=predictions, references=references)
    assert len(whole) == 6 * 81
    expected = whole.matrix
    merged = hfseg.metrics.load("mean_iou", num_labels=5)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        one = hfseg.metrics.load("mean_iou", num_labels=5)
        one.add_batch(predictions=predictions[part], references=references[part])
        merged.update_matrix(one.matrix)
    assert np.array_equal(merged.matrix, expected)
    assert merged.matrix.dtype == np.int64
    assert_same(merged.compute(), whole.compute())


def test_update_matrix_takes_a_plain_confusion_matrix_and_checks_its_size():
    rng = np.random.default_rng(2)
    predictions, references = rng.integers(0, 3, (2, 20, 20))
    metric = hfseg.metrics.load("mean_iou", num_labels=3)
    metric.update_matrix(confusion_counts(references, predictions, 3, 255))
    assert_same(metric.compute(), defined([predictions], [references], 3, 255))
    with pytest.raises(UserError, match=r"\(5, 5\)"):
        metric.update_matrix(np.zeros((5, 5)))
    late = hfseg.metrics.load("mean_iou")
    late.update_matrix(np.eye(3))
    assert late.compute(num_labels=3)["mean_iou"] == 1
    late.update_matrix(np.eye(3))
    with pytest.raises(UserError, match="counts of 3 classes"):
        late.compute(num_labels=4)


def test_memory_does_not_grow_with_the_number_of_images():
    rng = np.random.default_rng(3)
    metric = hfseg.metrics.load("mean_iou", num_labels=150)
    sizes = set()
    for _ in range(20):
        prediction, reference = rng.integers(0, 150, (2, 64, 64), dtype=np.uint8)
        reference[0, 0] = prediction[0, 0] = 149
        metric.add(prediction=prediction, reference=reference)
        sizes.add(len(pickle.dumps(metric)) // 1024)
    assert max(sizes) - min(sizes) <= 1
    # One far value costs a row, not a table of 65,536.
    metric.add(prediction=np.zeros((2, 2), int), reference=np.full((2, 2), 65535))
    assert metric._counts.shape == (257, 256)


def test_pickle_deepcopy_and_combine():
    import evaluate

    rng = np.random.default_rng(4)
    predictions, references = rng.integers(0, 3, (2, 2, 8, 8))
    metric = hfseg.metrics.load("mean_iou", num_labels=3)
    metric.add_batch(predictions=predictions[:1], references=references[:1])
    copies = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))]
    for other in (metric, *copies):
        other.add_batch(predictions=predictions[1:], references=references[1:])
        assert_same(other.compute(), defined(predictions, references, 3, 255))
    both = evaluate.combine({"a": metric, "b": hfseg.metrics.load("mean_iou", num_labels=3)}, force_prefix=True)
    both.add_batch(predictions=predictions, references=references)
    scores = both.compute()
    assert scores["a_mean_iou"] == scores["b_mean_iou"]
    both.add(prediction=predictions[0], reference=references[0])
    assert both.compute()["a_mean_iou"] > 0
    assert isinstance(metric, evaluate.Metric)


def test_the_file_is_a_module_that_evaluate_loads(tmp_path):
    import evaluate

    file = Path(hfseg.metrics.__file__).with_name("mean_iou.py")
    metric = evaluate.load(str(file), cache_dir=str(tmp_path))
    scores = metric.compute(predictions=[[[0, 1]]], references=[[[0, 1]]], num_labels=2, ignore_index=255)
    assert scores["mean_iou"] == 1


def test_tensors_and_lists_are_maps_too(metric):
    scores = metric.compute(predictions=torch.tensor([[[0, 1]]]), references=[[[0, 1]]], num_labels=2)
    assert scores["mean_iou"] == 1


def test_misuse_is_told(metric):
    with pytest.raises(UserError, match="number of classes"):
        metric.compute(predictions=[[[0]]], references=[[[0]]])
    metric.reset()
    with pytest.raises(UserError, match="2 predictions for 1 references"):
        metric.add_batch(predictions=[[[0]], [[0]]], references=[[[0]]])
    with pytest.raises(UserError, match="shape"):
        metric.add(prediction=np.zeros((2, 3), int), reference=np.zeros((3, 2), int))
    with pytest.raises(UserError, match="missing"):
        metric.add_batch(predictions=[[[0]]])
    with pytest.raises(TypeError, match="num_classes"):
        metric.compute(num_classes=3)
    with pytest.raises(UserError, match="did you mean 'mean_iou'"):
        hfseg.metrics.load("mean_iuo")
    with pytest.raises(UserError, match="num_process"):
        hfseg.metrics.load("mean_iou", num_process=2)
    metric.reset()


def test_importing_the_package_does_not_import_evaluate():
    code = "import sys, hfseg.metrics; sys.exit('evaluate' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_scores_by_name_are_ready_for_json():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    scores = scores_from_matrix(matrix, ["sky", "sea", "ship"])
    assert scores["per_category_iou"]["ship"] is not None
    ready = json.loads(json.dumps(to_json_ready(scores), allow_nan=False))
    assert ready["per_category_iou"] == {"sky": 0.75, "sea": 0.8, "ship": None}
    assert ready["per_category_f1"]["sky"] == pytest.approx(6 / 7)
    assert ready["num_classes_averaged"] == 2
    plain = to_json_ready(scores_from_matrix(matrix))
    assert plain["per_category_iou"] == [0.75, 0.8, None]
    assert to_json_ready({1: (np.int64(2), float("inf"), True, "a")}) == {"1": [2, None, True, "a"]}


def test_an_attempt_that_fails_counts_nothing():
    rng = np.random.default_rng(0)
    predictions, references = (list(rng.integers(0, 3, (2, 8, 9))) for _ in range(2))
    want = hfseg.metrics.load("mean_iou", num_labels=3).compute(predictions=predictions, references=references)
    metric = hfseg.metrics.load("mean_iou")
    for wrong in (
        {"predictions": [predictions[0], predictions[1][:2]], "references": references, "num_labels": 3},
        {"predictions": predictions, "references": references},
        {"predictions": predictions, "references": references, "num_labels": 3, "ignore_indx": 1},
    ):
        with pytest.raises((UserError, TypeError)):
            metric.compute(**wrong)
    assert metric.compute(predictions=predictions, references=references, num_labels=3)["mean_iou"] == want["mean_iou"]


@pytest.mark.parametrize("ignore", [65535, -100, 256])
def test_an_ignored_value_that_a_byte_cannot_hold_ignores_nothing(ignore):
    values = torch.full((4,), 255, dtype=torch.uint8)
    assert confusion_counts(values, values, 256, ignore).sum() == 4


def test_update_matrix_copies_counts_and_refuses_shares():
    metric = hfseg.metrics.load("mean_iou", num_labels=2)
    counts = np.array([[3, 0, 0], [1, 2, 0], [0, 0, 0]])
    metric.update_matrix(counts)
    counts[0, 0] = 100
    assert metric.matrix[0, 0] == 3
    for wrong in (np.full((2, 2), 0.25), np.full((2, 2), np.nan), -np.ones((2, 2))):
        with pytest.raises(UserError, match="fractions"):
            metric.update_matrix(wrong)


def test_bfloat16_maps_are_maps_too():
    import torch

    metric = hfseg.metrics.load("mean_iou", num_labels=2)
    metric.add(prediction=torch.ones(2, 2, dtype=torch.bfloat16), reference=torch.ones(2, 2, dtype=torch.bfloat16))
    assert metric.compute()["mean_iou"] == 1

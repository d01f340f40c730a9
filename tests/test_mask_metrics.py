"""Panoptic quality and average precision against their definitions, torchmetrics and pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import hfseg
from hfseg.metrics.average_precision import Detections, boundary_of
from hfseg.metrics.panoptic import PanopticCounts

# -- panoptic quality ---------------------------------------------------------------------------------------------


def panoptic(random, side=24, segments=6, classes=4, crowd=0.2) -> tuple[np.ndarray, list[dict]]:
    """A map of blobs, some pixels of none."""
    ids = np.zeros((side, side), np.int64)
    listed = []
    for number in range(1, segments + 1):
        top, left = random.integers(0, side - 4, 2)
        high, wide = random.integers(3, side // 2, 2)
        ids[top : top + high, left : left + wide] = number * 7
        listed.append({"id": number * 7, "label_id": int(random.integers(classes)),
                       "iscrowd": bool(random.random() < crowd)})
    return ids, [one for one in listed if (ids == one["id"]).any()]


def disturbed(random, ids, listed, classes=4) -> tuple[np.ndarray, list[dict]]:
    moved = np.roll(ids, random.integers(-2, 3, 2), (0, 1))
    return moved, [{**one, "label_id": one["label_id"] if random.random() < 0.8 else int(random.integers(classes)),
                    "iscrowd": False} for one in listed if (moved == one["id"]).any()]


def plain_quality(pairs, classes=4) -> dict[int, tuple[float, int, int, int]]:
    """The definition, pixel by pixel and pair by pair, as COCO's evaluation has it."""
    counts = {c: [0.0, 0, 0, 0] for c in range(classes)}
    for (ids, segments), (reference, truth) in pairs:
        known = np.isin(reference, [one["id"] for one in truth])
        found = {one["id"]: one for one in segments if (ids == one["id"]).any()}
        true = {one["id"]: one for one in truth if (reference == one["id"]).any()}
        matched_true, matched = set(), set()
        for key, one in true.items():
            for other, guess in found.items():
                if one["iscrowd"] or one["label_id"] != guess["label_id"]:
                    continue
                inside = ((reference == key) & (ids == other)).sum()
                union = ((reference == key) | ((ids == other) & known)).sum()
                if inside / union > 0.5:
                    counts[one["label_id"]][0] += inside / union
                    counts[one["label_id"]][1] += 1
                    matched_true.add(key)
                    matched.add(other)
        for key, one in true.items():
            if key not in matched_true and not one["iscrowd"]:
                counts[one["label_id"]][3] += 1
        for other, guess in found.items():
            crowds = [key for key, one in true.items() if one["iscrowd"] and one["label_id"] == guess["label_id"]]
            excused = ((ids == other) & (~known | np.isin(reference, crowds))).sum()
            if other not in matched and excused / (ids == other).sum() <= 0.5:
                counts[guess["label_id"]][2] += 1
    return counts


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_panoptic_counts_are_those_of_the_definition(seed):
    random = np.random.default_rng(seed)
    counts, pairs = PanopticCounts(4), []
    for _ in range(3):
        truth = panoptic(random)
        pairs.append((disturbed(random, *truth), truth))
        counts.add(pairs[-1][0][0], pairs[-1][0][1], *truth)
    plain = plain_quality(pairs)
    for label, (total, *numbers) in plain.items():
        assert counts.counts[label, 1:].tolist() == numbers
        assert counts.counts[label, 0] / 2**40 == pytest.approx(total, abs=1e-9)
    halves = [PanopticCounts(4), PanopticCounts(4)]
    for number, ((ids, segments), (reference, truth)) in enumerate(pairs):
        halves[number % 2].add(ids, segments, reference, truth)
    assert (halves[0].counts + halves[1].counts == counts.counts).all()  # in any order, on any number of processes


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_panoptic_quality_is_that_of_torchmetrics(seed):
    from torchmetrics.detection import PanopticQuality

    random = np.random.default_rng(seed)
    theirs = PanopticQuality(things={0, 1}, stuffs={2, 3}, return_per_class=True, return_sq_and_rq=True)
    ours = hfseg.metrics.load("panoptic_quality", num_labels=4, things=[0, 1])
    for _ in range(3):
        reference, truth = panoptic(random, crowd=0)
        reference[reference == 0] = 99  # torchmetrics has no pixel without truth here
        truth.append({"id": 99, "label_id": 3, "iscrowd": False})
        truth, reference = merged_stuff(truth, reference)
        ids, segments = disturbed(random, reference, truth)
        segments, ids = merged_stuff(segments, ids)
        ours.add(prediction={"segment_map": ids, "segments_info": segments},
                 reference={"segment_map": reference, "segments_info": truth})
        theirs.update(*(torch.from_numpy(categories(a, b))[None] for a, b in ((ids, segments), (reference, truth))))
    found, expected = ours.compute(), theirs.compute().numpy().reshape(-1, 3)
    mine = np.array([[found[f"per_category_{key}"][label] for key in ("pq", "sq", "rq")] for label in range(4)])
    np.testing.assert_allclose(np.nan_to_num(mine), np.nan_to_num(expected), atol=1e-6)


def merged_stuff(segments, ids):
    first: dict[int, int] = {}
    ids, kept = ids.copy(), []
    for one in segments:
        if one["label_id"] >= 2 and one["label_id"] in first:
            ids[ids == one["id"]] = first[one["label_id"]]
        else:
            first[one["label_id"]] = one["id"]
            kept.append(one)
    return kept, ids


def categories(ids, segments) -> np.ndarray:
    pairs = np.zeros((*ids.shape, 2), np.int64)
    for one in segments:
        pairs[ids == one["id"]] = one["label_id"], one["id"] if one["label_id"] < 2 else 0
    return pairs


# -- average precision --------------------------------------------------------------------------------------------


def scenes(random, count=4, side=160, classes=3):
    """Objects of all three sizes, detections near them and elsewhere, with ties among the scores."""
    for number in range(count):
        true, found = [], []
        for _ in range(random.integers(0, 7)):
            mask, label = blob(random, side), int(random.integers(classes))
            true.append((mask, label, bool(random.random() < 0.15)))
            for _ in range(random.integers(0, 3)):
                moved = np.roll(mask, random.integers(-6, 7, 2), (0, 1))
                right = label if random.random() < 0.8 else int(random.integers(classes))
                found.append((moved, right, round(float(random.random()), 1)))
        found += [(blob(random, side), int(random.integers(classes)), round(float(random.random()), 1))
                  for _ in range(random.integers(0, 3))]
        yield number, true, found


def blob(random, side) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    high, wide = (int(4 * 2 ** random.uniform(0, 4.8)) for _ in range(2))
    top, left = random.integers(0, side - 5, 2)
    mask[top : top + high, left : left + wide] = 1
    return mask


def code(mask):
    return coco.encode(np.asfortranarray(mask))


def pycocotools_scores(listed, classes=3, boundary=False) -> np.ndarray:
    images = [{"id": number + 1, "height": 160, "width": 160} for number, *_ in listed]
    truth, found = [], []
    for number, true, detections in listed:
        for mask, label, crowd in true:
            truth.append({"id": len(truth) + 1, "image_id": number + 1, "category_id": label + 1, "iscrowd": int(crowd),
                          "area": float(mask.sum()), "bbox": coco.toBbox(code(mask)).tolist(),
                          "segmentation": code(mask)})
        for mask, label, score in detections:
            found.append({"image_id": number + 1, "category_id": label + 1, "score": score,
                          "segmentation": code(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {"images": images, "annotations": truth, "categories": [{"id": i + 1} for i in range(classes)]}
        data.createIndex()
        evaluated = COCOeval(data, data.loadRes(found), "segm")
        if boundary:
            whole = evaluated.computeIoU

            def computed(image, category):
                ious = whole(image, category)
                key = (image, category)
                guesses = sorted(evaluated._dts[key], key=lambda one: -one["score"])[:100]
                if not len(ious):
                    return ious
                edges = [[boundary_of(one["segmentation"]) for one in some] for some in (guesses, evaluated._gts[key])]
                crowds = [one["iscrowd"] for one in evaluated._gts[key]]
                return np.minimum(ious, coco.iou(*edges, crowds))

            evaluated.computeIoU = computed
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated.stats


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_average_precision_is_that_of_pycocotools(seed):
    listed = list(scenes(np.random.default_rng(seed)))
    if not any(found for *_, found in listed) or not any(true for _, true, _ in listed):
        return
    ours, halves = Detections(3, boundary=True), [Detections(3, boundary=True), Detections(3, boundary=True)]
    for number, true, found in listed:
        for one in (ours, halves[number % 2]):
            one.add(number, [code(m) for m, *_ in found], [label for _, label, _ in found], [s for *_, s in found],
                    [code(m) for m, *_ in true], [label for _, label, _ in true], [c for *_, c in true])
    scores = ours.scores(["a", "b", "c"])
    keys = ["mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small", "mask_ap_medium", "mask_ap_large", "mask_ar_1",
            "mask_ar_10", "mask_ar_100", "mask_ar_small", "mask_ar_medium", "mask_ar_large"]  # fmt: skip
    mine = np.nan_to_num([scores[key] for key in keys], nan=-1)
    np.testing.assert_allclose(mine, pycocotools_scores(listed), atol=1e-12)
    edges = pycocotools_scores(listed, boundary=True)
    np.testing.assert_allclose(np.nan_to_num([scores[f"boundary_ap{end}"] for end in ("", "50", "75")], nan=-1),
                               edges[:3], atol=1e-12)
    halves[0].merge(halves[1].images)
    np.testing.assert_equal(halves[0].scores(["a", "b", "c"]), scores)


def test_three_hundred_objects_in_one_image():
    codes = [code(np.arange(1600).reshape(40, 40) // 4 == number) for number in range(300)]
    metric = Detections(1, max_detections=300)
    metric.add(0, codes, [0] * 300, [0.5] * 300, codes, [0] * 300)
    assert metric.scores(["a"])["mask_ap"] == pytest.approx(1.0)


def test_a_boundary_is_what_erosion_takes():
    from scipy.ndimage import binary_erosion

    mask = blob(np.random.default_rng(0), 160)
    reach = round(0.02 * np.hypot(160, 160))
    core = binary_erosion(mask, np.ones((3, 3)), iterations=reach, border_value=0)
    assert (coco.decode(boundary_of(code(mask))) == (mask & ~core)).all()


def test_as_an_evaluate_module():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    metric = hfseg.metrics.load("mask_ap", num_labels=1)
    metric.add_batch(predictions=[{"masks": [mask], "labels": [0], "scores": [0.9]}] * 2,
                     references=[{"masks": [mask], "labels": [0]}, {"masks": [], "labels": []}])
    scores = metric.compute()
    assert scores["mask_ap50"] == pytest.approx(1.0)  # the second one comes after, at the same score
    metric.add(prediction={"masks": [mask], "labels": [0], "scores": [0.9]}, reference={"masks": [mask], "labels": [0]})
    assert metric.compute()["mask_ap"] == pytest.approx(1.0)

"""Segments at an image's own size: kernels against torch, rules against their definition and transformers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import Mask2FormerImageProcessor, MaskFormerImageProcessor, SegformerImageProcessor

from hfseg.errors import UserError
from hfseg.inference.segments import Geometry, SegmentRules, compatible, find_instances, find_panoptic
from hfseg.models.candidates import Candidates, read_queries
from hfseg.models.networks.detector import joined
from hfseg.models.networks.yolact import YolactConfig, YolactForInstanceSegmentation
from hfseg.ops import masks as kernels
from hfseg.ops import rle
from hfseg.result import Segmentation
from hfseg.segmenter import Segmenter

SIDES = st.integers(1, 40)


def logits_of(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """Smooth blobs, some of them empty."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, max(1, height // 3), max(1, width // 3), generator=random) * 6 - 2
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0].numpy()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), SIDES, SIDES, st.sampled_from((0.0, -1.0, 2.0)))
def test_covered_pixels_are_those_of_torchs_interpolation(seed, h, w, height, width, level):
    height, width = max(height, h), max(width, w)  # logits are coarser than images
    logits = logits_of(seed, 3, h, w)
    whole = F.interpolate(torch.from_numpy(logits)[None], size=(height, width), mode="bilinear")[0].numpy()
    places = np.tile(kernels.grid((height, width), (height, width), (h, w), (height, width)), (3, 1))
    reached = kernels.reach(logits, places, (height, width), level)
    masks = kernels.cover(logits, places, reached, (height, width), level)
    sure = np.abs(whole - level) > 1e-4
    assert (masks == (whole > level))[sure].all()


def test_the_crop_of_a_padding_is_part_of_the_map():
    logits = logits_of(3, 4, 8, 8)
    whole = F.interpolate(torch.from_numpy(logits)[None], size=(32, 32), mode="bilinear")[0, :, :20, :27].numpy()
    places = np.tile(kernels.grid((32, 32), (20, 27), (8, 8), (20, 27)), (4, 1))
    masks = kernels.cover(logits, places, kernels.reach(logits, places, (20, 27), 0.0), (20, 27), 0.0)
    assert (masks == (whole > 0))[np.abs(whole) > 1e-4].all() and masks.any()


def test_a_mask_in_a_box_stays_there():
    logits = np.full((1, 4, 4), 5, np.float32)
    box = np.array([[3.0, 2, 11, 6]])
    places = kernels.boxed(box, (4, 4))
    masks = kernels.cover(logits, places, kernels.reach(logits, places, (10, 16), 0.0, box), (10, 16), 0.0)
    expected = np.zeros((10, 16), bool)
    expected[2:6, 3:11] = True
    assert (masks[0] == expected).all()


def candidates(seed=0, queries=6, classes=3, size=(12, 16)) -> Candidates:
    random = torch.Generator().manual_seed(seed)
    class_logits = 4 * torch.randn(1, queries, classes + 1, generator=random)
    masks = torch.from_numpy(logits_of(seed, queries, *size))[None]
    return read_queries(SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=masks))


@pytest.mark.parametrize("seed", range(8))
def test_instances_are_those_of_the_definition(seed):
    given_, size = candidates(seed), (36, 64)
    rules = SegmentRules(threshold=0.2)
    found = find_instances(given_, 0, Geometry(size, size, size), rules, scored_by_mask=True)
    whole = F.interpolate(given_.masks, size=size, mode="bilinear")[0]
    expected = []
    for query in range(6):
        inside = given_.masks[0, query] > 0
        quality = float(given_.masks[0, query].sigmoid()[inside].mean()) if inside.any() else 0.0
        for label in range(3):
            score = float(given_.probabilities[0, query, label]) * quality
            if score >= 0.2 and (whole[query] > 0).any():
                expected.append((round(score, 5), label, int((whole[query] > 0).sum())))
    assert [(round(s["score"], 5), s["label_id"], rle.area(s["rle"])) for s in found.segments] == sorted(
        expected, key=lambda one: -one[0])
    top = found.segment_map
    for segment in found.segments:  # of those that cover a pixel, the best one is seen
        mask = rle.decode(segment["rle"])
        assert (top[mask] <= segment["id"]).all() and (top[mask] > 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_panoptic_map_is_that_of_the_definition(seed):
    given_, size = candidates(seed), (36, 64)
    rules = SegmentRules(threshold=0.3, overlap_mask_area_threshold=0.5)
    found = find_panoptic(given_, 0, Geometry(size, size, size), rules, fuse=(0,))
    whole = F.interpolate(given_.masks, size=size, mode="bilinear")[0].sigmoid()
    probabilities = given_.probabilities[0]
    scores, labels = probabilities.max(-1)
    kept = [q for q in range(6) if scores[q] > 0.3 and scores[q] > 1 - probabilities[q].sum()]
    value = torch.stack([torch.where(whole[q] > 0.5, whole[q] * scores[q], 0) for q in kept]) if kept else None
    expected = torch.full(size, -1)
    for k, q in enumerate(kept):
        won = (value.argmax(0) == k) & (value[k] > 0)
        if won.any() and won.sum() > 0.5 * (whole[q] > 0.5).sum():
            expected[won] = labels[q]
    drawn = np.where(found.segment_map > 0, found.semantic_map(3).astype(int), -1)
    assert (drawn == expected.numpy()).mean() > 0.999
    assert sum(segment["label_id"] == 0 for segment in found.segments) <= 1


@pytest.mark.parametrize("processor", [Mask2FormerImageProcessor(), MaskFormerImageProcessor()])
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_compat_is_what_transformers_does(processor, task):
    random = torch.Generator().manual_seed(1)
    outputs = SimpleNamespace(class_queries_logits=5 * torch.randn(2, 9, 4, generator=random),
                              masks_queries_logits=torch.from_numpy(logits_of(1, 18, 12, 16)).view(2, 9, 12, 16))
    sizes = [(40, 50), (31, 64)]
    method = getattr(processor, f"post_process_{task}_segmentation")
    more = {"label_ids_to_fuse": {0}} if task == "panoptic" else {}
    loose = {"threshold": 0.3, "mask_threshold": 0.2, "overlap_mask_area_threshold": 0.05}
    theirs = method(outputs, target_sizes=sizes, **loose, **more)
    ours = compatible(processor, outputs, task, sizes, SegmentRules(**loose, compat=True), (0,))
    for their, our in zip(theirs, ours, strict=True):
        ids = their["segmentation"].numpy()
        shift = int(our.segment_map.max() - ids.max())
        assert (our.segment_map == np.maximum(ids + shift, 0)).all()
        listed = {(s["id"] + shift, s["label_id"]) for s in their["segments_info"]}
        assert {(s["id"], s["label_id"]) for s in our.segments} == listed and listed


def test_a_box_that_reaches_into_the_padding_keeps_its_mask():
    logits = torch.full((1, 1, 28, 28), -8.0)
    logits[..., :14] = 8  # the left half of the box
    candidates = Candidates(torch.tensor([[[0.9]]]), logits, torch.tensor([[[0.0, 0, 64, 64]]]), pasted=True)
    found = find_instances(candidates, 0, Geometry((48, 48), (48, 48), (64, 64)), SegmentRules(), False)
    assert (found.segment_map > 0).any(0).sum() == 32 and (found.segment_map > 0).any(1).all()


def test_a_box_a_little_too_small_cuts_nothing_off_a_mask_of_the_whole_image():
    logits = torch.full((1, 1, 16, 16), -8.0)
    logits[..., 4:8, 4:8] = 8  # pixels 16 to 32

    def found(logits, boxes):
        candidates = Candidates(torch.tensor([[[0.9]]]), logits, boxes)
        return find_instances(candidates, 0, Geometry((32, 64), (64, 64), (64, 64)), SegmentRules(), False).segment_map

    expected = found(logits, None)
    assert expected.any(0).sum() == 16 and expected.any(1).sum() == 8
    soiled = logits.clone()
    soiled[..., 10:, 10:] = 8  # what another object left there
    assert (found(soiled, torch.tensor([[[17.0, 18, 31, 30]]])) == expected).all()


@pytest.mark.parametrize("size", [(64, 64), (80, 52), (72, 72), (20, 40)])
def test_prototypes_lie_on_the_image_whatever_its_size(size, monkeypatch):
    config = YolactConfig(backbone="resnet18", fpn_channels=16, prototypes=4, num_labels=1)
    network = YolactForInstanceSegmentation(config)

    def detect(pixel_values, _):  # an object in the 16 leftmost columns of pixels
        masks = torch.full((1, *(side // 4 for side in pixel_values.shape[-2:])), -8.0)
        masks[..., :4] = 8
        whole = torch.tensor([[0.0, 0, pixel_values.shape[-1], pixel_values.shape[-2]]])
        one = {"scores": torch.tensor([0.9]), "labels": torch.tensor([0]), "boxes": whole, "masks": masks}
        return joined([one], 1, pasted=False)

    monkeypatch.setattr(network, "detect", detect)
    segmenter = Segmenter(network, SegformerImageProcessor(do_resize=False), task="instance")
    [found] = segmenter.segments([np.zeros((*size, 3), np.uint8)])
    assert (found.segment_map > 0).any(0).sum() == 16 and (found.segment_map > 0).any(1).all()


def test_without_overlaps_a_pixel_belongs_to_the_best():
    given_ = candidates(2)
    found = find_instances(given_, 0, Geometry((36, 64), (36, 64), (36, 64)),
                           SegmentRules(threshold=0.1, overlaps=False), scored_by_mask=True)
    assert all("rle" not in segment for segment in found.segments) and found.segments


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="threshold is 2"):
        SegmentRules(threshold=2)
    with pytest.raises(UserError, match="max_segments"):
        SegmentRules(max_segments=0)


def test_a_result_with_overlapping_masks_keeps_them_whole():
    below, above = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    below[1:5, 1:5], above[2:6, 3:7] = True, True
    segments = [{"id": 1, "label_id": 0, "score": 0.9, "rle": rle.encode(above)},
                {"id": 2, "label_id": 0, "score": 0.5, "rle": rle.encode(below)}]
    ids = np.where(above, 1, np.where(below, 2, 0))
    semantic = np.where(ids > 0, 0, 255).astype(np.uint8)
    result = Segmentation(semantic, {0: "cell"}, [(255, 0, 0)], segment_map=ids, segments=segments)
    assert [entry["area"] for entry in result.segments_info] == [16, 16]
    assert (result.mask(2) == below).all() and (result.mask("cell") == (below | above)).all()
    assert [annotation["segmentation"] for annotation in result.to_coco()] == [s["rle"] for s in segments]

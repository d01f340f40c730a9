"""Objects in tiles and views: a network that sees exactly what is there gives the same objects as without them."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn
from transformers import SegformerImageProcessor

from hfseg.errors import UserError
from hfseg.inference.merging import Window, lay_windows, merge_views, merge_windows
from hfseg.inference.segments import Piece, without_duplicates
from hfseg.ops import rle
from hfseg.segmenter import Segmenter


class Seeing(nn.Module):
    """Reads the objects off the image: red + 256 green is the number of an object, blue its class."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(model_type="mask2former", num_channels=3, segmentation_task="instance",
                                      id2label={i: f"class {i}" for i in range(classes)}, num_labels=classes)

    def forward(self, pixel_values):
        numbers = (pixel_values[:, 0] + 256 * pixel_values[:, 1]).round().long()
        known = numbers.unique()
        known = known[known > 0]
        masks = numbers[:, None] == known[:, None, None]
        classes = torch.stack([torch.where(masks[:, k], pixel_values[:, 2], -1.0).amax((1, 2)).long()
                               for k in range(len(known))], 1) if len(known) else numbers.new_zeros((len(numbers), 0))
        probability = 0.95 - 0.4 * (known % 97) / 97
        logits = torch.full((*classes.shape, len(self.config.id2label) + 1), -30.0)
        there = masks.any((2, 3))
        for image, query in there.nonzero().tolist():
            logits[image, query, classes[image, query]] = probability[query].logit()
        logits[..., -1] = torch.where(there, 0.0, 30.0)
        return SimpleNamespace(class_queries_logits=logits, masks_queries_logits=masks.float() * 40 - 20)


def segmenter(task: str = "instance", **settings_) -> Segmenter:
    processor = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    return Segmenter(Seeing(), processor, task=task, things=(1, 2) if task == "panoptic" else None, **settings_)


def scene(seed: int, height: int, width: int, grain: float) -> np.ndarray:
    """Connected blobs of all sizes, some of them larger than a tile, each with a number and a class."""
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(height, width)), grain)
    numbers, count = ndimage.label(noise > np.quantile(noise, random.uniform(0.3, 0.9)))
    classes = np.concatenate([[0], random.integers(1, 3, count)])
    return np.dstack([numbers % 256, numbers // 256, classes[numbers]]).astype(np.uint8)


def objects(found) -> list[tuple]:
    return sorted((one["rle"]["counts"], one["label_id"], round(one["score"], 4)) for one in found.segments)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(33, 200), st.integers(33, 200), st.sampled_from((1, 3, 8)),
       st.sampled_from((0.1, 0.25, 0.5)))  # fmt: skip
def test_tiled_objects_are_the_objects(seed, height, width, grain, overlap):
    image = scene(seed, height, width, grain)
    [whole] = segmenter(max_segments=1000).segments([image])
    [tiled] = segmenter(max_segments=1000, tile=64, tile_overlap=overlap).segments([image])
    assert objects(tiled) == objects(whole)
    assert (np.sort([one["score"] for one in tiled.segments])[::-1] == [one["score"] for one in tiled.segments]).all()
    assert (tiled.semantic_map(3) == whole.semantic_map(3)).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(33, 200), st.integers(33, 200), st.sampled_from((1, 3, 8)))
def test_tiled_panoptic_maps_are_the_maps(seed, height, width, grain):
    image = scene(seed, height, width, grain)
    image[image[..., 2] == 0, 0] = 255  # the rest is one more segment, of stuff
    image[image[..., 2] == 0, 1] = 255
    [whole] = segmenter("panoptic").segments([image])
    [tiled] = segmenter("panoptic", tile=64).segments([image])
    pairs = np.unique(np.stack([whole.segment_map.ravel(), tiled.segment_map.ravel()]), axis=1).T.tolist()
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # the same map, other numbers
    said = [{one["id"]: (one["label_id"], round(one["score"], 4)) for one in found.segments}
            for found in (whole, tiled)]
    assert {a: said[1].get(b) for a, b in pairs} == {a: said[0].get(a) for a, _ in pairs}
    assert (tiled.semantic_map(3) == whole.semantic_map(3)).all()


def test_views_agree_where_the_network_is_sure():
    image = scene(3, 90, 120, 3)
    [whole] = segmenter().segments([image])
    for tile in (None, 64):
        [seen] = segmenter(tile=tile, tta=("horizontal_flip", "vertical_flip")).segments([image])
        assert objects(seen) == objects(whole) and len(whole.segments) > 5


def test_a_pixel_belongs_to_one_object_in_tiles_too():
    image = scene(5, 90, 120, 3)
    [tiled] = segmenter(tile=64, overlaps=False).segments([image])
    covered = sum(rle.decode(one["rle"]).astype(int) for one in tiled.segments)
    assert covered.max() == 1 and len(tiled.segments) > 3


def piece(top, left, height, width, score, label=0) -> Piece:
    return Piece(np.ones((height, width), bool), top, left, label, score)


def test_the_view_that_sees_an_object_whole_has_its_mask():
    windows = Window(0, 50, 0, 60), Window(0, 50, 40, 100)
    whole, part = piece(10, 42, 10, 30, 0.6), piece(11, 43, 8, 17, 0.9)  # the left window ends at 60
    [merged] = merge_windows([(windows[0], [part]), (windows[1], [whole])], (50, 100))
    assert merged.box == whole.box and merged.score == 0.9


def test_what_a_border_cuts_is_left_to_the_window_that_shows_it_whole():
    windows = Window(0, 50, 0, 60), Window(0, 50, 40, 100)
    sliver = piece(10, 50, 10, 10, 0.9)
    assert merge_windows([(windows[0], [sliver]), (windows[1], [])], (50, 100)) == []
    assert merge_windows([(windows[0], [piece(10, 30, 10, 30, 0.9)]), (windows[1], [])], (50, 100))  # cut in both


def test_two_objects_of_one_window_stay_two():
    windows = Window(0, 50, 0, 60), Window(0, 50, 40, 100)
    twice = [piece(10, 42, 10, 18, 0.9), piece(10, 42, 10, 17, 0.4)]
    assert len(merge_windows([(windows[0], twice), (windows[1], [piece(10, 42, 10, 18, 0.8)])], (50, 100))) == 2
    other = [piece(10, 42, 10, 18, 0.8, label=1)]
    assert len(merge_windows([(windows[0], twice[:1]), (windows[1], other)], (50, 100))) == 2


def test_an_object_that_one_view_misses_has_half_its_score():
    both, once = piece(0, 0, 5, 5, 0.8), piece(20, 20, 5, 5, 0.6)
    merged = merge_views([[both, once], [piece(0, 0, 5, 5, 0.6)]], Window(0, 40, 0, 40))
    assert [one.score for one in merged] == [pytest.approx(0.7), pytest.approx(0.3)]
    assert merged[0].box == both.box


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from((32, 64)), st.floats(0, 0.75))
def test_windows_cover_the_image_and_overlap(height, width, tile, overlap):
    windows = lay_windows((height, width), tile, overlap)
    seen = np.zeros((height, width), int)
    for window in windows:
        assert window.bottom - window.top == min(tile, height) and window.right - window.left == min(tile, width)
        seen[window.slices] += 1
    assert seen.min() >= 1
    lefts = sorted({window.left for window in windows})
    assert all(after - before <= tile - round(overlap * tile) for before, after in pairwise(lefts))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)))
def test_of_two_masks_that_are_about_the_same_the_better_one_stays(seed, most):
    random, canvas, pieces = np.random.default_rng(seed), np.zeros((30, 30), bool), []
    for _ in range(random.integers(0, 12)):
        top, left, height, width = *random.integers(0, 15, 2), *random.integers(1, 15, 2)
        pieces.append(Piece(random.random((height, width)) < 0.8, int(top), int(left), int(random.integers(2)), 0.5))
    whole = [canvas.copy() for _ in pieces]
    for mask, one in zip(whole, pieces, strict=True):
        mask[one.window] = one.mask
    kept: list[int] = []
    for k, one in enumerate(pieces):
        same = [j for j in kept if pieces[j].label_id == one.label_id]
        if not any((whole[k] & whole[j]).sum() > most * (whole[k] | whole[j]).sum() for j in same):
            kept.append(k)
    found = without_duplicates(pieces, most)
    assert [next(k for k, one in enumerate(pieces) if one is chosen) for chosen in found] == kept


def test_a_model_brings_the_suppression_that_it_was_scored_with():
    model = Seeing()
    model.config.segmentation_nms_threshold = 0.7
    processor = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    assert Segmenter(model, processor).rules.nms_threshold == 0.7
    assert Segmenter(model, processor, nms_threshold=1.0).rules.nms_threshold == 1.0
    assert Segmenter(model, processor, compat=True).rules.nms_threshold is None
    assert Segmenter(model, processor).using(threshold=0.1).rules.nms_threshold == 0.7
    image = scene(3, 90, 120, 3)
    [plain], [strict] = segmenter().segments([image]), segmenter(nms_threshold=0.5, overlaps=False).segments([image])
    assert objects(plain) == objects(strict)  # none is there twice, and none hides another
    with pytest.raises(UserError, match="nms_threshold is 7"):
        segmenter(nms_threshold=7)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="panoptic"):
        segmenter("panoptic", tta=("horizontal_flip",))
    with pytest.raises(UserError, match="compat"):
        segmenter(tile=64, compat=True)

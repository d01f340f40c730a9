"""YOLACT's matching, losses and suppression, against the definitions of its authors written out plainly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from hfseg.models.networks.yolact import (
    YolactConfig,
    YolactForInstanceSegmentation,
    decode,
    encode,
    fast_nms,
    hard_negative_loss,
    mask_loss,
    match,
    place_anchors,
    semantic_loss,
)


def boxes_of(count: int, side: int, random: torch.Generator) -> Tensor:
    """Boxes with whole corners: of these, many overlap by the same share."""
    corners = torch.randint(0, side, (count, 2), generator=random).float()
    return torch.cat([corners, corners + torch.randint(1, 1 + side // 2, (count, 2), generator=random)], 1)


def match_by_all_pairs(anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As the authors do: the best of all pairs that are left, as often as there are objects."""
    overlaps = box_iou(boxes, anchors)
    best, matched = overlaps.max(0)
    for _ in range(len(boxes)):
        number, anchor = divmod(int(overlaps.argmax()), len(anchors))
        best[anchor], matched[anchor] = 2, number
        overlaps[number], overlaps[:, anchor] = -1, -1
    wanted = labels[matched].clone()
    wanted[best < 0.5] = -1
    wanted[best < 0.4] = 0
    return matched, wanted


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(25, 60), st.sampled_from((3, 12, 60)))
def test_objects_get_the_anchors_that_the_best_pairs_give_them(seed, count, anchors, side):
    random = torch.Generator().manual_seed(seed)
    boxes, anchors = boxes_of(count, side, random), boxes_of(anchors, side, random)
    labels = torch.randint(1, 5, (count,), generator=random)
    for found, expected in zip(match(anchors, boxes, labels), match_by_all_pairs(anchors, boxes, labels), strict=True):
        assert torch.equal(found, expected)


def test_a_thousand_objects_in_one_place_are_matched():
    anchors = place_anchors([(64, 64), (32, 32)], (512, 512), (24, 48))
    boxes = torch.tensor([[100.0, 100, 124, 124]]).repeat(1000, 1)
    matched, wanted = match(anchors, boxes, torch.ones(1000, dtype=torch.int64))
    assert len(matched[wanted > 0].unique()) == 1000


def test_more_objects_than_anchors_take_what_there_is():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 2]])
    matched, wanted = match(boxes[:2], boxes, torch.tensor([1, 2, 3]))
    assert matched.tolist() == [0, 1] and wanted.tolist() == [1, 2]


def test_anchors_lie_around_the_middle_of_their_place():
    grids, size, sides = [(4, 6), (2, 3)], (32, 48), (8, 20)
    anchors = place_anchors(grids, size, sides)
    assert len(anchors) == 3 * (4 * 6 + 2 * 3)
    centres, spans = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    assert centres[:3].tolist() == [[4, 4]] * 3 and centres[3].tolist() == [12, 4] and centres[-1].tolist() == [40, 24]
    assert torch.allclose(spans.prod(1), torch.tensor([64.0] * 72 + [400.0] * 18))
    assert torch.allclose(spans[:3, 1] / spans[:3, 0], torch.tensor([0.5, 1, 2]))
    boxes = boxes_of(len(anchors), 40, torch.Generator().manual_seed(0))
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3)


def nms_by_sorting(boxes, scores, threshold, least, candidates, most):
    values, order = scores.T.sort(1, descending=True)
    values, order = values[:, :candidates], order[:, :candidates]
    overlaps = torch.stack([box_iou(boxes[row], boxes[row]) for row in order]).triu(diagonal=1)
    kept = (overlaps.amax(1) <= threshold) & (values > least)
    labels = torch.arange(len(values))[:, None].expand_as(values)[kept]
    values, best = values[kept].sort(descending=True)
    return order[kept][best][:most], labels[best][:most], values[:most]


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 4), st.sampled_from((0.05, 0.5, 0.99)),
       st.integers(1, 60), st.integers(1, 40))
def test_suppression_is_that_of_all_boxes_sorted(seed, count, classes, least, candidates, most):
    random = torch.Generator().manual_seed(seed)
    boxes = boxes_of(count, 20, random)
    scores = (torch.randperm(count * classes, generator=random) / (count * classes)).view(count, classes)  # no ties
    asked = (boxes, scores, 0.5, least, candidates, most)
    for found, expected in zip(fast_nms(*asked), nms_by_sorting(*asked), strict=True):
        assert torch.equal(found, expected)


def test_the_hardest_negatives_are_three_for_each_positive():
    random = torch.Generator().manual_seed(1)
    logits, wanted = torch.randn(40, 4, generator=random), torch.zeros(40, dtype=torch.int64)
    wanted[:3], wanted[3:9] = torch.tensor([1, 2, 3]), -1
    # The authors rank by log(sum exp) less the background's logit.
    hardness = logits.logsumexp(1) - logits[:, 0]
    hardness[wanted != 0] = -torch.inf
    chosen = torch.cat([torch.arange(3), hardness.topk(9).indices])
    expected = F.cross_entropy(logits[chosen], wanted[chosen], reduction="sum")
    assert float(hard_negative_loss(logits, wanted)) == pytest.approx(float(expected), rel=1e-6)


def test_maps_of_classes_add_up():
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
    masks = torch.zeros(2, 16, 24, dtype=torch.uint8)
    masks[0, :8], masks[1, 8:, 12:] = 1, 1
    truth = torch.zeros(3, 4, 6)
    truth[1, :2], truth[1, 2:, 3:] = 1, 1
    expected = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / 4 / 6
    found = semantic_loss(logits, {"labels": torch.tensor([2, 2]), "masks": masks})
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_masks_loss_is_that_around_its_box_over_the_boxs_area():
    random = torch.Generator().manual_seed(3)
    prototypes, coefficients = torch.randn(5, 8, 10, generator=random), torch.randn(3, 5, generator=random)
    masks = torch.zeros(2, 32, 40, dtype=torch.uint8)
    masks[0, 8:20, 4:24], masks[1, 16:32, 32:40] = 1, 1
    boxes = torch.tensor([[4.0, 8, 24, 20], [32, 16, 40, 32]])
    matched = torch.tensor([0, 1, 0])
    truth = F.interpolate(masks[None].float(), size=(16, 20), mode="bilinear", antialias=True)[0]
    finer = F.interpolate(torch.einsum("pk,khw->phw", coefficients, prototypes)[None], size=(16, 20), mode="bilinear")
    expected = 0.0
    for number, logits in zip(matched.tolist(), finer[0]):
        left, top, right, bottom = (boxes[number] / 2).int().tolist()
        window = slice(max(top - 2, 0), bottom + 2), slice(max(left - 2, 0), right + 2)
        loss = F.binary_cross_entropy(logits.sigmoid()[window], truth[number][window], reduction="sum")
        expected += float(loss) / (right - left) / (bottom - top)
    found = mask_loss(prototypes, coefficients, masks, matched, boxes[matched], (32, 40))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    torch.manual_seed(0)  # of more masks than are looked at, some stand for all
    some = mask_loss(prototypes, coefficients[:1].repeat(7, 1), masks, matched[:1].repeat(7), boxes[:1].repeat(7, 1),
                     (32, 40), most=2)
    one = mask_loss(prototypes, coefficients[:1], masks, matched[:1], boxes[:1], (32, 40))
    assert float(some) == pytest.approx(7 * float(one), rel=1e-5)


def test_losses_are_weighed_as_the_authors_weigh_them():
    config = YolactConfig(backbone="resnet18", fpn_channels=16, prototypes=4, num_labels=2, anchor_sizes=[16] * 5)
    assert (config.class_weight, config.box_weight, config.mask_weight, config.semantic_weight) == (1, 1.5, 6.125, 1)
    torch.manual_seed(0)
    network = YolactForInstanceSegmentation(config).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 10:30, 8:24] = 1
    target = {"boxes": torch.tensor([[8.0, 10, 24, 30]]), "labels": torch.tensor([2]), "masks": masks}
    images = torch.randn(2, 3, 64, 64)
    found = network.losses(images, (64, 64), [target, target])
    finest, prototypes, anchors, logits, offsets, coefficients = network._predict(images)
    matched, wanted = match(anchors, target["boxes"], target["labels"])
    positive, boxes = wanted > 0, target["boxes"].expand(len(anchors), 4)
    count, chosen = 2 * int(positive.sum()), boxes[positive]
    apart = sum(F.smooth_l1_loss(one[positive], encode(chosen, anchors[positive]), reduction="sum") for one in offsets)
    assert found["loss_boxes"].item() == pytest.approx(1.5 * apart.item() / count, rel=1e-4)
    shapes = sum(mask_loss(prototypes[i], coefficients[i][positive], masks, matched[positive], chosen, (64, 64))
                 for i in range(2))
    assert found["loss_masks"].item() == pytest.approx(6.125 * shapes.item() / count, rel=1e-4)
    classes = sum(hard_negative_loss(one, wanted) for one in logits)
    assert found["loss_classes"].item() == pytest.approx(classes.item() / count, rel=1e-4)
    maps = sum(semantic_loss(network.semantic(one[None])[0], target) for one in finest)
    assert found["loss_semantic"].item() == pytest.approx(maps.item() / 2, rel=1e-4)

"""YOLACT: masks as sums of prototypes that the whole image shares.

Source: Bolya et al., YOLACT: Real-time Instance Segmentation (arXiv 1904.02689). No library keeps it. Losses, matching
and suppression are those of the authors' code (github.com/dbolya/yolact), but for what is said at `mask_loss` and
`hard_negative_loss`, and for regions of crowds, of which there are none here. Anchors have the paper's three ratios; in
the authors' configuration for COCO all are square, by what they call a bug.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from hfseg.models.networks.detector import Detector, DetectorConfig, DetectorOutput, joined

_VARIANCES = (0.1, 0.2)  # of SSD: by which offsets of centres and of sizes are divided
_POSITIVE, _NEGATIVE = 0.5, 0.4  # IoU of an anchor that is an object, and of one that is none
_NEGATIVES = 3  # for each positive anchor, the hardest ones
_FINER = 2  # than the prototypes is the grid on which masks are compared
_RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width


class YolactConfig(DetectorConfig):
    """Configuration of YOLACT.

    Attributes:
        anchor_sizes: Side in pixels of the boxes that the five levels of the pyramid begin with.
        prototypes: How many masks the image shares.
        candidates: Boxes of a class that fast NMS looks at.
        class_weight: Of the classes in the loss; and so on.
    """

    model_type = "hfseg_yolact"

    anchor_sizes: tuple[int, ...] | list[int] = (24, 48, 96, 192, 384)
    prototypes: int = 32
    candidates: int = 200
    class_weight: float = 1.0
    box_weight: float = 1.5
    mask_weight: float = 6.125
    semantic_weight: float = 1.0


class YolactHead(nn.Module):
    """Classes, boxes and coefficients at every place of every level, by the same convolutions.

    Args:
        width: Channels of the pyramid.
        anchors: Boxes at each place.
        outputs: Classes and the background.
        prototypes: Coefficients of a box.
    """

    def __init__(self, width: int, anchors: int, outputs: int, prototypes: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.classes = nn.Conv2d(width, anchors * outputs, 3, padding=1)
        self.boxes = nn.Conv2d(width, anchors * 4, 3, padding=1)
        self.coefficients = nn.Conv2d(width, anchors * prototypes, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Computes all three.

        Args:
            levels: (B, width, h, w) of each level.

        Returns:
            (B, A, outputs) logits, (B, A, 4) offsets and (B, A, prototypes) from -1 to 1, of all anchors in a row.
        """
        shared = [self.trunk(level) for level in levels]
        anchors = self.boxes.out_channels // 4
        parts = [
            torch.cat([head(level).permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (anchors, -1)).flatten(1, 2)
                       for level in shared], 1)
            for head in (self.classes, self.boxes, self.coefficients)
        ]
        return parts[0], parts[1], parts[2].tanh()


class YolactForInstanceSegmentation(Detector):
    """One pass: prototypes from the finest level; from each level boxes, classes and how to add the prototypes up.

    Args:
        config: What to build.

    Example:
        >>> config = YolactConfig(backbone="resnet18", fpn_channels=16, prototypes=4, num_labels=2)
        >>> output = YolactForInstanceSegmentation(config).eval()(torch.zeros(1, 3, 64, 64))
        >>> output.masks.shape[-2:], output.pasted
        (torch.Size([16, 16]), False)
    """

    config_class = YolactConfig

    def __init__(self, config: YolactConfig):
        super().__init__(config)
        width = config.fpn_channels
        self.backbone = self.body((2, 3, 4))
        self.fpn = FeaturePyramidNetwork(self.backbone.feature_info.channels(), width, LastLevelP6P7(width, width))
        self.protonet = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(width, config.prototypes, 1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = YolactHead(width, len(_RATIOS), config.num_labels + 1, config.prototypes)
        self.semantic = nn.Conv2d(width, config.num_labels, 1)  # helps in training alone
        for module in (*self.protonet.modules(), *self.head.modules(), self.semantic):
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.finish()

    def backbone_module(self) -> nn.Module:
        return self.backbone

    def _predict(self, pixel_values: Tensor):
        levels = self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.backbone(pixel_values))))
        levels = list(levels.values())
        grids = [tuple(level.shape[-2:]) for level in levels]
        anchors = place_anchors(grids, tuple(pixel_values.shape[-2:]), self.config.anchor_sizes).to(pixel_values.device)
        return levels[0], self.protonet(levels[0]), anchors, *self.head(levels)

    # -- learning -----------------------------------------------------------------------------------------------

    def losses(self, pixel_values: Tensor, size: tuple[int, int], targets: list[dict[str, Tensor]]) -> dict:
        found = [part.float() for part in self._predict(pixel_values)]
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self._compared(*found, tuple(pixel_values.shape[-2:]), targets)

    def _compared(self, finest: Tensor, prototypes: Tensor, anchors: Tensor, logits: Tensor, offsets: Tensor,
                  coefficients: Tensor, size: tuple[int, int], targets: list[dict[str, Tensor]]) -> dict:
        weights, totals = self.config, {"classes": 0.0, "boxes": 0.0, "masks": 0.0, "semantic": 0.0}
        positives = 0
        for i, target in enumerate(targets):
            matched, wanted = match(anchors, target["boxes"], target["labels"])
            positive = wanted > 0
            positives += int(positive.sum())
            totals["classes"] = totals["classes"] + hard_negative_loss(logits[i], wanted)
            if positive.any():
                boxes = target["boxes"][matched[positive]]
                totals["boxes"] = totals["boxes"] + F.smooth_l1_loss(
                    offsets[i][positive], encode(boxes, anchors[positive]), reduction="sum")
                totals["masks"] = totals["masks"] + mask_loss(
                    prototypes[i], coefficients[i][positive], target["masks"], matched[positive], boxes, size)
            totals["semantic"] = totals["semantic"] + semantic_loss(self.semantic(finest[i : i + 1])[0], target)
        count, images = max(positives, 1), len(targets)
        return {
            "loss_classes": weights.class_weight * totals["classes"] / count,
            "loss_boxes": weights.box_weight * totals["boxes"] / count + 0 * offsets.sum(),
            "loss_masks": weights.mask_weight * totals["masks"] / count + 0 * (prototypes.sum() + coefficients.sum()),
            "loss_semantic": weights.semantic_weight * totals["semantic"] / images,
        }  # fmt: skip

    # -- finding ------------------------------------------------------------------------------------------------

    def detect(self, pixel_values: Tensor, size: tuple[int, int]) -> DetectorOutput:
        _, prototypes, anchors, logits, offsets, coefficients = (part.float() for part in self._predict(pixel_values))
        config, found = self.config, []
        for i in range(len(logits)):
            boxes = clip_boxes_to_image(decode(offsets[i], anchors), size)
            scores = logits[i].softmax(-1)[:, 1:]
            kept, labels, values = fast_nms(boxes, scores, config.nms_threshold, config.score_threshold,
                                            config.candidates, config.detections_per_image)
            masks = torch.einsum("nk,khw->nhw", coefficients[i][kept], prototypes[i])
            found.append({"scores": values, "labels": labels, "boxes": boxes[kept], "masks": masks})
        return joined(found, config.num_labels, pasted=False)


def place_anchors(grids: Sequence[tuple[int, int]], size: tuple[int, int], sides: Sequence[float]) -> Tensor:
    """Lays boxes around the middle of every place of every level.

    Args:
        grids: (h, w) of each level.
        size: (H, W) that they cover.
        sides: Of the square box of each level, in pixels; the others have the same area.

    Returns:
        (A, 4) left, top, right, bottom: by level, row, column, ratio.

    Example:
        >>> place_anchors([(1, 2)], (8, 16), [4])[[1, 4]].tolist()
        [[2.0, 2.0, 6.0, 6.0], [10.0, 2.0, 14.0, 6.0]]
    """
    roots, levels = torch.tensor(_RATIOS).sqrt(), []
    for (height, width), side in zip(grids, sides, strict=True):
        half = torch.stack([side / roots, side * roots], 1) / 2
        y, x = ((torch.arange(n) + 0.5) * (whole / n) for n, whole in zip((height, width), size))
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2)
        levels.append(torch.cat([centres - half, centres + half], 2).reshape(-1, 4))
    return torch.cat(levels)


def match(anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tells for each anchor which object it is; every object gets its best anchor.

    Where objects claim one anchor, the pair that overlaps most is made first. An object loses no more anchors than
    there are other objects, so that of each row of overlaps only the best few need to be sorted.

    Args:
        anchors: (A, 4) left, top, right, bottom.
        boxes: (N, 4), so too; no more than anchors.
        labels: (N,) from 1.

    Returns:
        (A,) the object, and (A,) its label: 0 for the background, -1 for what is neither.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10]])
        >>> match(torch.tensor([[0.0, 0, 9, 10], [0, 0, 9, 5], [50, 50, 60, 60]]), boxes, torch.tensor([3]))[1].tolist()
        [3, -1, 0]
    """
    if not len(boxes):
        nothing = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        return nothing, nothing
    overlaps = box_iou(boxes, anchors).float()
    best, matched = overlaps.max(0)
    wanted = labels[matched]
    wanted[best < _POSITIVE] = -1
    wanted[best < _NEGATIVE] = 0
    # Numbers that are unlike each other, the larger one for the anchor that comes first: the bits of a float that is
    # not negative are ordered as it is.
    ranks = (overlaps.view(torch.int32).long() << 32) - torch.arange(len(anchors), device=anchors.device)
    few = ranks.topk(min(len(boxes), len(anchors))).indices
    values, few = overlaps.gather(1, few).tolist(), few.tolist()
    waiting = [(-row[0], number, 0) for number, row in enumerate(values)]
    heapq.heapify(waiting)
    owner: dict[int, int] = {}
    while waiting:
        _, number, rank = heapq.heappop(waiting)
        if few[number][rank] not in owner:
            owner[few[number][rank]] = number
        elif rank + 1 < len(few[number]):
            heapq.heappush(waiting, (-values[number][rank + 1], number, rank + 1))
    taken, owners = (torch.tensor(list(part), device=anchors.device) for part in (owner.keys(), owner.values()))
    matched[taken], wanted[taken] = owners, labels[owners]
    return matched, wanted


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Expresses boxes by anchors: offsets of the centres and logarithms of the sizes.

    Args:
        boxes: (N, 4) left, top, right, bottom.
        anchors: (N, 4), so too.

    Returns:
        (N, 4).
    """
    sizes, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return torch.cat([centres / sizes / _VARIANCES[0], (wanted / sizes).clamp(min=1e-6).log() / _VARIANCES[1]], 1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Does the reverse of `encode`.

    Args:
        offsets: (N, 4).
        anchors: (N, 4) left, top, right, bottom.

    Returns:
        (N, 4) left, top, right, bottom.

    Example:
        >>> anchors, boxes = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[1.0, 2, 5, 9]])
        >>> decode(encode(boxes, anchors), anchors).round(decimals=4).tolist()
        [[1.0, 2.0, 5.0, 9.0]]
    """
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2 + offsets[:, :2] * _VARIANCES[0] * sizes
    half = sizes * (offsets[:, 2:] * _VARIANCES[1]).clamp(max=6).exp() / 2
    return torch.cat([centres - half, centres + half], 1)


def hard_negative_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Adds up the cross-entropy of all positive anchors and of the hardest three times as many negative ones.

    An image without objects, of which the authors have none, counts as if it had one positive anchor.

    Args:
        logits: (A, classes and background), the background first.
        wanted: (A,) labels; -1 counts for nothing.

    Returns:
        A scalar.
    """
    losses = F.cross_entropy(logits, wanted.clamp(min=0), reduction="none")
    positive, negative = wanted > 0, wanted == 0
    count = min(_NEGATIVES * max(int(positive.sum()), 1), int(negative.sum()))
    return losses[positive].sum() + losses[negative].topk(count).values.sum()


def mask_loss(prototypes: Tensor, coefficients: Tensor, masks: Tensor, matched: Tensor, boxes: Tensor,
              size: tuple[int, int], most: int = 100) -> Tensor:
    """Adds up the binary cross-entropy of masks in and just around the objects' boxes, divided by the boxes' areas.

    Masks are stretched to twice the prototypes' sides, as they will be to the image, and each place shall be as sure as
    the object covers it. The authors compare at the prototypes' places and round the truth to 0 or 1: of objects of 30
    to 54 pixels, and cables, the best that logits can learn then has a mean IoU of 0.84, and so it is 0.98.

    Args:
        prototypes: (K, h, w).
        coefficients: (P, K) of the positive anchors.
        masks: (N, H, W) of the objects.
        matched: (P,) the object of each positive anchor.
        boxes: (P, 4) of those objects, in pixels.
        size: (H, W).
        most: Anchors that are looked at; of more, a random choice stands for all.

    Returns:
        A scalar.
    """
    share = 1.0
    if len(matched) > most:
        chosen = torch.randperm(len(matched), device=matched.device)[:most]
        share, matched, coefficients, boxes = len(matched) / most, matched[chosen], coefficients[chosen], boxes[chosen]
    logits = torch.einsum("pk,khw->phw", coefficients, prototypes)
    logits = F.interpolate(logits[None], scale_factor=_FINER, mode="bilinear", align_corners=False)[0]
    height, width = logits.shape[1:]
    used, numbers = matched.unique(return_inverse=True)
    truth = F.interpolate(masks[used][None].float(), size=(height, width), mode="bilinear", align_corners=False,
                          antialias=True)[0].clamp(0, 1)[numbers]
    scale = boxes.new_tensor([width / size[1], height / size[0]] * 2)
    left, top, right, bottom = (boxes * scale).T[..., None, None]
    y, x = (torch.arange(n, device=boxes.device) + 0.5 for n in (height, width))
    inside = ((x > left - _FINER) & (x < right + _FINER) & (y[:, None] > top - _FINER)
              & (y[:, None] < bottom + _FINER))
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * inside
    # Objects smaller than a place of the prototypes, which the authors drop, count as if they had its size.
    area = ((right - left).clamp(min=_FINER) * (bottom - top).clamp(min=_FINER)).flatten()
    return share * (losses.sum((1, 2)) / area).sum()


def semantic_loss(logits: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Compares a map per class with the union of its objects: binary cross-entropy, a sum over classes and a mean over
    places.

    Args:
        logits: (C, h, w).
        target: `labels` (N,) from 1, and `masks` (N, H, W).

    Returns:
        A scalar.
    """
    truth = torch.zeros_like(logits)
    if len(target["labels"]):
        masks = F.interpolate(target["masks"][None].float(), size=logits.shape[1:], mode="bilinear",
                              align_corners=False, antialias=True)[0].gt(0.5).float()
        for label, mask in zip(target["labels"].tolist(), masks):
            truth[label - 1] = torch.maximum(truth[label - 1], mask)
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(0).mean()


def fast_nms(boxes: Tensor, scores: Tensor, threshold: float, least: float, candidates: int,
             most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Suppresses boxes that overlap a better one of their class, all at once: also better ones that fell themselves.

    Args:
        boxes: (A, 4).
        scores: (A, C).
        threshold: The largest IoU that is kept.
        least: Scores below are left out.
        candidates: Boxes of a class that are looked at.
        most: Boxes that are kept, the best ones of all classes.

    Returns:
        (N,) which boxes, (N,) their classes, (N,) their scores, best first.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        >>> fast_nms(boxes, torch.tensor([[0.9], [0.8], [0.7]]), 0.5, 0.05, 200, 100)[0].tolist()
        [0, 2]
    """
    likely = (scores > least).any(1).nonzero()[:, 0]  # the others could suppress nothing that stays
    values, order = scores[likely].T.topk(min(candidates, len(likely)))  # (C, K)
    if not len(likely):
        return likely, likely, scores.new_zeros(0)
    order = likely[order]
    overlaps = torch.stack([box_iou(boxes[row], boxes[row]) for row in order]).triu(diagonal=1)
    kept = (overlaps.amax(1) <= threshold) & (values > least)
    labels = torch.arange(len(values), device=boxes.device)[:, None].expand_as(values)[kept]
    values, found = values[kept], order[kept]
    values, best = values.sort(descending=True)
    return found[best][:most], labels[best][:most], values[:most]

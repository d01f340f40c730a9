"""From what a network proposes to the segments of an image, at the image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from hfseg.errors import UserError
from hfseg.models.candidates import Candidates
from hfseg.ops import masks as kernels
from hfseg.ops import rle

_MOST = 100  # instances of an image, from a network of fewer queries


@dataclass(frozen=True)
class SegmentRules:
    """Which of the proposed masks become segments.

    Args:
        threshold: The least score of a segment.
        mask_threshold: The probability from which a pixel belongs to a mask.
        overlap_mask_area_threshold: In a panoptic map, a mask must keep more than this share of the pixels that it
            covers, after better ones took theirs, or it goes.
        overlaps: Whether instances may overlap: each keeps its whole mask. Else a pixel belongs to the best alone, by
            the rules of a panoptic map.
        max_segments: Instances of an image, at most: the best ones. None: as many as the network has queries or
            boxes, and 100 of fewer.
        compat: Do as transformers' post-processing does, through its fixed 384 x 384 where it has one.
    """

    threshold: float = 0.5
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.8
    overlaps: bool = True
    max_segments: int | None = None
    compat: bool = False

    def __post_init__(self):
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}", "0 to 1")
        if self.max_segments is not None and self.max_segments < 1:
            raise UserError(f"max_segments is {self.max_segments}", "1 or more, or None")


@dataclass
class Found:
    """The segments of one image.

    Args:
        segment_map: (H, W) int32, the id of the segment of each pixel, 0 for none; of several, the one with the best
            score.
        segments: Of each `id`, `label_id`, `score`, best first for instances; `rle` where masks may overlap.
    """

    segment_map: np.ndarray
    segments: list[dict[str, Any]]

    def semantic_map(self, num_labels: int) -> np.ndarray:
        """Gives each pixel the class of its segment.

        Args:
            num_labels: Number of classes.

        Returns:
            (H, W) uint8, or uint16 for 255 classes and more; pixels without a segment have the largest value.
        """
        kind = np.uint8 if num_labels < 255 else np.uint16
        table = np.full(max((s["id"] for s in self.segments), default=0) + 1, np.iinfo(kind).max, kind)
        for segment in self.segments:
            table[segment["id"]] = segment["label_id"]
        return table[self.segment_map]


@dataclass(frozen=True)
class Piece:
    """An object, or as much of it as a window shows.

    Args:
        mask: (h, w) bool.
        top: Row of its upper left corner in the image.
        left: Column of it.
        label_id: Its class.
        score: 0 to 1.
    """

    mask: np.ndarray
    top: int
    left: int
    label_id: int
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Its first row, the one after the last, the first column, the one after the last."""
        return self.top, self.top + self.mask.shape[0], self.left, self.left + self.mask.shape[1]

    @property
    def window(self) -> tuple[slice, slice]:
        """Where it lies in the image."""
        top, bottom, left, right = self.box
        return slice(top, bottom), slice(left, right)


class Geometry:
    """How an image lies in what the network was given.

    Args:
        size: (H, W) of the image itself.
        content: (height, width) that it has in the pixel values.
        padded: (height, width) of the pixel values, padding included.
    """

    def __init__(self, size: Sequence[int], content: Sequence[int], padded: Sequence[int]):
        self.size, self.content, self.padded = tuple(size), tuple(content), tuple(padded)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Brings boxes to pixels of the image.

        Args:
            boxes: (K, 4) left, top, right, bottom in pixels of the pixel values.

        Returns:
            (K, 4); one that reaches into the padding goes on beyond the image, or its mask would be squeezed.
        """
        return boxes * ([self.size[1] / self.content[1], self.size[0] / self.content[0]] * 2)


def find_instances(candidates: Candidates, number: int, geometry: Geometry, rules: SegmentRules,
                   scored_by_mask: bool) -> Found:
    """Picks the objects of one image.

    Args:
        candidates: Of a batch.
        number: Which image of it.
        geometry: Of the image.
        rules: Which masks to take.
        scored_by_mask: Whether the mean probability inside a mask counts, as Mask2Former has it.

    Returns:
        The segments, best first.
    """
    if rules.overlaps:
        return laid_out(find_pieces(candidates, number, geometry, rules, scored_by_mask), geometry.size)
    masks, boxes, labels, scores = _best(candidates, number, rules, scored_by_mask)
    level = kernels.logit(rules.mask_threshold)
    logits, places, reached = _placed(masks, boxes, candidates.pasted, geometry, level)
    return _map(logits, scores, labels, places, reached, geometry, rules, level, ())


def find_pieces(candidates: Candidates, number: int, geometry: Geometry, rules: SegmentRules,
                scored_by_mask: bool) -> list[Piece]:
    """Picks the objects of one image, or of a window of it, before anything is made of them.

    Args:
        candidates: As for `find_instances`, like all others.
        number: Which image.
        geometry: Of the image.
        rules: Which masks to take.
        scored_by_mask: As there.

    Returns:
        The objects, best first; they may overlap.
    """
    masks, boxes, labels, scores = _best(candidates, number, rules, scored_by_mask)
    level = kernels.logit(rules.mask_threshold)
    logits, places, reached = _placed(masks, boxes, candidates.pasted, geometry, level)
    pieces = []
    for k, (top, bottom, left, right) in enumerate(reached.tolist()):
        if bottom <= top or right <= left:
            continue
        down, below, across, beside = places[k]
        here = np.array([[down, down * top + below, across, across * left + beside]])
        size = bottom - top, right - left
        [mask] = kernels.cover(logits[k : k + 1], here, np.array([[0, size[0], 0, size[1]]]), size, level)
        if mask.any():
            pieces.append(Piece(mask, top, left, labels[k], float(scores[k])))
    return pieces


def laid_out(pieces: Sequence[Piece], size: Sequence[int]) -> Found:
    """Lays objects on an image.

    Args:
        pieces: Best first.
        size: (H, W) of the image.

    Returns:
        The segments, with their codes; the map shows the best one of a pixel.
    """
    segment_map, segments = np.zeros(size, np.int32), []
    for number, piece in enumerate(pieces, start=1):
        code = rle.encode_part(piece.mask, (piece.top, piece.left), size)
        segments.append({"id": number, "label_id": piece.label_id, "score": piece.score, "rle": code})
        window = segment_map[piece.window]
        window[piece.mask & (window == 0)] = number
    return Found(segment_map, segments)


def without_overlaps(pieces: Sequence[Piece], size: Sequence[int], least: float) -> list[Piece]:
    """Leaves each pixel to the best object that covers it.

    Args:
        pieces: Best first.
        size: (H, W) of the image.
        least: The share of its pixels that an object must keep, or it goes.

    Returns:
        Those that are left.
    """
    free, kept = np.ones(size, bool), []
    for piece in pieces:
        window = free[piece.window]
        won = piece.mask & window
        window[won] = False
        if won.sum() > least * piece.mask.sum():
            kept.append(replace(piece, mask=won))
    return kept


def _best(candidates: Candidates, number: int, rules: SegmentRules, scored_by_mask: bool):
    """Masks, boxes, class ids and scores of what is an object by the rules, best first."""
    probabilities = candidates.probabilities[number]
    flat = probabilities.flatten()
    most = rules.max_segments or max(_MOST, len(probabilities))
    scores, order = flat.topk(min(len(flat), max(most, len(probabilities))))
    taken = scores >= max(rules.threshold, 1e-8)  # the mask's probability can only lower it
    scores, order = scores[taken], order[taken]
    queries, labels = order // probabilities.shape[1], order % probabilities.shape[1]
    masks = candidates.masks[number][queries]
    if scored_by_mask:
        inside = masks > 0
        mean = (masks.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1e-6)
        scores = scores * mean
    scores, best = scores.sort(descending=True, stable=True)
    best = best[scores >= max(rules.threshold, 1e-8)][:most]
    boxes = None if candidates.boxes is None else candidates.boxes[number][queries[best]]
    return masks[best], boxes, labels[best].tolist(), scores[: len(best)].cpu().numpy()


def find_panoptic(candidates: Candidates, number: int, geometry: Geometry, rules: SegmentRules,
                  fuse: Sequence[int]) -> Found:
    """Divides one image into segments that do not overlap.

    Among the masks that cover a pixel, the one with the largest score times probability gets it.

    Args:
        candidates: Of a batch.
        number: Which image of it.
        geometry: Of the image.
        rules: Which masks to take.
        fuse: Class ids whose masks become one segment: stuff.

    Returns:
        The segments.
    """
    probabilities = candidates.probabilities[number]
    scores, labels = probabilities.max(-1)
    # A query stands for its likeliest class, "no object" among them.
    taken = ((scores > rules.threshold) & (scores > 1 - probabilities.sum(-1))).nonzero()[:, 0]
    boxes = None if candidates.boxes is None else candidates.boxes[number][taken]
    level = kernels.logit(rules.mask_threshold)
    logits, places, reached = _placed(candidates.masks[number][taken], boxes, candidates.pasted, geometry, level)
    return _map(logits, scores[taken].cpu().numpy(), labels[taken].tolist(), places, reached, geometry, rules, level,
                fuse)


def compatible(processor: Any, outputs: Any, task: str, sizes: Sequence[tuple[int, int]], rules: SegmentRules,
               fuse: Sequence[int]) -> list[Found]:
    """Does what transformers' post-processing does, by its own code.

    Args:
        processor: The image processor.
        outputs: What the model returned.
        task: `instance` or `panoptic`.
        sizes: (H, W) of each image.
        rules: Thresholds.
        fuse: Class ids whose masks become one segment.

    Returns:
        The segments of each image; ids are transformers' own (from 1: its instances begin at 0), without codes.

    Raises:
        UserError: When the processor has no such method.
    """
    method = getattr(processor, f"post_process_{task}_segmentation", None)
    if method is None:
        raise UserError(f"compat is on, and {type(processor).__name__} has no {task} post-processing",
                        "a processor of transformers with one", "compat=False")
    accepted = method.__code__.co_varnames
    given = {"threshold": rules.threshold, "target_sizes": [tuple(size) for size in sizes],
             "overlap_mask_area_threshold": rules.overlap_mask_area_threshold, "mask_threshold": rules.mask_threshold,
             "label_ids_to_fuse": set(fuse), "stuff_classes": list(fuse)}
    results = method(outputs, **{name: value for name, value in given.items() if name in accepted})
    found = []
    for result in results:
        ids = result["segmentation"].cpu().numpy().astype(np.int32)
        shift = 1 if any(segment["id"] == 0 for segment in result["segments_info"]) else 0
        segments: dict[int, dict] = {}
        for segment in result["segments_info"]:  # stuff that was fused comes once for each mask
            number = segment["id"] + shift
            segments.setdefault(number, {"id": number, "label_id": segment["label_id"], "score": segment["score"]})
        found.append(Found(np.maximum(ids + shift, 0), list(segments.values())))
    return found


def _placed(masks: Tensor, boxes: Tensor | None, pasted: bool, geometry: Geometry, level: float):
    """Logits of masks, where the image's pixels lie among them, and which ones they reach."""
    logits = masks.float().cpu().numpy()
    inside = None if boxes is None else geometry.boxes(boxes.float().cpu().numpy().astype(np.float64))
    if pasted:
        places = kernels.boxed(inside, logits.shape[1:])
    else:
        places = np.tile(kernels.grid(geometry.padded, geometry.content, logits.shape[1:], geometry.size),
                         (len(logits), 1))
        if inside is not None:  # a mask learns to end within a step around its box, and a box may be a pixel too small
            down, across = (whole / count for whole, count in zip(geometry.padded, logits.shape[1:], strict=True))
            inside = inside + geometry.boxes(np.array([-across, -down, across, down]))
    if not len(logits):
        return logits, places, np.zeros((0, 4), np.int64)
    return logits, places, kernels.reach(logits, places, geometry.size, level, inside)


def _map(logits, scores, labels, places, reached, geometry, rules, level, fuse) -> Found:
    winner, covered, won = kernels.contest(logits, scores, places, reached, geometry.size, level)
    table, segments, stuff = np.zeros(len(labels) + 1, np.int32), [], {}
    for k, label in enumerate(labels):
        if not won[k] or won[k] <= rules.overlap_mask_area_threshold * covered[k]:
            continue
        if label in stuff:
            table[k + 1] = stuff[label]["id"]
            stuff[label]["score"] = max(stuff[label]["score"], float(scores[k]))
            continue
        segment = {"id": len(segments) + 1, "label_id": label, "score": float(scores[k])}
        segments.append(segment)
        table[k + 1] = segment["id"]
        if label in fuse:
            stuff[label] = segment
    return Found(table[winner], segments)



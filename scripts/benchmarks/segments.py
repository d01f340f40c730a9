"""From what Mask2Former returns to segments at the image's own size, against transformers' post-processing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Mask2FormerImageProcessor

from benchmarks.measuring import SEED, Row, Setting, at_least, ratio, shown, take_turns
from hfseg.inference.segments import Geometry, SegmentRules, find_instances, find_panoptic
from hfseg.models.candidates import read_queries
from hfseg.ops import rle


def outputs(queries: int, objects: int, size: tuple[int, int], classes: int = 80) -> SimpleNamespace:
    """Returns masks at a quarter of the image and class logits, such that some queries are sure of an object."""
    torch.manual_seed(SEED)
    height, width = size[0] // 4, size[1] // 4
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    centres, radii = torch.rand(queries, 2), 0.06 + 0.14 * torch.rand(queries)
    distances = ((y - centres[:, 0, None, None]) ** 2 + (x - centres[:, 1, None, None]) ** 2).sqrt()
    noise = F.interpolate(torch.randn(1, queries, 8, 8), size=(height, width), mode="bilinear")[0]
    masks = 60 * (radii[:, None, None] - distances) + noise
    logits = torch.zeros(queries, classes + 1)
    logits[:, -1] = 8
    sure = torch.randperm(queries)[:objects]
    logits[sure, torch.randint(0, classes, (objects,))] = 12.0 + 2 * torch.rand(objects)
    return SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])


def measure_segments(setting: Setting) -> Iterator[Row]:
    """Instances with their codes, and a panoptic map, of one image."""
    size = (64, 96) if setting.quick else (480, 640)
    found = outputs(100, 10 if setting.quick else 20, size)
    processor, geometry, rules = Mask2FormerImageProcessor(), Geometry(size, size, size), SegmentRules()

    def instances():
        return find_instances(read_queries(found), 0, geometry, rules, scored_by_mask=True)

    def their_instances():
        return processor.post_process_instance_segmentation(found, target_sizes=[size], return_binary_maps=True)[0]

    def panoptic():
        return find_panoptic(read_queries(found), 0, geometry, rules, fuse=())

    def their_panoptic():
        return processor.post_process_panoptic_segmentation(found, target_sizes=[size], label_ids_to_fuse=set())[0]

    ours, theirs = instances(), their_instances()
    mine = [rle.decode(segment["rle"]) for segment in ours.segments]
    other = theirs["segmentation"].numpy() > 0
    assert len(mine) == len(other), "not the same number of objects"
    overlaps = [max((a & b).sum() / (a | b).sum() for b in other) for a in mine]
    title = f"{size[1]}x{size[0]}, 100 queries"
    seconds = take_turns({"peer": their_instances, "hfseg": instances}, setting.rounds)
    yield Row(f"{len(mine)} instances of Mask2Former's outputs with their masks, {title}; theirs by 384x384, least "
              f"IoU with ours {min(overlaps):.3f}", shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
              **at_least(ratio(seconds["peer"], seconds["hfseg"]), 3))  # fmt: skip
    ours, theirs = panoptic(), their_panoptic()
    same = (ours.segment_map > 0) & (theirs["segmentation"].numpy() > 0)
    table = {segment["id"]: segment["label_id"] for segment in theirs["segments_info"]}
    labels = np.vectorize(lambda i: table.get(i, -1))(theirs["segmentation"].numpy())
    agree = (ours.semantic_map(80) == labels)[same].mean()
    seconds = take_turns({"peer": their_panoptic, "hfseg": panoptic}, setting.rounds)
    yield Row(f"The panoptic map of the same, {title}; {len(ours.segments)} segments, theirs "
              f"{len(theirs['segments_info'])}, same class in {100 * agree:.1f} % of the pixels that both label",
              shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
              **at_least(ratio(seconds["peer"], seconds["hfseg"]), 3))  # fmt: skip

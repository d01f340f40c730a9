"""The official COCO panoptic sample, perturbed, against the definition written out and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_mask_metrics import plain_quality

from hfseg.data import load_data
from hfseg.metrics.panoptic import PanopticCounts

FILL = 132  # a class of stuff that the sample does not have: what nothing else covers


def shifted(random, ids, listed, things):
    return np.roll(ids, random.integers(-25, 26, 2), (0, 1)), listed


def dropped(random, ids, listed, things):
    return ids, [one for one in listed if random.random() < 0.6]


def relabelled(random, ids, listed, things):
    return ids, [{**one, "label_id": int(random.integers(133)) if random.random() < 0.3 else one["label_id"]}
                 for one in listed]


def split(random, ids, listed, things):
    """Things lose a part, up to more than half, to another of their class."""
    ids, listed = ids.copy(), list(listed)
    for one in [one for one in listed if things[one["label_id"]]]:
        rows = np.flatnonzero((ids == one["id"]).any(1))
        cut = rows[0] + int(random.random() * len(rows))
        new = int(ids.max()) + 1
        ids[(ids == one["id"]) & (np.arange(len(ids))[:, None] >= cut)] = new
        listed.append({**one, "id": new})
    return ids, listed


def merged(random, ids, listed, things):
    """Things of a class become one."""
    ids, first, kept = ids.copy(), {}, []
    for one in listed:
        if things[one["label_id"]] and one["label_id"] in first:
            ids[ids == one["id"]] = first[one["label_id"]]
        else:
            first[one["label_id"]] = one["id"]
            kept.append(one)
    return ids, kept


def moved_and_all(random, ids, listed, things):
    for change in (split, relabelled, dropped, shifted):
        ids, listed = change(random, ids, listed, things)
    return ids, listed


def filled(ids, listed, things):
    """Every pixel has a segment, and a class of stuff one: what torchmetrics expects of predictions."""
    ids = np.where(np.isin(ids, [one["id"] for one in listed]), ids, 0)
    first, kept = {}, []
    for one in [*listed, {"id": 0, "label_id": FILL}]:
        if not things[one["label_id"]] and one["label_id"] in first:
            ids[ids == one["id"]] = first[one["label_id"]]
        else:
            first.setdefault(one["label_id"], one["id"])
            kept.append(one)
    return ids, [one for one in kept if (ids == one["id"]).any()]


def pairs_of(ids, listed, things):
    """(H, W, 2) class and object; a class that is none where there is no truth."""
    found = np.full((*ids.shape, 2), 999)
    for one in listed:
        found[ids == one["id"]] = one["label_id"], one["id"] + 1 if things[one["label_id"]] else 0
    return torch.from_numpy(found)[None]


@pytest.mark.parametrize("void", [False, True], ids=["as it is", "with a band of no truth"])
@pytest.mark.parametrize("change", [shifted, dropped, relabelled, split, merged, moved_and_all])
def test_the_perturbed_sample_scores_as_elsewhere(change, void, shared_data):
    from torchmetrics.detection import PanopticQuality

    data = load_data(shared_data / "coco_panoptic_sample", task="panoptic", validation_fraction=0)
    things, random = data.schema.is_thing, np.random.default_rng(3)
    assert list(things) == sorted(things, reverse=True)  # things come first, as in torchmetrics' own order
    ours, without_crowds, pairs, crowds = PanopticCounts(133), PanopticCounts(133), [], 0
    theirs = PanopticQuality(things=set(range(80)), stuffs=set(range(80, 133)), return_per_class=True,
                             return_sq_and_rq=True)
    for i in range(2):
        found = data.read("train", i).segments
        ids = found.flat()
        if void:
            ids[:, 200:290] = 0
        truth = [{"id": k + 1, "label_id": int(label), "iscrowd": bool(crowd)} for k, (label, crowd) in enumerate(
            zip(found.labels, found.crowd, strict=True)) if (ids == k + 1).any()]
        crowds += sum(one["iscrowd"] for one in truth)
        guess = filled(*change(random, found.flat(), [{**one, "iscrowd": False} for one in truth], things), things)
        ours.add(*guess, ids, truth)
        pairs.append((guess, (ids, truth)))
        certain = [one for one in truth if not one["iscrowd"]]  # torchmetrics knows no crowds: no truth in both
        without_crowds.add(*guess, ids, certain)
        theirs.update(pairs_of(*guess, things), pairs_of(ids, certain, things))
    assert crowds
    for label, (total, *numbers) in plain_quality(pairs, 133).items():
        assert ours.counts[label, 1:].tolist() == numbers, data.schema.names[label]
        assert ours.counts[label, 0] / 2**40 == pytest.approx(total, abs=1e-9)
    scores = without_crowds.scores(data.schema.names, things)
    mine = np.array([[scores[f"per_category_{key}"][name] for key in ("pq", "sq", "rq")] for name in data.schema.names])
    np.testing.assert_allclose(np.nan_to_num(mine), np.nan_to_num(theirs.compute().numpy().reshape(-1, 3)), atol=1e-6)
    quality = ours.scores(data.schema.names, things)
    assert 0.05 < quality["panoptic_quality"] < 0.97 and quality["num_classes_averaged"] > 10

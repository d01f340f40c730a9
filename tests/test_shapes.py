"""The embedded scenes: the same every time, exactly labelled, and unsolvable by colour alone."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest

from hfseg.data.shapes import DOMAINS, SHAPES, scene, shapes_dataset
from hfseg.errors import UserError

DOMAIN = pytest.mark.parametrize("domain", list(DOMAINS))


def fingerprint(domain: str, index: int) -> int:
    one = scene(7, index, domain)
    return zlib.crc32(one.image.tobytes() + one.panoptic_map.tobytes() + one.semantic_map.tobytes())


@DOMAIN
def test_a_scene_depends_on_nothing_but_its_arguments(domain):
    forward = [fingerprint(domain, i) for i in range(6)]
    backward = [fingerprint(domain, i) for i in reversed(range(6))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 6
    assert not np.array_equal(scene(0, 0, domain).image, scene(1, 0, domain).image)


def test_another_process_draws_the_same_scenes():
    code = (
        "import test_shapes as t; print([t.fingerprint(d, i) for d in ('target', 'source') for i in (3, 1)])"
    )
    run = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = {[*sys.path, __file__.rpartition('/')[0]]}; {code}",
    ]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == str([fingerprint(d, i) for d in ("target", "source") for i in (3, 1)])


@DOMAIN
@pytest.mark.parametrize("size", [(128, 128), (64, 160), (201, 97), (32, 32), (300, 256)])
def test_labels_agree_with_each_other(domain, size):
    for index in range(12):
        one = scene(5, index, domain, size)
        assert one.image.shape == (*size, 3) and one.image.dtype == np.uint8 and one.image.std() > 5
        assert one.semantic_map.dtype == np.uint8
        assert one.instance_map.dtype == one.panoptic_map.dtype == np.uint16
        assert one.semantic_map.shape == one.instance_map.shape == one.panoptic_map.shape == size

        ids = [segment["id"] for segment in one.segments_info]
        assert ids == np.unique(one.panoptic_map).tolist() == list(range(1, len(ids) + 1))
        assert sum(segment["area"] for segment in one.segments_info) == size[0] * size[1]
        for segment in one.segments_info:
            mask = one.panoptic_map == segment["id"]
            assert segment["area"] == mask.sum()
            assert np.unique(one.semantic_map[mask]).tolist() == [segment["label_id"]]
            assert segment["isthing"] == DOMAINS[domain].things[segment["label_id"]]
            assert np.unique(one.instance_map[mask]).tolist() == [segment["id"] * segment["isthing"]]
            x, y, width, height = segment["bbox"]
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == mask.sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            assert segment["iscrowd"] == 0


@DOMAIN
def test_one_index_is_one_scene_at_every_size(domain):
    for index in range(8):
        small, large = scene(0, index, domain, (96, 96)), scene(0, index, domain, (192, 192))
        assert (large.semantic_map[::2, ::2] == small.semantic_map).mean() > 0.95


@DOMAIN
def test_there_is_a_rare_class_and_a_thin_one(domain):
    names, rare, thin = DOMAINS[domain].names, DOMAINS[domain].rare, DOMAINS[domain].thin
    scenes = [scene(0, i, domain) for i in range(300)]
    share = {n: np.mean([(s.semantic_map == i).any() for s in scenes]) for i, n in enumerate(names)}
    assert 0.10 < share[rare] < 0.24
    assert all(share[name] > 0.45 for name in names if name != rare)
    things = [segment for s in scenes for segment in s.segments_info if segment["isthing"]]
    assert 3 <= len(things) / len(scenes) <= 7
    # So few pixels are left of some object that nobody could tell what it is: hardly ever.
    assert np.mean([segment["area"] < 40 for segment in things]) < 0.03
    # An object of a width w keeps no pixel after peeling w / 2 from every side; all others keep their core.
    left = {name: [] for name in names[1:]}
    for s in scenes[:60]:
        for segment in s.segments_info[:-1]:
            mask = s.instance_map == segment["id"]
            core = mask.copy()
            for axis in (0, 1):
                for shift in range(-3, 4):
                    core &= np.roll(mask, shift, axis)
            left[names[segment["label_id"]]].append(core.sum() / mask.sum())
    assert np.mean(left[thin]) < 0.03
    assert all(np.mean(values) > 0.08 for name, values in left.items() if name != thin and values)


def test_the_domains_differ_in_classes_and_in_look():
    source, target = DOMAINS["source"], DOMAINS["target"]
    assert set(source.names) & set(target.names) == {"background", "cable"}
    assert not set(source.textures) & set(target.textures)
    brightness = [np.mean([scene(0, i, d).image.mean() for i in range(60)]) for d in DOMAINS]
    assert brightness[0] > brightness[1] + 8
    for domain in DOMAINS.values():
        assert len(domain.names) == len(domain.palette) == len(set(domain.palette)) == len(domain.things) == 7
        assert set(domain.names[1:]) <= set(SHAPES)


def pixels(domain: str, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    scenes = [scene(0, i, domain) for i in range(start, start + count)]
    colours = np.concatenate([s.image.reshape(-1, 3) for s in scenes])
    return colours, np.concatenate([s.semantic_map.ravel() for s in scenes])


def mean_iou(predicted: np.ndarray, truth: np.ndarray, classes: int) -> float:
    counts = np.bincount(truth.astype(int) * classes + predicted, minlength=classes**2).reshape(
        classes, classes
    )
    hit = counts.diagonal()
    return float(np.mean(hit / (counts.sum(0) + counts.sum(1) - hit)))


@DOMAIN
def test_colour_alone_does_not_solve_it(domain):
    boosting = pytest.importorskip("sklearn.ensemble").HistGradientBoostingClassifier
    classes = len(DOMAINS[domain].names)
    colours, truth = pixels(domain, 0, 40)
    test_colours, test_truth = pixels(domain, 1_000_000, 20)
    scores = {}
    chosen = np.random.default_rng(0).choice(len(truth), 30_000, replace=False)
    for weight in (None, "balanced"):
        model = boosting(max_iter=25, class_weight=weight, early_stopping=False, random_state=0)
        model.fit(colours[chosen], truth[chosen])
        # Every fourth pixel is enough to score on.
        scores[f"boosting, {weight}"] = mean_iou(model.predict(test_colours[::4]), test_truth[::4], classes)
    # The best table of colours there is: Bayes' rule on a histogram of all training pixels.
    bins = [(c.astype(int) >> 4) @ (256, 16, 1) for c in (colours, test_colours)]
    table = np.bincount(bins[0] * classes + truth, minlength=4096 * classes).reshape(4096, classes)
    for name, prior in (("as found", 1), ("balanced", table.sum(0) + 1)):
        scores[f"histogram, {name}"] = mean_iou((table / prior).argmax(1)[bins[1]], test_truth, classes)
    print(domain, {name: round(score, 3) for name, score in scores.items()})
    assert max(scores.values()) < 0.40


@DOMAIN
def test_datasets_give_back_every_pixel(domain):
    data = shapes_dataset(domain, {"train": 5, "validation": 3}, seed=2, size=(48, 80))
    assert {split: len(part) for split, part in data.items()} == {"train": 5, "validation": 3}
    assert data["train"].column_names == ["image", "semantic_map", "instance_map", "image_id"]
    for split, start in (("train", 0), ("validation", 1_000_000)):
        for i, row in enumerate(data[split]):
            one = scene(2, start + i, domain, (48, 80))
            assert row["image_id"] == f"{domain}-{split}-{i:06d}"
            assert row["image"].mode == "RGB" and row["semantic_map"].mode == "L"
            assert np.array_equal(np.asarray(row["image"]), one.image)
            assert np.array_equal(np.asarray(row["semantic_map"]), one.semantic_map)
            assert np.array_equal(np.asarray(row["instance_map"]), one.instance_map)


def test_datasets_are_kept_on_demand_and_splits_are_stable():
    kept = shapes_dataset("source", {"test": 2}, size=(32, 32))["test"]
    assert shapes_dataset("source", {"test": 2}, size=[32, 32])["test"] is kept
    assert shapes_dataset("source", {"test": 2}, size=(32, 32), cached=False)["test"] is not kept
    longer = shapes_dataset("source", {"train": 1, "test": 3}, size=(32, 32))["test"]
    assert longer[1]["image"].tobytes() == kept[1]["image"].tobytes()


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda: scene(0, 0, "sauce"), ["sauce", "source, target", "did you mean 'source'"]),
        (lambda: scene(0, 0, size=(16, 128)), ["(16, 128)", "at least 32"]),
        (lambda: scene(-1, 0), ["seed -1", "from 0"]),
        (lambda: shapes_dataset(splits={"dev": 3}), ["dev", "train, validation, test"]),
        (lambda: shapes_dataset(splits={"train": 0}), ["0 scenes", "1 to 1000000"]),
    ],
)
def test_mistakes_are_explained(ask, words):
    with pytest.raises(UserError) as caught:
        ask()
    assert all(word in str(caught.value) for word in words), str(caught.value)

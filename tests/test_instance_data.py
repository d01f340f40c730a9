"""Data with objects: every format gives the same objects, and augmentation moves them with the image."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

import hfseg
from hfseg.data import load_data
from hfseg.data.annotations import read_annotations
from hfseg.data.augment import Augmentation
from hfseg.data.segments import Segments, mask_targets
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.ops import rle
from hfseg.recipe import AugmentConfig, LabelsConfig

SIZE = (24, 32)
BOXES = {"cat": (2, 3, 12, 10), "dog": (14, 5, 30, 20)}  # left, top, right, bottom
IDS = {"cat": 3, "dog": 7}


def ring(box) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def mask_of(box) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = True
    return mask


def picture(path, seed=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)


def write_coco(root, kind="polygon"):
    """Two images: one with both objects and a crowd, one with none."""
    picture(root / "train2017" / "one.png")
    picture(root / "train2017" / "two.png", 1)
    segmentations = {
        "polygon": lambda box: [ring(box)],
        "compressed": lambda box: {"size": list(SIZE), "counts": coco.encode(
            np.asfortranarray(mask_of(box).astype(np.uint8)))["counts"].decode()},
        "counts": lambda box: {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], np.flatnonzero(np.diff(
            mask_of(box).ravel("F").astype(int), prepend=0)), [mask_of(box).size]])).tolist()},
    }  # fmt: skip
    annotations = [{"id": i, "image_id": 5, "category_id": IDS[name], "iscrowd": 0, "bbox": [], "area": 1,
                    "segmentation": segmentations[kind](box)} for i, (name, box) in enumerate(BOXES.items())]
    annotations.append({"id": 9, "image_id": 5, "category_id": 7, "iscrowd": 1, "bbox": [], "area": 1,
                        "segmentation": segmentations["compressed"]((0, 20, 6, 24))})
    content = {"images": [{"id": 5, "file_name": "one.png"}, {"id": 6, "file_name": "two.png"}],
               "annotations": annotations, "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def write_yolo(root):
    picture(root / "images" / "train" / "one.png")
    picture(root / "images" / "train" / "two.png", 1)
    height, width = SIZE
    lines = [" ".join([str(i), *(f"{v / (width, height)[k % 2]:.6f}" for k, v in enumerate(ring(box)))])
             for i, box in enumerate(BOXES.values())]
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "one.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("names:\n  0: cat\n  1: dog\n")


def write_labelme(root):
    for name, shapes in (("one", BOXES), ("two", {})):
        picture(root / f"{name}.png")
        content = {"imagePath": f"{name}.png", "imageHeight": SIZE[0], "imageWidth": SIZE[1], "shapes": [
            {"label": label, "points": np.reshape(ring(box), (-1, 2)).tolist(), "shape_type": "polygon"}
            for label, box in shapes.items()
        ]}  # fmt: skip
        (root / f"{name}.json").write_text(json.dumps(content))


def write_cvat(root):
    picture(root / "images" / "one.png")
    picture(root / "images" / "two.png", 1)
    points = ";".join(f"{x},{y}" for x, y in np.reshape(ring(BOXES["cat"]), (-1, 2)))
    left, top, right, bottom = BOXES["dog"]
    runs = f"0,{(right - left) * (bottom - top)}"
    (root / "annotations.xml").write_text(
        f'<annotations><meta><task><labels><label><name>cat</name><color>#102030</color></label>'
        f'<label><name>dog</name><color>#405060</color></label></labels></task></meta>'
        f'<image id="0" name="one.png" width="{SIZE[1]}" height="{SIZE[0]}">'
        f'<polygon label="cat" points="{points}"/>'
        f'<mask label="dog" rle="{runs}" left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"/>'
        f'</image><image id="1" name="two.png" width="{SIZE[1]}" height="{SIZE[0]}"></image></annotations>')


FORMATS = {
    "COCO polygons": write_coco, "COCO compressed": lambda root: write_coco(root, "compressed"),
    "COCO counts": lambda root: write_coco(root, "counts"), "YOLO": write_yolo, "LabelMe": write_labelme,
    "CVAT": write_cvat,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_objects(name, tmp_path):
    FORMATS[name](tmp_path)
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    assert data.schema.names == ("cat", "dog") and len(data["train"]) == 2 and data.task == "instance"
    found = [data.read("train", i) for i in range(2)]
    one, empty = sorted(found, key=lambda sample: -len(sample.segments))
    assert len(empty.segments) == 0 and empty.segments.masks().shape == (0, *SIZE)
    masks, classes = mask_targets(one.segments, one.semantic_map, "instance", (True, True), 255)
    assert classes.tolist() == [0, 1]
    for mask, box in zip(masks, BOXES.values(), strict=True):
        assert (mask != mask_of(box)).mean() < 0.02
    if name.startswith("COCO"):
        assert one.segments.crowd.tolist() == [False, False, True]


def test_maps_of_ids_with_and_without_classes(tmp_path):
    for kind in (np.uint8, np.uint16):
        root = tmp_path / np.dtype(kind).name
        for split in ("train", "val"):
            picture(root / split / "images" / "one.png")
            (root / split / "instance_ids").mkdir()
            ids = np.zeros(SIZE, kind)
            for i, box in enumerate(BOXES.values(), start=1):
                ids[mask_of(box)] = i if kind == np.uint8 else 300 + i
            Image.fromarray(ids).save(root / split / "instance_ids" / "one.png")
        (root / "classes.json").write_text(json.dumps({"names": ["animal"]}))
        data = load_data(root, task="instance")
        sample = data.read("train", 0)
        assert data.schema.names == ("animal",) and sample.segments.labels.tolist() == [0, 0]
        assert [int(mask.sum()) for mask in sample.segments.masks()] == [70, 240]


def test_pascal_voc(tmp_path):
    picture(tmp_path / "JPEGImages" / "one.png")
    semantic, objects = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for i, (name, box) in enumerate(BOXES.items(), start=1):
        semantic[mask_of(box)], objects[mask_of(box)] = {"cat": 2, "dog": 1}[name], i
    for folder, array in (("SegmentationClass", semantic), ("SegmentationObject", objects)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "one.png")
    labels = LabelsConfig(names=["background", "dog", "cat"])
    data = load_data(tmp_path, task="instance", labels=labels, validation_fraction=0)
    assert data.read("train", 0).segments.labels.tolist() == [2, 1]


def test_coco_panoptic_stuff_and_things(shared_data):
    data = load_data(shared_data / "coco_panoptic_sample", task="panoptic", validation_fraction=0)
    assert (data.schema.num_labels, sum(data.schema.is_thing)) == (133, 80)
    for i, row in enumerate(data["train"]):
        sample = data.read("train", i)
        assert len(sample.segments) == len(row["instances"])
        assert (np.bincount(sample.segments.flat().ravel())[1:] > 0).all()


def test_columns_of_the_hub(tmp_path):
    picture(tmp_path / "one.png")
    image = {"path": str(tmp_path / "one.png"), "bytes": None}
    features = datasets.Features({"image": datasets.Image(), "objects": {
        "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
        "segmentation": datasets.List(datasets.List(datasets.List(datasets.Value("float32")))),
    }})  # fmt: skip
    rows = datasets.Dataset.from_dict({"image": [image], "objects": [
        {"category": [0, 1], "segmentation": [[ring(box)] for box in BOXES.values()]}]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    data = load_data(tmp_path / "saved", task="instance", validation_fraction=0)
    sample = data.read("train", 0)
    assert data.schema.names == ("cat", "dog") and sample.segments.labels.tolist() == [0, 1]
    assert [int(mask.sum()) for mask in sample.segments.masks()] == [70, 240]


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_the_embedded_scenes_have_objects(task):
    data = load_data("shapes/target", task=task, scenes=3)
    sample = data.read("train", 0)
    assert data.schema.num_labels == (6 if task == "instance" else 7) and len(sample.segments) > 2
    _, classes = mask_targets(sample.segments, sample.semantic_map, task, data.schema.is_thing, 255)
    assert (task == "panoptic") == (0 in classes and data.schema.names[0] == "background")


def test_what_does_not_fit_is_named(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "gone.png"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"gone\.png"):
        load_data(tmp_path, task="instance")
    assert len(load_data(tmp_path, task="instance", on_bad_sample="skip", validation_fraction=0)["train"]) == 1
    content["images"][0]["file_name"] = "one.png"
    content["annotations"][0]["segmentation"] = {"size": [5, 5], "counts": [25]}
    file.write_text(json.dumps(content))
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    with pytest.raises(BadSample, match="5 x 5"):
        data.read("train", 0)


def test_label_maps_alone_are_no_objects(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "one.png")
    with pytest.raises(UserError, match="images but no instance maps") as error:
        load_data(tmp_path, task="instance")
    assert "--task semantic" in str(error.value)


# -- packing, augmentation ----------------------------------------------------------------------------------------


def segments_of(random, count=5, size=(40, 48)) -> tuple[Segments, list[np.ndarray]]:
    masks = []
    for _ in range(count):
        mask = np.zeros(size, bool)
        top, left = random.integers(0, 30, 2)
        mask[top : top + random.integers(4, 20), left : left + random.integers(4, 20)] = True
        masks.append(mask)
    codes = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return Segments.from_codes(size, codes, random.integers(0, 3, count), np.zeros(count, bool)), masks


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 8))
def test_packing_loses_nothing(seed, count):
    segments, masks = segments_of(np.random.default_rng(seed), count)
    assert (segments.masks() == np.array(masks).reshape(-1, 40, 48)).all()
    assert [coco.decode(code).astype(bool).tolist() for code in segments.codes()] == [mask.tolist() for mask in masks]


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_objects_move_with_the_image(seed):
    """An image that shows an object's mask goes on showing it, whatever is done to it."""
    random = np.random.default_rng(seed)
    segments, masks = segments_of(random, 4)
    image = torch.from_numpy(np.repeat(masks[1][None].astype(np.uint8) * 200, 3, 0))
    config = AugmentConfig("none", scale=(0.5, 2.0), horizontal_flip=0.5, vertical_flip=0.5, rotation=20.0, cutout=0.5)
    augment = Augmentation(config, size=(32, 32), ignore_index=255, mean=(0, 0, 0))
    torch.manual_seed(seed)
    moved, ids, after = augment(image, torch.from_numpy(segments.semantic_map(255, np.uint8)), None, segments)
    shown, mask = moved[0].numpy() > 100, after.masks()[1]
    assert (shown != mask).mean() < 0.06
    targets, classes = mask_targets(after, ids.numpy(), "instance", (True,) * 3, 255)
    assert len(targets) == len(classes) <= 4 and targets.any((1, 2)).all()


def test_pasted_objects_cover_what_is_below():
    random = np.random.default_rng(0)
    (below, _), (above, masks) = segments_of(random, 2), segments_of(random, 3)
    where = masks[1]
    both = below.with_others(above, np.array([1]), where)
    assert (both.masks()[2] == where).all() and len(both) == 3
    assert not (both.masks()[:2] & where).any()


def test_things_survive_merging_and_files(tmp_path):
    import dataclasses

    schema = dataclasses.replace(LabelSchema.from_names(["sky", "cat", "dog"]), things=("cat", "dog"))
    assert schema.merge({"pet": ["cat", "dog"]}).is_thing == (False, True)
    assert schema.drop(["cat"]).things == ("dog",)
    schema.save(tmp_path / "labels.json")
    assert LabelSchema.load(tmp_path / "labels.json") == schema


def test_rows_hold_annotations_and_no_masks(tmp_path):
    """Memory follows from the text of the annotations, not from the number of pixels."""
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [{**content["annotations"][0], "id": i, "segmentation": [
        [0, 0, 9000, 0, 9000, 9000 - i, 0, 9000]]} for i in range(500)]
    file.write_text(json.dumps(content))
    rows = load_data(tmp_path, task="instance", validation_fraction=0)["train"]
    assert rows.data.nbytes < 500 * 100


def test_published_and_read_again(tmp_path, online):
    write_coco(tmp_path / "coco")
    data = load_data(tmp_path / "coco", task="instance", validation_fraction=0)
    with hfseg.LocalHub(tmp_path / "hub") as hub:
        from hfseg.hub.parquet import columns, write_splits
        from hfseg.hub.push_data import push_data

        assert "instances" in columns(data)
        push_data(data, "me/animals", endpoint=hub.url, token=hub.token, say=lambda text: None)
        [split] = write_splits(data, tmp_path, columns(data))
    rows = tmp_path / "again"
    rows.mkdir()
    split.files[0].rename(rows / "train.parquet")
    again = load_data(rows, task="instance", validation_fraction=0)
    assert again.schema.names == ("cat", "dog")
    for i in range(2):
        before, after = data.read("train", i), again.read("train", i)
        assert (before.segments.masks() == after.segments.masks()).all()
        assert before.segments.crowd.tolist() == after.segments.crowd.tolist()
        assert (before.semantic_map == after.semantic_map).all()


def test_a_recipe_for_data_with_objects(tmp_path):
    from hfseg.data import inspect_data, write_recipe
    from hfseg.recipe_reading import load_recipe

    write_coco(tmp_path)
    with pytest.raises(UserError, match="--task instance"):
        load_data(tmp_path)
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    (tmp_path / "recipe.yaml").write_text(write_recipe(inspect_data(data), tmp_path))
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    assert recipe.task == "instance" and recipe.model.name.startswith("facebook/mask2former")


def test_the_official_panoptic_sample_against_itself(shared_data):
    """Against itself PQ is 1; against a disturbed copy it is torchmetrics' and that of the definition."""
    from test_mask_metrics import plain_quality

    from hfseg.metrics.panoptic import PanopticCounts

    data = load_data(shared_data / "coco_panoptic_sample", task="panoptic", validation_fraction=0)
    itself, disturbed, pairs = PanopticCounts(133), PanopticCounts(133), []
    for i in range(2):
        found = data.read("train", i).segments
        ids = found.flat()
        truth = [{"id": k + 1, "label_id": int(label), "iscrowd": bool(crowd)}
                 for k, (label, crowd) in enumerate(zip(found.labels, found.crowd, strict=True))]
        guess = [one for one in truth if not one["iscrowd"]]
        itself.add(ids, guess, ids, truth)
        moved = np.roll(ids, (9, 13), (0, 1))
        wrong = [{**one, "label_id": (one["label_id"] + (one["id"] % 5 == 0)) % 133} for one in guess]
        disturbed.add(moved, wrong, ids, truth)
        pairs.append(((moved, wrong), (ids, truth)))
    assert itself.scores(data.schema.names)["panoptic_quality"] == 1.0
    for label, (total, *numbers) in plain_quality(pairs, 133).items():
        assert disturbed.counts[label, 1:].tolist() == numbers
        assert disturbed.counts[label, 0] / 2**40 == pytest.approx(total, abs=1e-9)
    score = disturbed.scores(data.schema.names, data.schema.is_thing)
    assert 0.1 < score["panoptic_quality"] < 0.9 and score["num_classes_averaged"] > 10


def test_what_is_left_out_is_told(tmp_path):
    coco_folder, labelme, yolo = tmp_path / "coco", tmp_path / "labelme", tmp_path / "yolo"
    for folder in (coco_folder, labelme, yolo / "images" / "train", yolo / "labels" / "train"):
        folder.mkdir(parents=True)
    for folder in (coco_folder, labelme, yolo / "images" / "train"):
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    ring = [[0, 0, 4, 0, 4, 4]]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}],
               "annotations": [{"image_id": key, "category_id": 1, "segmentation": ring} for key in (1, "1")]}
    (coco_folder / "train.json").write_text(json.dumps(content))
    listed = read_annotations(coco_folder, "instance")
    assert len(listed.splits["train"][0]["instances"]) == 1
    assert "1 annotations belong to images that it does not list, such as '1'" in listed.notes[0]

    shapes = [{"label": "cat", "shape_type": "mask", "points": [[0, 0], [4, 4]]},
              {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [4, 0], [4, 4]]}]
    (labelme / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    assert "1 shapes of the kind mask" in read_annotations(labelme, "instance").notes[0]

    label = yolo / "labels" / "train" / "a.txt"
    label.write_text("1.0 0 0 0.5 0 0.5 0.5")  # as some converters write it
    assert read_annotations(yolo, "instance").splits["train"][0]["instances"][0]["category_id"] == 1
    label.write_text("1.5 0 0 0.5 0 0.5 0.5")
    with pytest.raises(UserError, match="line 1"):
        read_annotations(yolo, "instance")


@pytest.mark.parametrize("lost", ["image_id", "category_id"])
def test_annotations_without_a_key_are_refused(lost, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    entry = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    del entry[lost]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}],
               "annotations": [entry]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=lost):
        read_annotations(tmp_path, "instance")


@pytest.mark.parametrize("first", [0, 1])
def test_a_smaller_object_lies_above_and_a_crowd_below(first):
    large, small = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    small[1:3, 1:3] = True
    codes = [rle.encode(mask) for mask in ((large, small), (small, large))[first]]
    above = Segments.from_codes((4, 4), codes, [0, 1], [False, False])
    assert set(np.unique(above.flat())) == {1, 2} == set(np.unique(above.semantic_map(255, np.uint8)) + 1)
    crowd = Segments.from_codes((4, 4), codes, [0, 1], [first == 1, first == 0])  # the small one
    assert set(np.unique(crowd.flat())) == {2 if first else 1}


def test_more_objects_than_a_byte_counts():
    codes = [coco.encode(np.asfortranarray(np.arange(900).reshape(30, 30) == number).astype(np.uint8, order="F"))
             for number in range(700)]
    segments = Segments.from_codes((30, 30), codes, [0] * 700, [False] * 700)
    assert (segments.masks().reshape(700, -1).argmax(1) == np.arange(700)).all()
    assert rle.areas(codes).tolist() == [1] * 700 and rle.areas([]).tolist() == []

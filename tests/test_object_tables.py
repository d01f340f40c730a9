"""Objects in tables, in the layouts that people publish on the hub."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, List, Value
from PIL import Image as Pictures

from hfseg.data import load_data
from hfseg.errors import UserError
from hfseg.ops import rle
from hfseg.recipe import LabelsConfig

SIZE = (24, 32)
BOXES = [(2, 3, 12, 10), (14, 5, 30, 20)]  # left, top, right, bottom: a cat and a dog


def mask_of(box) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


MASKS = [mask_of(box) for box in BOXES]
RINGS = [[a, b, c, b, c, d, a, d] for a, b, c, d in BOXES]
CODES = [rle.encode(mask) for mask in MASKS]
PHOTO = Pictures.new("RGB", SIZE[::-1], (9, 99, 199))
IDS = MASKS[0] * 300 + MASKS[1] * 70000  # more than 8 and 16 bits


def rgb(ids) -> Pictures.Image:
    return Pictures.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


def save(folder, features, **columns):
    rows = datasets.Dataset.from_dict({"image": [PHOTO] * 2, **columns}, features=Features(image=Image(), **features))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(folder))


def two(value, empty):
    """A row with both objects, and one with none."""
    return [value, empty]


INFO = {"id": Value("int64"), "category_id": Value("int64"), "isthing": Value("bool"), "iscrowd": Value("int64"),
        "area": Value("int64"), "bbox": List(Value("int64"))}  # fmt: skip
SEGMENTS = [{"id": 300, "category_id": 5, "isthing": True, "iscrowd": 0, "area": 70, "bbox": [0] * 4},
            {"id": 70000, "category_id": 9, "isthing": True, "iscrowd": 0, "area": 240, "bbox": [0] * 4}]  # fmt: skip
NAMES = ClassLabel(names=["cat", "dog"])


def struct_of_lists(folder):  # objects as object detection has them, with polygons
    save(folder, {"objects": {"id": List(Value("int64")), "bbox": List(List(Value("float32"))), "category": List(NAMES),
                              "segmentation": List(List(List(Value("float32"))))}},
         objects=two({"id": [1, 2], "bbox": [[0.0] * 4] * 2, "category": [0, 1], "segmentation": [[r] for r in RINGS]},
                     {"id": [], "bbox": [], "category": [], "segmentation": []}))


def coco_annotations(folder):  # COCO's own annotations, a list of them in each row, codes as structs
    one = {"id": Value("int64"), "category_id": NAMES, "iscrowd": Value("int64"), "area": Value("float64"),
           "segmentation": {"size": List(Value("int64")), "counts": Value("string")}}  # fmt: skip
    save(folder, {"annotations": List(one)}, annotations=two(
        [{"id": i, "category_id": i, "iscrowd": 0, "area": 5.0, "segmentation": code} for i, code in enumerate(CODES)],
        []))  # fmt: skip


def json_text(folder):  # the same as text
    save(folder, {"annotations": Value("string")}, annotations=two(json.dumps([
        {"id": i, "category": name, "segmentation": [ring]} for i, (name, ring) in enumerate(zip(["cat", "dog"], RINGS))
    ]), "[]"))  # fmt: skip


def pictures_and_labels(folder):  # a picture per object, and their classes beside
    pictures = [Pictures.fromarray(mask.astype(np.uint8) * 255) for mask in MASKS]
    save(folder, {"masks": List(Image()), "labels": List(NAMES)}, masks=two(pictures, []), labels=two([0, 1], []))


def words(folder):  # classes by name
    save(folder, {"objects": List({"label": Value("string"), "polygon": List(List(Value("float64")))})}, objects=two(
        [{"label": name, "polygon": np.reshape(ring, (-1, 2)).tolist()} for name, ring in zip(["cat", "dog"], RINGS)],
        []))  # fmt: skip


def panoptic(folder):  # the map and what it shows, as for COCO; names beside the table
    save(folder, {"label": Image(), "segments_info": List(INFO)}, label=two(rgb(IDS), rgb(0 * IDS)),
         segments_info=two(SEGMENTS, []))
    (folder / "id2label.json").write_text(json.dumps({"5": "cat", "9": "dog"}))


def panoptic_text(folder):
    save(folder, {"panoptic": Image(), "segments_info": Value("string")}, panoptic=two(rgb(IDS), rgb(0 * IDS)),
         segments_info=two(json.dumps(SEGMENTS), "[]"))
    (folder / "id2label.json").write_text(json.dumps({"5": "cat", "9": "dog"}))


def class_and_number(folder):  # that of the examples of transformers: red is the class, green the object
    ids = MASKS[0] * (1 + 256 * 1) + MASKS[1] * (2 + 256 * 2)
    said = {"background": 0, "cat": 1, "dog": 2}
    save(folder, {"annotation": Image(), "semantic_class_to_id": {key: Value("int64") for key in said}},
         annotation=two(rgb(ids), rgb(0 * ids)), semantic_class_to_id=two(said, said))


LAYOUTS = [struct_of_lists, coco_annotations, json_text, pictures_and_labels, words, panoptic, panoptic_text,
           class_and_number]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_of_the_hub(layout, tmp_path):
    layout(tmp_path)
    data = load_data(tmp_path, task="instance", validation_fraction=0)
    assert data.schema.names == ("cat", "dog"), data.notes
    both, none = (data.read("train", i).segments for i in range(2))
    objects = [both.masks()[i] for i in np.flatnonzero(both.labels >= 0)[np.argsort(both.labels[both.labels >= 0])]]
    assert len(objects) == 2 and (none.labels < 0).all()
    for mask, expected in zip(objects, MASKS):
        assert (mask == expected).all()
    if layout is coco_annotations:
        assert both.areas.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_maps_of_ids_in_a_column(kind, tmp_path):
    ids = (MASKS[0] * 1 + MASKS[1] * (2 if kind == np.uint8 else 40000)).astype(kind)
    save(tmp_path, {"instance_map": Image()}, instance_map=two(Pictures.fromarray(ids), Pictures.fromarray(ids * 0)))
    data = load_data(tmp_path, task="instance", validation_fraction=0, labels=LabelsConfig(names=["cell"]))
    assert data.schema.names == ("cell",)
    assert (data.read("train", 0).segments.masks() == MASKS).all() and len(data.read("train", 1).segments) == 0


def test_stuff_of_a_table_is_told_by_isthing(tmp_path):
    segments = [SEGMENTS[0], {**SEGMENTS[1], "isthing": False}]
    save(tmp_path, {"label": Image(), "segments_info": List(INFO)}, label=[rgb(IDS)] * 2, segments_info=[segments] * 2)
    data = load_data(tmp_path, task="panoptic", validation_fraction=0)
    assert data.schema.is_thing == (True, False) and data.schema.names == ("class_5", "class_9")
    assert any("nothing names the classes 5, 9" in note for note in data.notes)
    alone = load_data(tmp_path, task="instance", validation_fraction=0, labels=LabelsConfig(names=["cat", "sky"]))
    assert alone.schema.names == ("cat",) and any("stuff" in note and "sky" in note for note in alone.notes)
    notes = load_data(tmp_path, validation_fraction=0).notes
    assert any("--task instance or --task panoptic" in note for note in notes)


def test_a_table_of_objects_alone_offers_its_tasks(tmp_path):
    struct_of_lists(tmp_path)
    with pytest.raises(UserError, match="--task instance"):
        load_data(tmp_path)


def test_names_of_the_recipe_start_at_nought_or_one(tmp_path):
    for first in (0, 1):
        folder = tmp_path / str(first)
        save(folder, {"objects": List({"category_id": Value("int64"), "segmentation": List(List(Value("float64")))})},
             objects=two([{"category_id": i + first, "segmentation": [r]} for i, r in enumerate(RINGS)], []))
        data = load_data(folder, task="instance", validation_fraction=0, labels=LabelsConfig(names=["cat", "dog"]))
        assert data.read("train", 0).segments.labels.tolist() == [0, 1]


def test_columns_by_any_name(tmp_path):
    save(tmp_path, {"photo_2": Image(), "nuclei": List(List(List(Value("float64"))))},
         photo_2=[PHOTO] * 2, nuclei=two([[r] for r in RINGS], []))
    data = load_data(tmp_path, task="instance", validation_fraction=0, image_column="photo_2", label_column="nuclei")
    assert data.schema.names == ("object",) and (data.read("train", 0).segments.masks() == MASKS).all()


@pytest.mark.parametrize(("features", "columns", "told"), [
    ({"objects": {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}},
     {"objects": [{"bbox": [[0.0, 1.0, 2.0, 3.0]], "category": [1]}] * 2}, "boxes and no masks"),
    ({"words": Value("int64")}, {"words": [1, 2]}, "no column of objects"),
    ({"annotations": Value("string")},
     {"annotations": ['[{"category": 1, "segmentation": {"size": 3, "counts": 4}}]'] * 2}, "cannot be read"),
])  # fmt: skip
def test_what_is_no_table_of_objects_is_told(features, columns, told, tmp_path):
    save(tmp_path, features, **columns)
    with pytest.raises(UserError, match=told):
        load_data(tmp_path, task="instance")

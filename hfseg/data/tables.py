"""Objects in the columns of tables, as people publish them on the hub, brought to canonical columns.

Either a column of objects (a list of structs, a struct of lists, or JSON), columns of masks and their classes side by
side, a map of ids, with `segments_info` where it is panoptic, or a picture of class and object number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfseg.data.listed import BROKEN, Category, an_object, telling, whole
from hfseg.errors import UserError, one_of
from hfseg.ops import rle

OBJECTS = {"category_id": datasets.Value("int64"), "iscrowd": datasets.Value("bool"), "id": datasets.Value("int64"),
           "segmentation": datasets.Value("string"), "area": datasets.Value("float64")}  # fmt: skip
_MAPS = ("segment_map", "instance_map", "panoptic", "panoptic_map", "panoptic_mask", "instances", "instance",
         "instance_mask", "instance_masks", "instance_segmentation", "label", "annotation", "mask",
         "masks")  # fmt: skip
_OBJECTS = ("instances", "objects", "annotations", "segments", "annotation", "labels", "shapes")
_MASKS = ("masks", "segmentations", "segmentation", "rles", "polygons", "instance_masks", "mask")
_CLASSES = ("category_id", "category_ids", "category", "categories", "label_id", "label_ids", "label", "labels",
            "class_id", "class_ids", "class_labels", "classes", "class")  # fmt: skip
_SHAPES = ("segmentation", "mask", "rle", "polygon", "polygons", "segmentation_mask")
_STREAMED = 100  # rows of a stream that are looked at for their classes


@dataclass
class Tables:
    """What was found in tables.

    Args:
        splits: Dataset by split, with canonical columns.
        categories: The classes that the columns name or use, if they do.
        named: Whether the names come with the data, and are not made up of ids.
        notes: What was assumed.
    """

    splits: dict[str, Any]
    categories: list[Category] | None = None
    named: bool = False
    notes: list[str] = field(default_factory=list)


def from_tables(splits: Mapping[str, Any], image: str | None = None, objects: str | None = None) -> Tables:
    """Finds the objects in the columns of a data set of the hub, of parquet, or of the embedded scenes.

    Args:
        splits: Dataset by split.
        image: Column of the images; found if not given.
        objects: Column of the objects, or of the maps that show them; found if not given.

    Returns:
        The same with canonical columns, and the classes.

    Raises:
        UserError: When no column holds objects.
    """
    splits = {split: rows if rows.features else rows._resolve_features() for split, rows in splits.items()}
    features = next(iter(splits.values())).features
    for given in (image, objects):
        if given is not None:
            one_of(given, list(features), "column")
    keep, beside = _columns(features, image, objects)
    for split, rows in splits.items():
        if lacking := [column for column in (*keep, *beside) if column not in rows.features]:
            raise UserError(f"the split {split!r} has the columns {', '.join(rows.features)}, and no {lacking[0]}",
                            f"the columns of the others: {', '.join((*keep, *beside))}", "leave it out, or add them")
    found = Tables({split: _renamed(rows, keep, beside) for split, rows in splits.items()})
    first = next(iter(found.splits.values())).features
    if "semantic_class_to_id" in features:
        found.categories, found.named = _classes_of_rows(splits), True
    elif "instances" in first and not _canonical(first["instances"]):
        _bring_to_objects(found)
    elif "instances" in first:
        found.categories = _names(first["instances"])
        found.named = found.categories is not None
    for split, rows in found.splits.items():
        if "image_id" in rows.features and rows.features["image_id"].dtype != "string":
            found.splits[split] = rows.cast_column("image_id", datasets.Value("string"))
    return found


def _columns(features: datasets.Features, image: str | None,
             given: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Canonical name by column; and, of masks in a column of their own, by column what it holds of each object."""
    pictures = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    image = image or next((key for key in ("image", "images", "img", "photo", "pixel_values") if key in features), None)
    info = next((key for key in ("segments_info", "segments") if key in features), None)
    looked_at = features if given is None else {given: features[given]}
    maps = next((key for key in (given or "", *_MAPS) if key in pictures and key in looked_at and key != image), None)
    semantic = next((key for key in ("semantic_map", "semantic", "semantic_mask") if key in pictures
                     and key not in (image, maps)), None)
    objects = next((key for key in (given or "", *_OBJECTS) if key in looked_at and key not in pictures
                    and _holds(features[key], _SHAPES)), None)
    masks = next((key for key in (given or "", *_MASKS) if isinstance(looked_at.get(key), datasets.List | list)), None)
    boxes = next((key for key in _OBJECTS if key in features and _holds(features[key], ("bbox", "box", "boxes"))), None)
    keep, beside = {image: "image"}, {}
    if image is not None and maps is not None and "semantic_class_to_id" in features:
        keep[maps] = "class_object_map"
    elif image is not None and maps is not None and (info is not None or objects is None):
        keep[maps] = "segment_map"
        if info or semantic:
            keep[info or semantic] = "instances" if info else "semantic_map"
    elif image is not None and objects is not None:
        keep[objects] = "instances"
    elif image is not None and masks is not None:
        classes = next((key for key in _CLASSES if isinstance(features.get(key), datasets.List | list)), None)
        beside = {masks: "segmentation", **({classes: "category"} if classes else {}),
                  **{key: key for key in ("iscrowd", "area") if isinstance(features.get(key), datasets.List | list)}}
    else:
        what = "boxes and no masks" if boxes else "no objects"
        raise UserError(f"the columns hold {what}: {', '.join(features)}" if boxes else
                        f"no column of objects found among: {', '.join(features)}",
                        "instances or objects (category_id and segmentation each), masks and labels, or a map of ids "
                        "such as instance_map, with segments_info where it is panoptic", "rename the columns")
    if "image_id" in features:
        keep["image_id"] = "image_id"
    return keep, beside


def _holds(feature: Any, keys: tuple[str, ...]) -> bool:
    """Whether a column may hold structs with one of these keys: JSON may."""
    inner = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string")
    if isinstance(feature, list) and feature:
        inner = feature[0]
    return isinstance(inner, dict) and any(key in inner for key in keys)


def _renamed(rows: Any, keep: dict[str, str], beside: dict[str, str]) -> Any:
    rows = rows.select_columns([*keep, *beside])
    if beside:
        rows = rows.rename_columns({column: f"object {name}" for column, name in beside.items()})
    rows = rows.rename_columns({a: b for a, b in keep.items() if a != b})
    for column, feature in rows.features.items():
        if column == "instances" or column.startswith("object "):
            plain = _undecoded(feature)
            rows = rows if plain == feature else rows.cast_column(column, plain)
        elif column != "image_id" and isinstance(feature, datasets.Image | dict):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    if beside:
        def together(row: dict) -> dict:
            return {"instances": {name: row[f"object {name}"] for name in beside.values()}}

        inner = {name: rows.features[f"object {name}"] for name in beside.values()}
        made = datasets.Features({**{key: value for key, value in rows.features.items()
                                     if not key.startswith("object ")}, "instances": inner})
        rows = rows.map(together, remove_columns=[f"object {name}" for name in beside.values()], features=made)
    return rows


def _undecoded(feature: Any) -> Any:
    """The same feature with pictures left as they are stored."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature), length=feature.length)
    if isinstance(feature, list):
        return [_undecoded(one) for one in feature]
    return {key: _undecoded(value) for key, value in feature.items()} if isinstance(feature, dict) else feature


def _canonical(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return isinstance(inner, dict) and set(inner) == set(OBJECTS) and inner["segmentation"] == OBJECTS["segmentation"]


def _names(feature: Any) -> list[Category] | None:
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    inner = inner if isinstance(inner, dict) else {}
    for key in _CLASSES:
        kind = inner.get(key)
        kind = getattr(kind, "feature", kind)
        if isinstance(kind, datasets.ClassLabel):
            return [Category(i, name) for i, name in enumerate(kind.names)]
    return None


def _classes_of_rows(splits: Mapping[str, Any]) -> list[Category]:
    """The classes of `semantic_class_to_id`, which every row repeats; the background is no thing."""
    row = next(iter(next(iter(splits.values())).select_columns(["semantic_class_to_id"])))["semantic_class_to_id"]
    row = json.loads(row) if isinstance(row, str) else row
    return [Category(value, name, name.lower() not in ("background", "other", "void"))
            for name, value in sorted(row.items(), key=lambda item: item[1]) if value is not None]


def _bring_to_objects(found: Tables) -> None:
    """Makes canonical objects of other ones: `category`, `mask`..."""
    maps = "segment_map" in next(iter(found.splits.values())).features
    used, stuff = set(), set()
    for rows in found.splits.values():
        some, areas = _classes_in(rows)
        used, stuff = used | some, stuff | areas
    words = sorted(one for one in used if isinstance(one, str) and not one.lstrip("-").isdigit())
    found.categories = _names(next(iter(found.splits.values())).features["instances"])
    found.named = bool(found.categories or words)
    if words:
        found.categories = [Category(i, name) for i, name in enumerate(words)]
    elif found.categories is None:
        with telling("the column of objects"):
            numbers = sorted(whole(one, "a class") for one in used) or [1]
        found.categories = [Category(i, "object" if numbers == [1] else f"class_{i}") for i in numbers]
    for category in found.categories:
        category.thing = category.id not in stuff
    ids = {category.name: category.id for category in found.categories} if words else {}
    for split, rows in found.splits.items():
        other = datasets.Features({**{key: value for key, value in rows.features.items() if key != "instances"},
                                   "instances": datasets.List(OBJECTS)})
        options = {"fn_kwargs": {"ids": ids, "maps": maps}}
        if isinstance(rows, datasets.IterableDataset):
            found.splits[split] = rows.map(_to_objects, features=other, **options)
            continue
        alone = rows.select_columns(["instances"]).map(
            _to_objects, desc="objects", features=datasets.Features(instances=other["instances"]), **options)
        found.splits[split] = datasets.concatenate_datasets([rows.remove_columns("instances"), alone], axis=1)


def _classes_in(rows: Any) -> tuple[set, set]:
    """The classes that objects have, and those of them which are said to be no things."""
    used, stuff = set(), set()
    if isinstance(rows, datasets.IterableDataset) or isinstance(rows.features["instances"], datasets.Value):
        some = rows.select_columns(["instances"])
        for row in some.take(_STREAMED) if isinstance(rows, datasets.IterableDataset) else some:
            for one in _listed(row["instances"]):
                used.add(_class_of(one))
                if one.get("isthing", 1) in (0, False):
                    stuff.add(_class_of(one))
        return used, stuff
    for batch in rows.select_columns(["instances"]).with_format("arrow").iter(1000):
        column = _flat(batch["instances"].combine_chunks())
        names = {column.type.field(i).name for i in range(column.type.num_fields)}
        key = next((key for key in _CLASSES if key in names), None)
        if key is None:
            used.add(1)
            continue
        classes = _flat(pc.struct_field(column, key))
        used |= set(pc.unique(classes).to_pylist())
        if "isthing" in names:
            thing = _flat(pc.struct_field(column, "isthing"))
            stuff |= set(pc.unique(classes.filter(pc.equal(pc.cast(thing, pa.int64()), 0))).to_pylist())
    return used - {None}, stuff


def _flat(values: pa.Array) -> pa.Array:
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = values.flatten()
    return values


def _listed(given: Any) -> list[dict]:
    """Objects as a list of them, however they are written."""
    if isinstance(given, str):
        given = json.loads(given)
    if isinstance(given, Mapping):
        keys = [key for key, value in given.items() if isinstance(value, list)]
        lengths = {len(given[key]) for key in keys}
        if len(lengths) > 1:
            raise ValueError("lists of different lengths in " + ", ".join(keys))
        given = [dict(zip(keys, values)) for values in zip(*(given[key] for key in keys))]
    return given or []


def _class_of(one: Mapping) -> Any:
    return next((one[key] for key in _CLASSES if one.get(key) is not None), 1)


def _to_objects(row: dict, ids: dict[str, int], maps: bool) -> dict:
    """Objects in other words: a list of objects or an object of lists; `category`, `mask`..."""
    objects = []
    try:
        for one in _listed(row["instances"]):
            shape = None if maps else next((one[key] for key in _SHAPES if one.get(key) is not None), None)
            if shape is None and not maps:
                continue  # a box alone
            said = _class_of(one)
            category = ids[said] if said in ids else whole(said, "the class")
            number, area = one.get("id"), one.get("area")
            objects.append(an_object(
                category, None if maps else _shape(shape), bool(int(one.get("iscrowd", one.get("is_crowd")) or 0)),
                whole(number, "id") if number is not None and maps else None,
                float(area) if area is not None and not maps else None,
            ))  # fmt: skip
    except BROKEN as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise UserError(f"a row of objects that cannot be read: {what}", "of each the class and a mask: polygons, "
                        "a run-length code or a picture", "mend the table") from error
    return {"instances": objects}


def _shape(shape: Any) -> Any:
    """As COCO has it."""
    from hfseg.data.images import decode_map

    if isinstance(shape, str):
        shape = json.loads(shape)
    if isinstance(shape, Mapping) and "counts" not in shape:  # a picture
        mask = decode_map(shape, "the mask of an object")
        return rle.encode(mask.any(2) if mask.ndim == 3 else mask > 0)
    if isinstance(shape, Mapping):
        counts = shape["counts"]
        return {"size": [int(side) for side in shape["size"]],
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    shape = [np.asarray(ring).tolist() for ring in shape] if len(shape) else []
    if shape and isinstance(shape[0], int | float):
        return [shape]
    if shape and isinstance(shape[0], list) and shape[0] and isinstance(shape[0][0], list):  # points as pairs
        return [[value for point in ring for value in point] for ring in shape]
    if shape and all(len(point) == 2 for point in shape):  # one ring of pairs
        return [[value for point in shape for value in point]]
    return shape

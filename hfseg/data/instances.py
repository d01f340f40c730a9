"""Data with objects, from whatever source, as one kind of data set: `image`, `image_id`, and the objects as stored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from hfseg.data.annotations import FORMATS, Category, Listed, read_annotations
from hfseg.data.folders import read_folder
from hfseg.data.images import needs_path_column
from hfseg.data.readers import find_beside
from hfseg.data.schemas import read_declared
from hfseg.errors import UserError
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig

OBJECTS = {"category_id": datasets.Value("int32"), "iscrowd": datasets.Value("bool"), "id": datasets.Value("int64"),
           "segmentation": datasets.Value("string")}  # fmt: skip
_MAPS = ("segment_map", "instance_map", "panoptic", "panoptic_map", "instances", "instance", "instance_mask",
         "instance_segmentation", "label", "annotation", "mask")  # fmt: skip
_OBJECTS = ("instances", "objects", "annotations", "segments")


def from_listed(listed: Listed) -> dict[str, datasets.Dataset]:
    """Makes data sets of rows that annotation files list.

    Args:
        listed: What they hold.

    Returns:
        Dataset by split; images and maps are paths until a row is read.
    """
    return {split: _dataset(rows) for split, rows in listed.splits.items()}


def _dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    features = {key: datasets.List(OBJECTS) if key == "instances" else datasets.Value("string") for key in columns}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    for column in ("image", "segment_map", "semantic_map"):
        if column in columns and not needs_path_column(columns[column]):
            made = made.cast_column(column, datasets.Image(decode=False))
    return made


def read_maps(root: Path, skip: bool) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Reads a folder of images with maps of their objects, and label maps beside them where there are any.

    Args:
        root: The folder.
        skip: Leave out files without a partner instead of stopping.

    Returns:
        Dataset by split, and notes.

    Raises:
        UserError: When there is nothing of the kind.
    """
    splits, notes = read_folder(root, instances=True, only_instances=True, skip=skip)
    try:
        semantic, _ = read_folder(root, skip=True)
    except UserError:
        semantic = {}
    result = {}
    for split, pairs in splits.items():
        rows = [{"image": image, "image_id": key, "segment_map": ids}
                for image, ids, key in zip(pairs.images, pairs.maps, pairs.ids, strict=True)]
        if split in semantic:
            by_image = dict(zip(semantic[split].images, semantic[split].maps, strict=True))
            if all(row["image"] in by_image for row in rows):
                rows = [{**row, "semantic_map": by_image[row["image"]]} for row in rows]
        result[split] = _dataset(rows)
    return result, notes


def from_tables(splits: Mapping[str, Any]) -> tuple[dict[str, Any], list[Category] | None]:
    """Finds the objects in the columns of a data set of the hub, of parquet, or of the embedded scenes.

    Args:
        splits: Dataset by split.

    Returns:
        The same with canonical columns, and classes that the features name, if they do.

    Raises:
        UserError: When no column holds objects.
    """
    features = next(iter(splits.values())).features
    pictures = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    image = next((key for key in ("image", "img", "photo", "pixel_values") if key in features), None)
    objects = next((key for key in _OBJECTS if key in features and key not in pictures), None)
    info = next((key for key in ("segments_info", "segments") if key in features), None)
    maps = next((key for key in _MAPS if key in pictures and key != image), None)
    semantic = next((key for key in ("semantic_map", "semantic") if key in pictures and key not in (image, maps)), None)
    if image is None or (objects is None and maps is None):
        raise UserError(f"no column of objects found among: {', '.join(features)}",
                        "instances or objects (category_id and segmentation each), or a map of ids such as "
                        "instance_map, with segments_info where it is panoptic", "rename the columns")
    names = None
    result = {}
    for split, rows in splits.items():
        keep = {image: "image"}
        if maps is not None and (info is not None or objects is None):
            keep[maps] = "segment_map"
            if info is not None:
                keep[info] = "instances"
            elif semantic is not None:
                keep[semantic] = "semantic_map"
        else:
            keep[objects] = "instances"
        if "image_id" in features:
            keep["image_id"] = "image_id"
        rows = rows.select_columns(list(keep)).rename_columns({a: b for a, b in keep.items() if a != b})
        for column in ("image", "segment_map", "semantic_map"):
            if column in rows.features and isinstance(rows.features[column], datasets.Image | dict):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        if "instances" in rows.features:
            names = names or _names(rows.features["instances"])
            if not _canonical(rows.features["instances"]):
                rows = rows.map(_to_objects, desc="objects")
                rows = rows.cast_column("instances", datasets.List(OBJECTS))
        if "image_id" in rows.features and rows.features["image_id"].dtype != "string":
            rows = rows.cast_column("image_id", datasets.Value("string"))
        result[split] = rows
    return result, names


def _canonical(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return isinstance(inner, dict) and set(inner) == set(OBJECTS)


def _names(feature: Any) -> list[Category] | None:
    inner = getattr(feature, "feature", feature)
    inner = inner if isinstance(inner, dict) else {}
    for key in ("category_id", "category", "label", "label_id"):
        kind = inner.get(key)
        kind = getattr(kind, "feature", kind)
        if isinstance(kind, datasets.ClassLabel):
            return [Category(i, name) for i, name in enumerate(kind.names)]
    return None


def _to_objects(row: dict) -> dict:
    """Objects in other words: a list of objects or an object of lists; `category`, `mask`..."""
    given = row["instances"]
    if isinstance(given, str):
        given = json.loads(given)
    if isinstance(given, Mapping):
        keys = [key for key, value in given.items() if isinstance(value, list)]
        given = [dict(zip(keys, values)) for values in zip(*(given[key] for key in keys))]
    objects = []
    for one in given or []:
        category = next((one[key] for key in ("category_id", "category", "label_id", "label") if key in one), None)
        shape = next((one[key] for key in ("segmentation", "mask", "rle", "polygon") if one.get(key) is not None), None)
        if isinstance(shape, list) and shape and isinstance(shape[0], int | float):
            shape = [shape]
        objects.append({
            "category_id": int(category), "iscrowd": bool(one.get("iscrowd", one.get("is_crowd"))),
            "id": None if one.get("id") is None else int(one["id"]),
            "segmentation": shape if isinstance(shape, str | type(None)) else json.dumps(shape),
        })  # fmt: skip
    return {"instances": objects}


def make_schema(categories: list[Category] | None, labels: LabelsConfig | LabelSchema, task: str, origin: str,
                declared: dict[str, Any]) -> LabelSchema:
    """Decides the classes.

    Args:
        categories: Those of the annotations; None for maps of ids, which hold one class unless `declared` says more.
        labels: What the recipe says.
        task: `instance` leaves out stuff.
        origin: Where the classes come from, for people.
        declared: What lies beside the data, for maps of ids.

    Returns:
        The schema, with its things.

    Raises:
        UserError: When classes contradict each other, or none is left.
    """
    if isinstance(labels, LabelSchema):
        return labels
    if categories is None:
        if "schema" in declared:
            schema = declared["schema"]
        else:
            names = list(labels.names or declared.get("names") or ["object"])
            schema = LabelSchema.from_names(names, labels.palette or declared.get("palette"), values=declared.get(
                "values") or (list(range(1, len(names) + 1)) if declared.get("from_one", True) else None),
                origin=declared.get("origin", origin))  # fmt: skip
    else:
        names = list(labels.names or [category.name for category in categories])
        if len(names) != len(categories):
            raise UserError(f"data.labels.names has {len(names)} names for {len(categories)} categories",
                            ", ".join(category.name for category in categories), "leave it out")
        colours = [category.colour for category in categories]
        palette = labels.palette or (colours if all(colours) else None)
        schema = LabelSchema.from_names(names, palette, values=[category.id for category in categories], origin=origin)
        things = tuple(name for name, category in zip(schema.names, categories) if category.thing)
        schema = dataclasses.replace(schema, things=things)
    if labels.merge:
        schema = schema.merge(labels.merge)
    if labels.drop:
        schema = schema.drop(labels.drop)
    if task == "instance" and not all(schema.is_thing):
        if not any(schema.is_thing):
            raise UserError("no class of the data has objects that are told apart", "things", "--task semantic")
        schema = schema.drop([name for name, thing in zip(schema.names, schema.is_thing) if not thing])
    return schema


def open_instances(
    path: Path | str, splits: dict[str, Any] | None, task: str, labels: LabelsConfig | LabelSchema, skip: bool,
    find: Callable[[str], Path | None] | None = None,
) -> tuple[dict[str, Any], LabelSchema, list[str]]:  # fmt: skip
    """Opens data with objects.

    Args:
        path: A folder, or what the tables are called.
        splits: Tables that were opened already, such as those of the hub; None for a folder of files.
        task: `instance` or `panoptic`.
        labels: What the recipe says.
        skip: Leave out what is missing.
        find: Gives the local path of a file beside the tables, or None.

    Returns:
        Dataset by split, the schema, and notes.

    Raises:
        UserError: When there are no objects.
    """
    if splits is not None:
        splits, categories = from_tables(splits)
        declared = read_declared(find) if find else {}
        if "schema" in declared:  # written by hfseg, and says what are things
            categories = None
        return splits, make_schema(categories, labels, task, str(path), declared), []
    root = Path(path)
    listed = read_annotations(root, task, skip)
    if listed is not None:
        notes = [f"objects from {listed.origin}", *listed.notes]
        return from_listed(listed), make_schema(listed.categories, labels, task, listed.origin, {}), notes
    declared = read_declared(lambda file: find_beside(root, file) or find_beside(root / "train", file))
    try:
        splits, notes = read_maps(root, skip)
    except UserError as error:
        raise UserError(f"{root} has no objects that are told apart: {error.found}", FORMATS, error.fix) from error
    with_classes = "semantic_map" in next(iter(splits.values())).features
    if with_classes:
        declared = {**declared, "from_one": False}
    schema = make_schema(None, labels, task, "maps of objects", declared)
    return splits, schema, notes

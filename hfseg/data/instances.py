"""Data with objects, from whatever source, as one kind of data set: `image`, `image_id`, and the objects as stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from hfseg.data.annotations import FORMATS, read_annotations
from hfseg.data.folders import read_folder
from hfseg.data.images import needs_path_column
from hfseg.data.listed import Category, Listed
from hfseg.data.readers import find_beside
from hfseg.data.schemas import read_declared
from hfseg.data.tables import OBJECTS, Tables, from_tables
from hfseg.errors import UserError
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig


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
    kinds = {"instances": datasets.List(OBJECTS), "drawn_on": datasets.List(datasets.Value("int32"))}
    features = {key: kinds.get(key, datasets.Value("string")) for key in columns}
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


def make_schema(categories: list[Category] | None, labels: LabelsConfig | LabelSchema, task: str, origin: str,
                declared: dict[str, Any], notes: list[str] | None = None) -> LabelSchema:
    """Decides the classes.

    Args:
        categories: Those of the annotations; None for maps of ids, which hold one class unless `declared` says more.
        labels: What the recipe says.
        task: `instance` leaves out stuff.
        origin: Where the classes come from, for people.
        declared: What lies beside the data, for maps of ids.
        notes: Where to tell what was left out.

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
        ids = dict(schema.stored)
        things = {ids[category.id] for category in categories if category.thing}
        schema = dataclasses.replace(schema, things=tuple(n for i, n in enumerate(schema.names) if i in things))
    if labels.merge:
        schema = schema.merge(labels.merge)
    if labels.drop:
        schema = schema.drop(labels.drop)
    if task == "instance" and not all(schema.is_thing):
        if not any(schema.is_thing):
            raise UserError("no class of the data has objects that are told apart", "things", "--task semantic")
        stuff = [name for name, thing in zip(schema.names, schema.is_thing) if not thing]
        schema = schema.drop(stuff)
        if notes is not None:
            shown = ", ".join(stuff[:5]) + (f" and {len(stuff) - 5} more" if len(stuff) > 5 else "")
            notes.append(f"{len(stuff)} classes are stuff, which has no objects ({shown}): left out, as in COCO's "
                         "instance task; --task panoptic learns them, too")
    return schema


def _named(found: Tables, labels: LabelsConfig | LabelSchema, declared: dict[str, Any]) -> list[Category] | None:
    """The classes of tables whose objects have numbers alone: by names that lie beside them or that the recipe has."""
    numbered = None if found.named else found.categories
    if numbered is None:
        return found.categories
    ids = [category.id for category in numbered]
    names = list(getattr(labels, "names", ()) or ())
    if names:
        first = next((first for first in (0, 1) if first <= min(ids) and max(ids) < first + len(names)), None)
        values = ids if first is None and len(ids) == len(names) else range(first or 0, (first or 0) + len(names))
    else:
        names, values = declared.get("names", []), declared.get("values") or range(len(declared.get("names", [])))
        if not names and ids != [1]:
            found.notes.append(f"labels: nothing names the classes {', '.join(map(str, ids[:10]))}"
                               f"{'...' if len(ids) > 10 else ''}: give data.labels.names, or id2label.json beside "
                               "the tables")
    by_id = dict(zip(values, names))
    if not by_id:
        return numbered
    if unknown := sorted(set(ids) - by_id.keys()):
        raise UserError(f"objects are of the classes {', '.join(map(str, unknown[:10]))}, which have no name",
                        f"{min(by_id)} to {max(by_id)}: {', '.join(names[:5])}...", "name every class")
    thing = {category.id: category.thing for category in numbered}
    return [Category(value, name, thing.get(value, True)) for value, name in by_id.items()]


def tasks_of(source: Path | dict[str, Any]) -> list[str]:
    """Tells what data with objects can be read for.

    Args:
        source: A folder, or tables by split.

    Returns:
        `instance`, and `panoptic` where there is stuff, too; nothing where no objects are found.

    Raises:
        UserError: When there is something of the kind that cannot be read.
    """
    if isinstance(source, dict):
        found = from_tables(source)
        areas = any(not category.thing for category in found.categories or ())
        features = next(iter(found.splits.values())).features
        return ["instance", *(["panoptic"] if areas or {"segment_map", "class_object_map"} & set(features) else [])]
    if (listed := read_annotations(source, "panoptic", skip=True)) is not None:
        areas = any(not category.thing for category in listed.categories)
        return ["instance", *(["panoptic"] if areas or listed.origin == "COCO panoptic" else [])]
    splits, _ = read_maps(source, skip=True)
    return ["instance", *(["panoptic"] if "semantic_map" in next(iter(splits.values())).features else [])]


def open_instances(
    path: Path | str, splits: dict[str, Any] | None, task: str, labels: LabelsConfig | LabelSchema, skip: bool,
    find: Callable[[str], Path | None] | None = None, columns: tuple[str | None, str | None] = (None, None),
) -> tuple[dict[str, Any], LabelSchema, list[str]]:  # fmt: skip
    """Opens data with objects.

    Args:
        path: A folder, or what the tables are called.
        splits: Tables that were opened already, such as those of the hub; None for a folder of files.
        task: `instance` or `panoptic`.
        labels: What the recipe says.
        skip: Leave out what is missing.
        find: Gives the local path of a file beside the tables, or None.
        columns: Of the tables, those of images and of objects or their maps; found where not given.

    Returns:
        Dataset by split, the schema, and notes.

    Raises:
        UserError: When there are no objects.
    """
    if splits is not None:
        found = from_tables(splits, *columns)
        declared = read_declared(find) if find else {}
        # A schema was written by hfseg, and says what are things.
        categories = None if "schema" in declared else _named(found, labels, declared)
        schema = make_schema(categories, labels, task, str(path), declared, found.notes)
        return found.splits, schema, found.notes
    root, broken = Path(path), []
    listed = read_annotations(root, task, skip, broken)
    if listed is not None:
        notes = [f"objects from {listed.origin}", *listed.notes]
        return from_listed(listed), make_schema(listed.categories, labels, task, listed.origin, {}, notes), notes
    declared = read_declared(lambda file: find_beside(root, file) or find_beside(root / "train", file))
    try:
        splits, notes = read_maps(root, skip)
    except UserError as error:
        if broken:
            raise UserError(f"{root} has no objects that are told apart: {'; '.join(broken[:3])}", FORMATS,
                            "export it anew") from error
        raise UserError(f"{root} has no objects that are told apart: {error.found}", FORMATS, error.fix) from error
    with_classes = "semantic_map" in next(iter(splits.values())).features
    if with_classes:
        declared = {**declared, "from_one": False}
    schema = make_schema(None, labels, task, "maps of objects", declared, notes)
    return splits, schema, notes

"""Reading COCO's annotation files: objects with polygons or run-length codes, and panoptic maps with their segments."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from hfseg.data.folders import split_of
from hfseg.data.listed import (
    BROKEN,
    Category,
    Folder,
    Listed,
    an_object,
    counted,
    once,
    report,
    size_of,
    split_for,
    stem,
    telling,
    whole,
)
from hfseg.errors import UserError

_ENTRY = "image_id, category_id that the file lists, and segmentation: polygons, or counts with size"


def read_coco(folder: Folder, task: str, skip: bool) -> Listed | None:
    """Reads all COCO files of a folder, one per split.

    Args:
        folder: Where they lie.
        task: `panoptic` reads panoptic files where there are any, `instance` the others.
        skip: Leave out images that are missing.

    Returns:
        What they hold, or None where there is no such file.

    Raises:
        UserError: When one cannot be understood.
    """
    found: list[tuple[str, dict, bool]] = []
    for file, content in folder.json(("images", "annotations", "categories")):
        if not isinstance(content["annotations"], list) or not isinstance(content["images"], list):
            continue
        some = [entry for entry in content["annotations"][:20] if isinstance(entry, Mapping)]
        panoptic = any("segments_info" in entry for entry in some[:1])
        if panoptic or any("segmentation" in entry for entry in some) or (not some and content["images"]):
            found.append((file, content, panoptic))
    if not found:
        return None
    stuff = {(entry.get("id"), entry.get("name")) for _, content, _ in found for entry in content["categories"]
             if entry.get("isthing") == 0}  # a panoptic file says so, and those of objects beside it mostly do not
    if task == "panoptic" and any(panoptic for *_, panoptic in found):
        found = [one for one in found if one[2]]
    elif any(not panoptic for *_, panoptic in found) and task == "instance":
        found = [one for one in found if not one[2]]
    categories: dict[int, Category] = {}
    splits: dict[str, list[dict]] = {}
    notes: list[str] = []
    for split, (file, content, panoptic) in _by_split(folder, found).items():
        for entry in content["categories"]:
            with telling(f"{file}, category {entry!r}"):
                thing = (entry["id"], entry["name"]) not in stuff
                category = Category(whole(entry["id"], "id"), str(entry["name"]), thing, _colour(entry.get("color")))
            if categories.setdefault(category.id, category).name != category.name:
                raise UserError(f"{file}: category {category.id} is {category.name!r}, and elsewhere "
                                f"{categories[category.id].name!r}", "the same categories in every split")
        known = {whole(entry["id"], "id") for entry in content["categories"]}
        splits[split] = (_panoptic if panoptic else _instances)(folder, file, content, known, skip, notes)
    return Listed(splits, [categories[i] for i in sorted(categories)],
                  "COCO panoptic" if found[0][2] else "COCO instances", notes)


def _by_split(folder: Folder, found: list[tuple[str, dict, bool]]) -> dict[str, tuple[str, dict, bool]]:
    """One file per split: COCO's own folder has the same images with keypoints and stuff beside `instances_`."""
    files: dict[str, list] = defaultdict(list)
    for one in found:
        files[split_for(folder.root, one[0])].append(one)
    chosen = {}
    for split, several in files.items():
        objects = [one for one in several if os.path.basename(one[0]).startswith("instances")] or several
        if len(objects) > 1:
            raise UserError(f"{objects[0][0]} and {objects[1][0]} both annotate the split {split!r}",
                            "one file per split", "move one of them elsewhere")
        chosen[split] = objects[0]
    return chosen


def _colour(said: Any) -> tuple[int, int, int] | None:
    whole_numbers = isinstance(said, list) and len(said) == 3 and all(type(one) is int for one in said)
    return tuple(said) if whole_numbers and all(0 <= one <= 255 for one in said) else None


def _instances(folder: Folder, file: str, content: dict, known: set[int], skip: bool, notes: list[str]) -> list[dict]:
    images = once(content["images"], "id", file, "image")
    by_image: dict[Any, list[dict]] = defaultdict(list)
    left_out: Counter = Counter()
    seen: set[int] = set()
    flat = 0
    for number, entry in enumerate(content["annotations"]):
        try:
            found, reason = _object(entry, known)
            image = entry["image_id"]
            if found is not None and entry.get("id") is not None:
                known_by = hash((entry["id"], image, found["category_id"], found["segmentation"]))
                if known_by in seen:
                    found, reason = None, "annotations repeat another, its id included"
                seen.add(known_by)
        except BROKEN as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
            which = entry.get("id") if isinstance(entry, Mapping) else None
            raise UserError(f"{file}, annotation {number if which is None else f'of id {which!r}'}: {what}", _ENTRY,
                            "mend it, or remove it") from error
        if found is None:
            left_out[reason] += 1
            continue
        flat += found["area"] is not None and found["area"] <= 0
        by_image[image].append(found)
    name = os.path.basename(file)
    notes += [f"{name}: {note}" for note in counted(left_out)]
    if flat:
        notes.append(f"{name}: {flat} annotations state an area of 0, and count as small objects, as for pycocotools")
    if unlisted := by_image.keys() - images.keys():
        notes.append(f"{name}: {sum(len(by_image[key]) for key in unlisted)} annotations belong to images that it does "
                     f"not list, such as {next(iter(unlisted))!r}: left out")
    rows, missing = [], []
    for key, image in images.items():
        path = folder.find(image["file_name"], file, _hints(file))
        if path is None:
            missing.append(image["file_name"])
            continue
        with telling(f"{file}, image {key!r}", "width and height in pixels"):
            drawn_on = size_of(image.get("height"), image.get("width"))
        rows.append({"image": path, "image_id": stem(image["file_name"]), "drawn_on": drawn_on,
                     "instances": by_image[key]})
    report(missing, file, skip, notes)
    return rows


def _object(entry: Mapping, known: set[int]) -> tuple[dict | None, str]:
    """An annotation as rows hold it; or None, and why it shows nothing."""
    category, shape, area = _category(entry, known), entry.get("segmentation"), entry.get("area")
    if not shape:
        return None, "annotations have a box and no mask"
    if isinstance(shape, list):
        rings = [shape] if isinstance(shape[0], int | float) else shape
        if any(len(ring) % 2 for ring in rings):
            raise ValueError("a polygon of odd length")
        shape = [ring for ring in rings if len(ring) >= 6]
        if not shape:
            return None, "annotations have polygons of less than three points alone"
    elif not {"counts", "size"} <= shape.keys():
        raise ValueError(f"a segmentation of {', '.join(shape)}")
    stated = isinstance(area, int | float) and math.isfinite(area) and not isinstance(area, bool)
    return an_object(category, shape, bool(int(entry.get("iscrowd") or 0)), area=float(area) if stated else None), ""


def _category(entry: Mapping, known: set[int]) -> int:
    category = whole(entry["category_id"], "category_id")
    if category not in known:
        raise ValueError(f"category_id is {category}, and the file lists no such category")
    return category


def _panoptic(folder: Folder, file: str, content: dict, known: set[int], skip: bool, notes: list[str]) -> list[dict]:
    images = once(content["images"], "id", file, "image")
    own = os.path.splitext(os.path.basename(file))[0]
    rows, missing, done = [], [], set()
    for entry in content["annotations"]:
        with telling(f"{file}, annotation of the image {entry.get('image_id')!r}"):
            image = images.get(entry["image_id"], {})
            name, done = image.get("file_name"), done | {entry["image_id"]}
            instances = [an_object(_category(one, known), None, bool(int(one.get("iscrowd") or 0)),
                                   whole(one["id"], "id")) for one in entry["segments_info"]]
            drawn_on = size_of(image.get("height"), image.get("width"))
            segment_map = folder.find(entry["file_name"], file, (own, "panoptic", *_hints(file)))
            path = name and folder.find(name, file, _hints(file))
        if path is None or segment_map is None:
            missing.append(str(name if path is None else entry["file_name"]))
            continue
        rows.append({"image": path, "image_id": stem(name), "drawn_on": drawn_on, "segment_map": segment_map,
                     "instances": instances})
    if left := len(images.keys() - done):
        notes.append(f"{os.path.basename(file)}: {left} images have no annotation: left out")
    report(missing, file, skip, notes)
    return rows


def _hints(file: str) -> list[str]:
    """Folders that an annotation file's name speaks of: instances_train2017.json of train2017."""
    words = os.path.splitext(os.path.basename(file))[0].split("_")
    return [word for word in words if split_of(word)] + ["images"]

"""Files that list objects: COCO (instances and panoptic), YOLO polygons, LabelMe and CVAT, read into rows.

A row holds paths and the annotations as they are written, polygons and codes alike: nothing is rasterised before the
row is used.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from hfseg.data.folders import is_picture, split_of, walk
from hfseg.errors import UserError
from hfseg.ops import rle

FORMATS = ("COCO JSON (instances or panoptic), YOLO (data.yaml, images and labels), LabelMe JSON beside the images, "
           "CVAT annotations.xml, or a folder of instance maps beside the images")


@dataclass
class Category:
    """A class of objects.

    Args:
        id: As it is stored.
        name: What it is called.
        thing: Whether its objects are told apart.
        colour: (red, green, blue), if the data has one.
    """

    id: int
    name: str
    thing: bool = True
    colour: tuple[int, int, int] | None = None


@dataclass
class Listed:
    """What annotation files hold.

    Args:
        splits: By split the rows: `image`, `image_id`, `instances`, and for panoptic data `segment_map`.
        categories: The classes.
        origin: Which format.
        notes: What was left out.
    """

    splits: dict[str, list[dict[str, Any]]]
    categories: list[Category]
    origin: str
    notes: list[str] = field(default_factory=list)


class Folder:
    """The files below a folder, to be found by name."""

    def __init__(self, root: Path):
        self.root = root
        self.tree = list(walk(str(root)))
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for folder, _, names in self.tree:
            for name in names:
                self.by_name[name].append(os.path.join(folder, name))

    def files(self, *endings: str) -> list[str]:
        """Lists the files with one of these endings, in order."""
        return sorted(os.path.join(folder, name) for folder, _, names in self.tree for name in names
                      if name.lower().endswith(endings))

    def find(self, name: str, near: str, hints: Iterable[str] = ()) -> str | None:
        """Finds a file that an annotation names, in the folders where it usually lies, else anywhere."""
        base = os.path.dirname(near)
        for folder in (base, os.path.join(base, "images"), str(self.root), str(self.root / "images"),
                       *(os.path.join(parent, hint) for hint in hints for parent in (
                           base, os.path.dirname(base), str(self.root), str(self.root / "images")))):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return path
        known = self.by_name.get(os.path.basename(name), [])
        same = [path for path in known if any(hint in path for hint in hints)] or known
        return same[0] if len(same) == 1 else None


def read_annotations(root: Path, task: str, skip: bool = False) -> Listed | None:
    """Reads the annotation files of a folder, whatever their format.

    Args:
        root: The folder.
        task: `instance` or `panoptic`.
        skip: Leave out images that are missing instead of stopping.

    Returns:
        What they hold, or None where there are none.

    Raises:
        UserError: When they cannot be understood.
    """
    folder = Folder(root)
    for read in (_read_coco, _read_yolo, _read_cvat, _read_labelme):
        try:
            listed = read(folder, task, skip)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{root}: annotations that do not follow their format ({type(error).__name__}: {error})",
                            FORMATS, "export them anew") from error
        if listed is not None:
            listed.splits = {split: rows for split, rows in listed.splits.items() if rows}
            if not listed.splits:
                raise UserError(f"{root}: {listed.origin} lists no image that is here", FORMATS, "check the file names")
            return listed
    return None


# -- COCO ---------------------------------------------------------------------------------------------------------


def _read_coco(folder: Folder, task: str, skip: bool) -> Listed | None:
    found: list[tuple[str, dict, bool]] = []
    for file in folder.files(".json"):
        content = _json(file, quick=("images", "annotations", "categories"))
        if content is None or not isinstance(content.get("annotations"), list):
            continue
        panoptic = any("segments_info" in entry for entry in content["annotations"][:1])
        if panoptic or any("segmentation" in entry for entry in content["annotations"][:20]) or (
                not content["annotations"] and content["images"]):
            found.append((file, content, panoptic))
    if not found:
        return None
    if task == "panoptic" and any(panoptic for *_, panoptic in found):
        found = [one for one in found if one[2]]
    elif any(not panoptic for *_, panoptic in found) and task == "instance":
        found = [one for one in found if not one[2]]
    categories: dict[int, Category] = {}
    splits: dict[str, list[dict]] = {}
    notes, files = [], {}
    for file, content, panoptic in found:
        split = _split(folder.root, file)
        if split in files:
            raise UserError(f"{file} and {files[split]} both annotate the split {split!r}", "one file per split",
                            "move one of them elsewhere")
        files[split] = file
        for entry in content["categories"]:
            colour = tuple(entry["color"]) if entry.get("color") else None
            category = Category(int(entry["id"]), str(entry["name"]), bool(entry.get("isthing", 1)), colour)
            if categories.setdefault(category.id, category).name != category.name:
                raise UserError(f"{file}: category {category.id} is {category.name!r}, and elsewhere "
                                f"{categories[category.id].name!r}", "the same categories in every split")
        splits[split] = (_coco_panoptic if panoptic else _coco_instances)(folder, file, content, skip, notes)
    return Listed(splits, [categories[i] for i in sorted(categories)],
                  "COCO panoptic" if found[0][2] else "COCO instances", notes)


def _coco_instances(folder: Folder, file: str, content: dict, skip: bool, notes: list[str]) -> list[dict]:
    by_image: dict[Any, list[dict]] = defaultdict(list)
    without = 0
    for entry in content["annotations"]:
        if not entry.get("segmentation"):
            without += 1
            continue
        by_image[entry["image_id"]].append({
            "category_id": int(entry["category_id"]), "iscrowd": bool(entry.get("iscrowd")), "id": None,
            "segmentation": json.dumps(entry["segmentation"], separators=(",", ":")),
        })  # fmt: skip
    if without:
        notes.append(f"{os.path.basename(file)}: {without} annotations have a box and no mask: left out")
    unlisted = by_image.keys() - {image["id"] for image in content["images"]}
    if unlisted:
        notes.append(f"{os.path.basename(file)}: {sum(len(by_image[key]) for key in unlisted)} annotations belong to "
                     f"images that it does not list, such as {next(iter(unlisted))!r}: left out")
    rows, missing = [], []
    for image in content["images"]:
        path = folder.find(image["file_name"], file, _hints(file))
        if path is None:
            missing.append(image["file_name"])
        else:
            rows.append({"image": path, "image_id": _stem(image["file_name"]), "instances": by_image[image["id"]]})
    _report(missing, file, skip, notes)
    return rows


def _coco_panoptic(folder: Folder, file: str, content: dict, skip: bool, notes: list[str]) -> list[dict]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    stem = os.path.splitext(os.path.basename(file))[0]
    rows, missing = [], []
    for entry in content["annotations"]:
        image = names.get(entry["image_id"])
        path = image and folder.find(image, file, _hints(file))
        segment_map = folder.find(entry["file_name"], file, (stem, "panoptic", *_hints(file)))
        if path is None or segment_map is None:
            missing.append(str(image if path is None else entry["file_name"]))
            continue
        instances = [{"category_id": int(one["category_id"]), "iscrowd": bool(one.get("iscrowd")),
                      "id": int(one["id"]), "segmentation": None} for one in entry["segments_info"]]
        rows.append({"image": path, "image_id": _stem(image), "segment_map": segment_map, "instances": instances})
    _report(missing, file, skip, notes)
    return rows


def _hints(file: str) -> list[str]:
    """Folders that an annotation file's name speaks of: instances_train2017.json of train2017."""
    words = os.path.splitext(os.path.basename(file))[0].split("_")
    return [word for word in words if split_of(word)] + ["images"]


def _split(root: Path, file: str) -> str:
    relative = os.path.relpath(file, root)
    parts = [*os.path.dirname(relative).split(os.sep), *os.path.splitext(os.path.basename(file))[0].split("_")]
    named = [split_of(part) for part in parts if part and split_of(part)]
    return named[-1] if named else split_of(root.name) or "train"


# -- YOLO ---------------------------------------------------------------------------------------------------------


def _read_yolo(folder: Folder, task: str, skip: bool) -> Listed | None:
    texts = [path for path in folder.files(".txt") if "labels" in os.path.relpath(path, folder.root).split(os.sep)]
    if not texts:
        return None
    names: dict[int, str] = {}
    for file in folder.files(".yaml", ".yml"):
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("names"):
            listed = content["names"]
            names = {int(k): str(v) for k, v in (listed.items() if isinstance(listed, dict) else enumerate(listed))}
            break
    by_stem = {os.path.splitext(path)[0]: path for path in texts}
    splits: dict[str, list[dict]] = defaultdict(list)
    seen: set[int] = set()
    for path in sorted(p for paths in folder.by_name.values() for p in paths if is_picture(os.path.basename(p))):
        parts = os.path.relpath(path, folder.root).split(os.sep)
        if "images" not in parts:
            continue
        at = len(parts) - 1 - parts[::-1].index("images")
        label = os.path.join(folder.root, *parts[:at], "labels", *parts[at + 1:])
        text = by_stem.get(os.path.splitext(label)[0])  # an image without one has no object
        splits[_split(folder.root, os.path.join(os.path.dirname(path), "x"))].append(
            {"image": path, "image_id": _stem(parts[-1]), "instances": _yolo_objects(text, path, seen) if text else []})
    unknown = sorted(seen - set(names))
    if names and unknown:
        raise UserError(f"{folder.root}: labels use the classes {unknown[:10]}", ", ".join(map(str, names)),
                        "name them in data.yaml")
    known = names or {i: f"class_{i}" for i in range(max(seen, default=0) + 1)}
    return Listed(dict(splits), [Category(i, name) for i, name in sorted(known.items())], "YOLO polygons")


_YOLO = "a class number, and three x y pairs or more from 0 to 1"


def _yolo_objects(text: str, image: str, seen: set[int]) -> list[dict]:
    with Image.open(image) as opened:
        width, height = opened.size
    objects = []
    for number, line in enumerate(Path(text).read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            said, values = float(words[0]), [float(word) for word in words[1:]]
            kind = int(said)
            if kind != said:
                raise ValueError(words[0])
        except (ValueError, OverflowError) as error:
            raise UserError(f"{text}, line {number}: {line[:60]!r}", _YOLO) from error
        if len(values) == 4:  # a box: centre, width, height
            x, y, w, h = values
            values = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2, x - w / 2, y + h / 2]
        if len(values) < 6 or len(values) % 2 or min(values) < -0.1 or max(values) > 1.1:
            raise UserError(f"{text}, line {number}: {line[:60]!r}", _YOLO)
        polygon = [round(value * (width, height)[i % 2], 3) for i, value in enumerate(values)]
        seen.add(kind)
        objects.append(_polygon(kind, [polygon]))
    return objects


def _polygon(category: int, rings: list) -> dict:
    return {"category_id": category, "iscrowd": False, "id": None, "segmentation": json.dumps(rings)}


# -- CVAT ---------------------------------------------------------------------------------------------------------


def _read_cvat(folder: Folder, task: str, skip: bool) -> Listed | None:
    splits: dict[str, list[dict]] = defaultdict(list)
    names: dict[str, tuple | None] = {}
    missing, notes, found = [], [], None
    for file in folder.files(".xml"):
        try:
            tree = ElementTree.parse(file).getroot()
        except ElementTree.ParseError:
            continue
        if tree.tag != "annotations" or tree.find("image") is None:
            continue
        found = file
        for label in tree.iter("label"):
            name, colour = label.findtext("name"), label.findtext("color") or ""
            if name:
                names[name] = tuple(bytes.fromhex(colour[1:])) if len(colour) == 7 else None
        for image in tree.iter("image"):
            path = folder.find(image.get("name"), file, ("images", image.get("subset") or "images"))
            if path is None:
                missing.append(image.get("name"))
                continue
            objects = []
            for shape in image:
                names.setdefault(shape.get("label"), None) if shape.get("label") else None
                rings = _cvat_shape(shape, int(image.get("width")), int(image.get("height")))
                if rings is not None:
                    objects.append((shape.get("label"), shape.get("group_id") or "0", rings))
            split = split_of(image.get("subset") or "") or _split(folder.root, file)
            splits[split].append({"image": path, "image_id": _stem(image.get("name")), "instances": objects})
    if found is None:
        return None
    _report(missing, found, skip, notes)
    ids = {name: i for i, name in enumerate(names, start=1)}
    for rows in splits.values():
        for row in rows:
            joined: dict[tuple, dict] = {}
            for number, (name, group, shape) in enumerate(row["instances"]):
                key = (name, group) if group != "0" and isinstance(shape, list) else (name, f"alone {number}")
                if key in joined and isinstance(joined[key]["shape"], list):
                    joined[key]["shape"] += shape
                else:
                    joined[key] = {"name": name, "shape": shape}
            row["instances"] = [{"category_id": ids[one["name"]], "iscrowd": False, "id": None,
                                 "segmentation": json.dumps(one["shape"])} for one in joined.values()]
    return Listed(dict(splits), [Category(i, name, colour=names[name]) for name, i in ids.items()], "CVAT", notes)


def _cvat_shape(shape, width: int, height: int) -> Any:
    """A polygon, box or mask as COCO has it; None for other shapes."""
    if shape.tag == "polygon":
        return [[float(value) for point in shape.get("points").split(";") for value in point.split(",")]]
    if shape.tag == "box":
        left, top, right, bottom = (float(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        return [[left, top, right, top, right, bottom, left, bottom]]
    if shape.tag == "mask":  # runs by rows, within a window
        left, top, w, h = (int(float(shape.get(key))) for key in ("left", "top", "width", "height"))
        runs = [int(value) for value in shape.get("rle").split(",")]
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
        mask = np.zeros((height, width), bool)
        mask[top : top + h, left : left + w] = inside[: height - top, : width - left]
        return rle.encode(mask)
    return None


# -- LabelMe ------------------------------------------------------------------------------------------------------


def _read_labelme(folder: Folder, task: str, skip: bool) -> Listed | None:
    splits: dict[str, list[dict]] = defaultdict(list)
    names: dict[str, int] = {}
    missing, notes, last = [], [], None
    other: dict[str, int] = defaultdict(int)
    for file in folder.files(".json"):
        content = _json(file, quick=("shapes", "imagePath"))
        if content is None:
            continue
        last = file
        stated = str(content["imagePath"] or "").replace("\\", "/")
        beside = [p for p in folder.by_name.get(os.path.basename(stated), []) if os.path.dirname(p) ==
                  os.path.dirname(file)]
        path = (beside or [folder.find(os.path.basename(stated), file)])[0] if stated else None
        if path is None:
            missing.append(stated)
            continue
        grouped: dict[Any, dict] = {}
        for number, shape in enumerate(content["shapes"]):
            ring = _labelme_ring(shape)
            if ring is None:
                other[str(shape.get("shape_type") or "polygon")] += 1
                continue
            label, group = str(shape["label"]), shape.get("group_id")
            number = (label, group) if group is not None else number
            names.setdefault(label, len(names) + 1)
            grouped.setdefault(number, {"label": label, "rings": []})["rings"].append(ring)
        objects = [_polygon(names[one["label"]], one["rings"]) for one in grouped.values()]
        splits[_split(folder.root, file)].append(
            {"image": path, "image_id": _stem(os.path.relpath(path, folder.root)), "instances": objects})
    if last is None:
        return None
    notes += [f"{count} shapes of the kind {kind} are no polygon, rectangle or circle that has an area: left out"
              for kind, count in sorted(other.items())]
    _report(missing, last, skip, notes)
    return Listed(dict(splits), [Category(i, name) for name, i in names.items()], "LabelMe", notes)


def _labelme_ring(shape: dict) -> list[float] | None:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points") or []
    if kind == "polygon" and len(points) >= 3:
        return [float(value) for point in points for value in point]
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points[0], points[1]
        radius = math.dist(points[0], edge)
        turns = [math.tau * i / 64 for i in range(64)]
        return [value for t in turns for value in (x + radius * math.cos(t), y + radius * math.sin(t))]
    return None


# -- what they share ----------------------------------------------------------------------------------------------


def _json(file: str, quick: tuple[str, ...]) -> dict | None:
    """The content of a JSON file that has these keys."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = json.load(opened)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and all(key in content for key in quick) else None


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _report(missing: list[str], file: str, skip: bool, notes: list[str]) -> None:
    if not missing:
        return
    some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    if not skip:
        raise UserError(f"{file} names files that are not there: {some}", "every file that it names, below the folder",
                        "add them, or --data.on_bad_sample skip leaves them out")
    notes.append(f"{os.path.basename(file)}: {len(missing)} files are missing, left out: {some}")

"""Reading YOLO's label files: a class number and a polygon, or a box, per line."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import yaml
from PIL import Image, UnidentifiedImageError

from hfseg.data.folders import is_picture
from hfseg.data.listed import BROKEN, Category, Folder, Listed, an_object, split_for, stem
from hfseg.errors import UserError

_LINE = "a class number, and three x y pairs or more from 0 to 1, or a box as x, y, width, height"


def read_yolo(folder: Folder, task: str, skip: bool) -> Listed | None:
    """Reads the labels of images that lie in `images`, from `labels` beside it.

    Args:
        folder: Where both are, and perhaps a data.yaml.
        task: Unused: all objects are things.
        skip: Leave out images that cannot be opened.

    Returns:
        What the files hold, or None where there are none.

    Raises:
        UserError: When one cannot be understood.
    """
    texts = [path for path in folder.files(".txt") if "labels" in os.path.relpath(path, folder.root).split(os.sep)]
    if not texts:
        return None
    names = _names(folder)
    by_stem = {os.path.splitext(path)[0]: path for path in texts}
    splits: dict[str, list[dict]] = defaultdict(list)
    used: set[int] = set()
    boxes, notes = 0, []
    for path in sorted(p for paths in folder.by_name.values() for p in paths if is_picture(os.path.basename(p))):
        parts = os.path.relpath(path, folder.root).split(os.sep)
        if "images" not in parts:
            continue
        at = len(parts) - 1 - parts[::-1].index("images")
        label = os.path.join(folder.root, *parts[:at], "labels", *parts[at + 1:])
        text = by_stem.pop(os.path.splitext(label)[0], None)  # an image without one has no object
        try:
            size = _size(path) if text else None
        except (OSError, UnidentifiedImageError) as error:
            if not skip:
                raise UserError(f"{path} cannot be opened, and {text} speaks of it", "JPEG, PNG...",
                                "restore it, or --data.on_bad_sample skip") from error
            notes.append(f"{os.path.basename(path)} cannot be opened: left out")
            continue
        objects, of_boxes = _objects(text, size, used) if text else ([], 0)
        boxes += of_boxes
        split = split_for(folder.root, os.path.join(os.path.dirname(path), "x"))
        splits[split].append({"image": path, "image_id": stem(parts[-1]), "drawn_on": size, "instances": objects})
    if boxes:
        notes.append(f"{boxes} labels are boxes and no outlines: their masks are the whole rectangles")
    if by_stem and splits:
        notes.append(f"{len(by_stem)} label files have no image, such as "
                     f"{os.path.basename(next(iter(by_stem.values())))}: left out")
    unknown = sorted(used - set(names))
    if names and unknown:
        raise UserError(f"{folder.root}: labels use the classes {unknown[:10]}", ", ".join(map(str, names)),
                        "name them in data.yaml")
    known = names or {i: f"class_{i}" for i in range(max(used, default=0) + 1)}
    return Listed(dict(splits), [Category(i, name) for i, name in sorted(known.items())], "YOLO labels", notes)


def _names(folder: Folder) -> dict[int, str]:
    """The classes that a data.yaml names."""
    for file in folder.files(".yaml", ".yml"):
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8-sig"))
            listed = content.get("names") if isinstance(content, dict) else None
            if listed:
                return {int(k): str(v) for k, v in (listed.items() if isinstance(listed, dict) else enumerate(listed))}
        except (yaml.YAMLError, *BROKEN) as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())[:160]}",
                            "names: a list, or names by class number", "mend it") from error
    return {}


def _size(path: str) -> list[int]:
    with Image.open(path) as opened:
        turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # polygons are drawn on what a viewer shows
        return list(opened.size if turned else opened.size[::-1])


def _objects(text: str, size: list[int], used: set[int]) -> tuple[list[dict], int]:
    """The objects of a label file, and how many of them are boxes."""
    objects, boxes = [], 0
    for number, line in enumerate(Path(text).read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            said, values = float(words[0]), [float(word) for word in words[1:]]
            kind = int(said)
            if kind != said or kind < 0:
                raise ValueError(words[0])
        except (ValueError, OverflowError) as error:
            raise UserError(f"{text}, line {number}: {line[:60]!r}", _LINE) from error
        box = len(values) == 4
        if box:
            x, y, w, h = values
            values = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2, x - w / 2, y + h / 2]
        if len(values) < 6 or len(values) % 2 or not all(-0.1 <= value <= 1.1 for value in values):
            raise UserError(f"{text}, line {number}: {line[:60]!r}", _LINE)
        used.add(kind)
        boxes += box
        objects.append(an_object(kind, [[round(value * size[1 - i % 2], 3) for i, value in enumerate(values)]]))
    return objects, boxes

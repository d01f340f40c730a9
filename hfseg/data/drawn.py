"""Reading what tools export in which people draw objects: LabelMe and CVAT."""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from collections import Counter, defaultdict
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from hfseg.data.folders import split_of
from hfseg.data.listed import (
    Category,
    Folder,
    Listed,
    an_object,
    counted,
    ellipse,
    joined,
    report,
    size_of,
    split_for,
    stem,
    telling,
    turned,
)
from hfseg.errors import UserError
from hfseg.ops import rle


def read_cvat(folder: Folder, task: str, skip: bool) -> Listed | None:
    """Reads exports of the kind "CVAT for images".

    Args:
        folder: Where an annotations.xml and images are.
        task: Unused: all objects are things.
        skip: Leave out images that are missing.

    Returns:
        What the files hold, or None where there are none.

    Raises:
        UserError: When one cannot be understood.
    """
    splits: dict[str, list[dict]] = defaultdict(list)
    names: dict[str, tuple | None] = {}
    left_out: Counter = Counter()
    missing, notes, found = [], [], None
    for file in folder.files(".xml"):
        try:
            tree = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            folder.broken[file] = str(error)
            continue
        if tree.tag != "annotations":
            continue
        if tree.find("image") is None:
            if tree.find("track") is not None:
                raise UserError(f"{file} holds tracks of a video", "the format 'CVAT for images 1.1'",
                                "export the task in that format, with its images")
            continue
        found = file
        for label in tree.iter("label"):
            name, colour = label.findtext("name"), label.findtext("color") or ""
            if name:
                names[name] = _colour(colour)
        for image in tree.iter("image"):
            name = image.get("name") or ""
            path = folder.find(name, file, ("images", image.get("subset") or "images"))
            if path is None:
                missing.append(name)
                continue
            with telling(f"{file}, image {name!r}"):
                size = size_of(image.get("height"), image.get("width"))
                objects = _cvat_objects(image, size, names, left_out)
            split = split_of(image.get("subset") or "") or split_for(folder.root, file)
            splits[split].append({"image": path, "image_id": stem(name), "drawn_on": size, "instances": objects})
    if found is None:
        return None
    notes += counted(left_out, " have no area")
    report(missing, found, skip, notes)
    ids = {name: i for i, name in enumerate(names, start=1)}
    for rows in splits.values():
        for row in rows:
            row["instances"] = [an_object(ids[label], shape) for label, shape in row["instances"]]
    return Listed(dict(splits), [Category(i, name, colour=names[name]) for name, i in ids.items()], "CVAT", notes)


def _colour(text: str) -> tuple | None:
    try:
        return tuple(bytes.fromhex(text[1:])) if len(text) == 7 else None
    except ValueError:
        return None


def _cvat_objects(image: ElementTree.Element, size: list[int], names: dict, left_out: Counter) -> list[tuple]:
    """(label, shape as COCO has it) of each object; shapes of one label and group are one."""
    grouped: dict[tuple, list] = {}
    for number, shape in enumerate(image):
        found = _cvat_shape(shape, size)
        if found is None:
            left_out[f"{shape.tag} shapes"] += 1
            continue
        label, group = shape.get("label"), shape.get("group_id") or "0"
        if not label:
            raise ValueError(f"a {shape.tag} without a label")
        names.setdefault(label, None)
        grouped.setdefault((label, group if group != "0" else f"alone {number}"), []).append(found)
    return [(label, joined(parts, size)) for (label, _), parts in grouped.items()]


def _cvat_shape(shape: ElementTree.Element, size: list[int]) -> Any:
    """A polygon, box, ellipse or mask as COCO has it; None for shapes that have no area."""
    turn = float(shape.get("rotation") or 0)
    if shape.tag == "polygon":
        ring = [float(value) for point in shape.get("points").split(";") for value in point.split(",")]
        return [ring] if len(ring) >= 6 else None
    if shape.tag == "box":
        left, top, right, bottom = (float(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        ring = [left, top, right, top, right, bottom, left, bottom]
        return [turned(ring, (left + right) / 2, (top + bottom) / 2, turn)]
    if shape.tag == "ellipse":
        return [ellipse(*(float(shape.get(key)) for key in ("cx", "cy", "rx", "ry")), turn)]
    if shape.tag == "mask":  # runs by rows, within a window
        left, top, w, h = (int(float(shape.get(key))) for key in ("left", "top", "width", "height"))
        runs = [int(value) for value in shape.get("rle").split(",")]
        if sum(runs) != w * h:
            raise ValueError(f"run lengths of {sum(runs)} pixels for a mask of {w} x {h}")
        return _placed(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w), left, top, size)
    return None


def _placed(window: np.ndarray, left: int, top: int, size: list[int]) -> dict[str, Any]:
    """The code of a mask that fills a window of the image."""
    mask = np.zeros(size, bool)
    inside = window[max(0, -top) : size[0] - top, max(0, -left) : size[1] - left]
    mask[max(0, top) : max(0, top) + inside.shape[0], max(0, left) : max(0, left) + inside.shape[1]] = inside
    return rle.encode(mask)


def read_labelme(folder: Folder, task: str, skip: bool) -> Listed | None:
    """Reads LabelMe's files, one beside each image.

    Args:
        folder: Where they are.
        task: Unused: all objects are things.
        skip: Leave out images that are missing.

    Returns:
        What the files hold, or None where there are none.

    Raises:
        UserError: When one cannot be understood.
    """
    splits: dict[str, list[dict]] = defaultdict(list)
    names: dict[str, int] = {}
    missing, notes, last = [], [], None
    left_out: Counter = Counter()
    for file, content in folder.json(("shapes", "imagePath")):
        last = file
        stated = os.path.basename(str(content["imagePath"] or "").replace("\\", "/"))
        beside = os.path.join(os.path.dirname(file), stated)
        path = (beside if os.path.isfile(beside) else folder.find(stated, file)) if stated else None
        if path is None:
            missing.append(stated)
            continue
        with telling(file):
            size = size_of(content.get("imageHeight"), content.get("imageWidth"))
            grouped: dict[Any, list] = {}
            for number, shape in enumerate(content["shapes"]):
                found = _labelme_shape(shape, size)
                if found is None:
                    left_out[f"shapes of the kind {shape.get('shape_type') or 'polygon'}"] += 1
                    continue
                label, group = str(shape["label"]), shape.get("group_id")
                names.setdefault(label, len(names) + 1)
                grouped.setdefault((label, f"alone {number}" if group is None else group), []).append(found)
            objects = [an_object(names[label], joined(parts, size)) for (label, _), parts in grouped.items()]
        splits[split_for(folder.root, file)].append({
            "image": path, "image_id": stem(os.path.relpath(path, folder.root)), "drawn_on": size,
            "instances": objects})  # fmt: skip
    if last is None:
        return None
    notes += counted(left_out, " have no area")
    report(missing, last, skip, notes)
    return Listed(dict(splits), [Category(i, name) for name, i in names.items()], "LabelMe", notes)


def _labelme_shape(shape: dict, size: list[int] | None) -> Any:
    """A shape as COCO has it; None for those that have no area."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points") or []
    if kind in ("polygon", "rectangle", "oriented_rectangle") and len(points) >= 3:
        return [[float(value) for x, y in points for value in (x, y)]]
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        return [ellipse(*points[0], radius, radius)]
    if kind == "mask" and shape.get("mask") and len(points) == 2:
        if size is None:
            raise ValueError("a mask, and neither imageHeight nor imageWidth")
        try:
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                window = np.asarray(picture) > 0
        except (binascii.Error, OSError) as error:
            raise ValueError(f"a mask that is no picture ({error})") from error
        left, top = (int(value) for value in points[0])
        return _placed(window if window.ndim == 2 else window.any(2), left, top, size)
    return None

"""Files made from a map that the browser sends back, as it was predicted or corrected by hand."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from hfseg.demo.encoding import stem
from hfseg.demo.limits import check_size, read_upload
from hfseg.errors import UserError
from hfseg.ops import rle
from hfseg.result import Segmentation

KINDS = {"coco": "coco.json", "geojson": "geojson", "overlay": "overlay.png", "cutout": "cutout.png"}
MOST_CLASSES, LONGEST_NAME = 65_535, 200


@dataclass
class Request:
    """What is to be exported.

    Args:
        result: The map, with the photo if one came along.
        hidden: Class ids that pictures leave out.
        opacity: Of an overlay.
        name: To call files by.
    """

    result: Segmentation
    hidden: Sequence[int]
    opacity: float
    name: str

    @classmethod
    def read(cls, semantic_map: Any, photo: Any, request: Any, segment_map: Any = None) -> Request:
        """Reads and checks what a browser, or anybody, sent.

        Args:
            semantic_map: File of the class ids.
            photo: File of the photo, or None.
            request: As the endpoint says.
            segment_map: File of the segment ids, or None.

        Returns:
            The request.

        Raises:
            UserError: For anything else.
        """
        request = request if isinstance(request, dict) else {}
        names, palette = _classes(request.get("classes"))
        ids = _ids(semantic_map, "map")
        segments = request.get("segments") or None
        both = segments is not None and segment_map is not None
        image = read_upload(photo) if photo else None
        for array, what in ((image, "photo"), (ids_of(segment_map) if both else None, "segment map")):
            if array is not None and array.shape[:2] != ids.shape:
                raise UserError(f"the {what} is {array.shape[1]} x {array.shape[0]} and the map "
                                f"{ids.shape[1]} x {ids.shape[0]} pixels", "the same size")
        result = Segmentation(ids, names, palette, image=image, segment_map=ids_of(segment_map) if both else None,
                              segments=_segments(segments, names, ids.shape) if both else None)  # fmt: skip
        opacity = request.get("opacity", 0.55)
        if not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
            raise UserError(f"opacity {str(opacity)[:20]}", "0 to 1")
        hidden = request.get("hidden") or []
        if not isinstance(hidden, list) or not all(isinstance(i, int) for i in hidden):
            raise UserError("hidden classes that are no ids", "a list of whole numbers")
        return cls(result, hidden, float(opacity), stem(str(request.get("name") or "image")[:LONGEST_NAME]))


def write_export(request: Request, kind: str) -> str:
    """Writes a file into gradio's cache.

    Args:
        request: What.
        kind: One of `KINDS`.

    Returns:
        Its path.

    Raises:
        UserError: When a picture is wanted and no photo came along.
    """
    result = request.result
    if kind in ("overlay", "cutout") and result.image is None:
        raise UserError("the photo is missing", "the photo that the map is of")
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=get_upload_folder())) / f"{request.name}_{KINDS[kind]}"
    if kind == "coco":
        path.write_text(json.dumps(coco(result, request.name)), encoding="utf-8")
    elif kind == "geojson":
        path.write_text(json.dumps(result.to_geojson()), encoding="utf-8")
    else:
        shown = np.isin(result.semantic_map, [i for i in result.id2label if i not in request.hidden])
        if kind == "cutout":
            picture = Image.fromarray(np.dstack([result.image, shown * np.uint8(255)]))
        else:
            none = len(result.palette)  # what the palette does not have is not painted
            visible = Segmentation(np.where(shown, result.semantic_map, none), result.id2label, result.palette,
                                   image=result.image)
            picture = visible.overlay(request.opacity)
        picture.save(path, compress_level=1)
    return str(path)


def coco(result: Segmentation, name: str) -> dict[str, Any]:
    """Writes a COCO file of one image.

    Args:
        result: The map.
        name: Of the image.

    Returns:
        `images`, `categories` and `annotations`, ready for JSON.
    """
    height, width = result.semantic_map.shape
    return {
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "categories": [{"id": i, "name": label} for i, label in result.id2label.items()],
        "annotations": result.to_coco(),
    }


def ids_of(file: Any) -> np.ndarray:
    """Reads segment ids.

    Args:
        file: PNG of red + 256 green + 65536 blue.

    Returns:
        (H, W) ids.

    Raises:
        UserError: When it is no such file.
    """
    picture = _open(file, "segment map").convert("RGB")
    red, green, blue = np.moveaxis(np.asarray(picture).astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def _ids(file: Any, what: str) -> np.ndarray:
    picture = _open(file, what)
    if picture.mode not in ("P", "L", "I;16", "I"):
        raise UserError(f"the {what} is a picture of kind {picture.mode}", "a palette or grey PNG of class ids")
    return np.asarray(picture).astype(np.int32)


def _open(file: Any, what: str) -> Image.Image:
    if not isinstance(file, str) or not Path(file).is_file():
        raise UserError(f"the {what} is missing", "a PNG")
    check_size(file)
    try:
        picture = Image.open(file, formats=["PNG"])
        picture.load()
        return picture
    except Exception as error:
        raise UserError(f"the {what} is no PNG, or broken", "a PNG of ids") from error


def _classes(listed: Any) -> tuple[dict[int, str], list[tuple[int, int, int]]]:
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_CLASSES:
        raise UserError("no list of classes", f"`classes`: id, name and colour of 1 to {MOST_CLASSES} classes")
    names, colours = {}, {}
    for one in listed:
        good = isinstance(one, dict) and isinstance(one.get("id"), int) and 0 <= one["id"] < MOST_CLASSES
        colour = str(one.get("colour") or "#808080") if good else ""
        if not good or not isinstance(one.get("name"), str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise UserError(f"a class {str(one)[:80]}", "a whole number as id, a name, and a colour such as #4cc9f0")
        names[one["id"]] = one["name"][:LONGEST_NAME]
        colours[one["id"]] = tuple(bytes.fromhex(colour[1:]))
    return names, [colours.get(i, (128, 128, 128)) for i in range(max(names) + 1)]


def _segments(listed: Any, names: dict[int, str], size: tuple[int, int]) -> list[dict[str, Any]]:
    if not isinstance(listed, list) or len(listed) > MOST_CLASSES:
        raise UserError("no list of segments", "`segments`: id, label_id and perhaps score and rle of each")
    found = []
    for one in listed:
        if not isinstance(one, dict) or not isinstance(one.get("id"), int) or one.get("label_id") not in names:
            raise UserError(f"a segment {str(one)[:80]}", "a whole number as id, and a class as label_id")
        score = one.get("score")
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        entry = {"id": one["id"], "label_id": one["label_id"], "score": score if number else None}
        if one.get("rle") is not None:  # the whole mask, where others hide a part of it
            if not isinstance(one["rle"], str) or not one["rle"].isascii():
                raise UserError(f"a mask {str(one['rle'])[:40]}", "a COCO run-length string")
            entry["rle"] = {"size": list(size), "counts": one["rle"]}
            rle.area(entry["rle"])  # raises if it is of another size
        found.append(entry)
    return found

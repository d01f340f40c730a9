"""What is sent to the viewer: a photo, the class ids and the confidence, each as a small file.

Ids travel as grey PNGs, exactly; from 255 classes on as red + 256 green. The viewer paints, measures and edits them.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from hfseg.drawing import segment_colours, to_rgb
from hfseg.remap import hex_colour
from hfseg.result import Segmentation

JPEG_QUALITY = 90
DEEP = 255  # from this id on, one byte is too little: 255 itself means "no class"
_NUMBERS = itertools.count(int(time.time() * 1000))  # two equal results are still two
_POOL = ThreadPoolExecutor(3, thread_name_prefix="hfseg-encode")  # PIL encodes without the interpreter's lock


def no_class(id2label: Mapping[int, str]) -> int:
    """Returns the value of pixels without a class.

    Args:
        id2label: Class names.

    Returns:
        255, or 65535 if ids need two bytes.

    Example:
        >>> no_class({0: "sky"}), no_class({i: str(i) for i in range(256)})
        (255, 65535)
    """
    return 65535 if max(id2label, default=0) >= DEEP else 255


def ids_image(result: Segmentation) -> Image.Image:
    """Writes class ids as an image that a browser decodes exactly.

    Args:
        result: Whose semantic map it is.

    Returns:
        Grey, or red + 256 green if there are ids from 255 on.
    """
    ids, none = result.semantic_map, no_class(result.id2label)
    known = np.zeros(int(ids.max(initial=0)) + 1, bool)
    known[[i for i in result.id2label if i < len(known)]] = True
    if not known.all():
        table = np.where(known, np.arange(len(known)), none)
        ids = table[ids]
    return _wide(ids, 2) if none > 255 else Image.fromarray(ids.astype(np.uint8, copy=False))


def _wide(ids: np.ndarray, count: int) -> Image.Image:
    """Integers as red + 256 green + 65536 blue."""
    bands = [(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)[:count]]
    return Image.fromarray(np.dstack([*bands, *[np.zeros_like(bands[0])] * (3 - count)]))


def encode(image: Image.Image, name: str, **options: Any) -> dict[str, Any]:
    """Puts an image into gradio's cache, which serves it and empties itself.

    Args:
        image: What to write.
        name: Its file name, which says the format.
        **options: Of `Image.save`.

    Returns:
        The file, as gradio's viewer and client take it.
    """
    buffer = io.BytesIO()
    if name.endswith(".png"):
        options = {"compress_level": 1, **options}
    image.save(buffer, format=Path(name).suffix[1:].replace("jpg", "jpeg"), **options)
    return file_data(save_bytes_to_cache(buffer.getvalue(), name, get_upload_folder()))


def file_data(path: str) -> dict[str, Any]:
    """Names a file of gradio's cache in a message.

    Args:
        path: Where it is.

    Returns:
        What gradio adds a URL to.
    """
    return {"path": path, "orig_name": os.path.basename(path), "meta": {"_type": "gradio.FileData"}}


def message(
    results: Mapping[str, Segmentation], image: np.ndarray, photo: str, times: dict[str, float],
    notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Writes what the viewer shows.

    Args:
        results: One result by model, or two to compare.
        image: (H, W, C), as it was decoded.
        photo: The file that was sent, for what is asked about it later.
        times: Seconds by part; those of this function are added.
        notes: What a visitor should know.

    Returns:
        The message, without the confidence. Numbers are plain: gradio would turn numpy's into text.
    """
    start = time.perf_counter()
    height, width = image.shape[:2]
    source = _POOL.submit(lambda: encode(Image.fromarray(to_rgb(image)), "image.jpg", quality=JPEG_QUALITY))
    maps = [_map(name, result) for name, result in results.items()]
    content = {
        "number": next(_NUMBERS), "width": int(width), "height": int(height), "name": stem(photo),
        "photo": file_data(photo), "source": source.result(), "maps": [one() for one in maps], "notes": list(notes),
    }  # fmt: skip
    times["encode"] = time.perf_counter() - start
    return {**content, "times": _milliseconds(times), "complete": False}


def completed(content: dict[str, Any], results: Mapping[str, Segmentation], times: dict[str, float]) -> dict[str, Any]:
    """Adds the confidence to a message: it costs more than all else, and the mask need not wait for it.

    Args:
        content: What `message` gave.
        results: As for `message`.
        times: Seconds by part; `confidence` is added.

    Returns:
        The whole message.
    """
    start = time.perf_counter()
    maps = []
    for one, result in zip(content["maps"], results.values(), strict=True):
        sure = result.confidence
        maps.append({**one, "confidence": None if sure is None else encode(Image.fromarray(_byte(sure)), "sure.png")})
    times["confidence"] = time.perf_counter() - start
    return {**content, "maps": maps, "times": _milliseconds(times), "complete": True}


def _milliseconds(times: Mapping[str, float]) -> list[list]:
    return [[name, round(1000 * seconds, 1)] for name, seconds in times.items()]


def _map(name: str, result: Segmentation):
    """Starts to encode one map; call what is returned for the rest."""
    none = no_class(result.id2label)
    ids = _POOL.submit(lambda: encode(ids_image(result), "class_ids.png"))
    segments = None
    if result.segments is not None:
        segments = _POOL.submit(lambda: encode(_wide(result.segment_map & 0xFFFFFF, 3), "segment_ids.png"))

    def finish() -> dict[str, Any]:
        return {
            "model": name, "none": none, "ids": ids.result(),
            "classes": [{"id": i, "name": label, "colour": _colour(result, i)} for i, label in result.id2label.items()],
            "confidence": None, "segments": segments and segments.result(),
            "segments_info": _segments(result) if segments else [],
        }  # fmt: skip

    return finish


def _byte(share: np.ndarray) -> np.ndarray:
    scaled = share * np.float32(255)
    scaled += np.float32(0.5)
    return scaled.astype(np.uint8)


def _colour(result: Segmentation, i: int) -> str:
    return hex_colour(result.palette[i]) if i < len(result.palette) else "#808080"


def _segments(result: Segmentation) -> list[dict[str, Any]]:
    """Each segment with its colour, and with the code of its mask where better ones hide a part of it."""
    entries = result.segments_info
    palette = [*result.palette, *[(128, 128, 128)] * (max(result.id2label, default=0) + 1 - len(result.palette))]
    colours = segment_colours([entry["label_id"] for entry in entries], palette)
    seen = np.bincount(result.segment_map.ravel(), minlength=1)
    found = []
    for entry, colour in zip(entries, colours, strict=True):
        score, number = entry["score"], int(entry["id"])
        hidden = entry["area"] != (seen[number] if number < len(seen) else 0)
        found.append({
            "id": number, "label_id": int(entry["label_id"]), "area": int(entry["area"]),
            "bbox": [int(value) for value in entry["bbox"]], "score": None if score is None else float(score),
            "colour": hex_colour(np.rint(colour).astype(int).tolist()),
            **({"rle": result.rles[number]["counts"]} if hidden else {}),
        })  # fmt: skip
    return found


def stem(photo: str) -> str:
    """Returns what files made from a photo are called.

    Args:
        photo: The file.

    Returns:
        Letters, digits, `-` and `_`, up to 60 of them.

    Example:
        >>> stem("/tmp/My photo <1>.jpg")
        'My_photo_1'
    """
    return re.sub(r"[^\w-]+", "_", Path(photo).stem).strip("_")[:60] or "image"

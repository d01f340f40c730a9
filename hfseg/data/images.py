"""Reading one image and one label map, whatever the file holds.

Images come out as numbers a network can take, label maps as the very values that were stored: what those mean
is `hfseg.labels`' business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hfseg.data.bands import bands_last, check_bands, class_values, finite, to_eight_bits, to_photo
from hfseg.data.opening import ORIENTATION, open_stored, upright
from hfseg.data.segments import Segments, read_segments
from hfseg.errors import BadSample
from hfseg.labels import LabelSchema

ARRAY_SUFFIXES = (".npy", ".tif", ".tiff")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".jp2")


@dataclass
class Sample:
    """One image with its classes.

    Args:
        image: (H, W, C): uint8 up to four channels, else as stored (uint8, uint16 or float32).
        semantic_map: (H, W) class ids of the schema's type.
        name: The file or row.
        segments: The objects, where the data tells them apart.
    """

    image: np.ndarray
    semantic_map: np.ndarray
    name: str
    segments: Segments | None = None


def decode_image(value: Any, channels: int = 3, sample: str = "") -> np.ndarray:
    """Read an image as `channels` channels, upright.

    Grey, palette, CMYK, 1-bit and EXIF-rotated files are converted; transparency is laid on white. Up to four
    channels the result has 8 bits. Deeper values that fit 0..255 are taken as they are, floats in 0..1 times 255,
    and all others are stretched so that the image's 1st to 99.9th percentile (all channels together) spans 0 to
    255: 12-bit cameras and microscopes fill a small part of 16 bits, and never the same one. More than four
    channels keep their type and values.

    Args:
        value: A PIL image, an array or tensor (H, W), (H, W, C) or (C, H, W), a path, an open file, the bytes of a
            file, or a dict with `bytes` and `path`, as `datasets` gives.
        channels: Number of channels wanted.
        sample: The file or row, for messages.

    Returns:
        (H, W, channels): uint8 up to four channels, else uint8, uint16 or float32.

    Raises:
        BadSample: When it cannot be read, or has a number of channels that cannot become `channels`.

    Example:
        >>> decode_image(Image.new("L", (4, 3), 7)).shape
        (3, 4, 3)
    """
    name = sample or name_of(value) or "image"
    content = open_stored(value, name)
    if isinstance(content, Image.Image):
        content = upright(content, name)
        if channels <= 4 and not content.mode.startswith(("I", "F")):
            return to_photo(content, channels, name)
        content = np.asarray(content)
    array = bands_last(content, name)
    if channels > 4:
        check_bands(array, channels, name)
        return np.array(array) if array.dtype in (np.uint8, np.uint16) else finite(array)
    array = to_eight_bits(array)
    if array.shape[2] == channels:
        return np.ascontiguousarray(array)
    if array.shape[2] not in (1, 3) and not (array.shape[2] == 4 and isinstance(value, np.ndarray)):
        check_bands(array, channels, name)  # the fourth band of a file may be infrared as well as transparency
    return to_photo(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), channels, name)


def decode_map(
    value: Any, sample: str = "", by_colour: bool = False, with_palette: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray | None]:
    """Read a label map as the values that are stored.

    A palette image gives its indices, 1 bit gives 0 and 1, and a colour image whose three channels are equal
    gives that channel. A transparency channel is left out.

    Args:
        value: As for `decode_image`.
        sample: The file or row, for messages.
        by_colour: Whether a palette image gives its colours.
        with_palette: Whether to return the palette, too.

    Returns:
        (H, W) integers, or (H, W, 3) uint8 colours; with `with_palette` a tuple of these and, for a palette image,
        (256, 3) uint8 colours, else None.

    Raises:
        BadSample: When it cannot be read, or is no label map.

    Example:
        >>> decode_map(Image.new("P", (4, 3), 7))[0].tolist()
        [7, 7, 7, 7]
    """
    name = sample or name_of(value) or "label map"
    content, palette = open_stored(value, name), None
    if isinstance(content, Image.Image):
        content = upright(content, name)
        if content.mode == "P":
            palette = np.zeros((256, 3), np.uint8)
            listed = np.array(content.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            palette[: len(listed)] = listed
        if content.mode in ("CMYK", "YCbCr", "LAB", "HSV") or (by_colour and content.mode in ("P", "PA")):
            content = content.convert("RGB")
        array = np.asarray(content)
        if content.mode in ("LA", "PA", "La"):
            array = array[..., 0]
    else:
        array = content
    stored = class_values(array, name)
    return (stored, palette) if with_palette else stored


def decode_ids(value: Any, sample: str = "") -> np.ndarray:
    """Read a map of objects' ids: grey of 8 or 16 bits, palette indices, or red + 256 green + 65536 blue.

    In a palette image, 255 among smaller ids is the outline that Pascal VOC draws around objects, and no object.

    Args:
        value: As for `decode_image`.
        sample: The file or row, for messages.

    Returns:
        (H, W) int64.

    Raises:
        BadSample: When it cannot be read, or is no such map.

    Example:
        >>> decode_ids(Image.new("RGB", (2, 1), (1, 1, 0))).tolist()
        [[257, 257]]
    """
    name = sample or name_of(value) or "map of objects"
    content = open_stored(value, name)
    if isinstance(content, Image.Image):
        content = upright(content, name)
        if content.mode in ("RGB", "RGBA"):
            bands = np.asarray(content, np.int64)
            return bands[..., 0] + 256 * bands[..., 1] + 65536 * bands[..., 2]
        outlined = content.mode == "P"
        content = np.asarray(content)
        if outlined and (content == 255).any() and not (content == 254).any() and (content % 255).any():
            content = np.where(content == 255, 0, content)
    if content.ndim == 3 and content.shape[2] == 3:
        bands = content.astype(np.int64)
        return bands[..., 0] + 256 * bands[..., 1] + 65536 * bands[..., 2]
    return class_values(content, name).astype(np.int64)


def read_row(row: Mapping[str, Any], schema: LabelSchema, channels: int = 3, name: str = "") -> Sample:
    """Decode a row of a data set and give its map class ids.

    Args:
        row: With `image` and `semantic_map` as stored, and perhaps `image_id`.
        schema: What the stored values mean.
        channels: Number of channels of the image.
        name: What to call the sample; by default `image_id`, or the file's name without its ending.

    Returns:
        The sample.

    Raises:
        BadSample: When image or map cannot be used, or they do not fit each other.
    """
    image_file, map_file = name_of(row.get("image")), name_of(row.get("semantic_map"))
    name = name or str(row.get("image_id") or os.path.splitext(os.path.basename(image_file))[0] or "row")
    objects = any(column in row for column in ("instances", "segment_map", "class_object_map"))
    for column, what in (("image", "image"), *(() if objects else (("semantic_map", "label map"),))):
        if row.get(column) is None:
            raise BadSample(image_file or name, f"it has no {what}", fix="add it, or remove the row")
    image = decode_image(row["image"], channels, image_file or f"{name} (image)")
    if objects:
        segments = read_segments(row, schema, image.shape[:2], image_file or name)
        return Sample(image, segments.semantic_map(schema.ignore_index, schema.dtype), name, segments)
    stored = decode_map(row["semantic_map"], map_file or f"{name} (label map)", schema.rgb)
    if image.shape[:2] != stored.shape[:2]:
        (height, width), (map_height, map_width) = image.shape[:2], stored.shape[:2]
        turned = (height, width) == (map_width, map_height)
        raise BadSample(
            image_file or name,
            f"the image is {width} x {height} pixels and its label map {map_width} x {map_height}",
            "the same width and height",
            "the image carries a rotation (EXIF) that its map was drawn without: save the image upright"
            if turned
            else "resize the map to the image by nearest neighbour, or remove the pair",
        )
    return Sample(image, schema.apply(stored, map_file or name), name)


def name_of(value: Any) -> str:
    """Find the file behind a stored value.

    Args:
        value: As for `decode_image`.

    Returns:
        Its path, or an empty string.
    """
    if isinstance(value, Mapping):
        value = value.get("path")
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    return getattr(value, "filename", "") or ""


def is_lossy(value: Any) -> bool:
    """Tell whether a stored label map went through lossy compression, so that values are only near what was drawn.

    Args:
        value: As for `decode_image`.

    Returns:
        True for JPEG, and for WebP and JPEG 2000 unless they are of the lossless kind.
    """
    if isinstance(value, Image.Image) and not (value.filename if hasattr(value, "filename") else ""):
        return value.format == "JPEG"
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes):
        file = name_of(value)
        if not file.lower().endswith((".jpg", ".jpeg", ".jp2", ".webp")):
            return False
        try:
            content = Path(file).read_bytes()
        except OSError:
            return False
    if content[:2] == b"\xff\xd8":
        return True
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return b"VP8 " in content
    if content[4:8] == b"jP  " or content[:4] == b"\xff\x4f\xff\x51":
        marker = content.find(b"\xff\x52")  # COD; its last fixed byte names the wavelet: 0 is the irreversible one
        return marker < 0 or content[marker + 13 : marker + 14] == b"\0"
    return False


class Look(NamedTuple):
    """What an image is, as far as its header tells.

    Args:
        height: In pixels, upright.
        width: In pixels, upright.
        bands: Number of channels.
        kind: Such as "RGB", "palette", "16-bit grey", "7 bands, uint16".
    """

    height: int
    width: int
    bands: int
    kind: str


def look_at(value: Any) -> Look:
    """Tell size, channels and kind of an image, without reading its pixels where the format allows.

    Args:
        value: As for `decode_image`.

    Returns:
        What it is.

    Raises:
        BadSample: When it cannot be opened.
    """
    name = name_of(value) or "image"
    content = open_stored(value, name, lazily=True)
    if not isinstance(content, Image.Image):
        height, width, bands = bands_last(content, name).shape
        return Look(height, width, bands, f"{bands} band{'s' * (bands > 1)}, {content.dtype}")
    kinds = {"1": "1-bit", "L": "grey", "P": "palette", "I;16": "16-bit grey", "I": "16-bit grey", "LA": "grey, alpha"}
    size = content.size[::-1] if content.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else content.size
    bands = 3 if content.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else len(content.getbands())
    return Look(size[1], size[0], bands, kinds.get(content.mode, content.mode))


def needs_path_column(paths: Sequence[str | Path]) -> bool:
    """Tell whether files have to stay paths, because `datasets.Image` cannot read them.

    Args:
        paths: Files of one column.

    Returns:
        True where any is .npy, or a TIFF of more than four bands, several pages or more than 8 bits.
    """
    suffixes = {os.path.splitext(path)[1].lower() for path in paths}
    if ".npy" in suffixes:
        return True
    tiff = next((str(path) for path in paths if str(path).lower().endswith((".tif", ".tiff"))), None)
    try:
        return tiff is not None and not isinstance(open_stored(tiff, tiff), Image.Image)
    except BadSample:  # it will say so when it is read
        return False

"""Opening whatever an image or a map is stored as: files, bytes, arrays, columns of `datasets`."""

from __future__ import annotations

import importlib.util
import io
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hfseg.errors import BadSample

ORIENTATION = 0x0112  # EXIF tag


def open_stored(value: Any, name: str, lazily: bool = False) -> Image.Image | np.ndarray:
    """Opens whatever was given.

    Args:
        value: As for `decode_image`.
        name: The file or row, for messages.
        lazily: Whether to leave the pixels of a PIL image unread.

    Returns:
        A PIL image, or an array where that is no picture of 8 bits.

    Raises:
        BadSample: When it cannot be read.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise BadSample(name, "nothing is stored here", "an image file, its bytes or an array")
    if isinstance(value, (list, tuple)):  # Array2D columns come as lists
        value = np.asarray(value)
    elif hasattr(value, "read"):
        value = value.read()
    elif not isinstance(value, Image.Image) and hasattr(value, "__array__"):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise BadSample(name, f"an array of {value.dtype}", "numbers: integers, floats or bool")
        return value
    if not isinstance(value, (Image.Image, bytes, bytearray, str, os.PathLike)):
        raise BadSample(name, f"an image of type {type(value).__name__}",
                        "a path, the bytes of a file, an open file, a PIL image, an array or a tensor")
    try:
        if isinstance(value, Image.Image):
            if not lazily:
                value.load()
            return value
        if isinstance(value, (bytes, bytearray)):
            value = bytes(value)
            source, size, kind = io.BytesIO(value), len(value), value[:6]
        else:
            source, size, kind = os.fspath(value), os.path.getsize(value), b""
        if size == 0:
            raise BadSample(name, "the file is empty (0 bytes)", fix="restore the file, or remove the pair")
        if kind == b"\x93NUMPY" or (not kind and str(source).lower().endswith(".npy")):
            return open_stored(np.load(source, allow_pickle=False, mmap_mode=None if kind else "r"), name)
        if kind[:4] in (b"II*\0", b"MM\0*", b"II+\0") or (not kind and str(source).lower().endswith((".tif", ".tiff"))):
            return _load_tiff(source)
        image = Image.open(source)
        if not lazily:
            image.load()
        return image
    except BadSample:
        raise
    except FileNotFoundError as error:
        raise BadSample(name, "the file does not exist", fix="restore the file, or remove the row") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BadSample(
            name, "the image is too large to be opened safely", f"up to {most} million pixels", "cut it into tiles"
        ) from error
    except UnidentifiedImageError as error:
        raise BadSample(name, "not an image file", "JPEG, PNG, TIFF, npy...", "save it again, or remove it") from error
    except Exception as error:  # PIL, numpy and tifffile raise whatever a broken file leads them to
        reason = re.sub(r"\s+", " ", str(error))[:120]
        raise BadSample(
            name, f"the file is broken or truncated ({reason})", fix="restore the file, or remove the pair"
        ) from error


def _load_tiff(source: str | io.BytesIO) -> Image.Image | np.ndarray:
    """Read a TIFF by PIL where that is exact (8 or 1 bit, up to four channels), else by tifffile."""
    import tifffile

    with tifffile.TiffFile(source) as tiff:
        page, series = tiff.pages[0], tiff.series[0]
        unknown_band = page.samplesperpixel == 4 and tuple(page.extrasamples) == (0,)  # such as infrared: not alpha
        odd = len(series.pages) > 1 or page.bitspersample not in (1, 8) or page.samplesperpixel > 4 or unknown_band
        known = not page.compression.value > 1 or importlib.util.find_spec("imagecodecs")
        grey = page.samplesperpixel == 1 and len(series.pages) == 1
        if odd and (known or not grey):  # PIL decompresses one grey page of any depth
            array, axes = _tiff_array(series), series.axes
            if page.photometric.name == "MINISWHITE" and array.dtype.kind == "u":
                array = np.iinfo(array.dtype).max - array
            if "Q" in axes and array.ndim == 3:  # an array whose axes the writer did not name
                return array
            rows, columns = axes.index("Y"), axes.index("X")
            array = np.moveaxis(array, (rows, columns), (0, 1))
            return array.reshape(*array.shape[:2], -1)
    if isinstance(source, io.BytesIO):
        source.seek(0)
    image = Image.open(source)
    image.load()
    if odd and page.photometric.name == "MINISWHITE":
        array = np.asarray(image)
        return np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else array
    return image


def _tiff_array(series) -> np.ndarray:
    try:
        return series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise BadSample("a TIFF", f"its compression needs another package ({error})", "TIFF without compression",
                        "pip install imagecodecs") from error


def upright(image: Image.Image, name: str) -> Image.Image:
    """Applies the EXIF rotation, which for most files is none.

    Args:
        image: As it was opened.
        name: The file or row, for messages.

    Returns:
        The image, upright.

    Raises:
        BadSample: When the file is broken.
    """
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
    except Exception as error:
        raise BadSample(name, f"the file is broken or truncated ({error})", fix="restore the file") from error

"""Axes, channels and bits: from what was stored to numbers that a network takes, and to class values."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hfseg.errors import BadSample


def to_photo(image: Image.Image, channels: int, name: str) -> np.ndarray:
    """Converts a PIL image of 8 bits or less to 1 to 4 channels.

    Args:
        image: Upright.
        channels: How many are wanted.
        name: The file or row, for messages.

    Returns:
        (H, W, channels) uint8.

    Raises:
        BadSample: When its channels cannot become so many.
    """
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        check_bands(np.asarray(image), channels, name)
        return np.asarray(image)
    if channels < 4 and (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode:
        image = image.convert(mode)
    array = np.array(image)  # a copy: what PIL lends is read-only
    return array if array.ndim == 3 else array[..., None]


def bands_last(array: np.ndarray, name: str) -> np.ndarray:
    """Brings an image to (H, W, C): the channels are the last axis if it is as long as a picture's, else the shorter
    of first and last.

    Args:
        array: (H, W), (H, W, C) or (C, H, W).
        name: The file or row, for messages.

    Returns:
        (H, W, C).

    Raises:
        BadSample: When it is no image.
    """
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or array.size == 0:
        raise BadSample(name, f"an image of shape {array.shape}", "(height, width) or (height, width, channels)")
    channels_first = array.shape[0] < array.shape[2] and array.shape[2] not in (1, 3, 4)
    return np.moveaxis(array, 0, 2) if channels_first else array


def to_eight_bits(array: np.ndarray) -> np.ndarray:
    """Brings values of any type to 8 bits, as `decode_image` says.

    Args:
        array: (H, W, C).

    Returns:
        (H, W, C) uint8.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    values = finite(array)
    low, high = float(values.min()), float(values.max())
    if array.dtype.kind == "f" and low >= -0.1 and high <= 1.1:  # resizing overshoots
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    else:
        low, high = (float(p) for p in np.percentile(values, (1, 99.9)))
        if high <= low:  # nearly all of it is one value: let the rest be seen
            low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1)
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def finite(array: np.ndarray) -> np.ndarray:
    """Gives 0 to what no sensor measured: NaN, infinity and the huge numbers that stand for no data.

    Args:
        array: Numbers.

    Returns:
        The same as float32.
    """
    values = array.astype(np.float32)
    return np.where(np.abs(values) < 1e30, values, np.float32(0))


def check_bands(array: np.ndarray, channels: int, name: str) -> None:
    """Refuses an image of another number of channels.

    Args:
        array: (H, W) or (H, W, C).
        channels: How many the model takes.
        name: The file or row, for messages.

    Raises:
        BadSample: When they differ.
    """
    bands = array.shape[2] if array.ndim == 3 else 1
    if bands != channels:
        raise BadSample(
            name,
            f"an image of {bands} channels, where the model takes {channels}",
            f"{channels} channels",
            f"a model of {bands} channels (--model.config '{{num_channels: {bands}}}'), or images of {channels}",
        )


def class_values(array: np.ndarray, name: str) -> np.ndarray:
    """Brings a stored label map to class values or colours.

    Args:
        array: As stored.
        name: The file or row, for messages.

    Returns:
        (H, W) integers or (H, W, 3) uint8 colours.

    Raises:
        BadSample: When it is no label map.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    elif array.ndim == 3 and array.shape[0] == 1 and array.shape[2] not in (3, 4):
        array = array[0]
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        array = array[..., :3]
        grey = (array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all()
        return np.ascontiguousarray(array[..., 0] if grey else array)
    if array.ndim != 2:
        raise BadSample(name, f"a label map of shape {array.shape}", "(height, width) class ids, or RGB colours")
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.array_equal(whole, array):
            raise BadSample(name, "a label map of fractions or NaN", "whole numbers", "save class ids as integers")
        return whole.astype(np.int64)
    return np.ascontiguousarray(array)

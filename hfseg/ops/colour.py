"""Colours and sharpness of images, compiled: sums in floats, results rounded to the image's own type.

Images are (C, H, W) and contiguous, uint8, float32 or float64.
"""

from __future__ import annotations

import numpy as np

from hfseg.ops.compiled import compiled

_FAST = {"contract", "reassoc", "nsz"}  # a product and a sum may be one operation, and sums reordered
_BLOCK = 1024  # pixels that are worked on at a time, in the nearest cache


def survey(image: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean, the least and the largest value of each channel.

    Args:
        image: The image.
        where: (H, W) bool, the pixels that count; at least one.

    Returns:
        Three arrays (C,) of float64.

    Example:
        >>> survey(np.array([[[3, 5, 200]]], np.uint8), np.array([[True, True, False]]))
        (array([4.]), array([3.]), array([5.]))
    """
    channels, results = len(image), np.empty((3, len(image)))
    first = image[:, *np.unravel_index(where.argmax(), where.shape)]
    _survey(image.reshape(channels, -1), where.reshape(-1), first, results)
    return tuple(results)


def mix(image: np.ndarray, weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Maps the channels of every pixel linearly.

    Args:
        image: The image.
        weights: (C, C).
        offsets: (C,).

    Returns:
        `weights @ pixel + offsets`; bytes stay between 0 and 255.

    Example:
        >>> mix(np.array([[[100]], [[200]]], np.uint8), np.array([[1, 1], [0.5, 0]]), np.array([0, 9])).ravel()
        array([255,  59], dtype=uint8)
    """
    exact, limits = _exact(image)
    out = np.empty_like(image)
    flat = (len(image), -1)
    _mix(image.reshape(flat), weights.astype(exact), offsets.astype(exact), limits, out.reshape(flat))
    return out


def smooth(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Filters with the same weights down and across; at the border the image is reflected.

    Args:
        image: The image, each side longer than half the weights.
        weights: (2r + 1,).

    Returns:
        The filtered image.

    Example:
        >>> smooth(np.array([[[0, 0, 80], [0, 0, 80]]], np.uint8), np.array([0.25, 0.5, 0.25]))[0]
        array([[ 0, 20, 40],
               [ 0, 20, 40]], dtype=uint8)
    """
    exact, limits = _exact(image)
    out = np.empty_like(image)
    _smooth(image, weights.astype(exact), limits, out)
    return out


def sharpen(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves inner pixels away from the mean of the 3 x 3 around, in which the middle counts five times.

    Args:
        image: The image.
        factor: 1 changes nothing, 0 takes the mean.

    Returns:
        The sharpened image, within the range of its type, or of its values.

    Example:
        >>> sharpen(np.array([[[50, 50, 50], [50, 63, 50], [50, 50, 50]]], np.uint8), 2.0)[0, 1]
        array([50, 71, 50], dtype=uint8)
    """
    exact, limits = _exact(image)
    if image.dtype != np.uint8:
        limits[1:] = image.min(), image.max()
    out = image.copy()
    if min(image.shape[1:]) > 2:
        _sharpen(image, np.array([1, (1 - factor) / 13, factor + 4 * (1 - factor) / 13], exact), limits, out)
    return out


def _exact(image: np.ndarray) -> tuple[type, np.ndarray]:
    """The type to compute in, and what turns it into the image's: an addend, the least and the largest value."""
    exact = np.promote_types(image.dtype, np.float32).type
    return exact, np.array([0.5, 0, 255] if image.dtype == np.uint8 else [0, -np.inf, np.inf], exact)


@compiled(fastmath=_FAST)
def _survey(image, where, start, results):
    count = where.sum()
    for channel in range(len(image)):
        values = image[channel]
        total = 0 * values[0]  # a whole number for bytes
        least = most = start[channel]
        for i in range(len(where)):
            value = values[i]
            total += value if where[i] else 0
            least = value if where[i] & (value < least) else least
            most = value if where[i] & (value > most) else most
        results[0, channel], results[1, channel], results[2, channel] = total / count, least, most


@compiled(fastmath=_FAST)
def _mix(image, weights, offsets, limits, out):
    channels, size = image.shape
    total = np.empty(_BLOCK, weights.dtype)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        for channel in range(channels):
            total[:] = offsets[channel]
            for other in range(channels):
                if weights[channel, other] != 0:
                    _add(image[other, start:stop], weights[channel, other], total)
            _store(total, limits, out[channel, start:stop])


@compiled(fastmath=_FAST)
def _smooth(image, weights, limits, out):
    channels, height, width = image.shape
    taps = len(weights)
    reach = taps // 2
    padded, total = np.empty(width + 2 * reach, weights.dtype), np.empty(width, weights.dtype)
    for channel in range(channels):
        for y in range(height):
            padded[:] = 0
            for k in range(taps):
                row = abs(y + k - reach)
                _add(image[channel, min(row, 2 * (height - 1) - row)], weights[k], padded[reach:])
            for x in range(reach):
                padded[reach - 1 - x], padded[reach + width + x] = padded[reach + 1 + x], padded[reach + width - 2 - x]
            total[:] = 0
            for k in range(taps):
                _add(padded[k : k + width], weights[k], total)
            _store(total, limits, out[channel, y])


@compiled(fastmath=_FAST)
def _sharpen(image, weights, limits, out):
    channels, height, width = image.shape
    rows, total = np.empty(width, weights.dtype), np.empty(width - 2, weights.dtype)
    for channel in range(channels):
        for y in range(1, height - 1):
            rows[:] = 0
            for k in range(3):
                _add(image[channel, y + k - 1], weights[0], rows)
            total[:] = 0
            for k in range(3):
                _add(rows[k : k + width - 2], weights[1], total)
            _add(image[channel, y, 1 : width - 1], weights[2], total)
            _store(total, limits, out[channel, y, 1 : width - 1])


@compiled(fastmath=_FAST)
def _add(values, weight, total):
    for i in range(len(values)):
        total[i] += weight * values[i]


@compiled(fastmath=_FAST)
def _store(values, limits, out):
    addend, low, high = limits
    for i in range(len(out)):
        out[i] = min(max(values[i] + addend, low), high)

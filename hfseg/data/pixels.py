"""What augmentation does to pixels, without a draw: images are contiguous arrays (C, H, W), maps (H, W).

`where` says which pixels show something; colours are measured on these alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hfseg.ops.affine import affine_bilinear, reach
from hfseg.ops.colour import mix, smooth, survey

# Rows: luma, I, Q of the NTSC standard.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


def working_type(dtype: torch.dtype) -> torch.dtype:
    """The type that an image is worked on in."""
    return dtype if dtype in (torch.uint8, torch.float32, torch.float64) else torch.float32


def sample(image: Tensor, places: np.ndarray, where: np.ndarray, out: np.ndarray) -> None:
    """Writes what an image shows under an affine map, bilinearly; antialiased where the map shrinks it.

    Args:
        image: (C, H, W) of any type.
        places: (2, 3), from pixels of `out` to places in the image, see `hfseg.ops.affine`.
        where: (h, w) bool, which pixels to write.
        out: (C, h, w) of the image's working type; written.
    """
    if not where.any():
        return
    pixels, places = _window(image, places, where.shape)
    whole = places.round()
    if np.abs(places - whole).max() > 1e-6 or (np.abs(whole[:, :2]) != np.eye(2)).any():
        affine_bilinear(pixels, places, where, out)
        return
    # Every place is a pixel: a copy, perhaps mirrored.
    steps = whole[[0, 1], [0, 1]].astype(int)
    top, left = (int(-at if step > 0 else at - side + 1)
                 for step, at, side in zip(steps, whole[:, 2], pixels.shape, strict=False))  # fmt: skip
    target = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
    pixels = pixels[:: steps[0], :: steps[1]].transpose(2, 0, 1)
    np.copyto(out[:, *target], pixels, where=bool(where[target].all()) or where[target])


def _window(image: Tensor, places: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image that a result of `size` shows, (H, W, C), reduced where it will shrink; and the places in
    it."""
    window, after, inner = [], [], []
    for (down, across, start), full in zip(places.tolist(), image.shape[1:], strict=True):
        step = math.hypot(down, across)
        margin = 1 if step < 1 - 1e-6 else 0  # bilinear sampling takes from the pixels around
        low, high = reach((down, across, start), size)
        low, high = max(0, low - margin), min(full, high + margin)
        window.append(slice(low, high))
        after.append(max(1, round((high - low) / max(1, step))))
        scale = after[-1] / (high - low)
        inner.append((down * scale, across * scale, (start + 0.5 - low) * scale - 0.5))
    image = image[:, *window].to(working_type(image.dtype))
    if after != list(image.shape[1:]):
        # Channels innermost, copied row by row: v2 would copy an image that lies so byte by byte.
        image = torch.from_numpy(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)
        image = F.resize(image, after, antialias=True)
    return image.permute(1, 2, 0).numpy(), np.array(inner)


def recolour(
    image: np.ndarray, where: np.ndarray, brightness: float, contrast: float, saturation: float, turn: float
) -> np.ndarray:
    """Brightness, contrast and, on three channels, saturation and hue, turned by radians: one linear map of colours.

    Hue is turned in the chroma plane of YIQ, which is linear; HSV's takes ten times as long.
    """
    centre, _, _ = survey(image, where)
    colours = np.eye(len(image))
    if len(image) == 3:
        cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
        colours = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
        centre = _YIQ[:1] @ centre
    return mix(image, brightness * contrast * colours, brightness * (1 - contrast) * centre * np.ones(len(image)))


def autocontrast(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Stretches each channel to the range of bytes, or in floats to that of all channels."""
    _, least, most = survey(image, where)
    low, high = (0, 255) if image.dtype == np.uint8 else (least.min(), most.max())
    stretch = np.divide(high - low, most - least, out=np.ones(len(image)), where=most > least)
    return mix(image, np.diag(stretch), np.where(most > least, low - least * stretch, 0))


def equalize(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Evens out the histogram of each channel as v2 does; floats in 256 steps."""
    if image.dtype != np.uint8:
        _, least, most = survey(image, where)
        low, span = image.dtype.type(least.min()), image.dtype.type(most.max() - least.min())
        if not span > 0:
            return image
        steps = ((image - low) * (255 / span)).round().clip(0, 255).astype(np.uint8)
        return equalize(steps, where) * (span / 255) + low
    out = np.empty_like(image)
    for before, after in zip(image, out, strict=True):
        counts = torch.bincount(torch.from_numpy(before[where]), minlength=256).numpy()
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        table = np.minimum((counts.cumsum() - counts + step // 2) // max(1, step), 255) if step else np.arange(256)
        np.take(table.astype(np.uint8), before, out=after)
    return out


def blur(image: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """v2's Gaussian blur, as one pass down and one across: 14 products a pixel in place of 49."""
    # The span of v2's kernel: its last taps lie at reach * sqrt(1/2) pixels.
    weights = np.exp(-((np.linspace(-reach, reach, 2 * reach + 1) / (math.sqrt(2) * sigma)) ** 2))
    return smooth(image, weights / weights.sum())


def resize_map(semantic_map: Tensor, height: int, width: int) -> Tensor:
    """Nearest by indexing: exact for every id, and about the same pixel centres as the bilinear image.

    v2 resizes masks through float32, and by legacy `nearest`, which lies half a pixel off.
    """
    ids = semantic_map.numpy()
    for axis, size in ((1, width), (0, height)):
        length = ids.shape[axis]
        if size != length:
            ids = ids.take((2 * np.arange(size) + 1) * length // (2 * size), axis)
    return torch.from_numpy(ids)

"""What is done to a training image and its semantic map, jointly, with torchvision.transforms.v2's kernels.

Three rules. The image is resampled bilinearly (antialiased) and the map by nearest, about the same pixel
centres, and nothing is ever invented in a map: its ids come out exact, and what lies outside the image or was
erased is ignored, with the mean in the image. Every draw comes from torch's global generator, so that a
sample is a function of its seed alone. Cheap things come first: the crop is taken before it is resized, and
colours change in one multiplication. Images stay bytes and maps narrow integers; numpy does what torch does slowly
on bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hfseg.data.pixels import blur, in_unit_range, packed, put, recolour, resize_map, rotate, sharpen, workable
from hfseg.errors import UserError, one_of
from hfseg.recipe import AugmentConfig

OFF = {
    "scale": (1.0, 1.0), "max_class_share": 1.0, "rare_class_crop": 0.0, "horizontal_flip": 0.0,
    "vertical_flip": 0.0, "rotation": 0.0, "photometric": 0.0, "blur": 0.0, "sharpen": 0.0,
    "autocontrast": 0.0, "equalize": 0.0, "cutout": 0.0, "copy_paste": 0.0,
}  # fmt: skip

PRESETS = {
    "none": OFF,
    "light": OFF | {"scale": (0.8, 1.25), "horizontal_flip": 0.5},
    "segformer": OFF | {
        "scale": (0.5, 2.0), "max_class_share": 0.75, "horizontal_flip": 0.5, "photometric": 0.5,
    },
    "strong": OFF | {
        "scale": (0.75, 2.0), "max_class_share": 0.75, "rare_class_crop": 0.3, "horizontal_flip": 0.5,
        "rotation": 10.0, "photometric": 0.8, "blur": 0.1, "sharpen": 0.1, "autocontrast": 0.1,
        "equalize": 0.05, "cutout": 0.2, "copy_paste": 0.3,
    },
}  # fmt: skip

OUTSIDE = -1  # stands in the map, while it is worked on, for pixels that have no image
MAX_DRAWS = 10  # of a crop in which no class covers more than max_class_share
_SIGNED = {np.dtype(f"u{size}"): np.dtype(f"i{2 * size}") for size in (1, 2, 4)}  # the next type with room for OUTSIDE
Pair = tuple[Tensor, Tensor]


def resolve(config: AugmentConfig) -> AugmentConfig:
    """Fills the fields that the recipe leaves empty from its preset, and checks them all.

    Args:
        config: The recipe's `augment` section.

    Returns:
        A copy with every field written out; only `crop_size` may still be None.

    Raises:
        UserError: When the preset is unknown or a number is out of its range.

    Example:
        >>> resolve(AugmentConfig(preset="segformer", rotation=5.0)).scale
        (0.5, 2.0)
    """
    preset = PRESETS[one_of(config.preset, PRESETS, "augment.preset")]
    values = {name: value for name, value in vars(config).items() if value is not None}
    config = dataclasses.replace(config, **(preset | values))

    def check(name: str, right: bool, allowed: str) -> None:
        if not right:
            raise UserError(f"augment.{name} is {getattr(config, name)}", allowed)

    low, high = config.scale
    check("scale", 0 < low <= high < math.inf, "two positive factors, the smaller first")
    check("max_class_share", 0 < config.max_class_share <= 1, "a share above 0 and up to 1 (1: no limit)")
    check("rotation", 0 <= config.rotation <= 180, "0 to 180 degrees")
    for name in OFF:
        if name not in ("scale", "max_class_share", "rotation"):
            check(name, 0 <= getattr(config, name) <= 1, "0 to 1")
    size = config.crop_size
    sides = [1] if size is None else [size] if isinstance(size, int) else size
    check("crop_size", min(sides) > 0, "a positive number of pixels, or (height, width)")
    return config


def rare_classes(frequencies: Sequence[float]) -> tuple[int, ...]:
    """Returns the ids of the classes that have some pixels, but less than half of an even share of them.

    Args:
        frequencies: Labelled pixels (or shares) per class.

    Returns:
        Class ids, in order.

    Example:
        >>> rare_classes([900, 90, 10, 0])
        (1, 2)
    """
    even = sum(frequencies) / max(1, len(frequencies))
    return tuple(k for k, count in enumerate(frequencies) if 0 < count < even / 2)


def resize(
    image: Tensor, semantic_map: Tensor | None, image_size: int | Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Resizes an image as transformers' image processors do, and its map by nearest.

    Args:
        image: (C, H, W), uint8 or float (other types become float32).
        semantic_map: (H, W), any integer type, or None.
        image_size: The shortest side in pixels (the other follows in proportion), or (height, width).

    Returns:
        The image, bilinear with antialias, and the map, both at the new size.

    Example:
        >>> image, semantic_map = resize(torch.zeros(3, 360, 480), torch.zeros(360, 480).long(), 180)
        >>> image.shape, semantic_map.shape
        (torch.Size([3, 180, 240]), torch.Size([180, 240]))
    """
    image = F.resize(
        workable(image), [image_size] if isinstance(image_size, int) else list(image_size), antialias=True
    )
    return image, None if semantic_map is None else resize_map(semantic_map, *image.shape[-2:])


class Augmentation:
    """Augments an image and its semantic map jointly, as a recipe declares.

    Every draw comes from torch's global generator, which the caller seeds; no call remembers another.

    Args:
        config: The recipe's `augment` section; empty fields come from its preset.
        size: (height, width) of the result; None keeps each image's own.
        ignore_index: The label of pixels that count for nothing.
        mean: Value per channel, in the image's own units (0 to 255 for uint8), where there is no image.
        rare_classes: Class ids that `rare_class_crop` looks for and `copy_paste` pastes; without them both do
            nothing.

    Example:
        >>> config = AugmentConfig("light")
        >>> augment = Augmentation(config, size=(64, 64), ignore_index=255, mean=(124, 116, 104))
        >>> image, semantic_map = augment(torch.zeros(3, 90, 120), torch.zeros(90, 120, dtype=torch.uint8))
        >>> image.shape, semantic_map.dtype
        (torch.Size([3, 64, 64]), torch.uint8)
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        size: tuple[int, int] | None,
        ignore_index: int,
        mean: Sequence[float],
        rare_classes: Sequence[int] = (),
    ):
        self.config = resolve(config)
        self.size = size
        self.ignore_index = ignore_index
        self.mean = [float(value) for value in mean]
        self.rare_classes = list(rare_classes)

    def __call__(
        self, image: Tensor, semantic_map: Tensor, other: Pair | Callable[[], Pair] | None = None
    ) -> Pair:
        """Augments one sample.

        Args:
            image: (C, H, W), any number of channels; uint8, or float in any units (others become float32).
            semantic_map: Class ids, 0 or more, (H, W), any integer type.
            other: Another sample of the same kind to paste from, or a function that reads one when needed.

        Returns:
            The image and the map, at `size`; the map keeps its type.
        """
        config, stored = self.config, semantic_map.numpy().dtype
        size = self.size or tuple(image.shape[-2:])
        image, semantic_map = self._place(image, semantic_map, size, rare=_chance(config.rare_class_crop))
        if _chance(config.copy_paste) and other is not None and self.rare_classes:
            other_image, other_map = self._place(*(other() if callable(other) else other), size, rare=True)
            ids, other_ids = semantic_map.numpy(), other_map.numpy()
            pasted = np.logical_or.reduce([other_ids == k for k in self.rare_classes]) & (ids != OUTSIDE)
            image, semantic_map = put(image, other_image, pasted), put(semantic_map, other_map, pasted)
        image = self._recolour(image)
        if _chance(config.cutout):
            semantic_map = _erase(semantic_map)
        ids = semantic_map.numpy()
        outside = ids == OUTSIDE
        ids = ids.astype(stored)
        if outside.any():
            image = put(image, self._fill(image), outside)
            ids[outside] = self.ignore_index
        return image.contiguous(), torch.from_numpy(ids)

    def _place(self, image: Tensor, semantic_map: Tensor, size: tuple[int, int], rare: bool) -> Pair:
        """Scales, crops, rotates and flips; the map gets a signed type, for OUTSIDE beyond the image."""
        config = self.config
        image = workable(image)
        scale, angle = _uniform(*config.scale), _uniform(-config.rotation, config.rotation)
        # More is cut out before a rotation, so that the corners show the image where there is one.
        cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
        turned = [max(a, math.ceil(a * cos + b * sin - 1e-6)) for a, b in (size, size[::-1])]
        window = [max(1, round(side / scale)) for side in size]
        larger = [max(1, round(side / scale)) for side in turned]
        corner = self._corner(semantic_map, window, rare)
        corner = [c - (b - a) // 2 for c, a, b in zip(corner, window, larger, strict=True)]
        image, semantic_map = self._cut(image, semantic_map, corner, larger, turned)
        if angle:
            image, semantic_map = rotate(image, semantic_map, angle, size)
        for probability, axis in ((config.horizontal_flip, -1), (config.vertical_flip, -2)):
            if _chance(probability):
                image, semantic_map = image.flip(axis), semantic_map.flip(axis)
        return image, semantic_map

    def _corner(self, semantic_map: Tensor, window: list[int], rare: bool) -> list[int]:
        """Draws the top left corner of the crop, the best of up to MAX_DRAWS; negative in a smaller image."""
        limit, ids = self.config.max_class_share, semantic_map.numpy()
        room = [side - size for side, size in zip(ids.shape, window, strict=True)]
        rare_here = [k for k in self.rare_classes if (ids == k).any()] if rare else []
        best, best_share = [0, 0], math.inf
        for _ in range(MAX_DRAWS):
            if rare_here:
                place = int(_pick(np.flatnonzero(ids == _pick(rare_here))))
                spread = (round(_uniform(0.25, 0.75) * size) for size in window)
                corner = [at - back for at, back in zip(divmod(place, ids.shape[1]), spread, strict=True)]
                corner = [min(max(at, min(0, r)), max(0, r)) for at, r in zip(corner, room, strict=True)]
            else:
                corner = [_integer(min(0, r), max(0, r)) for r in room]
            if limit >= 1 or max(room) <= 0:  # no limit, or the whole image whatever the draw
                return corner
            top, left = (max(0, c) for c in corner)
            bottom, right = (c + size for c, size in zip(corner, window, strict=True))
            share = self._largest_share(ids[top:bottom, left:right])
            if share < best_share:
                best, best_share = corner, share
            if share <= limit:
                break
        return best

    def _largest_share(self, ids: np.ndarray) -> float:
        """Returns the share of the largest class among the labelled pixels; 1 where there are none."""
        ids = ids if ids.dtype == np.uint8 else ids.astype(np.int64)
        counts = torch.bincount(torch.from_numpy(ids.flatten()))
        counts[self.ignore_index : self.ignore_index + 1] = 0
        total = int(counts.sum())
        return int(counts.max()) / total if total else 1.0

    def _cut(
        self, image: Tensor, semantic_map: Tensor, corner: list[int], window: list[int], size: list[int]
    ) -> Pair:
        """Cuts the window out, resizes it to `size`, and pads where it reaches beyond the image."""
        inside, target = [], []
        for start, length, full, side in zip(corner, window, semantic_map.shape, size, strict=True):
            first, last = max(0, start), min(full, start + length)
            begin, end = (round((at - start) * side / length) for at in (first, last))
            begin = min(begin, side - 1)
            inside.append(slice(first, last))
            target.append((begin, max(end, begin + 1)))
        (top, bottom), (left, right) = target
        image = F.resize(packed(image[:, *inside]), [bottom - top, right - left], antialias=True)
        ids = resize_map(semantic_map[*inside], bottom - top, right - left).numpy()
        ids = ids.astype(_SIGNED.get(ids.dtype, ids.dtype))
        if [bottom - top, right - left] == size:
            return image.contiguous(), torch.from_numpy(ids)
        padded = torch.empty(len(image), *size, dtype=image.dtype)
        for channel, value in zip(padded, self._fill(image).flatten().tolist(), strict=True):
            channel.fill_(value)
        padded.numpy()[:, top:bottom, left:right] = image.numpy()
        padded_ids = np.full(size, OUTSIDE, ids.dtype)
        padded_ids[top:bottom, left:right] = ids
        return padded, torch.from_numpy(padded_ids)

    def _recolour(self, image: Tensor) -> Tensor:
        config = self.config
        if config.photometric > 0:
            strength = config.photometric
            brightness, contrast, saturation = (1 + strength * _uniform(-0.5, 0.5) for _ in range(3))
            image = recolour(image, brightness, contrast, saturation, turn=strength * _uniform(-0.3, 0.3))
        if _chance(config.autocontrast):
            image = in_unit_range(image, F.autocontrast)
        if _chance(config.equalize):
            image = in_unit_range(image, F.equalize)
        if _chance(config.blur):
            sigma = _uniform(0.3, 1.5)
            reach = math.ceil(2 * sigma)
            if reach < min(image.shape[-2:]):  # else there is nothing to reflect at the border
                image = blur(image, sigma, reach)
        if _chance(config.sharpen):
            image = sharpen(image, _uniform(1.5, 3.0))
        return image

    def _fill(self, image: Tensor) -> Tensor:
        """The mean as (C, 1, 1), of the image's type."""
        mean = torch.tensor(self.mean, dtype=torch.float64)
        mean = mean if image.is_floating_point() else mean.round()
        return mean.to(image.dtype).expand(image.shape[0])[:, None, None]


def _erase(semantic_map: Tensor) -> Tensor:
    """Marks a rectangle of 2 to 15 % of the area as OUTSIDE."""
    shape = semantic_map.shape
    side, aspect = math.sqrt(_uniform(0.02, 0.15)), 2 ** _uniform(-0.5, 0.5)
    sizes = [max(1, round(length * side * x)) for length, x in zip(shape, (aspect, 1 / aspect), strict=True)]
    top, left = (_integer(0, length - size) for length, size in zip(shape, sizes, strict=True))
    semantic_map = semantic_map.clone()
    semantic_map[top : top + sizes[0], left : left + sizes[1]] = OUTSIDE
    return semantic_map


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _chance(probability: float) -> bool:
    return _uniform(0, 1) < probability


def _pick(rows: Sequence) -> Any:
    return rows[_integer(0, len(rows) - 1)]

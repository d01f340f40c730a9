"""What is done to a training image and its semantic map, jointly.

Three rules. The image is sampled bilinearly (antialiased) and the map by nearest, at the same places, and nothing is
ever invented in a map: its ids come out exact, and what lies outside the image or was erased is ignored, with the mean
in the image. One number from torch's global generator seeds every draw: a sample is a function of its seed alone.
Scaling, cropping, turning and flipping are one affine map, so that each pixel is computed once and none for nothing;
colours change in one multiplication. Images stay bytes and maps narrow integers.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hfseg.data.pixels import autocontrast, blur, equalize, recolour, resize_map, sample, working_type
from hfseg.data.segments import Segments
from hfseg.errors import UserError, one_of
from hfseg.ops.affine import affine_nearest
from hfseg.ops.colour import sharpen
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
    size = [image_size] if isinstance(image_size, int) else list(image_size)
    image = F.resize(image.to(working_type(image.dtype)), size, antialias=True)
    return image, None if semantic_map is None else resize_map(semantic_map, *image.shape[-2:])


class Augmentation:
    """Augments an image and its semantic map jointly, as a recipe declares.

    A number from torch's global generator, which the caller seeds, seeds every draw; no call remembers another.

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
        self.mean = np.array(mean, np.float64)
        self.rare_classes = list(rare_classes)

    def __call__(
        self, image: Tensor, semantic_map: Tensor, other: Pair | Callable[[], Pair] | None = None,
        segments: Segments | None = None,
    ) -> Pair | tuple[Tensor, Tensor, Segments]:  # fmt: skip
        """Augments one sample.

        Args:
            image: (C, H, W), any number of channels; uint8, or float in any units (others become float32).
            semantic_map: Class ids, 0 or more, (H, W), any integer type.
            other: Another sample of the same kind to paste from, or a function that reads one when needed.
            segments: The objects of the image. What one loses to the border, to a pasted object or to an erased
                rectangle is gone; it may be left without a pixel. Boxes are those of the masks that come out.

        Returns:
            The image and the map, at `size`; the map keeps its type. With `segments` these, too.
        """
        config, stored = self.config, semantic_map.numpy().dtype
        size = self.size or tuple(image.shape[-2:])
        draw = random.Random(int(torch.randint(2**62, ())))  # a draw of torch's takes ten times as long
        ids, places = self._place(draw, semantic_map, size, rare=draw.random() < config.rare_class_crop)
        if segments is not None:
            segments = segments.transformed(lambda layer: _moved(layer, places, size))
        shown = ids != OUTSIDE
        layers = [(image, places, shown)]
        if draw.random() < config.copy_paste and other is not None and self.rare_classes:
            other_image, other_map, *objects = other() if callable(other) else other
            other_ids, other_places = self._place(draw, other_map, size, rare=True)
            pasted = np.logical_or.reduce([other_ids == k for k in self.rare_classes]) & shown
            np.copyto(ids, other_ids, where=pasted)
            if segments is not None and objects and objects[0] is not None:
                moved = objects[0].transformed(lambda layer: _moved(layer, other_places, size))
                segments = segments.with_others(moved, np.flatnonzero(np.isin(moved.labels, self.rare_classes)), pasted)
            layers = [(image, places, shown & ~pasted), (other_image, other_places, pasted)]
        fill = self._fill(image)
        pixels = np.empty((len(fill), *size), fill.dtype)
        pixels[:] = fill
        for layer in layers:
            sample(*layer, out=pixels)
        coloured = self._recolour(draw, pixels, shown) if shown.any() else pixels
        erased = draw.random() < config.cutout
        if erased:
            _erase(draw, ids)
        outside = ids == OUTSIDE
        ids = ids.astype(stored)
        ids[outside] = self.ignore_index
        if erased or coloured is not pixels:
            np.copyto(coloured, fill, where=outside)
        if segments is None:
            return torch.from_numpy(coloured), torch.from_numpy(ids)
        if erased:
            segments = segments.transformed(lambda layer: np.where(outside, 0, layer).astype(layer.dtype))
        return torch.from_numpy(coloured), torch.from_numpy(ids), segments

    def _place(
        self, draw: random.Random, semantic_map: Tensor, size: tuple[int, int], rare: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws scale, crop, angle and flips. Returns the map of `size`, of a signed type with OUTSIDE beyond the
        image, and for `sample` the places of its pixels in the image."""
        config, ids = self.config, semantic_map.numpy()
        scale, angle = draw.uniform(*config.scale), math.radians(draw.uniform(-config.rotation, config.rotation))
        window = [max(1, round(side / scale)) for side in size]
        corner = self._corner(draw, ids, window, rare)
        flips = [-1 if draw.random() < p else 1 for p in (config.vertical_flip, config.horizontal_flip)]
        step, start = np.empty(2), np.empty(2)  # place in the image = step * (pixel of the upright crop + 1/2) + start
        for axis, (full, side, length, at) in enumerate(zip(ids.shape, size, window, corner, strict=True)):
            if length <= full:
                step[axis], start[axis] = length / side, at - 0.5
            else:  # all of the image lies in the crop, on whole pixels of it
                within = max(1, round(full * side / length))
                step[axis] = full / within
                start[axis] = -min(round(-at * side / length), side - within) * step[axis] - 0.5
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]]) * flips  # against the clock, about the middle
        middle = (np.array(size) - 1) / 2
        places = np.column_stack([turn, middle + 0.5 - turn @ middle]) * step[:, None]
        places[:, 2] += start
        out = np.empty(size, _SIGNED.get(ids.dtype, ids.dtype))
        return affine_nearest(ids, places, OUTSIDE, out), places

    def _corner(self, draw: random.Random, ids: np.ndarray, window: list[int], rare: bool) -> list[int]:
        """Draws the top left corner of the crop, the best of up to MAX_DRAWS; negative in a smaller image."""
        limit = self.config.max_class_share
        room = [side - size for side, size in zip(ids.shape, window, strict=True)]
        rare_here = [k for k in self.rare_classes if (ids == k).any()] if rare else []
        best, best_share = [0, 0], math.inf
        for _ in range(MAX_DRAWS):
            if rare_here:
                place = int(draw.choice(np.flatnonzero(ids == draw.choice(rare_here))))
                spread = (round(draw.uniform(0.25, 0.75) * size) for size in window)
                corner = [at - back for at, back in zip(divmod(place, ids.shape[1]), spread, strict=True)]
                corner = [min(max(at, min(0, r)), max(0, r)) for at, r in zip(corner, room, strict=True)]
            else:
                corner = [draw.randint(min(0, r), max(0, r)) for r in room]
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

    def _recolour(self, draw: random.Random, image: np.ndarray, shown: np.ndarray) -> np.ndarray:
        config = self.config
        if config.photometric > 0:
            strength = config.photometric
            brightness, contrast, saturation = (1 + strength * draw.uniform(-0.5, 0.5) for _ in range(3))
            image = recolour(image, shown, brightness, contrast, saturation, turn=strength * draw.uniform(-0.3, 0.3))
        if draw.random() < config.autocontrast:
            image = autocontrast(image, shown)
        if draw.random() < config.equalize:
            image = equalize(image, shown)
        if draw.random() < config.blur:
            sigma = draw.uniform(0.3, 1.5)
            reach = math.ceil(2 * sigma)
            if reach < min(image.shape[-2:]):  # else there is nothing to reflect at the border
                image = blur(image, sigma, reach)
        if draw.random() < config.sharpen:
            image = sharpen(image, draw.uniform(1.5, 3.0))
        return image

    def _fill(self, image: Tensor) -> np.ndarray:
        """The mean as (C, 1, 1), of the type that the image is worked on in."""
        mean = self.mean if image.dtype != torch.uint8 else self.mean.round()
        return torch.from_numpy(mean).to(working_type(image.dtype)).expand(len(image))[:, None, None].numpy()


def _moved(layer: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return affine_nearest(layer, places, 0, np.empty(size, layer.dtype))


def _erase(draw: random.Random, ids: np.ndarray) -> None:
    """Marks a rectangle of 2 to 15 % of the area as OUTSIDE."""
    side, aspect = math.sqrt(draw.uniform(0.02, 0.15)), 2 ** draw.uniform(-0.5, 0.5)
    sizes = [max(1, round(length * side * x)) for length, x in zip(ids.shape, (aspect, 1 / aspect), strict=True)]
    top, left = (draw.randint(0, length - size) for length, size in zip(ids.shape, sizes, strict=True))
    ids[top : top + sizes[0], left : left + sizes[1]] = OUTSIDE

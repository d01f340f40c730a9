"""What is done to a training image and its semantic map, jointly, with torchvision.transforms.v2's kernels.

Three rules. The image is resampled bilinearly (antialiased) and the map by nearest, about the same pixel
centres, and nothing is ever invented in a map: its ids come out exact, and what lies outside the image or was
erased is ignored, with the mean in the image. Every draw comes from torch's global generator, so that a
sample is a function of its seed alone. Cheap things come first: the crop is taken before it is resized, and
colours change in one multiplication.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

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
        _workable(image), [image_size] if isinstance(image_size, int) else list(image_size), antialias=True
    )
    return image, None if semantic_map is None else _resize_map(semantic_map, *image.shape[-2:])


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
        config, dtype = self.config, semantic_map.dtype
        size = self.size or tuple(image.shape[-2:])
        image, semantic_map = self._place(image, semantic_map, size, rare=_chance(config.rare_class_crop))
        if _chance(config.copy_paste) and other is not None and self.rare_classes:
            other_image, other_map = self._place(*(other() if callable(other) else other), size, rare=True)
            rare = torch.stack([other_map == k for k in self.rare_classes]).any(0)
            pasted = rare & (semantic_map != OUTSIDE)
            image = torch.where(pasted, other_image, image)
            semantic_map = torch.where(pasted, other_map, semantic_map)
        image = self._recolour(image)
        if _chance(config.cutout):
            semantic_map = _erase(semantic_map)
        outside = semantic_map == OUTSIDE
        if outside.any():
            image = torch.where(outside, self._fill(image), image)
            semantic_map = semantic_map.masked_fill(outside, self.ignore_index)
        return image.contiguous(), semantic_map.to(dtype).contiguous()

    def _place(self, image: Tensor, semantic_map: Tensor, size: tuple[int, int], rare: bool) -> Pair:
        """Scales, crops, rotates and flips; the map is int64 from here on, and OUTSIDE beyond the image."""
        config = self.config
        image, semantic_map = _workable(image), semantic_map.long()
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
            fill = self._fill(image).flatten().tolist()
            image = F.rotate(image, angle, InterpolationMode.BILINEAR, fill=fill)
            # float64 holds every id exactly; v2's own choice, float32, stops at 2^24.
            semantic_map = F.rotate(semantic_map[None].double(), angle, fill=OUTSIDE)[0].long()
            top, left = ((b - a) // 2 for a, b in zip(size, turned, strict=True))
            image = F.crop(image, top, left, *size)
            semantic_map = F.crop(semantic_map, top, left, *size)
        for probability, axis in ((config.horizontal_flip, -1), (config.vertical_flip, -2)):
            if _chance(probability):
                image, semantic_map = image.flip(axis), semantic_map.flip(axis)
        return image, semantic_map

    def _corner(self, semantic_map: Tensor, window: list[int], rare: bool) -> list[int]:
        """Draws the top left corner of the crop, the best of up to MAX_DRAWS; negative in a smaller image."""
        limit = self.config.max_class_share
        room = [side - size for side, size in zip(semantic_map.shape, window, strict=True)]
        rare_here = [k for k in self.rare_classes if (semantic_map == k).any()] if rare else []
        best, best_share = [0, 0], math.inf
        for _ in range(MAX_DRAWS):
            if rare_here:
                places = (semantic_map == _pick(rare_here)).nonzero()
                spread = (round(_uniform(0.25, 0.75) * size) for size in window)
                corner = [at - back for at, back in zip(_pick(places).tolist(), spread, strict=True)]
                corner = [min(max(at, min(0, r)), max(0, r)) for at, r in zip(corner, room, strict=True)]
            else:
                corner = [_integer(min(0, r), max(0, r)) for r in room]
            if limit >= 1 or max(room) <= 0:  # no limit, or the whole image whatever the draw
                return corner
            top, left = (max(0, c) for c in corner)
            bottom, right = (c + size for c, size in zip(corner, window, strict=True))
            share = self._largest_share(semantic_map[top:bottom, left:right])
            if share < best_share:
                best, best_share = corner, share
            if share <= limit:
                break
        return best

    def _largest_share(self, semantic_map: Tensor) -> float:
        """Returns the share of the largest class among the labelled pixels; 1 where there are none."""
        counts = torch.bincount(semantic_map.flatten())
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
        image = F.resize(image[:, *inside], [bottom - top, right - left], antialias=True)
        semantic_map = _resize_map(semantic_map[*inside], bottom - top, right - left)
        if [bottom - top, right - left] == size:
            return image, semantic_map
        padded = self._fill(image).expand(-1, *size).clone()
        padded[:, top:bottom, left:right] = image
        padded_map = torch.full(size, OUTSIDE)
        padded_map[top:bottom, left:right] = semantic_map
        return padded, padded_map

    def _recolour(self, image: Tensor) -> Tensor:
        config = self.config
        if config.photometric > 0:
            image = _photometric(image, config.photometric)
        if _chance(config.autocontrast):
            image = _in_unit_range(image, F.autocontrast)
        if _chance(config.equalize):
            image = _in_unit_range(image, F.equalize)
        if _chance(config.blur):
            sigma = _uniform(0.3, 1.5)
            reach = math.ceil(2 * sigma)
            if reach < min(image.shape[-2:]):  # else there is nothing to reflect at the border
                image = F.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
        if _chance(config.sharpen):
            factor = _uniform(1.5, 3.0)
            image = _in_unit_range(image, lambda channels: F.adjust_sharpness(channels, factor))
        return image

    def _fill(self, image: Tensor) -> Tensor:
        """The mean as (C, 1, 1), of the image's type."""
        mean = torch.tensor(self.mean, dtype=torch.float64)
        mean = mean if image.is_floating_point() else mean.round()
        return mean.to(image.dtype).expand(image.shape[0])[:, None, None]


def _workable(image: Tensor) -> Tensor:
    """The image in a type that v2's kernels know."""
    return image if image.dtype == torch.uint8 or image.is_floating_point() else image.float()


def _photometric(image: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and, on three channels, saturation and hue: one linear map of the colours.

    Hue is turned in the chroma plane of YIQ, which is linear; HSV's takes ten times as long.
    """
    brightness, contrast, saturation = (1 + strength * _uniform(-0.5, 0.5) for _ in range(3))
    turn = strength * _uniform(-0.3, 0.3)  # radians
    channels = image.shape[0]
    values = image.reshape(channels, -1).to(torch.promote_types(image.dtype, torch.float32))
    centre = values.mean(1, keepdim=True)
    if channels == 3:
        # Rows: luma, I, Q of the NTSC standard.
        yiq = values.new_tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
        chroma = values.new_tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        colours = torch.linalg.inv(yiq) @ chroma @ yiq
        centre = (yiq[:1] @ centre).expand(3, 1)
        values = torch.addmm(
            (brightness * (1 - contrast)) * centre, (brightness * contrast) * colours, values
        )
    else:
        values = brightness * (contrast * values + (1 - contrast) * centre)
    if not image.is_floating_point():
        values = values.clamp_(0, 255).round_()
    return values.to(image.dtype).reshape(image.shape)


def _in_unit_range(image: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a kernel channel by channel; v2 wants one or three channels, and floats between 0 and 1."""
    if image.dtype == torch.uint8:
        return operation(image[:, None])[:, 0]
    low, high = image.aminmax()
    if not high > low:
        return image
    return operation((image[:, None] - low) / (high - low))[:, 0] * (high - low) + low


def _erase(semantic_map: Tensor) -> Tensor:
    """Marks a rectangle of 2 to 15 % of the area as OUTSIDE."""
    shape = semantic_map.shape
    side, aspect = math.sqrt(_uniform(0.02, 0.15)), 2 ** _uniform(-0.5, 0.5)
    sizes = [max(1, round(length * side * x)) for length, x in zip(shape, (aspect, 1 / aspect), strict=True)]
    top, left = (_integer(0, length - size) for length, size in zip(shape, sizes, strict=True))
    semantic_map = semantic_map.clone()
    semantic_map[top : top + sizes[0], left : left + sizes[1]] = OUTSIDE
    return semantic_map


def _resize_map(semantic_map: Tensor, height: int, width: int) -> Tensor:
    """Nearest by indexing: exact for every id, and about the same pixel centres as the bilinear image.

    v2 resizes masks through float32, and by legacy `nearest`, which lies half a pixel off.
    """
    for axis, size in enumerate((height, width)):
        length = semantic_map.shape[axis]
        if size != length:
            index = (2 * torch.arange(size) + 1) * length // (2 * size)
            semantic_map = semantic_map.index_select(axis, index)
    return semantic_map


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _chance(probability: float) -> bool:
    return _uniform(0, 1) < probability


def _pick(rows: Sequence) -> Any:
    return rows[_integer(0, len(rows) - 1)]

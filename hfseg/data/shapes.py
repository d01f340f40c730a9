"""The embedded `shapes` data: procedural scenes with exact labels, made without a file or a download.

Two domains share the task and nothing else: `source` is a bright studio of cut paper, `target` a dim
workshop of enamel. Colours and textures are drawn without looking at the class, so only shape tells classes
apart: a classifier of single pixels must fail, and features learnt on `source` help on `target`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hfseg.errors import UserError, one_of

if TYPE_CHECKING:
    import datasets

# Shapes are signed distances in a frame where the object fills about [-1, 1] x [-1, 1]; negative is inside.
# Only the zero line has to be exact (labels); away from it the distance may be approximate (shading).
# `t` holds three uniform draws, so that every object of a class is a little different.


def _fold(x, y, n):
    """Fold the plane into one half sector of an n-fold symmetry: one edge then stands for all of them."""
    sector, radius, angle = math.tau / n, np.hypot(x, y), np.arctan2(y, x)
    angle = np.abs(angle - sector * np.round(angle / sector))
    return radius * np.cos(angle), radius * np.sin(angle)


def _slab(x, y, half_x, half_y):
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _star(x, y, t):
    # One edge: the line from a tip to the notch beside it.
    (fx, fy), notch = _fold(x, y, 5), 0.46 + 0.06 * t[0]
    edge_x, edge_y = notch * math.cos(math.pi / 5) - 1.08, notch * math.sin(math.pi / 5)
    return ((fx - 1.08) * edge_y - fy * edge_x) / math.hypot(edge_x, edge_y)


def _arrow(x, y, t):
    y, wide = np.abs(y), 0.76 + 0.10 * t[0]
    head = np.maximum(-x, ((x - 1.05) * wide + y * 1.05) / math.hypot(wide, 1.05))
    return np.minimum(head, _slab(x + 0.45, y, 0.55, 0.26))


def _heart(x, y, t):
    # Inigo Quilez, "2D distance functions": the heart stands on its tip between y = 0 and y = 1.1.
    x, y = np.abs(x) * 0.58, 0.54 - y * 0.58
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    along = 0.5 * np.maximum(x + y, 0)
    flank = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, flank) / 0.58


def _cable(x, y, t):
    # The distance to y = f(x) to first order, which is close as long as the slope stays below one or so.
    wave, phase = 4 + 3 * t[0], math.tau * t[1]
    swing = (0.5 + 0.4 * t[2]) / wave
    slope = swing * wave * np.cos(wave * x + phase)
    ribbon = np.abs(y - swing * np.sin(wave * x + phase)) / np.sqrt(1 + slope * slope) - 0.036
    return np.maximum(ribbon, np.abs(x) - 1)


SHAPES: dict[str, Callable] = {
    "disk": lambda x, y, t: np.hypot(x, y) - 1,
    "box": lambda x, y, t: _slab(x, y, 0.86, 0.70 + 0.14 * t[0]),
    "triangle": lambda x, y, t: _fold(x, y, 3)[0] - 0.58,
    "ring": lambda x, y, t: np.abs(np.hypot(x, y) - 0.77) - (0.20 + 0.05 * t[0]),
    "star": _star,
    "cable": _cable,
    "hexagon": lambda x, y, t: _fold(x, y, 6)[0] - 0.88,
    "crescent": lambda x, y, t: np.maximum(np.hypot(x, y) - 1, 0.74 + 0.08 * t[0] - np.hypot(x - 0.56, y)),
    "cross": lambda x, y, t: _slab(*_fold(x, y, 4), 1, 0.28 + 0.07 * t[0]),
    "arrow": _arrow,
    "heart": _heart,
}


@dataclass(frozen=True)
class Domain:
    """A set of classes and a look."""

    name: str
    key: int  # the domain's word in the random seed; fixed, so that a new domain changes no old scene
    names: tuple[str, ...]  # class names by label id; 0 is the background
    palette: tuple[tuple[int, int, int], ...]  # RGB of each class, for showing label maps
    things: tuple[bool, ...]  # whether a class has instances
    rare: str  # the class found in one scene of six
    thin: str  # the class about four pixels wide at 128 x 128
    swatches: tuple[str, ...]  # colour schemes in hexadecimal; a scene takes one, whatever its classes
    textures: tuple[str, ...]  # patterns that the background and all classes share
    look: Mapping[str, float]  # strengths of bevel, gloss, shadow, vignette; the most blur and sensor noise


def _rgb(swatches: str) -> tuple[tuple[int, int, int], ...]:
    return tuple(tuple(bytes.fromhex(swatch)) for swatch in swatches.split())


# fmt: off
DOMAINS: dict[str, Domain] = {
    "source": Domain(
        name="source", key=1, rare="star", thin="cable", things=(False, True, True, True, True, True, True),
        names=("background", "disk", "box", "triangle", "ring", "star", "cable"),
        palette=_rgb("262a33 e76f51 2a9d8f e9c46a 5c94d6 f4a2d6 fafaf0"),
        swatches=("f4e9d8 e4572e 17a2a0 ffc914 3a3436 76b041 5b5f97 f7a6b4",
                  "f1f4ea e63946 a8dadc 457b9d 1d3557 ffb703 fb8500 7fb77e",
                  "fbf3d5 606c38 283618 dda15e bc6c25 9b2226 7cc6b0 4a7c94",
                  "fde2e4 6d597a b56576 e88c7d eaac8b 355070 f9e0a2 5fa8a0",
                  "e8eef2 2b4162 385f71 f5f0f6 d7b377 8f754f d1495b 66a182",
                  "f6d8ae 2e4057 083d77 da4167 f4d35e 2a9d8f ebebd3 ee964b"),
        textures=("grain", "stripes", "dots", "plain"),
        look={"bevel": 0.16, "gloss": 0.0, "shadow": 0.45, "vignette": 0.16, "blur": 0.6, "noise": 0.025},
    ),
    "target": Domain(
        name="target", key=2, rare="heart", thin="cable", things=(False, True, True, True, True, True, True),
        names=("background", "hexagon", "crescent", "cross", "arrow", "heart", "cable"),
        palette=_rgb("141826 4cc9f0 ffd166 06d6a0 f72585 c77dff ffffff"),
        swatches=("1d2d50 1f4e5f 4cc9f0 f72585 ffd166 e0e1dd 8a2be2 3fa796",
                  "33124a 6a29b8 a95df5 e0aaff ff9e00 2ec4b6 d7263d 2f6177",
                  "1d3f1d 3f7236 90a955 ecf39e e76f51 f4a261 47709e 98c1d9",
                  "34375a 8d99ae edf2f4 ef233c 3a86ff 06d6a0 ffbe0b 95603f",
                  "4d2024 85251a b84f0c dd9440 f2f3ae 348aa7 65648f 5dd39e"),
        textures=("wood", "checks", "speckle", "brushed"),
        look={"bevel": 0.32, "gloss": 0.45, "shadow": 0.55, "vignette": 0.30, "blur": 0.8, "noise": 0.035},
    ),
}
# fmt: on


@lru_cache(maxsize=512)
def _ramp(length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `length` pixels along `cells` cells: the cell it is in, and how far, eased (0 to 1)."""
    position = np.linspace(0, cells, length)
    cell = np.minimum(position.astype(int), cells - 1)
    return cell, (0.5 - 0.5 * np.cos(math.pi * (position - cell))).astype(np.float32)


def _texture(kind: str, rng, height: int, width: int, unit: float) -> np.ndarray:
    """Draw a pattern (height, width) in about [-1, 1]; at 128 x 128 a `unit` is one pixel."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(7, 12) * unit
    cos, sin = math.tau / period * math.cos(angle), math.tau / period * math.sin(angle)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    u, v = cos * x + sin * y, cos * y - sin * x

    def noise(cell_y: float, cell_x: float) -> np.ndarray:
        rows, columns = max(1, round(height / (cell_y * unit))), max(1, round(width / (cell_x * unit)))
        grid = rng.random((rows + 1, columns + 1), dtype=np.float32) * 2 - 1
        (i, down), (j, across) = _ramp(height, rows), _ramp(width, columns)
        grid = grid[i] + down[:, None] * (grid[i + 1] - grid[i])
        return grid[:, j] + across * (grid[:, j + 1] - grid[:, j])

    patterns = {
        "plain": lambda: noise(24, 24),
        "grain": lambda: 0.6 * noise(12, 12) + 0.6 * noise(2.5, 2.5),
        "stripes": lambda: np.clip(2.5 * np.sin(u), -1, 1),
        "dots": lambda: np.clip(3 * (np.cos(u) + np.cos(v)) - 2.4, -0.4, 1.4),
        "wood": lambda: np.sin(0.7 * u + 5 * noise(26, 26)),
        "checks": lambda: np.clip(5 * np.sin(0.5 * u) * np.sin(0.5 * v), -0.8, 0.8),
        "speckle": lambda: np.clip(5 * noise(3, 3), -2.6, 2.6) * 0.45,
        "brushed": lambda: 1.2 * noise(1.5, 22),
    }
    return patterns[kind]()


@dataclass
class _Item:
    label_id: int
    x: float
    y: float
    radius: float
    angle: float
    t: list[float]
    colour: np.ndarray


def _layout(rng, domain: Domain, height: int, width: int) -> tuple[np.ndarray, list[_Item]]:
    """Choose the background's colour and the objects, back to front."""
    thin, rare = domain.names.index(domain.thin), domain.names.index(domain.rare)
    labels = rng.choice([i for i in range(1, len(domain.names)) if i not in (thin, rare)], rng.integers(3, 8))
    labels[0] = thin if rng.random() < 0.6 else labels[0]
    labels[1] = rare if rng.random() < 1 / 6 else labels[1]
    rng.shuffle(labels)

    colours = np.array(_rgb(domain.swatches[rng.integers(len(domain.swatches))])) / 255
    rng.shuffle(colours)
    others = colours[np.linalg.norm(colours - colours[0], axis=1) > 0.40]

    items: list[_Item] = []
    for order, label_id in enumerate(labels.tolist()):
        radius = min(height, width) * rng.uniform(*((0.40, 0.60) if label_id == thin else (0.115, 0.21)))
        # Objects hide one another in part, hardly ever wholly. Cables lie wherever they like.
        places = rng.uniform(0.13, 0.87, size=(12, 2)) * (width, height)
        gaps = [np.hypot(*(places - (other.x, other.y)).T) / (other.radius + radius)
                for other in items if thin not in (label_id, other.label_id)]  # fmt: skip
        free = np.minimum(np.min(gaps, axis=0), 0.8) if gaps else np.zeros(12)
        x, y = places[np.argmax(free)].tolist()
        colour = np.clip(others[order % len(others)] + rng.uniform(-0.06, 0.06, size=3), 0, 1)
        angle, t = rng.uniform(0, math.tau), rng.random(3).tolist()
        items.append(_Item(label_id, x, y, radius, angle, t, colour))
    return colours[0], items


@dataclass
class Scene:
    """An image and its exact labels.

    Args:
        image: (H, W, 3) uint8, RGB.
        semantic_map: (H, W) uint8, label ids.
        instance_map: (H, W) uint16, 0 where there is no instance, else 1, 2, ...
        panoptic_map: (H, W) uint16, segment ids: a thing keeps its instance id, the background comes after.
        segments_info: Of each: `id`, `label_id`, `isthing`, `area`, `bbox` [x, y, width, height], `iscrowd`.
    """

    image: np.ndarray
    semantic_map: np.ndarray
    instance_map: np.ndarray
    panoptic_map: np.ndarray
    segments_info: list[dict[str, Any]]


def _clad(colour: np.ndarray, domain: Domain, rng, height: int, width: int, unit: float, most: float):
    """Give a colour (3,) a texture: (3, height, width). Light colours get darker marks, dark ones lighter."""
    kind = domain.textures[rng.integers(len(domain.textures))]
    strength = rng.uniform(0.05, most) * (-1 if colour.mean() > 0.5 else 1)
    return colour.astype(np.float32)[:, None, None] + strength * _texture(kind, rng, height, width, unit)


def _paint(canvas, owner, item: _Item, number: int, domain: Domain, sun, rng) -> None:
    """Draw one object on `canvas` (3, H, W), its shadow first, and claim its pixels in `owner` (H, W)."""
    height, width = owner.shape
    unit = min(height, width) / 128
    reach = 1.1 * item.radius + 8 * unit + 1  # the shadow's offset and softness included
    x0, x1 = max(int(item.x - reach), 0), min(int(item.x + reach) + 1, width)
    y0, y1 = max(int(item.y - reach), 0), min(int(item.y + reach) + 1, height)
    x = np.arange(x0, x1, dtype=np.float32) + (0.5 - item.x)
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + (0.5 - item.y)
    cos, sin = math.cos(item.angle) / item.radius, math.sin(item.angle) / item.radius
    shape = SHAPES[domain.names[item.label_id]]

    def distance(x, y):
        return item.radius * shape(cos * x + sin * y, cos * y - sin * x, item.t)

    patch = canvas[:, y0:y1, x0:x1]
    drop = 4.5 * unit * sun
    shade = np.clip(0.5 - distance(x + drop[0], y + drop[1]) / (7 * unit), 0, 1)
    patch *= 1 - domain.look["shadow"] * shade * shade * (3 - 2 * shade)

    depth = distance(x, y)
    slope_y, slope_x = np.gradient(depth)
    facing = slope_x * sun[0] + slope_y * sun[1]
    edge = np.exp(np.minimum(depth, 0) / (2.2 * unit))
    light = 1 + domain.look["bevel"] * facing * edge + 0.1 / item.radius * (sun[0] * x + sun[1] * y)
    body = light * _clad(item.colour, domain, rng, *depth.shape, unit, most=0.22)
    body += 3.2 * domain.look["gloss"] * np.maximum(facing, 0) ** 4 * edge * (1 - edge)
    # The soft edge and the hard label are one line: coverage 0.5 is distance 0.
    patch += np.clip(0.5 - depth, 0, 1) * (body - patch)
    owner[y0:y1, x0:x1][depth < 0] = number


def _develop(canvas, domain: Domain, sun, rng) -> np.ndarray:
    """Photograph a canvas: sunlight, vignette, blur, sensor noise, eight bits; (3, H, W) -> (H, W, 3)."""
    y, x = np.ix_(*(np.linspace(-1, 1, length, dtype=np.float32) for length in canvas.shape[1:]))
    canvas *= 1 + 0.14 * (sun[0] * x + sun[1] * y)
    canvas *= 1 - domain.look["vignette"] / 2 * (x * x + y * y)
    side = rng.uniform(0.2, 1) * domain.look["blur"] / 4
    canvas[:, 1:-1] += side * (canvas[:, :-2] + canvas[:, 2:] - 2 * canvas[:, 1:-1])
    canvas[:, :, 1:-1] += side * (canvas[:, :, :-2] + canvas[:, :, 2:] - 2 * canvas[:, :, 1:-1])
    grain = rng.uniform(0.3, 1) * domain.look["noise"]
    canvas += grain * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.ascontiguousarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def scene(seed: int, index: int, domain: str = "source", size: tuple[int, int] = (128, 128)) -> Scene:
    """Draw one scene; the same arguments give the same scene, in whatever order they are asked for.

    Args:
        seed: Which family of scenes, 0 or more.
        index: Which scene of it, 0 or more. At another size of the same shape it is the same scene.
        domain: "source" or "target".
        size: (height, width) in pixels, each at least 32.

    Returns:
        The image (H, W, 3) uint8 with its semantic, instance and panoptic maps (H, W).

    Raises:
        UserError: When the domain is unknown, the size too small, or the seed or index negative.

    Example:
        >>> one = scene(seed=0, index=3, domain="target", size=(96, 128))
        >>> one.image.shape, one.semantic_map.shape
        ((96, 128, 3), (96, 128))
        >>> sum(segment["area"] for segment in one.segments_info) == 96 * 128
        True
    """
    if len(size) != 2 or min(size) < 32:
        raise UserError(
            f"scenes of size {tuple(size)}", "(height, width), each at least 32", "use more pixels"
        )
    if seed < 0 or index < 0:
        raise UserError(f"seed {seed} and index {index}", "whole numbers from 0", "take away the sign")
    kind, (height, width) = DOMAINS[one_of(domain, DOMAINS, "shapes domain")], size
    rng = np.random.default_rng(np.random.SeedSequence([seed, kind.key, index]))
    backdrop, items = _layout(rng, kind, height, width)

    angle = rng.uniform(0, math.tau)
    sun = np.array([math.cos(angle), math.sin(angle)], dtype=np.float32)  # from the scene towards the light
    canvas = _clad(backdrop, kind, rng, height, width, min(size) / 128, most=0.13)
    owner = np.zeros((height, width), dtype=np.uint16)
    for number, item in enumerate(items, start=1):
        _paint(canvas, owner, item, number, kind, sun, rng)
    return _label(_develop(canvas, kind, sun, rng), owner, [0, *(item.label_id for item in items)], kind)


def _label(image, owner, label_ids: list[int], domain: Domain) -> Scene:
    """Derive every label from one map of who owns which pixel, so that they cannot disagree."""
    areas = np.bincount(owner.ravel(), minlength=len(label_ids)).tolist()
    visible = [number for number in (*range(1, len(label_ids)), 0) if areas[number]]
    renumber = np.zeros(len(label_ids), dtype=np.uint16)
    renumber[visible] = np.arange(1, len(visible) + 1)
    semantic_map, panoptic_map = np.array(label_ids, dtype=np.uint8)[owner], renumber[owner]

    segments_info = []
    for segment_id, number in enumerate(visible, start=1):
        mask, label_id = owner == number, label_ids[number]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
        what = {"id": segment_id, "label_id": label_id, "isthing": domain.things[label_id]}
        segments_info.append({**what, "area": areas[number], "bbox": box, "iscrowd": 0})
    instance_map = np.where(owner, panoptic_map, np.uint16(0))
    return Scene(image, semantic_map, instance_map, panoptic_map, segments_info)


# Each split has a million indices of its own: a longer train split never reaches into validation.
SPLITS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


@lru_cache(maxsize=16)
def _build(domain: str, split: str, count: int, seed: int, size: tuple[int, int]) -> datasets.Dataset:
    import datasets
    from PIL import Image
    from tqdm import tqdm

    def png(array: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="png", compress_level=1)
        return {"bytes": buffer.getvalue(), "path": None}

    rows = []
    for i in tqdm(range(count), desc=f"shapes {domain} {split}", delay=2, leave=False):
        one = scene(seed, SPLITS[split] + i, domain, size)
        files = [png(array) for array in (one.image, one.semantic_map, one.instance_map)]
        rows.append((*files, f"{domain}-{split}-{i:06d}"))
    maps = dict.fromkeys(("image", "semantic_map", "instance_map"), datasets.Image())
    features = datasets.Features({**maps, "image_id": datasets.Value("string")})
    columns = dict(zip(features, map(list, zip(*rows, strict=True)), strict=True))
    return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))


def shapes_dataset(
    domain: str = "source", splits: Mapping[str, int] | None = None, seed: int = 0,
    size: tuple[int, int] = (128, 128), cached: bool = True,
) -> dict[str, datasets.Dataset]:  # fmt: skip
    """Draw the splits of a domain as datasets in memory.

    Args:
        domain: "source" or "target".
        splits: Number of scenes by split, by default 600 for "train" and 100 for "validation". Splits never
            share a scene, and a longer split starts with the scenes of a shorter one.
        seed: Which family of scenes.
        size: (height, width) in pixels.
        cached: Whether this process keeps the result, and gives it again for the same arguments.

    Returns:
        By split, a dataset: `image`, `semantic_map` (8 bit), `instance_map` (16 bit), `image_id`.

    Raises:
        UserError: When the domain or a split is unknown, a count or the size out of range.

    Example:
        >>> data = shapes_dataset("target", splits={"train": 2})
        >>> data["train"][1]["image_id"], data["train"][1]["semantic_map"].size
        ('target-train-000001', (128, 128))
    """
    splits = {"train": 600, "validation": 100} if splits is None else splits
    for split, count in splits.items():
        one_of(split, SPLITS, "shapes split")
        if not 1 <= count <= 1_000_000:
            raise UserError(f"{count} scenes for the {split} split", "1 to 1000000")
    build = _build if cached else _build.__wrapped__
    return {split: build(domain, split, count, seed, tuple(size)) for split, count in splits.items()}

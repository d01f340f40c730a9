"""Looking at some label maps of a data set: which values they hold, and of what kind they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hfseg.data.images import decode_map, is_lossy
from hfseg.errors import BadSample
from hfseg.labels import RGB
from hfseg.remap import Colour, check_colour

MAX_MAPS, MAX_PIXELS = 64, 50_000_000  # what a scan looks at, at most


@dataclass
class Scan:
    """What a sample of the label maps holds.

    Args:
        counts: Pixels by stored value (red << 16 | green << 8 | blue where `rgb`).
        maps: For each map that was read, its place in the sample and its distinct values as a map of one row.
        looked: How many maps were read.
        total: How many there are, None for a stream.
        coloured: How many of them are colour images.
        lossy: Whether any is a JPEG, or another format that changes values.
        by_colour: Whether palette images were read by their colours.
        palettes_differ: Whether an index of the palette images is not the same colour in each.
        instance_like: Whether each map numbers its objects 1 to n, n differing from map to map.
    """

    counts: Counter = field(default_factory=Counter)
    maps: list[tuple[int, np.ndarray]] = field(default_factory=list)
    looked: int = 0
    total: int | None = None
    coloured: int = 0
    lossy: bool = False
    by_colour: bool = False
    palettes_differ: bool = False
    instance_like: bool = False

    @property
    def rgb(self) -> bool:
        """Whether any map is a colour image; a grey one among them is a colour image, too."""
        return self.coloured > 0 or self.by_colour

    @property
    def _levels(self) -> Counter:
        """Pixels by the largest of their channels."""
        levels: Counter = Counter()
        for value, count in self.counts.items():
            levels[max(value >> 16, value >> 8 & 255, value & 255) if self.rgb else value] += count
        return levels

    @property
    def brightest(self) -> int:
        """The largest value of any channel."""
        return max(self._levels, default=0)

    @property
    def two_ended(self) -> bool:
        """Whether nearly all pixels are dark or bright: what is left of a map of two values after lossy compression."""
        levels = self._levels
        ends = sum(count for value, count in levels.items() if value < 64 or value > 191)
        return self.brightest >= 240 and ends >= 0.95 * levels.total()

    def __str__(self) -> str:
        of = "" if self.total is None or self.total == self.looked else f" of {self.total}"
        return f"the {self.looked}{of} maps looked at" if self.looked != 1 else f"the one map{of} looked at"


class _Seen(NamedTuple):
    """One map: its distinct values with their counts, and for a palette image the colour of each."""

    place: int
    rgb: bool
    values: np.ndarray
    counts: np.ndarray
    colours: np.ndarray | None


def scan_maps(
    values: Iterable[Any],
    total: int | None = None,
    *,
    limit: int = MAX_MAPS,
    named: bool = False,
    palette: Sequence[Sequence[int]] = (),
    by_colour: bool | None = None,
) -> Scan:
    """Count the stored values of some label maps; those that cannot be read are passed over.

    Args:
        values: Maps, as `decode_map` takes them.
        total: How many maps the data has.
        limit: How many to read.
        named: Whether the classes have names, in the order of the stored values.
        palette: The declared colours, in the order of the stored values.
        by_colour: Whether to read palette images by their colours; None to find out.

    Returns:
        The scan.

    Raises:
        UserError: When `palette` holds something that is no colour.
    """
    declared = [check_colour(colour) for colour in palette]
    scan, pixels, seen = Scan(total=total), 0, []
    for place, value in zip(range(limit), values):
        if pixels >= MAX_PIXELS * limit / MAX_MAPS:
            break
        try:
            stored, colours = decode_map(value, with_palette=True)
        except BadSample:
            continue
        pixels += stored.shape[0] * stored.shape[1]
        scan.lossy |= is_lossy(value)
        rgb = stored.ndim == 3
        found, counts = _distinct(stored @ RGB if rgb else stored)
        seen.append(_Seen(place, rgb, found, counts, None if colours is None else colours[found]))
    scan.looked, scan.coloured = len(seen), sum(one.rgb for one in seen)
    first: dict[int, Colour] = {}
    scan.palettes_differ = any(first.setdefault(i, colour) != colour for i, colour in _used(seen))
    scan.by_colour = _colours_count(seen, declared, named, scan) if by_colour is None else by_colour
    tops = []
    for one in seen:
        rgb, found = one.rgb, one.values
        if scan.by_colour and one.colours is not None:
            rgb, found = True, one.colours.astype(np.uint32) @ RGB
        row = np.stack([found >> 16, found >> 8 & 255, found & 255], -1).astype(np.uint8) if rgb else found
        scan.maps.append((one.place, row[None]))
        for value, count in zip(found.tolist(), one.counts.tolist(), strict=True):
            scan.counts[value * 0x010101 if scan.rgb and not rgb else value] += count
        tops.append((int(found.max()), int((found > 0).sum())))
    most = max((top for top, _ in tops), default=0)
    scan.instance_like = most > 20 and len(set(tops)) > 1 and all(top == distinct for top, distinct in tops)
    return scan


def _used(seen: list[_Seen]) -> list[tuple[int, Colour]]:
    """The indices that palette images use, each with its colour."""
    return [
        (int(i), tuple(colour.tolist()))
        for one in seen
        if one.colours is not None
        for i, colour in zip(one.values, one.colours, strict=True)
    ]


def _colours_count(seen: list[_Seen], declared: list[Colour], named: bool, scan: Scan) -> bool:
    """Tell whether palette images carry their classes in the colours, and an index means nothing.

    So it is beside colour images; where they use the declared colours alone, but at other indices; and where the
    same colours come at different indices in different files.
    """
    used = _used(seen)
    if not used or (named and not declared):
        return False
    if scan.coloured:
        return True
    if any(one.colours is None and one.values.any() for one in seen):
        return False  # grey maps hold indices
    if declared:
        known = all(colour in declared for _, colour in used)
        return known and any(declared[i : i + 1] != [colour] for i, colour in used)
    first: dict[Colour, int] = {}
    return scan.palettes_differ and any(first.setdefault(colour, i) != i for i, colour in used)


def _distinct(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count values; for bytes much faster than np.unique, which sorts."""
    if stored.dtype != np.uint8:
        return np.unique(stored, return_counts=True)
    counts = np.bincount(stored.ravel(), minlength=256)
    found = np.flatnonzero(counts)
    return found, counts[found]

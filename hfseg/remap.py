"""From names and choices to the list of stored values, and how values and colours are written for people."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hfseg.errors import UserError

Colour = tuple[int, int, int]

_NO_CLASS = {"unlabelled", "unlabeled", "void", "ignore", "ignored", "unknown", "none", "null"}
UNLABELLED = _NO_CLASS | {"background"}  # what stored 0 may be called where it has no class


class Stored(NamedTuple):
    """A value that label maps may hold.

    Args:
        value: As stored; red << 16 | green << 8 | blue for colours.
        name: What it is called.
        colour: Its (red, green, blue), or None for one that is made up.
        ignored: Whether its pixels have no class.
    """

    value: int
    name: str
    colour: Colour | None
    ignored: bool


def list_indices(
    names: Sequence[str],
    palette: Sequence[Colour],
    values: Sequence[int] | None,
    ignore_index: int | None,
    ignore_name: str | None,
    reduce_labels: bool,
    binary: bool,
) -> list[Stored]:
    """List the stored values of single-channel maps.

    Args:
        names: Names of `values`.
        palette: A colour per name, or empty.
        values: Stored values; None for 0, 1, 2...
        ignore_index: The stored value without a class.
        ignore_name: What it is called.
        reduce_labels: Whether 0 has no class; the names may begin with what it is called.
        binary: Whether 255 is a class like any other.

    Returns:
        All values that have a meaning.

    Raises:
        UserError: When the numbers of names, values and colours do not fit.
    """
    names, colours = list(names), list(palette)
    if reduce_labels and plain(names[0]) not in UNLABELLED:
        names.insert(0, ignore_name or "unlabelled")
        if colours and len(colours) < len(names):  # a palette of the classes alone
            colours.insert(0, (0, 0, 0))
    values = list(range(len(names))) if values is None else [int(value) for value in values]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        shared = ", ".join(name for name, value in zip(names, values) if value == twice)
        raise UserError(f"the stored value {twice} has several names: {shared}", "one name for each value",
                        "keep one of them")
    if len(values) != len(names):
        raise UserError(f"{len(names)} names for {len(values)} stored values", "a name for each")
    if colours and len(colours) < len(names):
        raise UserError(
            f"a palette of {len(colours)} colours for {len(names)} names", "a colour each", "mend data.labels.palette"
        )
    ignored = {ignore_index} | ({0} if reduce_labels else set())
    listed = [
        Stored(value, name, colour, value in ignored or (value in (-1, 255, 65535) and plain(name) in _NO_CLASS))
        for value, name, colour in zip(values, names, colours or [None] * len(names))
    ]
    usual = set() if binary else {255 if len(names) <= 255 else 65535}
    for value in (usual | ignored) - {None, *values}:
        stated = (ignore_name or "unlabelled") if value in ignored else "ignored"  # the usual value, only foreseen
        listed.append(Stored(value, stated, None, True))
    return sorted(listed, key=lambda entry: entry.value)


def list_colours(
    names: Sequence[str], palette: Sequence[Colour], ignore_index: int | None, ignore_name: str | None
) -> list[Stored]:
    """List the stored values of colour maps; colours beyond the names have no class.

    Args:
        names: Names of the first colours.
        palette: Colours.
        ignore_index: Which colour has no class, if it is one of them.
        ignore_name: What it is called.

    Returns:
        All colours that have a meaning.

    Raises:
        UserError: When colours are missing or repeated.
    """
    if len(palette) < len(names):
        raise UserError(
            f"colour maps with a palette of {len(palette)} colours for {len(names)} names",
            "a colour per class",
            "give data.labels.palette, in the order of the names",
        )
    listed = []
    for i, colour in enumerate(palette):
        if colour in palette[:i]:
            raise UserError(f"{hex_colour(colour)} is in the palette twice", "a colour per class", "mend the palette")
        name = ignore_name if i == ignore_index and ignore_name else names[i] if i < len(names) else "ignored"
        red, green, blue = colour
        listed.append(Stored(red << 16 | green << 8 | blue, name, colour, i >= len(names) or i == ignore_index))
    return listed


def make_palette(count: int) -> list[Colour]:
    """Make up colours that neighbours in the list can be told apart by; the same ones every time.

    Args:
        count: How many.

    Returns:
        That many different (red, green, blue), 0 to 255.

    Example:
        >>> make_palette(2)
        [(230, 60, 60), (82, 116, 199)]
    """
    colours: dict[Colour, None] = {}
    i = 0
    while len(colours) < count:  # hue by the golden ratio, saturation and value in turns
        saturation = 0.74 - 0.15 * (i % 3) - 0.1 * (i // 97 % 3)
        value = 0.90 - 0.12 * (i % 4) - 0.06 * (i // 291 % 4)
        red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(i * 0.61803398875 % 1, saturation, value))
        colours[red, green, blue] = None
        i += 1
    return list(colours)


def check_colour(colour: Sequence[int]) -> Colour:
    """Returns a colour as three whole numbers, if it is one.

    Args:
        colour: (red, green, blue).

    Returns:
        The same, as a tuple.

    Raises:
        UserError: When it is no colour.
    """
    try:
        red, green, blue = (int(part) for part in colour)
    except (TypeError, ValueError):
        red = green = blue = -1
    if min(red, green, blue) < 0 or max(red, green, blue) > 255:
        raise UserError(f"{colour} is no colour", "[red, green, blue], each 0 to 255", "mend the palette")
    return red, green, blue


def unique(names: Iterable[str]) -> list[str]:
    """Tell names apart, since label2id and scores by name would lose all but one of the same name.

    Args:
        names: Perhaps with repeats.

    Returns:
        The names, repeats numbered.

    Example:
        >>> unique(["door", "wall", "door"])
        ['door', 'wall', 'door (2)']
    """
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def plain(name: str) -> str:
    """Returns a name without case, and with single spaces for underscores and hyphens.

    Args:
        name: A class name.

    Returns:
        What two spellings of the same name share.

    Example:
        >>> plain("Traffic_Light")
        'traffic light'
    """
    return re.sub(r"[\s_\-]+", " ", name.strip().lower())


def hex_colour(colour: Sequence[int]) -> str:
    """Returns a colour as people write it.

    Args:
        colour: (red, green, blue).

    Returns:
        Such as "#804080".
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


def percent(share: float) -> str:
    """Say a share for people.

    Args:
        share: From 0 to 1.

    Returns:
        Two digits that count.

    Example:
        >>> percent(0.01234), percent(0.999)
        ('1.2 %', '100 %')
    """
    return f"{float(f'{100 * share:.2g}'):g} %"


def show(value: int, rgb: bool) -> str:
    """Returns a stored value as people write it.

    Args:
        value: The value.
        rgb: Whether it stands for a colour.

    Returns:
        A number or a hex colour.
    """
    return hex_colour((value >> 16, value >> 8 & 255, value & 255)) if rgb else str(value)


def show_all(values: Iterable[int], rgb: bool) -> str:
    """Returns many stored values shortly.

    Args:
        values: The values.
        rgb: Whether they stand for colours.

    Returns:
        Spans of numbers, or colours.

    Example:
        >>> show_all([0, 1, 2, 255], rgb=False)
        '0-2, 255'
    """
    values = sorted(values)
    if rgb:
        return ", ".join(show(value, rgb) for value in values[:24]) + (" and more" if len(values) > 24 else "")
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)

"""How an image is shown to the network: whole or in tiles, once or in several views. Words only, no torch."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable

from hfseg.errors import UserError

TILE_STEP = 32  # pixels; what networks halve a side to
FLIPS = {"horizontal_flip": -1, "vertical_flip": -2}  # the axis that is turned round
_SCALES = (0.1, 10.0)


def check_tile(tile: int | None, overlap: float = 0.25, name: str = "tile") -> None:
    """Refuses tiles that cannot be.

    Args:
        tile: Side in pixels; None or 0 for whole images.
        overlap: Share of the side.
        name: Of the setting, for the message.

    Raises:
        UserError: When one of them is out of range.
    """
    whole = isinstance(tile, numbers.Integral) and not isinstance(tile, bool)
    if tile is not None and (not whole or tile < 0 or tile % TILE_STEP):
        near = max(1, round(tile / TILE_STEP)) * TILE_STEP if whole else 512
        raise UserError(f"{name} is {tile!r}", f"a multiple of {TILE_STEP} pixels", f"{near}, say")
    if not isinstance(overlap, numbers.Real) or not 0 <= overlap <= 0.75:
        raise UserError(f"{name}_overlap is {overlap}", "a share from 0 to 0.75")


def read_tta(values: str | float | Iterable[str | float] | None, name: str = "tta") -> tuple[str | float, ...]:
    """Reads what test-time augmentation is made of.

    Args:
        values: `horizontal_flip`, `vertical_flip` and scales, in a sequence or as text with commas. Scale 1 and
            what is there twice count for nothing, since the image as it is always takes part.
        name: Of the setting, for the message.

    Returns:
        Flips by name and scales as floats, flips first.

    Raises:
        UserError: For anything else.

    Example:
        >>> read_tta("0.75, horizontal_flip")
        ('horizontal_flip', 0.75)
    """
    if isinstance(values, str):
        values = [part for part in map(str.strip, values.strip("[] ").split(",")) if part]
    elif not isinstance(values, Iterable):
        values = () if values is None else [values]
    flips, scales = {}, {}
    for value in values:
        try:
            number = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = None
        if isinstance(value, str) and value in FLIPS:
            flips[value] = True
        elif number is None or not _SCALES[0] <= number <= _SCALES[1]:
            allowed = f"{', '.join(FLIPS)}, and scales from {_SCALES[0]} to {_SCALES[1]}"
            raise UserError(f"{name} holds {value!r}", allowed, "such as horizontal_flip,0.75,1.25")
        elif not math.isclose(number, 1):
            scales[number] = True
    return (*flips, *scales)


def views(tta: Iterable[str | float]) -> list[tuple[float, tuple[int, ...]]]:
    """Lists all combinations of a scale with flips.

    Args:
        tta: As `read_tta` gives it.

    Returns:
        Of each its scale and the axes to turn round; the image as it is first, and each scale in one piece.

    Example:
        >>> views(("horizontal_flip", 0.5))
        [(1.0, ()), (1.0, (-1,)), (0.5, ()), (0.5, (-1,))]
    """
    axes = [FLIPS[value] for value in tta if value in FLIPS]
    turned = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    return list(itertools.product((1.0, *(value for value in tta if value not in FLIPS)), turned))

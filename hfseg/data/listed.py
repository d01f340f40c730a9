"""What readers of annotation files share: the classes and rows that they return, and how they find and name things."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from hfseg.data.folders import split_of, walk
from hfseg.data.segments import to_code
from hfseg.errors import UserError

BROKEN = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What Python raises where a file does not follow its format."""


@dataclass
class Category:
    """A class of objects.

    Args:
        id: As it is stored.
        name: What it is called.
        thing: Whether its objects are told apart.
        colour: (red, green, blue), if the data has one.
    """

    id: int
    name: str
    thing: bool = True
    colour: tuple[int, int, int] | None = None


@dataclass
class Listed:
    """What annotation files hold.

    Args:
        splits: By split the rows: `image`, `image_id`, `drawn_on` (height and width that the annotations are for, or
            None), `instances`, and for panoptic data `segment_map`.
        categories: The classes.
        origin: Which format.
        notes: What was left out.
    """

    splits: dict[str, list[dict[str, Any]]]
    categories: list[Category]
    origin: str
    notes: list[str] = field(default_factory=list)


class Folder:
    """The files below a folder, to be found by name.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self.tree = list(walk(str(root)))
        self.broken: dict[str, str] = {}  # JSON files that are none, and why
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for folder, _, names in self.tree:
            for name in names:
                self.by_name[name].append(os.path.join(folder, name))

    def files(self, *endings: str) -> list[str]:
        """Lists the files with one of these endings, in order."""
        return sorted(os.path.join(folder, name) for folder, _, names in self.tree for name in names
                      if name.lower().endswith(endings))

    def json(self, quick: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
        """Yields the JSON files that hold these keys, with their content."""
        for file in self.files(".json"):
            try:
                with open(file, encoding="utf-8-sig") as opened:
                    content = json.load(opened)
            except (OSError, ValueError, RecursionError) as error:
                self.broken[file] = " ".join(str(error).split())[:120]
                continue
            if isinstance(content, dict) and all(key in content for key in quick):
                yield file, content

    def find(self, name: str, near: str, hints: Iterable[str] = ()) -> str | None:
        """Finds a file that an annotation names: in the folders that speak for it, where it usually lies, or where its
        path ends alike. One of another split is none."""
        name = str(name).replace("\\", "/")
        base, root, hints = os.path.dirname(near), str(self.root), list(hints)
        for folder in (*(os.path.join(parent, hint) for hint in hints for parent in (
                base, os.path.dirname(base), root, os.path.join(root, "images"))),
                base, os.path.join(base, "images"), root, os.path.join(root, "images")):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return path
        said = _split_in(os.path.dirname(name))
        known = [path for path in self.by_name.get(os.path.basename(name), [])
                 if not said or _split_in(os.path.relpath(os.path.dirname(path), root)) in (None, said)]
        alike = [_same_end(path, name) for path in known]
        known = [path for path, count in zip(known, alike) if count == max(alike)]
        same = [path for path in known if any(hint in path.split(os.sep) for hint in hints)] or known
        return same[0] if len(same) == 1 else None


def _split_in(folder: str) -> str | None:
    return next((split for part in folder.split(os.sep)[::-1] if (split := split_of(part))), None)


def _same_end(path: str, name: str) -> int:
    """How many parts two paths share, from their ends."""
    pairs = zip(path.split(os.sep)[::-1], name.split("/")[::-1])
    return next((i for i, (one, other) in enumerate(pairs) if one != other), name.count("/") + 1)


@contextmanager
def telling(where: str, allowed: str | None = None) -> Iterator[None]:
    """Says where a file does not follow its format.

    Args:
        where: File, and line or entry.
        allowed: What would have been right.

    Raises:
        UserError: In place of what Python raises.
    """
    try:
        yield
    except BROKEN as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise UserError(f"{where} does not follow its format: {what}", allowed,
                        "mend it there, or export it anew") from error


def whole(value: Any, what: str) -> int:
    """Reads an id.

    Args:
        value: As it stands in a file: an integer, or one written as a float or as text.
        what: What to call it.

    Returns:
        The integer.

    Raises:
        ValueError: For anything else.

    Example:
        >>> whole(3.0, "id"), whole("7", "id")
        (3, 7)
    """
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value or abs(value) >= 2**63:
        raise ValueError(f"{what} is {value!r}, no whole number")
    return int(value)


def stem(name: str) -> str:
    """A file's path without its ending."""
    return os.path.splitext(str(name).replace("\\", "/"))[0]


def split_for(root: Path, file: str) -> str:
    """The split that a file's folders and name speak of; "train" if none."""
    relative = os.path.relpath(file, root)
    parts = [*os.path.dirname(relative).split(os.sep), *os.path.splitext(os.path.basename(file))[0].split("_")]
    named = [split_of(part) for part in parts if part and split_of(part)]
    return named[-1] if named else split_of(root.name) or "train"


def size_of(height: Any, width: Any) -> list[int] | None:
    """[height, width] where a file states both."""
    return [int(height), int(width)] if height and width else None


def an_object(category: int, segmentation: Any, crowd: bool = False, number: int | None = None,
              area: float | None = None) -> dict[str, Any]:
    """Returns an object as rows hold it.

    Args:
        category: Its class as stored.
        segmentation: As COCO has it; None where a map shows it.
        crowd: Whether it is a region of many that nobody told apart.
        number: Its id in a map.
        area: In pixels, as its annotation states it.

    Returns:
        What `read_segments` reads.
    """
    text = None if segmentation is None else json.dumps(segmentation, separators=(",", ":"))
    return {"category_id": category, "iscrowd": crowd, "id": number, "segmentation": text, "area": area}


def joined(parts: list[Any], size: tuple[int, int]) -> Any:
    """Makes one object of its parts.

    Args:
        parts: Of each, rings of polygons or a run-length code.
        size: (H, W) of the image.

    Returns:
        Rings, or a code.
    """
    if all(isinstance(part, list) for part in parts):
        return [ring for part in parts for ring in part]
    if len(parts) == 1:
        return parts[0]
    code = coco.merge([to_code(part, size) for part in parts])
    return {**code, "counts": code["counts"].decode("ascii")}


def ellipse(x: float, y: float, across: float, down: float, degrees: float = 0.0) -> list[float]:
    """Returns the outline of an ellipse.

    Args:
        x: Of its centre, in pixels. So for the others:
        y: Of its centre.
        across: Radius along x, before it is turned.
        down: Radius along y.
        degrees: Clockwise, as y points down.

    Returns:
        A ring of 64 points, or of more for a large one: it is nowhere off by more than a tenth of a pixel.
    """
    count = max(64, math.ceil(math.pi * math.sqrt(5 * max(abs(across), abs(down)))))
    turns = [math.tau * i / count for i in range(count)]
    return turned([value for t in turns for value in (x + across * math.cos(t), y + down * math.sin(t))], x, y, degrees)


def turned(ring: list[float], x: float, y: float, degrees: float) -> list[float]:
    """Turns a ring about a point, clockwise as y points down."""
    if not degrees:
        return ring
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [value for a, b in zip(ring[::2], ring[1::2]) for value in (
        x + (a - x) * cos - (b - y) * sin, y + (a - x) * sin + (b - y) * cos)]


def counted(left_out: Counter, what: str = "") -> list[str]:
    """Notes on what was left out, by kind."""
    return [f"{count} {kind}{what}: left out" for kind, count in sorted(left_out.items())]


def report(missing: list[str], file: str, skip: bool, notes: list[str]) -> None:
    """Refuses files that are named and not there, or notes them.

    Args:
        missing: Their names.
        file: What names them.
        skip: Whether to go on without them.
        notes: Where to note them.

    Raises:
        UserError: Without `skip`.
    """
    if not missing:
        return
    some = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    if not skip:
        raise UserError(f"{file} names files that are not there: {some}", "every file that it names, below the folder",
                        "add them, or --data.on_bad_sample skip leaves them out")
    notes.append(f"{os.path.basename(file)}: {len(missing)} files are missing, left out: {some}")


def once(entries: Iterable[Mapping], key: str, file: str, what: str) -> dict[Any, Mapping]:
    """Entries by their id, which is to be each one's own.

    Args:
        entries: Of a list of the file.
        key: Where their id is.
        file: For messages.
        what: They are.

    Returns:
        Entry by id.

    Raises:
        UserError: When two have one id.
    """
    found: dict[Any, Mapping] = {}
    for number, entry in enumerate(entries):
        with telling(f"{file}, {what} {number}"):
            if entry[key] in found:
                raise UserError(f"{file}: two {what}s have the id {entry[key]!r}", "an id of its own for each",
                                "number them anew, and what refers to them")
            found[entry[key]] = entry
    return found

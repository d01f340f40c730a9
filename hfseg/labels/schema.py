"""The classes of a data set, and what the values in its files mean."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfseg.errors import UserError, one_of
from hfseg.labels.lookup import Lookup
from hfseg.remap import (
    Colour,
    check_colour,
    hex_colour,
    list_colours,
    list_indices,
    make_palette,
    plain,
    show,
    unique,
)


@dataclass(frozen=True)
class LabelSchema:
    """The classes of a data set and the remap from the values in its files to class ids.

    Usually made by `from_names`, or found by `hfseg.load_data`.

    Args:
        names: Name of each class id.
        palette: (red, green, blue) of each class id, 0 to 255.
        stored: Pairs of a stored value and its class id, or None where the pixel is ignored.
        stored_names: What each pair's stored value is called; parallel to `stored`.
        rgb: Whether stored maps are colour images; a stored value is then red << 16 | green << 8 | blue, or for a
            `threshold` the largest of the three.
        threshold: For binary maps: a value that `stored` does not name counts as this one if it is at least as
            large, else as 0. None: such a value is refused.
        origin: How the schema was found, for people.
        things: The classes whose objects are told apart, by name; None where nobody said. The others are stuff.

    Example:
        >>> schema = LabelSchema.from_names(["road", "car", "void"], ignore_index=2)
        >>> schema.apply(np.array([[0, 1, 2]], dtype=np.uint8)).tolist()
        [[0, 1, 255]]
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    stored: tuple[tuple[int, int | None], ...]
    stored_names: tuple[str, ...]
    rgb: bool = False
    threshold: int | None = None
    origin: str = "given"
    things: tuple[str, ...] | None = None

    # -- what models ask --------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Class name by class id, as transformers wants it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Class id by class name."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def ignore_index(self) -> int:
        """The id of pixels without a class: 255 up to 255 classes, 65535 above."""
        return 255 if self.num_labels <= 255 else 65535

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Of each class id whether its objects are told apart; all are where nobody said."""
        return tuple(self.things is None or name in self.things for name in self.names)

    @property
    def _packed(self) -> bool:
        """Whether stored values are colours as one number."""
        return self.rgb and self.threshold is None

    @property
    def dtype(self) -> np.dtype:
        """The type of a map of class ids: uint8, or uint16 above 255 classes."""
        return np.dtype(np.uint8 if self.num_labels <= 255 else np.uint16)

    # -- how it is made ---------------------------------------------------------------------------------

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        *,
        values: Sequence[int] | None = None,
        ignore_index: int | None = None,
        ignore_name: str | None = None,
        reduce_labels: bool = False,
        binary: bool = False,
        threshold: int = 1,
        rgb: bool = False,
        origin: str = "given",
    ) -> LabelSchema:
        """Make a schema from names in the order of the stored values.

        Stored 255 (65535 above 255 classes) is ignored too, unless it is a class or the maps are binary.

        Args:
            names: Names of the stored values. The one that is ignored may be among them.
            palette: A colour per name. With `rgb`, it decodes the maps, and colours beyond the names are ignored.
            values: The stored values, if they are not 0, 1, 2...
            ignore_index: The stored value (with `rgb`: the position in `palette`) of unlabelled pixels.
            ignore_name: What that value is called.
            reduce_labels: Stored 0 is ignored and stored k is class k - 1. A first name such as "unlabeled" or
                "background" is taken as the name of stored 0.
            binary: Two classes: 0, and every value from `threshold` up; with `values`, just these two.
            threshold: The smallest value of the second class of a binary map.
            rgb: Maps are colour images. If `binary`, black is the first class and all else the second.
            origin: How this was found, for people.

        Returns:
            The schema.

        Raises:
            UserError: When the choices contradict each other.

        Example:
            >>> LabelSchema.from_names(["wall", "floor"], reduce_labels=True).apply(np.array([[0, 1, 2]])).tolist()
            [[255, 0, 1]]
            >>> LabelSchema.from_names(["crack"], binary=True).apply(np.array([[0, 255]])).tolist()
            [[0, 1]]
        """
        names = unique(str(name) for name in names)
        colours = [check_colour(colour) for colour in palette] if palette is not None else []
        if binary:
            if len(names) < 2:
                names = ["background", *(names or ["foreground"])]
                colours = [(0, 0, 0), *colours] if len(colours) == 1 else colours
            if len(names) > 2:
                raise UserError(f"binary labels with {len(names)} names", "two names", "leave out binary, or merge")
            threshold += threshold == ignore_index
            exact = values is not None
            values = values if exact else [0, threshold]
        if not names:
            raise UserError("no class names", "at least one", "give data.labels.names")
        if rgb and not binary:
            listed = list_colours(names, colours, ignore_index, ignore_name)
        else:
            listed = list_indices(names, colours, values, ignore_index, ignore_name, reduce_labels, binary)
        kept = [entry for entry in listed if not entry.ignored]
        if not 0 < len(kept) <= 65535:
            raise UserError(f"{len(kept)} classes left after the ignored ones", "1 to 65535 classes")
        made_up = [(0, 0, 0) if plain(e.name) == "background" else c for e, c in zip(kept, make_palette(len(kept)))]
        ids = {entry.value: i for i, entry in enumerate(kept)}
        return cls(
            names=tuple(entry.name for entry in kept),
            palette=tuple(entry.colour or colour for entry, colour in zip(kept, made_up)),
            stored=tuple((entry.value, ids.get(entry.value)) for entry in listed),
            stored_names=tuple(entry.name for entry in listed),
            rgb=rgb,
            threshold=threshold if binary and not exact else None,
            origin=origin,
        )

    def merge(self, groups: Mapping[str, Iterable[str]]) -> LabelSchema:
        """Make one class out of several, at the place of the first of them.

        Args:
            groups: The names to join, by the name of the new class. A class that has that name already joins too.

        Returns:
            The new schema.

        Raises:
            UserError: When a name is unknown or in two groups.

        Example:
            >>> LabelSchema.from_names(["road", "car", "truck"]).merge({"vehicle": ["car", "truck"]}).names
            ('road', 'vehicle')
        """
        target: dict[str, str] = {}
        for new, members in groups.items():
            for name in {*members, *({new} & set(self.names))}:
                one_of(name, self.names, "class to merge")
                if name in target:
                    raise UserError(f"class {name!r} is merged twice", "each class in one group", "data.labels.merge")
                target[name] = new
        return self._renamed([target.get(name, name) for name in self.names])

    def drop(self, names: Iterable[str]) -> LabelSchema:
        """Ignore the pixels of these classes.

        Args:
            names: Classes that are no longer learnt.

        Returns:
            The new schema.

        Raises:
            UserError: When a name is unknown, or no class is left.

        Example:
            >>> LabelSchema.from_names(["road", "car", "truck"]).drop(["car"]).apply(np.array([[0, 1, 2]])).tolist()
            [[0, 255, 1]]
        """
        dropped = {one_of(name, self.names, "class to drop") for name in names}
        return self._renamed([None if name in dropped else name for name in self.names])

    def _renamed(self, new: list[str | None]) -> LabelSchema:
        """A class id takes the new name at its place, shares it with others, or loses it (None)."""
        names = list(dict.fromkeys(name for name in new if name is not None))
        if not names:
            raise UserError("every class is dropped", "at least one class", "data.labels.drop")
        old_id = {name: i for i, name in reversed(list(enumerate(new)))}
        ids = [None if name is None else names.index(name) for name in new]
        counted = {name for name, thing in zip(new, self.is_thing, strict=True) if thing}
        return dataclasses.replace(
            self,
            things=None if self.things is None else tuple(name for name in names if name in counted),
            names=tuple(names),
            palette=tuple(self.palette[old_id[name]] for name in names),
            stored=tuple((value, None if i is None else ids[i]) for value, i in self.stored),
        )

    # -- what it does -----------------------------------------------------------------------------------

    def apply(self, stored_map: np.ndarray, sample: str = "") -> np.ndarray:
        """Turn a stored map into class ids.

        Args:
            stored_map: (H, W) integers, or (H, W, 3) uint8 where the schema is `rgb`.
            sample: The file or row, for messages.

        Returns:
            (H, W) class ids of type `dtype`, `ignore_index` where ignored.

        Raises:
            BadSample: When the map holds values that the schema does not know.
        """
        return self._lookup.ids(stored_map, sample)

    @functools.cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.stored, self.names, self.ignore_index, self.rgb, self.threshold)

    def reads(self, other: LabelSchema) -> bool:
        """Tell whether this schema can take the place of one that was found in the data.

        Args:
            other: Of the data.

        Returns:
            True when every stored value of a class in `other` is known here by the same name, and none that is
            ignored in `other` is a class here.

        Example:
            >>> found = LabelSchema.from_names(["road", "car"])
            >>> found.drop(["car"]).reads(found), found.reads(LabelSchema.from_names(["car", "road"]))
            (True, False)
        """
        known = {value: plain(name) for (value, _), name in zip(self.stored, self.stored_names, strict=True)}
        ids = dict(self.stored)
        return (self.rgb, self.threshold) == (other.rgb, other.threshold) and all(
            ids.get(value) is None if i is None else known.get(value) == plain(name)
            for (value, i), name in zip(other.stored, other.stored_names, strict=True)
        )

    def covers(self, other: LabelSchema) -> bool:
        """Tell whether this schema says what the values mean that `other`, a mere assumption, takes for classes.

        A value that is ignored here counts only if the data or the user said so: 255 is foreseen everywhere.

        Args:
            other: What was assumed after a look at the data.

        Returns:
            Whether it can be read by this schema.

        Example:
            >>> found = LabelSchema.from_names([], binary=True, values=[0, 255])
            >>> LabelSchema.from_names(["a", "b"]).covers(found)
            False
            >>> LabelSchema.from_names(["a", "b"], ignore_index=255).covers(found)
            True
        """
        said = {value for (value, i), name in zip(self.stored, self.stored_names, strict=True)
                if i is not None or name != "ignored"}
        classes = {value for value, i in other.stored if i is not None}
        return (self.rgb, self.threshold) == (other.rgb, other.threshold) and classes <= said

    def align(self, names: Sequence[str]) -> np.ndarray:
        """Find these classes among other names, whatever the case, spaces, underscores and hyphens.

        Args:
            names: The other class names, in the order of their ids.

        Returns:
            (num_labels,) the id of each class among `names`, -1 where it has none.

        Example:
            >>> LabelSchema.from_names(["traffic light", "car"]).align(["Car", "Traffic_Light"]).tolist()
            [1, 0]
        """
        place = {plain(name): i for i, name in reversed(list(enumerate(names)))}
        return np.array([place.get(plain(name), -1) for name in self.names], dtype=np.int64)

    # -- for people and files ---------------------------------------------------------------------------

    def table(self, limit: int = 64) -> str:
        """Write the remap as a table: stored value, its name, class id, class name, colour.

        Args:
            limit: Show at most this many stored values.

        Returns:
            Lines of text.

        Example:
            >>> print(LabelSchema.from_names(["road", "void"], [(128, 64, 128), (0, 0, 0)], ignore_index=1).table())
            1 class (given)
            stored  called   id  class    colour
            0       road     0   road     #804080
            1       void     -   ignored
            255     ignored  -   ignored
        """
        rows = [("stored", "called", "id", "class", "colour")]
        for (value, i), called in zip(self.stored[:limit], self.stored_names, strict=False):
            shown = show(value, self._packed) + (" and above" if value == self.threshold else "")
            rest = ("-", "ignored", "") if i is None else (str(i), self.names[i], hex_colour(self.palette[i]))
            rows.append((shown, called, *rest))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if len(self.stored) > limit:
            lines.append(f"... and {len(self.stored) - limit} more")
        count = f"{self.num_labels} class{'es' if self.num_labels > 1 else ''}"
        return "\n".join([f"{count} ({self.origin})", *lines])

    def to_dict(self) -> dict[str, Any]:
        """Returns the schema as plain JSON values, the content of labels.json."""
        return {
            "names": list(self.names),
            "palette": [list(colour) for colour in self.palette],
            "ignore_index": self.ignore_index,
            "rgb": self.rgb,
            "threshold": self.threshold,
            "remap": [
                {"stored": value, "name": name, "id": i}
                for (value, i), name in zip(self.stored, self.stored_names, strict=True)
            ],
            "origin": self.origin,
            **({} if self.things is None else {"things": list(self.things)}),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LabelSchema:
        """Read what `to_dict` wrote.

        Args:
            content: The content of labels.json.

        Returns:
            The schema.

        Raises:
            UserError: When something is missing or contradicts itself.
        """
        try:
            schema = cls(
                names=tuple(str(name) for name in content["names"]),
                palette=tuple(check_colour(colour) for colour in content["palette"]),
                stored=tuple((int(e["stored"]), None if e["id"] is None else int(e["id"])) for e in content["remap"]),
                stored_names=tuple(str(e["name"]) for e in content["remap"]),
                rgb=bool(content.get("rgb", False)),
                threshold=content.get("threshold"),
                origin=str(content.get("origin", "given")),
                things=None if content.get("things") is None else tuple(map(str, content["things"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"labels without {error}", "names, palette and remap, as hfseg writes them") from error
        ids = {i for _, i in schema.stored if i is not None}
        if len(schema.palette) != schema.num_labels or not ids <= set(range(schema.num_labels)):
            raise UserError("labels whose palette or remap does not fit their names", "a colour per name, ids below n")
        return schema

    def save(self, path: str | Path) -> None:
        """Write labels.json.

        Args:
            path: The file.
        """
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LabelSchema:
        """Read labels.json.

        Args:
            path: The file.

        Returns:
            The schema.

        Raises:
            UserError: When it is missing or not such a file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, UserError) as error:
            raise UserError(f"{path} cannot be read as labels: {error}", "a labels.json that hfseg wrote") from error

"""Finding the label schema of a data set: what its files declare, checked against what its maps hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfseg.data.scan import Scan
from hfseg.errors import UserError
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig
from hfseg.remap import hex_colour

FILES = ("labels.json", "classes.json", "id2label.json", "classes.txt")
MAX_COLOURS, MAX_VALUES = 64, 1024

Declared = dict[str, Any]  # arguments of LabelSchema.from_names, or {"schema": a complete one}


def read_declared(find: Callable[[str], Path | None]) -> Declared:
    """Read the names that come with a data set, from the first of `FILES` that it has.

    Args:
        find: Gives the local path of a file of the data set, or None.

    Returns:
        Arguments of `LabelSchema.from_names`; empty where there is no such file.

    Raises:
        UserError: When a file is there but cannot be understood.
    """
    for name in FILES:
        path = find(name)
        if path is None:
            continue
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            content = (
                json.loads(text) if name.endswith(".json") else [s.strip() for s in text.splitlines() if s.strip()]
            )
            if name == "labels.json" and isinstance(content, Mapping) and "remap" in content:
                return {"schema": LabelSchema.from_dict(content)}
            return {**_declared(content), "origin": name}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError) as error:
            if name == "labels.json" and not isinstance(error, UserError | OSError | json.JSONDecodeError):
                continue  # another tool's: hfseg's own has a remap
            allowed = '{"names": [...], "palette": [...], "ignore_index": n}, or {"0": "name", ...}'
            what = f"an entry has no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{path} cannot be read: {what}", allowed, "mend it, or give data.labels.names") from error
    return {}


def _declared(content: Any) -> Declared:
    """Understand a list of names, {names, palette, ignore_index}, {id: name}, {name: id} or [{id, name, color}]."""
    if isinstance(content, Mapping) and "names" in content:
        found = _declared(content["names"])
        found |= {key: content[key] for key in ("palette", "ignore_name") if content.get(key) is not None}
        if content.get("ignore_index") is not None:
            found["ignore_index"] = _whole(content["ignore_index"], "ignore_index")
        return found
    for key in ("id2label", "label2id"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return _declared(content[key])
    if isinstance(content, Mapping) and content:
        if all(str(key).lstrip("-").isdigit() for key in content):
            entries = [(int(key), *_name_and_colour(entry)) for key, entry in content.items()]
        elif all(isinstance(entry, Mapping) for entry in content.values()):
            entries = [(_whole(entry["id"], "id"), name, _colour_of(entry)) for name, entry in content.items()]
        else:
            entries = [(_whole(value, name), name, None) for name, value in content.items()]
    elif isinstance(content, list) and content:
        entries = [
            (_whole(entry["id"], "id") if isinstance(entry, Mapping) and "id" in entry else i, *_name_and_colour(entry))
            for i, entry in enumerate(content)
        ]
    else:
        raise ValueError("no names")
    listed: dict[int, tuple[str, Any]] = {}
    for value, name, colour in sorted(entries, key=lambda entry: entry[0]):
        if value in listed and value not in (-1, 255, 65535):  # these are what nobody wants, whatever it is called
            raise ValueError(f"{listed[value][0]!r} and {name!r} have the same id {value}")
        listed.setdefault(value, (name, colour))
    found = {"names": [name for name, _ in listed.values()]}
    if list(listed) != list(range(len(listed))) or not isinstance(content, list):
        found["values"] = list(listed)
    colours = [colour for _, colour in listed.values()]
    return {**found, "palette": colours} if all(colours) else found


def _name_and_colour(entry: Any) -> tuple[str, Any]:
    """Read "road", {"name": "road", "color": [...]} or ["road", [...]]."""
    if isinstance(entry, Mapping):
        return str(entry["name"]), _colour_of(entry)
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list):
        return entry[0], entry[1]
    if not isinstance(entry, str):
        raise ValueError(f"{entry!r} is no name")
    return entry, None


def _colour_of(entry: Mapping) -> Any:
    return entry.get("color", entry.get("colour"))


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).lstrip("-").isdigit():
        raise ValueError(f"{what} is {value!r}, no whole number")
    return int(value)


def find_schema(declared: Declared, labels: LabelsConfig, scan: Scan) -> tuple[LabelSchema, list[str]]:
    """Decide what the stored values mean: the recipe first, then what is declared, then what the maps hold.

    Args:
        declared: As `read_declared` gives it.
        labels: The recipe's section, which wins.
        scan: What the maps hold.

    Returns:
        The schema, and notes on what was assumed.

    Raises:
        UserError: When the meaning cannot be told.
    """
    notes: list[str] = []
    if "schema" in declared:
        schema = declared["schema"]
        if labels.given:
            stored = {"names": schema.stored_names, "values": [value for value, _ in schema.stored]}
            declared = stored if not schema.rgb else {"names": schema.names, "palette": schema.palette}
            declared["origin"] = "labels.json and the recipe"
    if "schema" not in declared:
        schema = LabelSchema.from_names(**_choose(dict(declared), labels, scan, notes))
    if labels.merge:
        schema = schema.merge(labels.merge)
    if labels.drop:
        schema = schema.drop(labels.drop)
    seen = set(scan.counts)
    ignored = {value for value, i in schema.stored if i is None}
    if seen == {0, 255} and 255 in ignored and schema.num_labels == 2:
        notes.append(
            f"{scan} hold only 0 and 255, and 255 is ignored: if it is {schema.names[1]!r}, --data.labels.binary true"
        )
    return schema, notes


def _choose(chosen: Declared, labels: LabelsConfig, scan: Scan, notes: list[str]) -> Declared:
    """Put the recipe over what is declared, and fill what is missing from the scan."""
    if labels.names:
        if len(chosen.get("names", ())) != len(labels.names):
            chosen.pop("values", None)
            chosen.pop("palette", None)
        chosen |= {"names": labels.names, "origin": "data.labels of the recipe"}
    if labels.palette:
        chosen["palette"] = labels.palette
    if labels.ignore_index is not None:
        chosen["ignore_index"] = labels.ignore_index
    elif labels.binary:  # 255 is what binary maps mark the second class with
        chosen.pop("ignore_index", None)
    # Named classes without colours: then it is the colour maps among others that are wrong, each by itself.
    misplaced = chosen.get("names") and not chosen.get("palette") and scan.coloured < scan.looked
    rgb = scan.by_colour or (scan.rgb and not misplaced)
    if scan.by_colour:
        notes.append("labels: an index of the palette images is not the same colour everywhere: read by their colours")
    elif scan.palettes_differ:
        notes.append("labels: an index of the palette images is not the same colour everywhere: read by index; if the "
                     "colours are right, give data.labels.palette")
    chosen |= {"reduce_labels": labels.reduce_labels, "binary": labels.binary, "rgb": rgb}
    if labels.binary or labels.reduce_labels:
        chosen.pop("values", None)

    names = chosen.get("names")
    values = sorted(set(scan.counts) - {chosen.get("ignore_index")})
    two = names is None or len(names) <= 2
    if (
        not labels.binary
        and not labels.reduce_labels
        and two
        and "ignore_index" not in chosen
        and values
        and not scan.rgb
    ):
        lossy = scan.lossy and scan.two_ended
        sure = values[-1:] == [255] or (values[-1] > 1 if names is None else len(names) == 1)
        if lossy or (len(values) == 2 and values[0] == 0 and sure and not scan.lossy):
            chosen["binary"] = True
            chosen.pop("values", None)
            if not lossy:
                chosen["values"] = values  # another value was not foreseen
                notes.append(
                    f"labels: {scan} hold only 0 and {values[1]}: assumed binary, {values[1]} is the second class"
                )
    if scan.lossy and not rgb and not chosen["binary"]:
        raise UserError(
            "the label maps are JPEGs, or of another format that changes values: class ids cannot be told from them",
            "PNG or another lossless format; lossy maps of black and white alone",
            "save the maps as PNG, from what they were made from",
        )
    if chosen["binary"]:
        if scan.lossy:
            chosen["threshold"] = 128 if scan.brightest >= 240 else max(1, scan.brightest // 2)
            notes.append("labels: the maps are JPEGs, whose values are inexact: "
                         f"{'' if labels.binary else 'assumed '}binary, split at {chosen['threshold']}")
        if names is not None and len(names) > 2:
            raise UserError(
                f"binary labels, but {len(names)} names are declared ({', '.join(names[:5])}...)", "two names"
            )
        chosen.setdefault("names", [])
        chosen.setdefault("origin", "the recipe: binary" if labels.binary else f"assumed from {scan}")
    elif rgb and len(chosen.get("palette") or ()) < len(names or ()) + (names is None):
        _choose_colours(chosen, scan, notes)
    elif names is None and chosen.get("palette"):
        chosen["names"] = [hex_colour(colour) for colour in chosen["palette"]]
        chosen.setdefault("origin", "the palette")
    elif names is None:
        _choose_values(chosen, values, scan, notes)
    classes = chosen.get("values") or range(len(chosen["names"]))
    if 255 in scan.counts and not chosen["binary"] and not rgb and 255 not in classes:
        chosen.setdefault("ignore_index", 255)  # seen, and not only foreseen
    return chosen


def _choose_colours(chosen: Declared, scan: Scan, notes: list[str]) -> None:
    """Propose a palette of the colours seen, where they are few and nothing else says what they mean."""
    common = [(value >> 16, value >> 8 & 255, value & 255) for value, _ in scan.counts.most_common(12)]
    if chosen.get("names") is not None or len(scan.counts) > MAX_COLOURS or scan.lossy:
        many = f"{len(scan.counts)} different colours" + (" (JPEG blurs them: save maps as PNG)" if scan.lossy else "")
        raise UserError(
            f"the label maps are colour images with no palette to decode them; {scan} hold {many}, most often "
            f"{', '.join(str(list(colour)) for colour in common)}",
            "a palette: one colour per class, in the order of the names",
            "give data.labels.names and data.labels.palette; colours beyond the names are ignored",
        )
    colours = sorted((value >> 16, value >> 8 & 255, value & 255) for value in scan.counts)
    chosen |= {
        "names": [hex_colour(colour) for colour in colours],
        "palette": colours,
        "origin": f"assumed from {scan}",
    }
    notes.append(
        f"labels: the maps are colour images; assumed a class for each of the {len(colours)} colours in {scan}, "
        "named after it. Give data.labels.names and data.labels.palette for real names"
    )


def _choose_values(chosen: Declared, values: list[int], scan: Scan, notes: list[str]) -> None:
    """Make classes of the values seen."""
    reduced = chosen["reduce_labels"]
    if "ignore_index" not in chosen and len(values) > 2:
        if values[-1] == 65535 and values[-2] < MAX_VALUES:
            chosen["ignore_index"] = 65535
        elif values[0] == -1:
            chosen["ignore_index"] = -1
    unlabelled = [value for value in values if value in (255, chosen.get("ignore_index"))]
    classes = [value for value in values if value not in unlabelled and not (reduced and value == 0)]
    top = classes[-1] if classes else 0
    named = "give data.labels.names, in the order of the stored values"
    if not classes or classes == [0]:
        seen = ", ".join(map(str, values)) or "no value but the ignored one"
        raise UserError(f"what the labels mean cannot be told: {scan} hold {seen}", "named classes", named)
    if scan.instance_like or len(values) > MAX_VALUES or classes[0] < 0:
        raise UserError(
            f"{scan} hold {len(values)} different values, {values[0]} to {values[-1]}: these look like instance ids",
            "class ids",
            f"{named}; or --data.labels.binary true, where every value above 0 is the foreground",
        )
    if len(classes) >= 0.5 * (top + 1 - reduced):
        names = ["background", "foreground"] if classes == [0, 1] else [f"class_{i}" for i in range(top + 1)]
        chosen["names"] = names[1:] if reduced else names
        missing = sorted(set(range(int(reduced), top + 1)) - set(classes))
        text = f"{scan} hold {0 if 0 in values else classes[0]} to {top}"
        text += f" but for {', '.join(map(str, missing))}" if missing else ""
        text += f", and {' and '.join(map(str, unlabelled))}, taken as unlabelled" if unlabelled else ""
    else:
        kept = [value for value in values if value != chosen.get("ignore_index")]
        chosen |= {"values": kept, "names": [f"value_{value}" for value in kept]}
        text = f"{scan} hold {', '.join(map(str, values))}; each is a class"
        text += f" but for {chosen['ignore_index']}" if "ignore_index" in chosen else ""
    chosen["origin"] = f"assumed from {scan}"
    notes.append(f"labels: {text}: {len(chosen['names'])} classes assumed. For real names {named}")


def names_from_features(features: Mapping[str, Any]) -> Declared:
    """Find class names in the features of a data set: a column such as `classes: Sequence(ClassLabel)`.

    A single ClassLabel is not taken, unless it is named after classes: it is mostly the kind of scene.

    Args:
        features: `Dataset.features`.

    Returns:
        Arguments of `LabelSchema.from_names`, or empty.
    """
    for column, feature in (features or {}).items():
        inner = getattr(feature, "feature", None)
        names = getattr(inner if inner is not None else feature, "names", None)
        if names and (inner is not None or column in ("classes", "class_names", "label_names", "semantic_classes")):
            return {"names": list(names), "origin": f"the feature {column!r}"}
    return {}


def names_from_model(names: Sequence[str], scan: Scan) -> Declared:
    """Take the names of a model where the maps hold just as many values, and nothing else names them.

    Args:
        names: The model's class names, in the order of its ids.
        scan: What the maps hold.

    Returns:
        Arguments of `LabelSchema.from_names`, or empty.
    """
    top = max((value for value in scan.counts if value != 255), default=-1)
    given = not all(name.startswith("LABEL_") for name in names)
    fits = top + 1 == len(names) and not scan.rgb and given
    return {"names": list(names), "origin": "the model's config"} if fits else {}

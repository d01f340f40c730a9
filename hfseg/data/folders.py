"""Finding pairs of image and label map in a folder, from the names of directories and files alone.

One rule covers the usual layouts. Every directory below the root says something by its name: a split ("val"), a
role ("images", "annotations"), both ("trainannot"), or neither. Files of one split meet in one group, wherever its
images and its maps lie, and are paired by name.
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hfseg.data.images import ARRAY_SUFFIXES, PHOTO_SUFFIXES
from hfseg.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_ALIASES = {alias: split for split, aliases in SPLIT_NAMES.items() for alias in aliases}

ROLES = {
    "image": "image images img imgs jpegimages leftimg8bit photos input inputs rgb",
    "map": "mask masks annotation annotations annot label labels labelmap labelmaps gt gtfine groundtruth "
    "ground_truth segmentation segmentations segmentationclass seg semantic semantic_map semantic_maps "
    "target targets output outputs",
    "instance": "instance instances instance_id instance_ids instance_map segmentationobject",
}
_ROLES = {word: role for role, words in ROLES.items() for word in words.split()}

CODINGS = ("_gtfine_labeltrainids", "_gtfine_labelids")  # of Cityscapes
# Endings of a map's name beyond its image's, best first (Cityscapes has several maps per image).
MAP_ENDINGS = (
    *("", "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_annot", "_annotation"),
    *("-mask", "-label", "-seg", ".mask", ".label", *CODINGS),
)
_ONLY_IN_MAP_FOLDERS = ("_l",)  # CamVid's own names; beside the images it may mean "left"
IMAGE_ENDINGS = ("_leftimg8bit", "_image", "_img", "_sat", "-image", ".image")
VIEW_ENDINGS = ("_color", "_colour", "_instanceids", "_labelids", "_overlay", "_vis")  # known, and no labels

LAYOUTS = (
    "split/images + split/masks, images/split + masks/split, train + trainannot, images + masks, "
    "name.jpg beside name_mask.png, metadata.csv with file_name and mask_file_name, parquet files, save_to_disk"
)


@dataclass
class Pairs:
    """The columns of one split.

    Args:
        images: Paths.
        maps: Paths, parallel to `images`.
        ids: Names that are unique in the split.
    """

    images: list[str] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


@dataclass
class _Group:
    """The files of one split and subfolder: paths by stem, per role ("" where the directory says nothing)."""

    files: dict[str, dict[str, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


def split_name(name: str) -> str:
    """Give a split its canonical name.

    Args:
        name: As it is called in the data.

    Returns:
        "train", "validation", "test", or `name` itself.

    Example:
        >>> split_name("Val"), split_name("fold3")
        ('validation', 'fold3')
    """
    return split_of(name) or name


def split_of(name: str) -> str | None:
    """Find the canonical split, if the name is that of one.

    Args:
        name: As it is called in the data.

    Returns:
        Such as "train" for "train2017"; None for a name that is no split's.
    """
    return _ALIASES.get(re.sub(r"[_-]?(19|20)\d\d$", "", name.lower()))


def read_folder(
    root: Path, *, instances: bool = False, only_instances: bool = False, skip: bool = False
) -> tuple[dict[str, Pairs], list[str]]:
    """Find the pairs of image and label map below a folder.

    Args:
        root: The folder.
        instances: Take instance maps where there are no semantic ones.
        only_instances: Take nothing but instance maps.
        skip: Leave out images without map and maps without image, instead of stopping.

    Returns:
        The pairs by split, and notes on what was found.

    Raises:
        UserError: When there are no pairs, or names are missing or ambiguous.
    """
    tree = list(walk(str(root)))
    notes: list[str] = []
    splits: dict[str, Pairs] = {}
    outside = False
    tables = [os.path.join(folder, name) for folder, _, names in tree for name in names if _is_metadata(name)]
    for table in tables:
        own = os.path.dirname(table)
        split = next(filter(None, map(split_of, os.path.relpath(own, root).split(os.sep))), None)
        for stated, pairs in _read_metadata(table).items():
            _extend(splits, (stated and split_name(stated)) or split or _default_split(root), pairs)
            outside |= any(not _is_below(path, own) for path in (*pairs.images, *pairs.maps))
        tree = [entry for entry in tree if not _is_below(entry[0], own)]
    if tables:
        notes.append(f"pairs listed in {', '.join(os.path.relpath(table, root) for table in tables)}")
        if outside or not any(is_picture(name) for _, _, names in tree for name in names):
            return splits, notes

    tree = _one_coding(tree, root)
    listed = _split_lists(tree)
    pictures = {_stem(name) for _, _, names in tree for name in names if is_picture(name)}
    if listed and not any(_is_listed(stem, stems) for stem in pictures for stems in listed.values()):
        notes.append("the lists in ImageSets/Segmentation name no image that is here: passed over")
        listed = {}
    groups: dict[tuple[str | None, tuple[str, ...]], _Group] = defaultdict(_Group)
    for folder, parts, names in tree:
        split, role, rest = _meaning(parts)
        files = groups[split, rest].files[role]
        for name in names:
            if is_picture(name):
                stem = _stem(name)
                if not listed or split or any(_is_listed(stem, stems) for stems in listed.values()):
                    files[stem].append(os.path.join(folder, name))

    filled = {split for (split, _), group in groups.items() if any(group.files.values())}
    for (split, _), group in groups.items():
        if split and split not in filled and {"image", "map"} & group.files.keys():
            raise UserError(f"the split {split!r} is empty", "at least one image", "remove it, or fill it")
    has_names = any(split is not None for split, _ in groups)
    unlabelled: list[str] = []
    with_instances: list[str] = []
    for (split, rest), group in sorted(groups.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        if only_instances:
            group.files["map"] = {}
        images, maps = _sort_roles(group, instances)
        if not images and not maps:
            continue
        where = "/".join(part for part in (split, *rest) if part) or root.name
        if not maps:
            (with_instances if group.files.get("instance") else unlabelled).append(where)
            continue
        pairs = _pair(images, maps, where, root, skip, notes)
        if rest:
            pairs.ids = ["/".join((*rest, name)) for name in pairs.ids]
        if listed and not split:
            for own, stems in listed.items():
                _extend(splits, own, _those(pairs, stems))
        else:
            _extend(splits, split or (rest[0] if has_names and rest else _default_split(root)), pairs)
    if listed:
        notes.append(f"splits listed in text files: {', '.join(listed)}; what they do not list is left out")
    splits = {split: pairs for split, pairs in splits.items() if pairs.images}
    if splits:
        for where in unlabelled + with_instances:
            notes.append(f"{where} has images without label maps: left out")
        return splits, notes
    if with_instances:
        raise UserError(
            f"{root} has instance annotations ({', '.join(with_instances)}), but no semantic label maps",
            "a folder of label maps beside the images",
            "--data.labels.binary true reads every instance as one foreground class",
        )
    if unlabelled:
        maps = "instance maps" if only_instances else "label maps"
        fix = f"add {maps}" + ("; --task semantic reads label maps alone" if only_instances else "")
        raise UserError(f"{root} has images but no {maps} ({', '.join(unlabelled[:5])})", LAYOUTS, fix)
    raise UserError(f"{root} holds no images", LAYOUTS, "check the path")


def walk(root: str) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """Go through a folder, leaving out what is hidden.

    Args:
        root: The folder.

    Yields:
        (folder, its parts below the root, file names).

    Raises:
        UserError: For a folder that cannot be read, or names that are not UTF-8.
    """
    stack: list[tuple[str, tuple[str, ...], frozenset]] = [(root, (), frozenset([os.path.realpath(root)]))]
    while stack:
        folder, parts, above = stack.pop()
        names = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "__MACOSX")):
                        continue
                    if not entry.is_dir():
                        names.append(_readable(entry.name, folder))
                    elif (real := os.path.realpath(entry.path)) not in above:  # links may lead in circles
                        stack.append((entry.path, (*parts, _readable(entry.name, folder)), above | {real}))
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}", fix="check its permissions") from error
        yield folder, parts, sorted(names)


def _readable(name: str, folder: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{folder}: the name {shown!r} is not UTF-8", "file names in UTF-8",
                        "rename it; `convmv -f latin1 -t utf8 -r --notest` renames a whole folder") from error
    return name


def is_picture(name: str) -> bool:
    """Tell whether a file is an image or an array, by its ending.

    Args:
        name: Of the file.

    Returns:
        True where hfseg reads files that are called so.
    """
    return os.path.splitext(name)[1].lower() in (*PHOTO_SUFFIXES, *ARRAY_SUFFIXES)


def _stem(name: str) -> str:
    """The name without its ending; zips of macOS decompose accents."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _is_below(path: str, folder: str) -> bool:
    return os.path.normpath(path).startswith(os.path.normpath(folder) + os.sep) or path == folder


def _one_coding(tree: list[tuple[str, tuple[str, ...], list[str]]], root: Path) -> list[tuple]:
    """Of Cityscapes' two codings of the maps, train ids and ids, keep the first that every image has."""
    bases = {ending: {_base(stem, ending) for _, _, names in tree for stem in map(_stem, names)
                      if stem.lower().endswith(ending)} for ending in CODINGS}  # fmt: skip
    best, other = CODINGS
    if not bases[best] or not bases[other]:
        return tree
    if not bases[best] >= bases[other]:
        best, other = other, best
    if not bases[best] >= bases[other]:
        lacking = ", ".join(sorted(bases[other] - bases[best])[:3])
        raise UserError(f"{root}: some label maps are named *{best}, others *{other} ({lacking}...)",
                        "one coding for all images", "make the missing ones")
    return [(folder, parts, [name for name in names if not _stem(name).lower().endswith(other)])
            for folder, parts, names in tree]


def _split_lists(tree: list[tuple[str, tuple[str, ...], list[str]]]) -> dict[str, set[str]]:
    """Read which stems belong to which split, as Pascal VOC lists them in ImageSets/Segmentation/val.txt."""
    listed: dict[str, set[str]] = {}
    for folder, parts, names in tree:
        if [part.lower() for part in parts[-2:]] == ["imagesets", "segmentation"]:
            for name in names:
                stem, ending = os.path.splitext(name)
                if ending == ".txt" and split_of(stem):
                    with open(os.path.join(folder, name), encoding="utf-8-sig", errors="replace") as file:
                        lines = [line.strip() for line in file if line.strip()]
                    names_listed = {word for line in lines for word in (line, line.split()[0])}
                    listed.setdefault(split_of(stem), set()).update(
                        _stem(word) if is_picture(word) else unicodedata.normalize("NFC", word)
                        for word in names_listed
                    )
    return listed


def _is_listed(stem: str, stems: set[str]) -> bool:
    return stem in stems or any(stem.endswith(e) and _base(stem, e) in stems for e in MAP_ENDINGS[1:])


def _those(pairs: Pairs, stems: set[str]) -> Pairs:
    """The pairs of some names."""
    kept = [i for i, name in enumerate(pairs.ids) if name.split("/")[-1] in stems]
    return Pairs(*([column[i] for i in kept] for column in (pairs.images, pairs.maps, pairs.ids)))


def _meaning(parts: Sequence[str]) -> tuple[str | None, str, tuple[str, ...]]:
    """Read directory names as (split, role, what is left)."""
    split, role, rest = None, "", []
    for part in parts:
        part_split, part_role = _word(part.lower())
        if part_split is None and part_role is None:
            rest.append(part)
        split, role = part_split or split, part_role or role
    return split, role, tuple(rest)


def _word(part: str) -> tuple[str | None, str | None]:
    if split_of(part) or part in _ROLES:
        return split_of(part), _ROLES.get(part)
    for alias in sorted(_ALIASES, key=len, reverse=True):  # trainannot, train_masks, masks-val
        for rest in (part.removeprefix(alias), part.removesuffix(alias)):
            if rest != part and (role := _ROLES.get(rest.strip("_- ."))):
                return _ALIASES[alias], role
    return None, None


def _sort_roles(group: _Group, instances: bool) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Decide which files of a group are images and which are maps."""
    images, maps, plain = (group.files.get(role, {}) for role in ("image", "map", ""))
    if not maps and instances:
        maps = group.files.get("instance", {})
    if maps or images:
        return images or plain, maps
    beside = {}  # side by side: a map's name is an image's name and an ending
    for stem in plain:
        base = next((_base(stem, ending) for ending in MAP_ENDINGS[1:] if stem.lower().endswith(ending)), None)
        if base is not None and any(base + ending in plain for ending in ("", *IMAGE_ENDINGS)):
            beside[stem] = plain[stem]
    return {stem: paths for stem, paths in plain.items() if stem not in beside}, beside


def _base(stem: str, ending: str) -> str:
    return stem[: len(stem) - len(ending)]


def _pair(images, maps, where: str, root: Path, skip: bool, notes: list[str]) -> Pairs:
    """Pair the images and maps of one group by their names."""
    short = {}
    for stem in images:
        ending = next((e for e in IMAGE_ENDINGS if stem.lower().endswith(e)), "")
        short.setdefault(_base(stem, ending), stem)
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)  # image stem -> (rank of the ending, map)
    orphans = []
    for stem, paths in maps.items():
        for rank, ending in enumerate((*MAP_ENDINGS, *_ONLY_IN_MAP_FOLDERS)):
            base = _base(stem, ending)
            image = base if base in images else short.get(base)
            if image is not None and stem.lower().endswith(ending):
                found[image] += [(rank, path) for path in paths]
                break
        else:
            if not stem.lower().endswith(VIEW_ENDINGS):
                orphans += paths

    pairs, lonely = Pairs(), []
    for stem in sorted(images):
        candidates = sorted(found.get(stem, ()))
        best = [path for rank, path in candidates if rank == candidates[0][0]]
        if not best:
            lonely += images[stem]
        elif len(images[stem]) > 1 or len(best) > 1:
            several = images[stem] if len(images[stem]) > 1 else best
            raise UserError(
                f"{where}: {_some(several, root)} have the same name",
                "one image and one label map per name",
                "remove or rename all but one",
            )
        else:
            pairs.images.append(images[stem][0])
            pairs.maps.append(best[0])
            pairs.ids.append(stem)
    if not pairs.images:
        raise UserError(
            f"{where}: no image has a label map of its name ({_some(sorted(lonely), root, 2)}; "
            f"{_some(sorted(orphans), root, 2)})",
            "the same name, or the name with _mask, _label...",
            "rename the maps after their images",
        )
    for files, text in ((lonely, "images have no label map"), (orphans, "label maps have no image")):
        if files and not skip:
            total = len(pairs.images) + len(files)
            raise UserError(
                f"{where}: {len(files)} of {total} {text}: {_some(sorted(files), root)}",
                "a pair for every name",
                "add or remove the files, or --data.on_bad_sample skip leaves them out",
            )
        if files:
            notes.append(f"{where}: {len(files)} {text}, left out: {_some(sorted(files), root)}")
    return pairs


def _some(paths: Sequence[str], root: Path, count: int = 5) -> str:
    names = ", ".join(os.path.relpath(path, root) for path in paths[:count]) or "nothing"
    return names + (f" and {len(paths) - count} more" if len(paths) > count else "")


def _extend(splits: dict[str, Pairs], split: str, more: Pairs) -> None:
    pairs = splits.setdefault(split, Pairs())
    pairs.images += more.images
    pairs.maps += more.maps
    pairs.ids += more.ids


def _default_split(root: Path) -> str:
    """A folder without splits is one split: the one it is named after, else all of it is for training."""
    return split_of(root.name) or "train"


# -- imagefolder with metadata ------------------------------------------------------------------------------


def _is_metadata(name: str) -> bool:
    return name in ("metadata.csv", "metadata.jsonl")


def _read_metadata(table: str) -> dict[str | None, Pairs]:
    """Read metadata.csv or metadata.jsonl: `file_name`, a column such as `mask_file_name`, and perhaps `split`."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = (
                list(csv.DictReader(file))
                if table.endswith(".csv")
                else [json.loads(line) for line in file if line.strip()]
            )
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no object")
    except (ValueError, csv.Error) as error:  # JSON's and UTF-8's are ValueErrors
        raise UserError(f"{table} cannot be read: {error}", "a table of file names, in UTF-8") from error
    if not rows:
        raise UserError(f"{table} is empty", "a row per image")
    columns = [column for column in rows[0] if column]
    image = next((c for c in ("file_name", "image_file_name", "image", "image_path") if c in columns), None)
    label = next((c for c in columns if c != image and _ROLES.get(_stripped(c)) == "map"), None)
    if image is None or label is None:
        raise UserError(
            f"{table} has the columns {', '.join(columns)}",
            "file_name and mask_file_name, relative to the table",
            "rename the columns",
        )
    folder = os.path.dirname(table)
    split = next((c for c in ("split", "subset", "partition") if c in columns), None)
    splits: dict[str | None, Pairs] = defaultdict(Pairs)
    seen = set()
    for number, row in enumerate(rows, start=2 if table.endswith(".csv") else 1):
        for column in (image, label):
            value = row.get(column)
            row[column] = value.get("path") if isinstance(value, dict) else value
            if not isinstance(row[column], str) or not row[column]:
                found = f"{column} is {value!r}" if value else f"no {column}"
                raise UserError(f"{table}, line {number}: {found}", "a path relative to the table", "fill it in")
        if row[image] in seen:
            raise UserError(f"{table} lists {row[image]} more than once", "each image once", "remove the other rows")
        seen.add(row[image])
        pairs = splits[str(row[split]) if split and row.get(split) else None]
        pairs.images.append(os.path.join(folder, row[image]))
        pairs.maps.append(os.path.join(folder, row[label]))
        pairs.ids.append(os.path.splitext(row[image])[0])
    return dict(splits)


def _stripped(column: str) -> str:
    for ending in ("_file_name", "_filename", "_path", "_file"):
        column = column.lower().removesuffix(ending)
    return column

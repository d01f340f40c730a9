"""Finding pairs of image and label map in a folder, from the names of directories and files alone.

One rule covers the usual layouts. Every directory below the root says something by its name: a split ("val"), a
role ("images", "annotations"), both ("trainannot"), or neither. Files of one split meet in one group, wherever its
images and its maps lie, and are paired by name.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hfseg.data.folder_names import (
    CODINGS,
    MAP_ENDINGS,
    is_picture,
    meaning,
    split_name,
    split_of,
    stem_of,
    without,
)
from hfseg.data.folder_pairs import Group, Pairs, pair, sort_roles
from hfseg.data.folder_tables import is_table, read_table
from hfseg.errors import UserError

LAYOUTS = (
    "split/images + split/masks, images/split + masks/split, train + trainannot, images + masks, "
    "name.jpg beside name_mask.png, metadata.csv with file_name and mask_file_name, parquet files, save_to_disk"
)
Entry = tuple[str, tuple[str, ...], list[str]]  # a folder, its parts below the root, the names of its files


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
    tree, notes, splits = list(walk(str(root))), [], {}
    tree = _take_tables(tree, root, splits, notes)
    if splits and not any(is_picture(name) for _, _, names in tree for name in names):
        return splits, notes
    tree = _one_coding(tree, root)
    listed = _split_lists(tree, notes)
    groups = _grouped(tree, listed)
    has_names = any(split is not None for split, _ in groups)
    unlabelled: list[str] = []
    with_instances: list[str] = []
    for (split, rest), group in sorted(groups.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        if only_instances:
            group.files["map"] = {}
        images, maps = sort_roles(group, instances)
        if not images and not maps:
            continue
        where = "/".join(part for part in (split, *rest) if part) or root.name
        if not maps:
            (with_instances if group.files.get("instance") else unlabelled).append(where)
            continue
        pairs = pair(images, maps, where, root, skip, notes)
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
    if not splits:
        raise _nothing(root, unlabelled, with_instances, only_instances)
    notes += [f"{where} has images without label maps: left out" for where in unlabelled + with_instances]
    return splits, notes


def _nothing(root: Path, unlabelled: list[str], with_instances: list[str], only_instances: bool) -> UserError:
    """Why a folder has no pairs."""
    if with_instances:
        return UserError(
            f"{root} has instance annotations ({', '.join(with_instances)}), but no semantic label maps",
            "a folder of label maps beside the images",
            "--data.labels.binary true reads every instance as one foreground class",
        )
    if unlabelled:
        maps = "instance maps" if only_instances else "label maps"
        fix = f"add {maps}" + ("; --task semantic reads label maps alone" if only_instances else "")
        return UserError(f"{root} has images but no {maps} ({', '.join(unlabelled[:5])})", LAYOUTS, fix)
    return UserError(f"{root} holds no images", LAYOUTS, "check the path")


def walk(root: str) -> Iterator[Entry]:
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


def _is_below(path: str, folder: str) -> bool:
    return os.path.normpath(path).startswith(os.path.normpath(folder) + os.sep) or path == folder


def _take_tables(tree: list[Entry], root: Path, splits: dict[str, Pairs], notes: list[str]) -> list[Entry]:
    """Adds the pairs that tables list to the splits, and gives what is left of the tree: nothing, where a table speaks
    of files beyond its own folder."""
    tables = [os.path.join(folder, name) for folder, _, names in tree for name in names if is_table(name)]
    outside = False
    for table in tables:
        own = os.path.dirname(table)
        split = next(filter(None, map(split_of, os.path.relpath(own, root).split(os.sep))), None)
        for stated, pairs in read_table(table).items():
            _extend(splits, (stated and split_name(stated)) or split or _default_split(root), pairs)
            outside |= any(not _is_below(path, own) for path in (*pairs.images, *pairs.maps))
        tree = [entry for entry in tree if not _is_below(entry[0], own)]
    if tables:
        notes.append(f"pairs listed in {', '.join(os.path.relpath(table, root) for table in tables)}")
    return [] if outside else tree


def _grouped(tree: list[Entry], listed: dict[str, set[str]]) -> dict[tuple[str | None, tuple[str, ...]], Group]:
    """The pictures by split and what else their directories say, all of them or those of the listed names."""
    groups: dict[tuple[str | None, tuple[str, ...]], Group] = defaultdict(Group)
    for folder, parts, names in tree:
        split, role, rest = meaning(parts)
        files = groups[split, rest].files[role]
        for name in names:
            if is_picture(name):
                stem = stem_of(name)
                if not listed or split or any(_is_listed(stem, stems) for stems in listed.values()):
                    files[stem].append(os.path.join(folder, name))
    filled = {split for (split, _), group in groups.items() if any(group.files.values())}
    for (split, _), group in groups.items():
        if split and split not in filled and {"image", "map"} & group.files.keys():
            raise UserError(f"the split {split!r} is empty", "at least one image", "remove it, or fill it")
    return groups


def _one_coding(tree: list[Entry], root: Path) -> list[Entry]:
    """Of Cityscapes' two codings of the maps, train ids and ids, keep the first that every image has."""
    bases = {ending: {without(stem, ending) for _, _, names in tree for stem in map(stem_of, names)
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
    return [(folder, parts, [name for name in names if not stem_of(name).lower().endswith(other)])
            for folder, parts, names in tree]


def _split_lists(tree: list[Entry], notes: list[str]) -> dict[str, set[str]]:
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
                        stem_of(word) if is_picture(word) else unicodedata.normalize("NFC", word)
                        for word in names_listed
                    )
    pictures = {stem_of(name) for _, _, names in tree for name in names if is_picture(name)}
    if listed and not any(_is_listed(stem, stems) for stem in pictures for stems in listed.values()):
        notes.append("the lists in ImageSets/Segmentation name no image that is here: passed over")
        return {}
    return listed


def _is_listed(stem: str, stems: set[str]) -> bool:
    return stem in stems or any(stem.endswith(e) and without(stem, e) in stems for e in MAP_ENDINGS[1:])


def _those(pairs: Pairs, stems: set[str]) -> Pairs:
    """The pairs of some names."""
    kept = [i for i, name in enumerate(pairs.ids) if name.split("/")[-1] in stems]
    return Pairs(*([column[i] for i in kept] for column in (pairs.images, pairs.maps, pairs.ids)))


def _extend(splits: dict[str, Pairs], split: str, more: Pairs) -> None:
    pairs = splits.setdefault(split, Pairs())
    pairs.images += more.images
    pairs.maps += more.maps
    pairs.ids += more.ids


def _default_split(root: Path) -> str:
    """A folder without splits is one split: the one it is named after, else all of it is for training."""
    return split_of(root.name) or "train"

"""Pairing the images and label maps of one folder by their names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hfseg.data.folder_names import IMAGE_ENDINGS, MAP_ENDINGS, ONLY_IN_MAP_FOLDERS, VIEW_ENDINGS, without
from hfseg.errors import UserError


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
class Group:
    """The files of one split and subfolder.

    Args:
        files: Paths by stem, per role; the role is "" where the directory says nothing.
    """

    files: dict[str, dict[str, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


def sort_roles(group: Group, instances: bool) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Decides which files of a group are images and which are maps.

    Args:
        group: The files.
        instances: Whether instance maps are taken where there are no others.

    Returns:
        Paths by stem: of images, and of maps.
    """
    images, maps, plain = (group.files.get(role, {}) for role in ("image", "map", ""))
    if not maps and instances:
        maps = group.files.get("instance", {})
    if maps or images:
        return images or plain, maps
    beside = {}  # side by side: a map's name is an image's name and an ending
    for stem in plain:
        base = next((without(stem, ending) for ending in MAP_ENDINGS[1:] if stem.lower().endswith(ending)), None)
        if base is not None and any(base + ending in plain for ending in ("", *IMAGE_ENDINGS)):
            beside[stem] = plain[stem]
    return {stem: paths for stem, paths in plain.items() if stem not in beside}, beside


def pair(images: dict[str, list[str]], maps: dict[str, list[str]], where: str, root: Path, skip: bool,
         notes: list[str]) -> Pairs:
    """Pairs the images and maps of one group by their names.

    Args:
        images: Paths by stem.
        maps: Paths by stem.
        where: What the group is called in messages.
        root: What paths in messages are relative to.
        skip: Leave out images without map and maps without image, instead of stopping.
        notes: Gets what was left out.

    Returns:
        The pairs.

    Raises:
        UserError: When names are missing or ambiguous.
    """
    short = {}
    for stem in images:
        ending = next((e for e in IMAGE_ENDINGS if stem.lower().endswith(e)), "")
        short.setdefault(without(stem, ending), stem)
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)  # image stem -> (rank of the ending, map)
    orphans = []
    for stem, paths in maps.items():
        for rank, ending in enumerate((*MAP_ENDINGS, *ONLY_IN_MAP_FOLDERS)):
            base = without(stem, ending)
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

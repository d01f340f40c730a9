"""What the names of directories and files say: a split ("val"), a role ("masks"), whose label map a file is."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

from hfseg.data.images import ARRAY_SUFFIXES, PHOTO_SUFFIXES

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
ROLE_OF = {word: role for role, words in ROLES.items() for word in words.split()}

CODINGS = ("_gtfine_labeltrainids", "_gtfine_labelids")  # of Cityscapes
# Endings of a map's name beyond its image's, best first (Cityscapes has several maps per image).
MAP_ENDINGS = (
    *("", "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_annot", "_annotation"),
    *("-mask", "-label", "-seg", ".mask", ".label", *CODINGS),
)
ONLY_IN_MAP_FOLDERS = ("_l",)  # CamVid's own names; beside the images it may mean "left"
IMAGE_ENDINGS = ("_leftimg8bit", "_image", "_img", "_sat", "-image", ".image")
VIEW_ENDINGS = ("_color", "_colour", "_instanceids", "_labelids", "_overlay", "_vis")  # known, and no labels


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


def meaning(parts: Sequence[str]) -> tuple[str | None, str, tuple[str, ...]]:
    """Reads the names of directories.

    Args:
        parts: Names, from the root down.

    Returns:
        (split or None, role or "", what says neither).

    Example:
        >>> meaning(["trainannot"]), meaning(["images", "val", "aachen"])
        (('train', 'map', ()), ('validation', 'image', ('aachen',)))
    """
    split, role, rest = None, "", []
    for part in parts:
        part_split, part_role = _word(part.lower())
        if part_split is None and part_role is None:
            rest.append(part)
        split, role = part_split or split, part_role or role
    return split, role, tuple(rest)


def _word(part: str) -> tuple[str | None, str | None]:
    if split_of(part) or part in ROLE_OF:
        return split_of(part), ROLE_OF.get(part)
    for alias in sorted(_ALIASES, key=len, reverse=True):  # trainannot, train_masks, masks-val
        for rest in (part.removeprefix(alias), part.removesuffix(alias)):
            if rest != part and (role := ROLE_OF.get(rest.strip("_- ."))):
                return _ALIASES[alias], role
    return None, None


def is_picture(name: str) -> bool:
    """Tell whether a file is an image or an array, by its ending.

    Args:
        name: Of the file.

    Returns:
        True where hfseg reads files that are called so.
    """
    return os.path.splitext(name)[1].lower() in (*PHOTO_SUFFIXES, *ARRAY_SUFFIXES)


def stem_of(name: str) -> str:
    """Gives the name without its ending; zips of macOS decompose accents.

    Args:
        name: Of a file.

    Returns:
        The stem, composed.
    """
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def without(stem: str, ending: str) -> str:
    """Takes an ending off.

    Args:
        stem: A name without its suffix.
        ending: What it ends with, in any case.

    Returns:
        The beginning.
    """
    return stem[: len(stem) - len(ending)]

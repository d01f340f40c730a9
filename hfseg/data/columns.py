"""Canonical splits and columns: which columns hold images and label maps, and what every row must have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from hfseg.data.folder_names import split_name
from hfseg.errors import UserError, one_of

IMAGE_COLUMNS = ("image", "images", "img", "pixel_values", "photo", "picture", "input", "file_name")
LABEL_COLUMNS = (
    *("semantic_map", "label", "labels", "annotation", "annotations", "mask", "masks", "segmentation", "seg"),
    *(
        "segmentation_mask",
        "segmentation_map",
        "semantic_segmentation",
        "label_map",
        "gt",
        "ground_truth",
        "target",
    ),
)


def canonical_names(splits: dict[str, Any]) -> dict[str, Any]:
    """Give splits their usual names, unless another one has it.

    Args:
        splits: Dataset by split.

    Returns:
        The same by canonical name.
    """
    result: dict[str, Any] = {}
    for key, rows in splits.items():
        usual = split_name(key)
        result[key if usual in splits or usual in result else usual] = rows
    return result


def with_features(rows: Any) -> Any:
    """Streams of some formats know their columns only after a look at the first row."""
    return rows._resolve_features() if rows.features is None else rows


def find_columns(features: Mapping[str, Any], image: str | None, label: str | None) -> tuple[str, str]:
    """Tell which columns hold images and label maps.

    Args:
        features: Of a split.
        image: Column of the images, if given.
        label: Column of the label maps, if given.

    Returns:
        Both names.

    Raises:
        UserError: When one cannot be told.
    """
    for given in (image, label):
        if given is not None:
            one_of(given, list(features), "column")
    pictures = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    others = [key for key in features if key not in pictures and _may_hold_files(features[key])]
    for free in (pictures, others):  # a string column called "label" is no map where there is a picture called "mask"
        image = image or next((key for key in IMAGE_COLUMNS if key in free and key != label), None)
        label = label or next((key for key in LABEL_COLUMNS if key in free and key != image), None)
    left = [key for key in pictures if key not in (image, label)]
    if image is None and len(left) == 1:
        image = left.pop()
    if label is None and len(left) == 1:
        label = left.pop()
    if image is None or label is None:
        kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        missing = "image" if image is None else "label map"
        raise UserError(
            f"no {missing} column found among: {kinds}",
            "an image and a label map column",
            "name them by --data.image_column NAME --data.label_column NAME",
        )
    return image, label


def _may_hold_files(feature: Any) -> bool:
    """Paths, arrays, and {bytes, path} of parquet files that lost their features."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    if isinstance(feature, dict):
        return "bytes" in feature
    return type(feature).__name__ in ("Array2D", "Array3D")


def labelled(splits: dict[str, Any], image: str | None, label: str | None, wanted: Sequence[str | None],
             notes: list[str]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Leave out splits without label maps, such as the test split of a competition.

    Args:
        splits: Dataset by split.
        image: Column of the images, if given.
        label: Column of the label maps, if given.
        wanted: Splits that were asked for by name.
        notes: What was left out is added.

    Returns:
        The other splits, and the features of one of them.

    Raises:
        UserError: When no split has both columns, or one that is wanted has not.
    """
    for rows in splits.values():
        try:
            columns = find_columns(rows.features, image, label)
            features = rows.features
            break
        except UserError:
            continue
    else:
        find_columns(next(iter(splits.values())).features, image, label)  # says what is missing
    kept = {}
    for key, rows in splits.items():
        lacking = [column for column in columns if column not in rows.features]
        if not lacking:
            kept[key] = rows
        elif key in wanted or split_name(key) in {split_name(name) for name in wanted if name}:
            raise UserError(f"the split {key!r} has the columns {', '.join(rows.features)}, and no {lacking[0]}",
                            f"{columns[0]} and {columns[1]}", f"choose among {', '.join(kept) or 'the others'}")
        else:
            notes.append(f"the split {key!r} has no {lacking[0]} column: left out")
    return kept, features


def canonical(rows: Any, image: str, label: str) -> Any:
    """Select, rename and leave undecoded."""
    keep = [image, label] + (["image_id"] if "image_id" in rows.features else [])
    rows = rows.select_columns(keep).rename_columns(
        {old: new for old, new in ((image, "image"), (label, "semantic_map")) if old != new}
    )
    for column in ("image", "semantic_map"):
        feature = rows.features[column]
        if isinstance(feature, (datasets.Image, dict)):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def checked(rows: Any, split: str, skip: bool, notes: list[str]) -> Any:
    """Refuse an empty split and repeated ids; give ids where there are none."""
    if isinstance(rows, datasets.IterableDataset):
        return rows
    if not len(rows):
        raise UserError(f"the split {split!r} is empty", "at least one image", "remove it, or fill it")
    if "image_id" not in rows.column_names:
        return rows.add_column("image_id", [f"{split}[{i}]" for i in range(len(rows))])
    ids = rows["image_id"][:]
    if None in ids:
        ids = [f"{split}[{i}]" if key is None else key for i, key in enumerate(ids)]
        rows = rows.remove_columns("image_id").add_column("image_id", list(map(str, ids)))
    if len(set(ids)) == len(ids):
        return rows
    repeated = [key for key, count in Counter(ids).most_common(3) if count > 1]
    if not skip:
        raise UserError(
            f"{split}: {len(ids) - len(set(ids))} rows repeat the image_id of another, such as "
            + ", ".join(map(repr, repeated)),
            "each image_id once",
            "make them unique, or --data.on_bad_sample skip keeps the first of each",
        )
    first = {key: i for i, key in reversed(list(enumerate(ids)))}
    notes.append(f"{split}: {len(ids) - len(first)} rows with a repeated image_id left out")
    return rows.select(sorted(first.values()))

"""How often each class occurs."""

from __future__ import annotations

import numpy as np

from hfseg.data.images import decode_map, name_of, read_row
from hfseg.errors import BadSample


def class_counts(data, split: str, limit: int = 500, skip_bad: bool = False) -> np.ndarray:
    """Counts the pixels of each class in evenly spaced maps of a split.

    Args:
        data: A `SegmentationData`.
        split: Its split.
        limit: How many maps to look at, at most.
        skip_bad: Whether maps that cannot be used are passed over.

    Returns:
        int64 counts, one per class; ignored pixels do not count.
    """
    rows, schema = data[split], data.schema
    total = np.zeros(schema.num_labels, np.int64)
    if hasattr(rows, "__len__"):
        indices = np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))
        picked = rows.select(indices)
        picked = picked.select_columns(["semantic_map"]) if data.task == "semantic" else picked
    else:
        picked = rows.take(limit)
    for number, row in enumerate(picked):
        name = name_of(row.get("semantic_map") or row.get("image")) or f"label map {number} of {split}"
        try:
            if data.task != "semantic":
                ids = read_row(row, schema, data.channels).semantic_map
                total += np.bincount(ids[ids != schema.ignore_index].ravel(), minlength=schema.num_labels)
                continue
            ids = schema.apply(decode_map(row["semantic_map"], name, schema.rgb), sample=name)
        except BadSample:
            if skip_bad:
                continue
            raise
        total += np.bincount(ids[ids != schema.ignore_index].ravel(), minlength=schema.num_labels)
    return total

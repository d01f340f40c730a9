"""From the stored values of a map to class ids, and what to do about a value that nobody named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hfseg.errors import BadSample, UnknownValues
from hfseg.remap import percent, show, show_all

RGB = np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)  # a colour @ RGB is its stored value


class Lookup:
    """The class id of every stored value; see `LabelSchema` for what the arguments mean.

    Args:
        stored: Pairs of a stored value and its class id, or None where the pixel is ignored.
        names: Name of each class id.
        ignore_index: The id of ignored pixels.
        rgb: Whether stored maps are colour images.
        threshold: For binary maps, from where on a value that is not named counts as the second class.
    """

    def __init__(self, stored: Sequence[tuple[int, int | None]], names: Sequence[str], ignore_index: int, rgb: bool,
                 threshold: int | None):
        self.stored, self.names, self.rgb, self.threshold = stored, names, rgb, threshold
        self.packed = rgb and threshold is None  # whether stored values are colours as one number
        self.dtype = np.dtype(np.uint8 if len(names) <= 255 else np.uint16)
        order = sorted((value, ignore_index if i is None else i) for value, i in stored)
        self.keys = np.array([value for value, _ in order], dtype=np.int64)
        self.key_ids = np.array([i for _, i in order], dtype=np.int32)
        by_value = dict(order)
        self.below, self.above = (-1, -1) if threshold is None else (by_value[0], by_value[threshold])
        self.table = np.full(65536, self.below, dtype=np.int32)  # for 8 and 16 bits
        if threshold is not None:
            self.table[threshold:] = self.above
        inside = (self.keys >= 0) & (self.keys < 65536)
        self.table[self.keys[inside]] = self.key_ids[inside]

    def ids(self, stored_map: np.ndarray, sample: str = "") -> np.ndarray:
        """Turns a stored map into class ids.

        Args:
            stored_map: (H, W) integers, or (H, W, 3) uint8 where maps are colour images.
            sample: The file or row, for messages.

        Returns:
            (H, W) class ids.

        Raises:
            BadSample: When the map holds values that are not known.
        """
        values = np.asarray(stored_map)
        if values.ndim == 3 and not self.rgb:
            raise BadSample(
                sample or "label map",
                "a colour map, but the labels have no palette to decode it",
                "single-channel maps of class ids, or RGB maps with data.labels.palette",
                "give data.labels.names and data.labels.palette, a colour per class",
            )
        if self.rgb:  # a map whose colours are all grey comes as one channel
            values = values.astype(np.uint32)
            if self.threshold is not None:
                values = values.max(-1) if values.ndim == 3 else values
            else:
                values = values * 0x010101 if values.ndim == 2 else values @ RGB
        if values.dtype in (np.uint8, np.uint16):
            ids = self.table[values]
        else:
            position = np.minimum(np.searchsorted(self.keys, values), len(self.keys) - 1)
            other = self.below if self.threshold is None else np.where(
                values >= self.threshold, self.above, self.below)
            ids = np.where(self.keys[position] == values, self.key_ids[position], other)
        if ids.size and ids.min() < 0:
            raise self._unknown(values[ids < 0], values.size, sample)
        return ids.astype(self.dtype)

    def _unknown(self, values: np.ndarray, size: int, sample: str) -> UnknownValues:
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts)[:8]
        listed = ", ".join(f"{show(int(found[i]), self.packed)} ({percent(counts[i] / size)} of it)" for i in order)
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        known = show_all([value for value, i in self.stored if i is not None], self.packed)
        ignored = [show(value, self.packed) for value, i in self.stored if i is None]
        allowed = known + (f"; ignored: {', '.join(ignored)}" if ignored else "")
        what = f"values that are not among the labels: {listed}{more}"
        return UnknownValues(sample or "label map", what, allowed, self._fix(found))

    def _fix(self, found: np.ndarray) -> str:
        """What most likely mends these unknown values, in ascending order."""
        top, values = int(found[-1]), [value for value, i in self.stored if i is not None]
        if self.packed:
            return "add the colours to data.labels.palette; those beyond data.labels.names are ignored"
        if len(found) > 16:
            fix = "so many values look like instance ids, or a map saved as JPEG: save class ids as PNG"
            return fix + (", or --data.labels.binary true" if len(self.names) <= 2 else "")
        if len(values) == 2 and values[0] == 0 and values[1] > 1:
            return f"--data.labels.binary true if every value above 0 is {self.names[-1]!r}, else name every class"
        if len(self.names) == 2 and len(found) == 1 and top > 2:
            return f"--data.labels.binary true if {top} is the second class, else --data.labels.ignore_index {top}"
        if len(found) == 1 and top == max(values) + 1 and min(values) == 0:
            return (f"--data.labels.reduce_labels true if 0 is unlabelled, --data.labels.ignore_index {top} if {top} "
                    "is, else add its name to data.labels.names")
        if len(found) == 1 or top == -1:
            return f"--data.labels.ignore_index {top} if it means unlabelled, else add its name to data.labels.names"
        return f"give data.labels.names with a name for every stored value, 0 to {top}"

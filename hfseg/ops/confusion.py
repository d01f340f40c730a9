"""Counting which class was predicted where which class is true."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from hfseg.errors import UserError

Map = TypeVar("Map", np.ndarray, torch.Tensor)

_MOST_PAIRS = 1 << 25  # entries of a table in `pair_counts`
_DENSE_LIMIT = 1 << 12  # values below this are their own row or column in `pair_counts`


def confusion_counts(reference: Map, prediction: Map, num_labels: int, ignore_index: int | None = 255) -> Map:
    """Count the pixels of every pair of a true and a predicted class.

    Pixels whose reference is `ignore_index` are left out, whatever is predicted there.

    Args:
        reference: True class ids, integers of any shape, an array or a tensor.
        prediction: Predicted class ids, same shape and kind.
        num_labels: Number of classes n.
        ignore_index: The reference value to leave out; None leaves nothing out.

    Returns:
        (n, n) int64, an array for arrays and a tensor on the same device for tensors. Rows are the reference,
        columns the prediction.

    Raises:
        UserError: When shapes differ, or when a counted pixel has a value outside 0 to n - 1; lists the values.

    Example:
        >>> confusion_counts(np.array([0, 1, 255]), np.array([0, 0, 1]), num_labels=2).tolist()
        [[1, 0], [1, 0]]
    """
    if tuple(reference.shape) != tuple(prediction.shape):
        raise _shapes_differ(reference, prediction)
    if isinstance(reference, torch.Tensor) and reference.device.type == "cpu" and not reference.is_floating_point():
        counts = confusion_counts(reference.numpy(), prediction.numpy(), num_labels, ignore_index)
        return torch.from_numpy(counts)
    reference, prediction = reference.reshape(-1), prediction.reshape(-1)
    in_range = ignore_index is None or abs(ignore_index) < 1 << 63
    if isinstance(reference, np.ndarray) and _whole(reference) and _whole(prediction) and in_range:
        from hfseg.ops.counting import NO_VALUE, pair_table

        ignore = NO_VALUE if ignore_index is None else ignore_index
        counts, outside = pair_table(reference, prediction, (num_labels, num_labels), ignore)
        if not outside:
            return counts
    if ignore_index is not None and _holds(reference, ignore_index):
        kept = reference != ignore_index
        reference, prediction = reference[kept], prediction[kept]
    for values, what in ((reference, "reference"), (prediction, "prediction")):
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= num_labels):
            raise _outside(values, num_labels, what)
    if isinstance(reference, torch.Tensor):
        pairs = reference.long() * num_labels + prediction.long()
        return torch.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)
    pairs = reference.astype(np.intp) * num_labels + prediction.astype(np.intp)
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels).astype(np.int64, copy=False)


def _whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "iub" and values.dtype != np.uint64  # which int64 does not hold


def _holds(values: Map, value: int) -> bool:
    """Whether values of this type can be `value`: torch wraps it around otherwise."""
    if not isinstance(values, torch.Tensor) or values.dtype == torch.bool or values.is_floating_point():
        return True
    limits = torch.iinfo(values.dtype)
    return limits.min <= value <= limits.max


def pair_counts(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels of every pair of values, whatever the values are.

    Args:
        reference: Integers of any shape.
        prediction: Integers of the same shape.

    Returns:
        The reference values (R,), ascending; the predicted values (P,), ascending; the counts (R, P) int64. A
        value may be listed that does not occur.

    Raises:
        UserError: When the shapes differ or the values are not whole numbers.

    Example:
        >>> rows, columns, counts = pair_counts(np.array([0, 0, 2]), np.array([1, 1, 0]))
        >>> counts.tolist()
        [[0, 2], [0, 0], [1, 0]]
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    if reference.shape != prediction.shape:
        raise _shapes_differ(reference, prediction)
    rows, row = _index(reference.reshape(-1))
    columns, column = _index(prediction.reshape(-1))
    if len(rows) * len(columns) > _MOST_PAIRS:
        raise UserError(f"maps of {len(rows)} and {len(columns)} different values", "maps of class ids",
                        "colours, depths or object numbers have to become class ids first")
    from hfseg.ops.counting import NO_VALUE, pair_table

    counts, _ = pair_table(row, column, (len(rows), len(columns)), NO_VALUE)
    return rows, columns, counts


def _index(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (ascending) and, for each element, the position of its value among them."""
    if values.dtype.kind not in "iub" or values.dtype == np.uint64:
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if not np.array_equal(whole, values):
            raise UserError(f"a map of {values.dtype} with fractions or NaN", "whole numbers: class ids")
        values = whole
    if values.size == 0:
        return np.zeros(0, dtype=np.int64), values
    if values.dtype == np.uint8:
        return np.arange(256), values  # the same for every map: their counts add up without a look at the values
    if values.min() >= 0 and values.max() < _DENSE_LIMIT:
        return np.arange(int(values.max()) + 1), values
    return np.unique(values, return_inverse=True)


def _shapes_differ(reference, prediction) -> UserError:
    return UserError(
        f"a reference of shape {tuple(reference.shape)} and a prediction of shape {tuple(prediction.shape)}",
        "the same shape",
        "predict at the size of the reference",
    )


def _outside(values, num_labels: int, what: str) -> UserError:
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
    found, counts = np.unique(values, return_counts=True)
    outside = (found < 0) | (found >= num_labels)
    found, counts = found[outside], counts[outside]
    listed = ", ".join(f"{value} ({count} pixels)" for value, count in zip(found[:8], counts[:8], strict=True))
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return UserError(f"{what} values outside the labels: {listed}{more}", f"0 to {num_labels - 1}")

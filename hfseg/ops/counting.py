"""Counting pairs of values, compiled."""

from __future__ import annotations

import numpy as np

from hfseg.ops.compiled import compiled

NO_VALUE = np.iinfo(np.int64).min  # for `ignore`: nothing is left out
_SMALL_TABLE = 1 << 15  # entries of a table of which several fit the cache


def pair_table(reference: np.ndarray, prediction: np.ndarray, shape: tuple[int, int], ignore: int) -> tuple:
    """Counts the pairs of two maps.

    Args:
        reference: Integers of any shape.
        prediction: Integers of the same shape.
        shape: (rows, columns) of the table.
        ignore: Reference value to leave out, or `NO_VALUE`.

    Returns:
        The counts, `shape` int64, and how many counted pixels lie outside the table.

    Example:
        >>> pair_table(np.array([0, 1, 1]), np.array([1, 1, 5]), (2, 2), NO_VALUE)
        (array([[0, 1],
               [0, 1]]), 1)
    """
    reference, prediction = _plain(reference), _plain(prediction)
    rows, columns = shape
    if reference.dtype == prediction.dtype == np.uint8 and max(shape) <= 256:
        everything = np.zeros((256, 256), np.int64)
        count_bytes(reference, prediction, everything.reshape(-1))
        if 0 <= ignore < 256:
            everything[ignore] = 0
        counts = everything[:rows, :columns].copy()
        return counts, int(everything.sum() - counts.sum())
    # A processor waits before it adds to the same place again: neighbours go to different tables.
    lanes = 4 if rows * columns <= _SMALL_TABLE else 1
    tables = np.zeros((lanes, rows, columns), np.int64)
    outside = count_pairs(reference, prediction, rows, columns, ignore, tables.reshape(-1), lanes)
    return tables.sum(axis=0), outside


def _plain(values: np.ndarray) -> np.ndarray:
    """As compiled code takes it: flat, in the machine's byte order, bool as numbers."""
    values = np.ascontiguousarray(values.reshape(-1), values.dtype.newbyteorder("="))
    return values.view(np.uint8) if values.dtype == bool else values


@compiled
def count_bytes(reference, prediction, table):
    """Adds pairs of bytes to a table that holds every pair.

    Args:
        reference, prediction: (N,) uint8.
        table: (65536,) int64, at 256 * reference + prediction.
    """
    for i in range(len(reference)):
        table[np.uint64(reference[i]) * np.uint64(256) + np.uint64(prediction[i])] += 1


@compiled
def count_pairs(reference, prediction, rows, columns, ignore, tables, lanes):
    """Adds pairs to tables, in turns.

    Args:
        reference, prediction: (N,) integers.
        rows, columns: Of each table.
        ignore: Reference value to leave out, or `NO_VALUE`.
        tables: (lanes * rows * columns,) int64, added to.
        lanes: How many tables, a power of two.

    Returns:
        How many counted elements lie outside the tables.
    """
    # Unsigned: a negative number is a huge one, and no index counts from the end.
    size, turns = np.uint64(rows * columns), np.uint64(lanes - 1)
    outside = 0
    for i in range(len(reference)):
        row, column = np.uint64(reference[i]), np.uint64(prediction[i])
        if np.int64(reference[i]) == ignore:
            continue
        if row < np.uint64(rows) and column < np.uint64(columns):
            tables[(np.uint64(i) & turns) * size + row * np.uint64(columns) + column] += 1
        else:
            outside += 1
    return outside

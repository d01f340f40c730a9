"""Upsampling by cells of the coarse grid, compiled.

Between four neighbouring logits ("a cell") every bilinearly upsampled logit is a convex combination of the four. So
class c can win inside the cell only if the largest of its four corners reaches the floor: the maximum over all
classes of the smallest of their four corners. One class reaches it: the cell is decided without arithmetic. Several
do: only these are interpolated.
"""

from __future__ import annotations

import math

import numpy as np

from hfseg.ops.compiled import compiled

_FAST = {"reassoc", "nsz", "contract", "arcp", "afn"}  # sums may be reordered; NaN and infinity keep their meaning


@compiled
def _candidates(logits, i, i2, column_starts, margin, low, reach, count, found):
    """Lists, for each cell of a row that holds output pixels, the classes that reach the floor minus `margin`.

    Args:
        logits: (C, h, w).
        i: Row above, and `i2`, the row below.
        column_starts: (w + 1,) first output column of each cell.
        margin: 0, or how far below the floor a class still counts.
        low, reach: (w,) scratch.
        count: (w,) how many were found.
        found: (w, C) their ids, ascending.
    """
    classes, _, w = logits.shape
    for c in range(classes):
        above, below = logits[c, i], logits[c, i2]
        for j in range(w):
            a, b = above[j], below[j]
            reach[j] = a if a < b else b
        if c == 0:
            for j in range(w - 1):
                low[j] = reach[j] if reach[j] < reach[j + 1] else reach[j + 1]
            low[w - 1] = reach[w - 1]
        else:
            for j in range(w - 1):
                least = reach[j] if reach[j] < reach[j + 1] else reach[j + 1]
                low[j] = least if least > low[j] else low[j]
            low[w - 1] = reach[w - 1] if reach[w - 1] > low[w - 1] else low[w - 1]
    for j in range(w):
        count[j] = 0
        low[j] -= margin
    for c in range(classes):
        above, below = logits[c, i], logits[c, i2]
        hits = 0
        for j in range(w):
            a, b = above[j], below[j]
            reach[j] = a if a > b else b
        for j in range(w - 1):
            most = reach[j] if reach[j] > reach[j + 1] else reach[j + 1]
            hits += most >= low[j]
        hits += reach[w - 1] >= low[w - 1]
        if hits:
            for j in range(w):
                most = reach[j]
                if j + 1 < w and reach[j + 1] > most:
                    most = reach[j + 1]
                if most >= low[j] and column_starts[j] < column_starts[j + 1]:
                    found[j, count[j]] = c
                    count[j] += 1


@compiled
def _corners(logits, i, i2, j, share, chosen, left, right):
    """Interpolates the chosen classes along the left and the right edge of a cell."""
    j2 = min(j + 1, logits.shape[2] - 1)
    for k in range(len(chosen)):
        c = chosen[k]
        left[k] = share[0] * logits[c, i, j] + share[1] * logits[c, i2, j]
        right[k] = share[0] * logits[c, i, j2] + share[1] * logits[c, i2, j2]


@compiled
def _winner(left, right, n, share):
    """The position of the largest of n interpolated logits; the first of equals."""
    best, value = 0, share[0] * left[0] + share[1] * right[0]
    for k in range(1, n):
        other = share[0] * left[k] + share[1] * right[k]
        if other > value:
            best, value = k, other
    return best


@compiled
def label_rows(logits, rows, row_shares, column_starts, column_shares, first, last, labels):
    """Writes the winning class of output rows `first` to `last` - 1.

    Args:
        logits: (C, h, w) finite floats.
        rows: (H,) coarse row above each output row.
        row_shares: (H, 2) weights of that row and of the next.
        column_starts: (w + 1,) first output column of each cell.
        column_shares: (W, 2) weights of the coarse column to the left and of the one to the right.
        first, last: Range of output rows.
        labels: (H, W) integers, written.
    """
    classes, h, w = logits.shape
    low, reach = np.empty(w, logits.dtype), np.empty(w, logits.dtype)
    count, found = np.empty(w, np.int64), np.empty((w, classes), np.int32)
    left, right = np.empty(classes, logits.dtype), np.empty(classes, logits.dtype)
    cell = -1
    for y in range(first, last):
        i, i2 = rows[y], min(rows[y] + 1, h - 1)
        if i != cell:
            _candidates(logits, i, i2, column_starts, 0, low, reach, count, found)
            cell = i
        for j in range(w):
            begin, end = column_starts[j], column_starts[j + 1]
            if begin == end:
                continue
            if count[j] == 1:
                labels[y, begin:end] = found[j, 0]
                continue
            n = count[j]
            _corners(logits, i, i2, j, row_shares[y], found[j, :n], left, right)
            for x in range(begin, end):
                labels[y, x] = found[j, _winner(left, right, n, column_shares[x])]


@compiled
def count_rows(logits, rows, row_shares, column_starts, column_shares, first, last, reference, ignore, counts):
    """Counts (reference, winner) of output rows without writing the map.

    Args:
        logits, rows, row_shares, column_starts, column_shares, first, last: As for `label_rows`.
        reference: (H, W) integers.
        ignore: Reference value to leave out, or `counting.NO_VALUE`.
        counts: (n, C) int64, added to.

    Returns:
        How many pixels have a reference outside 0 to n - 1.
    """
    classes, h, w = logits.shape
    n = counts.shape[0]
    low, reach = np.empty(w, logits.dtype), np.empty(w, logits.dtype)
    count, found = np.empty(w, np.int64), np.empty((w, classes), np.int32)
    left, right = np.empty(classes, logits.dtype), np.empty(classes, logits.dtype)
    cell, outside = -1, 0
    for y in range(first, last):
        i, i2 = rows[y], min(rows[y] + 1, h - 1)
        if i != cell:
            _candidates(logits, i, i2, column_starts, 0, low, reach, count, found)
            cell = i
        for j in range(w):
            begin, end = column_starts[j], column_starts[j + 1]
            if begin == end:
                continue
            several = count[j]
            if several > 1:
                _corners(logits, i, i2, j, row_shares[y], found[j, :several], left, right)
            for x in range(begin, end):
                true = np.int64(reference[y, x])
                if true == ignore:
                    continue
                if true < 0 or true >= n:
                    outside += 1
                    continue
                best = _winner(left, right, several, column_shares[x]) if several > 1 else 0
                counts[true, found[j, best]] += 1
    return outside


@compiled
def _below(left, right, n, share, best, gap):
    """Writes how far n interpolated values lie below the best one: at most 0, at least -87. Rounded as `_winner` does:
    reordered sums would differ from it by more than the gaps where logits are large."""
    for k in range(n):
        x = share[0] * left[k] + share[1] * right[k] - best
        gap[k] = min(max(x, np.float32(-87)), np.float32(0))


@compiled(fastmath=_FAST)
def _sum_of_exp(gap, n, power, scale):
    """Sums exp(x) over n gaps from -87 to 0.

    exp(x) = 2^k exp(r) with k = round(x / ln 2): the power by the bits of a float32, exp(r) by its series to r^6,
    whose error is below 2e-7 for |r| <= ln 2 / 2. `power` and `scale` are one buffer, as int32 and as float32.
    """
    for k in range(n):
        power[k] = (np.int32(gap[k] * np.float32(1.44269504) - np.float32(0.5)) + 127) << 23
    total = np.float32(0)
    for k in range(n):
        x = gap[k]
        whole = np.float32(np.int32(x * np.float32(1.44269504) - np.float32(0.5)))
        r = (x - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)
        series = np.float32(1 / 720)
        series = series * r + np.float32(1 / 120)
        series = series * r + np.float32(1 / 24)
        series = series * r + np.float32(1 / 6)
        series = series * r + np.float32(0.5)
        total += (series * r * r + r + np.float32(1)) * scale[k]
    return total


@compiled
def confidence_rows(logits, rows, row_shares, column_starts, column_shares, first, last, labels, confidence):
    """Writes the winning class and its softmax probability.

    Classes that lie so far below the floor that all of them together cannot change the float32 result are left out.

    Args:
        logits: (C, h, w) finite float32.
        rows, row_shares, column_starts, column_shares, first, last, labels: As for `label_rows`.
        confidence: (H, W) float32, written.
    """
    classes, h, w = logits.shape
    margin = np.float32(math.log(classes) + 17)
    low, reach = np.empty(w, np.float32), np.empty(w, np.float32)
    count, found = np.empty(w, np.int64), np.empty((w, classes), np.int32)
    left, right = np.empty(classes, np.float32), np.empty(classes, np.float32)
    gap, power = np.empty(classes, np.float32), np.empty(classes, np.int32)
    scale = power.view(np.float32)
    cell = -1
    for y in range(first, last):
        i, i2 = rows[y], min(rows[y] + 1, h - 1)
        if i != cell:
            _candidates(logits, i, i2, column_starts, margin, low, reach, count, found)
            cell = i
        for j in range(w):
            begin, end = column_starts[j], column_starts[j + 1]
            if begin == end:
                continue
            n = count[j]
            if n == 1:
                labels[y, begin:end] = found[j, 0]
                confidence[y, begin:end] = 1
                continue
            _corners(logits, i, i2, j, row_shares[y], found[j, :n], left, right)
            for x in range(begin, end):
                share = column_shares[x]
                best = _winner(left, right, n, share)
                labels[y, x] = found[j, best]
                top = share[0] * left[best] + share[1] * right[best]
                _below(left, right, n, share, top, gap)
                confidence[y, x] = np.float32(1) / _sum_of_exp(gap, n, power, scale)


@compiled
def threshold_rows(logits, rows, row_shares, column_starts, column_shares, first, last, threshold, mask):
    """Writes where the upsampled logit is above a threshold.

    Args:
        logits: (h, w) finite floats.
        rows, row_shares, column_starts, column_shares, first, last: As for `label_rows`.
        threshold: A number of the logits' type.
        mask: (H, W) bool, written.
    """
    h, w = logits.shape
    for y in range(first, last):
        i, i2 = rows[y], min(rows[y] + 1, h - 1)
        share = row_shares[y]
        for j in range(w):
            begin, end = column_starts[j], column_starts[j + 1]
            if begin == end:
                continue
            j2 = min(j + 1, w - 1)
            a, b, c, d = logits[i, j], logits[i, j2], logits[i2, j], logits[i2, j2]
            inside = (a > threshold) + (b > threshold) + (c > threshold) + (d > threshold)
            if inside == 0 or inside == 4:
                mask[y, begin:end] = inside == 4
                continue
            left, right = share[0] * a + share[1] * c, share[0] * b + share[1] * d
            for x in range(begin, end):
                mask[y, x] = column_shares[x, 0] * left + column_shares[x, 1] * right > threshold

"""Compiled loops: numba without the GIL, shared out over as many threads as torch uses.

numba's own parallel loops are not used: after one of them ran, a forked worker process dies, and two threads cannot
run one at the same time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import torch

_LEAST_SHARE = 50_000  # elements of work that are worth another thread
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def compiled(function: Callable | None = None, **options) -> Callable:
    """Compiles a function on its first call, keeps the code on disk for later processes, and runs without the GIL.

    Args:
        function: Of numbers and arrays, in what numba understands.
        **options: Of `numba.njit`.

    Returns:
        The compiled function. Where no folder for the code can be written, each process compiles anew.

    Example:
        >>> compiled(lambda x: x + 1)(2)
        3
    """
    if function is None:
        return lambda function: compiled(function, **options)
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # no place to cache
        return numba.njit(nogil=True, **options)(function)


def share_out(call: Callable[..., object], count: int, work: int, batch: int = 1) -> list:
    """Runs a compiled function on ranges of rows, in threads where that pays.

    Args:
        call: Takes (image, first row, row after the last).
        count: Number of rows of an image.
        work: Elements touched in all, which says how many threads pay.
        batch: Number of images.

    Returns:
        What the calls returned.

    Example:
        >>> share_out(lambda image, first, last: last - first, 10, work=10)
        [10]
    """
    threads = max(1, min(torch.get_num_threads(), work // _LEAST_SHARE))
    if threads == 1:
        return [call(image, 0, count) for image in range(batch)]
    # More ranges than threads, since rows differ in work.
    pieces = min(count, -(-4 * threads // batch))
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    ranges = [(image, *edge) for image in range(batch) for edge in itertools.pairwise(edges)]
    return _run(call, ranges, threads)


def _run(call: Callable[..., object], ranges: Sequence[tuple], threads: int) -> list:
    waiting = iter(list(enumerate(ranges)))
    results: list = [None] * len(ranges)

    def take() -> None:
        for position, arguments in waiting:  # `next` on a list's iterator is atomic
            results[position] = call(*arguments)

    try:
        pool = _pools.get(threads) or _pools.setdefault(threads, ThreadPoolExecutor(threads - 1, "hfseg"))
        others = [pool.submit(take) for _ in range(threads - 1)]
    except RuntimeError:  # the interpreter is ending: no new threads
        others = []
    take()
    for other in others:
        other.result()
    return results

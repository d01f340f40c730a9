"""Compiled loops: numba without the GIL, shared out over as many threads as torch uses.

numba's own parallel loops are not used: after one of them ran, a forked worker process dies, and two threads cannot
run one at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
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
        dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
        save = dispatcher._cache.save_overload

        def save_if_possible(*arguments):
            with contextlib.suppress(OSError):  # full, over quota, or not writable any more
                save(*arguments)

        dispatcher._cache.save_overload = save_if_possible
        return dispatcher
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
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()  # one for each range that is done

    def take() -> None:
        for position, arguments in waiting:  # `next` on a list's iterator is atomic
            try:
                results[position] = call(*arguments)
                outcomes.put(None)
            except BaseException as error:
                outcomes.put(error)

    try:
        most = torch.get_num_threads()
        pool = _pools.get(most) or _pools.setdefault(most, ThreadPoolExecutor(most - 1, "hfseg"))
        for _ in range(threads - 1):
            pool.submit(take)
    except RuntimeError:  # no new threads: the interpreter is ending, or the machine has no more. Some may be at work.
        pass
    take()
    errors = [error for error in (outcomes.get() for _ in ranges) if error]
    if errors:
        raise errors[0]
    return results

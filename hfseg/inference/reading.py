"""Reading images from wherever they are, in threads ahead of who needs them."""

from __future__ import annotations

import http.client
import os
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from hfseg.data.images import decode_image, name_of
from hfseg.errors import BadSample, UserError

Value, Item = TypeVar("Value"), TypeVar("Item")

_URL_SECONDS = 30
_URL_BYTES = 500_000_000


def read_image(value: Any, channels: int = 3, name: str = "image") -> np.ndarray:
    """Read an image from a file, the network or memory.

    Args:
        value: A path, http(s) URL, bytes of a file, PIL image or array.
        channels: Number of channels wanted.
        name: What to call it in messages, if it has no name of its own.

    Returns:
        (H, W, channels) as `decode_image` gives it.

    Raises:
        BadSample: When it cannot be decoded, or has no pixels.
        UserError: When a URL cannot be fetched, or it is a folder.
    """
    name = name_of(value) or name
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        value = _download(value)
    elif isinstance(value, str | os.PathLike) and os.path.isdir(value):
        raise UserError(f"{name} is a folder", "an image", f"hfseg predict MODEL {name} --output DIR")
    image = decode_image(value, channels, name)
    if 0 in image.shape:
        raise BadSample(name, f"an image of {image.shape[1]} x {image.shape[0]} pixels", "at least one pixel")
    return image


def read_ahead(
    read: Callable[[Value], Item], values: Iterable[Value], workers: int = 2, ahead: int = 8
) -> Iterator[Item | Exception]:
    """Applies a function to values in threads, and gives what it returns in the order of the values.

    Args:
        read: What to do with a value; it runs in several threads.
        values: Taken one at a time, in the caller's thread; they need not end.
        workers: Threads.
        ahead: How many values may be under way, read or not, that were not asked for yet.

    Returns:
        An iterator over the results. An error that `read` raises is given in the place of its result, for the caller
        to raise or to pass over, and one that `values` raises after all others.

    Example:
        >>> list(read_ahead(int, ["1", "x"]))
        [1, ValueError("invalid literal for int() with base 10: 'x'")]
    """
    source, pending = iter(values), deque[Future]()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hfseg-read")
    try:
        while True:
            while source is not None and len(pending) < ahead:
                try:
                    value = next(source)
                except StopIteration:
                    source = None
                except Exception as error:
                    source = None
                    pending.append(Future())
                    pending[-1].set_exception(error)
                else:
                    pending.append(pool.submit(read, value))
            if not pending:
                return
            future = pending.popleft()
            yield future.exception() or future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _download(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "hfseg"})
        with urllib.request.urlopen(request, timeout=_URL_SECONDS) as response:
            content = response.read(_URL_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise UserError(
            f"cannot fetch {url}: {error}", "a URL that this machine can reach", "or pass a file"
        ) from error
    if len(content) > _URL_BYTES:
        raise UserError(f"{url} is larger than {_URL_BYTES // 1_000_000} MB", fix="download it and pass the file")
    return content

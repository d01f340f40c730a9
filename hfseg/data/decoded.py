"""Decoded samples, kept on disk as they lie in memory: later epochs, other workers and later runs map them.

One file per row under `<datasets cache>/hfseg-decoded/<fingerprint>/`. It is written under another name and renamed, so
that a killed writer leaves nothing that looks whole; each process checks a file's sum when it first reads it, and
decodes the row anew where that is wrong. Bad samples are never kept. Nothing but time depends on any of this.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import get_worker_info

from hfseg.data.images import Sample
from hfseg.labels import LabelSchema

VERSION = 2  # counted up when a row would be decoded to something else, or be written otherwise
DEFAULT_GB = 8.0
DISK_SHARE = 0.5  # of the disk that would be free without the cache
USED = "used"  # its modification time says when a data set was last read
SPARED = 3600  # seconds after that in which it is not removed

_HEAD = struct.Struct("<8sII")  # magic, length and CRC-32 of the description
_MAGIC = b"hfseg\0\0" + bytes([VERSION])
_LINE = 64  # arrays begin at multiples of this


class DecodedRows:
    """Samples of a map-style data set, decoded at first use and mapped into memory from then on.

    Args:
        rows: A `datasets.Dataset` with columns image and semantic_map.
        schema: The labels.
        channels: Bands of the images.
        gigabytes: The most that all data sets together keep (10^9 bytes); the least recently used ones make room.
            Never more than half of what is free on the disk, the cache itself counted as free.
        root: The folder; by default `hfseg-decoded` in the cache of `datasets`.

    Attributes:
        note: What people should know.

    Example:
        >>> import tempfile
        >>> from hfseg.data import load_data, read_row
        >>> data = load_data("shapes", scenes=2)
        >>> cache = DecodedRows(data["train"], data.schema, root=tempfile.mkdtemp())
        >>> decode = lambda: read_row(data["train"][0], data.schema)
        >>> first, again = cache.read(0, decode), cache.read(0, decode)
        >>> (first.image == again.image).all(), cache.hits
        (np.True_, 1)
    """

    def __init__(self, rows, schema: LabelSchema, channels: int = 3, gigabytes: float = DEFAULT_GB, root=None):
        self.root = Path(root or Path(datasets.config.HF_DATASETS_CACHE) / "hfseg-decoded")
        self.folder = self.root / fingerprint(rows, schema, channels)
        self.limit = gigabytes * 1e9
        self.hits = 0
        self._allowance, self._writing, self._warned, self._touched = 0.0, True, False, time.monotonic()
        self._checked: set[int] = set()
        self.note = f"decoded images are kept in {self.folder} (data.cache_gb)"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / USED).touch()
            for left in self.folder.glob("*.writing"):  # by a killed writer
                if time.time() - left.stat().st_mtime > SPARED:
                    left.unlink(missing_ok=True)
        except OSError as error:
            self._writing = False
            self.note = f"no decoded images can be added to {self.folder} ({error.strerror}): they are decoded anew"

    def read(self, index: int, decode: Callable[[], Sample]) -> Sample:
        """Returns a row, decoded.

        Args:
            index: Which row.
            decode: Decodes it.

        Returns:
            The sample; what is done to its arrays reaches no one else.

        Raises:
            BadSample: From `decode`.
        """
        if time.monotonic() - self._touched > SPARED / 6:
            self._touched = time.monotonic()
            try:
                os.utime(self.folder / USED)
            except OSError:
                pass  # read-only: whoever can remove it goes by the old time
        path = f"{self.folder}/{index:08d}"
        sample = load(path, check=index not in self._checked)
        if sample is None:
            sample = decode()
            if self._writing:
                self._store(path, sample)
            return sample
        self._checked.add(index)
        self.hits += 1
        return sample

    def _store(self, path: str, sample: Sample) -> None:
        size = sample.image.nbytes + sample.semantic_map.nbytes + 1024
        try:
            if size > self.limit / 16:
                self._warn(f"a row of {size / 1e6:.2g} MB is not kept: it is more than a sixteenth of data.cache_gb")
            elif self._fits(size):
                self._allowance -= size
                save(path, sample)
        except OSError as error:
            # Another process may have removed the data set, or something else be in the row's place.
            if error.errno not in (errno.ENOENT, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
                self._stop(f"{error.strerror}")

    def _fits(self, size: int) -> bool:
        """Whether there is room; each process takes a sixteenth of it at a time, so that several stay within it."""
        while size > self._allowance:
            used = sum(map(_size, _files(self.root)))
            free = shutil.disk_usage(self.root).free
            room = min(self.limit, (free + used) * DISK_SHARE) - used
            if size <= room:
                self._allowance = max(size, room / 16)
            elif not self._evict():
                self._stop(f"{used / 1e9:.1f} GB are kept")
                return False
        return True

    def _evict(self) -> bool:
        """Removes the data set that was not read for the longest time, if any may go."""
        others = []
        for folder in self.root.iterdir():
            try:
                others.append(((folder / USED).stat().st_mtime, folder))
            except OSError:
                continue  # none of ours, or just removed
        others = [(last, folder) for last, folder in others
                  if folder.name != self.folder.name and time.time() - last > SPARED]
        if not others:
            return False
        shutil.rmtree(min(others)[1], ignore_errors=True)
        return not min(others)[1].exists()

    def _stop(self, reason: str) -> None:
        self._writing = False
        self._warn(f"no more decoded images are kept in {self.root} ({reason}): the others are decoded in every "
                   "epoch. data.cache_gb says how much may be kept")

    def _warn(self, text: str) -> None:
        worker = get_worker_info()
        if not self._warned and (worker is None or worker.id == 0):
            self._warned = True
            warnings.warn(text, stacklevel=4)


def decoded_rows(rows, schema: LabelSchema, channels: int, gigabytes: float | None, on_gpu: bool) -> DecodedRows | None:
    """Opens the cache that a recipe asks for.

    Args:
        rows: A `datasets.Dataset`, or a stream, of which nothing is kept.
        schema: The labels.
        channels: Bands of the images.
        gigabytes: The recipe's `data.cache_gb`.
        on_gpu: Whether training runs on a GPU. On the CPU decoding is a hundredth of a step.

    Returns:
        The cache; None where nothing is to be kept.

    Example:
        >>> rows = datasets.Dataset.from_dict({"image": [], "semantic_map": []})
        >>> decoded_rows(rows, LabelSchema.from_names(["road", "car"]), 3, None, on_gpu=False) is None
        True
    """
    if gigabytes is None:
        gigabytes = DEFAULT_GB if on_gpu else 0
    if not gigabytes or not isinstance(rows, datasets.Dataset):
        return None
    return DecodedRows(rows, schema, channels, gigabytes)


def fingerprint(rows, schema: LabelSchema, channels: int) -> str:
    """Returns what names the decoded form of a data set: it depends on all that decoding depends on.

    Args:
        rows: A `datasets.Dataset` with columns image and semantic_map.
        schema: The labels.
        channels: Bands of the images.

    Returns:
        32 hexadecimal digits. Files that a column names count with their size and time of modification.

    Example:
        >>> rows = datasets.Dataset.from_dict({"image": ["a.tif"], "semantic_map": ["b.png"]})
        >>> schema = LabelSchema.from_names(["road", "car"])
        >>> fingerprint(rows, schema, 3) == fingerprint(rows, schema, 3) != fingerprint(rows, schema, 7)
        True
    """
    digest = hashlib.sha256()
    meaning = (schema.stored, schema.rgb, schema.threshold, schema.num_labels)
    for part in (VERSION, PIL.__version__, np.__version__, meaning, channels, rows._fingerprint):
        digest.update(f"{part!r}\n".encode())
    paths = [file["filename"] for file in rows.cache_files]
    for column in ("image", "semantic_map"):
        paths += _paths(rows.data.column(column))
    for path in paths:
        try:
            found = os.stat(path)
            digest.update(f"{path}\n{found.st_size}\n{found.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\nmissing\n".encode())
    return digest.hexdigest()[:32]


def _paths(column) -> Iterator[str]:
    """The files that a column names, where it does not hold their bytes."""
    kind = column.type
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        column = pc.struct_field(column, "path").filter(pc.is_null(pc.struct_field(column, "bytes")))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield from filter(None, column.to_pylist())


def save(path: str, sample: Sample) -> None:
    """Writes a sample, under another name until it is whole.

    Args:
        path: The file.
        sample: The sample.

    Raises:
        OSError: When the disk is full, the folder read-only...; nothing is left then.
    """
    arrays = [np.ascontiguousarray(array) for array in (sample.image, sample.semantic_map)]
    pieces = [array.view(np.uint8).reshape(-1) for array in arrays]
    text = json.dumps({
        "name": sample.name, "place": _place(path), "sums": [zlib.crc32(piece) for piece in pieces],
        "arrays": [[array.dtype.str, array.shape] for array in arrays],
    }).encode()  # fmt: skip
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}.writing"
    try:
        with open(temporary, "wb") as file:
            file.write(_HEAD.pack(_MAGIC, len(text), zlib.crc32(text)) + text)
            for piece in pieces:
                file.write(bytes(-file.tell() % _LINE))
                file.write(piece)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str, check: bool = True) -> Sample | None:
    """Maps a sample into memory.

    Args:
        path: A file that `save` wrote.
        check: Whether to compare the sum of its bytes, for which all of it is read.

    Returns:
        The sample, whose arrays can be written to without changing the file; None where there is no such file, or a
        damaged one.
    """
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        magic, length, crc = _HEAD.unpack_from(content)
        start = _HEAD.size + length
        text = content[_HEAD.size:start]
        if magic != _MAGIC or zlib.crc32(text) != crc:
            return None
        entry, arrays = json.loads(text), []
        if entry["place"] != _place(path):  # a copy of another row
            return None
        for (dtype, shape), total in zip(entry["arrays"], entry["sums"], strict=True):
            start += -start % _LINE
            array = np.ndarray(shape, np.dtype(dtype), content, start)
            arrays.append(array)
            start += array.nbytes
            if check and zlib.crc32(array.view(np.uint8).reshape(-1)) != total:
                return None
        if start != len(content):
            return None
    except (OSError, ValueError, TypeError, KeyError, struct.error):  # not there; empty; too short; not an array's
        return None
    return Sample(*arrays, entry["name"])


def _place(path: str) -> str:
    """What a file must say of itself: its data set and row."""
    return "/".join(Path(path).parts[-2:])


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:  # renamed or removed meanwhile
        return 0


def _files(root: Path) -> Iterator[os.DirEntry]:
    with os.scandir(root) as folders:
        for folder in folders:
            if folder.is_dir(follow_symlinks=False):
                try:
                    with os.scandir(folder) as entries:
                        yield from entries
                except OSError:  # just removed by another process
                    continue

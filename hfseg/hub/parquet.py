"""A data set as parquet files: rows are read, checked and written one at a time."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from hfseg.data.images import ARRAY_SUFFIXES, Sample, read_row
from hfseg.data.sources import SegmentationData, StreamingSegmentationData
from hfseg.data.tables import OBJECTS
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema

SAMPLES, SAMPLE_SIDE = 6, 512  # samples kept for a picture, and about the pixels of their longer side
ROWS, ROW_BYTES = 100, 32_000_000  # of a row group, the least that a reader can fetch
# Cut where the content says so, the hub need not store again what an earlier version has.
CHUNKS = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}

Data = SegmentationData | StreamingSegmentationData


@dataclass
class WrittenSplit:
    """What became of a split.

    Attributes:
        name: As `load_dataset` calls it.
        files: Parquet files, in order.
        rows: How many there are.
        num_bytes: Of the rows in memory.
        pixels: (num_labels + 1,) pixels of each class, and unlabelled ones.
        images: (num_labels + 1,) images in which the class occurs.
        widths: Smallest and largest, in pixels.
        heights: Smallest and largest, in pixels.
        samples: Some rows for a picture, reduced.
        skipped: Rows that could not be used.
    """

    name: str
    pixels: np.ndarray
    images: np.ndarray
    files: list[Path] = field(default_factory=list)
    rows: int = 0
    num_bytes: int = 0
    widths: tuple[int, int] = (2**31, 0)
    heights: tuple[int, int] = (2**31, 0)
    samples: list[Sample] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def write_splits(
    data: Data, folder: Path, features: datasets.Features, *, limits: Mapping[str, int | None] | None = None,
    skip: bool = False, max_shard_bytes: int = 500_000_000,
) -> list[WrittenSplit]:  # fmt: skip
    """Writes all splits; no more than a row group is held in memory.

    Args:
        data: What `load_data` gave.
        folder: Where to.
        features: As `columns` gives them.
        limits: By split, how many rows to take at most.
        skip: Whether to leave out rows that cannot be used, in place of stopping.
        max_shard_bytes: Size of a file beyond which the next one is begun.

    Returns:
        What was written. The same rows give the same bytes.

    Raises:
        BadSample: For a row that cannot be used.
        UserError: When nothing of a split can be.
    """
    names = split_names(data)
    channels = data.channels
    lengths = {key: _length(rows, (limits or {}).get(key)) for key, rows in data.items()}
    total = None if None in lengths.values() else sum(lengths.values())
    written = []
    with tqdm(total=total, desc="writing parquet", unit="img", delay=1, leave=False) as bar:
        for key, name in names.items():
            split = WrittenSplit(name, *(np.zeros(data.schema.num_labels + 1, np.int64) for _ in range(2)))
            length, limit = lengths[key], (limits or {}).get(key)
            picks = {i * length // SAMPLES for i in range(SAMPLES)} if length else set(range(SAMPLES))
            with closing(_Shards(folder, name, features, max_shard_bytes)) as shards:
                for i, row in enumerate(data[key]):
                    if i == limit:
                        break
                    bar.update()
                    row_id = str(row.get("image_id") or f"{key}[{i}]")
                    try:
                        stored = _file(row["image"], data[key].features["image"], row_id)
                        sample = read_row({**row, "image": stored}, data.schema, channels, row_id)
                        if isinstance(features["image"], datasets.Image):
                            _check_picture(stored, row_id)
                    except BadSample as error:
                        if not skip:
                            raise
                        split.skipped.append(error.sample)
                        tqdm.write(f"skipped: {str(error).splitlines()[0]}")
                        continue
                    shards.add({
                        "image": stored if isinstance(features["image"], datasets.Image) else stored["bytes"],
                        "semantic_map": {"bytes": _png(sample.semantic_map), "path": None},
                        "image_id": row_id,
                        **({"instances": _objects(sample)} if "instances" in features else {}),
                    })  # fmt: skip
                    _count(split, sample, data.schema)
                    if i in picks and len(split.samples) < SAMPLES:
                        split.samples.append(_reduced(sample))
            if not shards.rows:
                raise UserError(f"no row of the split {key!r} can be used", "at least one image", "see the messages")
            split.files, split.rows, split.num_bytes = shards.files, shards.rows, shards.num_bytes
            written.append(split)
    return written


def columns(data: Data) -> datasets.Features:
    """Decides how images are stored: as pictures that everybody's tools show, or as the bytes of other files.

    Args:
        data: What `load_data` gave.

    Returns:
        Features; `image` is `datasets.Image`, or `Value("binary")` for npy files and TIFFs that PIL cannot read; there
        are `instances` where the data has objects.
    """
    pictures = all(_is_picture(rows) for rows in data.values())
    names = datasets.ClassLabel(names=list(data.schema.names))
    objects = {} if data.task == "semantic" else {"instances": datasets.List({**OBJECTS, "category_id": names})}
    return datasets.Features({
        "image": datasets.Image() if pictures else datasets.Value("binary"),
        "semantic_map": datasets.Image(),
        "image_id": datasets.Value("string"),
        **objects,
    })  # fmt: skip


def _objects(sample: Sample) -> list[dict[str, Any]]:
    """The objects of a sample, by their class ids; those of no class are left out."""
    found = sample.segments
    areas = np.full(len(found), np.nan) if found.areas is None else found.areas
    objects = enumerate(zip(found.codes(), found.labels, found.crowd, areas, strict=True), start=1)
    return [
        {"category_id": int(label), "iscrowd": bool(crowd), "id": number, "segmentation": json.dumps(
            {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}),
         "area": None if np.isnan(area) else float(area)}
        for number, (code, label, crowd, area) in objects if label >= 0
    ]  # fmt: skip


def split_names(data: Data) -> dict[str, str]:
    """Gives every split a name that `load_dataset` allows.

    Args:
        data: What `load_data` gave.

    Returns:
        Names by key.

    Raises:
        UserError: When two would have the same one.
    """
    names = {key: re.sub(r"\W+", "_", str(key)) for key in data}
    if len(set(names.values())) < len(names):
        raise UserError(f"the splits {', '.join(map(repr, names))} differ in punctuation only",
                        "names of letters, digits and _", "rename the folders")
    return names


def _is_picture(rows: Any) -> bool:
    """Whether `datasets.Image` can show every image of a split, as far as can be told without reading all of them."""
    feature = rows.features["image"]
    if isinstance(feature, datasets.Image):
        return True
    if hasattr(feature, "shape"):  # Array2D, Array3D
        return feature.dtype == "uint8" and (len(feature.shape) == 2 or 3 in (feature.shape[0], feature.shape[2]))
    streamed = isinstance(rows, datasets.IterableDataset)
    first = next(iter(rows))["image"]
    if isinstance(first, str):
        paths = [first] if streamed else rows["image"]
        return not any(os.path.splitext(path)[1].lower() in ARRAY_SUFFIXES for path in paths)
    try:
        _check_picture({"bytes": first}, "")
    except BadSample:
        return False
    return True


def _check_picture(stored: Mapping[str, Any], name: str) -> None:
    try:
        with Image.open(io.BytesIO(stored["bytes"])):
            pass
    except Exception as error:  # PIL raises whatever a strange file leads it to
        raise BadSample(name, "no picture that PIL opens, among others that are", "one kind of image in a data set",
                        "push the two kinds as two data sets") from error


def _length(rows: Any, limit: int | None) -> int | None:
    if isinstance(rows, datasets.IterableDataset):
        return None
    return len(rows) if limit is None else min(limit, len(rows))


def _file(value: Any, feature: Any, name: str) -> dict[str, Any]:
    """The bytes of a stored image as they are, and the name of its file without its folders."""
    path = None
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
        value = path if value is None else value
    if value is None:
        raise BadSample(name, "it has no image", fix="add it, or remove the row")
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        try:
            value = Path(path).read_bytes()
        except OSError as error:
            raise BadSample(path, f"the file cannot be read: {error.strerror}",
                            fix="restore the file, or remove the row") from error
    if not isinstance(value, bytes):
        array = np.asarray(value, dtype=getattr(feature, "dtype", None))
        value = _png(array) if array.dtype == np.uint8 and _shown(array) is not None else _npy(array)
    return {"bytes": value, "path": os.path.basename(path.split("::")[0]) if path else None}


def _shown(array: np.ndarray) -> np.ndarray | None:
    """(H, W) or (H, W, 3) of an array of bytes that is a picture."""
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = np.moveaxis(array, 0, 2)
    return array if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3) else None


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(_shown(array))).save(buffer, format="png")
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _count(split: WrittenSplit, sample: Sample, schema: LabelSchema) -> None:
    ids = np.minimum(sample.semantic_map, schema.num_labels)  # what is ignored comes last
    pixels = np.bincount(ids.ravel(), minlength=schema.num_labels + 1)
    split.pixels += pixels
    split.images += pixels > 0
    height, width = ids.shape
    split.widths = min(split.widths[0], width), max(split.widths[1], width)
    split.heights = min(split.heights[0], height), max(split.heights[1], height)


def _reduced(sample: Sample) -> Sample:
    step = max(1, max(sample.semantic_map.shape) // SAMPLE_SIDE)
    return Sample(*(array[::step, ::step].copy() for array in (sample.image, sample.semantic_map)), sample.name)


class _Shards:
    """Writes the rows of a split into as many files as it takes."""

    def __init__(self, folder: Path, split: str, features: datasets.Features, most: int):
        self.folder, self.split, self.most = folder, split, most
        self.schema = features.arrow_schema
        leaves = {"image": "image.bytes" if isinstance(features["image"], datasets.Image) else None}
        encoded = [leaf for leaf in (leaves["image"], "semantic_map.bytes") if leaf]
        others = ["image", "image.path", "semantic_map.path", "image_id",
                  *(f"instances.list.element.{name}" for name in OBJECTS)]
        # PNG and JPEG are compressed; arrays are not.
        self.options = {"compression": {**dict.fromkeys(others, "snappy"), **dict.fromkeys(encoded, "none")},
                        "use_dictionary": False, "use_content_defined_chunking": CHUNKS, "write_page_index": True}
        self.files: list[Path] = []
        self.rows = self.num_bytes = self._size = self._waiting_bytes = 0
        self._waiting: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        size = sum(len(value["bytes"] if isinstance(value, Mapping) else value) for value in row.values())
        if self._waiting and self._size + self._waiting_bytes + size > self.most:
            self._flush()
        if self._size and self._size + size > self.most:
            self._finish()
        self._waiting.append(row)
        self._waiting_bytes += size
        if len(self._waiting) >= ROWS or self._waiting_bytes >= ROW_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._finish()

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self.files.append(self.folder / f"{self.split}-{len(self.files):05d}.parquet")
            self._writer = pq.ParquetWriter(self.files[-1], self.schema, **self.options)
        table = pa.Table.from_pylist(self._waiting, schema=self.schema)
        self._writer.write_table(table)
        self.rows, self.num_bytes = self.rows + len(table), self.num_bytes + table.nbytes
        self._size += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._size = None, 0


def published_files(split: WrittenSplit) -> Iterator[tuple[str, Path]]:
    """Gives the files of a split the paths that `load_dataset` looks for.

    Args:
        split: What was written.

    Returns:
        Path in the repository, and the local file, of each.
    """
    for i, file in enumerate(split.files):
        yield f"data/{split.name}-{i:05d}-of-{len(split.files):05d}.parquet", file

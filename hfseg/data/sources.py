"""Data sources: a hub id, a folder, parquet, `save_to_disk` or the embedded shapes, all as one kind of object."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hfseg.data.columns import canonical, canonical_names, checked, find_columns, labelled, with_features
from hfseg.data.folder_names import split_name
from hfseg.data.images import Sample, decode_map, look_at, name_of, read_row
from hfseg.data.instances import make_schema, open_instances, tasks_of
from hfseg.data.readers import find_beside, find_on_hub, read_hub, read_local, read_shapes
from hfseg.data.scan import MAX_MAPS, Scan, scan_maps
from hfseg.data.schemas import find_schema, names_from_features, names_from_model, read_declared
from hfseg.data.tables import from_tables
from hfseg.errors import BadSample, UserError, one_of
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig

STREAM_MAPS, STREAM_VALIDATION = (
    16,
    100,
)  # rows of a stream that are scanned, and held out if its size is unknown


class _WithSchema:
    """What both kinds of data share."""

    schema: LabelSchema
    notes: list[str]
    train: str | None
    validation: str | None
    channels: int
    labels: LabelsConfig | LabelSchema
    source: str = "data given by the caller"
    revision: str | None = None
    task: str = "semantic"

    def _describe(self, schema: LabelSchema, notes: list[str]) -> None:
        self.schema, self.notes = schema, notes
        self.train = "train" if "train" in self else None
        others = ("validation", "test") if self.train else ("validation", "test", *self)
        self.validation = next((name for name in others if name in self), None)
        self.channels = 3
        self.labels = LabelsConfig()

    def find_split(self, name: str) -> str:
        """Find a split by its name or one that means the same, such as "val".

        Args:
            name: The split.

        Returns:
            Its key.

        Raises:
            UserError: When there is no such split.
        """
        return name if name in self else one_of(split_name(name), list(self), "split")


class SegmentationData(_WithSchema, datasets.DatasetDict):
    """A `datasets.DatasetDict` with columns `image`, `semantic_map` (undecoded) and `image_id`, and a schema.

    Args:
        splits: Dataset by split.
        schema: What the stored values of `semantic_map` mean.
        notes: What was found and assumed, for people.

    Attributes:
        train: The split to train on, or None.
        validation: The split to evaluate on, or None.
        labels: The choices about labels that were given to `load_data`.
        channels: How many channels a model for these images takes: 3 for pictures, grey ones included, else the
            number of bands.

    Example:
        >>> from hfseg.data import load_data
        >>> data = load_data("shapes", scenes=4)
        >>> data.read(data.train, 0).semantic_map.shape
        (128, 128)
    """

    streaming = False

    def __init__(self, splits: Mapping[str, datasets.Dataset], schema: LabelSchema, notes: list[str] | None = None):
        super().__init__(splits)
        self._describe(schema, notes or [])

    def read(self, split: str, index: int, channels: int | None = None) -> Sample:
        """Decode one row and give its map class ids.

        Args:
            split: Name of the split.
            index: Which row.
            channels: Channels of the image; by default `self.channels`.

        Returns:
            The sample.

        Raises:
            BadSample: When it cannot be used.
        """
        return read_row(self[split][index], self.schema, channels or self.channels)


class StreamingSegmentationData(_WithSchema, datasets.IterableDatasetDict):
    """The same over streams: rows come in their order, and `read` has to run through those before.

    Args:
        splits: IterableDataset by split.
        schema: What the stored values of `semantic_map` mean.
        notes: What was found and assumed, for people.
    """

    streaming = True

    def __init__(self, splits: Mapping[str, datasets.IterableDataset], schema: LabelSchema, notes: list[str]):
        super().__init__(splits)
        self._describe(schema, notes)

    def read(self, split: str, index: int, channels: int | None = None) -> Sample:
        """Decode one row and give its map class ids, as `SegmentationData.read` does."""
        for row in self[split].skip(index).take(1):
            return read_row(row, self.schema, channels or self.channels, f"{split}[{index}]")
        raise IndexError(f"the stream {split!r} ends before row {index}")


def load_data(
    path: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    labels: LabelsConfig | LabelSchema | None = None,
    fallback: LabelSchema | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    model_names: Sequence[str] = (),
    scenes: int | None = None,
    max_scanned: int = MAX_MAPS,
    on_bad_sample: str = "stop",
    seed: int = 42,
    task: str = "semantic",
) -> SegmentationData | StreamingSegmentationData:
    """Load images with label maps, whatever the source, and find out what the labels mean.

    Args:
        path: `shapes`, `shapes/source`, `shapes/target`, a folder, a parquet file or a hub id.
        name: Configuration of a hub data set.
        revision: Branch, tag or commit of a hub data set.
        streaming: Read a hub data set row by row.
        labels: What the recipe says about labels, or a complete schema to use as it is.
        fallback: The schema to use where neither `labels` nor the data say what the stored values mean.
        train_split: Split to train on; found if not given.
        validation_split: Split to evaluate on; found if not given.
        validation_fraction: Share of the training split held out where there is no validation split; 0 holds
            nothing out.
        image_column: Column of the images; found if not given.
        label_column: Column of the label maps; found if not given.
        model_names: Class names of the model, used where nothing names the classes and the maps hold as many values.
        scenes: Training scenes of `shapes`.
        max_scanned: How many label maps are looked at, at most, to find out what they hold.
        on_bad_sample: `stop`, or `skip`, which leaves out images without map, maps without image and rows of a
            repeated `image_id`, and accepts unknown label values until they are read.
        seed: Of the held-out split and of the sample of maps that is looked at.
        task: `semantic` reads label maps; `instance` and `panoptic` read objects, from COCO, YOLO, LabelMe and CVAT
            files, maps of ids, or columns: see `hfseg.data.instances`.

    Returns:
        The data. Splits called val, valid, dev... are called "validation", and so on.

    Raises:
        UserError: When the data cannot be found or understood.
        BadSample: When a label map holds values that have no meaning.

    Example:
        >>> data = load_data("shapes/target", scenes=8)
        >>> data.train, data.validation, len(data["train"])
        ('train', 'validation', 8)
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"data.validation_fraction is {validation_fraction}", "0 or more, below 1")
    labels = labels or LabelsConfig()
    path, skip = str(path), on_bad_sample == "skip"
    if task != "semantic":
        splits, schema, notes = _open_objects(path, name, revision, streaming, task, labels, scenes, skip,
                                              (image_column, label_column))
        splits = {key: checked(rows, key, skip, notes) for key, rows in canonical_names(splits).items()}
    else:
        own = path.partition("/")[0] == "shapes" or os.path.exists(os.path.expanduser(path))
        opened = None if own else read_hub(path, name, revision, streaming)
        try:
            splits, schema, notes = _open_maps(
                path, opened, revision, streaming, labels, fallback, (train_split, validation_split), image_column,
                label_column, model_names, scenes, max_scanned, skip, seed)  # fmt: skip
        except UserError as error:
            if tasks := _other_tasks(path, opened):
                error.fix = f"{error.fix or 'add label maps'}; or, for the objects that it has: {tasks}"
            raise
    streamed = isinstance(next(iter(splits.values())), datasets.IterableDataset)
    return _finished(splits, schema, notes, streamed, path, labels, revision, task, train_split, validation_split,
                     validation_fraction, seed)


def _open_maps(path, opened, revision, streaming, labels, fallback, wanted, image_column, label_column, model_names,
               scenes, max_scanned, skip, seed):
    """Opens data with label maps: their splits, schema and notes."""
    declared, notes = {}, []
    if path == "shapes" or path.startswith("shapes/"):
        splits, declared = read_shapes(path, scenes)
    elif os.path.exists(os.path.expanduser(path)):
        root = Path(path).expanduser()
        binary = labels.threshold is not None if isinstance(labels, LabelSchema) else labels.binary
        splits, notes = read_local(root, instances=binary, streaming=streaming, skip=skip)
        find = partial(find_beside, root)
    else:
        splits, find = opened, partial(find_on_hub, path, revision)
    if not declared and not isinstance(labels, LabelSchema):
        try:
            declared = read_declared(find)
        except UserError as error:
            if not labels.names:
                raise
            notes.append(f"labels: {error.found}; passed over, since data.labels names the classes")

    splits = {key: with_features(rows) for key, rows in canonical_names(splits).items()}
    splits, features = labelled(splits, image_column, label_column, wanted, notes)
    if "segments_info" in features:
        notes.append("the tables tell segments apart (segments_info): --task instance or --task panoptic reads them")
    image_column, label_column = find_columns(features, image_column, label_column)
    splits = {key: canonical(rows, image_column, label_column) for key, rows in splits.items()}
    splits = {key: checked(rows, key, skip, notes) for key, rows in splits.items()}
    streamed = isinstance(next(iter(splits.values())), datasets.IterableDataset)
    if streaming and not streamed:
        notes.append("data.streaming is for the hub and parquet: files of a folder are read one by one anyway")

    sample, total = _sample_maps(splits, seed, max_scanned)
    declared = declared or names_from_features(features)
    known = labels if isinstance(labels, LabelSchema) else declared.get("schema")
    named = bool(not known and (labels.names or declared.get("names")))
    palette = () if known else labels.palette or declared.get("palette") or ()
    scan = scan_maps((value for _, value in sample()), total, limit=max_scanned, named=named, palette=palette,
                     by_colour=known.rgb if known else None)
    if not scan.looked:
        _raise_first(sample)
    if isinstance(labels, LabelSchema):
        schema = labels
    else:
        silent = fallback is not None and not declared and not labels.given
        schema, more = None, []
        try:
            schema, more = find_schema(declared or names_from_model(model_names, scan), labels, scan)
        except UserError:
            if not silent:
                raise
        if silent and (schema is None or fallback.covers(schema)):
            schema, more = find_schema({"schema": fallback}, labels, scan)
            more.insert(0, "labels: nothing in the data says what its values mean: read as those the model was "
                        "trained on")
        notes += more
    if not skip:
        _refuse_unknown(schema, scan, sample)
    return splits, schema, notes


def _other_tasks(path: str, opened: dict[str, Any] | None) -> str:
    """The flags for what data can be read for that has no usable label maps."""
    local = Path(path).expanduser()
    try:
        if opened is None and local.exists():
            tasks = tasks_of(read_local(local)[0] if _holds_tables(local) else local)
        else:
            tasks = tasks_of(opened or {})
    except (UserError, StopIteration):  # the first error says what is wrong
        return ""
    return " or ".join(f"--task {task}" for task in tasks)


def _open_objects(path, name, revision, streaming, task, labels, scenes, skip, columns):
    """Opens data with objects: their splits, schema and notes."""
    if path == "shapes" or path.startswith("shapes/"):
        from hfseg.data.shapes import DOMAINS

        splits, declared = read_shapes(path, scenes)
        schema = LabelSchema.from_names(declared["names"], declared["palette"], origin=declared["origin"])
        domain = DOMAINS[path.partition("/")[2] or "source"]
        things = tuple(one for one, thing in zip(domain.names, domain.things, strict=True) if thing)
        chosen = labels if isinstance(labels, LabelSchema) else dataclasses.replace(schema, things=things)
        notes: list[str] = []
        schema = make_schema(None, labels, task, path, {"schema": chosen}, notes)
        return from_tables(splits).splits, schema, notes
    local = Path(path).expanduser()
    if not local.exists():
        return open_instances(path, read_hub(path, name, revision, streaming), task, labels, skip,
                              partial(find_on_hub, path, revision), columns)
    if _holds_tables(local):
        opened, _ = read_local(local, streaming=streaming, skip=skip)
        return open_instances(path, opened, task, labels, skip, partial(find_beside, local), columns)
    return open_instances(local, None, task, labels, skip)


def _holds_tables(local: Path) -> bool:
    return local.suffix == ".parquet" or any((local / file).is_file() for file in (
        "dataset_dict.json", "state.json")) or any(local.rglob("*.parquet"))


def _finished(splits, schema, notes, streamed, path, labels, revision, task, train_split, validation_split,
              validation_fraction, seed):
    """The data, once its columns and classes are settled."""
    data = (StreamingSegmentationData if streamed else SegmentationData)(splits, schema, notes)
    data.task = task
    if train_split:
        data.train = data.find_split(train_split)
    if validation_split:
        data.validation = data.find_split(validation_split)
    elif data.train and "validation" not in data and validation_fraction:
        _hold_out(data, validation_fraction, seed)
    data.channels = _count_channels(data)
    # Of a local folder only the name: where it lies is nobody's business on a published card.
    data.source = Path(path).resolve().name if os.path.exists(os.path.expanduser(path)) else path
    data.labels, data.revision = labels, revision
    return data


def _hold_out(data: SegmentationData | StreamingSegmentationData, fraction: float, seed: int) -> None:
    """Make a validation split out of the training split, and say so."""
    rows = data[data.train]
    if data.streaming:
        info = (rows.info.splits or {}).get(str(rows.split)) if rows.info else None
        length = info.num_examples if info else None
        if not length:  # not known: short ones are counted
            length = sum(1 for _ in rows.take(STREAM_VALIDATION + 1))
            length = None if length > STREAM_VALIDATION else length
        if length == 1:
            data.notes.append("one image, from which no validation split can be made")
            data.validation = None
            return
        count = min(max(1, round(fraction * length)), length - 1) if length else STREAM_VALIDATION
        data["validation"], data["train"] = rows.take(count), rows.skip(count)
        data.notes.append(f"no validation split: the first {count} rows of the stream are held out for it")
    elif len(rows) < 2:
        data.validation = None
        data.notes.append("one image, from which no validation split can be made")
        return
    else:
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = np.random.default_rng(seed).permutation(len(rows))
        data["validation"] = rows.select(np.sort(order[:count]))
        data["train"] = rows.select(np.sort(order[count:]))
        data.notes.append(
            f"no validation split: {count} of {len(rows)} training images are held out for it, drawn with seed {seed}"
        )
    data.validation = "validation"


def _count_channels(data: SegmentationData | StreamingSegmentationData) -> int:
    """Pictures go to models of three channels; other files to models of as many as they have bands."""
    rows = next(iter(data.values()))
    if isinstance((rows.features or {}).get("image"), datasets.Image):
        return 3
    try:
        bands = look_at(next(iter(rows))["image"]).bands
    except BadSample:  # reading it will say why
        return 3
    return 3 if bands == 1 else bands


# -- looking at maps ----------------------------------------------------------------------------------------


def _raise_first(sample: Callable[[], Iterator[tuple[str, Any]]]) -> None:
    """Say what is wrong with the first map, where not one could be read."""
    for name, value in sample():
        decode_map(value, name_of(value) or name)


def _sample_maps(
    splits: dict[str, Any], seed: int, limit: int
) -> tuple[Callable[[], Iterator[tuple[str, Any]]], int | None]:
    """Draw label maps from all splits, the same ones every time: (where from, value)."""
    if isinstance(next(iter(splits.values())), datasets.IterableDataset):
        first, rows = next(iter(splits.items()))

        def stream():
            for i, row in enumerate(rows.take(STREAM_MAPS)):
                yield f"{first}[{i}]", row["semantic_map"]

        return stream, None
    places = [(split, i) for split, rows in splits.items() for i in range(len(rows))]
    order = np.random.default_rng(seed).permutation(len(places))[:limit]
    maps = {split: rows.select_columns(["semantic_map"]) for split, rows in splits.items()}

    def draw():
        for split, i in (places[k] for k in order):
            yield f"{split}[{i}]", maps[split][i]["semantic_map"]

    return draw, len(places)


def _refuse_unknown(schema: LabelSchema, scan: Scan, sample: Callable[[], Iterator[tuple[str, Any]]]) -> None:
    """Raise now, rather than at step 200, for stored values without a meaning."""
    for place, distinct in scan.maps:
        try:
            schema.apply(distinct)
        except BadSample:
            name, value = next(itertools.islice(sample(), place, None))
            name = name_of(value) or name
            schema.apply(decode_map(value, name, schema.rgb), name)

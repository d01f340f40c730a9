"""From rows to batches: an order that is a pure function of (seed, epoch), and samples seeded by themselves.

Nothing here keeps state, so that a run which starts at batch n gives the same batches as one that came there, with
any number of worker processes.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hfseg.data.decoded import DecodedRows
from hfseg.data.images import Sample, read_row
from hfseg.data.preparation import Key, MaskTargets, Preparation, sample_seed
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema

__all__ = [
    "EpochBatches", "Key", "MaskTargets", "Preparation", "StreamingSet", "TrainingSet", "collate", "iterating",
    "model_inputs", "next_batch", "sample_seed", "train_loader", "worker_count",
]  # fmt: skip


class EpochBatches:
    """Batches of (epoch, index) for one process, without end, from any batch on.

    Every epoch is a permutation of the rows. The last batch of an epoch is filled up from its start, so that all
    batches, and all processes, have the same size.

    Args:
        num_samples: Rows in the data.
        batch_size: Rows per batch and process.
        seed: The run's seed.
        rank: This process.
        world: Number of processes.
        start: The first batch to give, counted from the start of the run.

    Example:
        >>> batches = iter(EpochBatches(5, 2, seed=0))
        >>> [len({index for _, index in next(batches)}) for _ in range(3)]
        [2, 2, 2]
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world, self.start = rank, world, start
        self.per_epoch = math.ceil(num_samples / (batch_size * world))

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, batch = divmod(self.start, self.per_epoch)
        while True:
            order = np.random.default_rng(np.random.SeedSequence([self.seed, epoch])).permutation(self.num_samples)
            order = np.resize(order, self.per_epoch * self.batch_size * self.world)
            for first in range(batch, self.per_epoch):
                rows = order[first * self.batch_size * self.world : (first + 1) * self.batch_size * self.world]
                yield [(epoch, int(index)) for index in rows[self.rank :: self.world]]
            epoch, batch = epoch + 1, 0


class TrainingSet(Dataset):
    """Rows of a data set as training samples; indexed by (epoch, index), or by index (epoch 0).

    It can be given to `transformers.Trainer` as it is.

    Args:
        rows: A `datasets.Dataset` with columns image and semantic_map.
        schema: The labels.
        prepare: What turns a sample into tensors.
        channels: Bands of the network.
        on_bad_sample: `stop`, or `skip`, which takes the next row instead and names the bad one in `skipped`.
        cache: Keeps what was decoded; None decodes each time.
    """

    def __init__(self, rows, schema: LabelSchema, prepare: Preparation, channels=3, on_bad_sample="stop",
                 cache: DecodedRows | None = None):
        self.rows, self.schema, self.prepare = rows, schema, prepare
        self.channels, self.on_bad_sample, self.cache = channels, on_bad_sample, cache

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        """Returns a decoded row.

        Args:
            index: Which row.

        Returns:
            The sample, before resizing and augmentation.

        Raises:
            BadSample: When it cannot be used.
        """
        if self.cache:
            return self.cache.read(index, lambda: read_row(self.rows[index], self.schema, self.channels))
        return read_row(self.rows[index], self.schema, self.channels)

    def augmented(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a sample as it is augmented, before normalisation, for people to look at.

        Args:
            key: (epoch, index).

        Returns:
            Image (C, h, w) and map (h, w).
        """
        return self.prepare.augmented(self._read_or_next(key[1], []), key, self._partner(key))[:2]

    def __getitem__(self, key: Key | int) -> dict:
        key = key if isinstance(key, tuple) else (0, int(key))
        skipped: list[str] = []
        sample = self._read_or_next(key[1], skipped)
        return {**self.prepare(sample, key, self._partner(key)), "skipped": skipped}

    def _partner(self, key: Key) -> Callable[[], Sample]:
        """Another sample for copy-paste, drawn by the key alone and read only if it is wanted."""
        return lambda: self._read_or_next(sample_seed(self.prepare.seed, *key) % len(self), [])

    def _read_or_next(self, index: int, skipped: list[str]) -> Sample:
        for step in range(len(self)):
            try:
                return self.read((index + step) % len(self))
            except BadSample as error:
                if self.on_bad_sample != "skip":
                    raise
                skipped.append(str(error))
        raise UserError("not one sample of the training split can be used", fix=skipped[0])


class StreamingSet(IterableDataset):
    """Rows of a stream as training samples, from any position on.

    The order is that of the stream through a shuffle buffer seeded by (seed, epoch). Starting at a later batch reads
    over the rows before it, undecoded, so that a resumed run sees the same samples as long as the stream holds
    the same rows.

    Args:
        rows: A `datasets.IterableDataset` with columns image and semantic_map.
        schema: The labels.
        prepare: What turns a sample into tensors.
        batch_size: Rows per batch and process, to count the rows to pass over.
        channels: Bands of the network.
        on_bad_sample: `stop` or `skip`.
        rank: This process.
        world: Number of processes.
        start: The first batch to give.
        buffer: Rows held for shuffling.
    """

    def __init__(self, rows, schema, prepare, batch_size, channels=3, on_bad_sample="stop", rank=0, world=1,
                 start=0, buffer=256):
        self.rows, self.schema, self.prepare, self.channels = rows, schema, prepare, channels
        self.on_bad_sample, self.rank, self.world = on_bad_sample, rank, world
        self.first, self.buffer = start * batch_size, buffer

    def __iter__(self) -> Iterator[dict]:
        position, epoch, skipped = 0, 0, []
        while True:
            # Undecoded rows are cheap: each process reads all and keeps its own, so that no count can differ.
            count = 0
            for row in self.rows.shuffle(seed=sample_seed(self.prepare.seed, epoch, 0) % 2**32,
                                         buffer_size=self.buffer):
                count += 1
                if (count - 1) % self.world != self.rank:
                    continue
                position += 1
                if position <= self.first:
                    continue
                try:
                    sample = read_row(row, self.schema, self.channels)
                except BadSample as error:
                    if self.on_bad_sample != "skip":
                        raise
                    skipped.append(str(error))
                    continue
                item = self.prepare(sample, (epoch, count))
                item["skipped"], skipped = skipped, []
                yield item
            if not count:
                raise UserError("the stream has no rows", fix="check data.path, data.name and the split")
            epoch += 1


def collate(items: list[dict]) -> dict:
    """Stacks samples of one size into a batch.

    Args:
        items: Samples with `pixel_values` (C, h, w), `labels` (h, w), any names, and perhaps `masks` and `classes`.

    Returns:
        `pixel_values` (B, C, h, w), `labels` (B, h, w), both of the samples' types, `names` and `skipped`; the masks
        and classes of each image in lists, since images have different numbers of objects.

    Raises:
        UserError: When the sizes differ.
    """
    sizes = {tuple(item["pixel_values"].shape[-2:]) for item in items}
    if len(sizes) > 1:
        raise UserError(
            f"a batch holds images of different sizes: {', '.join(f'{h}x{w}' for h, w in sorted(sizes))}",
            "one size per batch",
            "set augment.crop_size, or data.image_size as (height, width)",
        )
    return {
        **{key: [item[key] for item in items] for key in ("masks", "classes") if key in items[0]},
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.stack([item["labels"] for item in items]),
        "names": [item["name"] for item in items],
        "skipped": [text for item in items for text in item.get("skipped", ())],
    }


def model_inputs(items: list[dict]) -> dict:
    """Stacks samples into exactly what a transformers model takes, for `transformers.Trainer(data_collator=...)`.

    Args:
        items: Samples of one size.

    Returns:
        `pixel_values` and `labels`.
    """
    batch = collate(items)
    return {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}


def train_loader(data: TrainingSet | StreamingSet, batch_size: int, *, seed: int = 42, rank: int = 0,
                 world: int = 1, start: int = 0, num_workers: int | None = 0, pin_memory: bool = False) -> DataLoader:
    """Returns a loader without end that begins at batch `start`.

    Args:
        data: Where samples come from.
        batch_size: Samples per batch and process.
        seed: The run's seed.
        rank: This process.
        world: Number of processes.
        start: The first batch.
        num_workers: Worker processes, started once for all epochs; the batches do not depend on it. A stream is read
            by this process. None is 0.
        pin_memory: Whether batches go to page-locked memory.

    Returns:
        A `DataLoader` of batches as `collate` makes them. With workers, a `UserError` of theirs comes as the batch,
        since torch would turn it into another exception with their traceback as its text: see `next_batch`.
    """
    # A loader draws a seed for its workers, which nothing here uses; from the global generator, that would shift
    # the dropout of a resumed run.
    common = {"collate_fn": collate, "pin_memory": pin_memory, "generator": torch.Generator()}
    if isinstance(data, StreamingSet):
        return DataLoader(data, batch_size=batch_size, **common)
    batches, num_workers = EpochBatches(len(data), batch_size, seed, rank, world, start), num_workers or 0
    if num_workers:
        common["collate_fn"], data = _collate_or_error, _ErrorsAsItems(data)
    return _Loader(
        data, batch_sampler=batches, num_workers=num_workers, prefetch_factor=4 if num_workers else None,
        worker_init_fn=_start_worker if num_workers else None, **common,
    )


def worker_count(asked: int | None, on_gpu: bool) -> int:
    """Returns how many processes prepare batches for one training process.

    Args:
        asked: The recipe's `data.num_workers`.
        on_gpu: Whether training runs on a GPU. On the CPU, workers take from it what they give.

    Returns:
        `asked`; if that is None, 0 on the CPU, else up to 8 and one less than this process' share of the cores.

    Example:
        >>> worker_count(3, on_gpu=True), worker_count(None, on_gpu=False)
        (3, 0)
    """
    if asked is not None or not on_gpu:
        return asked or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


@contextmanager
def iterating(loader: DataLoader) -> Iterator[Iterator[dict]]:
    """Iterates over a loader whose workers end with the block.

    Args:
        loader: What `train_loader` returned.

    Yields:
        The iterator.
    """
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        # torch ends the workers when nothing refers to the iterator. If a traceback still does, its cycle closes
        # the queues first, nothing tells the workers, and they stay as long as the process.
        if loader.num_workers:
            iterator._shutdown_workers()


def next_batch(loader: Iterator[dict]) -> dict:
    """Returns the next batch of an iterator over a loader.

    Args:
        loader: Iterator over what `train_loader` returned.

    Returns:
        The batch.

    Raises:
        UserError: What a worker met.
    """
    batch = next(loader)
    if isinstance(batch, UserError):
        raise batch
    return batch


class _ErrorsAsItems(Dataset):
    def __init__(self, data: TrainingSet):
        self.data = data

    def __getitem__(self, key: Key) -> dict | UserError:
        try:
            return self.data[key]
        except UserError as error:
            return error


def _collate_or_error(items: list[dict | UserError]) -> dict | UserError:
    try:
        return next((item for item in items if isinstance(item, UserError)), None) or collate(items)
    except UserError as error:
        return error


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. Only the main process answers, and it still
    # needs its workers to end the step; without a parent they end by themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Loader(DataLoader):
    """Knows its workers, to end them with the process.

    At the end Python sends SIGTERM to the workers of a loader that is still referred to, and waits for them without
    a limit. These ignore that signal.
    """

    def __iter__(self) -> Iterator[dict]:
        before = set(multiprocessing.active_children())
        iterator = super().__iter__()
        _WORKERS.update(set(multiprocessing.active_children()) - before)
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
        return iterator


_WORKERS: weakref.WeakSet = weakref.WeakSet()


def _end_workers() -> None:
    left = [worker for worker in _WORKERS if worker.is_alive()]
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes a killed worker for an error
    for worker in left:
        worker.kill()

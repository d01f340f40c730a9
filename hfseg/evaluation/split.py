"""The samples of a split, decoded ahead of use, with their truth in the ids of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
from tqdm.auto import tqdm

from hfseg.data import SegmentationData
from hfseg.data.images import Sample, read_row
from hfseg.errors import BadSample
from hfseg.inference.reading import read_ahead
from hfseg.labels import LabelSchema

Numbered = tuple[int, Sample]


class Split:
    """A split, as the evaluator goes through it.

    Args:
        data: The data.
        name: Which split.
        schema: How to read the label maps.
        channels: Bands that the network takes.
        to_model: Class id of the data -> class id of the model; None where they are the same.
        limit: The first n images only.
        ahead: Images that are decoded while the network computes.
        on_bad_sample: `stop`, or `skip` and count.
    """

    def __init__(self, data: SegmentationData, name: str, *, schema: LabelSchema, channels: int,
                 to_model: np.ndarray | None, limit: int | None, ahead: int, on_bad_sample: str):
        self.data, self.name, self.schema, self.channels, self.to_model = data, name, schema, channels, to_model
        self.limit, self.ahead, self.on_bad_sample = limit, ahead, on_bad_sample
        # In a model's ids, 255 may be a class: what is ignored in the data gets an id after all of them.
        self.ignore_index = schema.ignore_index if to_model is None else int(np.iinfo(np.uint16).max) + 1
        self.skipped: list[str] = []

    @property
    def length(self) -> int | None:
        """Number of images; None for a stream without a limit."""
        if self.data.streaming:
            return self.limit
        count = len(self.data[self.name])
        return min(count, self.limit) if self.limit else count

    @property
    def whole(self) -> int | None:
        """Number of images without the limit; None for a stream, and where there is no limit that leaves any out."""
        count = None if self.data.streaming else len(self.data[self.name])
        return count if count is not None and self.limit and self.limit < count else None

    def share(self, rank: int, world: int, verbose: bool) -> Iterator[Numbered]:
        """Decodes every n-th image.

        Args:
            rank: Of this process.
            world: Number of processes.
            verbose: Whether to show a progress bar.

        Returns:
            An iterator over (number in the split, sample); bad ones are left out if `on_bad_sample` is `skip`.

        Raises:
            BadSample: When a sample cannot be used and `on_bad_sample` is `stop`.
        """
        if self.length is None:  # a stream without a limit: one pass, every n-th row
            bar = tqdm(self.data[self.name], desc="evaluation", disable=not verbose, leave=False, delay=2)
            decoded = self._decoded((i, row) for i, row in enumerate(bar) if i % world == rank)
        else:
            mine = set(range(rank, self.length, world))
            decoded = tqdm(self._rows(mine), total=len(mine), desc="evaluation", unit="img", leave=False, delay=2,
                           disable=not (verbose and rank == 0))
        yield from decoded

    def spread(self, count: int) -> list[Sample]:
        """Decodes a few samples, spread over the split.

        Args:
            count: How many.

        Returns:
            At most as many.
        """
        total = self.length
        picked = np.unique(np.linspace(0, max(0, total - 1), count).astype(int)) if total else np.arange(count)
        return [sample for _, sample in self._rows(set(picked.tolist()))] if count else []

    def reference(self, sample: Sample) -> np.ndarray:
        """Gives the true class of every pixel.

        Args:
            sample: Of this split.

        Returns:
            (H, W) class ids of the model, `ignore_index` where nobody said.
        """
        if self.to_model is None:
            return sample.semantic_map
        table = np.full(max(self.schema.ignore_index, len(self.to_model)) + 1, self.ignore_index, np.int64)
        table[: len(self.to_model)] = self.to_model
        return table[sample.semantic_map]

    def _rows(self, wanted: set[int]) -> Iterator[Numbered]:
        rows = self.data[self.name]
        if not self.data.streaming:
            return self._decoded((i, rows[i]) for i in sorted(wanted))
        return self._decoded((i, row) for i, row in enumerate(rows.take(max(wanted) + 1)) if i in wanted)

    def _decoded(self, rows: Iterable[tuple[int, dict]]) -> Iterator[Numbered]:
        """Decodes rows while the network computes, passing over what cannot be used."""

        def read(pair: tuple[int, dict]) -> Numbered:
            return pair[0], read_row(pair[1], self.schema, self.channels)

        with closing(read_ahead(read, rows, ahead=self.ahead)) as items:
            for item in items:
                if not isinstance(item, Exception):
                    yield item
                elif self.on_bad_sample == "skip" and isinstance(item, BadSample):
                    self.skipped.append(str(item))
                else:
                    raise item


def batched(samples: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Gathers neighbours of one shape, so that they go through the network together.

    Args:
        samples: (Number, sample), as `share` gives them.
        size: How many at most.

    Returns:
        An iterator over lists.
    """
    group: list[Numbered] = []
    for number, sample in samples:
        if group and (len(group) == size or sample.image.shape != group[0][1].image.shape):
            yield group
            group = []
        group.append((number, sample))
    if group:
        yield group

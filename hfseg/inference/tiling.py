"""Large images in overlapping windows, blended without seams, in memory that does not grow with the image.

The logits of the windows are blended at the network's own resolution, with weights that fall towards each window's
border and add up to one everywhere. Windows are worked off along the longer side of the image; only the band that
later windows still add to is kept, and what is finished goes on to the class map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOWS = 4  # that go through the network together


@dataclass(frozen=True)
class Axis:
    """How windows lie along one side of an image.

    Args:
        pixels: Length of the side.
        stride: Pixels per cell of the logits; None where one window covers the side, whose cells are stretched.
        starts: First cell of each window.
        weights: (windows, cells of a window) float32, what each window counts there.
    """

    pixels: int
    stride: int | None
    starts: tuple[int, ...]
    weights: Tensor

    @property
    def cells(self) -> int:
        """Cells along the whole side."""
        return self.starts[-1] + self.weights.shape[1]

    @property
    def covered(self) -> int:
        """Pixels that the cells stand for: the last one may reach beyond the image."""
        return self.cells * self.stride if self.stride else self.pixels


def lay_out(pixels: int, tile: int, cells: int, overlap: float) -> Axis:
    """Lays windows along a side, evenly, so that neighbours overlap by at least the share that is wanted.

    Args:
        pixels: Length of the side.
        tile: Of a window, in pixels; one window takes a side that is no longer.
        cells: Logits along a window; they divide `tile` where there are several windows.
        overlap: Share of the window.

    Returns:
        The windows.

    Example:
        >>> lay_out(100, 64, 16, 0.25).starts  # cells of 4 pixels: the second window covers pixels 36 to 100
        (0, 9)
    """
    if pixels <= tile:
        return Axis(pixels, None, (0,), torch.ones(1, cells))
    stride = tile // cells
    total, ramp = -(-pixels // stride), min(cells - 1, round(overlap * cells))
    count = -(-(total - ramp) // (cells - ramp))
    starts = tuple(round(i * (total - cells) / (count - 1)) for i in range(count))
    inside = torch.arange(cells) + 0.5
    fall = torch.minimum(inside, cells - inside).clamp(max=max(ramp, 1)).double()
    sums = torch.zeros(total, dtype=torch.float64)
    for start in starts:
        sums[start : start + cells] += fall
    return Axis(pixels, stride, starts, torch.stack([fall / sums[start : start + cells] for start in starts]).float())


class Tiles:
    """The windows of one image, and what becomes of their logits.

    Args:
        image: (H, W, C), larger than a tile on one side at least.
        network: Logits (B, classes, h, w) of a list of windows of one size, (height, width, C) each.
        tile: Longest side of a window, in pixels.
        overlap: Share of it that neighbours have in common, at least.
    """

    def __init__(self, image: np.ndarray, network: Callable[[list[np.ndarray]], Tensor], tile: int, overlap: float):
        self.image, self.network = image, network
        self.window = tuple(min(tile, side) for side in image.shape[:2])
        self._first = self._resampled(network([self._cut(0, 0)]))  # tells how many cells a window has
        rows, columns = (
            lay_out(side, tile, cells, overlap)
            for side, cells in zip(image.shape[:2], self._first.shape[-2:], strict=True)
        )
        self.axes = rows, columns
        self.covered = rows.covered, columns.covered
        self._wide = image.shape[1] > image.shape[0]  # bands are columns of the image then

    def logits(self) -> Tensor:
        """Blends the logits of the whole image, for what needs them in one piece.

        Returns:
            (classes, h, w) float32. Stretched to `covered` pixels, they lie on the image, which is the upper left part.
        """
        bands = torch.cat(list(self._bands()), dim=1)
        return bands.transpose(1, 2) if self._wide else bands

    def maps(self, upsample: Callable[[Tensor, tuple[int, int]], Sequence[Tensor]]) -> list[np.ndarray]:
        """Blends band by band, and makes maps of the image's size of each band as it is finished.

        Args:
            upsample: Maps (H, W) of logits (classes, h, w) and a size: what depends on single upsampled logits, such
                as the class.

        Returns:
            A map (H, W) for each that `upsample` makes; equal to those of `logits()`, up to rounding.
        """
        along, across = self.axes[::-1] if self._wide else self.axes
        found, context, top, stride = [], None, 0, along.stride
        for finished in self._bands():
            # A pixel lies between two rows of cells: those past the middle of the last row wait for the next one.
            band = finished if context is None else torch.cat([context, finished], dim=1)
            origin = top - (0 if context is None else 1)  # row of the band's first cell
            context, top = finished[:, -1:].clone(), top + finished.shape[1]
            first = top - finished.shape[1]
            start = first * stride - stride // 2 if first else 0
            stop = top * stride - stride // 2 if top < along.cells else along.pixels
            parts = upsample(band, (band.shape[1] * stride, across.covered))
            if not found:
                found = [np.empty(self.image.shape[:2], part.cpu().numpy().dtype) for part in parts]
            here = slice(start - origin * stride, stop - origin * stride)
            for whole, part in zip(found, parts, strict=True):
                rows = part[here, : across.pixels].cpu().numpy()
                (whole.T if self._wide else whole)[start:stop] = rows
        return found

    def _bands(self) -> Iterator[Tensor]:
        """Rows of blended logits (classes, rows, cells), from first to last, along the longer side of the image."""
        along, across = self.axes[::-1] if self._wide else self.axes
        band, top = None, 0
        for i, j, logits in self._windows():
            if band is None:
                band = logits.new_zeros(len(logits), along.weights.shape[1], across.cells)
            elif along.starts[i] > top:
                done = along.starts[i] - top
                yield band[:, :done]
                kept, top = band[:, done:], along.starts[i]
                band = torch.cat([kept, kept.new_zeros(len(band), done, across.cells)], dim=1)
            weights = (along.weights[i][:, None] * across.weights[j]).to(logits.device)
            start = across.starts[j]
            band[:, :, start : start + logits.shape[2]] += logits * weights
        yield band

    def _windows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Place along, place across and logits (classes, along, across) of each window."""
        along, across = self.axes[::-1] if self._wide else self.axes
        places = [(i, j) for i in range(len(along.starts)) for j in range(len(across.starts))]
        first, self._first = self._first, None
        for begin in range(0, len(places), _WINDOWS):
            batch = places[begin : begin + _WINDOWS]
            windows = []
            for i, j in batch:
                corner = [axis.starts[n] * (axis.stride or 0) for axis, n in ((along, i), (across, j))]
                windows.append(self._cut(*(corner[::-1] if self._wide else corner)))
            if first is not None:  # it has been through the network
                known, rest = first, windows[1:]
                logits = torch.cat([known, self._resampled(self.network(rest))]) if rest else known
                first = None
            else:
                logits = self._resampled(self.network(windows))
            for (i, j), one in zip(batch, logits, strict=True):
                yield i, j, one.transpose(1, 2) if self._wide else one

    def _cut(self, top: int, left: int) -> np.ndarray:
        """The window at a pixel; where it reaches beyond the image, the image's last pixels go on."""
        part = self.image[top : top + self.window[0], left : left + self.window[1]]
        missing = [(0, side - length) for side, length in zip(self.window, part.shape[:2], strict=True)]
        return np.pad(part, (*missing, (0, 0)), mode="edge") if any(after for _, after in missing) else part

    def _resampled(self, logits: Tensor) -> Tensor:
        """Logits on cells of a whole number of pixels, a quarter of the tile if they are not."""
        size = tuple(
            window // 4 if side > window and window % cells else cells
            for side, window, cells in zip(self.image.shape[:2], self.window, logits.shape[-2:], strict=True)
        )
        logits = logits.float()
        if size == tuple(logits.shape[-2:]):
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False, antialias=True)

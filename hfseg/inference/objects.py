"""From images to objects: whole or in windows, once or in several views, at the image's own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hfseg.errors import UserError
from hfseg.inference.forward_pass import ForwardPass, by_shape, patch_size
from hfseg.inference.merging import Window, lay_windows, merge_maps, merge_views, merge_windows
from hfseg.inference.segments import (
    Found,
    Geometry,
    Piece,
    SegmentRules,
    compatible,
    find_instances,
    find_panoptic,
    find_pieces,
    laid_out,
)
from hfseg.inference.test_time_augmentation import scaled
from hfseg.inference_settings import views

_WINDOWS = 4  # that go through the network together


class ObjectPass(ForwardPass):
    """The part of a `Segmenter` that tells objects apart."""

    id2label: Mapping[int, str]
    things: tuple[int, ...]
    rules: SegmentRules
    tile_overlap: float

    def segments(self, images: Sequence[np.ndarray]) -> list[Found]:
        """Find the segments of every image, for the instance and panoptic tasks.

        Args:
            images: (H, W, C) arrays as `decode_image` gives them, of any sizes.

        Returns:
            The segments of each image, and which of them each pixel belongs to.

        Raises:
            UserError: When the task is semantic, or the network gives NaN.
        """
        if self.task == "semantic":
            raise UserError("segments are asked for, and the task is semantic", "instance or panoptic",
                            "predict_maps gives the class of every pixel")
        results: list = [None] * len(images)
        for shape, members in by_shape(images).items():
            if self.needs_tiles(shape):
                found = [self._in_windows(images[i]) for i in members]
            elif self.tta:
                found = [self._laid_out(one, shape) for one in self._pieces([images[i] for i in members], whole=True)]
            else:
                found = self._found([images[i] for i in members], whole=True)
            for i, one in zip(members, found, strict=True):
                results[i] = one
        return results

    def needs_tiles(self, shape: Sequence[int]) -> bool:
        """Tell whether an image is computed in tiles.

        Args:
            shape: (H, W, ...) of the image.

        Returns:
            True where a side is longer than a tile.
        """
        return self.tile is not None and max(shape[:2]) > self.tile

    @property
    def stuff(self) -> tuple[int, ...]:
        """Class ids that are not told apart."""
        return tuple(i for i in self.id2label if i not in self.things)

    def _found(self, images: Sequence[np.ndarray], whole: bool) -> list[Found]:
        """The segments of images of one size, or of windows of an image."""
        with self._mode.inference():
            outputs, padded, content = self._forward(self._pixel_values(images, whole or self.resizes_windows))
            return self._segments_of(outputs, Geometry(images[0].shape[:2], content, padded), len(images))

    def _segments_of(self, outputs: Any, geometry: Geometry, count: int) -> list[Found]:
        if self.rules.compat:
            return compatible(self.processor, outputs, self.task, [geometry.size] * count, self.rules, self.stuff)
        candidates = self._candidates(outputs)
        if self.task == "panoptic":
            return [find_panoptic(candidates, i, geometry, self.rules, self.stuff) for i in range(count)]
        by_mask = self.family.scored_by_mask
        return [find_instances(candidates, i, geometry, self.rules, by_mask) for i in range(count)]

    def _candidates(self, outputs: Any) -> Any:
        candidates = self.family.read(outputs)
        self._refuse_nan(candidates.probabilities)
        if self.task == "instance" and self.stuff:
            candidates.probabilities[..., list(self.stuff)] = 0
        return candidates

    def _in_windows(self, image: np.ndarray) -> Found:
        """The segments of an image that is larger than a tile."""
        size = image.shape[:2]
        windows = lay_windows(size, self.tile, self.tile_overlap)

        def seen(look):
            for start in range(0, len(windows), _WINDOWS):
                batch = windows[start : start + _WINDOWS]
                yield from zip(batch, look([image[window.slices] for window in batch], whole=False), strict=True)

        if self.task == "panoptic":
            return merge_maps(seen(self._found), size, self.stuff)
        moved = [(window, [replace(piece, top=piece.top + window.top, left=piece.left + window.left)
                           for piece in pieces]) for window, pieces in seen(self._pieces)]  # fmt: skip
        return self._laid_out(merge_windows(moved, size), size)

    def _pieces(self, images: Sequence[np.ndarray], whole: bool) -> list[list[Piece]]:
        """The objects of images of one size, or of windows, over all views."""
        size, shown = images[0].shape[:2], views(self.tta)
        # A mean may pass the threshold though not every part of it does.
        rules = replace(self.rules, threshold=self.rules.threshold / len(shown))
        found: list[list[list[Piece]]] = [[] for _ in images]  # by image and view
        with self._mode.inference():
            pixel_values = self._pixel_values(images, whole or self.resizes_windows)
            for scale, axes in shown:
                values = scaled(pixel_values, scale, patch_size(self.model.config)).flip(axes)
                outputs, padded, content = self._forward(values)
                candidates, geometry = self._candidates(outputs), Geometry(size, content, padded)
                for i, one in enumerate(found):
                    pieces = find_pieces(candidates, i, geometry, rules, self.family.scored_by_mask)
                    one.append([_turned(piece, axes, size) for piece in pieces])
        if len(shown) == 1:
            return [one[0] for one in found]
        return [merge_views(one, Window(0, size[0], 0, size[1])) for one in found]

    def _laid_out(self, pieces: Sequence[Piece], size: Sequence[int]) -> Found:
        good = [piece for piece in pieces if piece.score >= self.rules.threshold][: self.rules.max_segments]
        return laid_out(good, size[:2], self.rules)


def _turned(piece: Piece, axes: Sequence[int], size: Sequence[int]) -> Piece:
    """A mask of a flipped image, where it is in the image itself."""
    top, bottom, left, right = piece.box
    return replace(piece, mask=np.flip(piece.mask, axes), top=size[0] - bottom if -2 in axes else top,
                   left=size[1] - right if -1 in axes else left)

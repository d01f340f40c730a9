"""The one inference path: image in, `Segmentation` at the image's own size out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfseg.errors import BadSample, UserError, one_of
from hfseg.inference.confidence import confidence_of
from hfseg.inference.forward_pass import by_shape
from hfseg.inference.objects import ObjectPass
from hfseg.inference.profiling import Profile, profile_call, time_stages
from hfseg.inference.reading import read_ahead, read_image
from hfseg.inference.segments import SegmentRules
from hfseg.inference.tiling import Tiles
from hfseg.inference_settings import FLIPS, check_tile, read_tta
from hfseg.labels import Colour, make_palette
from hfseg.models.families import tasks_of
from hfseg.ops.upsample import upsample_argmax
from hfseg.result import Segmentation


class Segmenter(ObjectPass):
    """A model with its image processor, ready to segment images of any size and kind.

    Args:
        model: A transformers model whose output has `logits` (B, num_labels, h, w). It stays where it is and as
            it is, unless `device` or `dtype` say otherwise; its train or eval mode is put back after every call.
        processor: Its image processor. It may resize; the result has the image's own size all the same. Centre
            crops are left out, since they would lose pixels.
        palette: (red, green, blue) per class id; generated if None.
        device: Where to compute.
        dtype: Float type to compute in, such as `torch.bfloat16`.
        tile: Side in pixels, a multiple of 32, of the overlapping windows in which images that are larger are
            computed and blended, in constant memory; 0 for whole images, None for what the model was scored with in
            its training (`config.segmentation_tile`). Windows are not resized, unless the network takes one size only.
            Objects whose masks agree where windows overlap become one.
        tile_overlap: Share of a window's side that neighbours have in common, at least.
        tta: Test-time augmentation: flips (`horizontal_flip`, `vertical_flip`) and scales (such as 0.75), of which all
            combinations are averaged with the image as it is; within each window, if there are tiles. An object has
            the mean of its scores, and its best mask. Not for panoptic maps.
        channels_last: Memory layout of images and convolutions; faster on many GPUs.
        compile: Whether to `torch.compile` the network: for many images of few sizes.
        task: `semantic`, `instance` or `panoptic`; what the model was trained for if None. Of a model that does several
            and does not say, not even by its name, the last one that it can do.
        things: Class ids whose objects are told apart in a panoptic map; the others become one segment each. None:
            all are.
        **rules: `threshold`, `mask_threshold`, `overlap_mask_area_threshold`, `overlaps`, `max_segments` and `compat`,
            for instance and panoptic results: see `SegmentRules`.

    Example:
        >>> segmenter = Segmenter.from_pretrained("hfseg/shapes-segformer")
        >>> result = segmenter(np.zeros((48, 64, 3), np.uint8))
        >>> result.semantic_map.shape
        (48, 64)
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        palette: Sequence[Colour] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        tile: int | None = None,
        tile_overlap: float = 0.25,
        tta: str | Iterable[str | float] = (),
        channels_last: bool = False,
        compile: bool = False,
        task: str | None = None,
        things: Iterable[int] | None = None,
        **rules: Any,
    ):
        super().__init__(model, processor, device, dtype, channels_last=channels_last, compile=compile)
        self.id2label = {int(i): str(name) for i, name in model.config.id2label.items()}
        self.palette = tuple(palette or make_palette(len(self.id2label)))
        self.channels = getattr(model.config, "num_channels", None) or 3
        self.things = tuple(self.id2label if things is None else sorted(set(things)))
        if tile is None and not rules.get("compat"):
            tile = getattr(model.config, "segmentation_tile", None)
        self._settle(tile, tile_overlap, tta, task, SegmentRules(**rules))

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        fuse: bool = True,
        **settings: Any,
    ) -> Segmenter:
        """Load a fine-tuned model from the hub or a folder.

        Args:
            name: Hub id, or a folder such as a run directory.
            revision: Branch, tag or commit on the hub.
            token: Hub token, if not the one that is logged in.
            device: Where to compute; a GPU if there is one, else the CPU.
            dtype: Float type to compute in; float32 if None.
            fuse: Whether to rewrite the network to one that computes the same with less work, where that is known.
            **settings: `tile`, `tile_overlap`, `tta`, `channels_last`, `compile`, `task` and rules, as above.

        Returns:
            The segmenter.

        Raises:
            UserError: When nothing is found there, or it is no finished segmentation model.
        """
        from hfseg.models import load_for_inference, saved_schema
        from hfseg.models.fusing import fuse as fuse_model

        name = os.fspath(name)
        model, processor = load_for_inference(name, revision=revision, token=token)
        if fuse:
            fuse_model(model)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        schema = saved_schema(name, revision, token)
        known = schema is not None and schema.num_labels == model.config.num_labels
        if known and schema.things is not None:
            settings.setdefault("things", [i for i, thing in enumerate(schema.is_thing) if thing])
        return cls(model, processor, schema.palette if known else None, device, dtype, **settings)

    def using(
        self,
        tile: int | None = None,
        tile_overlap: float | None = None,
        tta: str | Iterable[str | float] | None = None,
        task: str | None = None,
        **rules: Any,
    ) -> Segmenter:
        """Make a segmenter of the same model with other settings.

        Args:
            tile: As above; 0 for whole images, None for what this segmenter does. So for the others:
            tile_overlap: As above.
            tta: As above; empty for none.
            task: As above.
            **rules: As above.

        Returns:
            Another segmenter; the model is shared.

        Raises:
            UserError: For settings that cannot be.
        """
        other = copy(self)
        other._settle(
            self.tile if tile is None else tile,
            self.tile_overlap if tile_overlap is None else tile_overlap,
            self.tta if tta is None else tta,
            self.task if task is None else task,
            replace(self.rules, **rules),
        )
        return other

    def _settle(self, tile: int | None, tile_overlap: float, tta: str | Iterable[str | float], task: str | None,
                rules: SegmentRules) -> None:
        check_tile(tile, tile_overlap)
        self.tile, self.tile_overlap, self.tta = tile or None, tile_overlap, read_tta(tta)
        config, family = self.model.config, self.family
        self.task = one_of(task or self.tasks[0], family.tasks if family else ("semantic",), "task of this network")
        self.rules = rules
        if self.task == "panoptic" and self.tta:
            raise UserError("views are asked for (tta), and the task is panoptic", "the semantic or instance task, or "
                            "tiles", "leave tta out: there is no mean of panoptic maps")
        if self.task != "semantic" and self.rules.compat and (self.tile or self.tta):
            raise UserError("compat is on, and tiles or views are asked for", "one of them",
                            "transformers' post-processing has neither")
        self.resizes_windows = family is not None and family.input_size(config) is not None
        if self.resizes_windows and not set(self.tta) <= set(FLIPS):
            raise UserError(f"tta holds scales, and this network takes images of {family.input_size(config)} only",
                            ", ".join(FLIPS), "leave the scales out")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be asked of the model, what it was trained for first: `semantic`, `instance`, `panoptic`."""
        return tasks_of(self.model.config)

    def __call__(self, image: Any, batch_size: int = 8) -> Segmentation | list[Segmentation]:
        """Segment an image or a list of images.

        Args:
            image: A path, http(s) URL, bytes of a file, PIL image, (H, W) or (H, W, C) array, or a list of these.
                Any PIL mode works, and EXIF rotation is applied.
            batch_size: How many images of a list are held and, if they have one size, computed at a time.

        Returns:
            The result at the image's own size, upright; for a list a list.

        Raises:
            UserError: When an image cannot be read; names it.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}", "1 or more")
        if not isinstance(image, list | tuple):
            return self._results([self._read(image, "image")])[0]
        numbered = [(value, f"image {i} of {len(image)}") for i, value in enumerate(image, start=1)]
        return [
            result
            for start in range(0, len(image), batch_size)
            for result in self._results([self._read(*pair) for pair in numbered[start : start + batch_size]])
        ]

    def stream(
        self, images: Iterable[Any], batch_size: int = 8, workers: int = 2, on_bad_sample: str = "stop"
    ) -> Iterator[Segmentation | BadSample]:
        """Segment images as they come, reading the next ones while the network computes.

        Args:
            images: Whatever a call takes, each; any iterable, which need not end. It is asked for images up to two
                batches ahead of the results, or a batch and one for each worker.
            batch_size: Images that are read before the network starts on them; those of one size are computed together.
            workers: Threads that read.
            on_bad_sample: `stop` raises the error of an image that cannot be used, after the results of those before
                it; `yield` gives the error in the place of the result, and goes on.

        Returns:
            An iterator over the results, in order.

        Raises:
            UserError: For an image that cannot be read, as above.

        Example:
            >>> segmenter = Segmenter.from_pretrained("hfseg/shapes-segformer")
            >>> [result.areas().keys() for result in segmenter.stream(np.zeros((2, 40, 40, 3), np.uint8))]
            [dict_keys(['background']), dict_keys(['background'])]
        """
        if batch_size < 1 or workers < 1:
            raise UserError(f"batch_size is {batch_size} and workers {workers}", "1 or more")
        one_of(on_bad_sample, ("stop", "yield"), "on_bad_sample")
        return self._stream(images, batch_size, workers, on_bad_sample == "stop")

    def _stream(self, images: Iterable[Any], batch_size: int, workers: int, stop: bool) -> Iterator:
        numbered = ((value, f"image {i}") for i, value in enumerate(images, start=1))
        with closing(read_ahead(lambda pair: self._read(*pair), numbered, workers, max(batch_size, workers))) as read:
            while batch := list(islice(read, batch_size)):
                good = [item for item in batch if not isinstance(item, Exception)]
                results = self._results(good)[::-1]
                for item in batch:
                    if not isinstance(item, Exception):
                        yield results.pop()  # so that it is held by no one else
                    elif stop or not isinstance(item, BadSample):
                        raise item
                    else:
                        yield item

    def profile(self, image: Any, rounds: int = 5) -> Profile:
        """Measure where the time of a call goes.

        Args:
            image: As for a call; one image.
            rounds: Calls to take the medians of, after two that warm up and measure memory.

        Returns:
            The times and the memory; print it for a table.

        Raises:
            UserError: When the image cannot be read.
        """
        if isinstance(image, list | tuple):
            raise UserError(f"a list of {len(image)} images", "one image")
        return profile_call(copy(self), image, rounds, next(self.model.parameters()).device)

    def timed(self) -> tuple[Segmenter, dict[str, float]]:
        """Make a segmenter of the same model that times the parts of its calls.

        Returns:
            Another segmenter, which shares the model, and the seconds by part, which its calls add to.
        """
        other = copy(self)
        return other, time_stages(other, next(self.model.parameters()).device)

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute the logits of whole images of one size, at the network's resolution.

        Args:
            images: (H, W, C) arrays as `decode_image` gives them, all of one size.

        Returns:
            (B, num_labels, h, w); stretched to H x W, they lie on the image. Padding has been cut off. With `tta`, the
            logarithms of the mean probabilities.

        Raises:
            ValueError: When the sizes differ.
            UserError: When the network gives NaN.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError(f"images of one size are wanted, not {[image.shape for image in images]}")
        return self._logits(images, whole=True)

    def tiles(self, image: np.ndarray) -> Tiles | None:
        """Start on the windows of an image.

        Args:
            image: (H, W, C) as `decode_image` gives it.

        Returns:
            What blends them, or None for an image that is computed whole.
        """
        if not self.needs_tiles(image.shape):
            return None
        return Tiles(image, lambda windows: self._logits(windows, whole=False), self.tile, self.tile_overlap)

    def predict_maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predict the class of every pixel; images of one size are computed together.

        Args:
            images: (H, W, C) arrays as `decode_image` gives them, of any sizes.

        Returns:
            (H, W) class ids of each image.
        """
        if self.task != "semantic":
            return [found.semantic_map(len(self.id2label)) for found in self.segments(images)]
        return [labels for labels, _ in self._predict(images, confidence=False)]

    def _results(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        if self.task != "semantic":
            return [
                Segmentation(found.semantic_map(len(self.id2label)), self.id2label, self.palette, image=image,
                             segment_map=found.segment_map, segments=found.segments)
                for image, found in zip(images, self.segments(images), strict=True)
            ]
        return [
            Segmentation(labels, self.id2label, self.palette, image=image, confidence=confidence)
            for image, (labels, confidence) in zip(images, self._predict(images, confidence=True), strict=True)
        ]

    def _predict(self, images: Sequence[np.ndarray], confidence: bool) -> list[tuple[np.ndarray, Any]]:
        """Class map of each image, and its confidence or what computes it."""
        results: list = [None] * len(images)
        for shape, members in by_shape(images).items():
            if self.needs_tiles(shape):
                for i in members:  # confidence at once, band by band: for later, all logits would have to be kept
                    found = self.tiles(images[i]).maps(lambda logits, size: self._upsample(logits, size, confidence))
                    results[i] = found[0], found[1] if confidence else None
                continue
            logits = self.logits([images[i] for i in members])
            [labels] = self._upsample(logits, shape[:2])
            for i, one, part in zip(members, labels.cpu().numpy(), logits, strict=True):
                results[i] = one, confidence_of(part, shape[:2], self._gives_scores) if confidence else None
        return results

    def _upsample(self, logits: Tensor, size: tuple[int, int], confidence: bool = False) -> Sequence[Tensor]:
        return upsample_argmax(logits, size, return_confidence=True) if confidence else [upsample_argmax(logits, size)]

    def _read(self, value: Any, name: str) -> np.ndarray:
        return read_image(value, self.channels, name)

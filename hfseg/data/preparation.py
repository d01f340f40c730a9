"""From a decoded sample to what the network takes, as a pure function of the seed, the epoch and the row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hfseg.data.augment import resize
from hfseg.data.images import Sample
from hfseg.data.pixels import resize_map
from hfseg.data.segments import Segments, mask_targets

Key = tuple[int, int]  # (epoch, index)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Returns the seed of everything drawn for one sample.

    Args:
        seed: The run's seed.
        epoch: Pass over the data.
        index: Row of the data.

    Returns:
        A 63-bit integer.

    Example:
        >>> sample_seed(0, 1, 2) == sample_seed(0, 1, 2) != sample_seed(0, 2, 1)
        True
    """
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> 1)


class Normalisation:
    """Rescales and normalises images as an image processor does, bit for bit, on the device that they are on.

    Where a try shows that the processor does something else as well, it is called itself.

    Args:
        processor: The image processor of a checkpoint.

    Example:
        >>> from transformers import SegformerImageProcessor
        >>> processor = SegformerImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3)
        >>> Normalisation(processor)(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)).unique()
        tensor([2.])
    """

    def __init__(self, processor):
        self.processor = processor
        self._simple: dict[int, bool] = {}  # by number of channels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises a batch.

        Args:
            images: (B, C, h, w) of any type.

        Returns:
            (B, C, h, w) float32, on the same device.
        """
        channels = images.shape[1]
        if channels not in self._simple:
            values = torch.arange(256 * channels).reshape(1, channels, 16, 16)
            tries = ((values + values // 256 * 85) % 256).byte(), 128 + 200 * (37.0 * values).sin()  # channels differ
            self._simple[channels] = all(torch.equal(self._by_processor(x), self._quickly(x)) for x in tries)
        return self._quickly(images) if self._simple[channels] else self._by_processor(images)

    def _quickly(self, images: torch.Tensor) -> torch.Tensor:
        asked = self.processor
        factor = asked.rescale_factor if getattr(asked, "do_rescale", False) else 1
        images = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if getattr(asked, "do_flip_channel_order", False):
            images = images.flip(1)
        if not getattr(asked, "do_normalize", False):
            return images.mul_(factor)
        mean, std = (
            (torch.tensor(values, device=images.device) * (1 / factor)).view(-1, 1, 1)
            for values in (asked.image_mean, asked.image_std)
        )
        return images.sub_(mean).div_(std)

    def _by_processor(self, images: torch.Tensor) -> torch.Tensor:
        output = self.processor(list(images.cpu()), return_tensors="pt", do_resize=False,
                                input_data_format="channels_first")
        return output["pixel_values"].to(images.device)


class MaskTargets:
    """Makes the masks that a network is to find.

    Args:
        task: `semantic`, `instance` or `panoptic`.
        is_thing: Of each class id whether its objects are told apart.
        ignore_index: The id of pixels without a class.
    """

    def __init__(self, task: str, is_thing: tuple[bool, ...], ignore_index: int):
        self.task, self.is_thing, self.ignore_index = task, is_thing, ignore_index

    def __call__(self, semantic_map: torch.Tensor, segments: Segments | None) -> dict[str, torch.Tensor]:
        """Makes the targets of one sample.

        Args:
            semantic_map: (h, w) class ids, after augmentation.
            segments: The objects, after augmentation.

        Returns:
            `masks` (N, h, w) bool and `classes` (N,) int64.
        """
        masks, classes = mask_targets(segments, semantic_map.numpy(), self.task, self.is_thing, self.ignore_index)
        return {"masks": torch.from_numpy(masks), "classes": torch.from_numpy(classes)}


class Preparation:
    """Turns a sample into what the network takes: resized, augmented, normalised.

    Args:
        augmentation: From (image, map) tensors to (image, map) tensors.
        processor: The image processor of the checkpoint, for its rescaling and normalisation.
        image_size: Resize before the augmentation; None leaves the size.
        seed: The run's seed.
        raw: Leave images and ids in their small types, a fifth of the bytes; whoever takes the batches calls
            `normalise` on the images and `.long()` on the labels, on the device.
        targets: Makes the masks to find, for networks that predict masks.

    Attributes:
        normalise: From (B, C, h, w) images to what the network takes.
    """

    def __init__(self, augmentation: Callable, processor, image_size=None, seed: int = 42, raw: bool = False,
                 targets: MaskTargets | None = None):
        self.targets = targets
        self.augmentation, self.image_size, self.seed, self.raw = augmentation, image_size, seed, raw
        self.processor, self.normalise = processor, Normalisation(processor)

    def tensors(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor, Segments | None]:
        """Returns the resized image, map and objects.

        Args:
            sample: A decoded sample, (H, W, C) and (H, W).

        Returns:
            Tensors (C, h, w) and (h, w) of class ids, in the sample's types; the objects, if there are any.
        """
        image = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
        semantic_map, segments = torch.from_numpy(sample.semantic_map), sample.segments
        if not self.image_size:
            return image, semantic_map, segments
        image, semantic_map = resize(image, semantic_map, self.image_size)
        if segments is not None:
            size = tuple(image.shape[-2:])
            segments = segments.transformed(lambda layer: resize_map(torch.from_numpy(layer), *size).numpy())
        return image, semantic_map, segments

    def augmented(self, sample: Sample, key: Key, other: Callable[[], Sample] | None = None):
        """Returns the augmented image, map and objects, a pure function of (seed, key).

        Args:
            sample: A decoded sample.
            key: (epoch, index).
            other: Gives another sample, for copy-paste.

        Returns:
            Tensors (C, h, w), not yet normalised, and (h, w); the objects, if the sample has any.
        """
        image, semantic_map, segments = self.tensors(sample)
        generator = torch.default_generator  # alone: `fork_rng` and `manual_seed` look for devices each time
        state = generator.get_state()
        try:
            generator.manual_seed(sample_seed(self.seed, *key))
            partner = other and (lambda: self.tensors(other()))
            image, semantic_map, *rest = self.augmentation(
                image, semantic_map, partner, *(() if segments is None else (segments,)))
            return (image, semantic_map, rest[0] if rest else None)
        finally:
            generator.set_state(state)  # or dropout in this process would see other numbers

    def __call__(self, sample: Sample, key: Key, other: Callable[[], Sample] | None = None) -> dict:
        """Returns one sample of a batch.

        Args:
            sample: A decoded sample.
            key: (epoch, index).
            other: Gives another sample, for copy-paste.

        Returns:
            `pixel_values` (C, h, w) float32, `labels` (h, w) int64, `name`; with `raw` both as they are; with
            `targets` also `masks` (N, h, w) bool and `classes` (N,) int64.
        """
        image, semantic_map, segments = self.augmented(sample, key, other)
        found = self.targets(semantic_map, segments) if self.targets else {}
        if not self.raw:
            image, semantic_map = self.normalise(image[None])[0], semantic_map.long()
        return {"pixel_values": image, "labels": semantic_map, "name": sample.name, **found}

"""The one inference path: image in, `Segmentation` at the image's own size out."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfseg.data.images import decode_image, name_of
from hfseg.errors import BadSample, UserError, one_of
from hfseg.labels import Colour, make_palette
from hfseg.ops.upsample import upsample_argmax
from hfseg.result import Segmentation

_URL_SECONDS = 30
_URL_BYTES = 500_000_000
_LEAST_PIXELS = 32  # networks halve the sides five times, and fail on less


class Segmenter:
    """A model with its image processor, ready to segment images of any size and kind.

    Args:
        model: A transformers model whose output has `logits` (B, num_labels, h, w). It stays where it is and as
            it is, unless `device` or `dtype` say otherwise; its train or eval mode is put back after every call.
        processor: Its image processor. It may resize; the result has the image's own size all the same. Centre
            crops are left out, since they would lose pixels.
        palette: (red, green, blue) per class id; generated if None.
        device: Where to compute.
        dtype: Float type to compute in, such as `torch.bfloat16`.

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
    ):
        if isinstance(dtype, str):
            dtype = getattr(torch, one_of(dtype, ("float32", "float16", "bfloat16"), "dtype"))
        try:
            self.model = model.to(device=device, dtype=dtype) if device is not None or dtype is not None else model
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"cannot compute on {device!r}: {str(error).splitlines()[0]}", "a device of this machine",
                            "device=None takes the best there is") from error
        self._lock, self._calls, self._training = threading.Lock(), 0, []
        self.processor = processor
        self.id2label = {int(i): str(name) for i, name in model.config.id2label.items()}
        self.palette = tuple(palette or make_palette(len(self.id2label)))
        self.channels = getattr(model.config, "num_channels", None) or 3

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_lock": None, "_calls": 0, "_training": []}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Segmenter:
        """Load a fine-tuned model from the hub or a folder.

        Args:
            name: Hub id, or a folder such as a run directory.
            revision: Branch, tag or commit on the hub.
            token: Hub token, if not the one that is logged in.
            device: Where to compute; a GPU if there is one, else the CPU.
            dtype: Float type to compute in; float32 if None.

        Returns:
            The segmenter.

        Raises:
            UserError: When nothing is found there, or it is no finished segmentation model.
        """
        from hfseg.models import load_for_inference, saved_schema

        name = os.fspath(name)
        model, processor = load_for_inference(name, revision=revision, token=token)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        schema = saved_schema(name, revision, token)
        known = schema is not None and schema.num_labels == model.config.num_labels
        return cls(model, processor, schema.palette if known else None, device, dtype)

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
            return self._segment([image], ["image"])[0]
        names = [f"image {i + 1} of {len(image)}" for i in range(len(image))]
        batches = range(0, len(image), batch_size)
        return [
            result
            for start in batches
            for result in self._segment(image[start : start + batch_size], names[start : start + batch_size])
        ]

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute the logits of images of one size, at the network's resolution.

        Args:
            images: (H, W, C) arrays as `decode_image` gives them, all of one size.

        Returns:
            (B, num_labels, h, w); stretched to H x W, they lie on the image. Padding has been cut off.

        Raises:
            ValueError: When the sizes differ.
            UserError: When the network gives NaN.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError(f"images of one size are wanted, not {[image.shape for image in images]}")
        with self._inference():
            pixel_values = self._pixel_values(images)
            padded, content = self._pad(pixel_values)
            logits = _class_logits(self.model(pixel_values=padded))
            if padded.shape != pixel_values.shape:
                whole = F.interpolate(logits.float(), size=padded.shape[-2:], mode="bilinear", align_corners=False)
                logits = whole[..., : content[0], : content[1]]
            if logits.isnan().any():
                raise UserError("the network gives NaN instead of class scores",
                                fix="its weights diverged in training or are damaged; or its numbers are too large for "
                                "half precision: dtype float32")
        return logits

    def predict_maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predict the class of every pixel; images of one size are computed together.

        Args:
            images: (H, W, C) arrays as `decode_image` gives them, of any sizes.

        Returns:
            (H, W) class ids of each image.
        """
        return [labels for labels, _ in self._predict(images, confidence=False)]

    def _segment(self, values: Sequence[Any], names: Sequence[str]) -> list[Segmentation]:
        images = [self._read(value, name) for value, name in zip(values, names, strict=True)]
        return [
            Segmentation(labels, self.id2label, self.palette, image=image, confidence=confidence)
            for image, (labels, confidence) in zip(images, self._predict(images, confidence=True), strict=True)
        ]

    def _predict(self, images: Sequence[np.ndarray], confidence: bool) -> list[tuple[np.ndarray, Any]]:
        by_shape: dict[tuple, list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault(image.shape, []).append(i)
        results: list = [None] * len(images)
        for shape, members in by_shape.items():
            logits = self.logits([images[i] for i in members])
            found = upsample_argmax(logits, shape[:2], return_confidence=confidence)
            labels, sure = found if confidence else (found, [None] * len(members))
            labels, sure = labels.cpu().numpy(), sure.cpu().numpy() if confidence else sure
            for i, *pair in zip(members, labels, sure, strict=True):
                results[i] = tuple(pair)
        return results

    def _read(self, value: Any, name: str) -> np.ndarray:
        name = name_of(value) or name
        if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
            value = _download(value)
        elif isinstance(value, str | os.PathLike) and os.path.isdir(value):
            raise UserError(f"{name} is a folder", "an image", f"hfseg predict MODEL {name} --output DIR")
        image = decode_image(value, self.channels, name)
        if 0 in image.shape:
            raise BadSample(name, f"an image of {image.shape[1]} x {image.shape[0]} pixels", "at least one pixel")
        return image

    def _pixel_values(self, images: Sequence[np.ndarray]) -> Tensor:
        # Cropping loses pixels, and where a processor pads is its secret: `_pad` does that in the open.
        off = {key: False for key in ("do_center_crop", "do_pad") if getattr(self.processor, key, None)}
        kinds = [np.float32 if image.dtype == np.uint16 else image.dtype for image in images]
        images = [np.require(image, kind, "W") for image, kind in zip(images, kinds, strict=True)]  # torch warns else
        inputs = self.processor(list(images), input_data_format="channels_last", return_tensors="pt", **off)
        parameter = next(self.model.parameters())
        return inputs["pixel_values"].to(parameter.device, parameter.dtype)

    def _pad(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad right and bottom by zeros, the mean, to what the processor would pad to and networks can take."""
        height, width = pixel_values.shape[-2:]
        pads = getattr(self.processor, "do_pad", None)
        step = (getattr(self.processor, "size_divisor", None) if pads else None) or 1
        least = (getattr(self.processor, "pad_size", None) if pads else None) or {"height": 1, "width": 1}
        target = [
            -(-max(size, least[side], _LEAST_PIXELS) // step) * step
            for size, side in ((height, "height"), (width, "width"))
        ]
        return F.pad(pixel_values, (0, target[1] - width, 0, target[0] - height)), (height, width)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; afterwards each module has its own mode again."""
        with self._lock:  # threads share the model: the last one out puts the modes back
            if self._calls == 0:
                self._training = [module for module in self.model.modules() if module.training]
                self.model.eval()
            self._calls += 1
        try:
            # Some networks cache position tables, and one made in inference mode would break the next training step.
            with torch.no_grad() if self._training else torch.inference_mode():
                yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    for module in self._training:  # not model.train(): frozen parts may be in eval mode
                        module.training = True


def _class_logits(outputs: Any) -> Tensor:
    """Per-pixel class logits (B, num_labels, h, w) of what a model returned."""
    return outputs.logits


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

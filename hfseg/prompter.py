"""Masks from clicks and boxes: an image is encoded once and asked as often as one likes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfseg.errors import UserError
from hfseg.inference.reading import read_image
from hfseg.models.configs import readable_errors, refuse_unreachable, resolve_name
from hfseg.models.hub_files import find_weights
from hfseg.models.quiet import quiet_transformers

PROMPTABLE = ("sam", "sam_hq", "sam2", "sam2_video", "edgetam", "edgetam_video", "sam3_tracker")


@dataclass(frozen=True)
class EncodedImage:
    """What a promptable model keeps of an image.

    Args:
        embeddings: As the model's `get_image_embeddings` gives them.
        size: (height, width) of the image.
        resized: (height, width) of the image as the network saw it, padding left out.
        padded: (height, width) of what the network saw.
    """

    embeddings: Any
    size: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


class Prompter:
    """A promptable model of transformers (SAM, SAM-HQ, SAM 2, EdgeTAM, SAM 3's tracker) with its processor.

    Args:
        model: Of `AutoModelForMaskGeneration`.
        processor: Its processor, or image processor.
        device: Where to compute; None leaves the model where it is.
    """

    def __init__(self, model: nn.Module, processor: Any, device: str | torch.device | None = None):
        self.model = model.to(device).eval() if device is not None else model.eval()
        self.processor = getattr(processor, "image_processor", processor)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, revision: str | None = None, token: str | None = None,
        device: str | torch.device | None = None,
    ) -> Prompter:  # fmt: skip
        """Load a promptable model from the hub or a folder.

        Args:
            name: Hub id or folder.
            revision: Branch, tag or commit on the hub.
            token: Hub token, if not the one that is logged in.
            device: Where to compute; a GPU if there is one, else the CPU.

        Returns:
            The prompter.

        Raises:
            UserError: When nothing is found there, or it is no promptable model.
        """
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, PreTrainedConfig

        name = os.fspath(name)
        source = resolve_name(name)
        hub = {"revision": revision, "token": token}
        with readable_errors(name), quiet_transformers():
            refuse_unreachable(source)
            kind = PreTrainedConfig.get_config_dict(source, **hub)[0].get("model_type")
            if kind not in PROMPTABLE:
                raise UserError(f"{name} takes no clicks: its model_type is {kind!r}", ", ".join(PROMPTABLE))
            weights = hub if os.path.isdir(source) else {**hub, "revision": find_weights(source, revision, token)}
            model, info = AutoModelForMaskGeneration.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **weights)
            processor = AutoImageProcessor.from_pretrained(source, **hub)
        if info["missing_keys"]:
            raise UserError(f"{name} lacks weights, such as {min(info['missing_keys'])}", "a whole checkpoint")
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        return cls(model, processor, device)

    @torch.inference_mode()
    def encode(self, image: Any) -> EncodedImage:
        """Look at an image: the expensive part, done once.

        Args:
            image: A path, http(s) URL, bytes of a file, PIL image, or (H, W, 3) array.

        Returns:
            What `predict` takes.

        Raises:
            UserError: When it cannot be read.
        """
        array = read_image(image)
        inputs = self.processor(images=[array], return_tensors="pt", input_data_format="channels_last")
        pixel_values = inputs["pixel_values"].to(next(self.model.parameters()).device)
        padded = tuple(pixel_values.shape[-2:])
        resized = inputs.get("reshaped_input_sizes")
        resized = padded if resized is None else tuple(int(side) for side in resized[0])
        return EncodedImage(self.model.get_image_embeddings(pixel_values), array.shape[:2], resized, padded)

    @torch.inference_mode()
    def predict(
        self, image: EncodedImage, points: Sequence[Sequence[float]] = (), labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, float]:  # fmt: skip
        """Find the mask of what was pointed at.

        Args:
            image: What `encode` gave.
            points: (x, y) in pixels of the image.
            labels: For each point 1 where it lies on the object, 0 where it does not; all 1 if None.
            box: (left, top, right, bottom) in pixels, around the object.

        Returns:
            (H, W) bool at the image's own size, and how good the model thinks it is (its predicted IoU). Of the three
            masks for a single point, which may mean a part or the whole, the one that it thinks best of.

        Raises:
            UserError: Without a point or a box, with numbers that are none, or outside the image.
        """
        labels = [1] * len(points) if labels is None else list(labels)
        self._check(image, points, labels, box)
        device = next(self.model.parameters()).device
        scale = [resized / own for resized, own in zip(image.resized[::-1], image.size[::-1], strict=True)]
        prompts: dict[str, Tensor] = {}
        if points:
            prompts["input_points"] = torch.tensor([[[[x * scale[0], y * scale[1]] for x, y in points]]])
            prompts["input_labels"] = torch.tensor([[labels]], dtype=torch.int32)
        if box is not None:
            prompts["input_boxes"] = torch.tensor([[[value * scale[i % 2] for i, value in enumerate(box)]]])
        embeddings = {"image_embeddings": image.embeddings}
        if isinstance(image.embeddings, tuple):  # SAM-HQ looks at earlier layers, too
            embeddings = {"image_embeddings": image.embeddings[0], "intermediate_embeddings": image.embeddings[1]}
        several = len(points) == 1 and box is None
        outputs = self.model(**embeddings, **{name: value.to(device) for name, value in prompts.items()},
                             multimask_output=several)
        scores = outputs.iou_scores[0, 0]
        best = int(scores.argmax())
        logits = outputs.pred_masks[:1, 0, best, None].float()
        if image.resized != image.padded:
            logits = F.interpolate(logits, image.padded, mode="bilinear", align_corners=False)
            logits = logits[..., : image.resized[0], : image.resized[1]]
        logits = F.interpolate(logits, image.size, mode="bilinear", align_corners=False)
        return (logits[0, 0] > 0).cpu().numpy(), float(scores[best])

    @staticmethod
    def _check(image: EncodedImage, points: Sequence, labels: Sequence, box: Sequence | None) -> None:
        height, width = image.size
        if not len(points) and box is None:
            raise UserError("neither a point nor a box", "at least one of them")
        if len(labels) != len(points) or not set(labels) <= {0, 1}:
            raise UserError(f"labels {list(labels)} for {len(points)} points", "1 (on the object) or 0 for each")
        values = [*((value, width if i == 0 else height) for point in points for i, value in enumerate(point)),
                  *((value, (width, height)[i % 2]) for i, value in enumerate(box or ()))]
        if any(len(point) != 2 for point in points) or (box is not None and len(box) != 4):
            raise UserError("points or a box of another form", "points as (x, y), a box as (left, top, right, bottom)")
        if not all(0 <= value <= most for value, most in values):
            raise UserError("a point or box outside the image", f"x from 0 to {width}, y from 0 to {height}")
        if box is not None and not (box[0] < box[2] and box[1] < box[3]):
            raise UserError(f"a box {list(box)} without area", "left < right and top < bottom")

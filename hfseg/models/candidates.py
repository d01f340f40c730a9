"""What networks that predict masks are given to learn from, and what they propose, each family in its own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfseg.errors import UserError


@dataclass
class Candidates:
    """What a network proposes for each image of a batch.

    Args:
        probabilities: (B, N, C) of each class; what is missing to 1 is "no object".
        masks: (B, N, h, w) logits. They lie on the pixel values, or, if `pasted`, in the boxes.
        boxes: (B, N, 4) left, top, right, bottom in pixels of the pixel values, if the network has them.
        pasted: Whether a mask fills its box.
    """

    probabilities: Tensor
    masks: Tensor
    boxes: Tensor | None = None
    pasted: bool = False

    def semantic_scores(self) -> Tensor:
        """Adds up the masks of each class, weighed by its probability.

        Returns:
            (B, C, h, w): linear in the masks' probabilities, so they may be stretched before the largest is taken.
        """
        return torch.einsum("bnc,bnhw->bchw", self.probabilities, self.masks.sigmoid())


@dataclass
class Targets:
    """The objects of a batch of training images.

    Args:
        masks: Of each image (N, H, W), bool; N may be 0.
        classes: Of each image (N,), int64.
        task: `semantic`, `instance` or `panoptic`.
        names: Class names by class id.
    """

    masks: Sequence[Tensor]
    classes: Sequence[Tensor]
    task: str
    names: Sequence[str]


# -- reading outputs ----------------------------------------------------------------------------------------------


def read_queries(outputs: Any) -> Candidates:
    """Reads Mask2Former, MaskFormer, OneFormer and EoMT.

    Args:
        outputs: What the model returned.

    Returns:
        One candidate per query.
    """
    return Candidates(outputs.class_queries_logits.float().softmax(-1)[..., :-1], outputs.masks_queries_logits.float())


def read_detr(outputs: Any) -> Candidates:
    """Reads DETR: as above, under other names.

    Args:
        outputs: What the model returned.

    Returns:
        One candidate per query.
    """
    return Candidates(outputs.logits.float().softmax(-1)[..., :-1], outputs.pred_masks.float())


def read_rf_detr(outputs: Any) -> Candidates:
    """Reads RF-DETR, whose classes are independent sigmoids.

    Args:
        outputs: What the model returned.

    Returns:
        One candidate per query.
    """
    return Candidates(outputs.logits.float().sigmoid(), outputs.pred_masks.float())


def read_detections(outputs: Any) -> Candidates:
    """Reads hfseg's own detectors.

    Args:
        outputs: A `DetectorOutput`.

    Returns:
        One candidate per detection; where an image has fewer than another, the rest has probability 0.
    """
    return Candidates(outputs.probabilities, outputs.masks, outputs.boxes, bool(outputs.pasted))


# -- writing targets ----------------------------------------------------------------------------------------------


def feed_masks(model: nn.Module, targets: Targets) -> dict[str, Any]:
    """Gives targets to Mask2Former, MaskFormer and EoMT, which match and compute their losses in float32.

    Args:
        model: The network.
        targets: On its device.

    Returns:
        Arguments of its `forward`.
    """
    return {"mask_labels": [masks.float() for masks in targets.masks], "class_labels": list(targets.classes)}


def feed_boxes(model: nn.Module, targets: Targets) -> dict[str, Any]:
    """Gives targets to DETR, RF-DETR and hfseg's own detectors, which learn boxes, too: the tightest around each mask.

    Args:
        model: The network.
        targets: On its device.

    Returns:
        Arguments of its `forward`: boxes as (centre x, centre y, width, height) in shares of the image.
    """
    from torchvision.ops import box_convert, masks_to_boxes  # seconds, which per-pixel networks need not wait

    labels = []
    for masks, classes in zip(targets.masks, targets.classes, strict=True):
        height, width = masks.shape[-2:]
        corners = masks_to_boxes(masks) if len(masks) else masks.new_zeros((0, 4), dtype=torch.float32)
        corners = corners + corners.new_tensor([0, 0, 1, 1])  # to the far edge of the last pixel
        boxes = box_convert(corners, "xyxy", "cxcywh") / corners.new_tensor([width, height, width, height])
        labels.append({"class_labels": classes, "boxes": boxes, "masks": masks.float()})
    return {"labels": labels}


def loss_of_no_objects(parts: dict[str, Tensor], config: Any) -> Tensor:
    """Adds up the loss of RF-DETR on images without an object, whose sum is emptied by the losses of no masks.

    Args:
        parts: Losses by name, with the layer behind.
        config: Its configuration, with the weights.

    Returns:
        A scalar.
    """
    weights = {"loss_ce": config.class_loss_coefficient, "loss_bbox": config.bbox_loss_coefficient,
               "loss_giou": config.giou_loss_coefficient}  # fmt: skip
    kinds = {key: re.sub(r"_(\d+|enc)$", "", key) for key in parts}
    return sum(weights[kinds[key]] * value.sum() for key, value in parts.items() if kinds[key] in weights)


def feed_text(model: nn.Module, targets: Targets) -> dict[str, Any]:
    """Gives targets to OneFormer: masks, the task as text, and what is in each image as text.

    The sentences are those that it was trained with; "an panoptic photo" is how the authors wrote it.

    Args:
        model: The network, with its tokenizer as `model.tokenizer`.
        targets: On its device.

    Returns:
        Arguments of its `forward`.
    """
    count = model.config.num_queries - model.config.text_encoder_n_ctx
    article = "a" if targets.task == "semantic" else "an"
    sentences = []
    for classes in targets.classes:
        seen = [f"a photo with a {targets.names[i]}" for i in sorted(classes.tolist())][:count]
        sentences.append(seen + [f"{article} {targets.task} photo"] * (count - len(seen)))
    length = model.config.text_encoder_context_length
    asked = ask_task(model, targets.task, len(sentences))
    _set_learning(model, True)
    texts = torch.stack([_tokens(model, texts, length) for texts in sentences])
    return {**feed_masks(model, targets), **asked, "text_inputs": texts}


def ask_task(model: nn.Module, task: str, count: int) -> dict[str, Tensor]:
    """Tells OneFormer what is wanted of it.

    Args:
        model: The network, with its tokenizer as `model.tokenizer`.
        task: `semantic`, `instance` or `panoptic`.
        count: Images in the batch.

    Returns:
        Arguments of its `forward`.
    """
    _set_learning(model, False)
    return {"task_inputs": _tokens(model, [f"the task is {task}"], model.config.task_seq_len).expand(count, -1)}


def _set_learning(model: nn.Module, learning: bool) -> None:
    """Tells OneFormer whether to compare its queries with sentences, whatever its mode; and keeps the layers that go by
    a setting of its configuration from dropping activations in evaluation mode."""
    for module in model.modules():
        if "is_training" in vars(module):
            module.is_training = model.config.is_training and module.training
    model.model.is_training = learning


def _tokens(model: nn.Module, texts: list[str], length: int) -> Tensor:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise UserError("this network reads text, and has no tokenizer", "a checkpoint with its tokenizer's files",
                        "copy those of the checkpoint that it was made from into its folder")
    known = model.__dict__.setdefault("_tokens_of", {})  # the same few sentences come again and again
    for text in texts:
        if (text, length) not in known:
            found = tokenizer(text, padding="max_length", max_length=length, truncation=True)
            known[text, length] = torch.tensor(found["input_ids"]) * torch.tensor(found["attention_mask"])
    return torch.stack([known[text, length] for text in texts]).to(next(model.parameters()).device)

"""From a recipe to the parts of a run: what is read off the data before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, broadcast
from torch import nn

from hfseg.data import SegmentationData
from hfseg.data.augment import resolve
from hfseg.data.frequencies import class_counts
from hfseg.data.images import decode_image
from hfseg.errors import UserError
from hfseg.recipe import Recipe

LEAST_CROP = 32  # networks halve the sides five times


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Returns the Accelerator of a run.

    Args:
        recipe: The recipe.

    Returns:
        Set up with accumulation, precision and trackers.

    Raises:
        UserError: For a tracker that is not installed, or a way of launching that hfseg does not support.
    """
    folder = str(Path(recipe.output_dir).expanduser())
    precision = "no" if recipe.train.mixed_precision == "fp32" else recipe.train.mixed_precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # a second run in this process, such as a notebook, may use another precision
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=recipe.train.gradient_accumulation_steps,
            mixed_precision=precision,
            cpu=not torch.accelerator.is_available(),  # or torchrun's processes on CPU would not find each other
            log_with=recipe.train.trackers or None,
            project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
        )
    except ValueError as error:
        raise UserError(f"Accelerate cannot start: {error}",
                        fix="check train.mixed_precision and train.trackers on this machine") from error
    started = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    missing = [name for name in recipe.train.trackers if name not in started]
    if missing:
        raise UserError(f"the tracker {', '.join(missing)} is not installed",
                        fix=f"pip install {' '.join(missing)}")
    if str(accelerator.distributed_type.value) not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise UserError(f"hfseg does not train under {accelerator.distributed_type.value} yet",
                        "one process, or data parallel on CPUs or GPUs")
    return accelerator


def limit_data(recipe: Recipe, data: SegmentationData) -> None:
    """Cuts the splits to what the recipe asks for, in place.

    Args:
        recipe: With `data.max_train_samples` and `train.overfit`.
        data: The data.

    Raises:
        UserError: When there is nothing to train on or to evaluate on.
    """
    if recipe.task != "semantic" and data.task != recipe.task:
        raise UserError(f"the task is {recipe.task}, and the data was read for the {data.task} one",
                        f"load_data(..., task={recipe.task!r})")
    if data.train is None:
        raise UserError(f"{recipe.data.path} has no training split", ", ".join(data), "--data.train_split NAME")
    limit = recipe.train.overfit or recipe.data.max_train_samples
    if limit:
        rows = data[data.train]
        data[data.train] = rows.take(limit) if data.streaming else rows.select(range(min(limit, len(rows))))
    if recipe.train.overfit:
        data.validation = data.train
    if data.validation is None:
        raise UserError(f"{recipe.data.path} has no split to evaluate on", ", ".join(data),
                        "--data.validation_split NAME, a data.validation_fraction above 0 where there are two images, "
                        "or --train.overfit N to evaluate on the first N training images")


def frequencies(recipe: Recipe, data: SegmentationData, say: Callable) -> np.ndarray | None:
    """Counts the classes if the recipe needs to know them.

    Args:
        recipe: The recipe.
        data: The data.
        say: Prints a line.

    Returns:
        int64 counts of labelled pixels per class, or None.
    """
    augment = resolve(recipe.augment)
    if recipe.loss.class_weights != "auto" and not augment.rare_class_crop and not augment.copy_paste:
        return None
    counts = class_counts(data, data.train, skip_bad=recipe.data.on_bad_sample == "skip")
    total = max(1, counts.sum())
    say("pixels: " + ", ".join(f"{name} {100 * n / total:.1f}%" for name, n in zip(data.schema.names, counts)))
    return counts


def crop_size(recipe: Recipe, data: SegmentationData, needed: tuple[int, int] | None):
    """Returns the (height, width) of training samples.

    Args:
        recipe: Its `augment.crop_size` is followed.
        data: Looked at when the recipe leaves it open.
        needed: The only size that the network takes, if there is one.

    Returns:
        (height, width), or None to leave images as they are.

    Raises:
        UserError: When the recipe asks for a size that the network cannot take.
    """
    asked = recipe.augment.crop_size
    asked = (asked, asked) if isinstance(asked, int) else tuple(asked) if asked else None
    if needed:
        if asked and asked != needed:
            raise UserError(f"augment.crop_size is {asked}, and {recipe.model.name} takes {needed} only",
                            fix="leave augment.crop_size out")
        return needed
    size = recipe.data.image_size
    asked = asked or (tuple(size) if isinstance(size, (tuple, list)) else None)
    if asked:
        if min(asked) < LEAST_CROP:
            raise UserError(f"training samples of {asked[0]} x {asked[1]} pixels are too small for a network",
                            f"{LEAST_CROP} x {LEAST_CROP} and more", "--augment.crop_size 128")
        return asked
    rows = data[data.train]
    if data.streaming:
        seen = {decode_image(row["image"], data.channels).shape[:2] for row in rows.take(8)}
    else:
        picked = rows.select_columns(["image"]).select(range(min(32, len(rows))))
        seen = set()
        for row in picked:
            try:
                seen.add(decode_image(row["image"], data.channels).shape[:2])
            except UserError:
                continue  # the loop meets it, and says so
    if len(seen) == 1:
        height, width = next(iter(seen))
        if size:
            scale = size / min(height, width)
            height, width = int(height * scale), int(width * scale)
        return (max(height, LEAST_CROP), max(width, LEAST_CROP))
    return (512, 512)


def fill_colour(processor, channels: int) -> list[float]:
    """Returns the mean colour that pads images, in 0 to 255.

    Args:
        processor: The image processor.
        channels: Bands of the images.

    Returns:
        A value per channel.
    """
    scale = getattr(processor, "rescale_factor", None) or 1.0
    mean = getattr(processor, "image_mean", None) if getattr(processor, "do_normalize", False) else None
    return [float(value) / scale for value in (mean or [0.5] * channels)]


def capture_auxiliary_head(model: nn.Module) -> list[torch.Tensor]:
    """Collects the logits of an auxiliary head, which transformers computes and does not return.

    Args:
        model: The network.

    Returns:
        A list that each forward pass in training mode appends to; clear it before.
    """
    captured: list[torch.Tensor] = []
    head = getattr(model, "auxiliary_head", None)
    if head is not None:  # a hook that returned something would replace the output
        head.register_forward_hook(lambda module, inputs, output: captured.append(output) if module.training else None)
    return captured


def device_name(device: torch.device) -> str:
    """Returns what computed, for the card.

    Args:
        device: Of the run.

    Returns:
        Such as `NVIDIA H200`, or `cpu, 2 threads`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def step_counts(recipe: Recipe, batches_per_epoch: int | None) -> tuple[int, int, int | None]:
    """Returns the optimizer steps in all, between evaluations, and between checkpoints.

    Args:
        recipe: The recipe.
        batches_per_epoch: Of one process; None for a stream, whose length is not known.

    Returns:
        Three counts; the last is None when checkpoints follow evaluations.

    Raises:
        UserError: When a stream is to be trained by epochs.
    """
    train, evaluation = recipe.train, recipe.eval
    if batches_per_epoch is None and (train.max_steps < 1 or evaluation.eval_steps is None):
        raise UserError("a stream has no known length", "train.max_steps and eval.eval_steps",
                        "--train.max_steps 10000 --eval.eval_steps 1000")
    accumulation = train.gradient_accumulation_steps
    total = train.max_steps if train.max_steps > 0 else math.ceil(
        round(train.num_train_epochs * batches_per_epoch, 6) / accumulation)
    every = evaluation.eval_steps or max(1, round(evaluation.eval_epochs * batches_per_epoch / accumulation))
    return total, every, train.save_steps


def synchronise(accelerator: Accelerator, model: nn.Module, average) -> None:
    """Gives all processes the buffers of the first: BatchNorm's statistics differ between them otherwise.

    Args:
        accelerator: Of the run.
        model: The network, unwrapped.
        average: Its `MovingAverage`, or None.
    """
    if accelerator.num_processes > 1:
        for tensor in (*model.buffers(), *(average.average.values() if average else ())):
            tensor.copy_(broadcast(tensor.clone(), from_process=0))


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Runs a model without the autocast that Accelerate put around it: as its users will, and be scored as.

    Args:
        model: The network, unwrapped.
    """
    wrapped = model.__dict__.pop("forward", None)
    original = model.__dict__.get("_original_forward")
    if wrapped is not None and original is not None:
        model.forward = original
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def pick_score(results: dict[str, Any], metric: str) -> float:
    """Returns the score that the best weights have most of.

    Args:
        results: Contents of eval_results.json.
        metric: One of its numbers, or `loss`, of which less is better.

    Returns:
        A number; minus infinity where it is not defined.

    Raises:
        UserError: When there is no such number.
    """
    numbers = {key for key, value in results.items() if isinstance(value, (int, float)) or value is None}
    if metric not in numbers:
        raise UserError(f"eval.metric {metric!r} is no score", ", ".join(sorted(numbers)))
    value = results[metric]
    if value is None or math.isnan(value):
        return -math.inf
    return -value if metric == "loss" else float(value)


def flat(values: dict, prefix: str = "") -> dict:
    """Returns nested settings as the flat numbers, strings and bools that trackers take.

    Args:
        values: Nested dictionaries.
        prefix: Put before each name.

    Returns:
        Dotted names and plain values.

    Example:
        >>> flat({"train": {"max_steps": 3, "betas": (0.9, 0.99)}})
        {'train.max_steps': 3, 'train.betas': '(0.9, 0.99)'}
    """
    result = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result

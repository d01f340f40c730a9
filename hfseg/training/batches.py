"""The batches of a run: samples as the network takes them, from the first one that it has not seen, to the last."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from hfseg.data import SegmentationData
from hfseg.data.augment import Augmentation, rare_classes, resolve
from hfseg.data.decoded import decoded_rows
from hfseg.data.images import decode_image
from hfseg.data.loading import MaskTargets, Preparation, StreamingSet, TrainingSet, train_loader, worker_count
from hfseg.errors import UserError
from hfseg.recipe import Recipe, to_yaml
from hfseg.run_directory import RECIPE
from hfseg.training.learner import Learner
from hfseg.training.progress import State
from hfseg.training.setup import Run

LEAST_CROP = 32  # networks halve the sides five times


@dataclass
class Batches:
    """What the loop draws from, and when it does what.

    Args:
        loader: Gives batches without end.
        prepare: Normalises their pixels.
        total: Optimizer steps of the whole run.
        eval_every: Steps between evaluations.
        save_every: Steps between checkpoints; None where they follow evaluations.
        steps_per_epoch: None for a stream, whose length is not known.
    """

    loader: Iterable[dict]
    prepare: Preparation
    total: int
    eval_every: int
    save_every: int | None
    steps_per_epoch: float | None


def open_batches(
    run: Run, data: SegmentationData, counts: np.ndarray | None, learner: Learner, state: State
) -> Batches:
    """Opens the training split, and settles how many steps there are.

    Args:
        run: The run.
        data: The data.
        counts: Pixels per class, where the recipe needs them.
        learner: What the batches are for.
        state: Where the run starts.

    Returns:
        The batches.

    Raises:
        UserError: When recipe and network do not agree on a size, or a stream is to be trained by epochs.
    """
    recipe, config, on_gpu = run.recipe, run.recipe.train, run.device.type != "cpu"
    batch_size, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    prepare = _preparation(run, data, counts, learner)
    shard = {"rank": run.accelerator.process_index, "world": run.world, "start": state.progress.batches}
    rows, common = data[data.train], (data.schema, prepare)
    if data.streaming:
        batches_per_epoch = None
        samples = StreamingSet(rows, *common, batch_size, data.channels, recipe.data.on_bad_sample, **shard)
    else:
        batches_per_epoch = math.ceil(len(rows) / (batch_size * run.world))
        kept = recipe.data.cache_gb if recipe.task == "semantic" else 0  # the cache holds maps, and no objects
        cache = decoded_rows(rows, data.schema, data.channels, kept, on_gpu)
        if cache:
            run.say(f"data: {cache.note}")
        samples = TrainingSet(rows, *common, data.channels, recipe.data.on_bad_sample, cache)
    total, eval_every, save_every = step_counts(recipe, batches_per_epoch)
    _write_recipe(run, state, total)
    steps_per_epoch = batches_per_epoch and batches_per_epoch / accumulation
    run.say(f"{total} steps of {batch_size * accumulation * run.world} images"
            + (f", {steps_per_epoch:g} an epoch" if steps_per_epoch else "") + f"; evaluated every {eval_every}")
    loader = train_loader(samples, batch_size, seed=recipe.seed, pin_memory=run.device.type == "cuda",
                          num_workers=worker_count(recipe.data.num_workers, on_gpu), **shard)
    return Batches(loader, prepare, total, eval_every, save_every, steps_per_epoch)


def _preparation(run: Run, data: SegmentationData, counts: np.ndarray | None, learner: Learner) -> Preparation:
    """Augmentation, then what the image processor does, then the targets."""
    recipe, schema, family = run.recipe, data.schema, learner.family
    augmentation = Augmentation(
        resolve(recipe.augment), size=crop_size(recipe, data, family.input_size(learner.model.config)),
        ignore_index=schema.ignore_index, mean=fill_colour(learner.processor, data.channels),
        rare_classes=rare_classes(counts) if counts is not None else (),
    )  # fmt: skip
    targets = MaskTargets(recipe.task, schema.is_thing, schema.ignore_index) if family.predicts_masks else None
    return Preparation(augmentation, learner.processor, recipe.data.image_size, recipe.seed, raw=True, targets=targets)


def _write_recipe(run: Run, state: State, total: int) -> None:
    """The recipe in the run directory is the one of the last step that was trained."""
    progress = state.progress
    if not run.main:
        return
    if state.resumed and progress.step >= total and progress.evaluated_step == progress.step:
        run.say(f"nothing left to train: the checkpoint is at step {progress.step} of {total}")
    else:
        run.directory.write(RECIPE, to_yaml(replace(run.recipe, train=replace(run.recipe.train, resume=False))))


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

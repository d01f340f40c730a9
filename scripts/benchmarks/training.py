"""The training loop, its data, and a training step."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data.dataloader import _BaseDataLoaderIter

import hfseg
from benchmarks.measuring import (
    B0,
    MANY_LABELS,
    SEED,
    Row,
    Setting,
    at_least,
    at_most,
    extra_memory,
    plain_and_fused,
    ratio,
    shown,
    take_turns,
)
from hfseg.data.augment import PRESETS, Augmentation, rare_classes
from hfseg.data.decoded import DecodedRows
from hfseg.data.frequencies import class_counts
from hfseg.data.loading import Preparation, TrainingSet, train_loader
from hfseg.ops import upsample_cross_entropy
from hfseg.recipe import AugmentConfig
from hfseg.training.batches import crop_size, fill_colour


class BatchClock:
    """Notes when any `DataLoader` is asked for a batch and when it gives one, in hfseg's loop as in a bare one.

    From a batch to the next request is the loop; from a request to its batch is the data.

    Args:
        skip: Batches at the start that do not count.
    """

    def __init__(self, skip: int = 3):
        self.skip, self.times = skip, []

    def __enter__(self) -> BatchClock:
        original, times = _BaseDataLoaderIter.__next__, self.times

        def timed(iterator):
            asked = time.perf_counter()
            batch = original(iterator)
            times.append((asked, time.perf_counter()))
            return batch

        self._patch = mock.patch.object(_BaseDataLoaderIter, "__next__", timed)
        self._patch.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._patch.__exit__(*error)

    @property
    def step(self) -> float:
        """Median seconds of a step without its wait for data."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return statistics.median([asked - given for (_, given), (asked, _) in pairs][self.skip :])

    @property
    def wait(self) -> float:
        """Median seconds of a wait for a batch."""
        return statistics.median([given - asked for asked, given in self.times][self.skip :])


def training_loader(data, recipe: hfseg.Recipe, processor, rare=(), cache: str | None = None) -> tuple:
    """Returns the batches that `hfseg.train` would see, with decoded rows kept in the folder `cache`, and the function
    that normalises their images."""
    augmentation = Augmentation(
        recipe.augment, size=crop_size(recipe, data, None), ignore_index=data.schema.ignore_index,
        mean=fill_colour(processor, data.channels), rare_classes=rare,
    )  # fmt: skip
    prepare = Preparation(augmentation, processor, recipe.data.image_size, recipe.seed, raw=True)
    decoded = cache and DecodedRows(data[data.train], data.schema, data.channels, root=cache)
    rows = TrainingSet(data[data.train], data.schema, prepare, data.channels, cache=decoded)
    loader = train_loader(rows, recipe.train.per_device_train_batch_size, seed=recipe.seed,
                          num_workers=recipe.data.num_workers)  # fmt: skip
    return loader, prepare.normalise


def bare_step(model, optimizer, batch: dict, normalise, ignore_index: int) -> torch.Tensor:
    """Forward, backward and optimizer, as few lines as PyTorch needs, on the same kernels."""
    logits = model(pixel_values=normalise(batch["pixel_values"])).logits
    loss = upsample_cross_entropy(logits, batch["labels"].long(), ignore_index=ignore_index)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def bare_loop(data, recipe: hfseg.Recipe) -> list[float]:
    """Trains in a bare loop as the recipe says, and returns the losses."""
    set_seed(recipe.seed)
    model, processor = hfseg.load_model(**B0, labels=data.schema)
    hfseg.fuse(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, weight_decay=0.0)
    loader, normalise = training_loader(data, recipe, processor)
    batches = iter(loader)
    set_seed(recipe.seed)
    model.train()
    losses = [bare_step(model, optimizer, next(batches), normalise, data.schema.ignore_index)
              for _ in range(recipe.train.max_steps)]  # fmt: skip
    return torch.stack(losses).tolist()


def hfseg_loop(data, recipe: hfseg.Recipe) -> list[float]:
    """Trains with hfseg, everything printed that a user sees, and returns the losses."""
    with tempfile.TemporaryDirectory() as folder:
        recipe.output_dir = folder
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            hfseg.train(recipe, data=data)
        lines = (Path(folder) / "train_log.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def measure_loop(setting: Setting) -> Iterator[Row]:
    """What hfseg.train costs beyond forward + backward + optimizer, and how long it waits for data."""
    recipe = hfseg.Recipe(seed=SEED)
    recipe.model.name, recipe.model.weights = B0["name"], B0["weights"]
    recipe.data.path, recipe.data.max_eval_samples = "shapes/source", 2
    # The same arithmetic as the bare loop; a log line and the bar at every step; evaluated at the end only.
    recipe.train.weight_decay, recipe.train.schedule, recipe.train.max_grad_norm = 0.0, "constant", None
    recipe.train.logging_steps, recipe.eval.samples = 1, 0
    recipe.train.per_device_train_batch_size = batch_size = 2 if setting.quick else 8
    recipe.train.max_steps = recipe.eval.eval_steps = 6 if setting.quick else 24
    data = hfseg.load_data(recipe.data.path, scenes=8 if setting.quick else 200)
    for workers in (0, 1):
        recipe.data.num_workers = workers
        step: dict[str, list[float]] = {"bare": [], "hfseg": []}
        waits = []
        for number in range(setting.rounds + 1):
            losses = {}
            for name, loop in (("bare", bare_loop), ("hfseg", hfseg_loop)):
                with BatchClock() as clock:
                    losses[name] = loop(data, recipe)
                if number:
                    step[name].append(clock.step)
            waits.append(clock.wait)
            np.testing.assert_allclose(losses["hfseg"], losses["bare"], rtol=1e-3, err_msg="not the same training")
        wait, whole = statistics.median(waits[1:]), statistics.median(step["hfseg"])
        task = f"SegFormer-B0, batch {batch_size}, 128x128, num_workers {workers}"
        yield Row(f"Training step without its data, {task}", shown(step["hfseg"]),
                  f"bare PyTorch loop, with neither gradient norm nor log, {shown(step['bare'])}",
                  f"{ratio(step['hfseg'], step['bare']) - 1:+.1%} overhead")  # fmt: skip
        yield Row(f"Wait for a batch, {task}", shown([wait]), f"a step without it {shown([whole])}",
                  f"{wait / (wait + whole):.1%} of the time")  # fmt: skip


# -- data ------------------------------------------------------------------------------------------------------------


def take_batches(batches: Iterator[dict], count: int) -> float:
    """Takes batches with one thread, as a worker process prepares them, and returns the seconds that it computed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.thread_time()
    for _ in range(count):
        next(batches)
    seconds = time.thread_time() - start
    torch.set_num_threads(threads)
    return seconds


def measure_data(setting: Setting) -> Iterator[Row]:
    """Images per second that one core prepares, rows decoded each time and rows decoded before."""
    batch_size, images = 4, 8 if setting.quick else 48
    sources = {"embedded shapes": (hfseg.load_data("shapes/source", scenes=64), None)}
    if setting.data:
        sources[f"{Path(setting.data).name}, crops of 512x512"] = hfseg.load_data(setting.data), 512
    for title, (data, crop) in sources.items():
        _, processor = hfseg.load_model(**B0, labels=data.schema)
        rare = rare_classes(class_counts(data, data.train, limit=100))
        recipe = hfseg.Recipe(seed=SEED)
        recipe.train.per_device_train_batch_size, recipe.augment.crop_size = batch_size, crop
        data[data.train] = data[data.train].select(range(min(images, len(data[data.train]))))
        with tempfile.TemporaryDirectory() as folder:
            sides = {}
            for preset in PRESETS:
                recipe.augment = AugmentConfig(preset=preset, crop_size=crop)
                for cache in (None, folder):
                    loader, _ = training_loader(data, recipe, processor, rare, cache)
                    batches = iter(loader)
                    sides[preset, bool(cache)] = partial(take_batches, batches, images // batch_size)
            # Processor time: what else runs on the machine takes none of it.
            rounds = [{side: call() for side, call in sides.items()} for _ in range(setting.rounds + 1)][1:]
        seconds = {side: [times[side] for times in rounds] for side in sides}
        for preset in PRESETS:
            each, kept = (images / statistics.median(seconds[preset, cache]) for cache in (False, True))
            faster = ratio(seconds[preset, False], seconds[preset, True])
            yield Row(f"Data pipeline on one core, {title}, preset `{preset}`",
                      f"{kept:.0f} images/s, rows decoded before", f"decoding each time {each:.0f} images/s",
                      f"{faster:.1f}x as fast; {7 * kept:.0f} images/s on 7 such cores")  # fmt: skip


def measure_step(setting: Setting) -> Iterator[Row]:
    """Forward, loss and backward of SegFormer-B0 with 150 labels, as transformers does it and as hfseg does."""
    batch, size = (1, 128) if setting.quick else (4, 512)
    torch.manual_seed(SEED)
    model, _ = hfseg.load_model(**B0, labels=MANY_LABELS)
    model.config.semantic_loss_ignore_index = 255
    for module in model.modules():  # for equal gradients of both sides
        module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    plain, fused = plain_and_fused(model.train())
    pixels, labels = torch.randn(batch, 3, size, size), torch.randint(0, 150, (batch, size, size))
    labels[:, :20] = 255

    def by_transformers() -> torch.Tensor:
        loss = plain(pixel_values=pixels, labels=labels).loss
        loss.backward()
        return loss.detach()

    def ours() -> torch.Tensor:
        loss = upsample_cross_entropy(fused(pixel_values=pixels).logits, labels)
        loss.backward()
        return loss.detach()

    np.testing.assert_allclose(ours(), by_transformers(), rtol=1e-5)
    theirs, mine = (torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (plain, fused))
    largest = float((mine - theirs).norm() / theirs.norm())
    task = f"SegFormer-B0, batch {batch}, {size}x{size}, 150 labels"
    for network in (plain, fused):
        network.zero_grad()
    memory = {"peer": extra_memory(by_transformers), "hfseg": extra_memory(ours)}
    seconds = take_turns({"peer": by_transformers, "hfseg": ours}, setting.rounds)
    yield Row(f"Training step (forward, loss, backward), {task}; gradients differ by {largest:.0e} of their norm",
              shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
              **at_least(ratio(seconds["peer"], seconds["hfseg"]), 1.5))  # fmt: skip
    yield Row("The same, peak extra memory", f"{memory['hfseg']:.0f} MB", f"{memory['peer']:.0f} MB",
              **at_most(memory["hfseg"] / memory["peer"], 0.65, "{:.2f} of it"))  # fmt: skip

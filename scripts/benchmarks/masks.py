"""A training step of Mask2Former."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

import hfseg
from benchmarks.measuring import (
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


def mask2former(batch: int, size: int, objects: int = 10) -> tuple[Mask2FormerForUniversalSegmentation, dict]:
    """Returns Mask2Former with Swin-T and random weights, and a batch of images with blobs as targets."""
    torch.manual_seed(SEED)
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(num_labels=80)).train()
    coarse = torch.randn(batch * objects, 1, 8, 8)
    masks = (F.interpolate(coarse, (size, size), mode="bilinear")[:, 0] > 0.3).float().split(objects)
    labels = torch.randint(0, 80, (batch, objects)).unbind()
    return model, {"pixel_values": torch.randn(batch, 3, size, size), "mask_labels": masks, "class_labels": labels}


def step(model: Mask2FormerForUniversalSegmentation, inputs: dict) -> float:
    """Returns the loss, after the pass back; the same sampled points each time."""
    torch.manual_seed(SEED)
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    return loss.item()


def step_memory(batch: int, size: int, fused: bool) -> float:
    """Returns the MB that a first step takes; to be called in a process of its own."""
    if fused:  # what is compiled does not count
        step(hfseg.fuse(mask2former(1, 64)[0]), mask2former(1, 64)[1])
    model, inputs = mask2former(batch, size)
    if fused:
        hfseg.fuse(model)
    return extra_memory(lambda: step(model, inputs))


def measure_masks(setting: Setting) -> Iterator[Row]:
    """Forward, loss and backward, plain and fused, with the same sampled points."""
    batch, size = (1, 64) if setting.quick else (2, 512)
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh:
        memory = list(fresh.map(step_memory, [batch] * 2, [size] * 2, [False, True]))
    model, inputs = mask2former(batch, size)
    plain, fused = plain_and_fused(model)
    losses = step(plain, inputs), step(fused, inputs)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4, err_msg="not the same loss")
    seconds = take_turns({"peer": lambda: step(plain, inputs), "hfseg": lambda: step(fused, inputs)}, setting.rounds)
    yield Row(f"Training step of a fused Mask2Former, Swin-T, batch {batch}, {size}x{size}; losses {losses[0]:.5f} and "
              f"{losses[1]:.5f}", shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
              **at_least(ratio(seconds["peer"], seconds["hfseg"]), 1.3))  # fmt: skip
    yield Row("The same, peak extra memory (a process each)", f"{memory[1]:.0f} MB", f"{memory[0]:.0f} MB",
              **at_most(memory[1] / memory[0], 0.75, "{:.2f} of it"))  # fmt: skip

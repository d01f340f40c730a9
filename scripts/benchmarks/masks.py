"""Mask2Former, OneFormer and EoMT: training steps, forwards, and two ways to the same masks and points."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
)

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
from hfseg.models.fusing import is_fused
from hfseg.models.fusing.mask_loss import sample


def mask2former(size: int) -> nn.Module:
    """Returns Mask2Former with Swin-T and random weights."""
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(num_labels=80))


def oneformer(size: int) -> nn.Module:
    """Returns OneFormer with Swin-T and random weights, without the text encoder of its contrastive loss."""
    return OneFormerForUniversalSegmentation(OneFormerConfig(num_labels=80, is_training=False))


def eomt(size: int) -> nn.Module:
    """Returns EoMT with ViT-S and random weights, masked attention in its last four layers."""
    return EomtForUniversalSegmentation(EomtConfig(hidden_size=384, num_attention_heads=6, num_hidden_layers=12,
                                                   num_labels=80, image_size=size))  # fmt: skip


def made(build: Callable[[int], nn.Module], batch: int, size: int, objects: int = 10) -> tuple[nn.Module, dict]:
    """Returns a model and a batch of images with blobs as targets."""
    torch.manual_seed(SEED)
    model = build(size).train()
    coarse = torch.randn(batch * objects, 1, 8, 8)
    masks = (F.interpolate(coarse, (size, size), mode="bilinear")[:, 0] > 0.3).float().split(objects)
    labels = torch.randint(0, 80, (batch, objects)).unbind()
    inputs = {"pixel_values": torch.randn(batch, 3, size, size), "mask_labels": masks, "class_labels": labels}
    if build is oneformer:
        inputs["task_inputs"] = torch.randint(0, 100, (batch, model.config.task_seq_len))
    return model, inputs


def step(model: nn.Module, inputs: dict) -> float:
    """Returns the loss, after the pass back; the same sampled points each time."""
    torch.manual_seed(SEED)
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    return loss.item()


def step_memory(batch: int, size: int, fused: bool) -> float:
    """Returns the MB that a first step takes; to be called in a process of its own."""
    if fused:  # what is compiled does not count
        small, inputs = made(mask2former, 1, 64)
        step(hfseg.fuse(small), inputs)
    model, inputs = made(mask2former, batch, size)
    if fused:
        hfseg.fuse(model)
    return extra_memory(lambda: step(model, inputs))


def measure_masks(setting: Setting) -> Iterator[Row]:
    """Forward, loss and backward, plain and fused, with the same sampled points."""
    batch, size = (1, 64) if setting.quick else (2, 512)
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh:
        memory = list(fresh.map(step_memory, [batch] * 2, [size] * 2, [False, True]))
    model, inputs = made(mask2former, batch, size)
    plain, fused = plain_and_fused(model)
    losses = step(plain, inputs), step(fused, inputs)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4, err_msg="not the same loss")
    seconds = take_turns({"peer": lambda: step(plain, inputs), "hfseg": lambda: step(fused, inputs)}, setting.rounds)
    yield Row(f"Training step of a fused Mask2Former, Swin-T, batch {batch}, {size}x{size}; losses {losses[0]:.5f} and "
              f"{losses[1]:.5f}", shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
              **at_least(ratio(seconds["peer"], seconds["hfseg"]), 1.3))  # fmt: skip
    yield Row("The same, peak extra memory (a process each)", f"{memory[1]:.0f} MB", f"{memory[0]:.0f} MB",
              **at_most(memory[1] / memory[0], 0.75, "{:.2f} of it"))  # fmt: skip


def measure_masks_others(setting: Setting) -> Iterator[Row]:
    """Training steps of OneFormer and EoMT, forwards of all three, and points of masks or of embeddings."""
    for title, build, batch, side in (("OneFormer, Swin-T", oneformer, 1, 512), ("EoMT, ViT-S", eomt, 2, 256)):
        size = 64 if setting.quick else side
        model, inputs = made(build, batch, size)
        plain, fused = plain_and_fused(model)
        losses = step(plain, inputs), step(fused, inputs)
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3, err_msg="not the same loss")
        seconds = take_turns({"peer": lambda p=plain, i=inputs: step(p, i),
                              "hfseg": lambda f=fused, i=inputs: step(f, i)}, setting.rounds)  # fmt: skip
        yield Row(f"Training step of a fused {title}, batch {batch}, {size}x{size}; losses {losses[0]:.5f} and "
                  f"{losses[1]:.5f}", shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
                  f"{ratio(seconds['peer'], seconds['hfseg']):.2f}x as fast")  # fmt: skip
    size = 64 if setting.quick else 512
    for title, build in (("Mask2Former, Swin-T", mask2former), ("OneFormer, Swin-T", oneformer), ("EoMT, ViT-S", eomt)):
        model, inputs = made(build, 1, size)
        plain, fused = plain_and_fused(model.eval())
        inputs = {name: value for name, value in inputs.items() if not name.endswith("_labels")}
        sides = {"peer": forward(plain, inputs), "hfseg": forward(fused, inputs)}
        if is_fused(fused):  # the whole model: it knows which masks are asked for
            whole = copy.deepcopy(fused)
            whole.__class__ = type(plain)
            sides["whole"] = forward(whole, inputs)
        found = {name: call() for name, call in sides.items()}
        scale = found["peer"].abs().max()
        off = float((found["hfseg"] - found["peer"]).abs().mean() / scale)
        seconds = take_turns(sides, setting.rounds)
        inner = ratio(seconds["whole"], seconds["hfseg"]) if "whole" in sides else None
        note = f", of which small masks of inner layers {inner:.2f}x" if inner else ""
        yield Row(f"Forward of a fused {title}, {size}x{size}; masks differ by {off:.0e} on average",
                  shown(seconds["hfseg"]), f"transformers {shown(seconds['peer'])}",
                  f"{ratio(seconds['peer'], seconds['hfseg']):.2f}x as fast{note}")  # fmt: skip
    yield from measure_points(setting)


def forward(model: nn.Module, inputs: dict) -> Callable[[], torch.Tensor]:
    """Returns a function that gives the masks."""

    def call() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).masks_queries_logits

    return call


def measure_points(setting: Setting) -> Iterator[Row]:
    """What the matcher could do with the pixel embedding: sample it and multiply. hfseg samples the masks."""
    for queries, channels in ((100, 256), (200, 384)):
        side, count = (16, 50) if setting.quick else (128, 12544)
        embeddings, pixels = torch.randn(1, queries, channels), torch.randn(1, channels, side, side)
        points = torch.rand(1, count, 2)
        masks = torch.einsum("bqc,bchw->bqhw", embeddings, pixels)
        sides = {
            "masks": lambda m=masks, p=points: sample(m, p),
            "both": lambda e=embeddings, x=pixels, p=points: sample(torch.einsum("bqc,bchw->bqhw", e, x), p),
            "embedding": lambda e=embeddings, x=pixels, p=points: e @ sample(x, p),
        }
        torch.testing.assert_close(sides["masks"](), sides["embedding"](), rtol=1e-3, atol=1e-3)
        seconds = take_turns(sides, setting.rounds)
        yield Row(f"The matcher's {count} points of {queries} masks, {side}x{side}, sampled from the masks",
                  f"{shown(seconds['masks'])}, with the product that makes them {shown(seconds['both'])}",
                  f"sampling the {channels} channels of the embedding {shown(seconds['embedding'])}",
                  f"{ratio(seconds['embedding'], seconds['masks']):.1f}x as fast, with the product "
                  f"{ratio(seconds['embedding'], seconds['both']):.1f}x")  # fmt: skip

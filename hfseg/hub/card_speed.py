"""How fast a segmenter is on this machine: a number for the card, taken at the end of a run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfseg.segmenter import Segmenter


def measure_speed(segmenter: Segmenter, image: np.ndarray | Sequence[np.ndarray], rounds: int = 5,
                  patience: float = 10.0) -> dict[str, Any]:
    """Times whole calls, from an array to its semantic map, one image at a time.

    Args:
        segmenter: What is timed.
        image: (H, W) or (H, W, C), or several of them.
        rounds: How often each image is timed, after one call that warms up.
        patience: Seconds after which no further round begins; the first one is always whole.

    Returns:
        `milliseconds`: median per image; `image_size`: [height, width] of the median image; `calls`, `images`,
        `device`, `threads`, `dtype`, `fused`; `load` and `cores`: how many processes wanted to run in the last minute,
        on how many cores, where the system tells; `peak_extra_bytes` on CUDA devices only: there the allocator counts
        what a call takes, while a process that has just trained holds memory that a call takes again, uncounted.

    Example:
        >>> segmenter = Segmenter.from_pretrained("hfseg/shapes-segformer")
        >>> measure_speed(segmenter, np.zeros((48, 64, 3), np.uint8), rounds=1)["image_size"]
        [48, 64]
    """
    images = [image] if isinstance(image, np.ndarray) else list(image)
    if not images or rounds < 1:
        raise ValueError("at least one image and one round")
    parameter = next(segmenter.model.parameters())
    device, peak, taken = parameter.device, 0, []

    def call(one: np.ndarray) -> float:
        start = _now(device)
        segmenter(one)
        return 1000 * (_now(device) - start)

    for one in images:
        call(one)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            call(one)
            peak = max(peak, torch.cuda.max_memory_allocated(device) - before)
    began = time.monotonic()
    for _ in range(rounds):
        taken += [call(one) for one in images]
        if time.monotonic() - began > patience:
            break
    middle = sorted(images, key=lambda one: one.shape[0] * one.shape[1])[len(images) // 2]
    facts = {
        "milliseconds": round(statistics.median(taken), 2), "image_size": list(middle.shape[:2]), "calls": len(taken),
        "images": len(images), "device": _device(device), "threads": torch.get_num_threads(),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "fused": bool(getattr(segmenter.model, "fuse_report", None)),
    }  # fmt: skip
    if hasattr(os, "getloadavg"):
        facts |= {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
    return {**facts, "peak_extra_bytes": peak} if device.type == "cuda" else facts


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _device(device: torch.device) -> str:
    """The model of the processor, never the name of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(row.partition(":")[2].strip() for row in text.splitlines() if row.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    return f"cpu, {model}" if model else "cpu"

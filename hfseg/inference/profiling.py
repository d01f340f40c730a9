"""Where the time and the memory of a call go."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfseg.errors import UserError

# What the parts of a call are called, and the methods of a segmenter that they are.
STAGES = {"read and decode": "_read", "preprocess": "_pixel_values", "forward": "_network",
          "upsample and argmax": "_upsample"}  # fmt: skip
OBJECT_STAGES = {"read and decode": "_read", "preprocess": "_pixel_values", "forward": "_forward",
                 "masks to segments": "_segments_of"}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """Times of a call.

    Args:
        milliseconds: Median per stage, in order; `other` is what no stage took of the `total`.
        peak_extra_bytes: By how much memory grew at most in a call: that of the device's tensors on a GPU, else of the
            process; None where it cannot be had.
        rounds: How many calls the medians are of.
        device: Where the network computed.
        size: (height, width) of the image.

    Example:
        >>> print(Profile({"forward": 8.0, "other": 2.0, "total": 10.0}, 3_000_000, 5, "cpu", (480, 640)))
        640 x 480 pixels on cpu, median of 5 calls
          forward               8.0 ms   80%
          other                 2.0 ms   20%
          total                10.0 ms  100%
          peak extra memory     3.0 MB
    """

    milliseconds: Mapping[str, float]
    peak_extra_bytes: int | None
    rounds: int
    device: str
    size: tuple[int, int]

    def __str__(self) -> str:
        total = self.milliseconds["total"]
        lines = [f"{self.size[1]} x {self.size[0]} pixels on {self.device}, median of {self.rounds} calls"]
        lines += [f"  {name:<19}{value:>6.1f} ms  {value / total:>4.0%}" for name, value in self.milliseconds.items()]
        if self.peak_extra_bytes is not None:
            lines.append(f"  {'peak extra memory':<19}{self.peak_extra_bytes / 1e6:>6.1f} MB")
        return "\n".join(lines)


def profile_call(segmenter: Any, image: Any, rounds: int, device: torch.device) -> Profile:
    """Times the stages of calls.

    Args:
        segmenter: A copy to spend: its methods are replaced by timed ones.
        image: What it is called with.
        rounds: How many calls.
        device: Where the network computes.

    Returns:
        Medians and memory.

    Raises:
        UserError: For less than one round, or an image that cannot be read.
    """
    if rounds < 1:
        raise UserError(f"rounds is {rounds}", "1 or more")
    spent = time_stages(segmenter, device)
    result = segmenter(image)  # what is compiled or loaded on the first call
    memory = _peak_extra_bytes(lambda: segmenter(image), device)
    taken: dict[str, list[float]] = {name: [] for name in (*spent, "other", "total")}
    for _ in range(rounds):
        spent.update(dict.fromkeys(spent, 0.0))
        start = _now(device)
        segmenter(image)
        total = _now(device) - start
        for name, seconds in {**spent, "other": total - sum(spent.values()), "total": total}.items():
            taken[name].append(1000 * seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return Profile(medians, memory, rounds, str(device), result.semantic_map.shape)


def time_stages(segmenter: Any, device: torch.device) -> dict[str, float]:
    """Times the stages of all calls to come.

    Args:
        segmenter: A copy to spend: its methods are replaced by timed ones.
        device: Where the network computes.

    Returns:
        Seconds by stage, which calls add to.
    """
    stages = STAGES if segmenter.task == "semantic" else OBJECT_STAGES
    spent = dict.fromkeys(stages, 0.0)

    def timed(name: str, method: Callable) -> Callable:
        def call(*arguments, **more):
            start = _now(device)
            try:
                return method(*arguments, **more)
            finally:
                spent[name] += _now(device) - start

        return call

    for name, method in stages.items():
        setattr(segmenter, method, timed(name, getattr(segmenter, method)))
    return spent


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    status, restart = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left to the allocator would hide what this one takes
        restart.write_text("5")  # the high-water mark starts anew
        before = _status(status, "VmRSS")
        call()
        return max(0, _status(status, "VmHWM") - before)
    except (OSError, AttributeError, ValueError):  # another C library, or a container that forbids it
        return None


def _status(file: Path, key: str) -> int:
    [line] = [line for line in file.read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024

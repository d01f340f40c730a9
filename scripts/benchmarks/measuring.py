"""What every section measures with, and a line of the table."""

from __future__ import annotations

import copy
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import hfseg

SEED = 42
B0 = {"name": "nvidia/mit-b0", "weights": "random"}  # SegFormer-B0; speed does not depend on the weights
MANY_LABELS = hfseg.LabelSchema.from_names([f"class {i}" for i in range(150)])


@dataclass
class Setting:
    """What the command line chose."""

    data: str | None
    rounds: int
    quick: bool  # sizes for trying the script out; the figures then mean nothing
    peer_metric: str  # where evaluate's own mean_iou lies: its name on the hub, or a file
    picture: Path | None  # where the section `scaling` draws


@dataclass
class Row:
    """A line of the table.

    Args:
        what: Was measured.
        hfseg: Our figure.
        peer: Whose figure, and which.
        result: How they compare.
        bar: What it has to be, if there is a bar.
        value: The number in `result` that the bar is about.
        met: Whether it is met; None without a bar.
    """

    what: str
    hfseg: str
    peer: str
    result: str
    bar: str = ""
    value: float | None = None
    met: bool | None = None

    def as_dict(self) -> dict:
        return asdict(self)


def at_least(value: float, bar: float, unit: str = "x as fast") -> dict:
    """Returns the fields of a row whose ratio has to reach a bar."""
    return {"result": f"{value:.2f}{unit}" if value < 10 else f"{value:.0f}{unit}", "value": value,
            "bar": f"at least {bar:g}x", "met": value >= bar}  # fmt: skip


def at_most(value: float, bar: float, text: str) -> dict:
    """Returns the fields of a row whose figure has to stay under a bar."""
    return {"result": text.format(value), "value": value, "bar": f"at most {bar:g}", "met": value <= bar}


def take_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times functions turn by turn, so that whatever else the machine does meets all of them alike.

    Args:
        sides: Functions by name.
        rounds: How often each is timed, after one call that is not.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Returns the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def shown(seconds: list[float]) -> str:
    """Returns the median as text, in milliseconds."""
    value = 1000 * statistics.median(seconds)
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def extra_memory(call: Callable[[], object]) -> float:
    """Returns by how many MB the process grew at most during a call (Linux)."""

    def status(key: str) -> float:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
        return int(line.split()[1]) / 1000

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed and kept would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    call()
    return max(0.0, status("VmHWM") - before)


def plain_and_fused(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns a model and a fused copy of it."""
    fused = hfseg.fuse(copy.deepcopy(model))
    if not fused.fuse_report.fused:
        raise SystemExit(f"nothing was fused: {fused.fuse_report}")
    return model, fused

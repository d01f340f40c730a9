"""Push and pull of a large model against copying its file, and what the local hub's memory does meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

import hfseg
from benchmarks.measuring import SEED, Row, Setting
from hfseg.models.hub_files import has_hash


def measure_hub(setting: Setting) -> Iterator[Row]:
    """A model of 200 MB, which does not compress, goes up and down, by LFS and by Xet; each time anew."""
    size = (4 if setting.quick else 200) * 1_000_000
    disable_progress_bars()
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _measure(Path(folder), size, setting.rounds)
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = offline, False


def _measure(folder: Path, size: int, rounds: int) -> Iterator[Row]:
    model, generator = folder / "model", np.random.default_rng(SEED)
    model.mkdir()
    (model / "config.json").write_text("{}")
    seconds: dict[str, list[float]] = {}
    grown: dict[str, list[float]] = {}

    def timed(name: str, call) -> None:
        start = time.perf_counter()
        call()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    def copy_file(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        with open(target, "rb+") as file:
            os.fsync(file.fileno())

    with _served(folder / "hub") as (hub, process):
        for number in range(rounds):
            for way in ("LFS", "Xet"):
                constants.HF_HUB_DISABLE_XET = way == "LFS"
                (model / "model.safetensors").write_bytes(generator.bytes(size))  # the hub holds none of it yet
                repo_id, back = f"me/{way}-{number}".lower(), folder / "back"
                with _growth(process.pid, grown, way):
                    timed(f"push by {way}", lambda repo_id=repo_id: hfseg.push(model, repo_id, **hub))
                timed(f"pull after {way}",
                      lambda repo_id=repo_id, back=back: hfseg.pull(repo_id, local_dir=back, **hub))
                timed("copy", lambda: copy_file(model / "model.safetensors", folder / "copied"))
                timed("hash", lambda: has_hash(model / "model.safetensors", "0" * 64))
                if (back / "model.safetensors").read_bytes() != (model / "model.safetensors").read_bytes():
                    raise SystemExit("what came back is not what was pushed")
                shutil.rmtree(back)
    speed = {name: size / 1e6 / statistics.median(times) for name, times in seconds.items()}
    for name in seconds:
        if name not in ("copy", "hash"):
            yield Row(f"{name[0].upper()}{name[1:]}, a model of {size // 1_000_000} MB, `hfseg hub serve` beside it",
                      f"{speed[name]:.0f} MB/s", f"copying the file, with fsync, {speed['copy']:.0f} MB/s; its SHA-256 "
                      f"alone, {speed['hash']:.0f} MB/s", f"{speed[name] / speed['copy']:.2f} and "
                      f"{speed[name] / speed['hash']:.2f} of them")  # fmt: skip
    for way, megabytes in grown.items():
        yield Row(f"Memory that the hub's process takes more while it receives this by {way}",
                  f"{statistics.median(megabytes):.0f} MB", "", f"{max(megabytes):.0f} MB at most in {rounds} pushes")


@contextmanager
def _served(root: Path):
    """Serves a hub in another process; gives how to reach it."""
    asked = [sys.executable, "-m", "hfseg", "hub", "serve", "--root", str(root), "--port", "0"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as process:
        said = ""
        while not (found := re.search(r"HF_TOKEN=(\S+)", said)):
            said += process.stdout.readline()
        url = re.search(r"HF_ENDPOINT=(\S+)", said)[1]
        try:
            yield {"endpoint": url, "token": found[1], "say": lambda text: None}, process
        finally:
            process.terminate()


@contextmanager
def _growth(pid: int, grown: dict[str, list[float]], name: str):
    """Notes by how many MB a process grew at most (Linux)."""

    def status(key: str) -> float:
        [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(key)]
        return int(line.split()[1]) / 1000

    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = status("VmRSS")
    yield
    grown.setdefault(name, []).append(max(0.0, status("VmHWM") - before))

"""A network's forward pass, and a whole call from image to map."""

from __future__ import annotations

import contextlib
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
import transformers
from PIL import Image

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
from hfseg.data.shapes import scene


def random_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a model whose normalisation layers do something, as those of a trained one do."""
    torch.manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
    return model.eval()


def measure_fuse(setting: Setting) -> Iterator[Row]:
    """A forward pass of each family that `hfseg.fuse` knows, plain and fused."""
    yield forward_row(setting, "SegFormer-B0", "nvidia/mit-b0", 512, bar=1.8)
    if not setting.quick:
        yield forward_row(setting, "SegFormer-B5", "nvidia/mit-b5", 512)
        for name in ("upernet", "beit"):
            yield forward_row(setting, f"{name} as transformers configures it", name, None)


def forward_row(setting: Setting, title: str, name: str, size: int | None, bar: float | None = None) -> Row:
    """Returns the line of a network; without a size, at the one that it is configured for."""
    with contextlib.redirect_stderr(io.StringIO()):
        model, _ = hfseg.load_model(name, weights="random", labels=MANY_LABELS)
    plain, fused = plain_and_fused(random_statistics(model))
    size = 128 if setting.quick else size or getattr(model.config, "image_size", 512)
    pixels = torch.randn(1, 3, size, size)
    sides = {"peer": lambda: plain(pixel_values=pixels).logits, "hfseg": lambda: fused(pixel_values=pixels).logits}
    with torch.inference_mode():
        expected, found = (call() for call in sides.values())
        difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1))
        if difference > 1e-4:
            raise SystemExit(f"the fused {title} differs by {difference}")
        del expected, found
        memory = {side: extra_memory(call) for side, call in sides.items()}
        seconds = take_turns(sides, setting.rounds)
    fields = at_least(ratio(seconds["peer"], seconds["hfseg"]), bar or 1)
    return Row(f"Forward pass of a fused {title}, {size}x{size}, 150 labels; largest difference {difference:.0e}, "
               f"{memory['hfseg'] / memory['peer']:.2f} of the memory", shown(seconds["hfseg"]),
               f"transformers {shown(seconds['peer'])}", **fields if bar else {"result": fields["result"]})  # fmt: skip


def measure_segmenter(setting: Setting) -> Iterator[Row]:
    """An image file's pixels in, a segmentation out."""
    height, width, inner = (180, 320, 128) if setting.quick else (720, 1280, 512)
    photo = Image.fromarray(scene(SEED, 0, size=(height, width)).image)
    model, processor = hfseg.load_model(**B0, labels=MANY_LABELS, image_size=(inner, inner))
    plain, fused = plain_and_fused(random_statistics(model))
    segmenter = hfseg.Segmenter(fused, processor)
    peer = transformers.pipeline("image-segmentation", model=plain, image_processor=processor, device="cpu")
    sides = {"hfseg": lambda: segmenter(photo).semantic_map, "peer": lambda: peer(photo)}
    for call in sides.values():
        call()
    memory = {name: extra_memory(call) for name, call in sides.items()}
    seconds = take_turns(sides, setting.rounds)
    ours, theirs = segmenter(photo).semantic_map, np.full((height, width), -1)
    for part in peer(photo):
        theirs[np.asarray(part["mask"]) > 0] = model.config.label2id[part["label"]]
    agreement = float((ours == theirs).mean())
    if agreement < 0.999:
        raise SystemExit(f"Segmenter and pipeline agree on {agreement:.2%} of the pixels only: no comparison")
    task = f"SegFormer-B0, {len(MANY_LABELS.names)} labels, {width}x{height} photo"
    name = 'transformers pipeline("image-segmentation")'
    yield Row(f"`Segmenter(image)`, {task}; {agreement:.3%} of the pixels agree", shown(seconds["hfseg"]),
              f"{name} {shown(seconds['peer'])}", **at_least(ratio(seconds["peer"], seconds["hfseg"]), 4))  # fmt: skip
    yield Row("The same, peak extra memory", f"{memory['hfseg']:.0f} MB", f"{memory['peer']:.0f} MB",
              **at_most(memory["hfseg"] / memory["peer"], 0.25, "{:.2f} of it"))  # fmt: skip
    print(segmenter.profile(photo), file=sys.stderr)


def measure_startup(setting: Setting) -> Iterator[Row]:
    """New processes: an import, and the help of the command line."""
    timed = "import time; start = time.perf_counter(); import hfseg; print(time.perf_counter() - start)"
    imports, helps = [], []
    for _ in range(setting.rounds + 1):
        run = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True)
        imports.append(float(run.stdout))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hfseg", "--help"], check=True, capture_output=True)
        helps.append(time.perf_counter() - start)
    cases = [("`import hfseg`", imports, 0.1), ("`hfseg --help`, the whole process", helps, 0.6)]
    for what, seconds, bar in cases:
        median = statistics.median(seconds[1:])
        yield Row(what, shown([median]), "", **at_most(median, bar, "{:.3f} s"))

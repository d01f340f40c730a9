"""How cost grows with the size of the image, the labels, the batch and the number of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import numpy as np

import hfseg
from benchmarks.kernels import by_post_processing, patches, smooth_logits
from benchmarks.measuring import SEED, Row, Setting, extra_memory, take_turns
from hfseg.ops import upsample_argmax


def measure_scaling(setting: Setting) -> Iterator[Row]:
    """`upsample_argmax` and the metric along one axis at a time; draws a picture of all."""
    quick, curves = setting.quick, {}
    usual = 64 if quick else 512

    def upsampling(labels: int, side: int, batch: int) -> dict[str, Callable]:
        logits = smooth_logits(labels, max(8, side // 8), max(8, side // 8)).expand(batch, -1, -1, -1).contiguous()
        return {"hfseg": lambda: upsample_argmax(logits, (side, side)),
                "transformers": lambda: by_post_processing(logits, (side, side))}  # fmt: skip

    axes = {
        "side of the image, pixels (150 labels)": ((64, 128) if quick else (128, 256, 512, 1024, 2048),
                                                   lambda x: upsampling(150, x, 1)),
        "labels (512x512)": ((2, 8) if quick else (2, 10, 50, 200, 1000), lambda x: upsampling(x, usual, 1)),
        "images in a batch (512x512, 20 labels)": ((1, 2) if quick else (1, 2, 4, 8, 16),
                                                   lambda x: upsampling(20, usual, x)),
    }  # fmt: skip
    for axis, (values, make) in axes.items():
        curves[axis] = {"hfseg": [], "transformers": []}
        for value in values:
            seconds = take_turns(make(value), setting.rounds)
            for name, times in seconds.items():
                curves[axis][name].append((value, 1000 * float(np.median(times))))
        ours, theirs = (curves[axis][name] for name in ("hfseg", "transformers"))
        text = {name: " / ".join(f"{ms:.3g}" for _, ms in points) + " ms" for name, points in curves[axis].items()}
        ratios = " / ".join(f"{b / a:.0f}" for (_, a), (_, b) in zip(ours, theirs, strict=True))
        yield Row(f"`ops.upsample_argmax` by {axis}: {' / '.join(map(str, values))}", text["hfseg"],
                  f"transformers' post-processing {text['transformers']}", f"{ratios}x as fast")  # fmt: skip
    counts = (2, 4) if quick else (10, 100, 1000)
    rng = np.random.default_rng(SEED)
    maps = [patches(rng, usual, 150) for _ in range(4)]

    def score(count: int) -> None:
        metric = hfseg.metrics.load("mean_iou", num_labels=150)
        for number in range(count):
            metric.add(prediction=maps[number % 4], reference=maps[(number + 1) % 4])
        metric.compute()

    score(1)
    memory = [extra_memory(lambda count=count: score(count)) for count in counts]
    seconds = take_turns({str(count): lambda count=count: score(count) for count in counts}, setting.rounds)
    axis = "images scored (512x512, 150 labels)"
    curves[axis] = {"hfseg": [(count, 1000 * float(np.median(seconds[str(count)]))) for count in counts]}
    yield Row(f"Mean IoU by {axis}: {' / '.join(map(str, counts))}",
              " / ".join(f"{ms:.0f}" for _, ms in curves[axis]["hfseg"]) + " ms", "",
              "peak extra memory " + " / ".join(f"{mb:.1f}" for mb in memory) + " MB")  # fmt: skip
    if setting.picture:
        draw(curves, setting.picture)


def draw(curves: dict[str, dict[str, list[tuple[float, float]]]], file) -> None:
    """Draws a panel per axis, both scales logarithmic."""
    figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), layout="constrained")
    for panel, (axis, lines) in zip(panels, curves.items(), strict=True):
        for name, points in lines.items():
            colour = "tab:blue" if name == "hfseg" else "tab:orange"
            panel.loglog(*zip(*points, strict=True), "o-", label=name, color=colour)
        values = [value for value, _ in points]
        panel.set(xlabel=axis, ylabel="milliseconds")
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)

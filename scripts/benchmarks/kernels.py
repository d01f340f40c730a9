"""The kernels and the metric, on arrays and tensors."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import evaluate
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex
from transformers import SegformerImageProcessor

import hfseg
from benchmarks.measuring import SEED, Row, Setting, at_least, at_most, extra_memory, ratio, shown, take_turns
from hfseg.ops import upsample_argmax, upsample_cross_entropy


def smooth_logits(labels: int, height: int, width: int, seed: int = SEED) -> torch.Tensor:
    """Returns (1, labels, height, width) random logits that change as slowly as a network's."""
    coarse = torch.randn(1, labels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")


def by_post_processing(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Returns what transformers' processors make of logits."""
    outputs = type("Outputs", (), {"logits": logits})
    return torch.stack(SegformerImageProcessor().post_process_semantic_segmentation(outputs, [size] * len(logits)))


def measure_upsample(setting: Setting) -> Iterator[Row]:
    """Logits to labels at the image's size."""
    cases = [(150, (128, 128), (512, 512)), (150, (128, 128), (1080, 1920)), (19, (256, 512), (1024, 2048)),
             (12, (90, 120), (360, 480))]  # fmt: skip
    for labels, grid, size in [(20, (16, 16), (64, 64))] if setting.quick else cases:
        logits = smooth_logits(labels, *grid)
        ours, theirs = upsample_argmax(logits, size), by_post_processing(logits, size)
        full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        gap = (full.gather(1, theirs[:, None]) - full.gather(1, ours[:, None].long())).abs().max() / full.abs().max()
        del full
        if gap > 1e-5:
            raise SystemExit(f"upsample_argmax differs from transformers where the logits differ by {gap}")
        sides = {"hfseg": lambda logits=logits, size=size: upsample_argmax(logits, size),
                 "peer": lambda logits=logits, size=size: by_post_processing(logits, size)}  # fmt: skip
        memory = {name: extra_memory(call) for name, call in sides.items()}
        seconds = take_turns(sides, setting.rounds)
        fields = at_least(ratio(seconds["peer"], seconds["hfseg"]), 60)
        barred = labels == 150 and size == (1080, 1920)
        if not barred:
            fields |= {"bar": "", "met": None}
        task = f"{labels} labels, {grid[0]}x{grid[1]} to {size[0]}x{size[1]}"
        yield Row(f"`ops.upsample_argmax`, {task}; {int((ours != theirs).sum())} pixels differ, all of them ties",
                  shown(seconds["hfseg"]), f"transformers' post-processing {shown(seconds['peer'])}",
                  **fields)  # fmt: skip
        text = f"{memory['hfseg']:.0f} MB"
        yield Row("The same, peak extra memory, result included", text, f"{memory['peer']:.0f} MB",
                  **(at_most(memory["hfseg"], 50, "{:.0f} MB") if barred else
                     {"result": f"{memory['hfseg'] / max(1, memory['peer']):.3f} of it"}))  # fmt: skip


def measure_loss(setting: Setting) -> Iterator[Row]:
    """Cross-entropy at the label maps' size, and its gradient at the logits'."""
    batch, labels, coarse, size = (1, 20, 16, 64) if setting.quick else (4, 150, 128, 512)
    logits = torch.randn(batch, labels, coarse, coarse, generator=torch.Generator().manual_seed(SEED))
    logits.requires_grad_()
    truth = torch.randint(0, labels, (batch, size, size), generator=torch.Generator().manual_seed(SEED))
    truth[:, :9] = 255

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        full = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(full, truth, ignore_index=255)
        return loss.detach(), *torch.autograd.grad(loss, logits)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        loss = upsample_cross_entropy(logits, truth)
        return loss.detach(), *torch.autograd.grad(loss, logits)

    for a, b in zip(ours(), plain(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)
    memory = {"hfseg": extra_memory(ours), "peer": extra_memory(plain)}
    seconds = take_turns({"hfseg": ours, "peer": plain}, setting.rounds)
    yield Row(f"`ops.upsample_cross_entropy` and gradient, batch {batch}, {labels} labels, {coarse}x{coarse} to "
              f"{size}x{size}", shown(seconds["hfseg"]), f"interpolate + cross_entropy {shown(seconds['peer'])}",
              f"{ratio(seconds['peer'], seconds['hfseg']):.2f}x as fast")  # fmt: skip
    yield Row("The same, peak extra memory", f"{memory['hfseg']:.0f} MB", f"{memory['peer']:.0f} MB",
              f"{memory['hfseg'] / memory['peer']:.2f} of it")  # fmt: skip


def evaluation_memory(count: int, keep_maps: bool) -> float:
    """Returns the MB that scoring `count` embedded scenes takes; to be called in a process of its own.

    Args:
        count: Number of images.
        keep_maps: Score in the usual way: gather all maps, then compute.
    """
    torch.set_num_threads(1)
    data = hfseg.load_data("shapes/source", scenes=16)
    split = data.validation
    data[split] = data[split].select([i % 16 for i in range(count)])
    small = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1],
             "decoder_hidden_size": 16}  # fmt: skip
    segmenter = hfseg.Segmenter(*hfseg.load_model("segformer", labels=data.schema, config=small))
    metric = hfseg.metrics.load("mean_iou", num_labels=data.schema.num_labels)  # what it imports does not count

    def gather() -> None:
        predictions, references = [], []
        for first in range(0, count, 8):  # batches as in `hfseg.evaluate`
            samples = [data.read(split, i) for i in range(first, min(first + 8, count))]
            predictions += segmenter.predict_maps([sample.image for sample in samples])
            references += [sample.semantic_map for sample in samples]
        metric.compute(predictions=predictions, references=references)

    return extra_memory(gather if keep_maps else lambda: hfseg.evaluate(segmenter, data, split=split))


def measure_memory(setting: Setting) -> Iterator[Row]:
    """Memory of an evaluation of 10 to 1000 images: the peak above what the process held before."""
    counts = (5, 10, 20) if setting.quick else (10, 100, 1000)
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh:
        peaks = {keep: list(fresh.map(evaluation_memory, counts, [keep] * 3)) for keep in (False, True)}
    text = {keep: " / ".join(f"{mb:.0f}" for mb in values) + " MB" for keep, values in peaks.items()}
    growth = {keep: f"{values[-1] - values[0]:+.0f} MB" for keep, values in peaks.items()}
    task = f"evaluation of {' / '.join(map(str, counts))} images of 128x128 (a process each)"
    yield Row(f"Peak extra memory, {task}", text[False],
              f"all maps gathered first {text[True]}", f"{growth[False]} against {growth[True]}")  # fmt: skip


def patches(rng: np.random.Generator, size: int, labels: int) -> np.ndarray:
    """Returns a map of `size` x `size` class ids in areas like those of a real one."""
    coarse = rng.integers(0, labels, (size // 32, size // 32), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.NEAREST))


def measure_metric(setting: Setting) -> Iterator[Row]:
    """Mean IoU of maps with 150 classes, through `evaluate`'s interface."""
    size, images, n = (64, 2, 150) if setting.quick else (512, 8, 150)
    rng = np.random.default_rng(SEED)
    references = [patches(rng, size, n) for _ in range(images)]
    predictions = [np.where(rng.random(r.shape) < 0.8, r, patches(rng, size, n)) for r in references]
    for reference in references:
        reference[: size // 16] = 255
    pairs = list(zip(predictions, references, strict=True))
    tensors = [tuple(torch.from_numpy(ids.astype(np.int64)) for ids in pair) for pair in pairs]
    scores: dict[str, float] = {}

    def ours() -> None:
        metric = hfseg.metrics.load("mean_iou", num_labels=n, ignore_index=255)
        for prediction, reference in pairs:
            metric.add(prediction=prediction, reference=reference)
        scores["hfseg"] = metric.compute()["mean_iou"]

    def by_torchmetrics() -> None:
        metric = MulticlassJaccardIndex(num_classes=n, average=None, ignore_index=255)
        for pair in tensors:
            metric.update(*pair)
        scores["torchmetrics"] = float(metric.compute().mean())

    def by_bincount() -> None:
        matrix = np.zeros((n, n), np.int64)
        for prediction, reference in pairs:
            kept = reference != 255
            joint = reference[kept].astype(np.int64) * n + prediction[kept]
            matrix += np.bincount(joint, minlength=n * n).reshape(n, n)
        both = np.diag(matrix)
        with np.errstate(invalid="ignore"):
            scores["masked numpy.bincount"] = float(np.nanmean(both / (matrix.sum(0) + matrix.sum(1) - both)))

    sides = {"hfseg": ours, "torchmetrics": by_torchmetrics, "masked numpy.bincount": by_bincount}
    own = None
    with contextlib.suppress(OSError):  # evaluate's own module lies on the hub; measured where it can be had
        own = evaluate.load(setting.peer_metric)

        def by_evaluate() -> None:
            result = own.compute(predictions=predictions, references=references, num_labels=n, ignore_index=255)
            scores["evaluate's mean_iou"] = float(result["mean_iou"])

        def by_evaluate_batches() -> None:
            for prediction, reference in pairs:
                own.add_batch(predictions=[prediction], references=[reference])
            result = own.compute(num_labels=n, ignore_index=255)
            scores["evaluate's mean_iou, add_batch"] = float(result["mean_iou"])

        sides["evaluate's mean_iou"] = by_evaluate
        sides["evaluate's mean_iou, add_batch"] = by_evaluate_batches
    if own is None:
        print(f"evaluate's mean_iou cannot be loaded from {setting.peer_metric}: not measured", file=sys.stderr)
    seconds = {name: [s / images for s in values] for name, values in take_turns(sides, setting.rounds).items()}
    for name in list(sides)[1:]:
        exact = name.startswith("evaluate")
        if exact or all(c in np.concatenate(references) for c in range(n)):  # the others count absent classes as 0
            np.testing.assert_allclose(scores["hfseg"], scores[name], rtol=1e-9 if exact else 1e-5, err_msg=name)
        fields = at_least(ratio(seconds[name], seconds["hfseg"]), 15 if exact else 1)
        if not exact:
            fields |= {"bar": "", "met": None}
        yield Row(f"Mean IoU of an image, {size}x{size}, {n} classes", shown(seconds["hfseg"]),
                  f"{name} {shown(seconds[name])}", **fields)  # fmt: skip

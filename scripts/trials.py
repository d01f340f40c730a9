"""Small trainings that are compared with each other: run one after the other, each kept once it is done."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import hfseg
from hfseg.run_directory import RESULTS, read_log

# A quarter of CamVid's pixels, and crops of the micrographs; what makes a CPU fast that knows bf16.
COMMON = ["--train.mixed_precision", "bf16", "--train.channels_last", "true", "--train.schedule", "cosine",
          "--train.warmup_steps", "10", "--eval.samples", "0", "--train.save_total_limit", "1"]  # fmt: skip
CAMVID = [*COMMON, "--data.image_size", "[180,240]", "--augment.preset", "light", "--train.per_device_train_batch_size",
          "8"]  # fmt: skip
ISBI = [*COMMON, "--augment.preset", "light", "--augment.vertical_flip", "0.5", "--augment.crop_size", "256",
        "--train.per_device_train_batch_size", "4"]  # fmt: skip


def run(folder: Path, overrides: Sequence[str]) -> dict:
    """Trains, unless it is done; goes on where it was cut off.

    Args:
        folder: The run directory.
        overrides: Flags of the recipe.

    Returns:
        `steps` and `mean_iou` of each evaluation, and the `results` of the best one.
    """
    results = folder / RESULTS
    if not (results.is_file() and "seconds" in json.loads(results.read_text())["training"]):
        began = time.monotonic()
        flags = ["--train.resume", "true"] if any(folder.glob("checkpoints/step-*")) else []
        hfseg.train(hfseg.load_recipe(None, [*overrides, *flags, "--output_dir", str(folder)]), verbose=False)
        print(f"{folder.name}: {json.loads(results.read_text())['mean_iou']:.4f}, "
              f"{time.monotonic() - began:.0f} s", flush=True)
    evaluations = [line for line in read_log(folder) if "eval" in line]
    return {"steps": [line["step"] for line in evaluations],
            "mean_iou": [line["eval"]["mean_iou"] for line in evaluations],
            "results": json.loads(results.read_text())}  # fmt: skip


def seconds_per_step(folder: Path, overrides: Sequence[str], batch_size: int, steps: int = 14) -> float:
    """Times the steps of a short training, evaluations left out; only a quiet machine gives a figure to print.

    Args:
        folder: An empty or new folder.
        overrides: Flags of the recipe.
        batch_size: Images of a step.
        steps: How many.

    Returns:
        The median over pairs of steps after the first.
    """
    flags = ["--train.max_steps", str(steps), "--train.logging_steps", "2", "--data.max_eval_samples", "1"]
    hfseg.train(hfseg.load_recipe(None, [*overrides, *flags, "--output_dir", str(folder)]), verbose=False)
    speeds = [line["images_per_second"] for line in read_log(folder) if "loss" in line]
    return batch_size / statistics.median(speeds[1:])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a sample; 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def first_reached(steps: Sequence[int], scores: Sequence[float], target: float) -> float:
    """Returns the step at which a curve reaches a score, between two evaluations by a straight line.

    Args:
        steps: Of the evaluations, in order.
        scores: As many.
        target: The score.

    Returns:
        A step; infinity where it is never reached.
    """
    for number, (step, score) in enumerate(zip(steps, scores, strict=True)):
        if score >= target:
            if number == 0:
                return float(step)
            before, low = steps[number - 1], scores[number - 1]
            return before + (step - before) * (target - low) / (score - low)
    return math.inf

"""Small runs for tests: a tiny SegFormer on a few embedded scenes, in this process or another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from hfseg.recipe import Recipe, TrainConfig

TINY = {
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
    "drop_path_rate": 0.1,
}
SMALL_RUN = (
    "--model.name", "segformer", "--model.config", json.dumps(TINY), "--data.path", "shapes/source",
    "--data.max_train_samples", "20", "--data.max_eval_samples", "5", "--data.image_size", "[48, 48]",
    "--augment.preset", "strong", "--train.max_steps", "12", "--train.per_device_train_batch_size", "4",
    "--train.learning_rate", "1e-3", "--train.warmup_steps", "2", "--train.logging_steps", "2",
    "--eval.eval_steps", "4", "--eval.samples", "1",
)  # fmt: skip


def small_recipe(folder, **train) -> Recipe:
    """A recipe for a few steps in this process."""
    recipe = Recipe(output_dir=str(folder))
    recipe.model.name, recipe.model.config = "segformer", {**TINY, "drop_path_rate": 0.0}
    recipe.data.path, recipe.data.image_size = "shapes/source", (64, 64)
    recipe.data.max_train_samples, recipe.data.max_eval_samples = 8, 4
    recipe.augment.preset = "none"
    recipe.train = replace(
        TrainConfig(max_steps=4, per_device_train_batch_size=4, learning_rate=2e-3, logging_steps=1), **train
    )
    recipe.eval.eval_steps, recipe.eval.samples = 2, 1
    return recipe


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **more}


def start(*arguments: str, **more) -> subprocess.Popen:
    """Starts `hfseg` in another process."""
    return subprocess.Popen(
        [sys.executable, "-m", "hfseg", *map(str, arguments)], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more,
    )  # fmt: skip


def hfseg(*arguments: str, status: int = 0, **more) -> str:
    """Runs `hfseg` in another process and returns what it printed."""
    process = start(*arguments, **more)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == status, output
    return output


def here(*arguments: str) -> str:
    """Runs `hfseg` in this process, on one thread as in others, and returns what it printed."""
    import torch

    from hfseg.cli import main

    threads, printed = torch.get_num_threads(), io.StringIO()
    torch.set_num_threads(1)
    try:
        with redirect_stdout(printed):
            status = main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    assert status == 0, printed.getvalue()
    return printed.getvalue()


def fingerprint(run: Path, last: Path | None = None) -> dict[str, str]:
    """Hashes of what must be equal in equal runs: best weights, last state, and the log without its times."""
    newest = last or sorted((run / "checkpoints").glob("step-*"))[-1]
    log = []
    for line in (run / "train_log.jsonl").read_text().splitlines():
        content = json.loads(line)
        content.pop("images_per_second", None)
        log.append(json.dumps(content))
    hashes = {
        "best": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "last": hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest(),
        "log": "\n".join(log),
        "scores": json.dumps({**json.loads((run / "eval_results.json").read_text()), "protocol": 0, "training": 0}),
    }
    if (newest / "custom_checkpoint_1.pkl").exists():  # the moving average
        import torch

        average = torch.load(newest / "custom_checkpoint_1.pkl", weights_only=True)["average"]
        hashes["average"] = hashlib.sha256(b"".join(v.numpy().tobytes() for v in average.values())).hexdigest()
    return hashes

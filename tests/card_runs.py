"""A finished run without its card, and facts of runs that never were."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hfseg
from hfseg.hub.card import card_text
from hfseg.hub.card_facts import Facts, read_facts
from hfseg.labels import make_palette
from hfseg.metrics.scores import scores_from_matrix, to_json_ready
from hfseg.recipe import Recipe
from runs import small_recipe

CARDS = Path(__file__).resolve().parent.parent / "model_cards"
SPEED = {"milliseconds": 12.34, "image_size": [96, 128], "calls": 15, "images": 3, "device": "cpu, A Processor",
         "threads": 2, "dtype": "float32", "fused": True}  # fmt: skip


@pytest.fixture(scope="session", name="finished")
def finished_fixture() -> Path:
    """A run directory of a few steps, with what the loop notes, pictures to try, and no card yet."""
    return finished_run()


@cache
def finished_run() -> Path:
    """Trains it, once in this process."""
    root = Path(tempfile.mkdtemp(prefix="hfseg-test-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    run = root / "my_run"
    hfseg.train(small_recipe(run), verbose=False)
    results = json.loads((run / "eval_results.json").read_text())
    names = list(results["per_category_iou"])
    matrix = np.random.default_rng(0).integers(0, 50, (len(names), len(names))) + 400 * np.eye(len(names), dtype=int)
    results["per_category_confusion"] = confusion(matrix, names)
    results["training"] |= {"speed": SPEED, "training_images": 8, "training_split": "train"}
    (run / "eval_results.json").write_text(json.dumps(results))
    (run / "samples" / "inputs").mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(run / "samples" / "inputs" / "00.png")
    (run / "README.md").unlink()
    return run


@pytest.fixture(name="run")
def run_fixture(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "my_run", ignore=shutil.ignore_patterns("checkpoints"))


def write(run, say=None) -> str:
    """The card without its charts, which take most of the time."""
    text, kept = card_text(read_facts(run))
    (run / "README.md").write_text(text)
    if say:
        say(kept)
    return text


def confusion(matrix, names) -> dict:
    return {name: {other: int(count) for other, count in zip(names, row) if count} for name, row in zip(names, matrix)}


def facts_of(names, matrix=None, **more) -> Facts:
    """Facts of a run that was never trained."""
    matrix = np.eye(len(names), dtype=int) * 7 + 1 if matrix is None else np.asarray(matrix)
    results = to_json_ready(scores_from_matrix(matrix, names)) | {
        "num_images": 3, "protocol": {"split": "validation", "data": "my data", "versions": {"hfseg": "1"}},
        "per_category_confusion": confusion(matrix, names), "training": {"best_step": 2, "steps": 3},
    }  # fmt: skip
    given = {
        "path": Path("net"), "name": "net", "repo_id": None, "config": {"model_type": "segformer"},
        "names": tuple(names), "palette": make_palette(len(names)), "results": results, "recipe": Recipe(),
    }  # fmt: skip
    return Facts(**{**given, **more})

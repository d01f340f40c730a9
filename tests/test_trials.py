"""The scripts that compare small trainings: their arithmetic, their flags, and one run that is not repeated."""

from __future__ import annotations

import ast
import importlib
import math
import sys
from pathlib import Path

import pytest

from hfseg.recipe_reading import load_recipe

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("trials", "transfer_trial", "compare_models"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", [*SCRIPTS.rglob("*.py"), *SCRIPTS.with_name("spaces").rglob("*.py")],
                         ids=lambda file: file.name)
def test_what_scripts_take_from_hfseg_exists(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hfseg"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if not hasattr(module, name):
                    importlib.import_module(f"{node.module}.{name}")


def test_where_a_curve_reaches_a_score():
    from trials import first_reached, mean_and_spread

    assert first_reached([10, 20], [0.1, 0.3], 0.2) == pytest.approx(15)
    assert first_reached([10, 20], [0.3, 0.4], 0.2) == 10
    assert first_reached([10, 20], [0.1, 0.2], 0.3) == math.inf
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5)) and mean_and_spread([1.0]) == (1.0, 0.0)


def test_the_table_of_the_transfer_trial_and_the_recipes_of_both(tmp_path):
    import compare_models
    import transfer_trial

    arms = {f"{weights} {strategy}": [{"steps": [20, 40], "mean_iou": [high, high + 0.2]}]
            for weights, high in (("imagenet", 0.5), ("random", 0.1)) for strategy in transfer_trial.STRATEGIES}
    found = {"isbi": {"arms": {arm: transfer_trial.curves(runs) for arm, runs in arms.items()},
                      "seconds_per_step": {"full": 0.5, "feature_extraction": 0.25}}}  # fmt: skip
    rows = transfer_trial.table(found)
    assert rows[2].endswith("| ImageNet | `full` | 0.700 ± 0.000 | at most 20 steps, 10 s |")
    assert rows[4].endswith("| random | `full` | 0.300 ± 0.000 | 40 steps, 20 s |")
    transfer_trial.draw(found, tmp_path / "curves.png")
    for weights in transfer_trial.WEIGHTS:
        recipe = load_recipe(None, transfer_trial.flags("camvid", tmp_path, weights, "feature_extraction"))
        assert recipe.model.weights == transfer_trial.WEIGHTS[weights]
    for entry in compare_models.ENTRIES.values():
        load_recipe(None, compare_models.flags(entry, tmp_path))


def test_a_run_that_is_done_is_not_repeated(tmp_path, monkeypatch, capsys):
    import trials

    flags = ["--data.path", "shapes/target", "--data.max_train_samples", "4", "--data.max_eval_samples", "2",
             "--model.name", "hfseg/shapes-segformer", "--train.max_steps", "1", "--eval.samples", "0"]  # fmt: skip
    first = trials.run(tmp_path / "a", flags)
    assert first["steps"] == [1] and "a: 0." in capsys.readouterr().out
    monkeypatch.setattr(trials.hfseg, "train", None)
    assert trials.run(tmp_path / "a", flags) == first

"""The journey of a newcomer: every step of it quickly, and its promise in full (slow)."""

from __future__ import annotations

import pytest

from hfseg.quickstart import free_folder, run_quickstart


def test_the_whole_journey_in_small(tmp_path, capsys):
    few = ["--data.max_train_samples", "8", "--data.max_eval_samples", "6", "--train.max_steps", "2",
           "--eval.eval_steps", "1", "--eval.samples", "1"]  # fmt: skip
    scores = run_quickstart(str(tmp_path / "run"), compare=True, overrides=few)
    assert set(scores) == {"pretrained", "random"}
    printed = capsys.readouterr().out
    for name in ("README.md", "samples", "learning_curve.png", "comparison.png", "predictions"):
        assert (tmp_path / "run" / name).exists() and f"{tmp_path}/run/{name}" in printed
    assert len(list((tmp_path / "run" / "predictions").glob("*_overlay.png"))) == 4
    assert free_folder(tmp_path / "run") == tmp_path / "run-2"


@pytest.mark.slow
def test_pretrained_weights_beat_random_ones_as_promised(tmp_path):
    scores = run_quickstart(str(tmp_path / "run"), compare=True)
    assert scores["pretrained"] >= 0.60
    assert scores["pretrained"] >= scores["random"] + 0.20

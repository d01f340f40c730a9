"""A run that was killed at any moment and resumed ends as the run that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import pytest

from hfseg.cli import main
from hfseg.run_directory import read_log

from command_line import hfseg_fixture, refused_fixture  # isort: skip  # noqa: F401
from runs import SMALL_RUN, fingerprint, here, hfseg, start

EXACT = (
    *SMALL_RUN, "--train.ema", "0.9", "--train.save_steps", "3", "--train.gradient_accumulation_steps", "2",
    "--train.early_stopping", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    here("train", *EXACT, "--output_dir", run)
    return run


def wait_for(run, pattern: str, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list(run.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"no {pattern} in {run}"
        time.sleep(0.01)


def test_sigterm_saves_prints_the_command_and_resumes_exactly(whole, tmp_path):
    run = tmp_path / "run"
    process = start("train", *EXACT, "--output_dir", run)
    wait_for(run, "train_log.jsonl", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    command = f"hfseg train --config {run}/recipe.yaml --train.resume true"
    assert command in output
    here(*command.split()[1:])
    assert fingerprint(run) == fingerprint(whole)


def test_kill_inside_a_checkpoint_write_and_another_number_of_workers(whole, tmp_path):
    run = tmp_path / "run"
    process = start("train", *EXACT, "--output_dir", run)
    wait_for(run, "checkpoints/step-00000003", process)
    wait_for(run, "checkpoints/.writing-*", process)
    process.kill()
    process.communicate()
    # A kill can also cut the log in the middle of a line.
    with open(run / "train_log.jsonl", "a") as log:
        log.write('{"step": 99, "lo')
    output = here("train", "--config", run, "--train.resume", "true", "--data.num_workers", "2")
    assert "resumed from" in output
    assert fingerprint(run) == fingerprint(whole)
    assert not list(run.rglob(".writing-*"))


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the finished run, whose recipe says where it lies."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(whole), str(run)))
    return run


def test_a_resumed_finished_run_changes_nothing(whole, copy):
    main(["train", "--config", str(copy), "--train.resume", "true"])
    assert fingerprint(copy) == fingerprint(whole)
    assert (copy / "train_log.jsonl").read_text() == (whole / "train_log.jsonl").read_text()


def test_an_incomplete_checkpoint_is_refused(copy, capsys):
    newest = sorted((copy / "checkpoints").glob("step-*"))[-1]
    (newest / "random_states_0.pkl").write_bytes(b"")
    assert main(["train", "--config", str(copy), "--train.resume", "true"]) == 2
    assert "random_states_0.pkl" in capsys.readouterr().err
    assert main(["train", "--config", str(copy), "--train.resume", "step-7"]) == 2
    output = capsys.readouterr().err
    assert "step-7" in output and newest.name in output


@pytest.mark.slow
def test_twenty_random_kills(tmp_path):
    """Every kill meets a run that is training, a quarter of them one that is writing a checkpoint."""
    long = (
        *SMALL_RUN, "--train.ema", "0.9", "--train.save_steps", "3", "--train.gradient_accumulation_steps", "2",
        "--train.max_steps", "300", "--eval.eval_steps", "50",
    )  # fmt: skip
    whole, run, rng = tmp_path / "whole", tmp_path / "run", random.Random(0)
    hfseg("train", *long, "--output_dir", whole)
    log, arguments, reached = run / "train_log.jsonl", ("train", *long, "--output_dir", run), []
    for kill in range(20):
        before = log.stat().st_mtime_ns if log.exists() else 0
        process = start(*arguments)
        while not log.exists() or log.stat().st_mtime_ns == before:  # resuming cuts the log
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.005)
        if kill % 4 == 3:
            wait_for(run, "checkpoints/.writing-*", process)
        else:
            time.sleep(rng.uniform(0, 1.5))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.communicate()
        reached.append(read_log(run)[-1]["step"])
        arguments = ("train", "--config", run, "--train.resume", "true")
    hfseg(*arguments)
    assert fingerprint(run) == fingerprint(whole)
    assert max(reached) > min(reached)
    steps = [line["step"] for line in read_log(run) if "eval" not in line]
    assert steps == sorted(set(steps))


# -- a recipe that changed in between, and directories that are not this run's -------------------------------


def resumed(run, capsys, *flags) -> str:
    assert main(["train", "--config", str(run), "--train.resume", "true", *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_another_runs_checkpoint_does_not_overwrite_a_run(copy, whole, refused):
    before = fingerprint(copy)
    newest = sorted((whole / "checkpoints").glob("step-*"))[-1]
    assert "holds another run" in refused("train", "--config", copy, "--train.resume", newest)
    assert fingerprint(copy) == before


def test_a_checkpoint_in_a_new_directory_leaves_a_whole_run(whole, tmp_path, capsys):
    newest = sorted((whole / "checkpoints").glob("step-*"))[-1]
    new = ("--output_dir", str(tmp_path / "new"), "--train.resume", str(newest))
    assert main(["train", "--config", str(whole), *new]) == 0
    assert (tmp_path / "new/model.safetensors").exists() and (tmp_path / "new/README.md").exists()


def test_a_directory_in_use_is_refused(tmp_path, refused):
    from hfseg.run_directory import RunDirectory

    first = RunDirectory(tmp_path / "run")
    first.claim()
    assert "in use" in refused("train", *SMALL_RUN, "--output_dir", tmp_path / "run")
    first.release()
    RunDirectory(tmp_path / "run").claim()


@pytest.mark.parametrize("flags, words", [
    (("--train.optimizer", "sgd"), "train.optimizer then adamw, now sgd"),
    (("--data.path", "shapes/target"), "labels then"),
])  # fmt: skip
def test_what_does_not_fit_a_checkpoint_is_refused(copy, refused, flags, words):
    before = fingerprint(copy)
    first = sorted((copy / "checkpoints").glob("step-*"))[0].name
    for resume in ("true", first):
        assert words in refused("train", "--config", copy, "--train.resume", resume, *flags)
    assert fingerprint(copy) == before  # later checkpoints included


def test_another_metric_chooses_best_weights_anew(copy, capsys):
    before = [line["step"] for line in read_log(copy) if "eval" in line]
    output = resumed(copy, capsys, "--eval.metric", "overall_accuracy")  # a finished run is scored once more
    assert [line["step"] for line in read_log(copy) if "eval" in line] == before
    assert "chosen anew" in output and "best overall_accuracy at step 12" in output
    assert "chosen anew" in resumed(copy, capsys, "--data.max_eval_samples", 3)
    output = resumed(copy, capsys, "--eval.metric", "loss", "--train.max_steps", 16)
    assert "chosen anew" in output and "best loss at step 16" in output
    facts = json.loads((copy / "eval_results.json").read_text())
    assert facts["training"]["best_step"] == 16


def test_weights_of_a_branch_that_is_given_up_are_not_called_the_best(copy, capsys):
    first, *later = sorted((copy / "checkpoints").glob("step-*"))
    assert later
    resumed(copy, capsys, "--train.resume", first.name, "--train.max_steps", 16, "--train.learning_rate", 1e-6)
    results = json.loads((copy / "eval_results.json").read_text())
    [scored] = [line["eval"] for line in read_log(copy)
                if "eval" in line and line["step"] == results["training"]["best_step"]]
    assert scored["mean_iou"] == results["mean_iou"]


def test_accumulation_may_change(copy, capsys, monkeypatch):
    from accelerate import Accelerator

    synced, original = [], Accelerator._do_sync
    monkeypatch.setattr(Accelerator, "_do_sync",
                        lambda self: (original(self), synced.append(self.gradient_state.sync_gradients))[0])
    resumed(copy, capsys, "--train.gradient_accumulation_steps", 3, "--train.max_steps", 14)
    assert synced == [False, False, True] * 2


def test_settings_of_the_optimizer_follow_the_recipe(copy, capsys, monkeypatch):
    import hfseg.training.learner as training

    built, original = [], training.build_optimizer
    monkeypatch.setattr(training, "build_optimizer", lambda *a: built.append(original(*a)) or built[0])
    resumed(copy, capsys, "--train.betas", "[0.5, 0.6]", "--train.max_steps", 14)
    assert all(group["betas"] == (0.5, 0.6) for group in built[0].param_groups)


def test_a_run_that_was_moved(copy, tmp_path, refused, capsys):
    shutil.move(copy, tmp_path / "moved")
    assert "it was moved" in refused("train", "--config", tmp_path / "moved", "--train.resume", "true")
    assert resumed(tmp_path / "moved", capsys, "--output_dir", tmp_path / "moved")


def test_a_disk_that_is_full(tmp_path, refused, monkeypatch):
    from accelerate import Accelerator

    def full(self, *a, **k):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(Accelerator, "save_state", full)
    assert "make room" in refused("train", *SMALL_RUN, "--output_dir", tmp_path / "run")


def test_with_nothing_left_to_train_the_recipe_stays_what_ran(copy, capsys):
    before = (copy / "recipe.yaml").read_bytes()
    output = resumed(copy, capsys, "--train.max_steps", 4, "--loss.terms", "{dice: 1.0}")
    assert "nothing left to train" in output
    assert (copy / "recipe.yaml").read_bytes() == before and "dice: 1.0" not in (copy / "README.md").read_text()


def test_a_run_keeps_its_model(copy, refused):
    assert "it began as model segformer" in refused(
        "train", "--config", copy, "--train.resume", "true", "--model.weights", "random")


def test_a_refused_run_leaves_no_empty_folder(tmp_path, refused):
    refused("train", "--config", "crackforest", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()

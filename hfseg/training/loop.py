"""Fine-tune a model: a run from its recipe to its last line, and the loop in the middle of it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from hfseg.data import SegmentationData
from hfseg.data.loading import iterating, next_batch
from hfseg.errors import UserError
from hfseg.recipe import Recipe
from hfseg.recipe_reading import check, load_recipe
from hfseg.run_directory import RESULTS, RunDirectory
from hfseg.training.batches import Batches, open_batches
from hfseg.training.best_weights import BestWeights
from hfseg.training.finish import finish
from hfseg.training.interruption import Interrupted, StopSignals, batch_advice
from hfseg.training.learner import Learner, build_learner
from hfseg.training.optimization import rate_factor, set_learning_rate
from hfseg.training.progress import State, restore
from hfseg.training.setup import Run, open_data, start


def train(recipe: Recipe | str | Path, *, data: SegmentationData | None = None, verbose: bool = True) -> dict:
    """Trains by a recipe and leaves a run directory that `from_pretrained` loads.

    Args:
        recipe: A `Recipe`, a path to its YAML, or the name of a shipped one.
        data: Data loaded already, in place of `recipe.data.path`.
        verbose: Whether to print tables and a progress bar.

    Returns:
        The contents of eval_results.json for the best weights.

    Raises:
        UserError: For what the user can mend: recipe, data, model, output directory, memory, a loss that is NaN.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.

    Example:
        >>> import hfseg, tempfile
        >>> recipe = hfseg.Recipe(output_dir=tempfile.mkdtemp())
        >>> recipe.data.path, recipe.model.name = "shapes/target", "hfseg/shapes-segformer"
        >>> recipe.data.max_train_samples = recipe.data.max_eval_samples = 4
        >>> recipe.train.max_steps = 1
        >>> sorted(hfseg.train(recipe, verbose=False))[:2]
        ['loss', 'mean_accuracy']
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(str(recipe))
    check(recipe)
    directory = RunDirectory(recipe.output_dir)
    try:
        return _train(recipe, directory, data, verbose)
    finally:
        for cut in directory.path.glob(".writing-push-*"):  # a push in the background that did not get to its end
            shutil.rmtree(cut, ignore_errors=True)
        directory.release()
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # after an error; gloo aborts else
            torch.distributed.destroy_process_group()


def _train(recipe: Recipe, directory: RunDirectory, data: SegmentationData | None, verbose: bool) -> dict:
    run = start(recipe, directory, verbose)
    data, counts = open_data(run, data)
    learner = build_learner(run, data, counts)
    best = BestWeights(run, data, learner)
    state = restore(run, data, learner, best.measure())
    batches = open_batches(run, data, counts, learner, state)
    run.start_trackers()
    _Loop(run, learner, batches, best, state).go()
    if run.main:
        finish(run, data, learner, best, state.progress)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return directory.read_json(RESULTS)


class _Loop:
    """The optimizer steps, and what is due between them: an evaluation, a log line, a checkpoint."""

    def __init__(self, run: Run, learner: Learner, batches: Batches, best: BestWeights, state: State):
        self.run, self.learner, self.batches, self.best, self.state = run, learner, batches, best, state
        self.recipe, self.config, self.progress = run.recipe, run.recipe.train, state.progress
        self.bar = tqdm(total=batches.total, initial=self.progress.step, desc="training", unit="step",
                        disable=not (run.verbose and run.main))
        self.norm: float | None = None

    def go(self) -> None:
        """Trains to the end: of the steps, or of what gets better."""
        run, progress = self.run, self.progress
        self.learner.plan.set_train_mode(self.learner.model)
        self.state.start_clock()
        self._open_window()
        with StopSignals() as signals, batch_advice(self.recipe), iterating(self.batches.loader) as stream, self.bar:
            while True:
                if self._evaluates() and progress.evaluated_step < progress.step:
                    self.best.consider(progress)
                    self.state.save()
                    self._open_window()
                if self._is_over():
                    return
                self._step(stream)
                if progress.step % self.config.logging_steps == 0 or progress.step == self.batches.total:
                    self._log()
                stopped = signals.agreed(run.accelerator)
                if stopped or self._saves():
                    self.state.save()
                if stopped:
                    raise Interrupted(progress.step, run.directory.resume_command(run.world), stopped, speaks=run.main)

    def _evaluates(self) -> bool:
        return self.progress.step % self.batches.eval_every == 0 or self.progress.step == self.batches.total

    def _saves(self) -> bool:
        every = self.batches.save_every
        return bool(every) and self.progress.step % every == 0 and not self._evaluates()  # which saves after that

    def _is_over(self) -> bool:
        patience = self.config.early_stopping
        if patience and self.progress.evaluations_without_better >= patience:
            self.run.say(f"no better {self.recipe.eval.metric} in {patience} evaluations: stopped early")
            return True
        return self.progress.step >= self.batches.total

    def _step(self, stream: Iterator[dict]) -> None:
        """One step of the optimizer, over as many batches as are accumulated."""
        learner, progress = self.learner, self.progress
        learner.plan.at_step(progress.step, self.batches.total, learner.model, learner.optimizer)
        set_learning_rate(learner.optimizer, rate_factor(progress.step, self.batches.total, self.config))
        for _ in range(self.config.gradient_accumulation_steps):
            batch = next_batch(stream)
            progress.skip(batch["skipped"], self.run.say)
            self._learn(batch)
        progress.step += 1
        if learner.average:
            learner.average.update(learner.model)
        self.bar.update()

    def _learn(self, batch: dict) -> None:
        """The gradient of one batch, and the step at the last one."""
        run, learner, progress, accelerator = self.run, self.learner, self.progress, self.run.accelerator
        pixels = self.batches.prepare.normalise(batch["pixel_values"].to(run.device, non_blocking=True))
        if self.config.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(learner.network):
            loss = learner.loss(pixels, batch)
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(
                    f"the loss became {value} at step {progress.step + 1}, in the batch of "
                    + ", ".join(batch["names"]),
                    fix=f"look at these samples, or {run.divergence_fix(progress.best_step)}",
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients and self.config.max_grad_norm:
                self.norm = float(accelerator.clip_grad_norm_(learner.network.parameters(), self.config.max_grad_norm))
            learner.optimizer.step()
            learner.optimizer.zero_grad()
        progress.loss_sum += value
        progress.loss_count += 1
        progress.batches += 1
        self.images += len(pixels) * run.world

    def _log(self) -> None:
        progress, steps_per_epoch = self.progress, self.batches.steps_per_epoch
        loss_sum, loss_count = self.run.added_up(progress.loss_sum, progress.loss_count)
        line = {
            "step": progress.step,
            "epoch": progress.step / steps_per_epoch if steps_per_epoch else None,
            "loss": loss_sum / loss_count,
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "grad_norm": self.norm,
            "images_per_second": self.images / (time.monotonic() - self.window),
        }
        self.bar.set_postfix(loss=f"{line['loss']:.3f}", lr=f"{line['learning_rate']:.1e}",
                             img_s=f"{line['images_per_second']:.1f}")
        self.run.log(line, "train", line)
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._open_window()

    def _open_window(self) -> None:
        """Images a second are counted from here."""
        self.window, self.images = time.monotonic(), 0

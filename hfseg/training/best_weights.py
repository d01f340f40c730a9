"""The weights that a run keeps: scored after some steps, by the one evaluator, and saved if none were better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn

from hfseg.curves import draw_learning_curve
from hfseg.data import SegmentationData
from hfseg.errors import UserError
from hfseg.evaluation import Evaluator
from hfseg.metrics.scorers import MAIN_SCORE, SHOWN, WORDS
from hfseg.run_directory import LOG
from hfseg.segmenter import Segmenter
from hfseg.training.learner import Learner
from hfseg.training.progress import Progress
from hfseg.training.setup import Run


class BestWeights:
    """Scores the weights of a run and keeps the best.

    Args:
        run: The run.
        data: The data.
        learner: Whose weights.
    """

    def __init__(self, run: Run, data: SegmentationData, learner: Learner):
        recipe = run.recipe
        self.run, self.learner, self.schema = run, learner, data.schema
        self.segmenter = Segmenter(
            learner.model, learner.processor, palette=data.schema.palette, **shown_as(run),
            things=[i for i, thing in enumerate(data.schema.is_thing) if thing],
        )  # fmt: skip
        self.evaluator = Evaluator(
            data, data.validation, batch_size=recipe.eval.batch_size, on_bad_sample=recipe.data.on_bad_sample,
            limit=recipe.data.max_eval_samples, channels=data.channels, tile=recipe.eval.tile, tta=recipe.eval.tta,
            max_detections=recipe.eval.max_detections,
        )  # fmt: skip
        if whole := self.evaluator.split.whole:
            run.say(f"note: data.max_eval_samples: the first {recipe.data.max_eval_samples} images of the {whole} of "
                    f"{data.validation} are scored, and no others")

    def measure(self) -> list:
        """Returns what a score depends on besides the weights: scores of another measure do not compare.

        Returns:
            Plain values.
        """
        return [self.run.recipe.eval.metric, *self.evaluator.measures()]

    def consider(self, progress: Progress) -> None:
        """Scores the weights (their average, with EMA) and keeps them if they are the best; every process calls it.

        Args:
            progress: Of the run; is told the outcome.

        Raises:
            UserError: When the weights diverged, or the recipe's metric is no score.
        """
        run, learner, metric = self.run, self.learner, self.run.recipe.eval.metric
        synchronise(run.accelerator, learner.model, learner.average)
        with _averaged(learner):
            results = self._scores(progress)
            score = pick_score(results, metric)
            better = progress.best_score is None or score > progress.best_score
            if better:
                progress.best_score, progress.best_step, progress.evaluations_without_better = score, progress.step, 0
                if run.main:
                    run.directory.save_model(learner.model, learner.processor, self.schema, results)
            else:
                progress.evaluations_without_better += 1
        learner.plan.set_train_mode(learner.model)
        progress.evaluated_step = progress.step
        shown = {key: results[key] for key in ("loss", *SHOWN[run.recipe.task])}
        run.log({"step": progress.step, "eval": shown}, "eval", shown)
        if run.main:
            draw_learning_curve(run.directory.path / LOG, run.directory.path / "learning_curve.png")
        if run.publisher and better:
            run.publisher.offer(f"Best weights so far: {metric} {abs(score):.4f} after step {progress.step}")
        progress.skip(self.evaluator.skipped, run.say)
        progress.skip(gather_object(progress.skipped), run.say)  # by all processes, so that the first one can tell
        run.say(self._in_words(results, progress.step, better))

    def _scores(self, progress: Progress) -> dict:
        objective = self.learner.validation
        with full_precision(self.learner.model):
            results = self.evaluator.run(self.segmenter, objective=objective, accelerator=self.run.accelerator,
                                         verbose=self.run.verbose)
        if objective and results["loss"] is None:
            raise UserError(f"the validation loss after step {progress.step} is not a number: the weights diverged",
                            fix=self.run.divergence_fix(progress.best_step))
        results["training"] = {"best_step": progress.step, **self.learner.base}
        return results

    def _in_words(self, results: dict, step: int, better: bool) -> str:
        name = MAIN_SCORE[self.run.recipe.task]
        score, loss = results[name], results["loss"]
        return (f"step {step}: {WORDS[name]} " + ("undefined" if score is None else f"{score:.4f}")
                + (f", loss {loss:.4f}" if loss is not None else "") + (", the best so far" if better else ""))


def shown_as(run: Run) -> dict[str, Any]:
    """Returns how the run's network is used, in its evaluations and for its card.

    Args:
        run: The run.

    Returns:
        Settings of a `Segmenter`.
    """
    return {"tile": run.recipe.eval.tile, "tta": run.recipe.eval.tta, "task": run.recipe.task}


@contextmanager
def _averaged(learner: Learner) -> Iterator[None]:
    """The model has the average of its weights meanwhile, if there is one."""
    if learner.average:
        learner.average.exchange(learner.model)
    yield  # after an error the run ends
    if learner.average:
        learner.average.exchange(learner.model)


def synchronise(accelerator: Accelerator, model: nn.Module, average) -> None:
    """Gives all processes the buffers of the first: BatchNorm's statistics differ between them otherwise.

    Args:
        accelerator: Of the run.
        model: The network, unwrapped.
        average: Its `MovingAverage`, or None.
    """
    if accelerator.num_processes > 1:
        for tensor in (*model.buffers(), *(average.average.values() if average else ())):
            tensor.copy_(broadcast(tensor.clone(), from_process=0))


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Runs a model without the autocast that Accelerate put around it: as its users will, and be scored as.

    Args:
        model: The network, unwrapped.
    """
    wrapped = model.__dict__.pop("forward", None)
    original = model.__dict__.get("_original_forward")
    if wrapped is not None and original is not None:
        model.forward = original
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def pick_score(results: dict[str, Any], metric: str) -> float:
    """Returns the score that the best weights have most of.

    Args:
        results: Contents of eval_results.json.
        metric: One of its numbers, or `loss`, of which less is better.

    Returns:
        A number; minus infinity where it is not defined.

    Raises:
        UserError: When there is no such number.
    """
    numbers = {key for key, value in results.items() if isinstance(value, (int, float)) or value is None}
    if metric not in numbers:
        raise UserError(f"eval.metric {metric!r} is no score", ", ".join(sorted(numbers)))
    value = results[metric]
    if value is None or math.isnan(value):
        return -math.inf
    return -value if metric == "loss" else float(value)

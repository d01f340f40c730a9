"""Where a run stands, what of that is saved, and how a run goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate.utils import set_seed

from hfseg.data import SegmentationData
from hfseg.errors import UserError
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import CHECKPOINTS, RECIPE, RESULTS, WEIGHTS
from hfseg.training.checkpoints import Checkpoints
from hfseg.training.learner import Learner
from hfseg.training.setup import Run


@dataclass
class Progress:
    """Where a run stands: all of it is saved with each checkpoint."""

    step: int = 0
    batches: int = 0
    best_score: float | None = None
    best_step: int = 0
    evaluations_without_better: int = 0
    evaluated_step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: list[str] = field(default_factory=list)
    processes: int = 1
    seconds: float = 0.0
    optimizer: str = ""
    names: list[str] = field(default_factory=list)
    measure: list = field(default_factory=list)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)

    def skip(self, texts: Iterable[str], say: Callable[[str], None]) -> None:
        """Names each bad sample once.

        Args:
            texts: What is wrong with which sample.
            say: Prints a line.
        """
        for text in texts:
            if text not in self.skipped:
                self.skipped.append(text)
                say(f"skipped: {text}")


class State:
    """The progress of a run and its checkpoints.

    Args:
        run: The run.
        progress: Where it stands.
        checkpoints: Where that is kept.
        resumed: Whether it goes on from one of them.
    """

    def __init__(self, run: Run, progress: Progress, checkpoints: Checkpoints, resumed: bool):
        self.run, self.progress, self.checkpoints, self.resumed = run, progress, checkpoints, resumed

    def start_clock(self) -> None:
        """Counts the seconds of training from here."""
        self.began = time.monotonic()

    def save(self) -> None:
        """Writes a checkpoint."""
        progress = self.progress
        progress.seconds += time.monotonic() - self.began
        self.start_clock()
        if self.run.world > 1:  # the first process holds the sum of all
            total = self.run.added_up(progress.loss_sum, progress.loss_count)
            progress.loss_sum, progress.loss_count = total if self.run.main else (0.0, 0)
        self.checkpoints.save(progress.step)


def restore(run: Run, data: SegmentationData, learner: Learner, measure: list) -> State:
    """Finds out where a run starts: at the beginning, or at the checkpoint that `train.resume` asks for.

    Args:
        run: The run.
        data: The data.
        learner: What the state belongs to; gets the weights of the checkpoint.
        measure: What scores depend on besides the weights.

    Returns:
        The state.

    Raises:
        UserError: When the checkpoint is not there or does not fit the recipe.
    """
    config, resume = run.recipe.train, run.recipe.train.resume
    progress = Progress(processes=run.world, optimizer=config.optimizer, names=list(data.schema.names),
                        measure=measure)
    checkpoints = Checkpoints(run.directory.path / CHECKPOINTS, run.accelerator, config.save_total_limit)
    run.accelerator.register_for_checkpointing(progress, *([learner.average] if learner.average else []))
    set_seed(run.recipe.seed, device_specific=True)  # dropout differs between processes
    found = checkpoints.find(resume) if resume else None
    if resume and not found:
        run.say(f"nothing to resume in {run.directory.path} yet: the run starts")
    scored = _go_on(run, learner, progress, checkpoints, found) if found else 0
    if run.main:
        run.directory.cut_log(progress.step, scored) if found else run.directory.clear()
    return State(run, progress, checkpoints, found is not None)


def _go_on(run: Run, learner: Learner, progress: Progress, checkpoints: Checkpoints, found: Path) -> int:
    """Loads a checkpoint and brings it in line with what the recipe says now.

    Returns the step of the last evaluation whose line in the log holds.
    """
    now = Progress(**vars(progress))
    groups = learner.optimizer.param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    checkpoints.load(found)
    run.say(f"resumed from {found}")
    _refuse_another_run(run, progress, now, found)
    for group, said in zip(learner.optimizer.param_groups, settings, strict=True):  # what the recipe says now, holds
        group.update(said)
    scored = progress.evaluated_step
    _keep_best_score_if_it_holds(run, progress, now.measure)
    if not run.main:
        progress.loss_sum, progress.loss_count = 0.0, 0  # the first process holds the sum of all
    if progress.processes != run.world:
        run.say(f"note: {progress.processes} processes wrote it: from here on the order of the data is another")
        progress.processes = run.world
    if progress.evaluated_step < scored:  # this step is scored again, and its line written again
        scored = min(scored, progress.step - 1)
    checkpoints.remove_after(found)
    return scored


def _refuse_another_run(run: Run, then: Progress, now: Progress, found: Path) -> None:
    for name, was, wanted in (("labels", then.names, now.names), ("train.optimizer", then.optimizer, now.optimizer)):
        if was != wanted:
            raise UserError(f"checkpoint {found} does not fit the recipe: {name} then {was}, now {wanted}",
                            "the labels and the optimizer of the run that wrote it",
                            f"a new run can start from the weights: --model.name {run.directory.path} --output_dir NEW")
    model, origin = run.recipe.model, found.parent.parent / RECIPE
    was = load_recipe(str(origin)).model if origin.is_file() else model
    begun = [(part.name, part.backbone, part.weights, part.revision) for part in (was, model)]
    if begun[0] != begun[1]:
        raise UserError(f"checkpoint {found} does not fit the recipe: it began as model {was.name} "
                        f"({was.weights}), and the recipe says {model.name} ({model.weights})",
                        "the model section of the run that wrote it", "leave the --model flags out")


def _keep_best_score_if_it_holds(run: Run, progress: Progress, measure: list) -> None:
    if progress.measure != measure:
        run.say("note: best weights are chosen anew, since eval.metric or the validation data changed")
        progress.measure, progress.best_score, progress.evaluations_without_better = measure, None, 0
        progress.evaluated_step = 0
    if not (run.directory.path / WEIGHTS).exists():  # another run's checkpoint: its best weights lie elsewhere
        progress.best_score, progress.evaluated_step = None, 0
    elif run.directory.read_json(RESULTS).get("training", {}).get("best_step") != progress.best_step:
        progress.best_score = None  # those of the checkpoint were replaced by later ones, which are given up now

"""What a run has before its model: the processes, the folder, the data."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, set_seed
from tqdm.auto import tqdm

from hfseg.data import SegmentationData, load_recipe_data
from hfseg.data.augment import resolve
from hfseg.data.frequencies import class_counts
from hfseg.errors import UserError
from hfseg.hub.background import BackgroundPush
from hfseg.hub.push import ready
from hfseg.metrics.scorers import MAIN_SCORE
from hfseg.recipe import Recipe
from hfseg.run_directory import RunDirectory


@dataclass
class Run:
    """What all parts of a run share.

    Args:
        recipe: The recipe, with its metric filled in.
        directory: Where the run leaves its files.
        accelerator: Of this process.
        verbose: Whether people watch.
        publisher: What pushes the best weights meanwhile, in the first process, if the recipe wants that.
    """

    recipe: Recipe
    directory: RunDirectory
    accelerator: Accelerator
    verbose: bool
    publisher: BackgroundPush | None = None

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and tells people."""
        return self.accelerator.is_main_process

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar."""
        if self.verbose and self.main:
            tqdm.write(line)

    def log(self, line: dict, kind: str, values: dict) -> None:
        """Writes a line of train_log.jsonl, and its values to the trackers; every process calls it.

        Args:
            line: With `step`.
            kind: `train` or `eval`.
            values: Numbers by name; None where there is none.
        """
        if self.main:
            self.directory.log(line)
        numbers = {f"{kind}/{key}": value for key, value in values.items() if value is not None}
        self.accelerator.log(numbers, step=line["step"])

    def start_trackers(self) -> None:
        """Opens the trackers of the recipe, if any."""
        if self.recipe.train.trackers:
            self.accelerator.init_trackers("hfseg", config=flat(asdict(self.recipe)))

    def added_up(self, *values: float) -> list[float]:
        """Adds numbers up over the processes; every process calls it.

        Args:
            values: Of this process.

        Returns:
            The sums.
        """
        return self.accelerator.reduce(torch.tensor(values, device=self.device), "sum").tolist()

    def divergence_fix(self, best_step: int) -> str:
        """Returns what helps against weights that diverge.

        Args:
            best_step: Step of the best weights so far, or 0.

        Returns:
            Words.
        """
        kept = f"; {self.directory.path} keeps the best weights so far" if best_step else ""
        return f"lower train.learning_rate, or set train.mixed_precision to bf16 or fp32{kept}"


def start(recipe: Recipe, directory: RunDirectory, verbose: bool) -> Run:
    """Starts the processes, claims the folder, and makes sure that the hub will take the result.

    Args:
        recipe: The recipe, checked.
        directory: Where the run leaves its files.
        verbose: Whether people watch.

    Returns:
        The run.

    Raises:
        UserError: When any of it cannot be had.
    """
    recipe = replace(recipe, eval=replace(recipe.eval, metric=recipe.eval.metric or MAIN_SCORE[recipe.task]))
    run, hub = Run(recipe, directory, start_accelerator(recipe), verbose), recipe.hub
    if run.main:
        directory.claim(recipe.train.resume or False)
        if hub.push_to_hub:
            ready(hub.repo_id, hub.private, hub.tag, hub.space)
            if hub.strategy == "best":
                run.publisher = BackgroundPush(directory.path, hub.repo_id, run.say, private=hub.private)
    run.accelerator.wait_for_everyone()
    processes = f"{run.world} process{'es' if run.world > 1 else ''}"
    run.say(f"{processes} on {run.device.type}, {recipe.train.mixed_precision}")
    return run


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Returns the Accelerator of a run.

    Args:
        recipe: The recipe.

    Returns:
        Set up with accumulation, precision and trackers.

    Raises:
        UserError: For a tracker that is not installed, or a way of launching that hfseg does not support.
    """
    folder = str(Path(recipe.output_dir).expanduser())
    precision = "no" if recipe.train.mixed_precision == "fp32" else recipe.train.mixed_precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # a second run in this process, such as a notebook, may use another precision
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=recipe.train.gradient_accumulation_steps,
            mixed_precision=precision,
            cpu=not torch.accelerator.is_available(),  # or torchrun's processes on CPU would not find each other
            log_with=recipe.train.trackers or None,
            project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
        )
    except ValueError as error:
        raise UserError(f"Accelerate cannot start: {error}",
                        fix="check train.mixed_precision and train.trackers on this machine") from error
    started = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    missing = [name for name in recipe.train.trackers if name not in started]
    if missing:
        raise UserError(f"the tracker {', '.join(missing)} is not installed",
                        fix=f"pip install {' '.join(missing)}")
    if str(accelerator.distributed_type.value) not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise UserError(f"hfseg does not train under {accelerator.distributed_type.value} yet",
                        "one process, or data parallel on CPUs or GPUs")
    return accelerator


def open_data(run: Run, data: SegmentationData | None) -> tuple[SegmentationData, np.ndarray | None]:
    """Opens the data of a run, cut to what the recipe asks for.

    Args:
        run: The run.
        data: Data loaded already, which stays as it is; None to load it.

    Returns:
        The data, and the labelled pixels of each class where the recipe needs them.

    Raises:
        UserError: When there is nothing to train on or to evaluate on, or nothing to tell apart.
    """
    recipe = run.recipe
    set_seed(recipe.seed)
    with run.accelerator.main_process_first():  # the first process fills the cache for the others
        data = copy(data) if data is not None else load_recipe_data(recipe)
    limit_data(recipe, data)
    for note in data.notes:
        run.say(f"data: {note}")
    run.say(data.schema.table())
    if data.schema.num_labels < 2 and recipe.task == "semantic":
        raise UserError(f"the data has one class, {data.schema.names[0]!r}, and what is not it counts for nothing",
                        "two classes or more", "name the rest, too: --data.labels.binary true makes it the background")
    return data, frequencies(recipe, data, run.say)


def limit_data(recipe: Recipe, data: SegmentationData) -> None:
    """Cuts the splits to what the recipe asks for, in place.

    Args:
        recipe: With `data.max_train_samples` and `train.overfit`.
        data: The data.

    Raises:
        UserError: When there is nothing to train on or to evaluate on.
    """
    if recipe.task != "semantic" and data.task != recipe.task:
        raise UserError(f"the task is {recipe.task}, and the data was read for the {data.task} one",
                        f"load_data(..., task={recipe.task!r})")
    if data.train is None:
        raise UserError(f"{recipe.data.path} has no training split", ", ".join(data), "--data.train_split NAME")
    limit = recipe.train.overfit or recipe.data.max_train_samples
    if limit:
        rows = data[data.train]
        data[data.train] = rows.take(limit) if data.streaming else rows.select(range(min(limit, len(rows))))
    if recipe.train.overfit:
        data.validation = data.train
    if data.validation is None:
        raise UserError(f"{recipe.data.path} has no split to evaluate on", ", ".join(data),
                        "--data.validation_split NAME, a data.validation_fraction above 0 where there are two images, "
                        "or --train.overfit N to evaluate on the first N training images")


def frequencies(recipe: Recipe, data: SegmentationData, say: Callable) -> np.ndarray | None:
    """Counts the classes if the recipe needs to know them.

    Args:
        recipe: The recipe.
        data: The data.
        say: Prints a line.

    Returns:
        int64 counts of labelled pixels per class, or None.
    """
    augment = resolve(recipe.augment)
    if recipe.loss.class_weights != "auto" and not augment.rare_class_crop and not augment.copy_paste:
        return None
    counts = class_counts(data, data.train, skip_bad=recipe.data.on_bad_sample == "skip")
    total = max(1, counts.sum())
    say("pixels: " + ", ".join(f"{name} {100 * n / total:.1f}%" for name, n in zip(data.schema.names, counts)))
    return counts


def flat(values: dict, prefix: str = "") -> dict:
    """Returns nested settings as the flat numbers, strings and bools that trackers take.

    Args:
        values: Nested dictionaries.
        prefix: Put before each name.

    Returns:
        Dotted names and plain values.

    Example:
        >>> flat({"train": {"max_steps": 3, "betas": (0.9, 0.99)}})
        {'train.max_steps': 3, 'train.betas': '(0.9, 0.99)'}
    """
    result = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result

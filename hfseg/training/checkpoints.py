"""Resumable state on disk: written aside, renamed when whole, and checked before it is believed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from hfseg.errors import UserError


class Checkpoints:
    """The folders `step-00000120` of a run.

    A kill at any moment leaves whole checkpoints only: the state is written to a temporary folder, forced to disk,
    and renamed; older ones are removed after that.

    Args:
        folder: Where they lie; made when needed.
        accelerator: Whose state is saved: weights, optimizer, scaler, random states, registered objects.
        total_limit: How many to keep.
    """

    def __init__(self, folder: str | Path, accelerator: Accelerator, total_limit: int = 2):
        self.folder, self.accelerator, self.total_limit = Path(folder), accelerator, max(1, total_limit)

    def all(self) -> list[Path]:
        """Returns the whole checkpoints, oldest first.

        Returns:
            Their folders.
        """
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int) -> Path:
        """Writes the state after `step` optimizer steps; every process calls it.

        Args:
            step: Optimizer steps done.

        Returns:
            The checkpoint's folder.
        """
        accelerator, final = self.accelerator, self.folder / f"step-{step:08d}"
        while final.exists():  # saved before its evaluation, and now after it: the older one goes when this is whole
            final = final.with_name(final.name + "+")
        temporary = self.folder / f".writing-{step:08d}"
        if accelerator.is_main_process:
            for stale in self.folder.glob(".writing-*"):
                shutil.rmtree(stale)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(temporary))
        except (OSError, RuntimeError) as error:  # a full disk is either, by the part that meets it
            kept = self.all()[-1:] or ["none"]
            raise UserError(f"the checkpoint {final} cannot be written: {str(error).splitlines()[0][:200]}",
                            fix=f"make room on the disk and resume; the last whole checkpoint: {kept[0]}") from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            temporary.rename(final)
            sync(self.folder)
            for old in self.all()[: -self.total_limit]:
                self._remove(old)
        accelerator.wait_for_everyone()
        return final

    def find(self, resume: bool | str) -> Path | None:
        """Returns the checkpoint that `train.resume` asks for.

        Args:
            resume: True for the newest, or a folder.

        Returns:
            The folder, or None when the newest is asked for and there is none yet.

        Raises:
            UserError: When the named folder is no whole checkpoint.
        """
        if resume is True or resume == "true":
            return self.all()[-1] if self.all() else None
        path = Path(str(resume))
        if not path.is_dir() and (self.folder / path).is_dir():
            path = self.folder / path
        if not path.is_dir():
            raise UserError(f"there is no checkpoint {resume}", ", ".join(p.name for p in self.all()) or "none yet",
                            "--train.resume true takes the newest")
        return path

    def load(self, path: Path) -> None:
        """Restores the state.

        Args:
            path: A folder that `find` returned.

        Raises:
            UserError: When a part is missing or empty, which would load silently otherwise.
        """
        states, world = len(list(path.glob("random_states_*.pkl"))), self.accelerator.num_processes
        if 0 < states < world:
            raise UserError(f"{states} process{'es' * (states > 1)} wrote checkpoint {path}, and {world} run now",
                            f"up to {states}", f"torchrun --nproc_per_node {states} ..., or a new run that starts from "
                            "the weights: --model.name RUN_DIRECTORY")
        needed = [f"random_states_{self.accelerator.process_index}.pkl", "custom_checkpoint_0.pkl"]
        for name in needed:
            file = path / name
            if not file.is_file() or file.stat().st_size == 0:
                raise UserError(
                    f"checkpoint {path} is not whole: {name} is missing or empty",
                    "a checkpoint written by as many processes as run now",
                    "resume from another one with --train.resume FOLDER",
                )
        extra = len(self.accelerator._custom_objects)
        if len(list(path.glob("custom_checkpoint_*.pkl"))) != extra:
            raise UserError(f"checkpoint {path} does not fit the recipe: train.ema was on in one and off in the other")
        try:
            self.accelerator.load_state(str(path))
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"checkpoint {path} does not fit the recipe: {str(error).splitlines()[0]}",
                            "the model, the labels and the optimizer of the run that wrote it") from error
        self.accelerator.step = 0  # counts micro-batches, and an optimizer step has just ended
        self.accelerator.wait_for_everyone()

    def remove_after(self, path: Path) -> None:
        """Removes checkpoints of later steps, for the run is about to write them again.

        Args:
            path: The folder that the run goes on from.
        """
        if self.accelerator.is_main_process and path.resolve().parent == self.folder.resolve():
            for later in self.all():
                if later.name > path.name:
                    self._remove(later)
        self.accelerator.wait_for_everyone()

    def _remove(self, folder: Path) -> None:
        """Removes a checkpoint that a kill in between shall not leave half there."""
        aside = folder.with_name(f".writing-{folder.name}")
        folder.rename(aside)
        shutil.rmtree(aside)


def sync(path: Path) -> None:
    """Forces a file or folder to disk.

    Args:
        path: What to force.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The run directory: what lies in it, and how files get there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from hfseg.errors import UserError
from hfseg.metrics.scores import to_json_ready
from hfseg.models.quiet import quiet_transformers

# What a run writes at its top level; a directory with other files is somebody's and is left alone.
CHECKPOINTS, SAMPLES, LOG = "checkpoints", "samples", "train_log.jsonl"
RECIPE, WEIGHTS, LABELS, RESULTS, CARD = (
    "recipe.yaml", "model.safetensors", "labels.json", "eval_results.json", "README.md"
)


class RunDirectory:
    """A run's folder.

    Args:
        path: Where it is; made by `claim`.

    Example:
        >>> RunDirectory("runs/a").resume_command()
        'hfseg train --config runs/a/recipe.yaml --train.resume true'
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._lock: int | None = None
        self._made, self._owner = False, os.getpid()

    def claim(self, resume: bool | str = False) -> None:
        """Makes the folder, or makes sure that nothing in it can be lost; no other process can claim it until
        `release`, or the end of this one.

        Args:
            resume: Whether a run there is to go on, or from which checkpoint.

        Raises:
            UserError: When it holds another run or other files, is in use, or cannot be written.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise UserError(f"output_dir {path} is a file", "a folder", "choose another --output_dir")
        self._acquire()
        checkpoints = path / CHECKPOINTS
        named = None if resume in (True, False, "true") else Path(str(resume))
        elsewhere = named and named.is_dir() and named.resolve().parent != checkpoints.resolve()
        resumable = resume and not elsewhere and any(checkpoints.glob("step-*"))
        if path.is_dir() and not resumable:
            if (path / WEIGHTS).exists() or any(path.glob(f"{CHECKPOINTS}/step-*")):
                raise UserError(
                    f"output_dir {path} holds another run", "an empty or new folder",
                    f"{self.resume_command()} goes on with it, or choose another --output_dir",
                )
            if any(path.iterdir()) and not (path / RECIPE).exists():
                raise UserError(f"output_dir {path} holds files that are no run", "an empty or new folder",
                                "choose another --output_dir")
        try:
            for stale in path.glob(".writing-*"):  # of a kill in the middle of a write
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            descriptor, probe = tempfile.mkstemp(dir=path)
            os.close(descriptor)
            os.unlink(probe)
        except OSError as error:
            raise self._unwritable(error) from error

    def _acquire(self) -> None:
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(f"output_dir {self.path} is in use: another process is training there",
                            fix="wait for it, or choose another --output_dir") from error
        except OSError:
            pass  # a network file system without locks
        os.register_at_fork(after_in_child=self.release)  # a worker that outlives a killed run must not hold it

    def release(self) -> None:
        """Lets other processes claim the folder, and removes it if this one made it and nothing came of it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            if self._made and os.getpid() == self._owner:
                with suppress(OSError):
                    self.path.rmdir()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"output_dir {self.path} cannot be written: {error.strerror}", "a writable folder",
                         "choose another --output_dir")

    def resume_command(self, processes: int = 1) -> str:
        """Returns the command that goes on with this run.

        Args:
            processes: How many it runs on.

        Returns:
            A shell command.
        """
        start = f"torchrun --nproc_per_node {processes} -m " if processes > 1 else ""
        return f"{start}hfseg train --config {shlex.quote(str(self.path / RECIPE))} --train.resume true"

    def write(self, name: str, text: str) -> None:
        """Writes a text file atomically.

        Args:
            name: File name in the folder.
            text: Its whole content.
        """
        write_atomic(self.path / name, text)

    def write_json(self, name: str, value: dict) -> None:
        """Writes a JSON file atomically.

        Args:
            name: File name in the folder.
            value: Plain Python values.
        """
        self.write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def save_model(self, model, processor, schema, results: dict) -> None:
        """Replaces the best weights, with everything that belongs to them.

        Args:
            model: A transformers model.
            processor: Its image processor.
            schema: Its `LabelSchema`.
            results: What `eval_results.json` shall hold.
        """
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".writing-") as folder:
            staged = Path(folder)
            with quiet_transformers():
                model.save_pretrained(staged)
            processor.save_pretrained(staged)
            if (tokenizer := getattr(model, "tokenizer", None)) is not None:
                tokenizer.save_pretrained(staged)
            schema.save(staged / LABELS)
            (staged / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            # The weights go last: whoever finds them finds the rest.
            for file in sorted(staged.iterdir(), key=lambda file: file.suffix == ".safetensors"):
                os.replace(file, self.path / file.name)

    def log(self, line: dict) -> None:
        """Appends a line to train_log.jsonl.

        Args:
            line: Plain Python values; NaN and infinity are written as null.
        """
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(to_json_ready(line), allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict:
        """Reads a JSON file.

        Args:
            name: File name in the folder.

        Returns:
            Its content.
        """
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def cut_log(self, step: int, evaluated_step: int) -> None:
        """Removes the log lines after a step, and a last line that a kill left half written.

        Args:
            step: The step that the run goes on from.
            evaluated_step: The last evaluation that it knows of.
        """
        if (self.path / LOG).exists():
            kept = [line for line in read_log(self.path)
                    if line["step"] <= (evaluated_step if "eval" in line else step)]
            self.write(LOG, "".join(json.dumps(line) + "\n" for line in kept))

    def clear(self) -> None:
        """Removes what an aborted run without weights or checkpoints left."""
        for name in (LOG, RESULTS, LABELS, CARD, "learning_curve.png"):
            (self.path / name).unlink(missing_ok=True)
        for name in (CHECKPOINTS, SAMPLES):
            shutil.rmtree(self.path / name, ignore_errors=True)


def read_log(run: str | Path) -> list[dict]:
    """Returns the whole lines of a run's log.

    Args:
        run: The run directory.

    Returns:
        Training lines (`loss`, `learning_rate`...) and evaluation lines (`eval`), in order.
    """
    lines = []
    for text in (Path(run) / LOG).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new, never a part.

    Args:
        path: The file.
        text: Its whole content.
    """
    temporary = path.with_name(f".writing-{path.name}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

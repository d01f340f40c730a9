"""The run directory: what lies in it, and how files get there whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
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

    def claim(self, resume: bool) -> None:
        """Makes the folder, or makes sure that nothing in it can be lost.

        Args:
            resume: Whether a run there is to go on.

        Raises:
            UserError: When it holds another run or other files, or cannot be written.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise UserError(f"output_dir {path} is a file", "a folder", "choose another --output_dir")
        resumable = resume and any(path.glob(f"{CHECKPOINTS}/step-*"))
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
            path.mkdir(parents=True, exist_ok=True)
            for stale in path.glob(".writing-*"):  # of a kill in the middle of a write
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            descriptor, probe = tempfile.mkstemp(dir=path)
            os.close(descriptor)
            os.unlink(probe)
        except OSError as error:
            raise UserError(f"output_dir {path} cannot be written: {error.strerror}", "a writable folder",
                            "choose another --output_dir") from error

    def resume_command(self) -> str:
        """Returns the command that goes on with this run.

        Returns:
            A shell command.
        """
        return f"hfseg train --config {shlex.quote(str(self.path / RECIPE))} --train.resume true"

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
            schema.save(staged / LABELS)
            (staged / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
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

"""What may cut a run short: signals, and memory that does not suffice."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from hfseg.errors import UserError
from hfseg.recipe import Recipe


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped the run after its state was saved.

    Args:
        step: Optimizer steps done.
        command: What resumes the run.
        signum: The signal.
        speaks: Whether this process is the one that tells people.
    """

    def __init__(self, step: int, command: str, signum: int, speaks: bool = True):
        super().__init__(f"stopped after step {step}; nothing is lost. To go on:\n  {command}")
        self.signum, self.speaks = signum, speaks


class StopSignals:
    """Notes Ctrl-C and SIGTERM, so that the loop can end a step in order; a second Ctrl-C stops at once."""

    def __init__(self):
        self.received = 0
        self._before: dict = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame) -> None:
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def agreed(self, accelerator: Accelerator) -> int:
        """Returns the signal that any process has received; all processes get the same answer.

        Args:
            accelerator: Of the run.

        Returns:
            The signal's number, or 0.
        """
        if accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=accelerator.device)
        return int(accelerator.gather(received).max())


@contextmanager
def batch_advice(recipe: Recipe):
    """Turns errors that a batch size causes into the recipe lines that would fit: out of memory, or one image alone.

    Args:
        recipe: Of the run.

    Raises:
        UserError: In place of these errors.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError("this network normalises over the batch, and one image alone gives no statistics",
                        "2 or more images per batch", "--train.per_device_train_batch_size 2") from error
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text
        if not short:
            raise
        batch, accumulation = recipe.train.per_device_train_batch_size, recipe.train.gradient_accumulation_steps
        lines = []
        if batch > 1:
            lines += [f"--train.per_device_train_batch_size {max(1, batch // 2)} "
                      f"--train.gradient_accumulation_steps {accumulation * 2}   (the same step, in halves)"]
        if not recipe.train.gradient_checkpointing:
            lines += ["--train.gradient_checkpointing true"]
        if recipe.train.mixed_precision == "fp32":
            lines += ["--train.mixed_precision bf16"]
        lines += ["--augment.crop_size, smaller"]
        raise UserError(f"out of memory: {text.splitlines()[0][:200] if text else 'host memory'}",
                        fix="; or ".join(lines)) from error

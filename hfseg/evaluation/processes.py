"""Sums over processes."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator


def added_up(accelerator: Accelerator, values: np.ndarray) -> np.ndarray:
    """Adds numbers up over the processes.

    Counts travel as int64 and sums as float64 on CPU; MPS has neither, and runs one process.

    Args:
        accelerator: Of the run.
        values: Of this process.

    Returns:
        The sums.
    """
    return accelerator.reduce(torch.from_numpy(values).to(accelerator.device), "sum").cpu().numpy()

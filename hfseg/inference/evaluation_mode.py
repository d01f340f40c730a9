"""A model that is used between steps of its training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EvaluationMode:
    """Puts a model into evaluation mode without gradients; afterwards each module has its own mode again.

    Threads, and segmenters with other settings, share the model: the last one out puts the modes back.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module):
        self.model, self.lock, self.calls, self.training = model, threading.Lock(), 0, []

    def __reduce__(self):
        return type(self), (self.model,)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Is a context in which the model can be used."""
        with self.lock:
            if self.calls == 0:
                self.training = [module for module in self.model.modules() if module.training]
                self.model.eval()
            self.calls += 1
        try:
            # Some networks cache position tables, and one made in inference mode would break the next training step.
            with torch.no_grad() if self.training else torch.inference_mode():
                yield
        finally:
            with self.lock:
                self.calls -= 1
                if self.calls == 0:
                    for module in self.training:  # not model.train(): frozen parts may be in eval mode
                        module.training = True

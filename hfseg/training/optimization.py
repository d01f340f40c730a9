"""The parts of an optimizer step: optimizers, the course of the learning rate, the moving average."""

from __future__ import annotations

import math

import torch
from torch import nn

from hfseg.recipe import TrainConfig


def build_optimizer(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the optimizer of a recipe; each group remembers its peak rate as `initial_lr`.

    Args:
        groups: Optimizer groups with `params`, `lr`, `weight_decay`, `name`.
        config: The recipe's train section.

    Returns:
        AdamW, Adam or SGD with Nesterov momentum.
    """
    groups = [{**group, "initial_lr": group["lr"]} for group in groups]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, betas=tuple(config.betas))


def rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Returns the learning rate at a step as a share of its peak: a pure function, so that nothing is to be saved.

    Args:
        step: Optimizer steps done, from 0.
        total: Optimizer steps of the whole run.
        config: The recipe's train section.

    Returns:
        A factor from 0 to 1.

    Example:
        >>> [round(rate_factor(step, 100, TrainConfig(warmup_steps=10)), 2) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.01]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    length = max(1, total - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / length)
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - progress
        case "poly":
            return (1 - progress) ** config.poly_power
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            return 0.1 ** sum(progress >= milestone for milestone in config.step_milestones)
        case "cyclic":
            return 0.5 * (1 + math.cos(math.pi * ((progress * config.cycles) % 1.0)))
    raise ValueError(config.schedule)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group to its own peak rate times `factor`.

    Args:
        optimizer: Made by `build_optimizer`.
        factor: From `rate_factor`.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class MovingAverage:
    """Exponential moving average of weights; integer buffers are copied.

    Early on the decay is min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is forgotten.

    Args:
        model: The network, unwrapped.
        decay: Share of the old average kept at each step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the network.

        Args:
            model: The network, unwrapped.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def exchange(self, model: nn.Module) -> None:
        """Swaps the network's weights with the average; a second call swaps back.

        Args:
            model: The network, unwrapped.
        """
        mine = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        self.average = mine

    def state_dict(self) -> dict:
        """Returns what a checkpoint holds.

        Returns:
            Tensors and counters.
        """
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Restores what `state_dict` gave.

        Args:
            state: From `state_dict`.
        """
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)


def l1_penalty(groups: list[dict], strength: float) -> torch.Tensor | float:
    """Returns the L1 penalty on the decayed weights.

    Args:
        groups: Optimizer groups.
        strength: Its factor; 0 is off.

    Returns:
        A scalar to add to the loss.
    """
    if not strength:
        return 0.0
    return strength * sum(p.abs().sum() for group in groups if "no decay" not in group["name"] for p in group["params"])

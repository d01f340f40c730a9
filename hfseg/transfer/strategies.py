"""The table of transfer strategies, and the plan that one of them makes for a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from hfseg.errors import UserError, one_of
from hfseg.models import Family
from hfseg.transfer.feature_extraction import feature_extraction
from hfseg.transfer.full import full
from hfseg.transfer.partial import partial
from hfseg.transfer.stages import backbone_stages

# A strategy is given (model, family, stages) and sets `requires_grad`. Adding one is one file and one line here.
STRATEGIES: dict[str, Callable[[nn.Module, Family, int], None]] = {
    "full": lambda model, family, stages: full(model, family),
    "feature_extraction": lambda model, family, stages: feature_extraction(model, family),
    "partial": partial,
    # In the end it trains everything; `Plan.at_step` holds the backbone back until then.
    "head_then_full": lambda model, family, stages: full(model, family),
}
HEAD_SHARE = 0.2  # of the run, for head_then_full where the steps are not given


@dataclass
class Plan:
    """What trains, in which optimizer group, at which rate.

    Attributes:
        groups: Optimizer groups with `params`, `lr`, `weight_decay` and `name`.
        frozen_modules: Modules with no trainable parameter, which stay in evaluation mode.
        stages: For people: each stage of the backbone, its parameters, and how many of them train.
        later_rate: For head_then_full: the rate of all groups once the backbone trains, too.
        head_steps: For head_then_full: steps of the head alone; None: a fifth of the run.
        backbone: For head_then_full: what waits until then.
    """

    groups: list[dict]
    frozen_modules: list[nn.Module]
    stages: list[tuple[str, int, int]] = field(default_factory=list)
    later_rate: float | None = None
    head_steps: int | None = None
    backbone: list[nn.Parameter] = field(default_factory=list)
    _phase: str | None = None

    @property
    def switches(self) -> bool:
        """Whether what trains changes during the run, which data parallel training must know."""
        return self.later_rate is not None

    def at_step(self, step: int, total: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Freezes or frees the backbone where its time has come: a function of the step alone, so that a resumed run
        does the same.

        Args:
            step: Optimizer steps done.
            total: Those of the whole run.
            model: The network, unwrapped.
            optimizer: Made of `groups`.

        Raises:
            UserError: When the run ends before the backbone trains.
        """
        if not self.switches:
            return
        alone = max(1, round(HEAD_SHARE * total)) if self.head_steps is None else self.head_steps
        if alone >= total:
            raise UserError(f"transfer.head_steps is {alone}, and the run has {total} steps", f"below {total}",
                            "--transfer.strategy feature_extraction trains the head alone")
        phase = "head" if step < alone else "all"
        if phase == self._phase:
            return
        self._phase = phase
        for parameter in self.backbone:
            parameter.requires_grad_(phase == "all")
            parameter.grad = None
        for group, planned in zip(optimizer.param_groups, self.groups, strict=True):
            group["initial_lr"] = planned["lr"] if phase == "head" else self.later_rate
        self.frozen_modules = frozen(model)
        self.set_train_mode(model)

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the model into training mode, but its frozen parts into evaluation mode.

        Args:
            model: The network of the plan; called at the start and after each evaluation.
        """
        model.train()
        for module in self.frozen_modules:
            module.eval()

    def table(self) -> str:
        """Returns what trains as a table for people.

        Returns:
            A line per group, one for what is frozen, and one per stage of the backbone where only some train.
        """
        lines = [f"{'parameters':<22}{'count':>12}{'rate':>12}{'decay':>10}"]
        for group in self.groups:
            count = sum(parameter.numel() for parameter in group["params"])
            lines.append(f"{group['name']:<22}{count:>12,}{group['lr']:>12.2g}{group['weight_decay']:>10.2g}")
        resting = sum(count - trained for _, count, trained in self.stages)
        if resting:
            lines.append(f"{'frozen':<22}{resting:>12,}")
            lines += [f"  {name:<20}{count:>12,}{'frozen' if not trained else 'trains':>12}"
                      for name, count, trained in self.stages]
        if self.switches:
            when = f"{self.head_steps} steps" if self.head_steps is not None else f"{HEAD_SHARE:.0%} of the run"
            lines.append(f"the head alone for {when}, then everything at {self.later_rate:.2g}")
        return "\n".join(lines)


def plan_transfer(
    model: nn.Module,
    family: Family,
    strategy: str,
    learning_rate: float,
    head_factor: float = 10.0,
    weight_decay: float = 0.01,
    stages: int = 1,
    head_steps: int | None = None,
) -> Plan:
    """Freezes what the strategy freezes and sorts the rest into optimizer groups.

    Norms and biases get no weight decay. The head learns `head_factor` times as fast as the backbone.

    Args:
        model: The network.
        family: Its record, which tells head from backbone.
        strategy: A name of `STRATEGIES`.
        learning_rate: Peak rate of the backbone.
        head_factor: Rate of the head as a multiple of it.
        weight_decay: Decay of the matrices.
        stages: For partial: how many of the backbone's last stages train.
        head_steps: For head_then_full: steps in which the head trains alone; None for a fifth of the run.

    Returns:
        The plan, with every trainable parameter in exactly one group.

    Raises:
        UserError: When the strategy is unknown, or the backbone has not that many stages.

    Example:
        >>> from hfseg.models import family_of, load_model
        >>> model, _ = load_model("segformer", config={"depths": [1, 1, 1, 1]})
        >>> plan = plan_transfer(model, family_of(model.config), "feature_extraction", 1e-4)
        >>> [group["name"] for group in plan.groups]
        ['head', 'head, no decay']
    """
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    STRATEGIES[one_of(strategy, STRATEGIES, "transfer.strategy")](model, family, stages)
    undecayed = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1 or isinstance(module, nn.Embedding)
    }
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head, plain = family.is_head(name), name in undecayed
        key = ("head" if head else "backbone") + (", no decay" if plain else "")
        group = groups.setdefault(key, {
            "params": [],
            "lr": learning_rate * (head_factor if head else 1.0),
            "weight_decay": 0.0 if plain else weight_decay,
            "name": key,
        })
        group["params"].append(parameter)
    plan = Plan(list(groups.values()), frozen(model))
    parameters = dict(model.named_parameters())
    for number, names in enumerate(backbone_stages(model, family), start=1):
        members = [parameters[name] for name in names]
        plan.stages.append((f"stage {number}", sum(p.numel() for p in members),
                            sum(p.numel() for p in members if p.requires_grad)))
    if strategy == "head_then_full":
        plan.later_rate, plan.head_steps = learning_rate, head_steps
        plan.backbone = [parameter for name, parameter in parameters.items() if not family.is_head(name)]
    return plan


def frozen(model: nn.Module) -> list[nn.Module]:
    """Returns the parts that do not train, which run as they were trained: no dropout, no stochastic depth, no new
    BatchNorm statistics.

    Args:
        model: The network.

    Returns:
        Modules with parameters, none of which has `requires_grad`.
    """
    return [
        module for module in model.modules()
        if (parameters := list(module.parameters())) and not any(p.requires_grad for p in parameters)
    ]

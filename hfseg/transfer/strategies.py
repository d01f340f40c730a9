"""The table of transfer strategies, and the plan that one of them makes for a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hfseg.errors import one_of
from hfseg.models import Family
from hfseg.transfer.feature_extraction import feature_extraction
from hfseg.transfer.full import full

# A strategy is given (model, family) and sets `requires_grad`. Adding one is one file and one line here.
STRATEGIES: dict[str, Callable[[nn.Module, Family], None]] = {
    "full": full,
    "feature_extraction": feature_extraction,
}


@dataclass
class Plan:
    """What trains, in which optimizer group, at which rate.

    Attributes:
        groups: Optimizer groups with `params`, `lr`, `weight_decay` and `name`.
        frozen_modules: Modules with no trainable parameter, which stay in evaluation mode.
    """

    groups: list[dict]
    frozen_modules: list[nn.Module]

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
            A line per group and one for what is frozen.
        """
        lines = [f"{'parameters':<22}{'count':>12}{'rate':>12}{'decay':>10}"]
        for group in self.groups:
            count = sum(parameter.numel() for parameter in group["params"])
            lines.append(f"{group['name']:<22}{count:>12,}{group['lr']:>12.2g}{group['weight_decay']:>10.2g}")
        return "\n".join(lines)


def plan_transfer(
    model: nn.Module,
    family: Family,
    strategy: str,
    learning_rate: float,
    head_factor: float = 10.0,
    weight_decay: float = 0.01,
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

    Returns:
        The plan, with every trainable parameter in exactly one group.

    Raises:
        UserError: When the strategy is unknown.

    Example:
        >>> from hfseg.models import family_of, load_model
        >>> model, _ = load_model("segformer", config={"depths": [1, 1, 1, 1]})
        >>> plan = plan_transfer(model, family_of(model.config), "feature_extraction", 1e-4)
        >>> [group["name"] for group in plan.groups]
        ['head', 'head, no decay']
    """
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    STRATEGIES[one_of(strategy, STRATEGIES, "transfer.strategy")](model, family)
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
    # A frozen part is run as it was trained: no dropout, no stochastic depth, no new BatchNorm statistics.
    frozen = [
        module for module in model.modules()
        if (parameters := list(module.parameters())) and not any(p.requires_grad for p in parameters)
    ]
    return Plan(list(groups.values()), frozen)

"""Swaps the class of a module for one that computes the same function with less work, and swaps it back.

A fused class is a module-level subclass of the class that it stands in for:

    @stand_in                                    # keeps the original's `__name__`, which files and wrappers record
    class FusedHead(Head):
        note = "what is done, in a few words"            # goes into the report
        reads = ("forward",)                             # what it was written against: methods, "module.path:function"

        def why_not(self) -> str | None: ...             # why the plain forward has to run; microseconds
        def example(self) -> tuple[tuple, dict]: ...     # small random inputs of `forward` for the self-check;
                                                         # `example = None`: computes nothing itself

        def forward(self, states):
            if self.why_not():
                return super().forward(states)
            ...

To add one: write the class, add a line to `REWRITES` in table.py, and take its digest from `print_digests()`. What its
guard asks is in guards.py.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from importlib.metadata import version

from torch import nn

from hfseg.errors import UserError
from hfseg.models.fusing.self_check import difference
from hfseg.models.fusing.sources import digest, find
from hfseg.models.fusing.table import REWRITES


@dataclass
class FuseReport:
    """What `fuse` did.

    Attributes:
        fused: (module name, what is done) of each module that computes with less work now.
        left_alone: (module name, reason) of each module of a known class that was not touched.
    """

    fused: list[tuple[str, str]] = field(default_factory=list)
    left_alone: list[tuple[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.fused or self.left_alone)

    def __str__(self) -> str:
        if not self:
            return "nothing to fuse"
        lines = [f"fused       {name}: {note}" for name, note in self.fused]
        lines += [f"left alone  {name}: {reason}" for name, reason in self.left_alone]
        return "\n".join(lines)


def fuse(model: nn.Module, check: bool = True) -> nn.Module:
    """Makes a model compute the same function with less work: same state dict, same outputs up to rounding.

    Works in place, any number of times, before or after training, and on models that nothing applies to. What was done
    is in `model.fuse_report`. `unfuse` takes it back.

    Args:
        model: Any module, such as a transformers model.
        check: Whether to compare each fused module with the plain one on a small random input first.

    Returns:
        The model itself.

    Raises:
        UserError: When `model` is not a module.

    Example:
        >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation
        >>> model = SegformerForSemanticSegmentation(SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]))
        >>> print(fuse(model).fuse_report)
        fused       decode_head: each stage's projection composed with the fuse convolution, before the upsampling
        >>> print(fuse(nn.Linear(2, 2)).fuse_report)
        nothing to fuse
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"fuse was given a {type(model).__name__}", "a torch module, such as a model of transformers")
    report = FuseReport()
    for name, module in model.named_modules():
        if is_fused(module):
            report.fused.append((name or "model", type(module).note))
            continue
        key = next((_key(kind) for kind in type(module).__mro__ if _key(kind) in REWRITES), None)
        if key is None:
            continue
        reason = _swap(module, key, check)
        if reason is None:
            report.fused.append((name or "model", type(module).note))
        else:
            report.left_alone.append((name or "model", reason))
    model.fuse_report = report
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Takes back what `fuse` did.

    Args:
        model: A model, fused or not.

    Returns:
        The model itself, with its original classes and without `fuse_report`.
    """
    for module in model.modules():
        if is_fused(module):
            fused = type(module)
            module.__class__ = fused.__bases__[0]
            for name in ("forward", "_old_forward"):  # as accelerate's hooks keep it
                if getattr(module.__dict__.get(name), "__func__", None) is fused.forward:
                    module.__dict__[name] = types.MethodType(fused.__bases__[0].forward, module)
        module.__dict__.pop("fuse_report", None)
    return model


def is_fused(module: nn.Module) -> bool:
    """Returns whether the module's class is a fused one, exactly."""
    return "_stands_in_for" in type(module).__dict__


def stand_in(fused: type) -> type:
    """Lets a fused class go by the name of the one that it stands in for.

    `save_pretrained` writes the name into config.json, `device_map` and FSDP look classes up by it, and transformers
    finds renamed keys and attention implementations through the class.

    Args:
        fused: A module-level subclass of the original.

    Returns:
        The class itself. Its `__qualname__` stays, by which pickle finds it.
    """
    original = fused.__bases__[0]
    fused._stands_in_for = _key(original)
    fused.__name__ = original.__name__
    # These look at the module that the class is defined in.
    for name in ("_can_set_attn_implementation", "_can_set_experts_implementation", "is_custom_code"):
        if hasattr(original, name):
            setattr(fused, name, getattr(original, name))
    return fused


def _key(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _swap(module: nn.Module, key: str, check: bool) -> str | None:
    """Makes the module a fused one, or returns the reason why it stays as it is."""
    original = type(module)
    name = key.partition(":")[2]
    if _key(original) != key:
        return f"{original.__name__} is a subclass of {name}"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    fused = find(REWRITES[key].fused)
    if digest(original, fused) not in REWRITES[key].sources:
        library = key.partition(".")[0]
        return f"unknown version of {name} ({library} {version(library)})"
    module.__class__ = fused
    reason = None
    try:
        reason = module.why_not()
        if reason is None and check and fused.example and not any(p.is_meta for p in module.parameters()):
            reason = difference(module, original, fused)
    except Exception as error:  # whatever fails here would fail in every forward: the plain class stays, and it is said
        reason = f"the check failed: {type(error).__name__}: {error}"
    finally:
        if reason is not None or module.__class__ is not fused:
            module.__class__ = original
    return reason

"""The self-check: whether a fused module computes what the plain one does, on one small random input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn

# Largest difference that counts as rounding, relative to the largest output.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Share of thresholded values (attention masks) that rounding may flip.
_FLIPPED = 1e-2


def difference(module: nn.Module, original: type, fused: type) -> str | None:
    """Returns how far the fused forward is from the original one on the module's example, or None within rounding."""
    with _undisturbed(module), torch.no_grad():
        torch.manual_seed(0)
        args, kwargs = module.example()
        module.__class__ = original
        try:
            torch.manual_seed(0)  # what draws points draws the same ones in both
            plain = list(_tensors(original.forward(module, *args, **kwargs)))
        finally:
            module.__class__ = fused
        torch.manual_seed(0)
        rewritten = list(_tensors(fused.forward(module, *args, **kwargs)))
    if [t.shape for t in plain] != [t.shape for t in rewritten]:
        return "the check found outputs of other shapes"
    for one, other in zip(plain, rewritten):
        if not one.is_floating_point():
            share = (one != other).double().mean().item() if one.numel() else 0.0
            if share > _FLIPPED:
                return f"the check found {share:.1%} of an output changed"
            continue
        one, other, tolerance = one.double(), other.double(), _TOLERANCE.get(one.dtype, 1e-4)
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            return "the check found infinite or undefined outputs in other places"
        if finite.any():
            scale = one[finite].abs().max().item()
            found = (one - other)[finite].abs().max().item()
            if found > tolerance * max(scale, 1e-6):
                return f"the check found a difference of {found:.1e} where the output is up to {scale:.1e}"
    return None


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Runs the module in eval mode, in full precision, and leaves modes, buffers and random states as they were."""
    modes = [(one, one.training) for one in module.modules()]
    # transformers sets hooks and marks in the first forward of a model, with which it cannot be pickled any more.
    names = [(one, set(one.__dict__), set(one._forward_hooks)) for one in module.modules()]
    buffers = [(one, one.clone()) for one in module.buffers()]
    device = next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(torch.random.fork_rng(devices=[]))
        else:
            stack.enter_context(torch.random.fork_rng(devices=[device], device_type=device.type))
        stack.enter_context(without_autocast(device.type))
        if device.type == "cuda":  # in TF32 the two differ by more than a defect would
            stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False, enabled=torch.backends.cudnn.enabled))
        for one, _ in modes:
            one.training = False
        try:
            yield
        finally:
            for one, training in modes:
                one.training = training
            for one, attributes, hooks in names:
                for key in set(one.__dict__) - attributes:
                    del one.__dict__[key]
                for key in set(one._forward_hooks) - hooks:
                    for table in (one._forward_hooks, one._forward_hooks_with_kwargs, one._forward_hooks_always_called):
                        table.pop(key, None)
            with torch.no_grad():
                for one, before in buffers:
                    one.copy_(before)


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        yield from chain.from_iterable(map(_tensors, value))


def without_autocast(device_type: str) -> AbstractContextManager:
    """Returns a context in which autocast is off, for work on parameters.

    Args:
        device_type: Such as "cuda"; one that has no autocast, such as "meta", needs nothing.
    """
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()

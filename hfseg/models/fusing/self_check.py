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
    """Returns how far the fused module is from the original one on its example, or None within rounding.

    Outputs are compared without gradients and with them, since a module may go different ways, and so are the gradients
    of a random sum of the outputs.
    """
    device = next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))
    found: dict[type, tuple[list, list]] = {}
    with _undisturbed(module):
        try:
            for kind in (original, fused):
                module.__class__ = kind
                found[kind] = _results(module, kind, fused, device)
        finally:
            module.__class__ = fused
    (plain, slopes), (rewritten, own_slopes) = found[original], found[fused]
    if [t.shape for t in plain] != [t.shape for t in rewritten]:
        return "the check found outputs of other shapes"
    for one, other in zip(plain, rewritten):
        if (reason := _unlike(one, other, _TOLERANCE.get(one.dtype, 1e-4), "output")) is not None:
            return reason
    # Against the largest of all: a bias before a normalisation has no gradient but rounding.
    if slopes:
        slopes, own_slopes = (torch.cat([slope.flatten().double() for slope in each]) for each in (slopes, own_slopes))
        return _unlike(slopes, own_slopes, 20 * _TOLERANCE.get(plain[0].dtype, 1e-4), "gradient")
    return None


def _results(module: nn.Module, kind: type, fused: type, device: torch.device) -> tuple[list, list]:
    """Outputs of a class's forward without and with gradients, and gradients of all parameters and inputs."""
    outputs, slopes = [], []
    for differentiate in (False, True):
        with torch.set_grad_enabled(differentiate):
            _seed(device)
            args, kwargs = fused.example(module)
            inputs = [*_tensors(args), *_tensors({k: v for k, v in kwargs.items() if not k.endswith("labels")})]
            for tensor in inputs:
                tensor.requires_grad_(differentiate and tensor.is_floating_point())
            _seed(device)  # what draws points draws the same ones
            results = list(_tensors(kind.forward(module, *args, **kwargs)))
            outputs += results
            watched = [t for t in results if t.requires_grad]
            if watched:
                total = sum((t * torch.randn(t.shape, device=t.device, dtype=t.dtype)).double().sum() for t in watched)
                leaves = [t for t in chain(module.parameters(), inputs) if t.requires_grad]
                found = torch.autograd.grad(total, leaves, allow_unused=True)
                slopes += [torch.zeros_like(t) if s is None else s for s, t in zip(found, leaves)]
    return [t.detach() for t in outputs], slopes


def _unlike(one: torch.Tensor, other: torch.Tensor, tolerance: float, what: str) -> str | None:
    if not one.is_floating_point():
        share = (one != other).double().mean().item() if one.numel() else 0.0
        return f"the check found {share:.1%} of an {what} changed" if share > _FLIPPED else None
    one, other = one.double(), other.double()
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return f"the check found an infinite or undefined {what} in other places"
    if finite.any():
        scale = one[finite].abs().max().item()
        found = (one - other)[finite].abs().max().item()
        if found > tolerance * max(scale, 1e-6):
            return f"the check found a difference of {found:.1e} where the {what} is up to {scale:.1e}"
    return None


def _seed(device: torch.device) -> None:
    """Seeds the one generator that draws on a device: `torch.manual_seed` would touch those of all others."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or torch.cuda.current_device()].manual_seed(0)
    torch.default_generator.manual_seed(0)


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

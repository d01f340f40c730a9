"""What stands in the way of a fused forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

_GLOBAL_HOOKS = [
    getattr(torch.nn.modules.module, name)
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")
]  # fmt: skip


def ordinary(*tensors: torch.Tensor) -> bool:
    """Returns whether a computation may be a `torch.autograd.Function` of its own, or even leave torch.

    Args:
        tensors: What goes in.

    Returns:
        False while a graph is traced, under the transforms of torch.func, in forward-mode differentiation, and for
        tensors that are not plain ones (fake, sharded...).
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or any(type(tensor) not in (torch.Tensor, nn.Parameter) for tensor in tensors)
    )


def why_not_plain(module: nn.Module, children: Mapping[str, type | tuple[type, ...]]) -> str | None:
    """Returns why the children of a module cannot be bypassed: the guard of every fused forward, cheap by design.

    Args:
        module: The fused module.
        children: Name (dots go deeper) to the exact type, or types, that a child must have. A child whose call is
            bypassed is named here, and so is one whose parameters are used directly.

    Returns:
        None if each is plain: exact type, no replaced forward, no hooks, no parametrization, its own parameters dense
        floating point; else the reason.
    """
    if any(_GLOBAL_HOOKS):
        return "every module is watched by global hooks"
    for name, kinds in children.items():
        child = module
        for part in name.split("."):
            child = child._modules.get(part)
            if child is None:
                return f"{name} is missing"
        reason = _why_not_child(child, kinds)
        if reason is not None:
            return f"{name} {reason}"
    return None


def _why_not_child(child: nn.Module, kinds: type | tuple[type, ...]) -> str | None:
    kind = type(child)
    if kind is not kinds and not (type(kinds) is tuple and kind in kinds):
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        return f"is a {kind.__name__}, not a {' or '.join(one.__name__ for one in wanted)}"
    if "forward" in child.__dict__:
        return "has a replaced forward"
    if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks:
        return "has hooks"
    if "parametrizations" in child._modules:
        return "is parametrized"
    for key, parameter in child._parameters.items():
        if parameter is None:
            continue
        # A plain tensor stands there under torch.func, a fake one while a graph is traced.
        if type(parameter) not in _DENSE or not parameter.is_floating_point():
            return f"has a {key} of type {type(parameter).__name__}, {parameter.dtype}"
    return None


_DENSE = (nn.Parameter, torch.Tensor, FakeTensor, FunctionalTensor)


def is_convolution(child: nn.Conv2d, kernel: int) -> bool:
    """Returns whether a convolution is an ordinary one that keeps the size of its input.

    Args:
        child: An `nn.Conv2d`.
        kernel: The side of the kernel in pixels, odd.

    Returns:
        True for this kernel with a stride and dilation of 1, zero padding of half the kernel and one group.
    """
    half = kernel // 2
    return (
        child.kernel_size == (kernel, kernel)
        and child.stride == (1, 1)
        and child.padding == (half, half)
        and child.dilation == (1, 1)
        and child.groups == 1
        and child.padding_mode == "zeros"
    )

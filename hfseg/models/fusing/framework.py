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

To add one: write the class, add a line to `REWRITES`, and take its digest from `print_digests()`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from hfseg.errors import UserError
from hfseg.models.fusing.self_check import difference


@dataclass(frozen=True)
class Rewrite:
    """A line of the table: the class that stands in, and the sources that it was written against.

    Attributes:
        fused: "module.path:ClassName" of the fused class.
        sources: What `digest` gives for the versions of transformers that were read.
    """

    fused: str
    sources: frozenset[str] | set[str]


_TRANSFORMERS = "transformers.models."
_HERE = "hfseg.models.fusing."

REWRITES: dict[str, Rewrite] = {
    f"{_TRANSFORMERS}segformer.modeling_segformer:SegformerDecodeHead": Rewrite(
        f"{_HERE}segformer:FusedSegformerDecodeHead", {"392a7c1320dc"}
    ),
    f"{_TRANSFORMERS}upernet.modeling_upernet:UperNetHead": Rewrite(
        f"{_HERE}upernet:FusedUperNetHead", {"70ba6abfabe2"}
    ),
    f"{_TRANSFORMERS}beit.modeling_beit:BeitUperHead": Rewrite(
        f"{_HERE}beit:FusedBeitUperHead", {"6c886f4b885a"}
    ),
    f"{_TRANSFORMERS}data2vec.modeling_data2vec_vision:Data2VecVisionUperHead": Rewrite(
        f"{_HERE}data2vec_vision:FusedData2VecVisionUperHead", {"e814fb9a9a04"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:"
    "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": Rewrite(
        f"{_HERE}mask2former:FusedDeformableAttention", {"84e8c27b1d73"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerMaskedAttentionDecoderLayer": Rewrite(
        f"{_HERE}mask2former:FusedDecoderLayer", {"9713727b1c4d"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerMaskPredictor": Rewrite(
        f"{_HERE}mask2former:FusedMaskPredictor", {"793438478fdc"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerForUniversalSegmentation": Rewrite(
        f"{_HERE}mask2former:FusedMask2Former", {"8d0311ba4d6d", "4ee095fd387d"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerHungarianMatcher": Rewrite(
        f"{_HERE}mask2former:FusedMatcher", {"858e98800c29"}
    ),
    f"{_TRANSFORMERS}mask2former.modeling_mask2former:Mask2FormerLoss": Rewrite(
        f"{_HERE}mask2former:FusedLoss", {"d5b8e8baa72a"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerPixelDecoderEncoderMultiscaleDeformableAttention": Rewrite(
        f"{_HERE}oneformer:FusedDeformableAttention", {"29d1b0432668"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerTransformerDecoder": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerDecoder", {"b0735da09044"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerTransformerDecoderLayer": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerDecoderLayer", {"c82d78dc198a"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerTransformerDecoderQueryTransformerDecoderLayer": Rewrite(
        f"{_HERE}oneformer:FusedQueryLayer", {"1929429d849c"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerHungarianMatcher": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerMatcher", {"783d8af31101"}
    ),
    f"{_TRANSFORMERS}oneformer.modeling_oneformer:OneFormerLoss": Rewrite(
        f"{_HERE}oneformer:FusedOneFormerLoss", {"f86939a4eebb"}
    ),
    f"{_TRANSFORMERS}eomt.modeling_eomt:EomtForUniversalSegmentation": Rewrite(
        f"{_HERE}eomt:FusedEomt", {"b53fa3b4aa32"}
    ),
    f"{_TRANSFORMERS}eomt.modeling_eomt:EomtHungarianMatcher": Rewrite(
        f"{_HERE}eomt:FusedEomtMatcher", {"858e98800c29"}
    ),
    f"{_TRANSFORMERS}eomt.modeling_eomt:EomtLoss": Rewrite(
        f"{_HERE}eomt:FusedEomtLoss", {"d5b8e8baa72a"}
    ),
    f"{_TRANSFORMERS}eomt_dinov3.modeling_eomt_dinov3:EomtDinov3ForUniversalSegmentation": Rewrite(
        f"{_HERE}eomt:FusedEomtDinov3", {"637af262fc53"}
    ),
    f"{_TRANSFORMERS}eomt_dinov3.modeling_eomt_dinov3:EomtDinov3HungarianMatcher": Rewrite(
        f"{_HERE}eomt:FusedEomtDinov3Matcher", {"858e98800c29"}
    ),
    f"{_TRANSFORMERS}eomt_dinov3.modeling_eomt_dinov3:EomtDinov3Loss": Rewrite(
        f"{_HERE}eomt:FusedEomtDinov3Loss", {"d5b8e8baa72a"}
    ),
    "segmentation_models_pytorch.decoders.segformer.decoder:SegformerDecoder": Rewrite(
        f"{_HERE}smp:FusedSegformerDecoder", {"1d67f78c7004"}
    ),
    "segmentation_models_pytorch.decoders.upernet.decoder:UPerNetDecoder": Rewrite(
        f"{_HERE}smp:FusedUPerNetDecoder", {"aa3165ac544b"}
    ),
    "hfseg.models.networks.hrnet:HRNetHead": Rewrite(
        f"{_HERE}hrnet:FusedHRNetHead", {"f0658dfff7ab"}
    ),
    f"{_TRANSFORMERS}swin.modeling_swin:SwinMLP": Rewrite(
        f"{_HERE}swin:FusedSwinMLP", {"13885f42f2bb"}
    ),
}


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


def _find(path: str):
    module, _, name = path.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _swap(module: nn.Module, key: str, check: bool) -> str | None:
    """Makes the module a fused one, or returns the reason why it stays as it is."""
    original = type(module)
    name = key.partition(":")[2]
    if _key(original) != key:
        return f"{original.__name__} is a subclass of {name}"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    fused = _find(REWRITES[key].fused)
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


# Which version of transformers a rewrite knows.


@functools.cache
def digest(original: type, fused: type) -> str:
    """Returns a digest of the sources that a fused class was written against.

    Args:
        original: The class of transformers.
        fused: The fused class, whose `reads` lists methods of `original` or "module.path:function".

    Returns:
        Twelve hexadecimal digits, indifferent to comments, docstrings, annotations and layout; "unreadable" where the
        source is not there.
    """
    try:
        texts = [_normalised(_find(one) if ":" in one else getattr(original, one)) for one in fused.reads]
    except (AttributeError, ImportError, OSError, TypeError, SyntaxError):
        return "unreadable"
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _normalised(function) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            node.decorator_list = [one for one in node.decorator_list if "auto_docstring" not in ast.unparse(one)]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.unparse(tree)


def print_digests() -> None:
    """Prints the digest of every line of `REWRITES` for the installed transformers, and whether it is known.

    Run it as `python -c "from hfseg.models.fusing import print_digests; print_digests()"`, and add a digest to the
    table once the changed source was read and the tests pass.
    """
    for key, rewrite in REWRITES.items():
        found = digest(_find(key), _find(rewrite.fused))
        print(found, "known  " if found in rewrite.sources else "unknown", key)


# What stands in the way of a fused forward.


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

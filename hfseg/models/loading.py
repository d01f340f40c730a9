"""Load a checkpoint, give it new labels, and say exactly what was loaded, what is new and what was dropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from hfseg.errors import UserError, one_of
from hfseg.labels import LabelSchema
from hfseg.models.backbones import FREEZES_NORMS, HOSTS, is_backbone_type, is_timm, pretrain_backbone
from hfseg.models.configs import auto_class, config_errors, load_config, readable_errors, resolve_name
from hfseg.models.dry_run import dry_run
from hfseg.models.families import Family, family_of
from hfseg.models.hub_files import find_weights
from hfseg.models.input_channels import adapt_channels, input_channels
from hfseg.models.load_report import LoadReport, modules_of
from hfseg.models.networks import architecture_of
from hfseg.models.networks.framework import Pretraining
from hfseg.models.networks.smp_checkpoints import load_smp
from hfseg.models.networks.weights import pretrain
from hfseg.models.processors import configure_for_inference, configure_for_training, load_processor, saved_by_smp
from hfseg.models.quiet import quiet_transformers
from hfseg.models.relabelling import relabel, set_labels

ODD_SIZE = (64, 97)


def load_model(
    name: str | os.PathLike,
    labels: LabelSchema | Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    weights: str = "pretrained",
    backbone: str | None = None,
    backbone_weights: str | os.PathLike | None = None,
    config: dict[str, Any] | None = None,
    channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    trust_remote_code: bool = False,
    task: str | None = None,
    loss: dict[str, Any] | None = None,
):
    """Loads a segmentation model and its image processor for given labels.

    The head gets one output per class of `labels`. Classes that the checkpoint already knows by name keep their
    weights, the others start fresh. `model.load_report` says what happened to every tensor.

    Args:
        name: Hub id, local folder, `hfseg/shapes-segformer` (shipped with the package), one of hfseg's own networks
            such as `hfseg/unet`, or a transformers model type such as `segformer`, which gives random weights.
        labels: The classes to predict, as a schema or names; None keeps those of the checkpoint.
        revision: Branch, tag or commit on the hub.
        token: Hub token, if not the one that is logged in.
        weights: `pretrained` or `random`; one of hfseg's own networks starts from its backbone's ImageNet weights.
        backbone: By name: for hfseg's own networks, such as `resnet18` or a model of timm; for `upernet`,
            `mask2former`, `maskformer` and `detr`, a model of timm, a checkpoint of transformers such as
            `facebook/dinov2-small`, or a type such as `swin`, which gives random weights.
        backbone_weights: File with weights of the backbone, in place of those that its library offers.
        config: Fields of the configuration to override.
        channels: Bands of the images; the first convolution is adapted when the checkpoint has others.
        image_size: What the processor resizes to: shortest side, or (height, width); None leaves images as they
            are, unless the network needs one size.
        trust_remote_code: Whether code in the model's repository may run.
        task: `semantic`, `instance` or `panoptic`: what it will learn, kept as `config.segmentation_task`; None leaves
            that open.
        loss: `no_object_weight` and `num_points` of the network's own loss, for families that have one.

    Returns:
        A tuple of the model, in evaluation mode and float32, and its image processor, which never changes labels.
        The model remembers it as `model.image_processor`.

    Raises:
        UserError: When nothing is found under `name`, its weights do not fit the network, or an argument is wrong.

    Example:
        >>> schema = LabelSchema.from_names(["background", "crack"])
        >>> model, processor = load_model("segformer", labels=schema, config={"depths": [1, 1, 1, 1]})
        >>> model.config.id2label
        {0: 'background', 1: 'crack'}
    """
    name = os.fspath(name)
    one_of(weights, ("pretrained", "random"), "value of weights")
    if image_size is not None and min(image_size if isinstance(image_size, (tuple, list)) else (image_size,)) < 1:
        raise UserError(f"image_size is {image_size}", "a positive number of pixels, or (height, width)")
    if labels is not None and not isinstance(labels, LabelSchema):
        labels = LabelSchema.from_names(list(labels))
    hub = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    source = resolve_name(name)
    report = LoadReport(name)
    model_config = load_config(name, source, weights, config or {}, hub, backbone=backbone)
    family = family_of(model_config)
    if task is not None:
        _set_task(model_config, family, task, name)
    _set_loss(model_config, family, loss or {}, name)
    own, found = architecture_of(source) is not None, None
    on_timm = bool(backbone) and source in HOSTS and is_timm(backbone)
    if backbone_weights is not None and (not (own or on_timm) or weights == "random"):
        raise UserError(f"model.backbone_weights is set, and {name} with {weights} weights does not read it",
                        "a network of hfseg such as hfseg/unet, or one of transformers on a backbone of timm, with "
                        "weights pretrained", "leave it out")
    if own or source in CONFIG_MAPPING or weights == "random":
        if labels is not None:
            set_labels(model_config, labels)
        model, found = _new_network(source, model_config, channels, weights, backbone, backbone_weights, hub, report)
    else:
        model = _load_weights(source, model_config, family, report, hub)
        if labels is not None:
            model = relabel(model, family, labels, report)
    if channels != input_channels(model):
        adapt_channels(model, channels, report)
    processor = load_processor(source, model_config, hub, report, found)
    _load_tokenizer(model, family, source, hub, report)
    configure_for_training(processor, family, model.config, channels, image_size)
    model.load_report, model.image_processor = report, processor
    return model.eval(), processor


def load_for_inference(name: str, *, revision=None, token=None, trust_remote_code=False):
    """Loads a model and its processor as they were published, labels and resizing included.

    Args:
        name: Hub id, folder, or `hfseg/shapes-segformer`.
        revision: Branch, tag or commit on the hub.
        token: Hub token, if not the one that is logged in.
        trust_remote_code: Whether code in the model's repository may run.

    Returns:
        A tuple of the model in evaluation mode and its image processor.

    Raises:
        UserError: When nothing is found under `name`, or its weights do not fit the network.

    Example:
        >>> model, processor = load_for_inference("hfseg/shapes-segformer")
        >>> model.config.model_type
        'segformer'
    """
    hub = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    source = resolve_name(name)
    if source in CONFIG_MAPPING or architecture_of(source):
        raise UserError(f"{name} is a kind of network, without weights", "a run directory, a folder or a hub id",
                        f"hfseg train --model.name {name} --data.path DATA makes one")
    config = load_config(name, source, "pretrained", {}, hub, training=False)
    family = family_of(config)
    report = LoadReport(name)
    model = _load_weights(source, config, family, report, hub)
    if report.new:
        raise UserError(
            f"{name} is no finished segmentation model: {modules_of(report.new)} would be random",
            "a checkpoint that was fine-tuned for segmentation",
            f"hfseg train --model.name {name} --data.path DATA",
        )
    if config.num_labels < 2 and not family.predicts_masks:
        raise UserError(f"{name} has a single output, which needs a threshold that nobody has stated",
                        "two classes or more", f"hfseg train --model.name {name} gives it two")
    processor = load_processor(source, config, hub, report, needed=True)
    _load_tokenizer(model, family, source, hub, report)
    configure_for_inference(processor, family, config, report)
    model.load_report, model.image_processor = report, processor
    return model.eval(), processor


def saved_schema(name: str, revision: str | None = None, token: str | None = None) -> LabelSchema | None:
    """Returns the label schema that hfseg saved with a model.

    Args:
        name: Hub id, folder, or `hfseg/shapes-segformer`.
        revision: Branch, tag or commit on the hub.
        token: Hub token, if not the one that is logged in.

    Returns:
        The schema, or None for a model from elsewhere, whatever its labels.json may hold.

    Example:
        >>> saved_schema("hfseg/shapes-segformer").names[:2]
        ('background', 'disk')
    """
    try:
        return LabelSchema.load(cached_file(resolve_name(name), "labels.json", revision=revision, token=token))
    except (OSError, UserError):
        return None


def _new_network(source: str, config: Any, channels: int, weights: str, backbone: str | None,
                 backbone_weights: str | os.PathLike | None, hub: dict,
                 report: LoadReport) -> tuple[nn.Module, Pretraining | None]:
    """A network without a checkpoint of its own: all of it random, or a pretrained backbone under a new head."""
    own, family = architecture_of(source) is not None, family_of(config)
    theirs = bool(backbone) and source in HOSTS  # a backbone by name, under a network of transformers
    on_timm = theirs and is_timm(backbone)
    pretrained = weights == "pretrained" and (own or (theirs and not is_backbone_type(backbone)))
    for part in (config, getattr(config, "backbone_config", None)):
        if part is not None:
            part.num_channels = 3 if pretrained else channels
    if on_timm and family.predicts_masks and (pretrained or source in FREEZES_NORMS):  # for small batches
        config.backbone_config.freeze_batch_norm_2d = True
    if family.read is None and (own or theirs):  # an hour of training must not end at an image of another size
        dry_run(report.name, config, ODD_SIZE)
    with config_errors(report.name), quiet_transformers():
        model = auto_class(family).from_config(config).float()
    report.new = list(model.state_dict())
    if not pretrained:
        report.notes.append("all weights are random")
        return model, None
    found = (pretrain(model, config.backbone, model.load_backbone, backbone_weights) if own
             else _pretrain_theirs(model, backbone, hub, backbone_weights))
    report.new = [key for key in report.new if family.is_head(key)]
    report.loaded = len(model.state_dict()) - len(report.new)
    weights_of = ("weights of" if theirs and not on_timm
                  else f"ImageNet weights of {backbone or config.backbone} from")
    report.notes.append(f"the backbone has the {weights_of} {found.source}")
    # No path of this machine, since cards repeat it.
    report.backbone_weights = f"{weights_of} {'a file' if backbone_weights else found.source}"
    return model, found


def _load_weights(source: str, config, family: Family, report: LoadReport, hub: dict) -> nn.Module:
    with readable_errors(report.name), quiet_transformers(progress=not Path(source).is_dir()):
        if not Path(source).is_dir():
            hub = {**hub, "revision": find_weights(source, hub["revision"], hub["token"])}
        if saved_by_smp(source, config, hub):
            with config_errors(report.name):
                model = load_smp(source, config, hub)
            report.loaded = len(model.state_dict())
            report.notes.append("saved by segmentation-models-pytorch; activation and classification head are left out")
            return model
        model, info = auto_class(family).from_pretrained(
            source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **hub,
        )  # fmt: skip
    report.new = sorted(info["missing_keys"])
    report.dropped = sorted(info["unexpected_keys"])
    report.loaded = len(model.state_dict()) - len(report.new)
    wrong = [f"{key} is {tuple(found)}, the network wants {tuple(wanted)}"
             for key, found, wanted in sorted(info["mismatched_keys"])]
    lacking = [key for key in report.new if not family.is_head(key)]
    if wrong or lacking:
        raise UserError(
            f"{report.name} does not fit its configuration: "
            + "; ".join((wrong + [f"{key} is missing" for key in lacking])[:5])
            + (f" and {len(wrong) + len(lacking) - 5} more" if len(wrong) + len(lacking) > 5 else ""),
            "a checkpoint with every weight of the backbone, in its own shape",
            "drop the model.config overrides, or start from --model.weights random",
        )
    return model


def _pretrain_theirs(model: nn.Module, backbone: str, hub: dict, file: str | None) -> Pretraining:
    with readable_errors(backbone), quiet_transformers(progress=not Path(backbone).is_dir()):
        if not Path(backbone).is_dir() and not is_timm(backbone):
            hub = {**hub, "revision": find_weights(backbone, hub["revision"], hub["token"])}
        return pretrain_backbone(model, backbone, hub, file)


def _set_task(config, family: Family, task: str, name: str) -> None:
    if task not in family.tasks:
        raise UserError(f"{name} does not do {task} segmentation", f"a task it does: {', '.join(family.tasks)}",
                        "--task " + family.tasks[0] + (", or a network such as mask2former" if len(family.tasks) < 3
                                                       else ""))
    config.segmentation_task = task


def _set_loss(config, family: Family, loss: dict[str, Any], name: str) -> None:
    for key, value in loss.items():
        if value is None:
            continue
        if key not in family.settings:
            raise UserError(f"loss.{key} is {value}, and {name} has no such setting",
                            ", ".join(f"loss.{one}" for one in family.settings) or "a network with a loss of its own",
                            "leave it out")
        setattr(config, family.settings[key], value)


def _load_tokenizer(model: nn.Module, family: Family, source: str, hub: dict, report: LoadReport) -> None:
    """Networks that read text keep what reads it, as `model.tokenizer`."""
    if family.ask is None:
        return
    try:
        model.tokenizer = AutoTokenizer.from_pretrained(source, **hub)
    except (OSError, ValueError) as error:
        raise UserError(f"{report.name} reads text, and has no tokenizer", "a checkpoint with its tokenizer's files",
                        "start from one, such as shi-labs/oneformer_ade20k_swin_tiny") from error

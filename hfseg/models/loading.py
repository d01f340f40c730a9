"""Load a checkpoint, give it new labels, and say exactly what was loaded, what is new and what was dropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from hfseg.errors import UserError, one_of
from hfseg.labels import LabelSchema
from hfseg.models.backbones import FREEZES_NORMS, HOSTS, is_backbone_type, is_timm, pretrain_backbone
from hfseg.models.configs import auto_class, config_errors, load_config, readable_errors, resolve_name
from hfseg.models.dry_run import dry_run
from hfseg.models.families import Family, family_of
from hfseg.models.hub_files import find_weights
from hfseg.models.networks import architecture_of
from hfseg.models.networks.framework import Pretraining
from hfseg.models.networks.smp import SmpConfig
from hfseg.models.networks.smp_checkpoints import is_smp, load_smp, smp_processor
from hfseg.models.networks.weights import pretrain
from hfseg.models.quiet import quiet_transformers
from hfseg.models.relabelling import relabel, set_labels

ODD_SIZE = (64, 97)


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint.

    Attributes:
        name: Where the checkpoint came from.
        loaded: How many tensors of the network were read from it.
        new: Names of tensors that start from random values.
        dropped: Names of tensors of the checkpoint that the network has no place for.
        kept_classes: Classes whose weights were kept because the checkpoint knows them by name.
        notes: Everything else a user should know, a sentence each.
        backbone_weights: In words, the weights that a backbone under a new head started from.
    """

    name: str
    loaded: int = 0
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept_classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backbone_weights: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.loaded} tensors loaded, {len(self.new)} new, {len(self.dropped)} dropped"]
        lines += [f"  new:     {_grouped(self.new)}"] if self.new and self.loaded else []
        lines += [f"  dropped: {_grouped(self.dropped)}"] if self.dropped else []
        lines += [f"  kept by name: {', '.join(self.kept_classes)}"] if self.kept_classes else []
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def _grouped(names: list[str]) -> str:
    """Returns tensor names as their modules, a few of them."""
    modules = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
    return ", ".join(modules[:6]) + (f" and {len(modules) - 6} more" if len(modules) > 6 else "")


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
    theirs = bool(backbone) and source in HOSTS  # a backbone by name, under a network of transformers
    timms = theirs and is_timm(backbone)
    if backbone_weights is not None and (not (own or timms) or weights == "random"):
        raise UserError(f"model.backbone_weights is set, and {name} with {weights} weights does not read it",
                        "a network of hfseg such as hfseg/unet, or one of transformers on a backbone of timm, with "
                        "weights pretrained", "leave it out")
    if own or source in CONFIG_MAPPING or weights == "random":
        pretrained = weights == "pretrained" and (own or (theirs and not is_backbone_type(backbone)))
        if labels is not None:
            set_labels(model_config, labels)
        for part in (model_config, getattr(model_config, "backbone_config", None)):
            if part is not None:
                part.num_channels = 3 if pretrained else channels
        if timms and family.predicts_masks and (pretrained or source in FREEZES_NORMS):  # for small batches
            model_config.backbone_config.freeze_batch_norm_2d = True
        if family.read is None and (own or theirs):  # an hour of training must not end at an image of another size
            dry_run(name, model_config, ODD_SIZE)
        with config_errors(name), quiet_transformers():
            model = auto_class(family).from_config(model_config).float()
        report.new = list(model.state_dict())
        if pretrained:
            found = (pretrain(model, model_config.backbone, model.load_backbone, backbone_weights) if own
                     else _pretrain_theirs(model, backbone, hub, backbone_weights))
            report.new = [key for key in report.new if family.is_head(key)]
            report.loaded = len(model.state_dict()) - len(report.new)
            weights_of = ("weights of" if theirs and not timms
                          else f"ImageNet weights of {backbone or model_config.backbone} from")
            report.notes.append(f"the backbone has the {weights_of} {found.source}")
            # No path of this machine, since cards repeat it.
            report.backbone_weights = f"{weights_of} {'a file' if backbone_weights else found.source}"
        else:
            report.notes.append("all weights are random")
    else:
        model = _load_weights(source, model_config, family, report, hub)
        if labels is not None:
            model = relabel(model, family, labels, report)
    if channels != _input_channels(model):
        _adapt_channels(model, channels, report)
    processor = _load_processor(source, model_config, hub, report, found)
    _load_tokenizer(model, family, source, hub, report)
    _configure_processor(processor, family, model.config, channels, image_size)
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
            f"{name} is no finished segmentation model: {_grouped(report.new)} would be random",
            "a checkpoint that was fine-tuned for segmentation",
            f"hfseg train --model.name {name} --data.path DATA",
        )
    if config.num_labels < 2 and not family.predicts_masks:
        raise UserError(f"{name} has a single output, which needs a threshold that nobody has stated",
                        "two classes or more", f"hfseg train --model.name {name} gives it two")
    processor = _load_processor(source, config, hub, report, needed=True)
    _load_tokenizer(model, family, source, hub, report)
    _keep_all_pixels(processor)
    if family.keeps_aspect:
        processor.size = _longest(family.input_size(config))
    if (needed := family.input_size(config)) and not getattr(processor, "do_resize", False):
        processor.do_resize, processor.size = True, {"height": needed[0], "width": needed[1]}
        report.notes.append(f"images are resized to {needed[0]} x {needed[1]}, the only size that the network takes")
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


def _load_weights(source: str, config, family: Family, report: LoadReport, hub: dict) -> nn.Module:
    with readable_errors(report.name), quiet_transformers(progress=not Path(source).is_dir()):
        if not Path(source).is_dir():
            hub = {**hub, "revision": find_weights(source, hub["revision"], hub["token"])}
        if _saved_by_smp(source, config, hub):
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


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def _input_channels(model: nn.Module) -> int:
    return _first_convolution(model)[1].in_channels


def _adapt_channels(model: nn.Module, channels: int, report: LoadReport) -> None:
    """Keeps the filters of the known bands, gives further ones their mean, and rescales all: a picture that is the
    same in every band gives the response that it gave before."""
    name, old = _first_convolution(model)
    if old.groups != 1:
        raise UserError(f"{report.name} takes {old.in_channels} bands and cannot be adapted to {channels}")
    was = old.in_channels
    mean = old.weight.detach().mean(1, keepdim=True)
    known = old.weight.detach() if channels > was else mean[:, :0]
    weight = torch.cat([known, mean.expand(-1, channels - known.shape[1], -1, -1)], 1) * (was / channels)
    # In place: it may be a convolution of a library's own kind, which pads by itself.
    old.weight, old.in_channels = nn.Parameter(weight), channels
    for part in (model.config, getattr(model.config, "backbone_config", None), *model.modules()):
        if isinstance(getattr(part, "num_channels", None), int):
            part.num_channels = channels
    model.config.num_channels = channels  # also where a family keeps it in the backbone's configuration alone
    report.notes.append(f"{name} adapted from {was} to {channels} bands")


def _load_processor(source: str, config, hub: dict, report: LoadReport, found: Pretraining | None = None,
                    needed: bool = False):  # fmt: skip
    """The checkpoint's own processor, or one with the normalisation of the backbone's weights; for training,
    SegFormer's where there is none, which the report then says."""
    if _saved_by_smp(source, config, hub):
        processor, note = smp_processor(source, config, hub)
        report.notes.append(note)
        return processor
    processor = getattr(transformers, family_of(config).processor)()
    if found:
        processor.image_mean, processor.image_std = list(found.mean), list(found.std)
        processor.rescale_factor = found.largest / 255
        report.notes.append("images are normalised as those that these weights were trained on: mean "
                            f"{_numbers(found.mean)}, standard deviation {_numbers(found.std)}")
    elif source not in CONFIG_MAPPING and not architecture_of(source):
        with readable_errors(source):
            try:
                return AutoImageProcessor.from_pretrained(source, **hub)
            except (OSError, ValueError):
                if needed:
                    raise
        report.notes.append("it has no image processor: values are scaled and normalised as for ImageNet")
    return processor


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in dict.fromkeys(values))


def _saved_by_smp(source: str, config, hub: dict) -> bool:
    """Whether the files are segmentation-models-pytorch's own."""
    if not isinstance(config, SmpConfig) or architecture_of(source) or source in CONFIG_MAPPING:
        return False
    return is_smp(PreTrainedConfig.get_config_dict(source, revision=hub["revision"], token=hub["token"])[0])


def _keep_all_pixels(processor) -> None:
    """Switches off what would change labels or lose pixels at the border."""
    for name in ("do_reduce_labels", "do_center_crop", "do_split_image"):
        if getattr(processor, name, None) is not None:
            setattr(processor, name, False)


def _longest(size: tuple[int, int]) -> dict[str, int]:
    """The size of images that are resized in proportion until they fit into a square."""
    return {"shortest_edge": min(size), "longest_edge": min(size)}


def _configure_processor(processor, family: Family, config, channels: int, image_size) -> None:
    _keep_all_pixels(processor)
    size = image_size or family.input_size(config)
    if size is None:
        processor.do_resize = False
    else:
        processor.do_resize = True
        if family.keeps_aspect:
            processor.size = _longest(family.input_size(config))
        elif isinstance(size, int):
            # Some processors want a limit, too; no image comes near this one.
            limit = {"longest_edge": 64 * size} if family.predicts_masks else {}
            processor.size = {"shortest_edge": size, **limit}
        else:
            processor.size = {"height": size[0], "width": size[1]}
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if values is not None and len(values) != channels:
            # Bands beyond the pretrained ones get the mean statistics of those that are known.
            mean = sum(values) / len(values)
            setattr(processor, name, [mean] * channels if channels < len(values)
                    else list(values) + [mean] * (channels - len(values)))

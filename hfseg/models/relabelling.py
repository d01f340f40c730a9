"""Other labels for a network: which rows of its classifiers are kept, and which start anew."""

from __future__ import annotations

import torch
from torch import nn

from hfseg.labels import LabelSchema
from hfseg.models.families import Family
from hfseg.models.load_report import LoadReport


def relabel(model: nn.Module, family: Family, labels: LabelSchema, report: LoadReport) -> nn.Module:
    """Gives a network other labels, keeping the weights of classes known by name.

    Args:
        model: The network.
        family: Its record.
        labels: The labels to predict.
        report: What became of its tensors; what is new now is added.

    Returns:
        The network, or another one with its weights.
    """
    return (_rebuilt if family.predicts_masks else _relabelled)(model, family, labels, report)


def set_labels(config, labels: LabelSchema) -> None:
    """Writes labels into a configuration.

    Args:
        config: Of transformers.
        labels: The labels.
    """
    config.id2label, config.label2id = labels.id2label, labels.label2id
    if hasattr(config, "semantic_loss_ignore_index"):
        config.semantic_loss_ignore_index = labels.ignore_index


def _rebuilt(model: nn.Module, family: Family, labels: LabelSchema, report: LoadReport) -> nn.Module:
    """Builds the network anew for other labels; classes known by name keep the rows of their weights.

    A row per class and one for "no object" after them, where there is one, is how all of these classifiers are laid
    out but those of the detectors, which start fresh unless the labels are the same.
    """
    old_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if old_names == list(labels.names):
        set_labels(model.config, labels)
        report.kept_classes = old_names
        return model
    set_labels(model.config, labels)
    fresh = type(model)(model.config).float()
    old, match = model.state_dict(), labels.align(old_names)
    prefixes = tuple(f"{path}." for path in family.classifiers)
    new, kept, rowwise = fresh.state_dict(), {}, set()
    for key, value in old.items():
        if not key.startswith(prefixes):
            if key in new and new[key].shape == value.shape:
                kept[key] = value
        elif len(value) - len(old_names) == len(new[key]) - labels.num_labels in (0, 1):
            rows = new[key].clone()
            for class_id, old_id in enumerate(match):
                if old_id >= 0:
                    rows[class_id] = value[old_id]
            rows[labels.num_labels :] = value[len(old_names) :]
            kept[key] = rows
            rowwise.add(key)
    fresh.load_state_dict(kept, strict=False)
    if rowwise:
        report.kept_classes = [name for name, old_id in zip(labels.names, match) if old_id >= 0]
    left = [name for old_id, name in enumerate(old_names) if old_id not in set(match)]
    if left:
        report.notes.append(f"classes dropped: {', '.join(left[:20])}" + (", ..." if len(left) > 20 else ""))
    whole = len(report.kept_classes) == labels.num_labels
    report.new = sorted({*report.new, *(key for key in new if key not in kept), *(() if whole else rowwise)})
    report.loaded = len(new) - len(report.new)
    return fresh


def _relabelled(model: nn.Module, family: Family, labels: LabelSchema, report: LoadReport) -> nn.Module:
    """Gives the classifiers one output per label, keeping the weights of classes known by name."""
    old_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    fresh = {name.rsplit(".", 1)[0] for name in report.new}
    match = labels.align(old_names)
    set_labels(model.config, labels)
    for path in family.classifiers:
        parent_path, _, leaf = path.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            old = getattr(parent, leaf)
        except AttributeError:
            continue  # the auxiliary head is optional
        if old is None:
            continue
        new = nn.Conv2d(old.in_channels, labels.num_labels, old.kernel_size, old.stride, old.padding,
                        bias=old.bias is not None)
        nn.init.normal_(new.weight, std=getattr(model.config, "initializer_range", 0.02))
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        if path not in fresh:
            with torch.no_grad():
                for class_id, old_id in enumerate(match):
                    if old_id >= 0:
                        new.weight[class_id] = old.weight[old_id]
                        if new.bias is not None:
                            new.bias[class_id] = old.bias[old_id]
            report.kept_classes = [labels.names[i] for i, old_id in enumerate(match) if old_id >= 0]
            left = [name for old_id, name in enumerate(old_names) if old_id not in set(match)]
            if left and f"classes dropped: {', '.join(left)}" not in report.notes:
                report.notes.append(f"classes dropped: {', '.join(left)}")
            if len(report.kept_classes) < labels.num_labels:
                report.new += [f"{path}.{name}" for name, _ in new.named_parameters()]
                report.loaded -= len(list(new.parameters()))
        setattr(parent, leaf, new)
    for module in model.modules():  # transformers' own losses read it
        if isinstance(getattr(module, "num_labels", None), int):
            module.num_labels = labels.num_labels
    return model

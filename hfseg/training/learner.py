"""What learns: the model, which of its weights move and how fast, and what is minimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from hfseg.data import SegmentationData
from hfseg.errors import UserError
from hfseg.evaluation.mask_loss import MaskLoss
from hfseg.hub.card_base import base_facts
from hfseg.metrics.scorers import MAIN_SCORE, SHOWN
from hfseg.models import family_of, load_model
from hfseg.models.families import Family
from hfseg.models.fusing import fuse
from hfseg.objective import ModelLoss, Objective, PixelLoss, build_loss, class_weights
from hfseg.training.optimization import MovingAverage, build_optimizer, l1_penalty
from hfseg.training.setup import Run
from hfseg.transfer import Plan, plan_transfer


@dataclass
class Learner:
    """A model with all that its training needs.

    Args:
        model: The network, unwrapped.
        processor: Its image processor.
        family: Its record.
        base: What the card says about the weights that it started from.
        plan: Which weights move, when and how fast.
        validation: The loss of logits and labels, or that of a network which computes its own; None where such a
            network is scored in tiles or views.
        minimised: The loss of a batch.
        network: The model, as wrapped for training.
        optimizer: Of the plan's weights.
        average: The moving average of the weights, if there is one.
        l1: Strength of the L1 penalty.
    """

    model: nn.Module
    processor: Any
    family: Family
    base: dict
    plan: Plan
    validation: Objective | MaskLoss | None
    minimised: PixelLoss | ModelLoss
    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    l1: float

    def loss(self, pixel_values: torch.Tensor, batch: dict) -> torch.Tensor:
        """Computes what is minimised on a batch.

        Args:
            pixel_values: (B, C, H, W), on the device.
            batch: As the loader gives it.

        Returns:
            A scalar.
        """
        return self.minimised(self.network, pixel_values, batch) + l1_penalty(self.plan.groups, self.l1)


def build_learner(run: Run, data: SegmentationData, counts: np.ndarray | None) -> Learner:
    """Loads the model of a recipe, and makes it ready to train.

    Args:
        run: The run.
        data: The data.
        counts: Pixels per class, where the recipe needs them.

    Returns:
        The learner.

    Raises:
        UserError: When the model cannot be had, or cannot do what the recipe asks for.
    """
    recipe, config, schema = run.recipe, run.recipe.train, data.schema
    model, processor = _load(run, data)
    family = family_of(model.config)
    from_scratch = len(model.load_report.new) == len(model.state_dict())
    base = _base(run, model, from_scratch)
    plan = plan_transfer(
        model, family, recipe.transfer.strategy, config.learning_rate,
        1.0 if from_scratch else recipe.transfer.head_learning_rate_factor, config.weight_decay,
        stages=recipe.transfer.stages, head_steps=recipe.transfer.head_steps,
    )  # fmt: skip
    run.say(plan.table())
    weights = class_weights(recipe.loss.class_weights, counts, schema.names)
    objective = None if family.predicts_masks else build_loss(
        recipe.loss, schema.num_labels, schema.ignore_index, weights).to(run.device)
    _settle_memory_and_speed(run, model, family)
    auxiliary = capture_auxiliary_head(model)
    average = MovingAverage(model.to(run.device), config.ema) if config.ema else None
    run.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=(
        family.unused_parameters or plan.switches))
    network, optimizer = run.accelerator.prepare(model, build_optimizer(plan.groups, config))
    if objective is None and recipe.eval.metric == "loss" and (recipe.eval.tile or recipe.eval.tta):
        raise UserError(f"eval.metric is loss, which {family.model_type} has of whole images alone",
                        ", ".join(SHOWN[recipe.task]), f"--eval.metric {MAIN_SCORE[recipe.task]}, or no eval.tile and "
                        "eval.tta")
    minimised = PixelLoss(objective, model, auxiliary) if objective else ModelLoss(family, model, recipe.task, schema)
    validation = objective
    if isinstance(minimised, ModelLoss):
        whole = not (recipe.eval.tile or recipe.eval.tta)
        validation = MaskLoss(minimised, schema.ignore_index) if whole else None
    return Learner(model, processor, family, base, plan, validation, minimised, network, optimizer, average, config.l1)


def _load(run: Run, data: SegmentationData) -> tuple[nn.Module, Any]:
    recipe = run.recipe
    model, processor = load_model(
        recipe.model.name, labels=data.schema, revision=recipe.model.revision, weights=recipe.model.weights,
        backbone=recipe.model.backbone, backbone_weights=recipe.model.backbone_weights,
        config=recipe.model.config, channels=data.channels, image_size=recipe.data.image_size,
        trust_remote_code=recipe.model.trust_remote_code, task=recipe.task,
        loss={"no_object_weight": recipe.loss.no_object_weight, "num_points": recipe.loss.num_points},
    )  # fmt: skip
    model.config.segmentation_tile = recipe.eval.tile  # whoever uses the weights gets what was scored
    run.say(str(model.load_report))
    if recipe.model.fuse and (report := fuse(model).fuse_report):
        run.say(str(report))
    return model, processor


def _base(run: Run, model: nn.Module, from_scratch: bool) -> dict:
    """What the card says about the weights that training starts from."""
    if run.main and (started := model.load_report.backbone_weights):
        return {"backbone_weights": started}
    if run.main and not from_scratch:
        return base_facts(run.recipe.model.name, run.recipe.model.revision)
    return {}


def _settle_memory_and_speed(run: Run, model: nn.Module, family: Family) -> None:
    config = run.recipe.train
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"{family.model_type} cannot trade time for memory", fix="leave gradient_checkpointing out")
        model.gradient_checkpointing_enable()
    if config.compile:
        model.compile()


def capture_auxiliary_head(model: nn.Module) -> list[torch.Tensor]:
    """Collects the logits of an auxiliary head, which transformers computes and does not return.

    Args:
        model: The network.

    Returns:
        A list that each forward pass in training mode appends to; clear it before.
    """
    captured: list[torch.Tensor] = []
    head = getattr(model, "auxiliary_head", None)
    if head is not None:  # a hook that returned something would replace the output
        head.register_forward_hook(lambda module, inputs, output: captured.append(output) if module.training else None)
    return captured

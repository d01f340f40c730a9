"""The validation loss of networks that compute their own: that of each image, whatever the batches."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_mask_families import by_heart

import hfseg
from hfseg.data import load_data
from hfseg.data.images import Sample
from hfseg.data.preparation import MaskTargets
from hfseg.evaluation import Evaluator
from hfseg.evaluation.mask_loss import MaskLoss, _learning, drawn
from hfseg.models import family_of, load_model
from hfseg.objective import ModelLoss
from mask_networks import CONFIGS, checkpoint


class Several:
    """Scenes of three sizes, one of them without an object, as the evaluator's split."""

    def __init__(self, data):
        self.data, self.name, self.to_model, self.skipped = data, "validation", None, []
        self.ignore_index, self.schema, self.channels = data.schema.ignore_index, data.schema, 3

    def reference(self, sample):
        return sample.semantic_map

    def share(self, rank, world, verbose):
        for i in range(rank, 6, world):
            sample = self.data.read("validation", i)
            height, width = [(64, 64), (64, 64), (50, 96)][i // 2]
            image, semantic = sample.image[:height, :width].copy(), sample.semantic_map[:height, :width].copy()
            segments = sample.segments and sample.segments.transformed(lambda layer, h=height, w=width: layer[:h, :w])
            if i == 3 and segments:
                segments = segments.transformed(lambda layer: 0 * layer)
            if segments and i == 2:
                segments.crowd[:1] = True
            yield i, Sample(image, semantic, f"{i}", segments)


def made(name, folder, task="instance"):
    data = load_data("shapes", task=task, scenes=6)
    torch.manual_seed(1)
    more = {} if name == "oneformer" else {"config": CONFIGS[name], "weights": "random"}
    more |= {"backbone": "resnet18"} if name.startswith("hfseg/") else {}
    model, processor = load_model(checkpoint(name, folder / "checkpoint"), labels=data.schema, task=task,
                                  image_size=(64, 64), **more)
    return data, model, processor


def scored(data, model, processor, task, batch_size, objective):
    evaluator = Evaluator(data, "validation", batch_size=batch_size)
    evaluator.split = Several(data)
    things = [i for i, thing in enumerate(data.schema.is_thing) if thing]
    found = evaluator.run(hfseg.Segmenter(model, processor, task=task, things=things), objective=objective,
                          verbose=False)
    return found


@pytest.mark.parametrize(("name", "task"), [*((name, "instance") for name in CONFIGS), ("mask2former", "panoptic"),
                                            ("mask2former", "semantic")])
def test_the_loss_is_that_of_each_image(name, task, tmp_path, monkeypatch):
    monkeypatch.setattr("hfseg.evaluation.evaluator.protocol", lambda *_: {})
    data, model, processor = made(name, tmp_path, task)
    family = family_of(model.config)
    training = ModelLoss(family, model, task, data.schema)
    targets = MaskTargets(task, data.schema.is_thing, data.schema.ignore_index)
    model.train()
    modes = [module.training for module in model.modules()]
    segmenter = hfseg.Segmenter(model, processor, task=task)
    expected = []
    for number, sample in Several(data).share(0, 1, False):  # each image alone, as in training
        found = targets(torch.from_numpy(sample.semantic_map), sample.segments)
        pixels = segmenter._pixel_values([sample.image])
        size = pixels.shape[-2:]
        masks, classes = found["masks"], found["classes"]
        if len(masks) and masks.shape[-2:] != size:
            masks = torch.nn.functional.interpolate(masks[None].float(), size, mode="nearest-exact")[0].bool()
            masks, classes = masks[masks.any((1, 2))], classes[masks.any((1, 2))]
        masks = masks if len(masks) else torch.zeros(0, *size, dtype=torch.bool)
        padded, _ = segmenter._pad(pixels)
        beyond = (0, padded.shape[-1] - size[1], 0, padded.shape[-2] - size[0])
        with torch.no_grad(), drawn(number, pixels.device):
            model.eval()
            with _learning(model) if family.losses_apart else nullcontext():
                loss = training.given(model, padded, [torch.nn.functional.pad(masks, beyond)], [classes]).loss
            model.train()
        expected.append(float(loss))
    objective = MaskLoss(training, data.schema.ignore_index)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    state = torch.get_rng_state()
    one, four = (scored(data, model, processor, task, size, objective) for size in (1, 4))
    if not name.startswith("eomt"):  # which draws queries in its own forward pass
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    assert modes == [module.training for module in model.modules()]
    assert one["loss"] == pytest.approx(np.mean(expected), rel=2e-3) and one["loss"] > 0
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)
    plain = scored(data, model, processor, task, 4, None)
    assert plain["loss"] is None
    for key, value in plain.items():  # the same predictions, with a loss or without
        if isinstance(value, float):
            assert four[key] == pytest.approx(value, abs=1e-6), key


def test_a_run_can_choose_by_its_loss_and_stop(tmp_path):
    recipe = by_heart("mask2former", tmp_path, max_steps=12)
    recipe.eval.metric, recipe.eval.eval_steps, recipe.train.early_stopping = "loss", 2, 3
    results = hfseg.train(recipe, verbose=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    evals = [line["eval"]["loss"] for line in lines if "eval" in line]
    assert len(evals) > 1 and all(value > 0 for value in evals)
    assert results["loss"] == min(evals)

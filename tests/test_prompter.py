"""Masks from clicks and boxes: equal to what transformers' own processors and models give, with one encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskGeneration, AutoProcessor

import hfseg
from hfseg.errors import UserError

from promptable import KINDS, tiny  # isort: skip

IMAGE = np.random.default_rng(0).integers(0, 255, (45, 70, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_transformers(kind, tmp_path):
    folder = tiny(kind, tmp_path)
    prompter = hfseg.Prompter.from_pretrained(folder)
    encoded = prompter.encode(IMAGE)
    model, processor = AutoModelForMaskGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    for points, labels, box in (([(20, 30)], [1], None), ([(20, 30), (60, 5)], [1, 0], None), ([], [], (5, 6, 40, 41))):
        prompts = {"input_points": [[[list(point) for point in points]]], "input_labels": [[labels]]} if points else {}
        if kind == "sam" and points:
            prompts = {"input_points": [[list(point) for point in points]], "input_labels": [labels]}
        if box:
            prompts["input_boxes"] = [[list(box)]]
        inputs = processor(images=IMAGE, return_tensors="pt", **prompts)
        with torch.no_grad():
            outputs = model(**{name: value for name, value in inputs.items() if not name.endswith("sizes")},
                            multimask_output=len(points) == 1)
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        best = int(outputs.iou_scores[0, 0].argmax())
        expected = processor.post_process_masks(outputs.pred_masks, *sizes)[0][0, best].numpy()
        mask, score = prompter.predict(encoded, points, labels, box)
        assert mask.shape == (45, 70) and mask.dtype == bool
        assert (mask == expected).mean() > 0.999
        assert score == pytest.approx(float(outputs.iou_scores[0, 0, best]), abs=1e-5)


def test_the_image_is_encoded_once(tmp_path):
    prompter = hfseg.Prompter.from_pretrained(tiny("sam2", tmp_path))
    count = []
    prompter.model.vision_encoder.register_forward_hook(lambda *_: count.append(1))
    encoded = prompter.encode(IMAGE)
    for x in (5, 50):
        prompter.predict(encoded, [(x, 20)])
    assert len(count) == 1


@pytest.mark.parametrize("prompt", [
    {}, {"points": [(1, 2, 3)]}, {"points": [(-1, 2)]}, {"points": [(71, 2)]}, {"points": [(1, 2)], "labels": [2]},
    {"points": [(1, 2)], "labels": []}, {"box": (5, 5, 5, 9)}, {"box": (1, 2, 3)}, {"points": [(float("nan"), 2)]},
])  # fmt: skip
def test_prompts_that_cannot_be(prompt, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "tiny-sam2"
    prompter = hfseg.Prompter.from_pretrained(folder if folder.is_dir() else tiny("sam2", folder))
    with pytest.raises(UserError):
        prompter.predict(prompter.encode(IMAGE), **prompt)


def test_a_model_that_takes_no_clicks_is_refused():
    with pytest.raises(UserError, match="takes no clicks"):
        hfseg.Prompter.from_pretrained("hfseg/shapes-segformer")

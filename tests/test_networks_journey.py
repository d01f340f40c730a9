"""A network of hfseg's own from the command line to another process."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hfseg import Segmenter
from runs import environment, hfseg

CODE = """
import sys, logging, numpy as np, torch
torch.set_num_threads(1)
import hfseg.auto
libraries = {"timm", "segmentation_models_pytorch"} & set(sys.modules)
assert not libraries, libraries  # registration builds nothing, and imports nothing that builds
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, image = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
with torch.inference_mode():
    logits = model(**processor(np.load(image), return_tensors="pt")).logits
np.save(image + ".logits.npy", logits.numpy())
from PIL import Image
segments = pipeline("image-segmentation", folder)(Image.fromarray(np.load(image)))
print("SEGMENTS", sorted(segment["label"] for segment in segments), segments[0]["mask"].size)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journey") / "run"
    printed = hfseg(
        "train", "--model.name", "hfseg/unet", "--model.backbone", "test_efficientnet", "--model.weights", "random",
        "--model.config", '{"options": {"decoder_channels": [16, 16, 8, 8, 8]}}', "--data.path", "shapes/target",
        "--data.max_train_samples", "16", "--data.max_eval_samples", "4", "--train.max_steps", "20",
        "--train.learning_rate", "3e-3", "--eval.eval_steps", "20", "--augment.crop_size", "64",
        "--output_dir", folder,
    )  # fmt: skip
    assert "all weights are random" in printed
    return folder


def test_trained_evaluated_predicted(run, tmp_path):
    results = json.loads((run / "eval_results.json").read_text())
    hfseg("evaluate", run, "--data", "shapes/target", "--limit", 4, "--output", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["mean_iou"] == pytest.approx(results["mean_iou"], abs=1e-6)
    Image.fromarray(np.zeros((45, 70, 3), np.uint8)).save(tmp_path / "image.png")
    hfseg("predict", run, tmp_path / "image.png", "--output", tmp_path / "out")
    assert Image.open(tmp_path / "out/image_semantic_map.png").size == (70, 45)
    assert "hfseg/unet" in (run / "README.md").read_text()


def test_another_process_loads_it_with_the_auto_classes_and_a_pipeline(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    done = subprocess.run([sys.executable, "-c", CODE, run, tmp_path / "image.npy"], env=environment(),
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SEGMENTS" in done.stdout and "(70, 50)" in done.stdout
    assert "not supported" not in done.stderr
    segmenter = Segmenter.from_pretrained(run)
    mine = segmenter.logits([image]).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "image.npy.logits.npy"), mine, atol=1e-4 * np.abs(mine).max())


def test_a_backbone_that_is_not_there_is_refused_with_the_nearest_name(tmp_path):
    printed = hfseg("train", "--model.name", "hfseg/unet", "--model.backbone", "resnet188", "--data.path",
                    "shapes/target", "--output_dir", tmp_path / "run", status=2)
    assert "did you mean resnet18" in printed and "Traceback" not in printed


def test_resuming_with_another_backbone_is_refused(run):
    printed = hfseg("train", "--config", run / "recipe.yaml", "--train.resume", "true", "--train.max_steps", "21",
                    "--model.backbone", "test_resnet", status=2)  # fmt: skip
    assert "does not fit" in printed

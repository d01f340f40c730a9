"""A network of hfseg's own from the command line to another process."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_networks import CASES
from transformers import pipeline

from hfseg import LocalHub, Segmenter, train
from hfseg.errors import UserError
from hfseg.recipe_reading import load_recipe
from runs import environment, here, small_recipe

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
    printed = here(
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
    here("evaluate", run, "--data", "shapes/target", "--limit", 4, "--output", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["mean_iou"] == pytest.approx(results["mean_iou"], abs=1e-6)
    Image.fromarray(np.zeros((45, 70, 3), np.uint8)).save(tmp_path / "image.png")
    here("predict", run, tmp_path / "image.png", "--output", tmp_path / "out")
    assert Image.open(tmp_path / "out/image_semantic_map.png").size == (70, 45)


def test_the_card_s_code_runs_with_hfseg_and_with_the_auto_classes(run, tmp_path, monkeypatch):
    text = (run / "README.md").read_text()
    assert "A U-Net (backbone `test_efficientnet`) model" in text and "trained from random weights" in text
    ours, auto = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (45, 70, 3), np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / run.name).symlink_to(run)
    exec(ours, space := {})
    exec(auto, other := {})
    assert (space["result"].semantic_map == other["semantic_map"].numpy()).mean() > 0.999


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


@pytest.mark.parametrize("name", ["fcn", "segnet", "hrnet", "dpt", "pspnet"])
def test_every_kind_of_network_goes_through_the_loop_and_the_evaluator(name, tmp_path):
    """Crops that no stride divides, an auxiliary head, features that no decoder reads."""
    CASES[name].write(tmp_path / "checkpoint")
    recipe = small_recipe(tmp_path / "run", max_steps=2, per_device_train_batch_size=2)
    recipe.model.name, recipe.model.config = str(tmp_path / "checkpoint"), {}
    recipe.data.image_size, recipe.augment.crop_size = (60, 76), (60, 76)
    assert train(recipe, verbose=False)["loss"] > 0
    segmenter = Segmenter.from_pretrained(tmp_path / "run", tile=32 if name == "fcn" else None, tta="horizontal_flip")
    assert segmenter(np.zeros((50, 90, 3), np.uint8)).semantic_map.shape == (50, 90)
    segments = pipeline("image-segmentation", str(tmp_path / "run"))(Image.new("RGB", (90, 50)))
    assert {segment["mask"].size for segment in segments} == {(90, 50)}


def test_resuming_with_another_backbone_is_refused(run):
    recipe = load_recipe(str(run / "recipe.yaml"))
    recipe.train.resume, recipe.train.max_steps, recipe.model.backbone = True, 21, "test_resnet"
    with pytest.raises(UserError, match="does not fit"):
        train(recipe, verbose=False)


def test_a_checkpoint_of_the_library_comes_from_a_hub(tmp_path):
    import segmentation_models_pytorch as smp

    smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=[16, 16, 8, 8, 8]).save_pretrained(
        tmp_path / "smp")
    code = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("me/unet")
HfApi().upload_folder(repo_id="me/unet", folder_path=sys.argv[1])
import numpy, hfseg
print(hfseg.Segmenter.from_pretrained("me/unet")(numpy.zeros((40, 50, 3), numpy.uint8)).semantic_map.shape)
"""
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.create_token("me")
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "smp"], capture_output=True, text=True,
                              env={**environment(), **hub.environment(token), "HF_HOME": str(tmp_path / "home")})
    assert "(40, 50)" in done.stdout, done.stderr

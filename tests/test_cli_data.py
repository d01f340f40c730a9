"""The commands on data of every kind: good, odd, broken and real."""

from __future__ import annotations

import json
import multiprocessing
import shutil

import numpy as np
import pytest
from PIL import Image

from command_line import NAMES, SHORT, TINY_MODEL, fingerprints, train, write_folder, write_modes
from hfseg.recipe_reading import load_recipe

from command_line import folder_fixture, hfseg_fixture, refused_fixture, run_fixture  # isort: skip  # noqa: F401


# -- data that is wrong -------------------------------------------------------------------------------------


def spoil_truncated(root):
    file = root / "train/images/p1.png"
    file.write_bytes(file.read_bytes()[:900])


def spoil_rgb(root):
    for file in root.glob("*/masks/*"):
        ids = np.asarray(Image.open(file))
        Image.fromarray(np.stack([ids * 80, ids, ids], -1)).save(file)


def spoil_values(root):
    Image.fromarray(np.full((40, 48), 77, np.uint8)).save(root / "train/masks/p1.png")


def empty_split(root):
    for file in root.glob("val/*/*"):
        file.unlink()


SPOILED = {
    "truncated image": (spoil_truncated, ("images/p1.png", "truncated", "restore the file"), True),
    "zero-byte image": (lambda r: (r / "train/images/p1.png").write_bytes(b""), ("images/p1.png", "0 bytes"), True),
    "zero-byte map": (lambda r: (r / "val/masks/p1.png").write_bytes(b""), ("val/masks/p1.png", "0 bytes"), True),
    "no image at all": (lambda r: (r / "train/images/p1.png").write_text("hi"), ("p1.png", "not an image"), True),
    "different sizes": (lambda r: Image.new("L", (30, 30)).save(r / "train/masks/p1.png"),
                        ("p1.png", "48 x 40", "30 x 30", "nearest"), True),
    "unknown values": (spoil_values, ("masks/p1.png", "77 (100 % of it)", "--data.labels.ignore_index 77"), True),
    "colours, no palette": (spoil_rgb, ("no palette", "data.labels.palette"), False),
    "no map": (lambda r: (r / "train/masks/p1.png").unlink(), ("images/p1.png", "no label map", "skip"), True),
    "no photo": (lambda r: (r / "train/images/p1.png").unlink(), ("masks/p1.png", "no image", "skip"), True),
    "empty split": (empty_split, ("split 'validation' is empty", "remove it"), False),
    "no training split": (lambda r: shutil.rmtree(r / "train"), ("no training split", "--data.train_split"), False),
    "no data": (lambda r: [shutil.rmtree(r / s) for s in ("train", "val")], ("holds no images", "images/split"), False),
    "broken names": (lambda r: (r / "classes.json").write_text("{"), ("classes.json cannot be read",), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_bad_data_gives_one_message_and_skip_goes_on(hfseg, refused, folder, tmp_path, kind):
    spoil, words, skippable = SPOILED[kind]
    spoil(folder)
    before = fingerprints(folder)
    message = refused(*train(folder, tmp_path / "run"))
    assert all(word in message for word in words), message
    assert not (tmp_path / "run" / "model.safetensors").exists()
    if skippable:  # the same folder again: what failed left nothing that is in the way
        steps = ("--train.max_steps", "3", "--eval.eval_steps", "3")
        status, text, _ = hfseg(*train(folder, tmp_path / "run", "--data.on_bad_sample", "skip", *steps))
        assert status == 0 and (tmp_path / "run" / "model.safetensors").exists()
        assert "p1.png" in text or kind == "zero-byte map"  # reported
    assert fingerprints(folder) == before


def test_a_bad_sample_that_a_worker_meets_gives_the_same_message(refused, folder, tmp_path):
    (folder / "train/images/p1.png").write_bytes(b"")
    assert "images/p1.png: the file is empty" in refused(*train(folder, tmp_path / "run", "--data.num_workers", 1))
    assert not multiprocessing.active_children()


def test_one_image_can_be_learnt_by_heart(hfseg, refused, tmp_path):
    write_folder(tmp_path / "data", count=1, splits=("train",))
    assert "--train.overfit" in refused(*train(tmp_path / "data", tmp_path / "run"))
    assert hfseg(*train(tmp_path / "data", tmp_path / "run", "--train.overfit", 1))[0] == 0


def test_images_smaller_than_the_crop_and_than_any_network_takes(hfseg, refused, tmp_path):
    write_folder(tmp_path / "data", size=(20, 24))
    assert hfseg(*train(tmp_path / "data", tmp_path / "a", "--augment.crop_size", 64))[0] == 0
    assert hfseg(*train(tmp_path / "data", tmp_path / "b"))[0] == 0
    assert "too small" in refused(*train(tmp_path / "data", tmp_path / "c", "--augment.crop_size", 20))


def test_images_of_all_kinds_simply_work(hfseg, run, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "data" / split / "masks").mkdir(parents=True)
        count = write_modes(tmp_path / "data" / split / "images")
        for file in (tmp_path / "data" / split / "images").iterdir():
            Image.new("L", (48, 40), 1).save(tmp_path / "data" / split / "masks" / f"{file.stem}.png")
    (tmp_path / "data/classes.json").write_text(json.dumps({"names": NAMES}))
    status, text, _ = hfseg(*train(tmp_path / "data", tmp_path / "run", "--train.max_steps", 6, "--eval.eval_steps", 6))
    assert status == 0 and "skipped" not in text
    status, text, _ = hfseg("predict", run, tmp_path / "data/val/images", "--output", tmp_path / "out")
    assert status == 0 and f"{count} of {count} images" in text
    for file in (tmp_path / "out").glob("*_semantic_map.png"):
        assert Image.open(file).size == (48, 40), file  # upright, at its own size


def test_maps_that_say_nothing(hfseg, run, folder, tmp_path):
    for file in folder.glob("*/masks/*"):
        Image.new("L", (48, 40), 255).save(file)
    assert hfseg(*train(folder, tmp_path / "run"))[0] == 0
    _, text, _ = hfseg("evaluate", run, "--data", folder)
    assert "absent" in text and "nan" not in text.lower()


# -- what the commands do -----------------------------------------------------------------------------------


def test_init_writes_a_recipe_that_trains(hfseg, folder, tmp_path):
    status, text, errors = hfseg("init", folder)
    assert status == 0 and not errors and "ground" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "recipe.yaml")).data.path == str(folder)
    output = ("--output_dir", tmp_path / "run")
    assert hfseg("train", "--config", tmp_path / "recipe.yaml", *TINY_MODEL, *SHORT, *output)[0] == 0


# -- the real sets ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "name"), [
    ("camvid_segformer_b0", "camvid"), ("camvid_segformer_small", "camvid"), ("isbi_membranes", "isbi2012_em"),
    ("crackforest", "crackforest"), ("dubai_aerial", "dubai_aerial"),
])  # fmt: skip
def test_the_real_sets_run_from_their_recipes(hfseg, shared_data, tmp_path, recipe, name):
    run, data = tmp_path / "run", shared_data / name
    few = ("--train.max_steps", 4, "--eval.eval_steps", 2, "--train.logging_steps", 1, "--data.max_eval_samples", 4)
    status, text, _ = hfseg("train", "--config", recipe, "--data.path", data, *TINY_MODEL, *few, "--eval.samples", 2,
                            "--augment.crop_size", 128, "--data.num_workers", 0, "--output_dir", run)  # fmt: skip
    assert status == 0 and "stored" in text
    results = json.loads((run / "eval_results.json").read_text())
    names = json.loads((data / "classes.json").read_text())["names"]
    assert set(results["per_category_iou"]) <= set(names) and len(results["per_category_iou"]) > 1
    assert np.isfinite([results["mean_iou"], results["overall_accuracy"], results["loss"]]).all()
    assert results["num_images"] == 4 and len(list((run / "samples").glob("*.png"))) == 2
    losses = [json.loads(line).get("loss", 0.0) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    status, text, _ = hfseg("evaluate", run, "--data", data, "--limit", 4)
    assert status == 0 and f"{results['mean_iou']:.4f}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid", "isbi2012_em", "crackforest", "dubai_aerial"])
def test_init_fits_the_real_sets(hfseg, shared_data, tmp_path, name):
    status, text, _ = hfseg("init", shared_data / name)
    assert status == 0
    (tmp_path / "recipe.yaml").write_text(text)
    few = ("--data.max_eval_samples", 2, "--output_dir", tmp_path / "run")
    assert hfseg("train", "--config", tmp_path / "recipe.yaml", *TINY_MODEL, *SHORT, *few)[0] == 0


def test_init_without_a_training_split(hfseg, tmp_path):
    write_folder(tmp_path / "d", splits=("val",))
    status, output, _ = hfseg("init", tmp_path / "d")
    assert status == 0 and "There is no training split here, only validation" in output

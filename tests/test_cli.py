"""The command line as people meet it: every command, and a message instead of a traceback for all they can mend."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from command_line import NAMES, TINY_MODEL, fingerprints, train, write_folder
from hfseg.cli import COMMANDS, main
from hfseg.errors import UserError
from hfseg.recipe_reading import field_names, load_recipe
from runs import environment

from command_line import folder_fixture, hfseg_fixture, refused_fixture, run_fixture  # isort: skip  # noqa: F401


# -- help ---------------------------------------------------------------------------------------------------


def test_help_and_import_are_light():
    code = """
import sys, time
start = time.perf_counter()
import hfseg
assert time.perf_counter() - start < 0.5
from hfseg.cli import main
commands = ["quickstart", "init", "preview", "train", "evaluate", "predict"]
for arguments in [["--help"], [], *([command, "--help"] for command in commands)]:
    assert main(arguments) == 0
heavy = {"torch", "transformers", "datasets", "accelerate", "evaluate", "matplotlib", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_names_every_command_and_every_field(hfseg):
    status, text, _ = hfseg("--help")
    assert status == 0 and all(f"hfseg {name} " in text for name in COMMANDS)
    _, text, _ = hfseg("train", "--help")
    assert all(f"--{name} " in text for name in field_names())
    assert text.index("usage") < text.index("options") < 400  # not a hundred lines of usage
    for name in COMMANDS:
        status, text, errors = hfseg(name, "--help")
        assert status == 0 and f"hfseg {name}" in text and not errors


def test_the_version(hfseg):
    import hfseg as package

    assert hfseg("--version") == (0, package.__version__ + "\n", "")


def test_debug_shows_the_traceback():
    with pytest.raises(UserError):
        main(["train", "--data.path", "/nowhere/at/all", "--debug"])


# -- commands and recipes that are wrong --------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "found", "mend"), [
    ("trian", "unknown command 'trian'", "did you mean 'train'?"),
    ("train positional", "positional", "--help"),
    ("train --train.max_step 3", "no field 'train.max_step'", "did you mean train.max_steps?"),
    ("train --max_steps 3", "no field 'max_steps'", "did you mean train.max_steps?"),
    ("train --train.max_steps many", "train.max_steps is 'many'", "allowed: int"),
    ("train --train.max_steps", "--train.max_steps: expected one argument", "--help"),
    ("train --data.streaming maybe", "data.streaming is 'maybe'", "allowed: bool"),
    ("train --augment.preset segfomer", "augment.preset is 'segfomer'", "did you mean segformer?"),
    ("train --eval.metric miou", "eval.metric is 'miou'", "did you mean mean_iou?"),
    ("train --data.image_size [1,2,3]", "data.image_size is '[1, 2, 3]'", "tuple[int, int]"),
    ("train --train.learning_rate -1", "train.learning_rate is -1.0", "a number above 0"),
    ("train --eval.samples -1", "eval.samples is -1", "0 or more"),
    ("train --config nope", "unknown recipe 'nope'", "crackforest"),
    ("train --config crackforst", "unknown recipe 'crackforst'", "did you mean 'crackforest'?"),
    ("train --config runs/nope.yaml", "there is no recipe runs/nope.yaml", "crackforest"),
    ("evaluate some/model", "required: --data", "hfseg evaluate --help"),
    ("evaluate some/model --data x --limit 0", "no whole number above 0", "hfseg evaluate --help"),
    ("evaluate some/model --data x --train.max_steps 3", "takes no --train.max_steps", "--data.*"),
    ("train --eval.tile 100", "eval.tile is 100", "a multiple of 32"),
    ("train --eval.tta [flip]", "eval.tta holds 'flip'", "horizontal_flip, vertical_flip"),
    ("evaluate some/model --data x --tile big", "--tile: invalid int value: 'big'", "hfseg evaluate --help"),
    ("predict some/model", "required: IMAGE, --output", "hfseg predict --help"),
    ("predict some/model nope.png --output out", "no image found at nope.png", "a glob"),
    ("init shapes --limit x", "'x' is no whole number", "hfseg init --help"),
    ("init shapes --data.lables.binary true", "no field 'data.lables.binary'", "did you mean data.labels.binary?"),
    ("preview --output picture", "--output picture is no PNG", ".png"),
    ("init shapes --limt 3", "hfseg init takes no --limt", "did you mean --limit?"),
    ("models --max_gflop 3", "hfseg models takes no --max_gflop", "did you mean --max_gflops?"),
    ("models unet fpn", "hfseg models takes no fpn", "allowed: --help, --backbone"),
    ("models --max_gflops -1", "--max_gflops: '-1' is no number above 0", "hfseg models --help"),
    ("models --max_parameters many", "'many' is no number above 0", "hfseg models --help"),
    ("models --task instances", "invalid choice: 'instances'", "hfseg models --help"),
    ("pull me/roads --local_dri x", "hfseg pull takes no --local_dri", "did you mean --local_dir?"),
])  # fmt: skip
def test_a_wrong_command_line(refused, arguments, found, mend):
    message = refused(*arguments.split())
    assert found in message and mend in message


@pytest.mark.parametrize(("text", "found", "mend"), [
    ("train:\n  max_step: 3", "no field 'train.max_step'", "did you mean train.max_steps?"),
    ("data:\n  labels:\n    reduce: true", "no field 'data.labels.reduce'", "data.labels.reduce_labels?"),
    ("learning_rate: 3", "no field 'learning_rate'", "did you mean train.learning_rate?"),
    ("train: 5", "train is 5", "fields such as train."),
    ("train:", "train is empty", "leave it out"),
    ("", "the recipe is empty", "model.name"),
    ("- 1", "the recipe is [1]", "model.name"),
    ("train:\n\tmax_steps: 3", "cannot be read as a recipe", "line 2"),
    ("train: {max_steps: many}", "train.max_steps is 'many'", "allowed: int"),
    ("train: {mixed_precision: no}", "train.mixed_precision is 'False'", "fp32, fp16, bf16"),
])  # fmt: skip
def test_a_wrong_recipe_file(refused, tmp_path, text, found, mend):
    (tmp_path / "recipe.yaml").write_text(text)
    message = refused("train", "--config", tmp_path / "recipe.yaml")
    assert found in message and mend in message
    assert "recipe.yaml" in message or "is '" in message


def test_a_recipe_that_is_no_text(refused, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    assert "recipe.yaml cannot be read" in refused("train", "--config", tmp_path / "recipe.yaml")


def test_a_recipe_is_read_without_leaving_the_working_directory(tmp_path, monkeypatch):
    """A push reads one in a thread, while the training writes to relative paths."""
    (tmp_path / "recipe.yaml").write_text("---\ntrain:\n  max_steps: 3\n")
    monkeypatch.setattr("os.chdir", None)
    assert load_recipe(str(tmp_path / "recipe.yaml")).train.max_steps == 3


def test_tiles_and_views_of_a_recipe(tmp_path):
    from hfseg.recipe import to_yaml

    recipe = load_recipe(None, ["--eval.tile", "512", "--eval.tta", "[horizontal_flip, 0.75]"])
    assert (recipe.eval.tile, recipe.eval.tta) == (512, ["horizontal_flip", 0.75])
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe


def test_flags_win_over_the_file_wherever_they_stand(hfseg, folder, tmp_path):
    (tmp_path / "r.yaml").write_text(f"data: {{path: {folder}}}\nseed: 7\ntrain: {{max_steps: 9, logging_steps: 1}}\n")
    arguments = train(folder, tmp_path / "run")
    assert hfseg(*arguments, "--config", tmp_path / "r.yaml")[0] == 0
    recipe = load_recipe(str(tmp_path / "run"))
    assert (recipe.train.max_steps, recipe.train.logging_steps, recipe.seed) == (1, 1, 7)


# -- places that cannot be written, and machines without a network -------------------------------------------


def test_nothing_is_overwritten_and_the_way_on_is_named(refused, run, folder):
    before = fingerprints(run)
    message = refused(*train(folder, run))
    assert "holds another run" in message and f"hfseg train --config {run}/recipe.yaml --train.resume true" in message
    assert fingerprints(run) == before


@pytest.mark.parametrize("place", ["/proc/here", "FILE/here"])
def test_places_that_cannot_be_written_are_told_before_the_work(refused, run, folder, tmp_path, place):
    (tmp_path / "FILE").write_text("mine")
    place = place.replace("FILE", str(tmp_path / "FILE"))
    for arguments in (
        train(folder, place),
        ("predict", run, folder / "val/images", "--output", place),
        ("evaluate", run, "--data", folder, "--output", f"{place}/results.json"),
        ("preview", "--data.path", folder, "--output", f"{place}/sheet.png"),
    ):
        assert "cannot be written" in refused(*arguments)
    assert "is a folder" in refused("evaluate", run, "--data", folder, "--output", tmp_path)
    assert (tmp_path / "FILE").read_text() == "mine"


def test_no_network_is_told_at_once_with_the_local_way(refused, run, folder, tmp_path):
    start = time.monotonic()
    output = tmp_path / "run"
    for arguments in (
        ("train", "--model.name", "someone/model", "--data.path", folder, "--output_dir", output),
        ("train", *TINY_MODEL, "--data.path", "someone/streets", "--output_dir", output),
        ("evaluate", run, "--data", "someone/streets"),
        ("evaluate", "someone/model", "--data", folder),
        ("predict", "someone/model", folder / "val/images", "--output", output),
    ):
        message = refused(*arguments)
        assert "someone/" in message and "huggingface.co" in message and "local folder" in message
    assert time.monotonic() - start < 60


def test_preview_draws_what_training_would_see(hfseg, folder, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    more = ("--count", 3, "--augment.preset", "strong")
    status, text, _ = hfseg("preview", "--data.path", folder, "--output", sheet, *more)
    assert status == 0 and str(sheet) in text
    assert Image.open(sheet).width > 300


def test_evaluate_gives_the_training_score_and_writes_it(hfseg, run, tmp_path):
    data, output = run.parent / "data", tmp_path / "new" / "results.json"
    status, text, _ = hfseg("evaluate", run, "--data", data, "--split", "val", "--output", output)
    assert status == 0 and "3 images of the split validation" in text
    results = json.loads(output.read_text())
    trained = json.loads((run / "eval_results.json").read_text())
    assert results["per_category_iou"] == trained["per_category_iou"] and results["protocol"]["split"] == "validation"
    assert all(name in text for name in NAMES) and f"{results['mean_iou']:.4f}" in text


def test_evaluate_in_tiles_and_views_says_so(hfseg, refused, run, tmp_path):
    data, output = run.parent / "data", tmp_path / "results.json"
    scores, tile, tta = {}, ("--tile", 32), ("--tta", "horizontal_flip,0.75")
    for more in ((), tile, tta, tile + tta):
        assert hfseg("evaluate", run, "--data", data, "--output", output, *more)[0] == 0
        results = json.loads(output.read_text())
        protocol = results["protocol"]
        tiles = {"size": 32, "overlap": 0.25, "windows_resized": False}
        assert protocol["tile"] == (tiles if "--tile" in more else None)
        assert protocol["test_time_augmentation"] == (["horizontal_flip", 0.75] if "--tta" in more else None)
        scores[more] = str(results["per_category_iou"])
    assert len(set(scores.values())) == 4
    tiled = tmp_path / "run"  # a run that was evaluated so is evaluated so again
    shutil.copytree(run, tiled)
    (tiled / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("tile: null", "tile: 32"))
    for more, key in (((), tile), (tta, tile + tta), (("--tile", 0), ())):
        assert hfseg("evaluate", tiled, "--data", data, "--output", output, *more)[0] == 0
        assert str(json.loads(output.read_text())["per_category_iou"]) == scores[key]
    assert "tile is 33" in refused("evaluate", run, "--data", data, "--tile", 33)
    assert "tta holds 'flip'" in refused("evaluate", run, "--data", data, "--tta", "flip")


def test_evaluate_takes_a_folder_with_a_test_split_alone(hfseg, refused, run, tmp_path):
    data = write_folder(tmp_path / "data", splits=("test",))
    assert "3 images of the split test" in hfseg("evaluate", run, "--data", data, "--split", "test")[1]
    assert "3 images of the split test" in hfseg("evaluate", run, "--data", data)[1]
    assert "unknown split 'validation'" in refused("evaluate", run, "--data", data, "--split", "validation")


def test_evaluate_aligns_classes_by_name_and_refuses_leftovers(hfseg, refused, run, folder):
    (folder / "classes.json").write_text(json.dumps({"names": ["Bar", "ground", "block"]}))
    status, text, _ = hfseg("evaluate", run, "--data", folder)
    assert status == 0 and "0 Bar                      ->    2 bar" in text
    (folder / "classes.json").write_text(json.dumps({"names": ["ground", "block", "zebra"]}))
    assert "does not know these classes of the data: zebra" in refused("evaluate", run, "--data", folder)
    status, text, _ = hfseg("evaluate", run, "--data", folder, "--data.labels.drop", "[zebra]")
    assert status == 0 and "classes aligned by name" in text
    given = ("--data.labels.names", "[ground, block, bar]")
    assert "aligned" not in hfseg("evaluate", run, "--data", folder, *given)[1]


def test_evaluate_skips_and_reports(hfseg, refused, run, folder):
    (folder / "val/masks/p1.png").write_bytes(b"")
    assert "val/masks/p1.png" in refused("evaluate", run, "--data", folder)
    for more in ((), ("--data.labels.names", json.dumps(NAMES))):
        status, text, _ = hfseg("evaluate", run, "--data", folder, "--on_bad_sample", "skip", *more)
        assert status == 0 and "skipped" in text and "p1.png" in text and "2 images of the split" in text


@pytest.mark.parametrize("text, words", [
    ("train: {learning_rate: null}", "train.learning_rate is empty"), ("seed: null", "seed is empty"),
    ("output_dir: null", "output_dir is empty"), ("eval: {samples: null}", "eval.samples is empty"),
    ("train: {num_train_epochs: .inf}", "finite"), ("train: {learning_rate: .inf}", "finite"),
    ("train: {betas: [1.5, 0.9]}", "betas"), ("train: {momentum: -0.5}", "momentum"), ("seed: -1", "seed"),
    ("seed: 5000000000", "seed"), ("train: {optimizer: null}", "optimizer"),
])  # fmt: skip
def test_values_that_mean_nothing(refused, tmp_path, text, words):
    (tmp_path / "r.yaml").write_text(text)
    assert words in refused("train", "--config", tmp_path / "r.yaml")


@pytest.mark.parametrize("arguments, words", [
    (("train", "--confg", "r.yaml"), "did you mean config"), (("train", "r.yaml"), "--config r.yaml"),
    (("train", "--config", "nope.yaml"), "there is no recipe nope.yaml"),
    (("train", "--config", "crackforest"), "--data.path PATH"),
    (("predict", "runs/nope", "x.png", "--output", "o"), "no folder here"),
    (("predict", "segformer", "x.png", "--output", "o"), "kind of network"),
    (("train", "--model.name", "nvdia/foo", "--model.weights", "random"), "--model.name segformer"),
])  # fmt: skip
def test_first_mistakes(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save("x.png")
    message = refused(*arguments)
    assert words in message and "weights random" not in message.split("to mend")[-1]


def test_a_card_with_names_that_need_care(hfseg, tmp_path):
    from huggingface_hub import ModelCard

    data = write_folder(tmp_path / "my_data & more", count=1)
    for role in ("images", "masks"):
        (data / "val" / role / "p0.png").rename(data / "val" / role / "a b#1?.png")
    assert hfseg(*train(data, tmp_path / "my_run"))[0] == 0
    card = ModelCard.load(tmp_path / "my_run/README.md")
    result = card.data.eval_results[0]
    assert card.data.model_name == "my_run" and result.dataset_name == "my_data & more"
    assert "on `my_data & more` by" in card.content and "(samples/00_a%20b%231%3F.png)" in card.content

"""The command line as people meet it: every command, and a message instead of a traceback for all they can mend."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hfseg.cli import COMMANDS, main
from hfseg.errors import UserError
from hfseg.prediction import find_images, unique_stems
from hfseg.recipe_reading import field_names, load_recipe
from runs import TINY, environment

NAMES = ["ground", "block", "bar"]
TINY_MODEL = ("--model.name", "segformer", "--model.config", json.dumps({**TINY, "drop_path_rate": 0.0}))
SHORT = ("--train.max_steps", "1", "--train.per_device_train_batch_size", "2", "--eval.eval_steps", "1",
         "--eval.samples", "1")  # fmt: skip


def write_folder(root: Path, count: int = 3, size=(40, 48), names=NAMES, splits=("train", "val")) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros(size, np.uint8)
            labels[2 * number : 2 * number + 14, 5:20] = 1
            labels[-6:-2] = 2
            noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(noise // 3 + labels[..., None] * 60).save(root / split / "images" / f"p{number}.png")
            Image.fromarray(labels).save(root / split / "masks" / f"p{number}.png")
    if names:
        (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a good folder; tests only read it."""
    root = tmp_path_factory.mktemp("cli")
    write_folder(root / "data")
    assert main([str(argument) for argument in train(root / "data", root / "run")]) == 0
    return root / "run"


@pytest.fixture
def hfseg(capsys):
    """Runs a command and gives (status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(hfseg):
    """Runs a command that must be refused, and gives its one message."""

    def call(*arguments) -> str:
        status, _, errors = hfseg(*arguments)
        assert status == 2 and "Traceback" not in errors
        assert errors.count("hfseg: ") == 1
        message = errors[errors.index("hfseg: ") :]
        assert len(message) < 1200
        return message

    return call


def train(path, output, *more):
    return ("train", "--data.path", path, "--output_dir", output, *TINY_MODEL, *SHORT, *more)


def fingerprints(root: Path) -> dict[str, str]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


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


def write_modes(folder: Path) -> int:
    """A file of every kind that cameras, scanners and editors write, all of one size."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    for mode, ending in (("L", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "tif"), ("LA", "png"),
                         ("YCbCr", "jpg"), ("RGB", "webp"), ("RGB", "bmp")):  # fmt: skip
        picture.convert(mode).save(folder / f"{mode}_{ending}.{ending}")
    Image.fromarray(rng.integers(0, 65536, (40, 48)).astype(np.uint16)).save(folder / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=turned)
    return len(list(folder.iterdir()))


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


# -- what the commands do -----------------------------------------------------------------------------------


def test_init_writes_a_recipe_that_trains(hfseg, folder, tmp_path):
    status, text, errors = hfseg("init", folder)
    assert status == 0 and not errors and "ground" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "recipe.yaml")).data.path == str(folder)
    output = ("--output_dir", tmp_path / "run")
    assert hfseg("train", "--config", tmp_path / "recipe.yaml", *TINY_MODEL, *SHORT, *output)[0] == 0


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


def test_predict_writes_all_but_the_broken_ones(hfseg, run, tmp_path):
    photos = tmp_path / "photos"
    write_modes(photos)
    (photos / "sub").mkdir()
    sizes = {"sub/turned.jpg": (40, 33), "dot.png": (1, 1), "line.png": (300, 1), "big.png": (700, 400)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(photos / name)
    np.save(photos / "array.npy", np.zeros((20, 30, 3), np.uint8))
    good = len([file for file in photos.rglob("*") if file.is_file()])
    (photos / "broken.jpg").write_bytes((photos / "turned.jpg").read_bytes()[:200])
    (photos / "zero.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    inputs = (photos, photos / "*.png", photos / "dot.png")
    status, text, errors = hfseg("predict", run, *inputs, "--output", tmp_path / "out")
    assert status == 2 and f"{good} of {good + 2} images" in text
    assert "broken.jpg" in errors and "zero.png" in errors and "hfseg: 2 of" in errors and "Warning" not in errors
    maps = {file.name.removesuffix("_semantic_map.png"): file for file in (tmp_path / "out").glob("*_semantic_map.png")}
    assert len(maps) == good and {"photos_turned", "sub_turned", "dot", "array"} <= set(maps)
    assert Image.open(maps["line"]).size == (300, 1) and Image.open(maps["big"]).size == (700, 400)
    assert set(np.unique(np.asarray(Image.open(maps["big"])))) <= {0, 1, 2}


def test_predict_in_tiles_and_views(hfseg, refused, run, tmp_path):
    from hfseg.segmenter import Segmenter

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    flags = ("--tile", 32, "--tta", "vertical_flip")
    assert hfseg("predict", run, tmp_path / "a.png", "--output", tmp_path / "out", *flags)[0] == 0
    found = np.asarray(Image.open(tmp_path / "out/a_semantic_map.png"))
    wanted = Segmenter.from_pretrained(str(run), tile=32, tta="vertical_flip", device="cpu")(tmp_path / "a.png")
    assert (found == wanted.semantic_map).mean() > 0.999
    segments = json.loads((tmp_path / "out/a_segments.json").read_text())["segments_info"]
    assert segments[0]["score"] == pytest.approx(wanted.segments_info[0]["score"], abs=1e-4)
    assert "tile is 50" in refused("predict", run, tmp_path / "a.png", "--output", tmp_path / "out", "--tile", 50)


def test_find_images_takes_files_folders_and_globs_once(tmp_path):
    for name in ("a.png", "b.JPG", "c.txt", "sub/d.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [file.name for file in find_images([str(tmp_path / "a.png"), str(tmp_path), str(tmp_path / "*.png")])]
    assert names == ["a.png", "b.JPG", "d.tiff"]
    with pytest.raises(UserError, match="no image found"):
        find_images([str(tmp_path / "*.gif")])


@given(st.lists(st.builds("{}/{}.{}".format, *map(st.sampled_from, (["a", "b"], ["x", "a_x", "x_1", "a_x_2"], "ijk"))),
                unique=True, max_size=12))  # fmt: skip
def test_no_two_results_have_one_name(names):
    stems = unique_stems([Path(name) for name in names])
    assert len(set(stems)) == len(names)


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


# -- predict never loses a file ------------------------------------------------------------------------------


def test_predict_replaces_no_input_and_nobodys_file(hfseg, refused, run, tmp_path):
    photos = tmp_path / "p"
    photos.mkdir()
    for name in ("cat.png", "cat_overlay.png"):
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(photos / name)
    before = fingerprints(photos)
    assert "cat_overlay.png" in refused("predict", run, photos, "--output", photos)
    assert fingerprints(photos) == before
    (photos / "cat_overlay.png").unlink()
    Image.new("L", (4, 4)).save(photos / "cat_semantic_map.png")  # drawn by hand
    assert "cat_semantic_map.png" in refused("predict", run, photos / "cat.png", "--output", photos)
    (photos / "cat_semantic_map.png").unlink()
    for _ in range(2):  # results are no inputs, and may be written again
        assert hfseg("predict", run, photos, "--output", photos)[0] == 0
        assert len(list(photos.iterdir())) == 4
    assert json.loads((photos / "cat_segments.json").read_text())["image"] == str(photos / "cat.png")


def test_predict_passes_over_what_is_no_image_and_names_too_long(hfseg, run, tmp_path):
    for name in ("a.png", ".hidden.png", f"{'x' * 240}.png"):
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / name)
    for name in ("doc.pdf", "data.h5", "movie.mpg"):
        (tmp_path / name).write_bytes(b"no image")
    status, output, _ = hfseg("predict", run, tmp_path, "--output", tmp_path / "out")
    assert status == 0 and "2 of 2 images" in output


def test_predict_into_a_place_that_cannot_be_written(refused, run, tmp_path):
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "out/a_segments.json").mkdir(parents=True)
    assert "a_segments.json" in refused("predict", run, tmp_path / "a.png", "--output", tmp_path / "out")


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


def test_predict_goes_on_where_it_was_killed(hfseg, run, tmp_path, monkeypatch):
    from hfseg import result

    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / "a.png")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(result.Segmentation, "overlay", killed)
        assert hfseg("predict", run, tmp_path / "a.png", "--output", tmp_path)[0] == 130
    assert hfseg("predict", run, tmp_path, "--output", tmp_path)[0] == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_predict_writes_what_it_began_when_it_is_stopped(hfseg, run, tmp_path, monkeypatch):
    from hfseg.segmenter import Segmenter

    for number in range(6):
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / f"{number}.png")
    stream = Segmenter.stream

    def stopped(self, files, *arguments, **more):
        for number, result in enumerate(stream(self, files, *arguments, **more)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    results = Segmenter._results
    monkeypatch.setattr(Segmenter, "stream", stopped)
    monkeypatch.setattr(Segmenter, "_results", lambda self, images: [Slow(vars(r)) for r in results(self, images)])
    assert hfseg("predict", run, tmp_path, "--output", tmp_path / "out")[0] == 130
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        f"{number}_{what}" for number in range(3) for what in ("overlay.png", "segments.json", "semantic_map.png"))


class Slow:
    """A result that takes its time to be written."""

    def __init__(self, fields):
        self.fields = fields

    def save(self, *arguments, **more):
        from hfseg.result import Segmentation

        time.sleep(0.3)
        result = Segmentation.__new__(Segmentation)
        vars(result).update(self.fields)
        return result.save(*arguments, **more)


def test_predict_stops_at_what_cannot_be_written_and_writes_the_rest_it_began(refused, run, tmp_path, monkeypatch):
    from hfseg.result import Segmentation

    for number in range(3):
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / f"{number}.png")
    save = Segmentation._save

    def full(self, folder, prefix, source):
        if prefix == "0_":
            raise OSError(28, "No space left on device", str(folder))
        return save(self, folder, prefix, source)

    monkeypatch.setattr(Segmentation, "_save", full)
    assert "No space left on device" in refused("predict", run, tmp_path, "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_predict_leaves_a_users_json_alone_and_takes_any_name(hfseg, refused, run, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(name, "wb") as file:
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(file, "PNG")
    assert hfseg("predict", run, tmp_path, "--output", tmp_path / "out")[0] == 0
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b_segments.json").write_text('{"mine": 1}')
    assert "b_segments.json" in refused("predict", run, tmp_path / "b.png", "--output", tmp_path)


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


def test_init_without_a_training_split(hfseg, tmp_path):
    write_folder(tmp_path / "d", splits=("val",))
    status, output, _ = hfseg("init", tmp_path / "d")
    assert status == 0 and "There is no training split here, only validation" in output


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

"""What is pulled is what was pushed, by hash, or it is refused by name; and it runs without hfseg."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

import hfseg
from faults import Faults
from hfseg.errors import UserError
from hfseg.hub.local import LocalHub
from hfseg.models.configs import SHIPPED

pytestmark = pytest.mark.usefixtures("online")
SHAPES = SHIPPED / "shapes-segformer"
QUIET = {"say": lambda text: None}


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def hub(tmp_path, faults):
    with LocalHub(tmp_path / "hub", middleware=[faults]) as hub:
        hub.at = {"endpoint": hub.url, "token": hub.token, **QUIET}
        yield hub


@pytest.fixture
def pushed(hub):
    hfseg.push(SHAPES, "me/shapes", **hub.at)
    return hub


def outside(hub, tmp_path, code: str, status: int = 0, **more: str) -> str:
    """Runs Python in another process whose only hub is this one."""
    guard = str(Path(__file__).parent / "loopback_only")
    env = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(), "HF_HOME": str(tmp_path / "home"),
           "PYTHONPATH": guard, "PYTHONWARNINGS": "ignore", **more}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_pull_is_whole_and_a_second_one_downloads_nothing(pushed, tmp_path, faults):
    copy = hfseg.pull("me/shapes", local_dir=tmp_path / "copy", **pushed.at)
    names = {file.name for file in SHAPES.iterdir() if file.is_file()} & {file.name for file in copy.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "labels.json"} <= names
    for name in names - {"README.md", "recipe.yaml"}:
        assert (copy / name).read_bytes() == (SHAPES / name).read_bytes(), name
    faults.add("GET", r"/resolve/.*safetensors", times=1000, action="503")
    assert hfseg.pull("me/shapes", local_dir=copy, **pushed.at) == copy


def test_a_revision_is_what_it_was(pushed, tmp_path):
    api = HfApi(pushed.url, pushed.token)
    api.create_tag("me/shapes", tag="v1.0")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="labels.json", repo_id="me/shapes")
    old = hfseg.pull("me/shapes", revision="v1.0", local_dir=tmp_path / "old", **pushed.at)
    new = hfseg.pull("me/shapes", local_dir=tmp_path / "new", **pushed.at)
    assert (old / "labels.json").read_bytes() == (SHAPES / "labels.json").read_bytes()
    assert (new / "labels.json").read_bytes() == b"{}"
    with pytest.raises(UserError, match="no such branch, tag or commit"):
        hfseg.pull("me/shapes", revision="v9", local_dir=tmp_path / "none", **pushed.at)


@pytest.mark.parametrize("action", ["cut", "503", "429", "drop"])
def test_a_download_that_fails_is_finished(pushed, faults, tmp_path, action):
    faults.add("GET", r"/resolve/.*model\.safetensors", times=1, action=action)
    copy = hfseg.pull("me/shapes", local_dir=tmp_path / "copy", **pushed.at)
    assert (copy / "model.safetensors").read_bytes() == (SHAPES / "model.safetensors").read_bytes()


@pytest.mark.parametrize("folder", ["copy", None])
def test_a_flipped_bit_is_downloaded_again_and_then_refused(pushed, faults, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    where = {"local_dir": tmp_path / folder if folder else None}
    faults.add("GET", r"/resolve/.*model\.safetensors", times=1, action="flip")
    said = []
    copy = hfseg.pull("me/shapes", **{**pushed.at, "say": said.append}, **where)
    assert any("arrived damaged" in text for text in said)
    assert (copy / "model.safetensors").read_bytes() == (SHAPES / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / folder if folder else tmp_path / "cache")
    faults.add("GET", r"/resolve/.*model\.safetensors", times=100, action="flip")
    with pytest.raises(UserError, match=r"model\.safetensors of me/shapes arrived damaged"):
        hfseg.pull("me/shapes", **pushed.at, **where)
    faults.clear()
    assert hfseg.pull("me/shapes", **pushed.at, **where).is_dir()


def test_folders_with_other_things_are_left_alone(pushed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        hfseg.pull("me/shapes", local_dir=tmp_path / "mine", **pushed.at)
    assert (tmp_path / "mine" / "config.json").read_text() == "mine"
    copy = hfseg.pull("me/shapes", local_dir=tmp_path / "copy", **pushed.at)
    hfseg.push(SHAPES, "me/others", **pushed.at)
    with pytest.raises(UserError, match="holds model me/shapes"):
        hfseg.pull("me/others", local_dir=copy, **pushed.at)


def test_private_missing_and_gated_models_say_what_to_do(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    api, stranger = HfApi(pushed.url, pushed.token), pushed.create_token("ann")
    with pytest.raises(UserError, match="no model me/nothing"):
        hfseg.pull("me/nothing", **pushed.at)
    api.update_repo_settings("me/shapes", private=True)
    for token, words in ((stranger, "there is no model me/shapes"), (False, "nobody is signed in")):
        with pytest.raises(UserError, match=words) as refused:
            hfseg.pull("me/shapes", **{**pushed.at, "token": token}, local_dir=tmp_path / "x")
        assert "hf auth login" in str(refused.value)
    api.update_repo_settings("me/shapes", private=False, gated="manual")
    with pytest.raises(UserError, match="must be asked for"):
        hfseg.pull("me/shapes", **{**pushed.at, "token": stranger}, local_dir=tmp_path / "x")


def test_pickled_weights_are_refused_and_beside_others_left_out(pushed, tmp_path):
    api = HfApi(pushed.url, pushed.token)
    api.upload_file(path_or_fileobj=b"pickle", path_in_repo="pytorch_model.bin", repo_id="me/shapes")
    said = []
    copy = hfseg.pull("me/shapes", local_dir=tmp_path / "copy", **{**pushed.at, "say": said.append})
    assert not (copy / "pytorch_model.bin").exists() and any("left out: pytorch_model.bin" in text for text in said)
    api.delete_file("model.safetensors", "me/shapes")
    with pytest.raises(UserError, match="pickled files alone") as refused:
        hfseg.pull("me/shapes", local_dir=tmp_path / "again", **pushed.at)
    assert "save_pretrained" in str(refused.value)


def test_from_pretrained_checks_hashes_and_refuses_pickles(pushed, faults, tmp_path, photo):
    """One process, since importing takes longest: damaged once or for good, our own, converted, pickled, offline."""
    api = HfApi(pushed.url, pushed.token)
    for part in hfseg.load_model("hfseg/lraspp", ["a", "b", "c"], backbone="mobilenet_v3_small", weights="random"):
        part.save_pretrained(tmp_path / "own")
    hfseg.push(tmp_path / "own", "me/own", **pushed.at)
    own = int(hfseg.Segmenter.from_pretrained(str(tmp_path / "own"))(photo).semantic_map.sum())
    hfseg.push(SHAPES, "me/damaged", **pushed.at)
    for name in ("me/converted", "me/pickled"):
        hfseg.push(SHAPES, name, **pushed.at)
        api.delete_file("model.safetensors", name)
        api.upload_file(path_or_fileobj=b"pickle", path_in_repo="pytorch_model.bin", repo_id=name)
    bot = HfApi(pushed.url, pushed.create_token("SFconvertbot"))
    bot.upload_file(path_or_fileobj=str(SHAPES / "model.safetensors"), path_in_repo="model.safetensors",
                    repo_id="me/converted", create_pr=True, commit_message="Adding `safetensors` variant of this model")
    expected = int(hfseg.Segmenter.from_pretrained(str(SHAPES))(photo).semantic_map.sum())
    faults.add("GET", r"/me/shapes/resolve/.*model\.safetensors", times=1, action="flip")
    faults.add("GET", r"/me/damaged/resolve/.*model\.safetensors", times=100, action="flip")
    code = f"""
import hfseg
from hfseg.errors import UserError
from huggingface_hub import constants
def load(name):
    try:
        return int(hfseg.Segmenter.from_pretrained(name)({str(photo)!r}).semantic_map.sum())
    except UserError as error:
        return str(error)
assert load("me/shapes") == {expected}
assert "model.safetensors of me/damaged arrived damaged" in str(load("me/damaged"))
assert load("me/own") == {own}
assert load("me/converted") == {expected}
assert "pickled files alone" in load("me/pickled"), load("me/pickled")
assert "nobody" in load("me/nothing") or "me/nothing" in load("me/nothing")
constants.HF_HUB_OFFLINE = True
assert load("me/shapes") == {expected}
assert load("me/converted") == {expected}
assert "me/damaged is no folder here" in str(load("me/damaged")), load("me/damaged")
from pathlib import Path
[link] = Path(constants.HF_HUB_CACHE).glob("models--me--converted/snapshots/*/model.safetensors")
blob, content = link.resolve(), bytearray(link.read_bytes())
content[-1] ^= 1
for call in (load, lambda name: hfseg.pull(name, revision="refs/pr/1")):
    blob.write_bytes(content)  # a bit flipped on this machine's own disk
    if not link.is_symlink():
        link.symlink_to(blob)
    try:
        told = call("me/converted")
    except UserError as error:
        told = error
    assert "model.safetensors of me/converted arrived damaged" in str(told), told
print("all as it should be")
"""
    assert "all as it should be" in outside(pushed, tmp_path, code)


def test_the_model_runs_in_a_process_without_hfseg(hub, tmp_path, photo):
    model, processor = hfseg.load_model("hfseg/shapes-segformer")  # which lies in half precision
    for part in (model, processor):
        part.save_pretrained(tmp_path / "float32")
    hfseg.push(tmp_path / "float32", "me/shapes", **hub.at)
    expected = hfseg.Segmenter.from_pretrained(str(SHAPES))(photo).semantic_map
    code = f"""
import sys
sys.modules["hfseg"] = None
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
image = Image.open({str(photo)!r}).convert("RGB")
processor = AutoImageProcessor.from_pretrained("me/shapes")
model = AutoModelForSemanticSegmentation.from_pretrained("me/shapes")
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
[found] = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
np.save({str(tmp_path / "found.npy")!r}, found.numpy())
names = [segment["label"] for segment in pipeline("image-segmentation", model="me/shapes")(image)]
assert set(names) <= set(model.config.id2label.values()) and names
"""
    outside(hub, tmp_path, code)
    assert (np.load(tmp_path / "found.npy") == expected).mean() > 0.999


def test_a_run_that_tells_objects_apart_is_pulled_and_runs_without_hfseg(hub, tmp_path):
    from test_mask_families import by_heart

    recipe = by_heart("mask2former", tmp_path, "panoptic", max_steps=60, schedule="cosine")
    hfseg.train(recipe, verbose=False)
    run = Path(recipe.output_dir)
    photo = tmp_path / "scene.png"
    Image.fromarray(hfseg.load_data("shapes", task="panoptic", scenes=4).read("train", 0).image).save(photo)
    hfseg.push(run, "me/objects", **hub.at)
    pulled = Path(hfseg.pull("me/objects", local_dir=tmp_path / "pulled", **hub.at))
    assert "type: panoptic_quality" in (pulled / "README.md").read_text() and list((pulled / "samples").glob("*.png"))
    for name in ("model.safetensors", "labels.json", "eval_results.json"):
        assert (pulled / name).read_bytes() == (run / name).read_bytes()
    rules = {"threshold": 0.1, "overlap_mask_area_threshold": 0.1}
    ours, theirs = (hfseg.Segmenter.from_pretrained(folder, fuse=False, compat=True, **rules)
                    for folder in (run, pulled))
    assert theirs.task == "panoptic" and theirs.things == ours.things and len(theirs.stuff) == 1
    code = f"""
import sys
sys.modules["hfseg"] = None
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline
image = Image.open({str(photo)!r}).convert("RGB")
processor = AutoImageProcessor.from_pretrained("me/objects")
model = AutoModelForUniversalSegmentation.from_pretrained("me/objects")
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
rules = dict(target_sizes=[image.size[::-1]], **{rules!r})
[panoptic] = processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set({theirs.stuff}), **rules)
[instance] = processor.post_process_instance_segmentation(outputs, **rules)
np.save({str(tmp_path / "panoptic.npy")!r}, panoptic["segmentation"].numpy())
np.save({str(tmp_path / "instance.npy")!r}, instance["segmentation"].numpy() + 1)  # its instances begin at 0
for task in ("panoptic", "instance", "semantic"):
    names = [one["label"] for one in pipeline("image-segmentation", model="me/objects")(image, subtask=task)]
    assert set(names) <= set(model.config.id2label.values())
"""
    outside(hub, tmp_path, code)
    for task in ("panoptic", "instance"):
        expected = theirs.using(task=task)(photo)
        np.testing.assert_array_equal(ours.using(task=task)(photo).segment_map, expected.segment_map)
        found = np.maximum(np.load(tmp_path / f"{task}.npy").astype(int), 0)
        assert (found == expected.segment_map).mean() > 0.999 and expected.segments


def test_a_detector_is_pulled_and_finds_the_same(hub, tmp_path):
    from test_mask_families import by_heart

    recipe = by_heart("hfseg/mask-rcnn", tmp_path, max_steps=12)
    recipe.eval.tile, recipe.eval.nms_threshold = 64, 0.6
    hfseg.train(recipe, verbose=False)
    hfseg.push(recipe.output_dir, "me/detector", **hub.at)
    pulled = Path(hfseg.pull("me/detector", local_dir=tmp_path / "pulled", **hub.at))
    card = (pulled / "README.md").read_text()
    assert "type: mask_ap" in card and "windows" in card and list((pulled / "samples").glob("*.png"))
    image = hfseg.load_data("shapes", task="instance", scenes=4).read("train", 0).image
    ours, theirs = (hfseg.Segmenter.from_pretrained(folder, threshold=0.06) for folder in (recipe.output_dir, pulled))
    assert (theirs.task, theirs.tile, theirs.rules.nms_threshold) == ("instance", 64, 0.6)
    expected, found = ours(image), theirs(image)
    assert found.segments_info == expected.segments_info and found.rles == expected.rles and found.rles


def test_the_commands_say_what_they_did(hub, tmp_path):
    code = """
import sys
from hfseg.cli import main
assert main(["push", {run!r}, "me/shapes", "--private", "--tag", "v1.0"]) == 0
assert main(["push", {run!r}, "me/shapes"]) == 0
assert main(["pull", "me/shapes", "--revision", "v1.0", "--local_dir", {copy!r}]) == 0
assert main(["pull", "me/shapes", "--local_dir", {run!r}]) == 2
assert main(["pull", "me/nothing"]) == 2
""".format(run=str(SHAPES), copy=str(tmp_path / "copy"))
    output = outside(hub, tmp_path, code)
    assert "files pushed" in output and "tagged v1.0" in output and "has all of this already" in output
    assert "every hash as the hub states it" in output and "holds other files" in output
    assert "there is no model me/nothing" in output and "Traceback" not in output

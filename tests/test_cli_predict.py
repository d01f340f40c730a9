"""`hfseg predict`: every image gets its results, and no file of anybody is lost."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from command_line import fingerprints, write_modes
from hfseg.errors import UserError
from hfseg.prediction import find_images, unique_stems

from command_line import folder_fixture, hfseg_fixture, refused_fixture, run_fixture  # isort: skip  # noqa: F401


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


def test_flags_for_objects_are_refused_where_there_are_none(refused, run, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    said = refused("predict", run, tmp_path / "x.png", "--output", tmp_path / "out", "--threshold", 0.7,
                   "--no_overlaps")
    assert "overlaps, threshold" in said and "the tasks instance and panoptic" in said
    assert not list((tmp_path / "out").glob("*"))


def test_a_wrong_name_is_told_at_once_where_there_is_no_hub(refused, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    for variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(time, "sleep", None)  # what the hub's client does between its attempts
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    said = refused("predict", "nobody/nothing", tmp_path / "x.png", "--output", tmp_path / "out")
    assert "cannot be reached" in said and "check the name" in said
    assert "cannot be reached" in refused("demo", "nobody/nothing")

"""Around a call: confidence when it is asked for, streams, profiles."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import hfseg.segmenter as segmenter_module
from hfseg.errors import BadSample, UserError
from hfseg.ops import upsample_argmax
from hfseg.segmenter import Segmenter
from tiny_networks import a_picture, segformer

from tiny_networks import segmenter_fixture  # isort: skip  # noqa: F401


# -- confidence when it is asked for --------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often confidence was computed."""
    calls = []

    def upsample(logits, size, return_confidence=False):
        calls.append(return_confidence)
        return upsample_argmax(logits, size, return_confidence=return_confidence)

    monkeypatch.setattr("hfseg.inference.confidence.upsample_argmax", upsample)
    return lambda: sum(calls)


def test_confidence_is_computed_when_it_is_read_and_once(segmenter, counted):
    image = a_picture(75, 99)
    result = segmenter(image)
    result.areas(), result.overlay(), result.cutout(next(iter(result.areas()))), repr(result)
    assert counted() == 0
    first = result.confidence
    assert counted() == 1 and result.confidence is first
    segment = result.segments_info[0]
    assert segment["score"] == pytest.approx(first[result.segment_map == segment["id"]].mean())
    assert counted() == 1
    logits = torch.nn.functional.interpolate(segmenter.logits([image]), (75, 99), mode="bilinear")[0]
    np.testing.assert_allclose(first, logits.softmax(0).amax(0).numpy(), atol=1e-5)
    assert segmenter(image).segments_info[0]["score"] is not None and counted() == 2


def test_confidence_survives_pickling_copying_and_threads(segmenter, counted, tmp_path):
    results = segmenter([a_picture(40, 60, seed) for seed in range(3)])
    wanted = segmenter(a_picture(40, 60)).confidence
    for other in (pickle.loads(pickle.dumps(results[0])), copy.deepcopy(results[0])):
        np.testing.assert_allclose(other.confidence, wanted, atol=1e-5)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: results[1].confidence, range(8)):
            np.testing.assert_array_equal(found, results[1].confidence)
    saved = results[2].save(tmp_path)
    assert json.loads(saved["segments"].read_text())["segments_info"][0]["score"] > 0


def test_a_result_keeps_the_logits_of_no_other_and_none_when_confidence_is_there(segmenter):
    result = segmenter([a_picture(80, 80, seed) for seed in range(8)])[3]
    [kept] = [cell.cell_contents for cell in vars(result)["_confidence"].__closure__
              if isinstance(cell.cell_contents, torch.Tensor)]  # fmt: skip
    assert kept.untyped_storage().nbytes() == 3 * 16 * 16 * 4
    alive = weakref.ref(kept)
    del kept
    assert result.confidence.shape == (80, 80)
    gc.collect()
    assert alive() is None


def test_logits_too_large_to_keep_are_not_kept(counted):
    """A small image that the processor enlarges: 3 x 16 x 16 logits for 40 pixels."""
    result = Segmenter(*segformer())(a_picture(5, 8))
    assert counted() == 1 and isinstance(vars(result)["_confidence"], np.ndarray)


# -- streams --------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_results_of_a_list_in_order(segmenter, tmp_path):
    images = [a_picture(40, 60 if number % 3 else 48, number) for number in range(11)]
    wanted = [result.semantic_map for result in segmenter(images)]
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    for source in (images, iter(paths), (Image.fromarray(image) for image in images)):
        for batch_size in (1, 4):
            found = [result.semantic_map for result in segmenter.stream(source, batch_size, workers=3)]
            if not found:
                continue  # an iterator that the first round emptied
            assert len(found) == 11
            for a, b in zip(found, wanted, strict=True):
                assert (a == b).mean() > 0.999
    assert list(segmenter.stream([])) == []


def test_a_stream_without_end_is_read_no_further_than_needed(segmenter):
    asked = []

    def endless():
        while True:
            asked.append(len(asked))
            yield a_picture(40, 48, asked[-1])

    stream = segmenter.stream(endless(), batch_size=2, workers=2)
    assert not asked
    for number in range(5):
        next(stream)
        assert len(asked) <= number + 1 + 3 * 2
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hfseg-read")]


def test_a_bad_image_is_raised_or_given_in_its_place(segmenter, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [a_picture(40, 48, 0), tmp_path / "bad.png", a_picture(40, 48, 1), b"", a_picture(40, 48, 2)]
    stream = segmenter.stream(images, batch_size=4)
    assert next(stream).semantic_map.shape == (40, 48)
    with pytest.raises(BadSample, match=r"bad\.png"):
        next(stream)
    found = list(segmenter.stream(images, batch_size=4, on_bad_sample="yield"))
    assert [isinstance(result, BadSample) for result in found] == [False, True, False, True, False]
    assert "image 4" in str(found[3])
    with pytest.raises(UserError, match="is a folder"):  # a mistake of the call, and no bad image
        list(segmenter.stream([images[0], tmp_path], on_bad_sample="yield"))
    with pytest.raises(UserError, match="did you mean"):
        segmenter.stream(images, on_bad_sample="yeild")
    with pytest.raises(UserError, match="1 or more"):
        segmenter.stream(images, batch_size=0)


def test_an_error_of_the_source_comes_after_the_results_before_it(segmenter):
    def source():
        yield a_picture(40, 48, 0)
        yield a_picture(40, 48, 1)
        raise RuntimeError("the camera fell")

    stream = segmenter.stream(source(), batch_size=8)
    assert next(stream) and next(stream)
    with pytest.raises(RuntimeError, match="camera"):
        next(stream)


def test_images_are_read_while_the_network_computes(segmenter, monkeypatch):
    reading, overlapped, read = threading.Event(), [], segmenter_module.read_image

    def slowly(value, channels, name):
        if name == "image 2":
            reading.set()
        return read(value, channels, name)

    def network(*arguments, **more):
        overlapped.append(reading.wait(20))

    monkeypatch.setattr(segmenter_module, "read_image", slowly)
    handle = segmenter.model.register_forward_pre_hook(network)
    try:
        next(segmenter.stream((a_picture(40, 48, seed) for seed in range(3)), batch_size=1))
    finally:
        handle.remove()
    assert overlapped[0]


# -- profile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"tile": 32, "tta": "horizontal_flip"}])
def test_a_profile_adds_up(segmenter, tmp_path, settings):
    Image.fromarray(a_picture(60, 90)).save(tmp_path / "a.png")
    profile = segmenter.using(**settings).profile(tmp_path / "a.png", rounds=3)
    times = dict(profile.milliseconds)
    total = times.pop("total")
    assert list(times) == ["read and decode", "preprocess", "forward", "upsample and argmax", "other"]
    assert all(value > 0 for name, value in times.items() if name != "other")
    assert sum(times.values()) == pytest.approx(total, rel=0.5)  # medians of each
    assert (profile.rounds, profile.device, profile.size) == (3, "cpu", (60, 90))
    assert profile.peak_extra_bytes is None or profile.peak_extra_bytes >= 0
    assert "forward" in str(profile) and str(profile).count("\n") >= 6
    assert "_read" not in vars(segmenter)  # the segmenter itself is not timed
    with pytest.raises(UserError, match="rounds"):
        segmenter.profile(a_picture(), rounds=0)


def test_a_profile_finds_what_is_slow(segmenter):
    handle = segmenter.model.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    try:
        times = segmenter.profile(a_picture(40, 48), rounds=1).milliseconds
    finally:
        handle.remove()
    assert times["forward"] > 200 > times["preprocess"]

"""What a run notes for its card: where it began, how fast it is, charts."""

from __future__ import annotations

import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hfseg.curves import class_labels, draw_class_bars
from hfseg.hub import card_base, card_speed
from hfseg.hub.card_base import base_facts
from hfseg.hub.card_speed import measure_speed
from hfseg.labels import make_palette

from card_runs import finished_fixture, run_fixture  # isort: skip  # noqa: F401


# -- what the loop notes -----------------------------------------------------------------------------------------


def test_base_facts_of_a_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert set(base_facts(str(tmp_path)).values()) == {None}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: x\nlicense_link: https://a.example/l\n"
                                        "base_model: [nvidia/mit-b0]\n---\n")  # fmt: skip
    assert base_facts(str(tmp_path)) == {"base_model": "nvidia/mit-b0", "base_revision": None, "license": "other",
                                         "license_name": "x", "license_link": "https://a.example/l"}  # fmt: skip
    for card in ("---\nlicense: [\n---\n", "---\nlicense: {a: b}\nbase_model: ../x\n---\n", "\x00", "---\n- a\n---\n",
                 "---\nlicense: '<b>'\nlicense_link: 'javascript:alert(1)'\n---\n"):  # fmt: skip
        (tmp_path / "README.md").write_text(card)
        assert set(base_facts(str(tmp_path)).values()) == {None}


def test_base_facts_without_a_network_are_what_the_cache_knows(tmp_path, monkeypatch):
    began = time.monotonic()
    found = base_facts("nobody/nothing-here")
    assert found.pop("base_model") == "nobody/nothing-here" and set(found.values()) == {None}
    for name in ("segformer", "../nowhere", "", "a/b/c", "hfseg/nothing"):
        assert base_facts(name)["base_model"] is None
    assert time.monotonic() - began < 2
    commit = "c" * 40
    snapshot = tmp_path / "models--me--net" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--net" / "refs").mkdir()
    (tmp_path / "models--me--net" / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = base_facts("me/net")
    assert (found["license"], found["base_revision"]) == ("mit", commit)


def test_base_facts_of_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def info(self, name, revision=None, timeout=None):
        assert timeout == card_base.PATIENCE and self.token == "t"
        card = ModelCard("---\nlicense: other\nlicense_name: n\nlicense_link: LICENSE\n---\n").data
        return SimpleNamespace(card_data=card, sha="d" * 40)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(HfApi, "model_info", info)
    assert base_facts("me/net", token="t") == {
        "base_model": "me/net", "base_revision": "d" * 40, "license": "other", "license_name": "n",
        "license_link": f"https://huggingface.co/me/net/blob/{'d' * 40}/LICENSE"}  # fmt: skip

    monkeypatch.setattr(card_base, "PATIENCE", 0.2)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: time.sleep(5))  # a name server that is silent
    began = time.monotonic()
    assert base_facts("me/net")["license"] is None and time.monotonic() - began < 2


def test_speed_is_the_median_of_whole_calls(monkeypatch):
    import torch

    class Slow:
        model = torch.nn.Linear(1, 1)
        calls = 0

        def __call__(self, image):
            self.calls += 1
            clock[0] += {1: 50.0}.get(self.calls, 0.010 * (1 + image.shape[0] // 20))  # the first call warms up

    clock = [0.0]
    monkeypatch.setattr(card_speed, "_now", lambda device: clock[0])
    slow = Slow()
    images = [np.zeros((height, 8, 3), np.uint8) for height in (20, 40, 60)]
    found = measure_speed(slow, images, rounds=4)
    assert found["milliseconds"] == pytest.approx(30) and found["image_size"] == [40, 8]
    assert (found["calls"], found["images"], slow.calls) == (12, 3, 15)
    assert found["threads"] == torch.get_num_threads() and found["device"].startswith("cpu")
    assert found["cores"] >= 1 and found["load"] >= 0
    assert "peak_extra_bytes" not in found  # on a CPU it would not be the call's alone
    monkeypatch.setattr(card_speed.time, "monotonic", iter(range(0, 1000, 100)).__next__)
    assert measure_speed(slow, images[0], rounds=9)["calls"] == 1


# -- charts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 20, 150])
def test_bars_stay_legible(tmp_path, count):
    names = ["a name that is much longer than any chart has room for, really", "дорога", "道路", "$x_1$", "", "\u0000a"]
    names = (names + [f"class number {i}" for i in range(count)])[:count]
    scores = dict(zip(names, np.linspace(0, 1, count).tolist())) | {names[-1]: None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a letter that the font lacks is one
        draw_class_bars(scores, make_palette(count), tmp_path / "a.png", mean=0.4)
    with Image.open(tmp_path / "a.png") as picture:
        rows = count if count <= 60 else -(-count // 2)
        assert picture.height / rows >= 20 and picture.height < 2500  # pixels for a line of 9 points
        assert picture.width <= 1400
    assert (tmp_path / "a.png").stat().st_size < 250_000


def test_names_without_letters_in_the_font_go_by_number():
    assert class_labels(["road", "道路", "дорога", " ", "a\nb"]) == ["road", "class 1", "дорога", "class 3", "a b"]
    assert len(class_labels(["x" * 300])[0]) <= 40

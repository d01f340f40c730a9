"""One page and one browser for all tests of the demo."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip
MODEL = "hfseg/shapes-segformer"
HOSTILE = "<img src=x onerror=\"window.hacked=1\">&amp;"  # a class that somebody called so


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A page that serves four models: the shipped one, one that differs, one of 300 classes, and a promptable one."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("demo")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ |= {"GRADIO_TEMP_DIR": str(folder / "cache"), "GRADIO_ANALYTICS_ENABLED": "False"}
    from hfseg.demo import build_demo, launch_settings

    models = [MODEL, _other_model(folder / "other-model"), _many_classes(folder / "many-classes")]
    page = build_demo(models)
    _, url, _ = page.launch(**launch_settings(), prevent_thread_lock=True, quiet=True)
    yield SimpleNamespace(url=url, folder=folder, models=models, cache=folder / "cache", page=page)
    page.close()
    if before is None:
        del os.environ["GRADIO_TEMP_DIR"]
    else:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A scene whose sides divide by nothing."""
    from hfseg.data.shapes import scene

    file = tmp_path_factory.mktemp("photo") / "my photo.png"
    Image.fromarray(scene(0, 1_000_003, "source", (141, 203)).image).save(file)
    return file


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium with a webcam that shows a test picture."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium; `make test` installs it where apt works")
    with sync_api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=CHROMIUM_FLAGS, viewport={"width": 1366, "height": 860},
            accept_downloads=True, permissions=["camera", "clipboard-read", "clipboard-write"])
        context.set_default_timeout(90_000)
        yield context
        context.close()


@pytest.fixture
def page(browser, demo, request) -> Iterator:
    """The demo in a tab of its own; in the end, nothing outside was asked for, and no script failed."""
    tab, outside, errors = browser.new_page(), [], []

    def look(request):  # a route would see it, too, and switch the browser's cache off
        if not request.url.startswith((demo.url, "data:", "blob:")):
            outside.append(request.url)

    tab.on("request", look)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(demo.url + (getattr(request, "param", "") or ""))
    tab.wait_for_selector(".hv[data-state=empty]")
    yield tab
    hacked = tab.evaluate("window.hacked")
    tab.close()
    assert not outside and not errors and hacked is None


def _other_model(folder: Path) -> str:
    """The shipped model, leaning towards another class."""
    import torch

    from hfseg.models import load_for_inference
    from hfseg.models.configs import SHIPPED

    model, processor = load_for_inference(MODEL)
    with torch.no_grad():
        model.decode_head.classifier.bias[2] += 4
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.copy(SHIPPED / "shapes-segformer" / "labels.json", folder)
    return str(folder)


def _many_classes(folder: Path) -> str:
    """Random weights for 300 classes, one of which has a name that should do nothing."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    names = {i: f"class {i}" for i in range(300)} | {299: HOSTILE, 298: "${window.hacked=1}{{name}}"}
    config = SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16,
                             num_attention_heads=[1, 1, 2, 2], id2label=names,
                             label2id={name: i for i, name in names.items()})  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        weight = model.decode_head.classifier.weight
        weight.normal_(std=3.0)
        model.decode_head.classifier.bias[298:] += 0.5 * weight.flatten(1).norm(dim=1).mean()
    model.save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return str(folder)


def map_of(file: str | Path) -> np.ndarray:
    """The ids of a PNG of the demo."""
    stored = np.asarray(Image.open(file)).astype(np.int64)
    return stored[..., 0] + 256 * stored[..., 1] if stored.ndim == 3 else stored

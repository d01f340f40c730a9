"""One page and one browser for all tests of the demo: test files import these fixtures, which start each once."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from promptable import tiny

CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip
MODEL = "hfseg/shapes-segformer"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=\"window.hacked=1\">&amp;"  # a class that somebody called so


@pytest.fixture(scope="session", name="demo")
def demo_fixture() -> SimpleNamespace:
    """A page that serves four models: the shipped one, one that differs, one of 300 classes, and a promptable one."""
    pytest.importorskip("gradio")
    return serve()


@cache
def serve() -> SimpleNamespace:
    """Starts the page, once in this process."""
    folder = Path(tempfile.mkdtemp(prefix="hfseg-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"GRADIO_TEMP_DIR": str(folder / "cache"), "GRADIO_ANALYTICS_ENABLED": "False"}
    from hfseg.demo import start

    models = [MODEL, _other_model(folder / "other-model"), _many_classes(folder / "many-classes"),
              tiny("sam2", folder / "tiny-sam2")]  # fmt: skip
    page, url = start(models, server_port=0)
    atexit.register(page.close)
    shown = ["/".join(Path(name).parts[-2:]) for name in models]
    return SimpleNamespace(url=url, models=models, shown=shown, cache=folder / "cache", page=page)


@pytest.fixture(scope="session", name="photo")
def photo_fixture(tmp_path_factory) -> Path:
    """A scene whose sides divide by nothing."""
    from hfseg.data.shapes import scene

    file = tmp_path_factory.mktemp("photo") / "my photo.png"
    Image.fromarray(scene(0, 1_000_003, "source", (141, 203)).image).save(file)
    return file


@pytest.fixture(scope="module", name="browser")
def browser_fixture() -> Iterator:
    """Chromium with a webcam that shows a test picture; it ends with the file, as it keeps asyncio to itself."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; `make test` installs it where apt works")
    with sync_api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=CHROMIUM_FLAGS, viewport={"width": 1366, "height": 860},
            accept_downloads=True, permissions=["camera"])
        context.set_default_timeout(90_000)
        yield context
        context.close()


@pytest.fixture(name="page")
def page_fixture(browser, demo, request) -> Iterator:
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


def write_video(file: Path, frames: int, size: tuple[int, int] = (101, 75)) -> Path:
    """Writes a video in which every frame is of one grey."""
    import av

    with av.open(str(file), "w") as out:
        stream = out.add_stream("libvpx-vp9" if file.suffix == ".webm" else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = size[0] // 2 * 2, size[1] // 2 * 2, "yuv420p"
        for number in range(frames):
            picture = np.full((stream.height, stream.width, 3), 20 * (number % 10), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())
    return file


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

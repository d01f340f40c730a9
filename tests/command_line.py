"""What the tests of the command line share: a small folder of data, a run on it, and commands in this process."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfseg.cli import main
from runs import TINY

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


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    return write_folder(tmp_path / "data")


@pytest.fixture(scope="session", name="run")
def run_fixture() -> Path:
    """A run on a good folder; tests only read it."""
    return finished_run()


@cache
def finished_run() -> Path:
    """Trains it, once in this process."""
    root = Path(tempfile.mkdtemp(prefix="hfseg-test-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_folder(root / "data")
    assert main([str(argument) for argument in train(root / "data", root / "run")]) == 0
    return root / "run"


@pytest.fixture(name="hfseg")
def hfseg_fixture(capsys):
    """Runs a command and gives (status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture(name="refused")
def refused_fixture(hfseg):
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

"""Spaces: the wheel that goes along, the files, the push, and the page itself in a process that has no other hfseg."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from PIL import Image

import hfseg
from hfseg.errors import UserError
from hfseg.hub.local import LocalHub
from hfseg.hub.space import push_space, space_files, write_space
from hfseg.hub.wheel import build_wheel, requirements, wheel_name

SPACE = Path(__file__).resolve().parent.parent / "spaces" / "mask-prediction"
MODEL = "hfseg/shapes-segformer"

# Runs app.py as if hfseg were not installed, and writes down every name that is looked up.
START = """
import runpy, socket, sys
log = open(sys.argv[2], "w", buffering=1)
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        log.write(f"{event} {address[0] if isinstance(address, tuple) else address}\\n")
sys.addaudithook(watch)
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.argv = [sys.argv[1]]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def hub(tmp_path, online):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def test_pip_installs_the_wheel(wheel, tmp_path):
    target = tmp_path / "packages"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
                    str(target), str(wheel)], check=True, env=os.environ | {"PIP_CONFIG_FILE": os.devnull})
    assert (target / "hfseg" / "pretrained" / "shapes-segformer" / "model.safetensors").is_file()
    assert (target / "bin" / "hfseg").is_file()
    script = ("import hfseg, sys; from hfseg.hub.wheel import build_wheel; from importlib.metadata import version;"
              "print(hfseg.__file__); print(version('hfseg')); print(build_wheel(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(target)}, cwd=tmp_path, check=True)
    place, version, again = done.stdout.split()
    assert place.startswith(str(target)) and version == hfseg.__version__
    assert Path(again).read_bytes() == wheel.read_bytes()  # from a wheel as from a checkout


def test_the_wheel_says_truly_what_it_holds(wheel):
    info = f"hfseg-{hfseg.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        content = {name: archive.read(name) for name in archive.namelist()}
    listed = [row.rsplit(",", 2) for row in content[f"{info}/RECORD"].decode().splitlines()]
    assert {name for name, _, _ in listed} == set(content)
    for name, digest, size in listed:
        if name != f"{info}/RECORD":
            found = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={found}", len(content[name])), name
    metadata = HeaderParser().parsestr(content[f"{info}/METADATA"].decode())
    assert (metadata["Name"], metadata["Version"]) == ("hfseg", hfseg.__version__)
    assert "demo" in metadata.get_all("Provides-Extra") and f"{info}/licenses/LICENSE" in content
    assert b"hfseg = hfseg.cli:run" in content[f"{info}/entry_points.txt"]
    assert {"hfseg/demo/__init__.py", "hfseg/recipes/shapes_transfer.yaml", "hfseg/py.typed"} < set(content)
    assert not [name for name in content if "__pycache__" in name or name.startswith("tests")]


def test_the_wheel_is_the_same_twice(tmp_path):
    first, second = build_wheel(tmp_path / "a"), build_wheel(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes() and first.name == wheel_name()


def test_requirements_are_those_of_the_package():
    plain, demo = requirements(), requirements("demo")
    assert set(demo) - set(plain) == {"av>=14", "gradio>=6.31"} and "torch>=2.6" in plain
    assert not any("extra" in line or "pytest" in line for line in demo)


def test_a_package_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(hfseg, "__version__", "9.9.9")
    with pytest.raises(UserError, match=r"9\.9\.9 runs"):
        requirements()


def test_the_shipped_space_is_what_is_generated():
    shipped = {file.name: file.read_bytes() for file in SPACE.iterdir() if file.is_file() and file.suffix != ".whl"}
    stated = yaml.safe_load(shipped["README.md"].decode().split("---\n")[1])["sdk_version"]
    made = space_files([MODEL], "mask-prediction", wheel=False, gradio_version=stated)
    fix = "python -c \"from hfseg.hub.space import *; write_space('spaces/mask-prediction', " \
          "['hfseg/shapes-segformer'], 'mask-prediction', wheel=False)\" writes them again"
    assert shipped == made, fix


def test_front_matter_names_models_of_the_hub_and_makes_up_nothing():
    readme = space_files(["me/a", MODEL, "me/a"], "My <b>Space", wheel=False)["README.md"].decode()
    metadata = yaml.safe_load(readme.split("---\n")[1])
    assert metadata["models"] == ["me/a"] and metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py"
    assert metadata["title"] == "My <b>Space" and metadata["pinned"] is False and "license" not in metadata
    import gradio

    assert metadata["sdk_version"] == gradio.__version__ and metadata["python_version"] == "3.11"
    assert "# `My <b>Space`" in readme


@pytest.mark.parametrize("models", [[], ["runs/mine/x"], ["segformer"], ['a/b"]'], ["hfseg/unknown"]])
def test_models_that_a_space_cannot_load_are_refused(models):
    with pytest.raises(UserError):
        space_files(models, "x", wheel=False)


def test_a_space_is_pushed_in_one_commit_and_not_twice(hub):
    api, said = HfApi(hub.url, hub.token), []
    api.create_repo("me/model", private=True)
    at_hub = {"endpoint": hub.url, "token": hub.token, "say": said.append}
    first = push_space("me/space", ["me/model"], private=True, **at_hub)
    files = set(api.list_repo_files("me/space", repo_type="space")) - {".gitattributes"}
    assert files == {"app.py", "requirements.txt", "README.md", wheel_name()} and first.changed == 4
    assert len(api.list_repo_commits("me/space", repo_type="space")) <= 2
    assert any("me/model is private" in text and "HF_TOKEN" in text and "/settings" in text for text in said)
    assert api.space_info("me/space").private and api.space_info("me/space").sdk == "gradio"
    assert push_space("me/space", ["me/model"], **at_hub).changed == 0
    api.upload_file(path_or_fileobj=b"old", path_in_repo="hfseg-0.0.1-py3-none-any.whl", repo_id="me/space",
                    repo_type="space")
    push_space("me/space", ["me/model"], **at_hub)
    assert set(api.list_repo_files("me/space", repo_type="space")) - {".gitattributes"} == files


def test_gradio_deploys_the_folder(hub, tmp_path):
    folder = write_space(tmp_path / "space", [MODEL], "mask-prediction")
    environment = os.environ | hub.environment() | {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", "from gradio.cli import cli; cli()", "deploy"], cwd=folder,
                          env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    api = HfApi(hub.url, hub.token)
    [space] = [info.id for info in api.list_spaces()]
    assert space.endswith("/mask-prediction")
    there = set(api.list_repo_files(space, repo_type="space")) - {".gitattributes"}
    assert there == {file.name for file in folder.iterdir()}


def test_the_page_gives_the_segmenters_map(tmp_path):
    """The Space's own app.py, with the wheel beside it and no hfseg installed; no name is looked up."""
    folder = write_space(tmp_path / "space", [MODEL], "mask-prediction")
    photo = hfseg.load_data("shapes/source", scenes=1).read("train", 0).image
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "no<b>picture.png").write_text("hello")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_TOKEN")} | {
        "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONDONTWRITEBYTECODE": "1"}
    names, environment["TMPDIR"] = tmp_path / "names.txt", str(tmp_path / "temp")
    (tmp_path / "temp").mkdir()
    with (tmp_path / "log.txt").open("w") as log:
        page = subprocess.Popen([sys.executable, "-c", START, str(folder / "app.py"), str(names)], env=environment,
                                cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(page, port, tmp_path / "log.txt")
        from gradio_client import Client, handle_file
        from gradio_client.exceptions import AppError

        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(tmp_path / "got"))
        shown = client.predict(handle_file(tmp_path / "photo.png"), MODEL, api_name="/segment")
        with pytest.raises(AppError, match="not an image file") as told:
            client.predict(handle_file(tmp_path / "no<b>picture.png"), MODEL, api_name="/segment")
        assert "<b>" not in str(told.value) and str(tmp_path) not in str(told.value)
    finally:
        page.terminate()
        page.wait(20)
    assert list((tmp_path / "temp").glob("hfseg-*/hfseg/demo/__init__.py"))  # it ran from the wheel
    expected = hfseg.Segmenter.from_pretrained(MODEL)(photo)
    [predicted] = shown["maps"]
    np.testing.assert_array_equal(np.array(Image.open(predicted["ids"])), expected.semantic_map)
    assert {one["id"]: one["name"] for one in predicted["classes"]} == expected.id2label
    outside = [line for line in names.read_text().splitlines()
               if line.split()[-1] not in ("127.0.0.1", "localhost", "0.0.0.0", "::1", "None")]
    assert names.read_text() and not outside, outside


def wait_for(page: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(600):
        assert page.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_what_the_page_refuses(monkeypatch):
    from hfseg.demo import build_demo

    with pytest.raises(UserError, match="no model"):
        build_demo([])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'hfseg\[demo\]'"):
        build_demo(MODEL)


def test_building_the_page_leaves_no_file_in_the_package():
    """gradio writes stubs beside modules that subclass its components."""
    from hfseg.demo import build_demo

    build_demo(MODEL)
    assert not list(Path(hfseg.__file__).parent.rglob("*.pyi"))

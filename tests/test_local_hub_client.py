"""The real huggingface_hub against the local hub, in processes that may look up no name outside of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_local_hub_http import ask

from faults import Faults
from hfseg.hub.local import LocalHub

HERE = Path(__file__).parent


def run(hub, code_or_file, tmp_path, *arguments, token=None, xet=True):
    """Runs Python with the hub's environment and the guard of loopback_only; returns the finished process."""
    environment = {
        **os.environ, **hub.environment(token), "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE / "loopback_only"), "HF_HUB_DISABLE_XET": str(int(not xet)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    start = [str(code_or_file)] if Path(str(code_or_file)).is_file() else ["-c", code_or_file]
    return subprocess.run([sys.executable, *start, *arguments], env=environment, capture_output=True, text=True,
                          timeout=200)  # fmt: skip


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_every_call_of_the_table(tmp_path, xet):
    with LocalHub(tmp_path / "hub") as hub:
        hub.create_org("lab", ["ann"])
        tokens = [hub.create_token("ann", "read"), hub.create_token("eve")]
        ran = run(hub, HERE / "hub_client_rows.py", tmp_path, *tokens, token=hub.create_token("ann"), xet=xet)
        assert ran.returncode == 0 and ran.stdout.split()[-1] == "folders", ran.stdout + ran.stderr
        assert not list((hub.root / "temporary").iterdir())


def test_the_guard_ends_a_process_that_looks_outside(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        code = "import socket\ntry:\n    socket.getaddrinfo('huggingface.co', 443)\nexcept BaseException:\n    pass"
        assert run(hub, code, tmp_path).returncode == 99
        code = "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 9), 1)\nexcept BaseException:\n    pass"
        assert run(hub, code, tmp_path).returncode == 99


def test_the_command_line_hf(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        (tmp_path / "a.txt").write_text("hello")
        code = "import sys; from huggingface_hub.cli.hf import main; main()"
        for words in ("auth whoami", "repos create net", f"upload me/net {tmp_path / 'a.txt'} a.txt",
                      f"download me/net a.txt --local-dir {tmp_path / 'back'}"):  # fmt: skip
            ran = run(hub, code, tmp_path, *words.split())
            assert ran.returncode == 0, (words, ran.stdout, ran.stderr)
        assert (tmp_path / "back" / "a.txt").read_text() == "hello"


PUSH = """
import os
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("net", exist_ok=True)
try:
    api.upload_file(path_or_fileobj=os.urandom(300_000), path_in_repo="w.bin", repo_id="me/net")
    print("landed")
except Exception as error:
    print(type(error).__name__)
"""
PULL = """
import hashlib
from huggingface_hub import HfApi, hf_hub_download
sha256 = HfApi().get_paths_info("me/net", "w.bin")[0].lfs.sha256
for _ in range(2):
    got = open(hf_hub_download("me/net", "w.bin", force_download=True), "rb").read()
    print(len(got), hashlib.sha256(got).hexdigest() == sha256)
"""


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_faults_do_what_they_say(tmp_path, xet):
    """What a stock client makes of each: the middleware is right if this is what is known of the client."""
    upload = ("POST", "/v1/xorbs/") if xet else ("PUT", "/uploads/")
    faults = Faults()
    with LocalHub(tmp_path / "hub", middleware=[faults]) as hub:
        for planned, answer in [
            ([(*upload, 1, "503"), (*upload, 1, "drop"), ("POST", "/preupload/", 1, "429")], "landed"),
            ([("POST", "/commit/main", 1, "503")], "HfHubHTTPError"), ([(*upload, 9, 422)], None),
        ]:  # fmt: skip
            faults.clear()
            planned, before = [faults.add(*fault) for fault in planned], commits_of(hub)
            ran = run(hub, PUSH, tmp_path, xet=xet)
            assert answer in (None, ran.stdout.strip()) and all(fault.hit for fault in planned), ran.stderr
            assert commits_of(hub) == before + (answer == "landed") == before + ("landed" in ran.stdout)
        faults.clear()
        lost, before = faults.add("POST", "/commit/main", action="lost"), commits_of(hub)
        assert "Error" in run(hub, PUSH, tmp_path, xet=xet).stdout  # and yet it landed, once
        assert lost.hit == 1 and commits_of(hub) == before + 1 and faults.count("POST", "/commit/main") == 1
        cut = faults.add("GET", "/resolve/[^?]*w.bin", action="cut")
        flip = faults.add("GET", "/resolve/[^?]*w.bin", action="flip", after=1)
        ran = run(hub, PULL, tmp_path, xet=xet)
        assert ran.stdout.split() == ["300000", "True", "300000", "False"], ran.stderr
        assert cut.hit == flip.hit == 1


def commits_of(hub):
    """How many commits the repository has; one, as soon as it is made."""
    answer = ask(hub, "GET", "/api/models/me/net/commits/main")
    return len(answer.json) if answer.status == 200 else 1

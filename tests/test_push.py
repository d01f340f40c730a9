"""A finished run is pushed by the real client to a hub on loopback; a hub that refuses is met before training."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runs import SMALL_RUN, environment, hfseg


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as creating a repository and committing small files takes."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        if self.path == "/api/repos/create":
            if hub.refuse:
                return self.answer({"error": "You have no right to write here"}, 403)
            hub.created.append(json.loads(body))
            return self.answer({"url": f"{hub.url}/me/run"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{hub.url}/me/run/commit/{'0' * 40}", "commitOid": "0" * 40})
        return self.answer({"error": self.path}, 404)

    def do_GET(self):
        if self.path.endswith("/auth-check/write") and self.server.refuse:
            return self.answer({"error": "You have no right to write here"}, 403)
        return self.answer({"id": "me/run", "sha": "0" * 40, "siblings": []})

    def answer(self, content: dict, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.refuse = {}, [], False
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    assert environment()["HF_HUB_OFFLINE"] == "1"  # which the runs below override
    monkeypatch.setattr("runs.environment", lambda **more: {**environment(), **more, "HF_HUB_OFFLINE": "0"})
    yield server
    server.shutdown()


def test_a_run_is_pushed_without_its_checkpoints(hub, tmp_path):
    run = tmp_path / "run"
    output = hfseg("train", *SMALL_RUN, "--train.max_steps", "2", "--output_dir", run,
                   "--hub.push_to_hub", "true", "--hub.repo_id", "me/run", "--hub.private", "true")  # fmt: skip
    assert f"pushed: {hub.url}/me/run/commit/" in output
    assert hub.created[0]["name"] == "run"
    expected = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert set(hub.files) == {name for name in expected if not name.startswith("checkpoints/")}
    assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_a_hub_that_refuses_is_met_before_training(hub, tmp_path):
    hub.refuse = True
    output = hfseg("train", *SMALL_RUN, "--output_dir", tmp_path / "run", "--hub.push_to_hub", "true",
                   "--hub.repo_id", "me/run", status=2)  # fmt: skip
    assert "cannot write to me/run" in output and "Traceback" not in output
    assert not (tmp_path / "run" / "train_log.jsonl").exists()

"""The local hub over plain HTTP, without any client library: who may what, ranges, signed URLs, cuts, memory."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_local_hub_xet import described, pack, shard

from hfseg.errors import UserError
from hfseg.hub.local import LocalHub, token_for
from hfseg.hub.local import lfs as lfs_module
from hfseg.hub.local import xet as xet_module


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


class Answer:
    def __init__(self, response, body):
        self.status, self.body = response.status, body
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.code = self.headers.get("x-error-code")

    @property
    def json(self):
        return json.loads(self.body)


def ask(hub, method, path, body=None, token=None, **headers):
    """Sends a request; `token` is the owner's if it is None, and `` for nobody."""
    token = hub.token if token is None else token
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    port = int(hub.url.rsplit(":", 1)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response, response.read())
    finally:
        connection.close()


def create(hub, name="net", kind="model", **more):
    answer = ask(hub, "POST", "/api/repos/create", {"name": name, "type": kind, **more})
    assert answer.status == 200, answer.body
    return answer.json["name"]


def commit(hub, repo, files, kind="models", token=None, revision="main", **header):
    lines = [{"key": "header", "value": {"summary": "change", **header}}]
    for path, content in files.items():
        value = {"path": path, "content": content} if isinstance(content, str) else {"path": path, **content}
        lines.append({"key": "file" if isinstance(content, str) else "lfsFile", "value": value})
    body = "\n".join(map(json.dumps, lines))
    return ask(hub, "POST", f"/api/{kind}/{repo}/commit/{revision}", body, token)


def batch(hub, repo, content, size=None, token=None):
    oid = hashlib.sha256(content).hexdigest()
    size = len(content) if size is None else size
    body = {"operation": "upload", "objects": [{"oid": oid, "size": size}]}
    answer = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", body, token)
    return oid, answer.json["objects"][0] if answer.status == 200 else answer


def put(hub, action, content, method="PUT"):
    return ask(hub, method, action["actions"]["upload"]["href"].removeprefix(hub.url), content, "")


def send_large(hub, repo, content):
    oid, action = batch(hub, repo, content)
    assert put(hub, action, content).status == 200
    return {"oid": oid, "size": len(content), "algo": "sha256"}


def traces(hub):
    """What lies in the hub's folder for files: contents, and what is half written."""
    return sorted(f.name for name in ("files", "temporary") for f in (hub.root / name).rglob("*") if f.is_file())


# -- who may what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host,status", [
    ("127.0.0.1", 200), ("localhost:80", 200), ("[::1]:8", 200), ("evil.example", 421), ("", 421),
    ("127.0.0.1.evil.example:8787", 421),
])  # fmt: skip
def test_a_name_that_others_let_point_here_is_not_answered(hub, host, status):
    assert ask(hub, "GET", "/api/models", Host=host).status == status


def test_another_host_must_be_asked_for_and_is_answered_by_any_name(tmp_path):
    with LocalHub(tmp_path / "hub", host="0.0.0.0") as hub:
        assert ask(hub, "GET", "/api/models", Host="laboratory.example").status == 200
    with pytest.raises(UserError, match="cannot listen"), LocalHub(tmp_path / "hub", host="192.0.2.1"):
        pass


def test_a_port_that_is_taken_is_said(hub, tmp_path):
    with pytest.raises(UserError, match="cannot listen"), LocalHub(tmp_path / "more", port=99999):
        pass
    with pytest.raises(UserError, match="cannot listen"), LocalHub(tmp_path / "other", port=hub.port):
        pass


def test_roles(hub):
    reader, writer, stranger = (hub.create_token(*who) for who in (("ann", "read"), ("ann", "write"), ("eve",)))
    hub.create_org("lab", ["ann"])
    for name, token, status in [
        ("lab", writer, 200), ("ann", writer, 200), ("ann", reader, 403), ("lab", stranger, 403), ("ann", "", 401),
        ("ann", "hf_wrong", 401),
    ]:  # fmt: skip
        body = {"name": f"net{status}", "organization": name}
        assert ask(hub, "POST", "/api/repos/create", body, token).status == status
    assert commit(hub, "lab/net200", {"a": "1"}, token=writer).status == 200
    assert commit(hub, "lab/net200", {"a": "1"}, token=hub.token).status == 200  # the owner may everything
    assert commit(hub, "lab/net200", {"a": "1"}, token=reader).status == 403
    refused = commit(hub, "lab/net200", {"a": "1"}, token=stranger)
    assert (refused.status, refused.code) == (403, None) and "eve" in refused.headers["x-error-message"]
    assert ask(hub, "GET", "/api/models/lab/net200/auth-check", token=stranger).status == 200
    assert ask(hub, "GET", "/api/models/lab/net200/auth-check/write", token=stranger).status == 403
    assert ask(hub, "GET", "/api/models/lab/net200/auth-check/write", token=writer).status == 200
    who = ask(hub, "GET", "/api/whoami-v2", token=writer).json
    assert (who["name"], [org["name"] for org in who["orgs"]]) == ("ann", ["lab"])
    assert who["auth"]["accessToken"]["role"] == "write"
    basic = ask(hub, "GET", "/api/models", token="", Authorization="Basic x")
    for answer in (ask(hub, "GET", "/api/whoami-v2", token="hf_no"), basic):
        assert (answer.status, answer.code) == (401, None)
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"


def test_what_one_may_not_see_answers_as_what_is_not_there(hub):
    repo = create(hub, "secret", visibility="private")
    commit(hub, repo, {"a.txt": "1"})
    stranger = hub.create_token("eve")
    for path in (f"/api/models/{repo}", f"/api/models/{repo}/tree/main", f"/api/models/{repo}/refs",
                 f"/{repo}/resolve/main/a.txt", f"/api/models/{repo}/commits/main"):  # fmt: skip
        for token, status in (("", 401), (stranger, 404)):
            hidden = ask(hub, "GET", path, token=token)
            missing = ask(hub, "GET", path.replace("secret", "no"), token=token)
            assert (hidden.status, hidden.code, hidden.body) == (status, "RepoNotFound", missing.body)
        assert ask(hub, "GET", path).status == 200
    assert ask(hub, "GET", "/api/models", token=stranger).json == []
    assert len(ask(hub, "GET", "/api/models").json) == 1
    assert batch(hub, repo, b"x", token=stranger)[1].status == 404


def test_gated_files_must_be_asked_for(hub):
    repo = create(hub)
    commit(hub, repo, {"a.txt": "1"})
    assert ask(hub, "PUT", f"/api/models/{repo}/settings", {"gated": "manual"}).status == 200
    eve = hub.create_token("eve")
    for token, status in (("", 401), (eve, 403)):
        refused = ask(hub, "GET", f"/{repo}/resolve/main/a.txt", token=token)
        assert (refused.status, refused.code) == (status, "GatedRepo")
        assert ask(hub, "GET", f"/api/models/{repo}", token=token).json["gated"] == "manual"
    assert ask(hub, "POST", f"/{repo}/ask-access", token=eve).json == {"status": "pending"}
    grant = {"user": "eve", "status": "accepted"}
    assert ask(hub, "POST", f"/api/models/{repo}/user-access-request/handle", grant, eve).status == 403
    assert ask(hub, "POST", f"/api/models/{repo}/user-access-request/handle", grant).status == 200
    assert ask(hub, "GET", f"/{repo}/resolve/main/a.txt", token=eve).status == 200


# -- files -----------------------------------------------------------------------------------------------------------


def test_ranges_etags_and_heads(hub):
    repo, content = create(hub), bytes(range(256)) * 5000
    large = send_large(hub, repo, content)
    made = commit(hub, repo, {"w.bin": large, "t.txt": "text"}).json["commitOid"]
    path = f"/{repo}/resolve/main/w.bin"
    whole = ask(hub, "GET", path)
    assert (whole.status, whole.body) == (200, content)
    assert whole.headers["etag"] == f'"{large["oid"]}"' and whole.headers["x-repo-commit"] == made
    assert "x-xet-hash" not in whole.headers
    head = ask(hub, "HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(content)))
    part = ask(hub, "GET", path, Range="bytes=1000000-1100000")
    assert (part.status, part.body) == (206, content[1_000_000:1_100_001])
    assert part.headers["content-range"] == f"bytes 1000000-1100000/{len(content)}"
    assert ask(hub, "GET", path, Range="bytes=-7").body == content[-7:]
    outside = ask(hub, "GET", path, Range=f"bytes={len(content)}-")
    assert (outside.status, outside.headers["content-range"]) == (416, f"bytes */{len(content)}")
    same = ask(hub, "GET", path, If_None_Match=whole.headers["etag"])
    assert (same.status, same.body) == (304, b"")
    assert ask(hub, "GET", path, If_None_Match='"other"').status == 200
    assert ask(hub, "GET", path, Range="bytes=0-1", If_Range='"other"').status == 200
    assert ask(hub, "GET", path, Range="bytes=0-1", If_Range=whole.headers["etag"]).status == 206
    text = ask(hub, "GET", f"/{repo}/resolve/{made}/t.txt")
    assert text.headers["etag"].strip('"') == hashlib.sha1(b"blob 4\0text").hexdigest()
    assert ask(hub, "GET", f"/{repo}/raw/main/w.bin").body.startswith(b"version https://git-lfs")
    missing = ask(hub, "HEAD", f"/{repo}/resolve/main/no.txt")
    assert (missing.status, missing.code, missing.headers["x-repo-commit"]) == (404, "EntryNotFound", made)
    assert ask(hub, "GET", f"/{repo}/resolve/no/t.txt").code == "RevisionNotFound"
    missing = ask(hub, "GET", f"/api/models/{repo}/tree/main/no")
    assert (missing.status, missing.code) == (404, "EntryNotFound")


def test_pages_from_strangers_run_nothing(hub):
    repo = create(hub)
    commit(hub, repo, {"x.html": "<script>alert(1)</script>", "x.svg": "<svg/>", "a.png": "x"})
    text = "text/plain; charset=utf-8"
    for name, kind in (("x.html", text), ("x.svg", text), ("a.png", "image/png")):
        shown = ask(hub, "GET", f"/{repo}/resolve/main/{name}")
        assert shown.headers["content-type"] == kind and shown.headers["x-content-type-options"] == "nosniff"
        assert shown.headers["content-security-policy"].startswith("sandbox")


def test_odd_names_and_revisions_come_through_the_path(hub):
    repo = create(hub)
    assert commit(hub, repo, {"ä b/100%.txt": "1", "a%2Fb": "2"}).status == 200
    assert ask(hub, "GET", f"/{repo}/resolve/main/%C3%A4%20b/100%25.txt").body == b"1"
    assert ask(hub, "GET", f"/{repo}/resolve/main/a%252Fb").body == b"2"
    ask(hub, "POST", f"/api/models/{repo}/branch/feature%2Fx", {})
    assert commit(hub, repo, {"c": "3"}, revision="feature%2Fx").status == 200
    assert ask(hub, "GET", f"/{repo}/resolve/feature%2Fx/c").body == b"3"
    assert ask(hub, "GET", f"/api/models/{repo}/tree/refs%2Fheads%2Ffeature%2Fx").status == 200
    for path in (f"/{repo}/resolve/main/%2e%2e/%2e%2e/hub.sqlite3", f"/{repo}/resolve/main/..%2f..%2fhub.sqlite3",
                 f"/{repo}/resolve/main//etc/passwd", f"/{repo}/resolve/main/%ff"):  # fmt: skip
        assert ask(hub, "GET", path).status in (400, 404)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a\\b", ".git/config", "a//b", "a\n"])
def test_no_commit_leaves_the_repository(hub, path):
    repo = create(hub)
    before = traces(hub)
    assert commit(hub, repo, {"good": "content that is new", path: "x"}).status == 400
    assert traces(hub) == before
    assert ask(hub, "POST", f"/api/models/{repo}/preupload/main", {"files": [{"path": path, "size": 1}]}).status == 422


# -- commits ---------------------------------------------------------------------------------------------------------


def test_stale_parents_and_writers_at_once(hub):
    repo = create(hub)
    head = ask(hub, "GET", f"/api/models/{repo}").json["sha"]
    with ThreadPoolExecutor(12) as pool:
        free = list(pool.map(lambda i: commit(hub, repo, {f"{i}.txt": str(i)}).status, range(12)))
        racing = list(pool.map(lambda i: commit(hub, repo, {f"r{i}": "x"}, parentCommit=head).status, range(12)))
    assert free == [200] * 12 and racing == [412] * 12
    head = ask(hub, "GET", f"/api/models/{repo}").json["sha"]
    with ThreadPoolExecutor(12) as pool:
        racing = list(pool.map(lambda i: commit(hub, repo, {f"r{i}": "x"}, parentCommit=head).status, range(12)))
    assert sorted(racing) == [200] + [412] * 11
    assert len(ask(hub, "GET", f"/api/models/{repo}/commits/main").json) == 14


def test_lists_come_in_pages_and_a_page_is_of_one_commit(hub):
    repo = create(hub)
    commit(hub, repo, {f"d/{i:03}": str(i) for i in range(25)})
    found, path = [], f"/api/models/{repo}/tree/main/d?limit=10"
    while path:
        answer = ask(hub, "GET", path)
        found += [entry["path"] for entry in answer.json]
        link = answer.headers.get("link")
        path = re.fullmatch(r'<http://[^/]*(/.*)>; rel="next"', link)[1] if link else None
        commit(hub, repo, {"d/000a": "pushed in between"})
    assert found == [f"d/{i:03}" for i in range(25)]
    for number in range(3):
        create(hub, f"m{number}")
    first = ask(hub, "GET", "/api/models?search=m&limit=2&sort=createdAt&full=true")
    second = ask(hub, "GET", re.search(r"<http://[^/]*(/.*)>", first.headers["link"])[1])
    assert [m["id"] for m in first.json + second.json] == ["me/m2", "me/m1", "me/m0", "me/net"]
    assert "link" not in second.headers and first.json[0]["siblings"]


def test_tokens_are_made_while_the_hub_serves(hub, tmp_path):
    token = token_for(hub.root, "ann", "read")
    assert ask(hub, "GET", "/api/whoami-v2", token=token).json["name"] == "ann"
    for root, user, role, found in ((tmp_path / "none", "ann", "read", "there is no hub in"),
                                    (hub.root, "ann", "owner", "unknown role 'owner'"),
                                    (hub.root, "api", "read", "reserved")):  # fmt: skip
        with pytest.raises(UserError, match=found):
            token_for(root, user, role)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can hold no hub"):
        LocalHub(tmp_path / "file")


def test_quota(hub):
    repo = create(hub)
    hub.quota_bytes = 5000
    refused = batch(hub, repo, bytes(6000))[1]
    assert refused.status == 403 and "Storage limit" in refused.json["error"]
    assert commit(hub, repo, {"a": "x" * 6000}).status == 403
    assert commit(hub, repo, {"a": "x" * 100}).status == 200
    hub.quota_bytes = None
    assert commit(hub, repo, {"a": "x" * 6000}).status == 200


# -- large files -----------------------------------------------------------------------------------------------------


def test_upload_urls_are_signed_and_expire(hub, monkeypatch):
    repo, content = create(hub), b"weights" * 100
    before = traces(hub)
    oid, action = batch(hub, repo, content)
    href = action["actions"]["upload"]["href"].removeprefix(hub.url)
    parts = href.split("/")
    for place, value in ((2, "2"), (3, "0" * 64), (4, "1"), (5, "9999999999"), (6, "0" * 64)):
        forged = "/".join([*parts[:place], value, *parts[place + 1 :]])
        assert ask(hub, "PUT", forged, content, "").status == 403
    for wrong in (content[:-1], content + b"x", bytes(len(content))):
        assert ask(hub, "PUT", href, wrong, "").status == 422
    assert traces(hub) == before
    assert commit(hub, repo, {"w.bin": {"oid": oid, "size": len(content)}}).status == 400
    assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/verify", {"oid": oid, "size": len(content)}).status == 404
    assert ask(hub, "PUT", href, content, "").status == 200
    assert "actions" not in batch(hub, repo, content)[1]
    assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/verify", {"oid": oid, "size": len(content)}).status == 200
    assert "actions" in batch(hub, create(hub, "other"), content)[1]  # what one holds, another must send
    monkeypatch.setattr(lfs_module, "LIFETIME", -1)
    late = put(hub, batch(hub, repo, b"late")[1], b"late")
    assert late.status == 403 and "expired" in late.json["error"]


def test_an_upload_that_is_cut_leaves_no_trace(hub):
    repo, content = create(hub), os.urandom(3 << 20)
    before = traces(hub)
    href = batch(hub, repo, content)[1]["actions"]["upload"]["href"].removeprefix(hub.url)
    for path, kept in ((href, len(content) // 2), (f"/api/models/{repo}/commit/main", 1000)):
        connection = socket.create_connection(("127.0.0.1", hub.port))
        method = "PUT" if path == href else "POST"
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {hub.token}\r\n"
                           f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:kept])  # fmt: skip
        time.sleep(0.1)
        connection.close()
    end = time.monotonic() + 5
    while traces(hub) != before and time.monotonic() < end:
        time.sleep(0.02)
    assert traces(hub) == before


def xet_token(hub, repo):
    token = ask(hub, "GET", f"/api/models/{repo}/xet-write-token/main").json
    return token["casUrl"].removeprefix(hub.url), token["accessToken"]


def test_xet_takes_only_what_has_its_hash(hub, monkeypatch):
    repo, chunks = create(hub), [b"one" * 50, b"two" * 60, b"three" * 70]
    path, token = xet_token(hub, repo)
    digest, sha256, segments = described(chunks, 1)
    xorb = b"".join(pack(chunk, scheme) for scheme, chunk in enumerate(chunks))
    before = traces(hub)
    upload = lambda body, name=segments[0][0], token=token: ask(  # noqa: E731
        hub, "POST", f"{path}/v1/xorbs/default/{name}", body, token)  # fmt: skip
    tell = lambda *files: ask(hub, "POST", f"{path}/v1/shards", shard(files), token)  # noqa: E731
    assert tell((digest, sha256, segments)).status == 400  # no such xorb
    right = segments[0][0]
    for body, name in ((xorb[:-1], right), (xorb, "0" * 64), (b"", right), (xorb + b"x", right)):
        assert upload(body, name).status == 400
    assert upload(xorb, "../../../x").status in (400, 404)
    assert upload(xorb, token="hf_no").status == 401 and upload(xorb, token=token[:-1] + "0").status == 401
    assert upload(xorb).json == {"was_inserted": True} and upload(xorb).json == {"was_inserted": False}
    segment, lie = segments[0], "0" * 64
    for wrong in [
        (lie, sha256, segments), (digest, lie, segments), (digest, None, segments),
        (digest, sha256, [(segment[0], 0, *segment[2:])]), (digest, sha256, [(*segment[:2], 9, *segment[3:])]),
        (digest, sha256, [(*segment[:3], segment[3] + 1, segment[4])]), (digest, sha256, [(*segment[:4], bytes(32))]),
        (digest, sha256, segments * 2),
    ]:  # fmt: skip
        answer = tell(wrong)
        assert answer.status == 400 and "Xet" in answer.json["error"]
    assert ask(hub, "POST", f"{path}/v1/shards", shard([(digest, sha256, segments)])[:-20], token).status == 400
    hub.quota_bytes = 10
    assert tell((digest, sha256, segments)).status == 403
    hub.quota_bytes = None
    assert traces(hub) == before
    assert commit(hub, repo, {"w.bin": {"oid": sha256}}).status == 400
    assert tell((digest, sha256, segments)).status == 200
    assert commit(hub, repo, {"w.bin": {"oid": sha256}}).status == 200
    assert ask(hub, "GET", f"/{repo}/resolve/main/w.bin").body == b"".join(chunks[1:])
    assert ask(hub, "POST", f"{path}/v2/shards", b"", token).status == 404  # hf_xet then takes v1
    monkeypatch.setattr(xet_module, "LIFETIME", -1)
    path, token = xet_token(hub, repo)
    assert ask(hub, "POST", f"{path}/v1/shards", shard([]), token).status == 401
    stranger = hub.create_token("eve")
    assert ask(hub, "GET", f"/api/models/{repo}/xet-write-token/main", token=stranger).status == 403


def test_a_wiped_hub_has_another_url_for_xet(tmp_path):
    urls = set()
    for name in ("a", "b", "b"):
        with LocalHub(tmp_path / name) as hub:
            if name == "a" or len(urls) == 1:
                create(hub)
            urls.add(xet_token(hub, "me/net")[0])
    assert len(urls) == 3


SERVER = """
import sys, threading
from hfseg.hub.local import LocalHub, token_for
with LocalHub(sys.argv[1]) as hub:
    print(hub.url, hub.token, flush=True)
    threading.Event().wait()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_flat_while_64_mb_come_and_go(tmp_path):
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path / "hub")], stdout=subprocess.PIPE, text=True)
    try:
        url, token = server.stdout.readline().split()
        hub = type("Hub", (), {"url": url, "token": token, "root": tmp_path / "hub"})
        repo, content = create(hub), os.urandom(1 << 20)
        send_large(hub, repo, content)
        ask(hub, "GET", "/api/models")

        def peak():
            status = Path(f"/proc/{server.pid}/status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024

        before = peak()
        content = content * 64
        large = send_large(hub, repo, content)
        assert commit(hub, repo, {"w.bin": large}).status == 200
        assert ask(hub, "GET", f"/{repo}/resolve/main/w.bin").body == content
        assert peak() - before < 24
        lines = {f"{i}.txt": "a" * (9 << 20) for i in range(10)}
        assert commit(hub, repo, lines).status == 200  # a commit needs its largest line some times, never all of them
        assert peak() - before < 80
    finally:
        server.kill()
        server.wait()


def test_the_answer_to_a_refused_upload_is_seen(hub):
    """The hub reads to the end what it refuses, so that a client that is still sending gets to the answer."""
    create(hub)
    refused = ask(hub, "POST", "/api/models/me/missing/commit/main", bytes(30 << 20))
    assert (refused.status, refused.code) == (404, "RepoNotFound")
    assert ask(hub, "PUT", "/uploads/1/2/3/4/5", bytes(10 << 20), "").status == 403
    assert ask(hub, "PATCH", "/api/models/me/net").status == 405
    for body in ("[1]", "{", '"x"', '{"name": 3}'):
        assert ask(hub, "POST", "/api/repos/create", body).status == 400


def test_it_stops_while_somebody_downloads(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        repo = create(hub)
        commit(hub, repo, {"w.bin": send_large(hub, repo, os.urandom(20 << 20))})
        slow = socket.create_connection(("127.0.0.1", hub.port))
        slow.sendall(f"GET /{repo}/resolve/main/w.bin HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        slow.recv(1000)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    slow.close()
    assert not any(thread.name == "hfseg hub" for thread in threading.enumerate())

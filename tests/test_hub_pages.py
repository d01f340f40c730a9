"""The hub's pages: private repositories hide, and every link leads somewhere."""

from __future__ import annotations

import base64
import http.client
import json
import time
from urllib.parse import quote, unquote, urlencode, urljoin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from hfseg.hub.local import LocalHub
from hfseg.hub.local.access import sign
from hfseg.hub.local.page_files import read_header
from hfseg.hub.local.page_parts import size_text
from hfseg.hub.local.page_session import cookie_name
from strict_html import JSON, NASTY, PAGE_ATTRIBUTES, PAGE_TAGS, read


class Client:
    """Asks a hub as a browser would, and reads what comes as strictly."""

    def __init__(self, hub: LocalHub, cookie: str | None = None):
        self.hub, self.cookie = hub, cookie

    def __call__(self, path: str, method="GET", body: bytes | None = None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.hub.port, timeout=30)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            headers["Cookie"] = self.cookie
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.content = answer.read()
        answer.text = answer.content.decode("utf-8", "replace")
        connection.close()
        if answer.headers.get_content_type() == "text/html":
            answer.page = read(answer.text, PAGE_TAGS, PAGE_ATTRIBUTES)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return answer

    def sign_in(self, token: str, **headers):
        form = urlencode({"token": token, "next": "/me/secret"}).encode()
        answer = self("/login", "POST", form, Content_Type="application/x-www-form-urlencoded", **headers)
        if answer.status == 303:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer


def api(hub: LocalHub, path: str, value, token: str | None = None) -> dict:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    answer = Client(hub)(path, "POST", body, Authorization=f"Bearer {token or hub.token}")
    assert answer.status == 200, (path, answer.text)
    return json.loads(answer.content)


def commit(hub: LocalHub, repo: str, files: dict[str, bytes], title="Add", revision="main", query="", delete=()) -> str:
    lines = [{"key": "header", "value": {"summary": title, "description": "Because *of* <b>it</b>"}}]
    lines += [{"key": "file", "value": {"path": path, "encoding": "base64", "content": base64.b64encode(data).decode()}}
              for path, data in files.items()]  # fmt: skip
    lines += [{"key": "deletedFile", "value": {"path": path}} for path in delete]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    return api(hub, f"/api/{repo}/commit/{quote(revision, safe='')}{query}", body)["commitOid"]


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEIGHTS = {"head.weight": np.zeros((3, 4, 1, 1), np.float32), "head.<b>": np.zeros(3, np.float16), "steps": np.array(1)}
CARD = """---
license: mit
base_model: ["me/net", "nobody/here", "\\ud800"]
tags: [hfseg, "<b>bold</b>"]
model-index:
- name: net
  results:
  - dataset: {name: shapes, type: shapes, split: test}
    metrics: [{type: mean_iou, value: 0.5}, {type: iou, value: 0.25, name: IoU of disk, args: {class_id: 1}}]
---
<!-- hidden marker -->
# Title <script>alert(1)</script>

[recipe](recipe.yaml) ![curve](pictures/curve.png)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        for kind, name, private in (
            ("model", "net", False),
            ("dataset", "data", False),
            ("space", "app", False),
            ("model", "secret", True),
        ):
            api(
                hub,
                "/api/repos/create",
                {"name": name, "type": kind, "private": private, "sdk": "gradio" if kind == "space" else None},
            )
        commit(hub, "models/me/net", {
            "README.md": CARD.encode(), "recipe.yaml": b"\na: 1\n<b>\n", "pictures/curve.png": PNG,
            "config.json": b'{"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}',
            "model.safetensors": save(WEIGHTS), "damaged.safetensors": b"\xff" * 64, NASTY: b"nasty <i>",
            "page.html": b"<script>alert(1)</script>", "binary.bin": bytes(range(256)), "empty.txt": b"",
            "logo.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
            "long.txt": "é".encode() * 150_000,
        }, "First <script>")  # fmt: skip
        commit(hub, "models/me/net", {"recipe.yaml": b"\na: 2\n<b>\n"}, "Second", delete=["empty.txt"])
        commit(hub, "models/me/net", {"README.md": b"# Better\n"}, "Propose <i>", query="?create_pr=1")
        api(hub, f"/api/models/me/net/branch/{quote('x/y<b>&', safe='')}", {})
        api(hub, "/api/models/me/net/tag/main", {"tag": "v1.0"})
        commit(hub, "models/me/secret", {"README.md": b"# Hush\n\n![p](p.png)", "p.png": PNG})
        yield hub


def test_every_link_on_every_page_leads_somewhere(hub):
    ask, seen, waiting = Client(hub), set(), ["/"]
    while waiting:
        path = waiting.pop()
        answer = ask(path)
        assert answer.status in (200, 302), (path, answer.status)
        if answer.headers.get_content_type() == "text/html":
            assert "secret" not in answer.text and "Hush" not in answer.text
            links = [urljoin(path, link) for link in answer.page.links + answer.page.images]
            own = {link.split("#")[0] for link in links if link.startswith("/") and link != "/logout"}
            waiting += sorted(own - seen)
            seen |= own
    known = [unquote(path) for path in seen]
    assert len(seen) > 60 and any(NASTY in path for path in known) and any("x/y<b>&" in path for path in known)
    assert {"/datasets/me/data", "/spaces/me/app", "/me/net/discussions/1", "/me/net/tree/refs%2Fpr%2F1", "/me"} <= seen


def test_a_card_shows_its_facts_results_and_text(hub):
    page = Client(hub)("/me/net").page
    for text in (
        "Title <script>alert(1)</script>",
        "mit",
        "<b>bold</b>",
        "Results on shapes (test)",
        "0.25",
        "1 more, of single classes",
        "SegformerForSemanticSegmentation as Model",
        f"export HF_ENDPOINT={hub.url}",
        "hfseg pull me/net",
    ):
        assert text in page.text, text
    assert "hidden marker" not in page.text and hub.token not in page.text
    assert "/-/me/net/resolve/main/pictures/curve.png" in page.images and "/me/net/blob/main/recipe.yaml" in page.links
    assert "/me/net" in page.links and "nobody/here" in page.text and "/nobody/here" not in page.links
    assert 'revision="v1.0"' in Client(hub)("/me/net/tree/v1.0?card=1").page.text


def test_where_clients_send_somebody_without_token_or_room(hub):
    ask = Client(hub)
    assert "hfseg hub token" in ask("/settings/tokens").page.text
    assert "no limit" in ask("/settings/billing").page.text and "/me" not in ask("/settings/billing").page.links
    ask.sign_in(hub.token)
    assert "/me" in ask("/settings/billing").page.links


def test_search_and_author_filter(hub):
    hub.create_token("ada")
    ask = Client(hub)
    assert {"/me/net", "/datasets/me/data"} <= set(ask("/").page.links)
    found = set(ask("/?search=NE+t").page.links)
    assert "/me/net" in found and "/datasets/me/data" not in found
    assert "Nothing fits" in ask("/?author=nobody").page.text and "/me/net" in ask("/models?author=ME").page.links
    assert ask("/ada").status == 404


def test_files_show_by_their_kind(hub):
    ask = Client(hub)
    # The first line is empty; HTML drops the first line break of a pre.
    assert '<pre class="text">\n\na: 2\n&lt;b&gt;\n</pre>' in ask("/me/net/blob/main/recipe.yaml").text
    assert "<script>alert(1)</script>" in ask("/me/net/blob/main/page.html").page.text
    assert "A binary file of 256 B" in ask("/me/net/blob/main/binary.bin").page.text
    long = ask("/me/net/blob/main/long.txt").page.text
    assert "The first 200 kB of 300 kB" in long and long.count("é") == 100_000
    assert ask("/me/net/blob/main/pictures/curve.png").page.images == ["/-/me/net/resolve/main/pictures/curve.png"]
    assert "nasty <i>" in ask(f"/me/net/blob/main/{quote(NASTY)}").page.text
    assert ask("/me/net/blob/main/none.txt").status == 404 and ask("/me/net/tree/none").status == 404


def test_tensors_are_those_of_the_file(hub):
    text = Client(hub)("/me/net/blob/main/model.safetensors").page.text
    count = sum(tensor.size for tensor in WEIGHTS.values())
    assert f"{count} parameters in 3 tensors (12 of F32, 3 of F16, 1 of I64)" in text
    assert "3 × 4 × 1 × 1" in text and "head.<b>" in text
    assert "No safetensors file" in Client(hub)("/me/net/blob/main/damaged.safetensors").page.text


@given(
    head=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()),
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_a_damaged_safetensors_header_is_refused(tmp_path_factory, head, length):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head)
    try:
        header = read_header(path)
    except ValueError:
        return
    assert header == json.loads(head) and all(isinstance(tensor, dict) for tensor in header.values())


@pytest.mark.parametrize("shape", [["x"], [-1], [True], [1.5], [1 << 60], [1] * 20, 3, None])
def test_a_shape_that_is_none_is_refused(tmp_path, shape):
    head = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(ValueError, match="no dtype and shape for a"):
        read_header(tmp_path / "a.safetensors")


def test_history_tells_what_changed(hub):
    ask = Client(hub)
    history = ask("/me/net/commits/main").page
    assert history.text.index("Second") < history.text.index("First <script>")
    commits = [link for link in history.links if "/commit/" in link]
    text = ask(commits[0]).page.text
    assert "-a: 1" in text and "+a: 2" in text and "empty.txt" in text and "removed" in text
    assert "README.md" not in text and "Because *of* <b>it</b>" in text
    request = ask("/me/net/discussions/1").page.text
    assert (
        "Propose <i>" in request
        and "-# Title" in request
        and "+# Better" in request
        and "Because of <b>it</b>" in request
    )


def test_private_repositories_show_only_to_who_is_signed_in(hub):
    ask = Client(hub)
    pages = ("/me/secret", "/me/secret/tree/main", "/me/secret/blob/main/p.png", "/me/secret/commits/main",
             "/me/secret/discussions", "/-/me/secret/resolve/main/p.png")  # fmt: skip
    hidden, missing = ask("/me/secret"), ask("/me/nothing")
    assert hidden.status == missing.status == 404
    assert hidden.text.replace("secret", "") == missing.text.replace("nothing", "")
    answer = ask.sign_in(hub.token)
    assert answer.status == 303 and answer.headers["Location"] == "/me/secret"
    flags = answer.headers["Set-Cookie"].lower()
    assert "httponly" in flags and "samesite=strict" in flags and hub.token.lower() not in flags
    assert all(ask(path).status == 200 for path in pages) and all(Client(hub)(path).status == 404 for path in pages)
    picture = ask("/-/me/secret/resolve/main/p.png")
    assert picture.content == PNG and picture.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert picture.headers["Cache-Control"] == "private, no-cache" and "/me/secret" in ask("/").page.links
    other = Client(hub)
    other.sign_in(hub.create_token("eve"))
    assert "eve" in other("/").page.text and all(other(path).status == 404 for path in pages)
    assert "hfseg_hub_" in ask("/logout", "POST", b"").headers["Set-Cookie"]


def test_the_cookie_opens_no_call_of_the_api(hub):
    ask = Client(hub)
    ask.sign_in(hub.token)
    create = json.dumps({"name": "made-by-cookie"}).encode()
    assert ask("/api/repos/create", "POST", create).status == 401
    assert ask("/api/models/me/secret").status == 401 and ask("/api/whoami-v2").status == 401
    assert ask("/me/secret/resolve/main/p.png").status == 401
    assert ask("/api/models/me/net/tag/main", "POST", b'{"tag": "t"}').status == 401
    assert ask("/api/repos/delete", "DELETE", b'{"name": "net"}').status == 401


def test_only_the_hubs_own_cookies_count(hub):
    ask = Client(hub)
    ask.sign_in(hub.token)
    name, value = ask.cookie.split("=", 1)
    digest, expires, signature = value.split(".")
    store = hub._hub.store
    late = int(time.time()) - 1
    for forged in (
        f"{digest}.{int(expires) + 1}.{signature}",
        f"{'0' * 64}.{expires}.{signature}",
        f"{digest}.{expires}.{'0' * 64}",
        f"{digest}.{late}.{sign(store, 'session', digest, late)}",
        "x",
        "",
        f"{digest}.{expires}",
    ):
        assert Client(hub, f"{name}={forged}")("/me/secret").status == 404, forged
    token = hub.create_token("me", "read")
    reader = Client(hub)
    reader.sign_in(token)
    assert reader("/me/secret").status == 200 and name == cookie_name(store)
    with store.write() as db:
        db.execute("DELETE FROM tokens WHERE role = 'read'")
    assert reader("/me/secret").status == 404


def test_signing_in_refuses_wrong_tokens_other_sites_and_other_places(hub):
    ask = Client(hub)
    wrong = ask.sign_in("hf_wrong")
    assert wrong.status == 401 and "does not know this token" in wrong.page.text and ask.cookie is None
    assert ask.sign_in(hub.token, Sec_Fetch_Site="cross-site").status == 403
    assert ask.sign_in(hub.token, Origin="http://evil.example").status == 403
    assert ask.sign_in(hub.token, Origin=hub.url, Sec_Fetch_Site="same-origin").status == 303
    for place in (
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/a\r\nb: c",
        "\t//evil.example",
    ):
        form = urlencode({"token": hub.token, "next": place}).encode()
        assert Client(hub)("/login", "POST", form).headers["Location"] == "/", place


def test_no_file_of_a_stranger_is_a_page_of_this_origin(hub):
    ask = Client(hub)
    for prefix in ("", "/-"):
        for name in ("page.html", "logo.svg", "README.md", "binary.bin"):
            answer = ask(f"{prefix}/me/net/resolve/main/{name}")
            assert answer.status == 200 and answer.headers.get_content_type() != "text/html"
            assert (
                "sandbox" in answer.headers["Content-Security-Policy"]
                and "script" not in answer.headers["Content-Security-Policy"]
            )
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert ask("/-/me/net/resolve/main/logo.svg").headers.get_content_type() == "image/svg+xml"


def test_gated_files_stay_closed(hub):
    api(hub, "/api/repos/create", {"name": "gated"})
    commit(hub, "models/me/gated", {"README.md": b"# Open card\n", "w.txt": b"closed words"})
    connection = Client(hub)(
        "/api/models/me/gated/settings", "PUT", b'{"gated": "manual"}', Authorization=f"Bearer {hub.token}"
    )
    assert connection.status == 200
    ask = Client(hub)
    assert "Open card" in ask("/me/gated").page.text and "ask-access" in ask("/me/gated").page.text
    assert ask("/me/gated/blob/main/w.txt").status == 401 and ask("/-/me/gated/resolve/main/w.txt").status == 401
    assert "closed words" not in ask("/me/gated/commit/main").page.text
    assert (
        "closed words" in Client(hub, None)("/me/gated/blob/main/w.txt", Authorization=f"Bearer {hub.token}").page.text
    )
    Client(hub)("/api/repos/delete", "DELETE", b'{"name": "gated"}', Authorization=f"Bearer {hub.token}")


def test_pages_are_kept_by_the_browser_and_missing_ones_are_pages(hub):
    ask = Client(hub)
    first = ask("/me/net")
    again = ask("/me/net", If_None_Match=first.headers["ETag"])
    assert first.headers["Cache-Control"] == "private, no-cache" and (again.status, again.content) == (304, b"")
    for path in (
        "/zzz",
        "/a/b",
        "/a/b/c/d",
        "/datasets/a/b",
        "/me/net/blob/main/no",
        "/me/net/discussions/99",
        "/me/net/commit/" + "0" * 40,
    ):
        answer = ask(path)
        assert answer.status == 404 and answer.headers.get_content_type() == "text/html", path
    for path in ("/api/zzz", "/xet/a/v1/zzz", "/v1/zzz"):  # the API's own
        assert ask(path).headers.get_content_type() == "application/json" and ask(path, "POST", b"").status == 404, path


def test_sizes_are_written_as_people_write_them():
    assert [size_text(n) for n in (0, 999, 1000, 999_499, 999_600, 10**9, 123 * 10**12)] == [
        "0 B", "999 B", "1 kB", "999 kB", "1 MB", "1 GB", "123 TB"]  # fmt: skip

"""The local hub's store without HTTP: names, trees and commits against plain models, rollback, what a kill leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfseg.errors import UserError
from hfseg.hub.local import LocalHub
from hfseg.hub.local.card_reading import card_data, check_card, split_card, tags_of
from hfseg.hub.local.commits import (
    Operation,
    commit_to_branch,
    first_commit,
    is_ignored,
    merge,
    read_operations,
    upload_mode,
)
from hfseg.hub.local.files import git_hash, pointer
from hfseg.hub.local.history import (
    find_entry,
    find_revision,
    last_changes,
    list_files,
    log,
    read_file,
    walk,
)
from hfseg.hub.local.names import check_name, check_path, check_ref
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.rewriting import forget_large_files
from hfseg.hub.local.store import Store, create_repo, delete_repo, find_repo, move_repo
from hfseg.hub.local.wire import byte_range


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "hub")
    yield store
    store.close()


def new_repo(store, name="me/net", kind="model"):
    with store.write() as db:
        repo = create_repo(db, kind, name, private=False, data={"sdk": "gradio"})
        first_commit(store, db, repo, "me")
    return repo


def commit(store, repo, puts=(), deletes=(), parent=None, branch="main", title="change"):
    """Commits files {path: bytes} through the code that reads what clients send."""
    lines = [{"key": "header", "value": {"summary": title, "parentCommit": parent}}]
    lines += [{"key": "deletedFile", "value": {"path": path}} for path in deletes]
    for path, content in dict(puts).items():
        encoded = base64.b64encode(content).decode()
        lines.append({"key": "file", "value": {"path": path, "content": encoded, "encoding": "base64"}})
    with store.files.workspace() as folder:
        header, operations = read_operations([json.dumps(line).encode() for line in lines], store, repo, Path(folder))
        with store.write() as db:
            return commit_to_branch(store, db, repo, branch, header, operations, "me")


def contents(store, made):
    return {entry.path: read_file(store.files, entry) for entry in list_files(store.read(), made.tree)}


def on_disk(store):
    return {file.parent.name + file.name for file in store.files.folder.glob("*/*")}


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    "", "/", "/etc/passwd", "a//b", "a/", "../a", "a/../b", "a/..", ".", "./a", "a\\b", "..\\a", "C:\\a", "a\0b",
    "a\nb", "a\x7f", ".git", ".git/config", "a/.GIT/hooks", "x" * 256, "a/" * 600 + "b", "\ud800", 3, None,
])  # fmt: skip
def test_paths_that_leave_the_repository_or_no_system_can_hold_are_refused(path):
    with pytest.raises(HubError) as refused:
        check_path(path)
    assert refused.value.status == 400


@pytest.mark.parametrize("path", ["a", "a/b.txt", ".gitattributes", "..a/b..", "ä/日本.txt", "a b", "-rf", "a.git/b"])
def test_ordinary_paths_pass(path):
    assert check_path(path) == path


@given(st.text(max_size=40))
def test_an_accepted_path_stays_inside_of_any_folder(path):
    try:
        check_path(path)
    except HubError:
        return
    inside = os.path.normpath(os.path.join("/folder", path))
    assert inside == "/folder/" + path and not os.path.isabs(path)


@pytest.mark.parametrize("name", ["", "-a", "a-", ".a", "a.", "a--b", "a..b", "a/b", "a b", "a.git", "x" * 97, "ä",
                                  "a\n", 3])  # fmt: skip
def test_names_of_repositories_follow_the_hub(name):
    with pytest.raises(HubError):
        check_name(name)
    assert check_name("Segformer_b0.v2-x") == "Segformer_b0.v2-x"


@pytest.mark.parametrize("ref", ["", "a b", "a..b", "/a", "a/", "a.lock", "refs/pr/1", "a~1", "a^", "a:b", "-a", "@",
                                 "a" * 201, "0" * 40, "a/.b", "HEAD"])  # fmt: skip
def test_names_of_branches_follow_git(ref):
    with pytest.raises(HubError):
        check_ref(ref)
    assert check_ref("feature/x-1.0") == "feature/x-1.0"


# -- small functions ------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 60)), st.one_of(st.none(), st.integers(0, 60)))
def test_a_range_is_what_slicing_gives(size, first, last):
    data = bytes(range(size))
    found = byte_range(f"bytes={'' if first is None else first}-{'' if last is None else last}", size)
    if first is None and last is None:
        assert found is None
    elif first is None:
        assert found == "outside" if not last or not size else data[slice(*found)] == data[-last:]
    elif last is not None and last < first:
        assert found is None
    elif first >= size:
        assert found == "outside"
    else:
        assert data[slice(*found)] == (data[first:] if last is None else data[first : last + 1])


@pytest.mark.parametrize("header", ["", "bytes", "items=0-1", "bytes=0-1,3-4", "bytes=a-b", "bytes=٣-٤"])
def test_other_range_headers_are_passed_over(header):
    assert byte_range(header, 10) is None


@pytest.mark.parametrize("path,patterns,ignored", [
    ("a.log", "*.log", True), ("d/a.log", "*.log", True), ("a.log", "/d/*.log", False), ("d/a.log", "/d/*.log", True),
    ("d/e/a.log", "d/*.log", False), ("d/e/a.log", "d/**/*.log", True), ("build/x", "build/", True),
    ("build", "build/", False), ("a.md", "*\n!a.md", False), ("d/a.md", "d/\n!d/a.md", True), ("a", "# a", False),
    ("#a", "\\#a", True), ("ab", "a?", True), ("a/b", "a?b", False), ("x1", "x[0-9]", True), ("xa", "x[!0-9]", True),
    ("checkpoints/1/model.bin", "checkpoints/**", True),
])  # fmt: skip
def test_gitignore_as_git_reads_it(path, patterns, ignored, tmp_path):
    assert is_ignored(path, patterns) is ignored
    if shutil.which("git"):  # and git itself agrees
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        (tmp_path / ".gitignore").write_text(patterns + "\n")
        asked = subprocess.run(["git", "-C", tmp_path, "check-ignore", "-q", "--no-index", path])
        assert (asked.returncode == 0) is ignored


@pytest.mark.parametrize("path,size,sample,mode", [
    ("model.safetensors", 8, b"text", "lfs"), ("a/b.parquet", 9, b"x", "lfs"), ("README.md", 9, b"# hi", "regular"),
    ("photo.png", 30, b"\x89PNG\0\0", "lfs"), ("notes.txt", 11 << 20, b"a" * 512, "lfs"),
    ("empty.bin", 0, b"", "regular"), ("umlaut.txt", 512, "ä".encode() * 256, "regular"),
    ("cut.txt", 600, b"a" * 511 + "ä".encode()[:1], "regular"),
    ("latin.txt", 9, "\xe4bcdefghi".encode("latin-1"), "lfs"), ("data.mine", 3, b"abc", "lfs"),
])  # fmt: skip
def test_which_files_are_large(path, size, sample, mode):
    assert upload_mode(path, size, sample, "*.mine filter=lfs diff=lfs\n# *.txt filter=lfs") == mode


# -- cards ----------------------------------------------------------------------------------------------------------

GOOD = """---
license: mit
model-index:
- name: net
  results:
  - task: {type: image-segmentation}
    dataset: {type: me/data, name: data}
    metrics:
    - {type: mean_iou, value: 0.5}
---
# Net
"""


@pytest.mark.parametrize("change,words", [
    (("license: mit", "license: asdf"), '"license" must be one of'), (("license: mit", "license: [}"), "YAML"),
    (("- name: net\n ", "-"), "name"), (("model-index:\n-", "model-index:\n "), "must be an array"),
    (("    metrics:\n    - {type: mean_iou, value: 0.5}\n", ""), "metrics"), (("value: 0.5", "worth: 1"), "value"),
    (("    dataset: {type: me/data, name: data}\n", ""), "dataset"), (("license: mit", "tags: {a: 1}"), '"tags"'),
    (("license: mit", "- 3"), "YAML"), (("license: mit", "a: &a [x]\n" + "b: [" + "*a," * 30 + "]"), "aliases"),
    (("license: mit", "pipeline_tag: [a]"), '"pipeline_tag"'),
])  # fmt: skip
def test_mistakes_in_a_card_are_named(change, words):
    assert check_card(GOOD, "model") == ([], [])
    assert change[0] in GOOD
    errors, _ = check_card(GOOD.replace(*change), "model")
    assert errors and words in " ".join(errors)


def test_front_matter_is_what_stands_between_the_first_lines():
    assert split_card("# no card\n---\na: 1\n---\n")[0] is None
    assert card_data("---\r\na: 2020-01-01\r\n---\r\n") == {"a": "2020-01-01"}
    assert card_data("---\na: [\n---\n") == {} == card_data("---\n---\n") == card_data("")
    assert check_card("# text", "model")[1]  # a warning
    assert "base_model:a/b" in tags_of({"base_model": ["a/b"]}, "model", [])
    assert check_card("---\nsdk: bash\ncolorFrom: beige\n---\n", "space")[0]


@given(st.text(max_size=200))
def test_no_card_breaks_the_reader(text):
    for card in (text, f"---\n{text}\n---\n"):
        assert isinstance(card_data(card), dict)
        errors, warnings = check_card(card, "model")
        json.dumps([card_data(card), errors, warnings])


# -- commits --------------------------------------------------------------------------------------------------------

PATHS = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a", "d/e/f/a", "z.txt"])
CHANGES = st.lists(st.tuples(st.sampled_from(["put", "delete"]), PATHS, st.binary(max_size=3)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=6))
def test_commits_do_what_a_dictionary_does(tmp_path_factory, history):
    store = Store(tmp_path_factory.mktemp("hub"))
    store.read().execute("PRAGMA synchronous = OFF")  # waiting for the disk is what makes hundreds of commits slow
    with patch("os.fsync"), closing(store):
        repo = new_repo(store)
        expected, versions = contents(store, find_revision(store.read(), repo, "main")), []
        for number, changes in enumerate(history):
            deletes = {path for kind, path, _ in changes if kind == "delete"}
            puts = {path: content for kind, path, content in changes if kind == "put" and path not in deletes}
            missing = {path for path in deletes if path not in expected}
            head = find_revision(store.read(), repo, "main").oid
            if missing:
                with pytest.raises(HubError) as refused:
                    commit(store, repo, puts, deletes)
                assert refused.value.code == "EntryNotFound"
                assert find_revision(store.read(), repo, "main").oid == head
                continue
            made = commit(store, repo, puts, deletes, title=f"change {number}")
            expected = {path: c for path, c in expected.items() if path not in deletes} | puts
            versions.append((made, dict(expected)))
            folders = {"/".join(p.split("/")[:i]) for p in expected for i in range(1, p.count("/") + 1)}
            assert {e.path for e in walk(store.read(), made.tree)} == folders | set(expected)
        for made, files in versions:  # and every commit stays what it was
            assert contents(store, made) == files
            for path, content in files.items():
                assert find_entry(store.read(), made.tree, path).oid == git_hash("blob", content)
        listed = [c.oid for c in log(store.read(), repo, find_revision(store.read(), repo, "main").oid)]
        assert listed[:-1] == [made.oid for made, _ in reversed(versions)]
        if versions:
            last, files = versions[-1]
            changed = last_changes(store.read(), repo, last, list(files))
            for path, content in files.items():
                since = next(i for i in range(len(versions)) if all(v[1].get(path) == content for v in versions[i:]))
                assert path == ".gitattributes" or changed[path].oid == versions[since][0].oid


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_trees_and_commits_have_git_s_own_names(store, tmp_path):
    repo = new_repo(store)
    made = commit(store, repo, {"a.txt": b"hello", "d/e.txt": b"x", "d-e": b"y", "d.e": b"z"}, [".gitattributes"],
                  title="one two")  # fmt: skip
    work = tmp_path / "work"

    def git(*words, text=None):
        ran = subprocess.run(["git", "-C", work, *words], check=True, capture_output=True, text=True, input=text)
        return ran.stdout.strip()

    subprocess.run(["git", "init", "-q", work], check=True)
    for path, content in contents(store, made).items():
        (work / path).parent.mkdir(exist_ok=True)
        (work / path).write_bytes(content)
    git("add", "-A")
    assert git("write-tree") == made.tree
    who = f"me <me@users.noreply.local> {int(datetime.fromisoformat(made.created).timestamp())} +0000"
    text = f"tree {made.tree}\nparent {made.parent}\nauthor {who}\ncommitter {who}\n\none two\n"
    assert git("hash-object", "-t", "commit", "--stdin", "--literally", text=text) == made.oid


def test_a_file_is_no_folder_and_case_counts(store):
    repo = new_repo(store)
    commit(store, repo, {"a": b"1", "d/b": b"2", "readme": b"3", "README": b"4"})
    for path in ("a/x", "d", "d/b/c/d"):
        with pytest.raises(HubError) as refused:
            commit(store, repo, {path: b"x"})
        assert refused.value.status == 400
    with pytest.raises(HubError):
        commit(store, repo, {"n": b"x", "n/m": b"y"})
    commit(store, repo, {"d/e/f/b": b"2"}, ["d/b"])
    made = commit(store, repo, {"a/x": b"x", "d": b"y"}, ["a", "d/e/f/b"])  # in one commit, deletions first
    assert contents(store, made) | {".gitattributes": b""} == {
        ".gitattributes": b"", "a/x": b"x", "d": b"y", "readme": b"3", "README": b"4"}  # fmt: skip


def test_what_fails_leaves_no_trace(store):
    repo = new_repo(store)
    before, head = on_disk(store), find_revision(store.read(), repo, "main").oid
    with pytest.raises(HubError):
        commit(store, repo, {"new": b"never seen before"}, ["not there"])
    with pytest.raises(HubError):
        commit(store, repo, {"new": b"never seen before"}, parent="0" * 40)
    with pytest.raises(HubError):
        commit(store, repo, {"ok": b"never seen before", "../x": b""})
    with pytest.raises(HubError, match="is a file"):  # noticed when the first one is in its place already
        commit(store, repo, {"ok": b"never seen before", "ok/x": b""})
    with pytest.raises(ZeroDivisionError), store.write() as db:
        create_repo(db, "model", "me/other", private=False, data={})
        raise ZeroDivisionError
    assert on_disk(store) == before and not list(store.files.temporary.iterdir())
    assert find_revision(store.read(), repo, "main").oid == head
    assert find_repo(store.read(), "model", "me/other") is None


def test_a_large_file_must_have_been_sent_to_this_very_repository(store):
    mine, other = new_repo(store), new_repo(store, "you/secret")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    with store.files.incoming() as incoming:
        incoming.write(b"weights")
        with store.write() as db:
            store.place(incoming.finish(), sha256)
            db.execute("INSERT INTO objects VALUES (?, ?, 7, 'now')", (other.id, sha256))
    line = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": sha256, "size": 7}}
    text = {"key": "file", "value": {"path": "w.bin", "content": pointer(sha256, 7).decode()}}
    header = {"key": "header", "value": {"summary": "x"}}
    for item in (line, text):  # also not by committing the text of its pointer
        body = [json.dumps(header).encode(), json.dumps(item).encode()]
        with pytest.raises(HubError) as refused:
            read_operations(body, store, mine, store.root)
        assert refused.value.status == 400
        found = read_operations(body, store, other, store.root)[1]
        assert found == [Operation("put", "w.bin", sha256, 7)]
    with store.write() as db:
        commit_to_branch(store, db, other, "main", {"summary": "x"}, found, "you")
    entry = find_entry(store.read(), find_revision(store.read(), other, "main").tree, "w.bin")
    assert (entry.sha256, entry.size, entry.oid) == (sha256, 7, git_hash("blob", pointer(sha256, 7)))
    with store.write() as db:
        forget_large_files(store, db, other, {sha256})
    assert "w.bin" not in contents(store, find_revision(store.read(), other, "main")) and sha256 not in on_disk(store)


HEADER = b'{"key":"header","value":{"summary":"x"}}'


@pytest.mark.parametrize("lines", [
    [], [b"{}"], [b"not json"], [b"[]"], [b'{"key":"file","value":{"path":"a","content":"x"}}'],
    [b'{"key":"header","value":{}}'], [b'{"key":"header","value":{"summary":" "}}'],
    [HEADER, b'{"key":"file","value":{"path":"a","content":"?","encoding":"base64"}}'],
    [HEADER, b'{"key":"file","value":{"content":"x"}}'], [HEADER, b'{"key":"format","value":{"path":"a"}}'],
    [HEADER, b'{"key":"lfsFile","value":{"path":"a","oid":"../../x"}}'],
])  # fmt: skip
def test_a_commit_that_is_none_is_refused(store, lines):
    with pytest.raises(HubError) as refused:
        read_operations(lines, store, new_repo(store), store.files.temporary)
    assert refused.value.status == 400


def test_merging_takes_both_sides_or_names_the_conflict(store):
    repo = new_repo(store)
    base = commit(store, repo, {"a": b"1", "b": b"1", "c": b"1"})
    ours = commit(store, repo, {"a": b"2"})
    with store.write() as db:
        db.execute("INSERT INTO refs VALUES (?, 'refs/heads/side', ?)", (repo.id, base.oid))
    theirs = commit(store, repo, {"b": b"3", "n/m": b"4"}, ["c"], branch="side")
    with store.write() as db:
        merged = contents(store, merge(db, repo, ours, theirs, base, "me", "merge"))
    merged.pop(".gitattributes")
    assert merged == {"a": b"2", "b": b"3", "n/m": b"4"}
    theirs = commit(store, repo, {"a": b"5"}, branch="side")
    with pytest.raises(HubError, match="conflicts with the branch in a"), store.write() as db:
        merge(db, repo, ours, theirs, base, "me", "merge")


def test_moved_and_deleted_repositories(store):
    repo = new_repo(store)
    made = commit(store, repo, {"a": b"only here"})
    with store.write() as db:
        assert move_repo(db, repo, "me/newer") and not move_repo(db, new_repo(store, "me/third"), "me/NEWER")
    for name in ("me/net", "Me/Newer"):  # the old name leads to it, and upper and lower case are alike
        assert find_repo(store.read(), "model", name).name == "me/newer"
    key = find_entry(store.read(), made.tree, "a").key
    assert store.files.has(key)
    with store.write() as db:
        delete_repo(store, db, find_repo(store.read(), "model", "me/newer"))
    assert find_repo(store.read(), "model", "me/net") is None and not store.files.has(key)
    assert on_disk(store)  # what the third one holds too


def test_writers_at_once_all_land(store):
    repo, errors = new_repo(store), []

    def write(number):
        try:
            commit(store, repo, {f"{number}.txt": str(number).encode()}, title=str(number))
        except Exception as error:  # shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = find_revision(store.read(), repo, "main")
    assert not errors and {f"{i}.txt" for i in range(12)} < set(contents(store, head))
    assert len(list(log(store.read(), repo, head.oid))) == 13


def test_threads_that_end_close_their_connections(store):
    for _ in range(20):
        thread = threading.Thread(target=store.read)
        thread.start()
        thread.join()
    assert len(store._connections) == 1


def test_the_server_needs_no_client_and_no_torch():
    heavy = {"torch", "transformers", "huggingface_hub", "datasets"}
    code = f"import sys, hfseg.hub.local; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert ran.stdout.strip() == "set()", ran.stderr


def test_a_commit_that_fails_takes_no_file_from_one_that_lands(store):
    repo, landed = new_repo(store), []

    def write(number):
        for i in range(6):
            files, wrong = {f"{number}/{i}": f"content {i}".encode()}, ["not there"] if number % 2 else []
            try:
                landed.append(commit(store, repo, files, wrong))
            except HubError as refused:
                assert refused.code == "EntryNotFound"

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(store, find_revision(store.read(), repo, "main"))
    wanted = {f"{number}/{i}": f"content {i}".encode() for number in (0, 2, 4) for i in range(6)}
    assert len(landed) == 18 and wanted.items() <= found.items()


def test_one_process_holds_the_folder_and_tokens_are_kept_as_hashes(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    token = hub.create_token("you", "read")
    with pytest.raises(UserError, match="served by another process"):
        LocalHub(tmp_path / "hub")
    with pytest.raises(UserError):
        hub.create_token("you", "admin")
    with pytest.raises(UserError):
        hub.create_org("no/name")
    hub.__exit__()
    for file in (tmp_path / "hub").glob("hub.sqlite3*"):
        assert token.encode() not in file.read_bytes() and hub.token.encode() not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0
    assert (tmp_path / "hub" / "owner_token").stat().st_mode & 0o077 == 0
    again = LocalHub(tmp_path / "hub")
    assert again.token == hub.token
    again.__exit__()


WRITER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests.test_local_hub_store import commit, new_repo
from hfseg.hub.local.store import Store, find_repo
store = Store(Path({root!r}))
repo = find_repo(store.read(), "model", "me/net") or new_repo(store)
number = {start}
print("ready", flush=True)
while True:
    files = {{f"{{number % 7}}/{{i}}.txt": f"{{number}} {{i}}".encode() for i in range(4)}}
    commit(store, repo, files, title=str(number))
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("seed", range(3))
def test_after_a_kill_the_head_is_a_whole_commit_and_no_answered_one_is_lost(tmp_path, seed):
    if os.name == "nt":
        pytest.skip("SIGKILL")
    root, draw, answered = tmp_path / "hub", random.Random(seed), -1
    for _ in range(2):
        code = WRITER.format(path=[str(Path(__file__).parent.parent)], root=str(root), start=answered + 1)
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.01, 0.3))
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.communicate()[0].split()
        answered = max([answered, *map(int, lines)])
        store = Store(root)
        repo = find_repo(store.read(), "model", "me/net")
        head = find_revision(store.read(), repo, "main")
        titles = [c.title for c in log(store.read(), repo, head.oid)]
        last = int(titles[0]) if titles[0].isdigit() else -1
        assert last in (answered, answered + 1) and titles[:-1] == [str(n) for n in range(last, -1, -1)]
        for made in log(store.read(), repo, head.oid):
            for entry in list_files(store.read(), made.tree):
                assert git_hash("blob", read_file(store.files, entry)) == entry.oid
        held = {row[0] for row in store.read().execute("SELECT key FROM objects")}
        assert on_disk(store) == held and not list(store.files.temporary.iterdir())
        store.close()
        answered = last

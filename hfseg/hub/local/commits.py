"""Making commits: what a client sends becomes one new commit on a branch, or nothing at all."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfseg.hub.local.files import Incoming, git_hash, sync_files
from hfseg.hub.local.history import (
    EMPTY_TREE,
    MAIN,
    Commit,
    Draft,
    add_blob,
    add_commit,
    branch_ref,
    find_revision,
    list_files,
    read_commit,
    read_ref,
    set_ref,
)
from hfseg.hub.local.names import check_path
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, Store, add_object, object_size, used_bytes

REGULAR_LIMIT = 10 << 20  # bytes; larger files go the way of LFS or Xet
LINE_LIMIT = 2 * REGULAR_LIMIT  # of a commit's body: base64 and JSON around it
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,19})\n")

# Files that the hub keeps as large ones whatever their size: what its .gitattributes names.
LARGE_PATTERNS = (  # noqa: SIM905
    "*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.lz4 *.mds *.mlmodel *.model *.msgpack "
    "*.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/* *.tar.* *.tar "
    "*.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
).split()


@dataclass(frozen=True)
class Operation:
    """One line of a commit.

    Attributes:
        kind: `put`, `delete` (a file, or else a folder) or `delete_folder`.
        path: Path in the repository.
        key: Of the content in `Files`, for `put`.
        size: Bytes of the content.
        staged: Where the content waits, for a regular file.
    """

    kind: str
    path: str
    key: str = ""
    size: int = 0
    staged: Path | None = None


def upload_mode(path: str, size: int, sample: bytes, attributes: str = "") -> str:
    """Says how a client sends a file: `regular` inside the commit, or `lfs` before it.

    Args:
        path: Path in the repository.
        size: Bytes.
        sample: The file's first bytes.
        attributes: Text of the repository's .gitattributes, which may name more patterns.

    Returns:
        `lfs` for large, binary and typical weight and data files, else `regular`.

    Example:
        >>> upload_mode("model.safetensors", 10, b"x"), upload_mode("README.md", 10, b"# Net")
        ('lfs', 'regular')
    """
    if size == 0:
        return "regular"
    name = path.rsplit("/", 1)[-1]
    if size > REGULAR_LIMIT or _is_binary(sample):
        return "lfs"
    lines = (line.split() for line in attributes.splitlines() if not line.startswith("#"))
    patterns = [*LARGE_PATTERNS, *(line[0] for line in lines if "filter=lfs" in line[1:])]
    return "lfs" if any(fnmatch.fnmatchcase(path if "/" in p else name, p) for p in patterns) else "regular"


def _is_binary(sample: bytes) -> bool:
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 3  # the sample may end inside of a character
    return False


def is_ignored(path: str, patterns: str) -> bool:
    """Says whether a .gitignore leaves a file out.

    Args:
        path: Path in the repository.
        patterns: Text of the .gitignore.

    Returns:
        Whether it does.

    Example:
        >>> is_ignored("logs/a.txt", "logs/\\n!a.md"), is_ignored("a.md", "*.md\\n!a.md")
        (True, False)
    """
    parts = path.split("/")
    paths = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(_last_match(p, p != path, patterns) for p in paths)  # in an ignored folder nothing can come back


def _last_match(path: str, is_folder: bool, patterns: str) -> bool:
    ignored = False
    for line in patterns.splitlines():
        line = line.rstrip()
        if not line or line.startswith("#"):
            continue
        keep = line.startswith("!")
        line = line[1:] if keep else line.removeprefix("\\")
        if line.endswith("/"):
            if not is_folder:
                continue
            line = line.rstrip("/")
        anchored = "/" in line
        expression = _glob(line.lstrip("/"))
        if re.fullmatch(expression if anchored else rf"(?:.*/)?{expression}", path, re.S):
            ignored = not keep
    return ignored


def _glob(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|/\*\*$|\*|\?|\[[^\]]*\])", pattern)
    meaning = {"**/": "(?:.*/)?", "/**": "/.*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meaning.get(p) or (("[^" + p[2:] if p[:2] == "[!" else p) if p.startswith("[") and len(p) > 2 else re.escape(p))
        for p in pieces
    )


def read_operations(
    lines: Iterable[bytes], store: Store, repo: Repo, folder: Path
) -> tuple[dict[str, Any], list[Operation]]:
    """Reads the body of a commit, and puts the regular files in it on disk.

    Args:
        lines: NDJSON: the header, then one operation a line.
        store: The hub's.
        repo: The repository.
        folder: For the regular files, until the commit is made.

    Returns:
        A tuple of the header and the operations.

    Raises:
        HubError: 400 with what is wrong.
    """
    header: dict[str, Any] | None = None
    operations = []
    for line in lines:
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if header is None:
                if key != "header" or not isinstance(value, dict):
                    raise HubError(400, "The first line of a commit must be its header")
                header = value
                continue
            path = value["path"]
        except (ValueError, KeyError, TypeError):
            raise HubError(400, "A line of the commit is no operation") from None
        if key == "file":
            content = _content(value)
            operations.append(_add_regular(store, repo, folder, check_path(path), content))
        elif key == "lfsFile":
            oid = value.get("oid")
            if value.get("algo", "sha256") != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", str(oid)):
                raise HubError(400, f"{path}: oid must be the SHA-256 of the file")
            operations.append(_claim(store, repo, check_path(path), oid, value.get("size")))
        elif key == "deletedFile":
            operations.append(Operation("delete", check_path(path)))
        elif key == "deletedFolder":
            operations.append(Operation("delete_folder", check_path(path.rstrip("/")) if path.strip("/") else ""))
        else:
            raise HubError(400, f"The commit has an unknown operation {str(key)[:40]!r}")
    if header is None:
        raise HubError(400, "The commit is empty")
    sync_files(operation.staged for operation in operations if operation.staged)
    if not isinstance(header.get("summary"), str) or not header["summary"].strip():
        raise HubError(400, "The commit needs a summary")
    return header, operations


def _content(value: dict[str, Any]) -> bytes:
    content = value.get("content")
    if not isinstance(content, str):
        raise HubError(400, f"{value.get('path')}: content must be text")
    if value.get("encoding", "utf-8") != "base64":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        raise HubError(400, f"{value.get('path')}: content is no base64") from None


def _add_regular(store: Store, repo: Repo, folder: Path, path: str, content: bytes) -> Operation:
    if len(content) > REGULAR_LIMIT:
        raise HubError(400, f"{path} has {len(content)} bytes: above {REGULAR_LIMIT} it must be sent as a large file")
    if found := _POINTER.fullmatch(content):
        return _claim(store, repo, path, found[1].decode(), int(found[2]))
    incoming = Incoming(folder)
    incoming.write(content)
    return Operation("put", path, git_hash("blob", content), len(content), incoming.finish())


def _claim(store: Store, repo: Repo, path: str, oid: str, size: object) -> Operation:
    """A large file must have been sent before, to this repository: knowing a hash opens no other repository."""
    held = object_size(store.read(), repo, oid)
    if held is None:
        raise HubError(400, f"{path}: the large file {oid} was not sent before the commit")
    if size is not None and size != held:
        raise HubError(400, f"{path}: the large file has {held} bytes, not {size}")
    return Operation("put", path, oid, held)


def first_commit(store: Store, db: sqlite3.Connection, repo: Repo, author: str) -> Commit:
    """Gives a new repository the files that the hub puts there: .gitattributes, and a Space's README."""
    attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_PATTERNS)
    files = {".gitattributes": attributes.replace("saved_model/*", "saved_model/**/*")}
    if repo.type == "space":
        title = repo.name.split("/")[1]
        files["README.md"] = f"---\ntitle: {json.dumps(title)}\nsdk: {repo.data['sdk']}\npinned: false\n---\n"
    with store.files.workspace() as folder:
        made = [_add_regular(store, repo, Path(folder), path, text.encode()) for path, text in files.items()]
        sync_files(operation.staged for operation in made)
        tree = _apply(store, db, repo, EMPTY_TREE, made)
    commit = add_commit(db, repo, tree, None, author, "initial commit")
    set_ref(db, repo, MAIN, commit.oid)
    return commit


def commit_to_branch(
    store: Store, db: sqlite3.Connection, repo: Repo, revision: str, header: dict[str, Any],
    operations: list[Operation], author: str, quota: int | None = None,
) -> Commit:  # fmt: skip
    """Adds one commit to a branch or pull request.

    Args:
        store: The hub's.
        db: From `Store.write`, so that nobody comes between reading the head and moving it.
        repo: The repository.
        revision: Branch, or refs/pr/1.
        header: `summary`, `description`, and `parentCommit` if the client wants to be the next after that one.
        operations: What changes.
        author: User.
        quota: How many bytes the namespace may hold.

    Returns:
        The commit, which is the branch's head now.

    Raises:
        HubError: 404 for an unknown branch, 412 for a parent that is the head no more, 400, 403.
    """
    name = branch_ref(db, repo, revision)
    if name is None:
        find_revision(db, repo, revision)
        raise HubError(400, f"{revision} is no branch: only branches and pull requests take commits")
    head = read_commit(db, repo, read_ref(db, repo, name))
    check_parent(header, head)
    commit = add_changes(store, db, repo, head, header, operations, author, quota)
    set_ref(db, repo, name, commit.oid)
    return commit


def check_parent(header: dict[str, Any], head: Commit) -> None:
    """Raises 412 if a client builds on a commit that is the head no more."""
    parent = header.get("parentCommit")
    same = isinstance(parent, str) and len(parent) >= 7 and head.oid.startswith(parent.lower())
    if parent is not None and not same:
        raise HubError(412, "The branch was updated since you opened this page. Please refresh and try again.")


def add_changes(
    store: Store, db: sqlite3.Connection, repo: Repo, head: Commit, header: dict[str, Any],
    operations: list[Operation], author: str, quota: int | None = None,
) -> Commit:  # fmt: skip
    """Adds a commit after another one, without moving a reference; see `commit_to_branch`.

    A commit without operations is none: a client that left out all files, as .gitignore says, gets the head.
    """
    if not operations:
        return head
    tree = _apply(store, db, repo, head.tree, operations)
    if quota is not None and used_bytes(db, repo.namespace) > quota:
        raise over_quota(repo.namespace, quota)
    return add_commit(db, repo, tree, head.oid, author, header["summary"], str(header.get("description") or ""))


def over_quota(namespace: str, quota: int) -> HubError:
    """Returns the answer to somebody whose storage is full."""
    return HubError(403, f"Storage limit reached: {namespace} may hold {quota} bytes on this hub. "
                         "Delete repositories or files, or ask the hub's owner for more.")  # fmt: skip


def _apply(store: Store, db: sqlite3.Connection, repo: Repo, tree: str, operations: list[Operation]) -> str:
    draft = Draft(db, tree)
    for operation in operations:
        if operation.kind == "put":
            if operation.staged:
                store.place(operation.staged, operation.key)
            elif object_size(db, repo, operation.key) is None:
                raise HubError(400, f"{operation.path}: the large file {operation.key} was deleted in the meantime")
            draft.put(operation.path, add_blob(db, operation.key, operation.size))
            add_object(db, repo, operation.key, operation.size)
        elif not (operation.kind == "delete" and draft.delete_file(operation.path)) and not (
            draft.delete_folder(operation.path)
        ):
            what = "file" if operation.kind == "delete" else "folder"
            raise HubError(404, f'A {what} with the name "{operation.path}" does not exist', "EntryNotFound")
    return draft.save()


def merge(db: sqlite3.Connection, repo: Repo, ours: Commit, theirs: Commit, base: Commit, author: str, title: str):
    """Puts the changes between two commits on top of a third.

    Args:
        db: From `Store.write`.
        repo: The repository.
        ours: Where the changes go.
        theirs: What a pull request ends with.
        base: What it started from.
        author: User.
        title: Of the new commit.

    Returns:
        The new commit; no reference points at it yet.

    Raises:
        HubError: 409 with the files that both sides changed.
    """
    before, ours_now, wanted = ({entry.path: entry for entry in list_files(db, commit.tree)}
                                for commit in (base, ours, theirs))  # fmt: skip
    draft, conflicts = Draft(db, ours.tree), []
    oid_of = lambda files, path: files[path].oid if path in files else None  # noqa: E731
    changed = [path for path in {*before, *wanted} if oid_of(before, path) != oid_of(wanted, path)]
    for path in sorted(changed, key=lambda path: (path in wanted, path)):  # deletions first: a file may become a folder
        new = oid_of(wanted, path)
        if oid_of(ours_now, path) == new:
            continue
        if oid_of(ours_now, path) != oid_of(before, path):
            conflicts.append(path)
        elif new is None:
            draft.delete_file(path)
        else:
            draft.put(path, new)
    if conflicts:
        raise HubError(409, f"The pull request conflicts with the branch in {', '.join(sorted(conflicts)[:10])}")
    return add_commit(db, repo, draft.save(), ours.oid, author, title)


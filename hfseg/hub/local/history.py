"""Trees, commits and references, named as git names them: a commit's id is a hash of its content, parent and time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from hfseg.hub.local.files import Files, git_hash, pointer
from hfseg.hub.local.names import is_commit_prefix
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, now

MAIN = "refs/heads/main"
EMPTY_TREE = git_hash("tree", b"")


@dataclass(frozen=True)
class Entry:
    """A file or folder in a commit.

    Attributes:
        path: Path in the repository.
        oid: git's name of it; for a large file that of its pointer.
        is_folder: Whether it is a folder.
        size: Bytes of the file's content; 0 for a folder.
        sha256: Of a large file's content, else None.
    """

    path: str
    oid: str
    is_folder: bool
    size: int = 0
    sha256: str | None = None

    @property
    def key(self) -> str:
        """Name of the content in `Files`."""
        return self.sha256 or self.oid

    @property
    def etag(self) -> str:
        """What clients call the content."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """A commit; `parent` is None for the first one."""

    oid: str
    parent: str | None
    tree: str
    author: str
    created: str
    title: str
    message: str


class Draft:
    """A tree that is being changed; its folders are read when they are needed.

    Args:
        db: Connection.
        tree: What it starts from.

    Example:
        >>> import tempfile; from pathlib import Path; from hfseg.hub.local.store import Store
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> with store.write() as db:
        ...     draft = Draft(db, EMPTY_TREE)
        ...     draft.put("a/b.txt", add_blob(db, git_hash("blob", b"hello"), 5))
        ...     [entry.path for entry in walk(db, draft.save())]
        ['a', 'a/b.txt']
        >>> store.close()
    """

    def __init__(self, db: sqlite3.Connection, tree: str):
        self.db = db
        self.root = self._load(tree)

    def _load(self, tree: str) -> dict[str, str | dict | _Folder]:
        return {name: _Folder(oid) if is_folder else oid for name, oid, is_folder in read_tree(self.db, tree)}

    def _folder(self, parts: list[str], make: bool) -> dict | None:
        node = self.root
        for depth, part in enumerate(parts):
            below = node.get(part)
            if isinstance(below, _Folder):
                below = node[part] = self._load(below.oid)
            if below is None:
                if not make:
                    return None
                below = node[part] = {}
            if isinstance(below, str):
                if not make:
                    return None
                raise HubError(400, f"{'/'.join(parts[: depth + 1])!r} is a file, so it cannot hold others")
            node = below
        return node

    def put(self, path: str, oid: str) -> None:
        """Adds or replaces a file."""
        *parts, name = path.split("/")
        folder = self._folder(parts, make=True)
        if isinstance(folder.get(name), (_Folder, dict)) and folder[name] != {}:
            raise HubError(400, f"{path!r} is a folder, so it cannot become a file")
        folder[name] = oid

    def delete_file(self, path: str) -> bool:
        """Removes a file, and says whether it was there."""
        *parts, name = path.split("/")
        folder = self._folder(parts, make=False)
        if folder is None or not isinstance(folder.get(name), str):
            return False
        del folder[name]
        self._prune(parts)
        return True

    def delete_folder(self, path: str) -> bool:
        """Removes a folder and all in it, and says whether it was there; an empty path means everything."""
        *parts, name = path.split("/")
        if not path:
            self.root = {}
            return True
        folder = self._folder(parts, make=False)
        if folder is None or not isinstance(folder.get(name), (_Folder, dict)):
            return False
        del folder[name]
        self._prune(parts)
        return True

    def _prune(self, parts: list[str]) -> None:
        """Removes folders that have become empty: git knows none."""
        while parts and self._folder(parts, make=False) == {}:
            *parts, name = parts
            del self._folder(parts, make=False)[name]

    def save(self) -> str:
        """Writes the changed trees and returns the name of the root."""
        return self._save(self.root) or add_tree(self.db, [])

    def _save(self, node: dict) -> str | None:
        entries = []
        for name, below in node.items():
            if isinstance(below, dict):
                oid = self._save(below)
                if oid is not None:
                    entries.append((name, oid, True))
            elif isinstance(below, _Folder):
                entries.append((name, below.oid, True))
            else:
                entries.append((name, below, False))
        return add_tree(self.db, entries) if entries else None


@dataclass(frozen=True)
class _Folder:
    oid: str


def add_blob(db: sqlite3.Connection, key: str, size: int) -> str:
    """Notes a file's content and returns git's name of it.

    Args:
        db: From `Store.write`.
        key: git's SHA-1 of a regular file, or the SHA-256 of a large one.
        size: Bytes.

    Returns:
        git's name: that of the pointer for a large file.
    """
    large = len(key) == 64
    oid = git_hash("blob", pointer(key, size)) if large else key
    db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (oid, size, key if large else None))
    return oid


def add_tree(db: sqlite3.Connection, entries: list[tuple[str, str, bool]]) -> str:
    """Notes a folder of (name, git's name, whether it is a folder) and returns git's name of it."""
    entries = sorted(entries, key=lambda entry: entry[0].encode() + (b"/" if entry[2] else b""))
    content = b"".join(
        (b"40000 " if is_folder else b"100644 ") + name.encode() + b"\0" + bytes.fromhex(oid)
        for name, oid, is_folder in entries
    )
    oid = git_hash("tree", content)
    db.execute("INSERT OR IGNORE INTO trees VALUES (?, ?)", (oid, json.dumps(entries)))
    return oid


def read_tree(db: sqlite3.Connection, oid: str) -> tuple[tuple[str, str, bool], ...]:
    """Returns the (name, git's name, whether it is a folder) of a folder."""
    if oid == EMPTY_TREE:
        return ()
    return _parse_tree(db.execute("SELECT entries FROM trees WHERE oid = ?", (oid,)).fetchone()[0])


@lru_cache(maxsize=2048)
def _parse_tree(text: str) -> tuple[tuple[str, str, bool], ...]:
    return tuple((name, oid, bool(is_folder)) for name, oid, is_folder in json.loads(text))


def find_entry(db: sqlite3.Connection, tree: str, path: str) -> Entry | None:
    """Returns the file or folder at a path, or None; the empty path is the root."""
    oid, is_folder = tree, True
    for part in path.split("/") if path else []:
        below = {name: (o, f) for name, o, f in read_tree(db, oid)}.get(part) if is_folder else None
        if below is None:
            return None
        oid, is_folder = below
    return Entry(path, oid, True) if is_folder else _file(db, path, oid)


def walk(db: sqlite3.Connection, tree: str, prefix: str = "", recursive: bool = True) -> Iterator[Entry]:
    """Yields the files and folders of a folder, in git's order, each folder before what is in it."""
    for name, oid, is_folder in read_tree(db, tree):
        path = f"{prefix}{name}"
        if is_folder:
            yield Entry(path, oid, True)
            if recursive:
                yield from walk(db, oid, f"{path}/")
        else:
            yield _file(db, path, oid)


def list_files(db: sqlite3.Connection, tree: str) -> list[Entry]:
    """Returns all files of a commit's tree, in git's order."""
    return [entry for entry in walk(db, tree) if not entry.is_folder]


def _file(db: sqlite3.Connection, path: str, oid: str) -> Entry:
    row = db.execute("SELECT size, sha256 FROM blobs WHERE oid = ?", (oid,)).fetchone()
    return Entry(path, oid, False, row["size"], row["sha256"])


def add_commit(
    db: sqlite3.Connection, repo: Repo, tree: str, parent: str | None, author: str, title: str, message: str = "",
    created: str | None = None,
) -> Commit:  # fmt: skip
    """Notes a commit; no reference points at it yet.

    Args:
        db: From `Store.write`.
        repo: The repository.
        tree: Root of its files.
        parent: The commit before, or None.
        author: User.
        title: First line of the message.
        message: The rest.
        created: ISO time, if it is not now.

    Returns:
        The commit.
    """
    created = created or now()
    seconds = int(datetime.fromisoformat(created).timestamp())
    who = f"{author} <{author}@users.noreply.local> {seconds} +0000"
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {who}", f"committer {who}", "", title]
    oid = git_hash("commit", ("\n".join(lines) + ("\n\n" + message if message else "") + "\n").encode())
    db.execute("INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
               (repo.id, oid, parent, tree, author, created, title, message))  # fmt: skip
    return read_commit(db, repo, oid)


def read_commit(db: sqlite3.Connection, repo: Repo, oid: str) -> Commit:
    """Returns a commit that is there."""
    row = db.execute("SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo.id, oid)).fetchone()
    return Commit(*(row[name] for name in ("oid", "parent", "tree", "author", "created", "title", "message")))


def log(db: sqlite3.Connection, repo: Repo, oid: str | None) -> Iterator[Commit]:
    """Yields a commit and those before it."""
    while oid is not None:
        commit = read_commit(db, repo, oid)
        yield commit
        oid = commit.parent


def refs(db: sqlite3.Connection, repo: Repo, prefix: str) -> list[tuple[str, str]]:
    """Returns the (short name, commit) of the references under a prefix such as `refs/heads/`."""
    rows = db.execute("SELECT name, oid FROM refs WHERE repo = ? ORDER BY name", (repo.id,))
    return [(row["name"].removeprefix(prefix), row["oid"]) for row in rows if row["name"].startswith(prefix)]


def read_ref(db: sqlite3.Connection, repo: Repo, name: str) -> str | None:
    """Returns the commit that a full reference name points at, or None."""
    row = db.execute("SELECT oid FROM refs WHERE repo = ? AND name = ?", (repo.id, name)).fetchone()
    return row and row[0]


def set_ref(db: sqlite3.Connection, repo: Repo, name: str, oid: str) -> None:
    """Lets a reference point at a commit."""
    db.execute("INSERT INTO refs VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET oid = excluded.oid", (repo.id, name, oid))


def delete_ref(db: sqlite3.Connection, repo: Repo, name: str) -> bool:
    """Removes a reference, and says whether it was there."""
    return db.execute("DELETE FROM refs WHERE repo = ? AND name = ?", (repo.id, name)).rowcount > 0


def branch_ref(db: sqlite3.Connection, repo: Repo, revision: str) -> str | None:
    """Returns the full name of a branch or pull request that can be committed to, or None."""
    for name in (f"refs/heads/{revision}", revision):
        if name.startswith(("refs/heads/", "refs/pr/", "refs/convert/")) and read_ref(db, repo, name):
            return name
    return None


def find_revision(db: sqlite3.Connection, repo: Repo, revision: str) -> Commit:
    """Returns the commit that a branch, tag, reference, commit id or its first 7 digits or more stand for.

    Raises:
        HubError: 404 with the code `RevisionNotFound`.
    """
    if revision == "HEAD":
        revision = "main"
    for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
        oid = read_ref(db, repo, name)
        if oid:
            return read_commit(db, repo, oid)
    if is_commit_prefix(revision):
        query = "SELECT oid FROM commits WHERE repo = ? AND oid >= ? AND oid < ? LIMIT 2"
        found = db.execute(query, (repo.id, revision, revision + "g")).fetchall()
        if len(found) == 1:
            return read_commit(db, repo, found[0][0])
    raise HubError(404, f"Invalid rev id: {revision[:100]}", "RevisionNotFound")


def last_changes(db: sqlite3.Connection, repo: Repo, head: Commit, paths: list[str]) -> dict[str, Commit]:
    """Returns for each path the newest commit that changed what is there.

    Args:
        db: Connection.
        repo: The repository.
        head: Where to start.
        paths: Paths that exist in `head`.

    Returns:
        {path: commit}.
    """
    open_paths = {path: find_entry(db, head.tree, path) for path in paths}
    found: dict[str, Commit] = {}
    for commit in log(db, repo, head.oid):
        if not open_paths:
            break
        before = read_commit(db, repo, commit.parent).tree if commit.parent else EMPTY_TREE
        if before == commit.tree:
            continue
        for path, entry in list(open_paths.items()):
            older = find_entry(db, before, path)
            if older is None or entry is None or older.oid != entry.oid:
                found[path] = commit
                del open_paths[path]
    return found


def read_file(files: Files, entry: Entry) -> bytes:
    """Returns the content of a file; meant for small ones such as cards."""
    return files.read(entry.key)

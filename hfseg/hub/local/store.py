"""The hub's memory: one sqlite file beside the content-addressed files, one writer at a time, all or nothing."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hfseg.errors import UserError
from hfseg.hub.local.files import Files, sync_files

DATABASE = "hub.sqlite3"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY COLLATE NOCASE, is_org INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS members (org TEXT NOT NULL COLLATE NOCASE, user TEXT NOT NULL COLLATE NOCASE,
    PRIMARY KEY (org, user));
CREATE TABLE IF NOT EXISTS tokens (hash TEXT PRIMARY KEY, user TEXT NOT NULL, role TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS repos (id INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL,
    name TEXT NOT NULL COLLATE NOCASE, private INTEGER NOT NULL, gated TEXT NOT NULL, created TEXT NOT NULL,
    data TEXT NOT NULL, UNIQUE (type, name));
CREATE TABLE IF NOT EXISTS moved (type TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE,
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, PRIMARY KEY (type, name));
CREATE TABLE IF NOT EXISTS refs (repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, name TEXT NOT NULL,
    oid TEXT NOT NULL, PRIMARY KEY (repo, name));
CREATE TABLE IF NOT EXISTS commits (repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL,
    parent TEXT, tree TEXT NOT NULL, author TEXT NOT NULL, created TEXT NOT NULL, title TEXT NOT NULL,
    message TEXT NOT NULL, PRIMARY KEY (repo, oid));
CREATE TABLE IF NOT EXISTS trees (oid TEXT PRIMARY KEY, entries TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (oid TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT);
CREATE TABLE IF NOT EXISTS objects (repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, key TEXT NOT NULL,
    size INTEGER NOT NULL, added TEXT NOT NULL, PRIMARY KEY (repo, key));
CREATE TABLE IF NOT EXISTS discussions (repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL,
    title TEXT NOT NULL, is_pull_request INTEGER NOT NULL, status TEXT NOT NULL, author TEXT NOT NULL,
    created TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (repo, num));
CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, repo INTEGER NOT NULL, num INTEGER NOT NULL,
    type TEXT NOT NULL, author TEXT NOT NULL, created TEXT NOT NULL, data TEXT NOT NULL,
    FOREIGN KEY (repo, num) REFERENCES discussions ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS access (repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    user TEXT NOT NULL COLLATE NOCASE, status TEXT NOT NULL, asked TEXT NOT NULL, PRIMARY KEY (repo, user));
"""


@dataclass(frozen=True)
class Repo:
    """A repository.

    Attributes:
        id: Number inside the hub, which outlives renaming.
        type: `model`, `dataset` or `space`.
        name: namespace/name.
        private: Whether only members of the namespace see it.
        gated: `auto`, `manual` or False.
        created: ISO time.
        data: What only some have: `sdk`, `runtime`, `secrets`, `variables`, `visibility`.
    """

    id: int
    type: str
    name: str
    private: bool
    gated: str | bool
    created: str
    data: dict

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    @property
    def path(self) -> str:
        """Path of its page: me/net, datasets/me/data, spaces/me/app."""
        return self.name if self.type == "model" else f"{self.type}s/{self.name}"


class Store:
    """Opens a hub's folder, which only one process at a time may hold.

    Args:
        root: The folder; it is made where it is missing.

    Raises:
        UserError: When another process holds the folder, or it cannot be written.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> with store.write() as db:
        ...     repo = create_repo(db, "model", "me/net", private=False, data={})
        >>> find_repo(store.read(), "model", "me/net").path
        'me/net'
        >>> store.close()
    """

    def __init__(self, root: Path):
        self.root = Path(root).expanduser().resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._held = _hold(self.root)
            self.files = Files(self.root)
        except OSError as error:
            raise UserError(f"{self.root} can hold no hub: {error.strerror or error}", "a folder that you may write",
                            "choose another --root") from error
        self._local, self._connections, self._writing = threading.local(), weakref.WeakSet(), threading.RLock()
        self._placed, self._unwanted = [], []
        db = self.read()
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_hex(32),))
        self.secret = bytes.fromhex(db.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone()[0])
        (self.root / DATABASE).chmod(0o600)
        self._remove_orphans()

    def read(self) -> sqlite3.Connection:
        """Returns this thread's connection, which sees what is committed."""
        held = getattr(self._local, "held", None)
        if held is None:
            held = self._local.held = _Connection(self.root / DATABASE)
            self._connections.add(held)
        return held.db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: what happens inside is there whole when the block ends, and not at all if it raises."""
        with self._writing:
            db = self.read()
            if db.in_transaction:
                yield db
                return
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                # The database must never name a file that a power cut can take away.
                sync_files({self.files.path(key).parent for key in self._placed})
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                self._unwanted = self._placed
                raise
            finally:  # still alone, so that nobody counts on these files
                for key in self._unwanted:
                    if db.execute("SELECT 1 FROM objects WHERE key = ?", (key,)).fetchone() is None:
                        self.files.path(key).unlink(missing_ok=True)
                self._placed, self._unwanted = [], []

    def place(self, source: Path, key: str) -> None:
        """Puts a finished file in its place, inside of a transaction: if that fails, the file goes again.

        Args:
            source: From `Incoming.finish`, and on disk (`sync_files`).
            key: The hash of its content; the caller has checked it.
        """
        assert self.read().in_transaction
        if self.files.place(source, key):
            self._placed.append(key)

    def drop(self, keys: Iterable[str]) -> None:
        """Removes files when the transaction is through, those that no repository holds then."""
        assert self.read().in_transaction
        self._unwanted = [*self._unwanted, *keys]

    def close(self) -> None:
        for held in list(self._connections):
            held.db.close()
        self._held.close()

    def _remove_orphans(self) -> None:
        """Removes files that a killed process placed before its transaction was through."""
        wanted = {row[0] for row in self.read().execute("SELECT DISTINCT key FROM objects")}
        self.files.remove_all_but(wanted)


class _Connection:
    """A thread's connection, which closes when the thread ends: those that serve requests come and go."""

    def __init__(self, path: Path):
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("PRAGMA foreign_keys = ON")

    def __del__(self):
        self.db.close()


def now() -> str:
    """Returns the time as the hub writes it."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def create_repo(db: sqlite3.Connection, kind: str, name: str, *, private: bool, data: dict) -> Repo | None:
    """Adds an empty repository.

    Args:
        db: From `Store.write`.
        kind: `model`, `dataset` or `space`.
        name: namespace/name.
        private: Whether only members of the namespace see it.
        data: More about it, see `Repo`.

    Returns:
        The repository, or None where the name is taken.
    """
    try:
        added = db.execute(
            "INSERT INTO repos (type, name, private, gated, created, data) VALUES (?, ?, ?, 'false', ?, ?)",
            (kind, name, private, now(), json.dumps(data)),
        )
    except sqlite3.IntegrityError:
        return None
    db.execute("DELETE FROM moved WHERE type = ? AND name = ?", (kind, name))
    return _repo(db.execute("SELECT * FROM repos WHERE id = ?", (added.lastrowid,)).fetchone())


def find_repo(db: sqlite3.Connection, kind: str, name: str) -> Repo | None:
    """Returns a repository, also by a name that it had before it moved.

    Args:
        db: Connection.
        kind: `model`, `dataset` or `space`.
        name: namespace/name, upper and lower case alike.

    Returns:
        The repository, or None.
    """
    row = db.execute("SELECT * FROM repos WHERE type = ? AND name = ?", (kind, name)).fetchone()
    if row is None:
        query = "SELECT repos.* FROM repos JOIN moved ON repos.id = moved.repo WHERE moved.type = ? AND moved.name = ?"
        row = db.execute(query, (kind, name)).fetchone()
    return None if row is None else _repo(row)


def list_repos(db: sqlite3.Connection, kind: str | None = None) -> list[Repo]:
    """Returns all repositories, of one type or of all, those that changed last first.

    Args:
        db: Connection.
        kind: `model`, `dataset`, `space`, or None for all.

    Returns:
        The repositories, private ones too: the caller asks `access.may_read`.
    """
    rows = db.execute(
        "SELECT repos.* FROM repos LEFT JOIN refs ON refs.repo = repos.id AND refs.name = 'refs/heads/main' "
        "LEFT JOIN commits ON commits.repo = repos.id AND commits.oid = refs.oid "
        "WHERE ?1 IS NULL OR repos.type = ?1 ORDER BY coalesce(commits.created, repos.created) DESC, repos.id DESC",
        (kind,),
    )
    return [_repo(row) for row in rows]


def update_repo(db: sqlite3.Connection, repo: Repo, *, private=None, gated=None, data: dict | None = None) -> Repo:
    """Changes what is given, and returns the repository as it is then."""
    if private is not None:
        db.execute("UPDATE repos SET private = ? WHERE id = ?", (bool(private), repo.id))
    if gated is not None:
        db.execute("UPDATE repos SET gated = ? WHERE id = ?", (json.dumps(gated).strip('"'), repo.id))
    if data is not None:
        db.execute("UPDATE repos SET data = ? WHERE id = ?", (json.dumps({**repo.data, **data}), repo.id))
    return _repo(db.execute("SELECT * FROM repos WHERE id = ?", (repo.id,)).fetchone())


def move_repo(db: sqlite3.Connection, repo: Repo, name: str) -> bool:
    """Renames a repository; its old name leads to it until somebody takes that name.

    Returns:
        False where the new name is taken.
    """
    try:
        db.execute("UPDATE repos SET name = ? WHERE id = ?", (name, repo.id))
    except sqlite3.IntegrityError:
        return False
    db.execute("DELETE FROM moved WHERE type = ? AND name = ?", (repo.type, name))
    if name.lower() != repo.name.lower():
        db.execute("INSERT OR REPLACE INTO moved VALUES (?, ?, ?)", (repo.type, repo.name, repo.id))
    return True


def delete_repo(store: Store, db: sqlite3.Connection, repo: Repo) -> None:
    """Removes a repository with its history, and the files that no other one holds."""
    store.drop([row[0] for row in db.execute("SELECT key FROM objects WHERE repo = ?", (repo.id,))])
    db.execute("DELETE FROM repos WHERE id = ?", (repo.id,))


def used_bytes(db: sqlite3.Connection, namespace: str) -> int:
    """Returns how much the repositories of a user or organization hold, over all their histories."""
    query = "SELECT coalesce(sum(size), 0) FROM objects JOIN repos ON repos.id = objects.repo WHERE repos.name LIKE ?"
    escaped = namespace.replace("_", r"\_")
    return db.execute(query + r" ESCAPE '\'", (f"{escaped}/%",)).fetchone()[0]


def add_object(db: sqlite3.Connection, repo: Repo, key: str, size: int) -> None:
    """Notes that a repository holds a file's content; nobody can claim what he has not sent."""
    db.execute("INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?)", (repo.id, key, size, now()))


def object_size(db: sqlite3.Connection, repo: Repo, key: str) -> int | None:
    """Returns the length of a content that the repository holds, or None."""
    row = db.execute("SELECT size FROM objects WHERE repo = ? AND key = ?", (repo.id, key)).fetchone()
    return row and row[0]


def _repo(row: sqlite3.Row) -> Repo:
    gated = False if row["gated"] == "false" else row["gated"]
    return Repo(row["id"], row["type"], row["name"], bool(row["private"]), gated, row["created"],
                json.loads(row["data"]))  # fmt: skip


def _hold(root: Path):
    handle = open(root / "in_use", "w")  # noqa: SIM115
    if os.name != "nt":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise UserError(f"{root} is served by another process", "one hub per folder",
                            "stop the other one, or use another folder") from None  # fmt: skip
    return handle

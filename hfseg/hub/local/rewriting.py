"""Changing what was: one commit in place of a branch's history, and a history that never had some large files."""

from __future__ import annotations

import json
import sqlite3

from hfseg.hub.local.history import (
    Commit,
    Draft,
    add_commit,
    branch_ref,
    find_revision,
    list_files,
    log,
    read_commit,
    read_ref,
    refs,
    set_ref,
)
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, Store


def squash_branch(db: sqlite3.Connection, repo: Repo, revision: str, author: str, message: str) -> Commit:
    """Leaves of a branch's history one commit with the files of its head.

    Args:
        db: From `Store.write`.
        repo: The repository.
        revision: Branch.
        author: User.
        message: Of the new commit.

    Returns:
        The commit.
    """
    name = branch_ref(db, repo, revision)
    if name is None:
        find_revision(db, repo, revision)
        raise HubError(400, f"{revision} is no branch")
    head = read_commit(db, repo, read_ref(db, repo, name))
    title, _, rest = message.partition("\n")
    commit = add_commit(db, repo, head.tree, None, author, title, rest.strip())
    set_ref(db, repo, name, commit.oid)
    return commit


def forget_large_files(store: Store, db: sqlite3.Connection, repo: Repo, wanted: set[str]) -> None:
    """Removes large files from all commits of a repository, and from the disk where no other one has them.

    Args:
        store: The hub's.
        db: From `Store.write`.
        repo: The repository; all its commits from the first one with such a file on get new names.
        wanted: SHA-256 of the files.
    """
    renamed: dict[str, str] = {}
    for name, head in refs(db, repo, ""):
        for commit in reversed(list(log(db, repo, head))):
            if commit.oid not in renamed:
                renamed[commit.oid] = _without(db, repo, commit, renamed.get(commit.parent), wanted)
        set_ref(db, repo, name, renamed[head])
    kept = set(renamed.values())
    for row in db.execute("SELECT oid FROM commits WHERE repo = ?", (repo.id,)).fetchall():
        if row["oid"] not in kept:
            db.execute("DELETE FROM commits WHERE repo = ? AND oid = ?", (repo.id, row["oid"]))
    for row in db.execute("SELECT num, data FROM discussions WHERE repo = ?", (repo.id,)).fetchall():
        data = {key: renamed.get(value, value) for key, value in json.loads(row["data"]).items()}
        new = (json.dumps(data), repo.id, row["num"])
        db.execute("UPDATE discussions SET data = ? WHERE repo = ? AND num = ?", new)
    for key in wanted:
        db.execute("DELETE FROM objects WHERE repo = ? AND key = ?", (repo.id, key))
    store.drop(wanted)


def _without(db: sqlite3.Connection, repo: Repo, commit: Commit, parent: str | None, wanted: set[str]) -> str:
    """Writes a commit again, after another parent and without some files; the same one where nothing changes."""
    unwanted = [entry.path for entry in list_files(db, commit.tree) if entry.sha256 in wanted]
    if not unwanted and parent == commit.parent:
        return commit.oid
    draft = Draft(db, commit.tree)
    for path in unwanted:
        draft.delete_file(path)
    new = add_commit(db, repo, draft.save(), parent, commit.author, commit.title, commit.message, commit.created)
    return new.oid

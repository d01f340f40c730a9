"""Discussions and pull requests: a thread of events, and for the latter a reference with proposed commits."""

from __future__ import annotations

import json
import secrets
import sqlite3
from typing import Any

from hfseg.hub.local.commits import Operation, add_changes, merge
from hfseg.hub.local.history import (
    MAIN,
    Commit,
    branch_ref,
    find_revision,
    list_files,
    log,
    read_commit,
    read_ref,
    set_ref,
)
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, Store, now


def open_discussion(
    db: sqlite3.Connection, repo: Repo, title: str, description: str, author: str, *, head: Commit | None = None,
    status: str = "open", branch: str = MAIN,
) -> int:  # fmt: skip
    """Starts a thread.

    Args:
        db: From `Store.write`.
        repo: The repository.
        title: 3 to 200 characters.
        description: The first comment.
        author: User.
        head: Of a pull request, the commit that it starts with.
        status: `open` or `draft`.
        branch: Of a pull request, what it wants to change.

    Returns:
        Its number, from 1 up.
    """
    title = title.strip()
    if not 3 <= len(title) <= 200:
        raise HubError(400, "A title has 3 to 200 characters")
    num = db.execute("SELECT coalesce(max(num), 0) + 1 FROM discussions WHERE repo = ?", (repo.id,)).fetchone()[0]
    data = {"base": read_ref(db, repo, branch), "branch": branch} if head else {}
    db.execute("INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
               (repo.id, num, title, head is not None, status, author, now(), json.dumps(data)))  # fmt: skip
    add_comment(db, repo, num, author, description)
    if head is not None:
        set_ref(db, repo, f"refs/pr/{num}", head.oid)
    return num


def open_with_commit(
    store: Store, db: sqlite3.Connection, repo: Repo, revision: str, header: dict[str, Any],
    operations: list[Operation], author: str, quota: int | None,
) -> tuple[int, Commit]:  # fmt: skip
    """Starts a pull request with one commit on top of a branch, or of the `parentCommit` that the client names.

    Returns:
        A tuple of its number and the commit.
    """
    branch = branch_ref(db, repo, revision)
    if branch is None or branch.startswith("refs/pr/"):
        raise HubError(404, f"Invalid rev id: there is no branch {revision}", "RevisionNotFound")
    base = find_revision(db, repo, header.get("parentCommit") or branch)
    commit = add_changes(store, db, repo, base, header, operations, author, quota)
    title = header["summary"].strip().ljust(3)[:200]
    num = open_discussion(db, repo, title if len(title.strip()) >= 3 else f"Update: {title}",
                          str(header.get("description") or ""), author, head=commit, branch=branch)  # fmt: skip
    _set_data(db, repo, num, {"base": base.oid})
    return num, commit


def add_event(db: sqlite3.Connection, repo: Repo, num: int, kind: str, author: str, data: dict) -> dict[str, Any]:
    """Adds an event to a thread and returns it as the hub tells it."""
    event = (secrets.token_hex(12), repo.id, num, kind, author, now(), json.dumps(data))
    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", event)
    return _event(event[0], kind, author, event[5], data)


def add_comment(db: sqlite3.Connection, repo: Repo, num: int, author: str, text: str) -> dict[str, Any]:
    """Adds a comment and returns its event."""
    version = {"raw": text, "html": "", "updatedAt": now(), "author": {"name": author}}
    data = {"edited": False, "hidden": False, "latest": version, "history": [version]}
    return add_event(db, repo, num, "comment", author, data)


def edit_comment(db: sqlite3.Connection, repo: Repo, num: int, event_id: str, author: str, text: str | None) -> dict:
    """Changes a comment, or hides it for good where there is no text.

    Raises:
        HubError: 403 for another's comment, 404.
    """
    row = db.execute("SELECT * FROM events WHERE id = ? AND repo = ? AND num = ? AND type = 'comment'",
                     (event_id, repo.id, num)).fetchone()  # fmt: skip
    if row is None:
        raise HubError(404, f"There is no comment {event_id}")
    if row["author"] != author:
        raise HubError(403, f"The comment is {row['author']}'s")
    data = json.loads(row["data"])
    if data["hidden"]:
        raise HubError(400, "The comment is hidden")
    text_now = "This comment has been hidden" if text is None else text
    version = {"raw": text_now, "html": "", "updatedAt": now(), "author": {"name": author}}
    if text is None:
        data = {"edited": data["edited"], "hidden": True, "hiddenBy": author, "latest": version, "history": []}
    else:
        data = {**data, "edited": True, "latest": version, "history": [version, *data["history"]]}
    db.execute("UPDATE events SET data = ? WHERE id = ?", (json.dumps(data), event_id))
    return _event(event_id, "comment", row["author"], row["created"], data)


def change_title(db: sqlite3.Connection, repo: Repo, num: int, author: str, title: str) -> dict[str, Any]:
    """Renames a thread and returns the event."""
    title = title.strip()
    if not 3 <= len(title) <= 200:
        raise HubError(400, "A title has 3 to 200 characters")
    old = find_discussion(db, repo, num)["title"]
    db.execute("UPDATE discussions SET title = ? WHERE repo = ? AND num = ?", (title, repo.id, num))
    return add_event(db, repo, num, "title-change", author, {"from": old, "to": title})


def change_status(db: sqlite3.Connection, repo: Repo, num: int, author: str, status: str) -> dict[str, Any]:
    """Opens or closes a thread and returns the event."""
    if status not in ("open", "closed"):
        raise HubError(400, "status must be open or closed")
    if find_discussion(db, repo, num)["status"] == "merged":
        raise HubError(400, "The pull request is merged")
    db.execute("UPDATE discussions SET status = ? WHERE repo = ? AND num = ?", (status, repo.id, num))
    return add_event(db, repo, num, "status-change", author, {"status": status})


def merge_request(db: sqlite3.Connection, repo: Repo, num: int, author: str) -> dict[str, Any]:
    """Puts the changes of a pull request on top of its branch, in one commit, and returns the event.

    Raises:
        HubError: 400 where there is nothing to merge, 409 for conflicts.
    """
    found = find_discussion(db, repo, num)
    if not found["is_pull_request"] or found["status"] in ("merged", "closed"):
        raise HubError(400, f"#{num} is no open pull request")
    theirs = read_commit(db, repo, read_ref(db, repo, f"refs/pr/{num}"))
    data = json.loads(found["data"])
    base, ours = read_commit(db, repo, data["base"]), find_revision(db, repo, data["branch"])
    made = merge(db, repo, ours, theirs, base, author, f"{found['title']} (#{num})")
    set_ref(db, repo, data["branch"], made.oid)
    db.execute("UPDATE discussions SET status = 'merged' WHERE repo = ? AND num = ?", (repo.id, num))
    _set_data(db, repo, num, {"mergeCommitId": made.oid})
    return add_event(db, repo, num, "status-change", author, {"status": "merged"})


def find_discussion(db: sqlite3.Connection, repo: Repo, num: int) -> sqlite3.Row:
    """Returns a thread's row, or raises 404."""
    row = db.execute("SELECT * FROM discussions WHERE repo = ? AND num = ?", (repo.id, num)).fetchone()
    if row is None:
        raise HubError(404, f"There is no discussion {num}")
    return row


def is_author(db: sqlite3.Connection, repo: Repo, num: str, user: str | None) -> bool:
    """Says whether somebody opened a pull request, so that he may add commits to it."""
    query = "SELECT author FROM discussions WHERE repo = ? AND num = ? AND is_pull_request"
    row = db.execute(query, (repo.id, int(num) if num.isdecimal() else -1)).fetchone()
    return row is not None and row["author"] == user


def list_discussions(db: sqlite3.Connection, repo: Repo) -> list[sqlite3.Row]:
    """Returns all threads, the newest first."""
    return db.execute("SELECT * FROM discussions WHERE repo = ? ORDER BY num DESC", (repo.id,)).fetchall()


def summary(row: sqlite3.Row, repo: Repo) -> dict[str, Any]:
    """Returns what the hub tells about a thread in a list."""
    return {"num": row["num"], "title": row["title"], "status": row["status"],
            "isPullRequest": bool(row["is_pull_request"]), "author": {"name": row["author"]},
            "createdAt": row["created"], "repo": {"name": repo.name, "type": repo.type}}  # fmt: skip


def details(db: sqlite3.Connection, repo: Repo, num: int) -> dict[str, Any]:
    """Returns a thread with its events; those of a pull request include its commits."""
    row = find_discussion(db, repo, num)
    told = summary(row, repo)
    rows = db.execute("SELECT * FROM events WHERE repo = ? AND num = ? ORDER BY created, rowid", (repo.id, num))
    events = [_event(e["id"], e["type"], e["author"], e["created"], json.loads(e["data"])) for e in rows]
    if row["is_pull_request"]:
        data = json.loads(row["data"])
        commits = []
        for commit in log(db, repo, read_ref(db, repo, f"refs/pr/{num}")):
            if commit.oid == data["base"]:
                break
            commits.append(_event(commit.oid[:24], "commit", commit.author, commit.created,
                                  {"subject": commit.title, "oid": commit.oid}))  # fmt: skip
        events = sorted([*events, *commits], key=lambda event: event["createdAt"])
        told |= {"filesWithConflicts": [], "changes": {"base": data["branch"],
                 "mergeCommitId": data.get("mergeCommitId")}, "diff": _diff(db, repo, num, data["base"])}  # fmt: skip
    return {**told, "events": events}


def _diff(db: sqlite3.Connection, repo: Repo, num: int, base: str) -> str:
    """The names of the files that a pull request changes, as the head of a git diff says them."""
    before = {e.path: e.oid for e in list_files(db, read_commit(db, repo, base).tree)}
    after = {e.path: e.oid for e in list_files(db, find_revision(db, repo, f"refs/pr/{num}").tree)}
    changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    return "\n".join(f"diff --git a/{path} b/{path}" for path in changed)


def _set_data(db: sqlite3.Connection, repo: Repo, num: int, data: dict) -> None:
    old = json.loads(find_discussion(db, repo, num)["data"])
    db.execute("UPDATE discussions SET data = ? WHERE repo = ? AND num = ?",
               (json.dumps({**old, **data}), repo.id, num))  # fmt: skip


def _event(event_id: str, kind: str, author: str, created: str, data: dict) -> dict[str, Any]:
    return {"id": event_id, "type": kind, "author": {"name": author}, "createdAt": created, "data": data}

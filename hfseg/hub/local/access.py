"""Who is asking, and what he may do: tokens (kept as hashes), namespaces, private and gated repositories."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from dataclasses import dataclass

from hfseg.hub.local.names import check_name
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, Store, find_repo, now


@dataclass(frozen=True)
class Identity:
    """Who is asking.

    Attributes:
        user: Name, or None for somebody without a token.
        role: `read`, `write`, or `owner`: the hub's owner may do everything.
        orgs: The organizations that the user belongs to.
    """

    user: str | None = None
    role: str = "read"
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether the user himself or one of his organizations is meant, or he may do everything."""
        mine = {name.lower() for name in (self.user or "", *self.orgs)} - {""}
        return self.role == "owner" or namespace.lower() in mine


ANONYMOUS = Identity()


def identify(store: Store, header: str | None) -> Identity:
    """Tells who sent a request.

    Args:
        store: The hub's.
        header: The `Authorization` header, if there is one.

    Returns:
        Who it is.

    Raises:
        HubError: 401 for a token that the hub does not know.
    """
    if not header:
        return ANONYMOUS
    scheme, _, token = header.partition(" ")
    row = store.read().execute("SELECT user, role FROM tokens WHERE hash = ?", (_hash(token.strip()),)).fetchone()
    if scheme.lower() != "bearer" or row is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    orgs = store.read().execute("SELECT org FROM members WHERE user = ? ORDER BY org", (row["user"],))
    return Identity(row["user"], row["role"], tuple(org[0] for org in orgs))


def create_token(db: sqlite3.Connection, user: str, role: str, token: str | None = None) -> str:
    """Makes a token; the hub keeps only its hash.

    Args:
        db: From `Store.write`.
        user: Whose; he is added where he is new.
        role: `read`, `write` or `owner`.
        token: The token itself, if it is given from outside.

    Returns:
        The token.

    Raises:
        HubError: 400 for a name that the hub does not accept.
    """
    token = token or "hf_" + secrets.token_urlsafe(32).replace("-", "x").replace("_", "y")
    db.execute("INSERT OR IGNORE INTO accounts VALUES (?, 0)", (check_name(user, "user"),))
    db.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?)", (_hash(token), user, role))
    return token


def find_readable(store: Store, who: Identity, kind: str, name: str) -> Repo:
    """Returns a repository that somebody may see.

    Args:
        store: The hub's.
        who: Who is asking.
        kind: `model`, `dataset` or `space`.
        name: namespace/name.

    Returns:
        The repository.

    Raises:
        HubError: 404, or 401 for somebody without a token; a private repository answers as one that is not there.
    """
    repo = find_repo(store.read(), kind, name)
    if repo is None or not may_see(who, repo):
        raise HubError(404 if who.user else 401, "Repository not found" if who.user else
                       "Repository not found, or private: sign in with a token", "RepoNotFound")  # fmt: skip
    return repo


def find_writable(store: Store, who: Identity, kind: str, name: str) -> Repo:
    """Returns a repository that somebody may change, see `find_readable`.

    Raises:
        HubError: 401, 403 or 404.
    """
    repo = find_readable(store, who, kind, name)
    check_may_write(who, repo)
    return repo


def check_may_write(who: Identity, repo: Repo) -> None:
    """Raises 401 or 403 if somebody may not change a repository."""
    if who.user is None:
        raise HubError(401, "Changing a repository needs a token: sign in first", "RepoNotFound")
    if who.role == "read":
        raise HubError(403, f"This token of {who.user} may only read: create one with the role write")
    if not who.owns(repo.namespace):
        raise HubError(403, f"{who.user} may not write to {repo.name}: it belongs to {repo.namespace}")


def check_may_propose(who: Identity, repo: Repo) -> None:
    """Raises 401 or 403 if somebody may not open a pull request: everybody may who has a token and sees the files."""
    if who.user is None:
        raise HubError(401, "A pull request needs a token: sign in first", "RepoNotFound")
    if who.role == "read":
        raise HubError(403, f"This token of {who.user} may only read: create one with the role write")


def check_may_download(db: sqlite3.Connection, who: Identity, repo: Repo) -> None:
    """Raises 401 or 403 with the code `GatedRepo` if a repository's files must be asked for."""
    if not repo.gated or who.owns(repo.namespace):
        return
    if who.user is None:
        raise HubError(401, f"Access to {repo.type} {repo.name} is restricted. You must have access to it and be "
                            "authenticated to access it. Please log in.", "GatedRepo")  # fmt: skip
    row = db.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.id, who.user)).fetchone()
    if row is None or row["status"] != "accepted":
        raise HubError(403, f"Access to {repo.type} {repo.name} is restricted and you are not in the authorized list. "
                            "Ask for access on its page.", "GatedRepo")  # fmt: skip


def ask_for_access(db: sqlite3.Connection, who: Identity, repo: Repo) -> str:
    """Notes that somebody asks for a gated repository's files.

    Returns:
        `accepted` where the gate opens by itself, else `pending`, or what was decided before.
    """
    status = "accepted" if repo.gated == "auto" else "pending"
    db.execute("INSERT OR IGNORE INTO access VALUES (?, ?, ?, ?)", (repo.id, who.user, status, now()))
    return db.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.id, who.user)).fetchone()[0]


def may_see(who: Identity, repo: Repo) -> bool:
    """Says whether a repository shows for somebody."""
    return not repo.private or who.owns(repo.namespace)


def sign(store: Store, *parts: object) -> str:
    """Returns a signature that only this hub can make, for URLs and short-lived tokens."""
    text = "\n".join(str(part) for part in parts).encode()
    return hmac.new(store.secret, text, hashlib.sha256).hexdigest()


def check_signature(store: Store, signature: str, *parts: object) -> bool:
    """Says whether a signature is the hub's own."""
    return hmac.compare_digest(signature.encode(), sign(store, *parts).encode())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

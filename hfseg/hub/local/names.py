"""Which names the hub accepts: of repositories, of branches and tags, and of files."""

from __future__ import annotations

import re

from hfseg.hub.local.problems import HubError

_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.\-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# First parts of the hub's own paths, which no user may be called by.
_RESERVED = {"api", "datasets", "models", "spaces", "uploads", "xet", "login", "logout", "settings", "static"}
_FORBIDDEN_PARTS = {"", ".", "..", ".git"}


def check_name(name: object, what: str = "repository") -> str:
    """Returns the name of a user, an organization or a repository (without its namespace), if the hub accepts it.

    Args:
        name: What a client sent.
        what: For the message.

    Returns:
        `name`.

    Raises:
        HubError: 400.

    Example:
        >>> check_name("segformer-b0.v2")
        'segformer-b0.v2'
    """
    good = isinstance(name, str) and _NAME.fullmatch(name) and "--" not in name and ".." not in name
    if not good or name.lower().endswith((".git", ".ipynb")):
        raise HubError(400, f"Invalid {what} name {str(name)[:100]!r}: letters, digits, '-', '_' and '.', at most 96, "
                            "no '--' or '..', no '-' or '.' at the ends, and not ending in .git or .ipynb")  # fmt: skip
    if what == "user" and name.lower() in _RESERVED:
        raise HubError(400, f"{name!r} is reserved for the hub itself: choose another user or organization name")
    return name


def check_ref(name: object) -> str:
    """Returns the name of a branch or tag, if git would accept it and it looks like no commit and no other ref.

    Args:
        name: What a client sent.

    Returns:
        `name`.

    Raises:
        HubError: 400.

    Example:
        >>> check_ref("v1.0")
        'v1.0'
    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 200
        or re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//", name)
        or name.startswith(("/", "-", "refs/"))
        or name.endswith(("/", ".", ".lock"))
        or any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))
        or name in ("@", "HEAD")
        or re.fullmatch(r"[0-9a-f]{40}", name)
    ):
        raise HubError(400, f"Invalid reference name {str(name)[:100]!r} for a branch or tag")
    return name


def check_path(path: object) -> str:
    """Returns the path of a file in a repository, if it stays inside and every system can hold it.

    Args:
        path: What a client sent.

    Returns:
        `path`.

    Raises:
        HubError: 400.

    Example:
        >>> check_path("samples/0001.png")
        'samples/0001.png'
    """
    good = (
        isinstance(path, str)
        and 0 < len(path.encode("utf-8", "surrogatepass")) <= 1024
        and not re.search(r"[\x00-\x1f\x7f\\\ud800-\udfff]", path)
        and not any(part.lower() in _FORBIDDEN_PARTS or len(part.encode()) > 255 for part in path.split("/"))
    )
    if not good:
        raise HubError(400, f"Invalid file path {str(path)[:200]!r}: relative, with '/', and without empty parts, '.', "
                            "'..', '.git', backslashes and control characters")  # fmt: skip
    return path


def is_commit_prefix(revision: str) -> bool:
    """Says whether a revision may be a commit's id or its beginning."""
    return bool(_COMMIT.fullmatch(revision))

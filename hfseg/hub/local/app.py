"""The hub as an ASGI application: all routes in one list, errors as clients understand them."""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import secrets
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from hfseg.hub.local import (
    api_commits,
    api_discussions,
    api_files,
    api_repos,
    api_spaces,
    lfs,
    pages,
    xet,
)
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Store
from hfseg.hub.local.wire import Call, Json, answer

# The first route that fits counts; the pages come last, as they take what is left.
ROUTES = [
    *api_repos.routes, *api_files.routes, *api_commits.routes, *lfs.routes, *xet.routes, *api_discussions.routes,
    *api_spaces.routes, *api_repos.last_routes, *pages.routes,
]  # fmt: skip

_log = logging.getLogger(__name__)


class Hub:
    """The application, with its store and settings.

    Args:
        root: Folder of the hub.
        host: Where it will listen; on a loopback address only requests to loopback names are answered, so that a web
            page elsewhere cannot reach the hub by a name that it lets point here.
        quota_bytes: How much each user or organization may hold; None for no limit.
    """

    def __init__(self, root: Path, host: str = "127.0.0.1", quota_bytes: int | None = None):
        self.store = Store(root)
        self.xorbs = xet.Xorbs(self.store.root / "xet")
        self.quota_bytes = quota_bytes
        self._only_loopback = is_loopback(host)

    def close(self) -> None:
        self.store.close()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            name = re.sub(r":\d+$", "", request.headers.get("host", ""))
            if self._only_loopback and not is_loopback(name.strip("[]")):
                raise HubError(421, f"This hub is on loopback only, and its name is not {name[:100]!r}")
            response = await answer(lambda places: Call(request, self, places), ROUTES, request)
        except HubError as problem:
            response = _refusal(problem)
            await _drain(request)
        except ClientDisconnect:
            return
        except Exception as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error):
                response = _refusal(HubError(507, "The disk of this hub is full: nothing was changed"))
            else:
                _log.exception("%s %s", scope["method"], scope["path"])
                response = _refusal(HubError(500, "The hub failed; its log tells more"))
            await _drain(request)
        await response(scope, receive, send)


async def _drain(request: Request) -> None:
    """Reads what the client still sends: one that is cut off while it sends never sees the answer."""
    try:
        async for _ in request.stream():
            pass
    except (ClientDisconnect, RuntimeError):  # gone, or all was read already
        pass


def is_loopback(host: str) -> bool:
    """Says whether a host is this machine's own loopback.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("evil.example")
        (True, True, False)
    """
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(problem: HubError) -> Json:
    headers = {"X-Request-Id": secrets.token_hex(8), **problem.headers}
    text = re.sub(r"[^\x20-\x7e]", "?", problem.message)[:500].strip()
    headers["X-Error-Message"] = text
    if problem.code:
        headers["X-Error-Code"] = problem.code
    return Json({"error": problem.message} if problem.body is None else problem.body, problem.status, headers)

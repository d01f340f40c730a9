"""HTTP as the hub speaks it: routes on the undecoded path, errors in headers, files with ranges."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from hfseg.hub.local.access import ANONYMOUS, Identity, identify
from hfseg.hub.local.problems import HubError

BLOCK = 1 << 20
BODY_LIMIT = 64 << 20  # of a JSON body; uploads and commits are streamed

_PLACES = {
    "kind": r"(?P<kind>models|datasets|spaces)",
    "prefix": r"(?P<prefix>(?:datasets|spaces)/)?",
    "repo": r"(?P<repo>[^/]+/[^/]+?)",
    "rev": r"(?P<rev>refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+)",
    "path": r"(?P<path>.+)",
}
_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space", None: "model"}


@dataclass(frozen=True)
class Route:
    """One call of the hub's: `{kind}`, `{repo}`, `{rev}`, `{path}` and other `{name}`s stand in the pattern."""

    method: str
    pattern: re.Pattern[str]
    handler: Callable
    streams: bool
    signed: bool


class Routes(list):
    """A list of `Route`s that one module offers.

    Example:
        >>> routes = Routes()
        >>> @routes.on("GET", "/api/{kind}/{repo}/refs")
        ... def refs(call):
        ...     return {}
        >>> bool(routes[0].pattern.fullmatch("/api/models/me/net/refs"))
        True
    """

    def on(self, method: str, pattern: str, *, streams: bool = False, signed: bool = False) -> Callable:
        """Adds the function below it.

        Args:
            method: `GET`, `POST`...
            pattern: Path, not decoded, with places in braces.
            streams: Whether the function is a coroutine that reads the body itself.
            signed: Whether the function checks a signature in place of the user's token.

        Returns:
            A decorator.
        """
        expression = re.sub(r"\{(\w+)\}", lambda m: _PLACES.get(m[1], rf"(?P<{m[1]}>[^/]+)"), pattern)

        def add(handler: Callable) -> Callable:
            self.append(Route(method, re.compile(expression), handler, streams, signed))
            return handler

        return add


@dataclass
class Call:
    """One request, as the handlers see it.

    Attributes:
        request: Starlette's.
        hub: The `Hub` with the store and the settings.
        places: What stands in the braces of the route's pattern, decoded.
        body: The body, where the route does not stream.
    """

    request: Request
    hub: Any
    places: dict[str, str | None]
    body: bytes = b""
    identity: Identity = field(default=ANONYMOUS)

    @property
    def repo_type(self) -> str:
        """`model`, `dataset` or `space`, from /api/datasets/... or /datasets/..."""
        return _TYPES[(self.places.get("kind") or self.places.get("prefix") or "models").rstrip("/")]

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "The body is no JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "The body is no JSON object")
        return value

    @property
    def query(self):
        return self.request.query_params

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
        return self.query.get(name, "").lower() in ("1", "true")

    def number(self, name: str, default: int, highest: int) -> int:
        """Returns a query parameter as a number from 1 to `highest`."""
        value = self.query.get(name, "")
        return max(1, min(int(value), highest)) if value.isdecimal() else default

    @property
    def base(self) -> str:
        """URL of this hub as the client knows it."""
        return f"{self.request.url.scheme}://{self.request.url.netloc}"


class Json(Response):
    """JSON with a status and headers."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(json.dumps(value, ensure_ascii=False).encode(), status, headers)


def page(call: Call, items: Sequence, size: int, path: str | None = None) -> Json:
    """Answers with a part of a list and a link to the next part.

    Args:
        call: The request; its `cursor` parameter says where the part begins.
        items: All items, in an order that lasts.
        size: How many at most.
        path: Path of the link, where it is not the request's own.

    Returns:
        The answer.
    """
    cursor = call.query.get("cursor", "0")
    start = int(cursor) if cursor.isdecimal() else 0
    headers = {}
    if start + size < len(items):
        kept = [(key, value) for key, value in call.query.multi_items() if key != "cursor"]
        query = "&".join(f"{quote(k)}={quote(v)}" for k, v in [*kept, ("cursor", str(start + size))])
        path = path or call.request.scope["raw_path"].decode("latin-1")
        headers["Link"] = f'<{call.base}{path}?{query}>; rel="next"'
    return Json(list(items[start : start + size]), headers=headers)


class FileResponse(Response):
    """A file, or a range of it, read block by block in threads.

    Args:
        path: The file.
        size: Its length in bytes.
        etag: What names its content, without quotes.
        headers: More headers.
        request: For Range, If-Range and If-None-Match.
    """

    def __init__(self, path: Path, size: int, etag: str, headers: dict[str, str], request: Request):
        self.path, self.start, self.length = path, 0, size
        status = 200
        asked = request.headers.get("range")
        if asked and request.headers.get("if-range", f'"{etag}"').strip('W/"') == etag:
            span = byte_range(asked, size)
            if span == "outside":
                raise HubError(416, "The range is outside of the file", headers={"Content-Range": f"bytes */{size}"})
            if span is not None:
                self.start, self.length, status = span[0], span[1] - span[0], 206
                headers = {**headers, "Content-Range": f"bytes {span[0]}-{span[1] - 1}/{size}"}
        known = request.headers.get("if-none-match", "").split(",")
        known = {tag.strip().removeprefix("W/").strip('"') for tag in known}
        if etag in known or "*" in known:
            status, self.length = 304, 0
        super().__init__(b"", status, {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})
        if status == 304:
            del self.headers["content-length"]
        else:
            self.headers["content-length"] = str(self.length)
        self.sends = request.method != "HEAD" and self.length > 0

    async def __call__(self, scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self.sends:
            handle = await anyio.to_thread.run_sync(os.open, self.path, os.O_RDONLY)
            try:
                position, end = self.start, self.start + self.length
                while position < end:
                    block = await anyio.to_thread.run_sync(os.pread, handle, min(BLOCK, end - position), position)
                    if not block:
                        raise OSError(f"{self.path} is shorter than it was")
                    position += len(block)
                    await send({"type": "http.response.body", "body": block, "more_body": position < end})
            finally:
                os.close(handle)
        else:
            await send({"type": "http.response.body", "body": b""})


def byte_range(header: str, size: int) -> tuple[int, int] | str | None:
    """Reads a Range header.

    Args:
        header: As sent.
        size: Length of the file in bytes.

    Returns:
        First byte and the one after the last; `outside` for a range that the file lacks; None for a header that is
        passed over: another unit, several ranges, no numbers.

    Example:
        >>> byte_range("bytes=2-4", 10), byte_range("bytes=-3", 10), byte_range("bytes=10-", 10)
        ((2, 5), (7, 10), 'outside')
    """
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", header, re.ASCII)
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        last = int(found[2])
        return (max(0, size - last), size) if last and size else "outside"
    first, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if found[2] and end <= first:
        return None
    return (first, min(end, size)) if first < size else "outside"


async def answer(call_of: Callable[[dict], Call], routes: list[Route], request: Request) -> Response:
    """Finds the route of a request and runs it.

    Args:
        call_of: Makes the `Call` from what stands in the pattern's braces.
        routes: All routes; the first one that fits counts.
        request: The request.

    Returns:
        The answer.
    """
    raw = request.scope["raw_path"].decode("latin-1").split("?")[0]
    method = "GET" if request.method == "HEAD" else request.method
    allowed = set()
    for route in routes:
        found = route.pattern.fullmatch(raw)
        if not found:
            continue
        allowed.add(route.method)
        if route.method != method:
            continue
        try:
            places = {name: unquote(value, errors="strict") if value else value
                      for name, value in found.groupdict().items()}  # fmt: skip
        except UnicodeDecodeError:
            raise HubError(400, "The path is no UTF-8") from None
        call = call_of(places)
        if not route.signed:
            header = request.headers.get("authorization")
            call.identity = await anyio.to_thread.run_sync(identify, call.hub.store, header)
        if route.streams:
            result = await route.handler(call)
        else:
            call.body = await _whole_body(request)
            result = await anyio.to_thread.run_sync(route.handler, call)
        return result if isinstance(result, Response) else Json(result)
    if allowed:
        raise HubError(405, f"{method} is not possible here", headers={"Allow": ", ".join(sorted(allowed))})
    raise HubError(404, "The local hub does not have this page or call")


async def _whole_body(request: Request) -> bytes:
    if int(request.headers.get("content-length") or 0) > BODY_LIMIT:
        raise HubError(413, f"The body is longer than {BODY_LIMIT} bytes")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > BODY_LIMIT:
            raise HubError(413, f"The body is longer than {BODY_LIMIT} bytes")
    return bytes(body)

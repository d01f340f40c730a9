"""Faults to inject between a client and the local hub: `LocalHub(root, middleware=[faults])`."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """One kind of fault: it hits `times` requests that fit, after letting `after` of them through."""

    method: str
    path: re.Pattern[str]
    times: int
    action: str
    status: int
    body: object
    headers: dict[str, str]
    after: int
    seen: int = 0
    hit: int = 0


class _Dropped(Exception):
    """Ends a request without an answer, so that the server closes the connection."""


class Faults:
    """ASGI middleware that fails on demand.

    Actions:
        `503`, `429` (with Retry-After: 1): the answer, in place of the hub's.
        a number with a body: that status and body.
        `drop`: half of the request's body is read, and the connection is closed.
        `lost`: the hub does what was asked, and the connection is closed in place of its answer.
        `cut`: half of the answer's body comes, and the connection is closed.
        `flip`: one bit of the answer's body is another.

    Example:
        >>> faults = Faults()
        >>> commit = faults.add("POST", r"/commit/main$", action="lost")
        >>> faults.count("POST", r"/commit/"), commit.hit
        (0, 0)
    """

    def __init__(self):
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def add(
        self, method: str, path: str, times: int = 1, action: str | int = "503", body: object = None,
        headers: dict[str, str] | None = None, after: int = 0,
    ) -> Fault:  # fmt: skip
        """Plans a fault.

        Args:
            method: `GET`, `POST`..., or `*`.
            path: Regular expression that is searched in the undecoded path with its query.
            times: How many requests it hits.
            action: What happens, see the class.
            body: JSON body for a status.
            headers: Headers for a status.
            after: How many requests that fit come through first.

        Returns:
            The fault, with counts of what it saw (`seen`) and hit (`hit`).
        """
        status = int(action) if str(action).isdecimal() else 0
        kind = "status" if status else str(action)
        assert kind in ("status", "drop", "lost", "cut", "flip"), action
        headers = dict(headers or ({"Retry-After": "1"} if status == 429 else {}))
        fault = Fault(method, re.compile(path), times, kind, status, body, headers, after)
        with self._lock:
            self.faults.append(fault)
        return fault

    def count(self, method: str, path: str) -> int:
        """Returns how many requests came that fit."""
        with self._lock:
            return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def clear(self) -> None:
        """Forgets all faults and requests."""
        with self._lock:
            self.faults, self.requests = [], []

    def _take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.method in ("*", method) and fault.path.search(path):
                    fault.seen += 1
                    if fault.seen > fault.after and fault.hit < fault.times:
                        fault.hit += 1
                        return fault
        return None

    def __call__(self, app):
        """Wraps an application."""

        async def wrapped(scope, receive, send):
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            query = scope.get("query_string", b"")
            path = (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1")
            fault = self._take(scope["method"], path)
            if fault is None:
                await app(scope, receive, send)
            elif fault.action == "status":
                await _answer(fault, receive, send)
            elif fault.action == "drop":
                await _drop(scope, receive)
            elif fault.action == "lost":
                await _lose(app, scope, receive, send)
            else:
                await _spoil(app, scope, receive, send, fault.action)

        return wrapped


async def _answer(fault: Fault, receive, send) -> None:
    while (await receive()).get("more_body"):  # a client that is still sending would not read the answer
        pass
    body = fault.body if fault.body is not None else {"error": f"injected {fault.status}"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **fault.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


async def _drop(scope, receive) -> None:
    """Reads half of the body and hangs up."""
    length = int(dict(scope["headers"]).get(b"content-length", b"0"))
    read = 0
    while read < length / 2:
        message = await receive()
        read += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    _hang_up(receive)


async def _lose(app, scope, receive, send) -> None:
    async def swallow(message):
        pass

    await app(scope, receive, swallow)
    _hang_up(send)


async def _spoil(app, scope, receive, send, action: str) -> None:
    """Changes the answer's body on its way; `cut` closes the connection when half of it was sent."""
    total = sent = 0

    async def change(message):
        nonlocal total, sent
        if message["type"] == "http.response.start":
            total = int({k.lower(): v for k, v in message["headers"]}.get(b"content-length", b"0"))
        elif message.get("body"):
            body, half = message["body"], total // 2
            if action == "flip" and sent <= half < sent + len(body):
                at = half - sent
                message = {**message, "body": body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]}
            sent += len(body)
            if action == "cut" and sent > half:
                await send({**message, "body": body[: len(body) - (sent - half)], "more_body": True})
                await asyncio.sleep(0.05)  # so that the client gets the half before the end
                _hang_up(send)
                raise _Dropped
        await send(message)

    try:
        await app(scope, receive, change)
    except _Dropped:
        pass


def _hang_up(channel) -> None:
    """Closes the connection of a request; ASGI has no way to say so, uvicorn's request cycle holds it."""
    channel.__self__.transport.close()

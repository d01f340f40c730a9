"""Calls that lead to a commit: how to send which file, the commit itself, and whether a card is well formed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread
from starlette.responses import PlainTextResponse

from hfseg.hub.local.access import check_may_propose, check_may_write, find_readable
from hfseg.hub.local.card_reading import check_card
from hfseg.hub.local.commits import LINE_LIMIT, commit_to_branch, is_ignored, read_operations, upload_mode
from hfseg.hub.local.describing import text_of
from hfseg.hub.local.discussions import is_author, open_with_commit
from hfseg.hub.local.files import Incoming
from hfseg.hub.local.history import find_entry, find_revision
from hfseg.hub.local.names import check_path
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo
from hfseg.hub.local.wire import Call, Json, Routes

routes = Routes()


@routes.on("POST", "/api/{kind}/{repo}/preupload/{rev}")
def preupload(call: Call):
    repo = _target(call)
    db = call.hub.store.read()
    commit = find_revision(db, repo, call.places["rev"])
    ignore = call.json.get("gitIgnore")
    if not isinstance(ignore, str):
        ignore = text_of(db, call.hub.store.files, commit, ".gitignore")
    attributes = text_of(db, call.hub.store.files, commit, ".gitattributes")
    told = []
    for file in call.json.get("files") or []:
        try:
            path, size = file["path"], int(file["size"])
            sample = base64.b64decode(file.get("sample") or "", validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise HubError(400, "files must be a list of {path, size, sample}") from None
        try:
            check_path(path)
        except HubError as error:
            raise HubError(422, error.message) from None
        there = find_entry(db, commit.tree, path)
        oid = None if there is None or there.is_folder else there.etag
        told.append({"path": path, "uploadMode": upload_mode(path, size, sample, attributes),
                     "shouldIgnore": is_ignored(path, ignore), "oid": oid})  # fmt: skip
    return {"files": told, "commitOid": commit.oid}


@routes.on("POST", "/api/{kind}/{repo}/commit/{rev}", streams=True)
async def commit(call: Call):
    repo = await anyio.to_thread.run_sync(_target, call)
    store = call.hub.store
    with store.files.workspace() as folder, Incoming(Path(folder)) as body:  # on disk: many files need no memory
        async for block in blocks(call.request.stream()):
            await anyio.to_thread.run_sync(body.write, block)
        return await anyio.to_thread.run_sync(_commit, call, repo, body.name)


def _commit(call: Call, repo: Repo, body: Path) -> Json:
    store, who = call.hub.store, call.identity
    with open(body, "rb") as file:
        header, operations = read_operations(_lines(file), store, repo, body.parent)
    url, pull_request = None, None
    with store.write() as db:
        repo = _target(call)  # it may have gone, or changed hands, in the meantime
        if call.flag("create_pr"):
            num, made = open_with_commit(store, db, repo, call.places["rev"], header, operations, who.user,
                                         call.hub.quota_bytes)  # fmt: skip
            pull_request = f"{call.base}/{repo.path}/discussions/{num}"
        else:
            made = commit_to_branch(store, db, repo, call.places["rev"], header, operations, who.user,
                                    call.hub.quota_bytes)  # fmt: skip
        url = f"{call.base}/{repo.path}/commit/{made.oid}"
    return Json({"success": True, "commitOid": made.oid, "commitUrl": url, "pullRequestUrl": pull_request,
                 "hookOutput": ""})  # fmt: skip


def _target(call: Call) -> Repo:
    """The repository, if it may be changed, or a change proposed."""
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    revision = call.places.get("rev") or ""
    own_request = revision.startswith("refs/pr/") and not call.identity.owns(repo.namespace) and (
        is_author(call.hub.store.read(), repo, revision.removeprefix("refs/pr/"), call.identity.user))
    (check_may_propose if call.flag("create_pr") or own_request else check_may_write)(call.identity, repo)
    return repo


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise HubError(413, f"A line of the commit is longer than {LINE_LIMIT} bytes: send large files as such")
        yield line


async def blocks(stream: AsyncIterator[bytes], size: int = 1 << 20) -> AsyncIterator[bytes]:
    """Puts the small pieces of a request's body together, so that each hop to a thread is worth it.

    Args:
        stream: The body.
        size: Bytes of a block, at least; the last one may be shorter.

    Yields:
        The blocks.
    """
    gathered, length = [], 0
    async for piece in stream:
        gathered.append(piece)
        length += len(piece)
        if length >= size:
            yield b"".join(gathered)
            gathered, length = [], 0
    if length:
        yield b"".join(gathered)


@routes.on("POST", "/api/validate-yaml")
def validate_yaml(call: Call):
    content, kind = call.json.get("content"), call.json.get("repoType") or "model"
    if not isinstance(content, str):
        raise HubError(400, "content must be the text of a card")
    errors, warnings = check_card(content, kind)
    told: dict[str, Any] = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    if call.request.headers.get("accept") == "text/plain":  # as `RepoCard.validate` asks
        lines = [*(f"- Error: {message}" for message in errors), *(f"- Warning: {message}" for message in warnings)]
        return PlainTextResponse("\n".join(lines), 400 if errors else 200)
    if errors:
        raise HubError(400, "; ".join(errors), body={"error": "Invalid metadata", **told})
    return told

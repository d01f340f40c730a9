"""Large files the LFS way: the client asks where to send them, sends each to a signed URL that expires, verifies."""

from __future__ import annotations

import re
import time

import anyio.to_thread

from hfseg.hub.local.access import (
    check_may_download,
    check_may_propose,
    check_may_write,
    check_signature,
    find_readable,
    find_writable,
    sign,
)
from hfseg.hub.local.api_commits import blocks
from hfseg.hub.local.commits import over_quota
from hfseg.hub.local.files import sync_files
from hfseg.hub.local.history import list_files, log, refs
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.rewriting import forget_large_files
from hfseg.hub.local.store import Repo, add_object, find_repo, object_size, used_bytes
from hfseg.hub.local.wire import Call, Json, Routes, page

routes = Routes()
LIFETIME = 3600  # seconds that an upload URL works


@routes.on("POST", "/{prefix}{repo}\\.git/info/lfs/objects/batch")
def batch(call: Call):
    if call.json.get("operation") != "upload":
        raise HubError(422, "Only uploads go through LFS here: download by /resolve/")
    repo = _target(call, str((call.json.get("ref") or {}).get("name") or ""))
    store, told, room = call.hub.store, [], _room(call, repo)
    for item in call.json.get("objects") or []:
        oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
        if not re.fullmatch(r"[0-9a-f]{64}", str(oid)) or not isinstance(size, int) or size < 0:
            raise HubError(400, "objects must be a list of {oid, size} with the SHA-256 of each file")
        answer: dict = {"oid": oid, "size": size, "authenticated": True}
        if object_size(store.read(), repo, oid) != size or not store.files.has(oid):
            if room is not None:
                room -= size
                if room < 0:
                    raise over_quota(repo.namespace, call.hub.quota_bytes)
            answer["actions"] = {
                "upload": {"href": upload_url(call, repo, oid, size), "expires_in": LIFETIME},
                "verify": {"href": f"{call.base}/{repo.path}.git/info/lfs/objects/verify"},
            }
        told.append(answer)
    return Json({"transfer": "basic", "objects": told}, headers={"Content-Type": "application/vnd.git-lfs+json"})


def upload_url(call: Call, repo: Repo, oid: str, size: int) -> str:
    """Returns a URL to which this one file can be sent, without a token, for an hour."""
    expires = int(time.time()) + LIFETIME
    signature = sign(call.hub.store, "upload", repo.id, oid, size, expires)
    return f"{call.base}/uploads/{repo.id}/{oid}/{size}/{expires}/{signature}"


@routes.on("PUT", "/uploads/{repo_id}/{oid}/{size}/{expires}/{signature}", streams=True, signed=True)
async def upload(call: Call):
    store, place = call.hub.store, call.places
    if not check_signature(store, place["signature"], "upload", place["repo_id"], place["oid"], place["size"],
                           place["expires"]):  # fmt: skip
        raise HubError(403, "This upload URL is not the hub's")
    if int(place["expires"]) < time.time():
        raise HubError(403, "This upload URL has expired: ask for a new one")
    size = int(place["size"])
    with store.files.incoming() as incoming:
        async for block in blocks(call.request.stream()):
            if incoming.size + len(block) > size:
                raise HubError(422, f"More than the {size} bytes that were announced")
            await anyio.to_thread.run_sync(incoming.write, block)
        if incoming.size != size or incoming.sha256.hexdigest() != place["oid"]:
            raise HubError(422, f"The {incoming.size} bytes that came do not have the hash that was announced")
        await anyio.to_thread.run_sync(_keep, call, incoming)
    return Json({})


def _keep(call: Call, incoming) -> None:
    oid, repo_id, file = call.places["oid"], int(call.places["repo_id"]), incoming.finish()
    sync_files([file])  # before the transaction: others must not wait for the disk
    with call.hub.store.write() as db:
        call.hub.store.place(file, oid)
        if db.execute("SELECT 1 FROM repos WHERE id = ?", (repo_id,)).fetchone() is None:
            raise HubError(404, "The repository is gone", "RepoNotFound")
        add_object(db, Repo(repo_id, "", "", False, False, "", {}), oid, incoming.size)


@routes.on("POST", "/{prefix}{repo}\\.git/info/lfs/objects/verify")
def verify(call: Call):
    repo = _target(call, "refs/pr/")
    oid = str(call.json.get("oid"))
    if object_size(call.hub.store.read(), repo, oid) != call.json.get("size") or not call.hub.store.files.has(oid):
        raise HubError(404, f"The hub does not have {oid[:64]} whole")
    return Json({"oid": oid, "size": call.json.get("size")})


def _target(call: Call, revision: str) -> Repo:
    """The repository, for somebody who may change it; with a pull request in mind, who may propose."""
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    proposes = revision.startswith("refs/pr/") or not call.identity.owns(repo.namespace)
    (check_may_propose if proposes else check_may_write)(call.identity, repo)
    return repo


def _room(call: Call, repo: Repo) -> int | None:
    quota = call.hub.quota_bytes
    return None if quota is None else quota - used_bytes(call.hub.store.read(), repo.namespace)


@routes.on("GET", "/api/{kind}/{repo}/lfs-files")
def list_large(call: Call):
    db = call.hub.store.read()
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    check_may_write(call.identity, repo)
    found = {}
    for ref, head in refs(db, repo, "refs/"):
        for commit in log(db, repo, head):
            for entry in list_files(db, commit.tree):
                if entry.sha256:
                    told = {"fileOid": entry.sha256, "oid": entry.sha256, "filename": entry.path,
                            "pushedAt": commit.created, "ref": f"refs/{ref}", "size": entry.size}  # fmt: skip
                    found.setdefault(entry.sha256, told)
    return page(call, list(found.values()), 1000)


@routes.on("POST", "/api/{kind}/{repo}/lfs-files/batch")
def delete_large(call: Call):
    wanted = (call.json.get("deletions") or {}).get("sha")
    if not isinstance(wanted, list) or not all(re.fullmatch(r"[0-9a-f]{64}", str(sha)) for sha in wanted):
        raise HubError(400, "deletions must be {sha: [SHA-256, ...]}")
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        forget_large_files(call.hub.store, db, repo, set(wanted))
    return Json(None)


@routes.on("POST", "/api/{kind}/{repo}/lfs-files/duplicate")
def duplicate(call: Call):
    """Lets another repository hold large files of this one, so that a copy needs no upload."""
    store, target = call.hub.store, call.json.get("target") or {}
    with store.write() as db:
        source = find_readable(store, call.identity, call.repo_type, call.places["repo"])
        check_may_download(db, call.identity, source)
        repo = find_repo(db, str(target.get("type")), str(target.get("name")))
        repo = find_readable(store, call.identity, str(target.get("type")), repo.name if repo else "")
        check_may_write(call.identity, repo)
        succeeded, failed = [], []
        for file in call.json.get("files") or []:
            size = object_size(db, source, str(file.get("sha256")))
            if size is None:
                failed.append({"sha256": file.get("sha256"), "error": "The source does not have this file"})
            else:
                add_object(db, repo, file["sha256"], size)
                succeeded.append({"sha256": file["sha256"]})
    return {"success": succeeded, "failed": failed}

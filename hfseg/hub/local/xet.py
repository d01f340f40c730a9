"""Large files the Xet way, which is what huggingface_hub does unless HF_HUB_DISABLE_XET is set: the write side only.

Downloads stay plain HTTP, as the hub never names a file's Xet hash. Xorbs are scratch: they are kept, unpacked,
until the files that a shard makes of them are there, and for as long as clients may refer to them. The `casUrl` holds a
random id, since clients remember what they sent to a URL: when old xorbs go, the URL changes.
"""

from __future__ import annotations

import secrets
import shutil
import struct
import threading
import time
from pathlib import Path

import anyio.to_thread

from hfseg.hub.local import xet_format
from hfseg.hub.local.access import check_may_propose, check_may_write, check_signature, find_readable, sign
from hfseg.hub.local.api_commits import blocks
from hfseg.hub.local.commits import over_quota
from hfseg.hub.local.files import sync_files
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, Store, add_object, object_size, used_bytes
from hfseg.hub.local.wire import Call, Json, Routes

routes = Routes()
LIFETIME = 3600  # seconds that a token works
_HANDED_OUT = 6 * 3600  # seconds for which new clients get one URL
_KEPT = 24 * 3600  # seconds after which its xorbs go
_INDEX = struct.Struct("<32sI")


class Xorbs:
    """The xorbs of this process, by the epoch whose id stands in the URL.

    Args:
        root: Folder; what an earlier process left there is removed.
    """

    def __init__(self, root: Path):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.root, self._epochs, self._lock = root, {}, threading.Lock()

    def epoch(self) -> str:
        """Returns the id for new clients, and removes what is too old."""
        with self._lock:
            age = {name: time.monotonic() - born for name, born in self._epochs.items()}
            for name in [name for name, seconds in age.items() if seconds > _KEPT]:
                del self._epochs[name]
                shutil.rmtree(self.root / name, ignore_errors=True)
            current = [name for name, seconds in age.items() if seconds < _HANDED_OUT]
            if not current:
                current = [secrets.token_hex(8)]
                (self.root / current[0]).mkdir()
                self._epochs[current[0]] = time.monotonic()
            return current[-1]

    def folder(self, epoch: str) -> Path:
        """Returns where an epoch's xorbs are, or raises 404."""
        if epoch not in self._epochs:
            raise HubError(404, "This URL for Xet is no longer in use: ask for a new token")
        return self.root / epoch

    def chunks(self, epoch: str, name: str) -> list[tuple[bytes, int]]:
        """Returns the (hash, length) of a xorb's chunks, or raises `XetError`."""
        try:
            return list(_INDEX.iter_unpack((self.folder(epoch) / f"{name}.index").read_bytes()))
        except FileNotFoundError:
            raise xet_format.XetError(f"the xorb {name} was not sent") from None


@routes.on("GET", "/api/{kind}/{repo}/xet-write-token/{rev}")
def write_token(call: Call):
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    proposes = call.flag("create_pr") or call.places["rev"].startswith("refs/pr/")
    (check_may_propose if proposes else check_may_write)(call.identity, repo)
    epoch, expires = call.hub.xorbs.epoch(), int(time.time()) + LIFETIME
    url = f"{call.base}/xet/{epoch}"
    token = f"{repo.id}.{expires}.{sign(call.hub.store, 'xet', epoch, repo.id, expires)}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return Json({"casUrl": url, "exp": expires, "accessToken": token}, headers=headers)


@routes.on("POST", "/xet/{epoch}/v1/xorbs/default/{hash}", streams=True, signed=True)
async def add_xorb(call: Call):
    _authorize(call)
    name = call.places["hash"]
    folder = call.hub.xorbs.folder(call.places["epoch"])
    if len(name) != 64 or not all(digit in "0123456789abcdef" for digit in name):
        raise HubError(400, "A xorb's name has 64 hex digits")
    there = await anyio.to_thread.run_sync((folder / f"{name}.index").is_file)
    with call.hub.store.files.incoming() as incoming:
        async for block in blocks(call.request.stream()):
            if incoming.size + len(block) > 2 * xet_format.MAX_XORB:
                raise HubError(413, "The xorb is longer than a xorb may be")
            await anyio.to_thread.run_sync(incoming.write, block)
        if not there:
            await anyio.to_thread.run_sync(_unpack, incoming.name, folder, name)
    return Json({"was_inserted": not there})


def _unpack(source: Path, folder: Path, name: str) -> None:
    """Writes a xorb's chunks one after the other, with an index beside them once their hash is found to be right."""
    mark, chunks = secrets.token_hex(4), []
    data, index = folder / f"{name}.{mark}", folder / f"{name}.{mark}.index"
    try:
        with open(source, "rb") as packed, open(data, "wb") as out:
            for chunk in xet_format.read_xorb(packed):
                out.write(chunk)
                chunks.append((xet_format.chunk_hash(chunk), len(chunk)))
        if not chunks or xet_format.hex_of(xet_format.tree_hash(chunks)) != name:
            raise xet_format.XetError("the xorb's content does not have the hash that it is named by")
        index.write_bytes(b"".join(_INDEX.pack(*chunk) for chunk in chunks))
        data.replace(folder / name)
        index.replace(folder / f"{name}.index")
    except xet_format.XetError as error:
        raise HubError(400, f"Xet: {error}") from None
    finally:
        data.unlink(missing_ok=True)
        index.unlink(missing_ok=True)


@routes.on("POST", "/xet/{epoch}/v1/shards", signed=True)
def add_shard(call: Call):
    repo = _authorize(call)
    try:
        files = xet_format.read_shard(call.body)
        for file in files:
            _make_file(call, repo, file)
    except xet_format.XetError as error:
        raise HubError(400, f"Xet: {error}") from None
    return {"result": 1}


def _make_file(call: Call, repo: Repo, file: xet_format.ShardFile) -> None:
    """Puts a file together from its chunks, and keeps it when all hashes are right."""
    store: Store = call.hub.store
    if file.sha256 is None:
        raise xet_format.XetError("the shard does not tell the SHA-256 of a file")
    plan, all_chunks = [], []
    for segment in file.segments:
        chunks = call.hub.xorbs.chunks(call.places["epoch"], segment.xorb)
        wanted = chunks[segment.first : segment.last]
        size = sum(length for _, length in wanted)
        if segment.last > len(chunks) or size != segment.size:
            raise xet_format.XetError("a segment does not fit the xorb that it is of")
        if segment.check is not None and segment.check != xet_format.range_hash([digest for digest, _ in wanted]):
            raise xet_format.XetError("a segment's chunks do not have the hash that the shard tells")
        plan.append((segment.xorb, sum(length for _, length in chunks[: segment.first]), size))
        all_chunks += wanted
    if xet_format.hex_of(xet_format.file_hash(all_chunks)) != file.hash:
        raise xet_format.XetError("a file's chunks do not have the hash that the shard tells")
    total = sum(size for _, _, size in plan)
    quota = call.hub.quota_bytes
    if quota is not None and object_size(store.read(), repo, file.sha256) is None and (
        used_bytes(store.read(), repo.namespace) + total > quota
    ):
        raise over_quota(repo.namespace, quota)
    folder = call.hub.xorbs.folder(call.places["epoch"])
    with store.files.incoming() as incoming:
        for name, start, size in plan:
            with open(folder / name, "rb") as source:
                source.seek(start)
                while size:
                    block = source.read(min(size, 1 << 20))
                    if not block:
                        raise xet_format.XetError("a xorb has gone")
                    incoming.write(block)
                    size -= len(block)
        if incoming.sha256.hexdigest() != file.sha256:
            raise xet_format.XetError("a file does not have the SHA-256 that the shard tells")
        finished = incoming.finish()
        sync_files([finished])
        with store.write() as db:
            store.place(finished, file.sha256)
            add_object(db, repo, file.sha256, total)


@routes.on("POST", "/xet/{epoch}/v1/telemetry", signed=True)
def telemetry(call: Call):
    return Json(None, 204)


def _authorize(call: Call) -> Repo:
    """The repository that the token in a request to the casUrl is for."""
    token = call.request.headers.get("authorization", "").removeprefix("Bearer ").split(".")
    store: Store = call.hub.store
    if len(token) != 3 or not check_signature(store, token[2], "xet", call.places["epoch"], token[0], token[1]):
        raise HubError(401, "This is no token for Xet from this hub")
    if int(token[1]) < time.time():
        raise HubError(401, "This token for Xet has expired")
    row = store.read().execute("SELECT * FROM repos WHERE id = ?", (int(token[0]),)).fetchone()
    if row is None:
        raise HubError(404, "The repository is gone", "RepoNotFound")
    return Repo(row["id"], row["type"], row["name"], bool(row["private"]), row["gated"], row["created"], {})

"""Calls about what is in a repository: trees, files, references."""

from __future__ import annotations

import mimetypes
import sqlite3
from typing import Any
from urllib.parse import parse_qs, quote

from hfseg.hub.local.access import check_may_download, find_readable, find_writable
from hfseg.hub.local.describing import lfs_of
from hfseg.hub.local.files import pointer
from hfseg.hub.local.history import (
    EMPTY_TREE,
    MAIN,
    Commit,
    Entry,
    add_commit,
    delete_ref,
    find_entry,
    find_revision,
    last_changes,
    read_ref,
    refs,
    set_ref,
    walk,
)
from hfseg.hub.local.names import check_ref
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo
from hfseg.hub.local.wire import Call, FileResponse, Json, Routes, page

routes = Routes()
# Types that a browser may show as they are; HTML from strangers is shown as text.
_SHOWN = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "audio/", "video/", "application/pdf")


@routes.on("GET", "/api/{kind}/{repo}/tree/{rev}")
@routes.on("GET", "/api/{kind}/{repo}/tree/{rev}/{path}")
def tree(call: Call):
    db = call.hub.store.read()
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    commit = find_revision(db, repo, call.places["rev"])
    path = (call.places.get("path") or "").strip("/")
    root = find_entry(db, commit.tree, path)
    if root is None or (not root.is_folder and path):
        raise HubError(404, f"{path} does not exist on {call.places['rev']}", "EntryNotFound",
                       {"X-Repo-Commit": commit.oid})  # fmt: skip
    entries = list(walk(db, root.oid, f"{path}/" if path else "", recursive=call.flag("recursive")))
    expand = call.flag("expand")
    size = call.number("limit", 50 if expand else 1000, 1000)
    # The next page is of the same commit, whatever is pushed in between.
    own = f"/api/{call.places['kind']}/{quote(repo.name)}/tree/{commit.oid}/{quote(path, safe='')}".rstrip("/")
    answer = page(call, range(len(entries)), size, own)
    link = answer.headers.get("link")
    start = int(call.query.get("cursor", "0")) if call.query.get("cursor", "0").isdecimal() else 0
    told = _tell(db, repo, commit, entries[start : start + size], expand)
    return Json(told, headers={"X-Repo-Commit": commit.oid, **({"Link": link} if link else {})})


@routes.on("POST", "/api/{kind}/{repo}/paths-info/{rev}")
def paths_info(call: Call):
    db = call.hub.store.read()
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    commit = find_revision(db, repo, call.places["rev"])
    if call.request.headers.get("content-type", "").startswith("application/json"):
        paths, expand = call.json.get("paths", []), bool(call.json.get("expand"))
    else:
        form = parse_qs(call.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100_000)
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in ("true", "1")
    wanted = [path.strip("/") for path in paths if isinstance(path, str)]
    found = (find_entry(db, commit.tree, path) for path in wanted if path)
    return _tell(db, repo, commit, [entry for entry in found if entry], expand)


def _tell(db: sqlite3.Connection, repo: Repo, commit: Commit, entries: list[Entry], expand: bool) -> list[dict]:
    changes = last_changes(db, repo, commit, [entry.path for entry in entries]) if expand else {}
    told = []
    for entry in entries:
        item: dict[str, Any] = {"type": "directory" if entry.is_folder else "file", "oid": entry.oid,
                                "size": entry.size, "path": entry.path}  # fmt: skip
        if lfs := lfs_of(entry):
            item["lfs"] = lfs
        if expand:
            last = changes[entry.path]
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.created}
            if not entry.is_folder:
                item["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
        told.append(item)
    return told


@routes.on("GET", "/{prefix}{repo}/resolve/{rev}/{path}")
def resolve(call: Call):
    db, files = call.hub.store.read(), call.hub.store.files
    repo, commit, entry = _file(call)
    check_may_download(db, call.identity, repo)
    name = entry.path.rsplit("/", 1)[-1]
    kind = mimetypes.guess_type(name)[0] or ""
    if not kind.startswith(_SHOWN):
        kind = "text/plain; charset=utf-8" if entry.sha256 is None else "application/octet-stream"
    disposition = "attachment" if call.flag("download") else "inline"
    headers = {"X-Repo-Commit": commit.oid, "Content-Type": kind, "X-Content-Type-Options": "nosniff",
               "Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "no-cache",
               "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(name, safe='')}"}  # fmt: skip
    if entry.sha256:
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    return FileResponse(files.path(entry.key), entry.size, entry.etag, headers, call.request)


@routes.on("GET", "/{prefix}{repo}/raw/{rev}/{path}")
def raw(call: Call):
    from starlette.responses import Response

    repo, commit, entry = _file(call)
    check_may_download(call.hub.store.read(), call.identity, repo)
    content = pointer(entry.sha256, entry.size) if entry.sha256 else call.hub.store.files.read(entry.key)
    return Response(content, headers={"X-Repo-Commit": commit.oid, "ETag": f'"{entry.oid}"', "Content-Type":
                    "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"})  # fmt: skip


def _file(call: Call) -> tuple[Repo, Commit, Entry]:
    db = call.hub.store.read()
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    commit = find_revision(db, repo, call.places["rev"])
    entry = find_entry(db, commit.tree, call.places["path"])
    if entry is None or entry.is_folder:
        raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    return repo, commit, entry


@routes.on("GET", "/api/{kind}/{repo}/refs")
def list_refs(call: Call):
    db = call.hub.store.read()
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    told = {}
    for name, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/"), ("converts", "refs/convert/")):
        told[name] = [{"name": short, "ref": prefix + short, "targetCommit": oid}
                      for short, oid in refs(db, repo, prefix)]  # fmt: skip
    if call.flag("include_prs"):
        told["pullRequests"] = [{"name": f"refs/pr/{num}", "ref": f"refs/pr/{num}", "targetCommit": oid}
                                for num, oid in refs(db, repo, "refs/pr/")]  # fmt: skip
    return told


@routes.on("POST", "/api/{kind}/{repo}/branch/{rev}")
def create_branch(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        name = "refs/heads/" + check_ref(call.places["rev"])
        start = str(call.json.get("startingPoint") or "main")
        if read_ref(db, repo, name):
            raise HubError(409, f"Reference {name} already exists")
        if any(other.startswith(name + "/") or name.startswith(other + "/") for other, _ in refs(db, repo, "")):
            raise HubError(409, f"Reference {name} conflicts with another one that begins like it")
        commit = find_revision(db, repo, start)
        if call.json.get("emptyBranch"):
            commit = add_commit(db, repo, EMPTY_TREE, None, call.identity.user, "initial commit")
        set_ref(db, repo, name, commit.oid)
    return Json(None)


@routes.on("DELETE", "/api/{kind}/{repo}/branch/{rev}")
def delete_branch(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        name = f"refs/heads/{call.places['rev']}"
        if name == MAIN:
            raise HubError(403, f"Cannot delete {name}: it is the main branch")
        if not delete_ref(db, repo, name):
            raise HubError(404, f"Invalid rev id: there is no branch {call.places['rev']}", "RevisionNotFound")
    return Json(None)


@routes.on("POST", "/api/{kind}/{repo}/tag/{rev}")
def create_tag(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        commit = find_revision(db, repo, call.places["rev"])
        name = "refs/tags/" + check_ref(call.json.get("tag"))
        if read_ref(db, repo, name):
            raise HubError(409, f"Tag reference already exists: {name}")
        set_ref(db, repo, name, commit.oid)
    return Json(None)


@routes.on("DELETE", "/api/{kind}/{repo}/tag/{rev}")
def delete_tag(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        if not delete_ref(db, repo, f"refs/tags/{call.places['rev']}"):
            raise HubError(404, f"There is no tag {call.places['rev']}", "RevisionNotFound")
    return Json(None)

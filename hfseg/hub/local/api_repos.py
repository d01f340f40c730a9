"""Calls about whole repositories: who am I, create, delete, move, settings, info, lists."""

from __future__ import annotations

import hashlib

from hfseg.hub.local.access import (
    ask_for_access,
    check_may_download,
    check_may_write,
    find_readable,
    find_writable,
    may_see,
)
from hfseg.hub.local.commits import first_commit
from hfseg.hub.local.describing import describe, is_called, narrowed
from hfseg.hub.local.history import find_revision, log
from hfseg.hub.local.names import check_name
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.rewriting import squash_branch
from hfseg.hub.local.store import Repo, create_repo, delete_repo, find_repo, list_repos, move_repo, now, update_repo
from hfseg.hub.local.wire import Call, Json, Routes, page

routes, last_routes = Routes(), Routes()
_SORTS = {"lastModified": "lastModified", "createdAt": "createdAt", "id": "id"}
_VISIBILITIES = ("public", "private", "protected")


@routes.on("GET", "/api/whoami-v2")
def whoami(call: Call):
    who = call.identity
    if who.user is None:
        raise HubError(401, "Sign in with a token: nobody is signed in")
    orgs = [{"type": "org", "id": org, "name": org, "fullname": org, "roleInOrg": "write", "isEnterprise": False}
            for org in who.orgs]  # fmt: skip
    token = {"displayName": "local", "role": "read" if who.role == "read" else "write", "createdAt": now()}
    return {"type": "user", "id": who.user, "name": who.user, "fullname": who.user, "email": None, "isPro": False,
            "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}  # fmt: skip


@routes.on("POST", "/api/repos/create")
def create(call: Call):
    kind, name = _kind_of(call), _full_name(call)
    visibility = call.json.get("visibility") or ("private" if call.json.get("private") else "public")
    if visibility not in _VISIBILITIES or (visibility == "protected" and kind != "space"):
        raise HubError(400, "visibility must be public or private, or protected for a Space")
    _check_namespace(call, kind, name)
    data: dict = {"visibility": visibility}
    if kind == "space":
        if call.json.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
            raise HubError(400, "sdk must be one of gradio, streamlit, docker, static")
        data |= {"sdk": call.json["sdk"], "runtime": {"hardware": call.json.get("hardware"),
                 "sleep": call.json.get("sleepTimeSeconds"), "volumes": call.json.get("volumes")}}  # fmt: skip
        for field in ("secrets", "variables"):
            data[field] = {item["key"]: {**item, "updatedAt": now()} for item in call.json.get(field) or []}
    with call.hub.store.write() as db:
        repo = create_repo(db, kind, name, private=visibility == "private", data=data)
        if repo is not None:
            first_commit(call.hub.store, db, repo, call.identity.user)
    if repo is None:
        there = find_repo(call.hub.store.read(), kind, name)
        message = f"You already created this {kind} repo: {there.name}"
        raise HubError(409, message, body={"error": message, "url": f"{call.base}/{there.path}"})
    return {"url": f"{call.base}/{repo.path}", "name": repo.name, "id": f"{repo.id:024x}"}


@routes.on("DELETE", "/api/repos/delete")
def delete(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, _kind_of(call), _full_name(call))
        delete_repo(call.hub.store, db, repo)
    return Json(None)


@routes.on("POST", "/api/repos/move")
def move(call: Call):
    kind, source, target = _kind_of(call), str(call.json.get("fromRepo")), str(call.json.get("toRepo"))
    if target.count("/") != 1:
        raise HubError(400, "toRepo must be NAMESPACE/NAME")
    check_name(target.split("/")[0], "user")
    check_name(target.split("/")[1])
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, kind, source)
        _check_namespace(call, kind, target)
        if not move_repo(db, repo, target):
            raise HubError(409, f"A {kind} repository called {target} already exists")
    return Json(None)


@routes.on("PUT", "/api/{kind}/{repo}/settings")
def settings(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        gated, private, visibility = (call.json.get(name) for name in ("gated", "private", "visibility"))
        if gated not in (None, "auto", "manual", False):
            raise HubError(400, 'gated must be "auto", "manual" or false')
        if visibility is not None:
            if visibility not in _VISIBILITIES or (visibility == "protected" and repo.type != "space"):
                raise HubError(400, "visibility must be public or private, or protected for a Space")
            private = visibility == "private"
        data = {"visibility": visibility} if visibility else None
        changed = update_repo(db, repo, private=private, gated=gated, data=data)
    return {"private": changed.private, "gated": changed.gated}


@routes.on("GET", "/api/{kind}/{repo}")
def info(call: Call):
    return _describe(call, "main")


@routes.on("GET", "/api/{kind}/{repo}/revision/{rev}")
def info_of_revision(call: Call):
    return _describe(call, call.places["rev"])


def _describe(call: Call, revision: str):
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    told = describe(call.hub.store.read(), call.hub.store.files, repo, revision, blobs=call.flag("blobs"))
    if call.flag("securityStatus"):
        told["securityRepoStatus"] = {"scansDone": False, "filesWithIssues": []}
    wanted = _expand(call)
    return narrowed(told, wanted) if wanted else told


@routes.on("GET", "/api/{kind}")
def list_all(call: Call):
    db, files = call.hub.store.read(), call.hub.store.files
    query, wanted = call.query, _expand(call)
    filters = [tag for value in query.getlist("filter") for tag in value.split(",") if tag]
    found = []
    for repo in list_repos(db, call.repo_type):
        if not may_see(call.identity, repo) or (query.get("gated") and bool(repo.gated) != call.flag("gated")):
            continue
        if not is_called(repo.name, query.get("search", ""), query.get("author", "")):
            continue
        told = describe(db, files, repo)
        if set(filters) <= set(told["tags"]) and query.get("pipeline_tag", "") in ("", told.get("pipeline_tag")):
            found.append(told)
    sort = _SORTS.get(query.get("sort", "lastModified"))
    if sort:
        found.sort(key=lambda told: told[sort], reverse=query.get("direction", "-1") != "1")
    if wanted:
        found = [narrowed(told, wanted) for told in found]
    else:
        left_out = {"model-index", "transformersInfo", "usedStorage", "runtime", "securityRepoStatus", "widgetData"}
        if not call.flag("full"):
            left_out |= {"siblings", "sha"} if call.repo_type == "model" else {"siblings", "cardData"}
        if not call.flag("cardData") and call.repo_type == "model":
            left_out.add("cardData")
        if not call.flag("config"):
            left_out.add("config")
        found = [{name: value for name, value in told.items() if name not in left_out} for told in found]
    return page(call, found, call.number("limit", 1000, 1000))


@routes.on("GET", "/api/{kind}/{repo}/auth-check")
def auth_check(call: Call):
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    check_may_download(call.hub.store.read(), call.identity, repo)
    return {"ok": True}


@routes.on("GET", "/api/{kind}/{repo}/auth-check/write")
def auth_check_write(call: Call):
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    check_may_download(call.hub.store.read(), call.identity, repo)
    check_may_write(call.identity, repo)
    return {"ok": True}


@routes.on("POST", "/{prefix}{repo}/ask-access")
def ask(call: Call):
    with call.hub.store.write() as db:
        repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        if call.identity.user is None or not repo.gated:
            raise HubError(400, "Only somebody who is signed in can ask, and only for a gated repository")
        return {"status": ask_for_access(db, call.identity, repo)}


@routes.on("GET", "/api/{kind}/{repo}/user-access-request/{status}")
def access_requests(call: Call):
    repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    _check_gated(repo)
    query = "SELECT * FROM access WHERE repo = ? AND status = ? ORDER BY asked"
    rows = call.hub.store.read().execute(query, (repo.id, call.places["status"])).fetchall()
    told = [{"requestId": request_id(repo, row["user"]), "timestamp": row["asked"], "status": row["status"],
             "user": {"user": row["user"], "fullname": row["user"], "email": None}, "fields": None}
            for row in rows]  # fmt: skip
    return page(call, told, 1000)


def request_id(repo: Repo, user: str) -> str:
    """Returns the name of somebody's request for access to a repository."""
    return hashlib.sha256(f"{repo.id} {user.lower()}".encode()).hexdigest()[:24]


@routes.on("POST", "/api/{kind}/{repo}/user-access-request/{action}")
def handle_access_request(call: Call):
    action, user = call.places["action"], call.json.get("user")
    status = "accepted" if action == "grant" else call.json.get("status")
    if action not in ("grant", "handle") or status not in ("accepted", "pending", "rejected"):
        raise HubError(400, "status must be accepted, pending or rejected")
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        _check_gated(repo)
        if user is None:
            asked = db.execute("SELECT user FROM access WHERE repo = ?", (repo.id,))
            user = next((r[0] for r in asked if request_id(repo, r[0]) == call.json.get("requestId")), None)
        if db.execute("SELECT 1 FROM accounts WHERE name = ? AND NOT is_org", (user,)).fetchone() is None:
            raise HubError(404, f"There is no user {user}")
        row = db.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.id, user)).fetchone()
        if action == "grant" and row is not None and row["status"] == "accepted":
            raise HubError(400, f"{user} has access already")
        if action == "handle" and (row is None or row["status"] == status):
            raise HubError(404, f"{user} has not asked, or the request is {status} already")
        db.execute("INSERT INTO access VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET status = excluded.status",
                   (repo.id, user, status, now()))  # fmt: skip
    return Json(None)


@routes.on("POST", "/api/{kind}/{repo}/super-squash/{rev}")
def squash(call: Call):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
        squash_branch(db, repo, call.places["rev"], call.identity.user, str(call.json.get("message") or "Squash"))
    return Json(None)


@routes.on("GET", "/api/{kind}/{repo}/commits/{rev}")
def commits(call: Call):
    db = call.hub.store.read()
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    formatted = "formatted" in call.query.getlist("expand[]")
    told = []
    for commit in log(db, repo, find_revision(db, repo, call.places["rev"]).oid):
        told.append({"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.created,
                     "authors": [{"user": commit.author}], "parents": [commit.parent] if commit.parent else []})
        if formatted:
            told[-1]["formatted"] = {"title": commit.title, "message": commit.message}
    return page(call, told, call.number("limit", 1000, 1000))


def _expand(call: Call) -> list[str]:
    return [*call.query.getlist("expand"), *call.query.getlist("expand[]")]


def _kind_of(call: Call) -> str:
    kind = call.json.get("type") or "model"
    if kind not in ("model", "dataset", "space"):
        raise HubError(400, "type must be model, dataset or space")
    return kind


def _full_name(call: Call) -> str:
    """The repository that `name` and `organization` stand for; without the latter it is the user's own."""
    name = check_name(call.json.get("name"))
    namespace = call.json.get("organization") or call.identity.user
    if namespace is None:
        raise HubError(401, "Invalid username or password: sign in with a token first")
    return f"{check_name(namespace, 'user')}/{name}"


def _check_namespace(call: Call, kind: str, name: str) -> None:
    if call.identity.user is None:
        raise HubError(401, "Creating a repository needs a token: sign in first")
    if call.identity.role == "read":
        raise HubError(403, f"This token of {call.identity.user} may only read: create one with the role write")
    namespace = name.split("/")[0]
    if not call.identity.owns(namespace):
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')


def _check_gated(repo: Repo) -> None:
    if not repo.gated:
        raise HubError(400, f"{repo.name} is not gated: nobody has to ask for access")


@last_routes.on("GET", "/api/{kind}/{name}(?:/(?:revision|tree|commits)/.*|/refs|/auth-check.*)?")
@last_routes.on("POST", "/api/{kind}/{name}/(?:preupload|commit|paths-info|branch|tag)/.*")
@last_routes.on("GET", "/{prefix}{name}/(?:resolve|raw)/.*")
def without_namespace(call: Call):
    """Names such as `gpt2`, which only the old repositories of huggingface.co have."""
    return find_readable(call.hub.store, call.identity, call.repo_type, call.places["name"])

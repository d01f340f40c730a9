"""Calls about discussions and pull requests."""

from __future__ import annotations

from hfseg.hub.local import discussions as threads
from hfseg.hub.local.access import check_may_propose, check_may_write, find_readable
from hfseg.hub.local.history import find_revision
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo
from hfseg.hub.local.wire import Call, Json, Routes

routes = Routes()
_PAGE = 20


@routes.on("GET", "/api/{kind}/{repo}/discussions")
def list_threads(call: Call):
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    kind, status, author = (call.query.get(name) for name in ("type", "status", "author"))
    told = [threads.summary(row, repo) for row in threads.list_discussions(call.hub.store.read(), repo)]
    told = [
        thread for thread in told
        if kind in (None, "all", "pull_request" if thread["isPullRequest"] else "discussion")
        and status in (None, "all", "open" if thread["status"] in ("open", "draft") else "closed")
        and author in (None, thread["author"]["name"])
    ]  # fmt: skip
    start = (int(call.query["p"]) if call.query.get("p", "").isdecimal() else 0) * _PAGE
    return {"discussions": told[start : start + _PAGE], "count": len(told), "start": start}


@routes.on("POST", "/api/{kind}/{repo}/discussions")
def create(call: Call):
    with call.hub.store.write() as db:
        repo = _repo(call)
        request = bool(call.json.get("pullRequest"))
        head = find_revision(db, repo, "main") if request else None
        num = threads.open_discussion(db, repo, str(call.json.get("title") or ""),
                                      str(call.json.get("description") or ""), call.identity.user, head=head,
                                      status="draft" if request else "open")  # fmt: skip
    return {"num": num, "url": f"{call.base}/{repo.path}/discussions/{num}", "pullRequest": request}


@routes.on("GET", "/api/{kind}/{repo}/discussions/{num}")
def details(call: Call):
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    return threads.details(call.hub.store.read(), repo, _num(call))


@routes.on("POST", "/api/{kind}/{repo}/discussions/{num}/comment")
def comment(call: Call):
    with call.hub.store.write() as db:
        repo, num = _repo(call), _num(call)
        threads.find_discussion(db, repo, num)
        return {"newMessage": threads.add_comment(db, repo, num, call.identity.user, _text(call, "comment"))}


@routes.on("POST", "/api/{kind}/{repo}/discussions/{num}/comment/{event}/edit")
def edit(call: Call):
    with call.hub.store.write() as db:
        event = threads.edit_comment(db, _repo(call), _num(call), call.places["event"], call.identity.user,
                                     _text(call, "content"))  # fmt: skip
    return {"updatedComment": event}


@routes.on("POST", "/api/{kind}/{repo}/discussions/{num}/comment/{event}/hide")
def hide(call: Call):
    with call.hub.store.write() as db:
        event = threads.edit_comment(db, _repo(call), _num(call), call.places["event"], call.identity.user, None)
    return {"updatedComment": event}


@routes.on("POST", "/api/{kind}/{repo}/discussions/{num}/title")
def rename(call: Call):
    with call.hub.store.write() as db:
        repo = _managed(call)
        return {"newTitle": threads.change_title(db, repo, _num(call), call.identity.user, _text(call, "title"))}


@routes.on("POST", "/api/{kind}/{repo}/discussions/{num}/status")
def change_status(call: Call):
    with call.hub.store.write() as db:
        repo, num = _managed(call), _num(call)
        event = threads.change_status(db, repo, num, call.identity.user, str(call.json.get("status")))
        if call.json.get("comment"):
            threads.add_comment(db, repo, num, call.identity.user, str(call.json["comment"]))
    return {"newStatus": event}


@routes.on("POST", "/api/{kind}/{repo}/discussions/{num}/merge")
def merge(call: Call):
    with call.hub.store.write() as db:
        repo, num = _repo(call), _num(call)
        check_may_write(call.identity, repo)
        if call.body and call.body != b"null" and call.json.get("comment"):
            threads.add_comment(db, repo, num, call.identity.user, str(call.json["comment"]))
        threads.merge_request(db, repo, num, call.identity.user)
    return Json(None)


def _repo(call: Call) -> Repo:
    repo = find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])
    check_may_propose(call.identity, repo)
    return repo


def _managed(call: Call) -> Repo:
    """The repository, for somebody who may change it or who opened the thread."""
    repo = _repo(call)
    if threads.find_discussion(call.hub.store.read(), repo, _num(call))["author"] != call.identity.user:
        check_may_write(call.identity, repo)
    return repo


def _num(call: Call) -> int:
    num = call.places["num"]
    if not (num.isdecimal() and len(num) < 10):
        raise HubError(404, f"There is no discussion {num[:20]}")
    return int(num)


def _text(call: Call, name: str) -> str:
    text = call.json.get(name)
    if not isinstance(text, str) or not text.strip():
        raise HubError(400, f"{name} must be a text")
    return text

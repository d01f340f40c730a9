"""Calls about Spaces: what they were told to run on, their secrets and variables. A local hub runs none of them."""

from __future__ import annotations

import re

from hfseg.hub.local.access import find_readable, find_writable
from hfseg.hub.local.describing import runtime
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import now, update_repo
from hfseg.hub.local.wire import Call, Json, Routes

routes = Routes()


@routes.on("GET", "/api/spaces/{repo}/runtime")
def get_runtime(call: Call):
    repo = find_readable(call.hub.store, call.identity, "space", call.places["repo"])
    return runtime(call.hub.store.read(), repo)


@routes.on("POST", "/api/spaces/{repo}/hardware")
def hardware(call: Call):
    flavor = call.json.get("flavor")
    if not isinstance(flavor, str):
        raise HubError(400, "flavor must be the name of a hardware")
    return _change_runtime(call, hardware=flavor, sleep=call.json.get("sleepTimeSeconds"))


@routes.on("POST", "/api/spaces/{repo}/sleeptime")
def sleep_time(call: Call):
    return _change_runtime(call, sleep=call.json.get("seconds"))


@routes.on("POST", "/api/spaces/{repo}/pause")
def pause(call: Call):
    return _change_runtime(call, stage="PAUSED")


@routes.on("POST", "/api/spaces/{repo}/restart")
def restart(call: Call):
    return _change_runtime(call, stage=None)


@routes.on("PUT", "/api/spaces/{repo}/volumes")
def set_volumes(call: Call):
    return _change_runtime(call, volumes=call.json.get("volumes"))


@routes.on("DELETE", "/api/spaces/{repo}/volumes")
def delete_volumes(call: Call):
    return _change_runtime(call, volumes=None)


def _change_runtime(call: Call, **changes):
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, "space", call.places["repo"])
        repo = update_repo(db, repo, data={"runtime": {**repo.data.get("runtime", {}), **changes}})
        return runtime(db, repo)


@routes.on("GET", "/api/spaces/{repo}/{field}")
def list_settings(call: Call):
    repo = find_writable(call.hub.store, call.identity, "space", call.places["repo"])
    return _told(repo.data, _field(call))


@routes.on("POST", "/api/spaces/{repo}/{field}")
def add_setting(call: Call):
    key, value = call.json.get("key"), call.json.get("value")
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", key) or not isinstance(value, str):
        raise HubError(400, "key must be a name of an environment variable, and value a text")
    return _change_settings(call, lambda old: {**old, key: {"key": key, "value": value, "description":
                                               call.json.get("description"), "updatedAt": now()}})  # fmt: skip


@routes.on("DELETE", "/api/spaces/{repo}/{field}")
def delete_setting(call: Call):
    return _change_settings(call, lambda old: {key: v for key, v in old.items() if key != call.json.get("key")})


def _change_settings(call: Call, change):
    field = _field(call)
    with call.hub.store.write() as db:
        repo = find_writable(call.hub.store, call.identity, "space", call.places["repo"])
        repo = update_repo(db, repo, data={field: change(repo.data.get(field, {}))})
    return _told(repo.data, field)


def _field(call: Call) -> str:
    if call.places["field"] not in ("secrets", "variables"):
        raise HubError(404, "The local hub does not have this call")
    return call.places["field"]


def _told(data: dict, field: str) -> Json:
    """A secret's value is never told."""
    hidden = {"value"} if field == "secrets" else set()
    return Json({key: {name: value for name, value in item.items() if name not in hidden}
                 for key, item in data.get(field, {}).items()})  # fmt: skip

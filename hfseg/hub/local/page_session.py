"""Signing in with a browser: a cookie that lets pages show what the token's user may see, and that changes nothing."""

from __future__ import annotations

import hashlib
import re
import time
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response

from hfseg.hub.local.access import ANONYMOUS, Identity, check_signature, identify, sign
from hfseg.hub.local.page_parts import Safe, show, tag
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Store
from hfseg.hub.local.wire import Call

LASTS = 7 * 24 * 3600  # seconds


def viewer(call: Call) -> Identity:
    """Tells who looks at a page: the token's user where there is a token, else whoever the cookie stands for.

    The API never asks this, so that no page elsewhere can change anything by way of a browser that is signed in.

    Args:
        call: The request.

    Returns:
        Who it is.
    """
    if call.identity.user is not None:
        return call.identity
    store = call.hub.store
    cookie = call.request.cookies.get(cookie_name(store), "")
    found = re.fullmatch(r"([0-9a-f]{64})\.([0-9]{1,12})\.([0-9a-f]{64})", cookie)
    if not found or not check_signature(store, found[3], "session", found[1], found[2]) or int(found[2]) < time.time():
        return ANONYMOUS
    row = store.read().execute("SELECT user, role FROM tokens WHERE hash = ?", (found[1],)).fetchone()
    if row is None:  # the token is gone
        return ANONYMOUS
    orgs = store.read().execute("SELECT org FROM members WHERE user = ? ORDER BY org", (row["user"],))
    return Identity(row["user"], row["role"], tuple(org[0] for org in orgs))


def cookie_name(store: Store) -> str:
    """Returns the cookie's name, which is the hub's own: all ports of a machine share their cookies."""
    return f"hfseg_hub_{sign(store, 'cookie')[:8]}"


def sign_in(call: Call) -> Response:
    """Takes the form of `show_form`: sets the cookie and goes back to where the user was.

    The cookie holds a signed hash of the token, not the token: it goes to every port of this machine, and whoever sees
    it there can read pages, but write nothing.
    """
    if _from_elsewhere(call):
        raise HubError(403, "The form was sent by another site")
    form = parse_qs(call.body.decode("utf-8", "replace"), max_num_fields=10)
    token, back = form.get("token", [""])[0].strip(), _own_path(form.get("next", ["/"])[0])
    try:
        who = identify(call.hub.store, f"Bearer {token}")
    except HubError:
        return show_form(call, back, "The hub does not know this token.")
    assert who.user is not None
    expires, digest = int(time.time()) + LASTS, hashlib.sha256(token.encode()).hexdigest()
    value = f"{digest}.{expires}.{sign(call.hub.store, 'session', digest, expires)}"
    answer = RedirectResponse(back, 303)
    answer.set_cookie(cookie_name(call.hub.store), value, max_age=LASTS, httponly=True, samesite="strict",
                      secure=call.request.url.scheme == "https")  # fmt: skip
    return answer


def sign_out(call: Call) -> Response:
    """Removes the cookie."""
    if _from_elsewhere(call):
        raise HubError(403, "The form was sent by another site")
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(cookie_name(call.hub.store), httponly=True, samesite="strict")
    return answer


def show_form(call: Call, back: str, problem: str | None = None) -> Response:
    """Shows the form that asks for a token.

    Args:
        call: The request.
        back: Where to go afterwards.
        problem: What was wrong with the token before.

    Returns:
        The page.
    """
    form = tag(
        "form", tag("input", type="hidden", name="next", value=_own_path(back)),
        tag("label", "Token", tag("input", type="password", name="token", required=True, autofocus=True,
                                  autocomplete="current-password", placeholder="hf_…")),
        tag("button", "Sign in"), action="/login", method="post", class_="stacked",
    )  # fmt: skip
    note = tag("p", "With a token, pages show the private repositories of its user. It is the HF_TOKEN that ",
               tag("code", "hfseg hub serve"), " prints. The browser keeps a signed hash of it, which can read pages "
               "and change nothing.", class_="quiet")  # fmt: skip
    wrong = tag("p", problem, class_="problem", role="alert") if problem else Safe("")
    return show(call, "Sign in", tag("section", tag("h1", "Sign in"), wrong, form, note, class_="narrow"),
                status=401 if problem else 200)  # fmt: skip


def _from_elsewhere(call: Call) -> bool:
    site, origin = call.request.headers.get("sec-fetch-site"), call.request.headers.get("origin")
    return site not in (None, "same-origin", "none") or origin not in (None, call.base)


def _own_path(path: str) -> str:
    """Returns a path of this hub's, so that signing in leads nowhere else."""
    return path if re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", path) else "/"

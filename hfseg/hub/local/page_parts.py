"""What all pages are made of: HTML that escapes by itself, the frame around a page, sizes and times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from hfseg.hub.local.access import Identity
from hfseg.hub.local.page_style import STYLE
from hfseg.hub.local.store import Repo
from hfseg.hub.local.wire import Call

STYLE_URL = f"/-/style-{hashlib.sha256(STYLE.encode()).hexdigest()[:12]}.css"
# No script runs, nothing is loaded from elsewhere, no form goes elsewhere, and no other page frames this one.
POLICY = ("default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; base-uri 'none'; "
          "frame-ancestors 'none'")  # fmt: skip
KINDS = {"model": "Models", "dataset": "Data sets", "space": "Spaces"}
HEADS = {"size": "number", "parameters": "number wide", "last commit": "wide", " ": "wide"}  # classes of columns
_VOID = {"br", "hr", "img", "input", "link", "meta"}


class Safe(str):
    """HTML that is already what it should be; a text that is added to it is escaped."""

    def __add__(self, other: Any) -> Safe:
        return Safe(str.__add__(self, safe(other)))

    def __radd__(self, other: Any) -> Safe:
        return Safe(str.__add__(safe(other), self))


def safe(value: Any) -> Safe:
    """Returns a value as HTML; what is no HTML already is escaped.

    Example:
        >>> safe("<b>"), safe(Safe("<b>")), safe(None)
        ('&lt;b&gt;', '<b>', '')
    """
    if isinstance(value, Safe):
        return value
    return Safe("" if value is None else escape(str(value)))


def join(parts: Iterable[Any], between: str = "") -> Safe:
    """Returns parts behind each other, each escaped unless it is HTML; so is what stands between them."""
    return Safe(safe(between).join(safe(part) for part in parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Safe:
    """Returns an element.

    Args:
        name: Such as `p`.
        children: What is in it, escaped unless it is HTML.
        attributes: Escaped always; None and False leave one out, `class_` and `aria_label` are written so.

    Returns:
        The HTML.

    Example:
        >>> tag("a", "<x>", href='/"', class_="name", title=None)
        '<a href="/&quot;" class="name">&lt;x&gt;</a>'
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Safe(f"<{name}{written}>" + ("" if name in _VOID else f"{join(children)}</{name}>"))


def link(text: Any, url: str, **attributes: Any) -> Safe:
    """Returns a link to a page of this hub."""
    return tag("a", text, href=url, **attributes)


def badge(text: Any, kind: str = "") -> Safe:
    """Returns a small mark such as `private`."""
    return tag("span", text, class_=f"badge {kind}".strip())


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], class_: str | None = None) -> Safe:
    """Returns a table that scrolls by itself where it is too wide; a cell may be a `td`, and a heading a class."""
    columns = [tag("th", cell, scope="col", class_=HEADS.get(cell)) for cell in head]
    first = tag("thead", tag("tr", *columns)) if columns else ""
    body = [tag("tr", *(cell if str(cell).startswith("<td") and isinstance(cell, Safe) else tag("td", cell)
                        for cell in row)) for row in rows]  # fmt: skip
    return tag("div", tag("table", first, tag("tbody", *body), class_=class_), class_="scroll")


def size_text(size: int) -> str:
    """Writes a number of bytes.

    Example:
        >>> size_text(12), size_text(1_234_567)
        ('12 B', '1.23 MB')
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"


def time_text(created: str) -> Safe:
    """Writes a time of the store's."""
    return tag("time", created[:16].replace("T", " "), datetime=created, title=f"{created[:19].replace('T', ' ')} UTC")


def clean(value: Any, longest: int = 500) -> str:
    """Returns a stranger's value as text of a bounded length.

    Example:
        >>> clean("a" * 600, 4), clean(["a", 1])
        ('aaaa…', 'a, 1')
    """
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= longest else text[:longest] + "…"


def place(repo: Repo, what: str = "", revision: str | None = None, path: str = "") -> str:
    """Returns the URL of a page of a repository.

    Args:
        repo: The repository.
        what: `tree`, `blob`, `commits`...; nothing for its card.
        revision: Branch, tag, reference or commit.
        path: Path of a file or folder.

    Returns:
        The URL, without the host.

    Example:
        >>> place(Repo(1, "dataset", "me/x", False, False, "", {}), "blob", "refs/pr/1", "a b.txt")
        '/datasets/me/x/blob/refs%2Fpr%2F1/a%20b.txt'
    """
    parts = [f"/{repo.path}", what, quote(revision or "", safe=""), quote(path)]
    return "/".join(part for part in parts if part)


def content(repo: Repo, revision: str, path: str, download: bool = False) -> str:
    """Returns the URL of a file's content that a signed-in browser may load too."""
    return f"/-/{repo.path}/resolve/{quote(revision, safe='')}/{quote(path)}" + ("?download=1" if download else "")


def show(call: Call, title: str, *parts: Any, status: int = 200) -> Response:
    """Returns a page.

    Args:
        call: The request.
        title: For the browser's tab.
        parts: What is on it.
        status: HTTP status.

    Returns:
        The page, or 304 where the browser has it.
    """
    head = tag("head", tag("meta", charset="utf-8"),
               tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               tag("meta", name="color-scheme", content="light dark"), tag("title", title),
               tag("link", rel="stylesheet", href=STYLE_URL),
               tag("link", rel="icon", href="/-/icon.svg", type="image/svg+xml"))  # fmt: skip
    foot = tag("footer", "A local hub at ", tag("code", call.base), ". Times are UTC.")
    body = tag("body", link("Skip to the content", "#content", class_="skip"), _top(call),
               tag("main", *parts, id="content"), foot)  # fmt: skip
    whole = f"<!doctype html>\n{tag('html', head, body, lang='en')}\n".encode("utf-8", "replace")
    etag = f'W/"{hashlib.sha256(whole).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Cookie, Authorization",
               "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
               "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
               "Cross-Origin-Resource-Policy": "same-origin"}  # fmt: skip
    if status == 200 and etag in (known.strip() for known in call.request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(whole, status, headers, media_type="text/html; charset=utf-8")


def _top(call: Call) -> Safe:
    search = tag("form", tag("input", type="search", name="search", value=call.query.get("search"),
                             placeholder="Search", aria_label="Search repositories"),
                 action="/", method="get", role="search")  # fmt: skip
    kinds = [link(name, f"/{kind}s") for kind, name in KINDS.items()]
    return tag("header", link("hfseg hub", "/", class_="brand"), tag("nav", *kinds, aria_label="Kinds"), search,
               tag("div", *_who(call, call.identity), class_="who"))  # fmt: skip


def _who(call: Call, who: Identity) -> list[Safe]:
    if who.user is None:
        here = call.request.scope["raw_path"].decode("latin-1")
        return [link("Sign in", "/login" + ("" if here in ("/", "/login") else f"?next={quote(here, safe='')}"))]
    name = link(who.user, f"/{quote(who.user)}")
    return [name, tag("form", tag("button", "Sign out", class_="plain"), action="/logout", method="post")]

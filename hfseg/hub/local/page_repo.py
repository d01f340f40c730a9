"""What the pages of a repository share: its name and tabs, the path, the revisions to choose from."""

from __future__ import annotations

import math
import re
from urllib.parse import quote, urlencode

from hfseg.hub.local.discussions import list_discussions
from hfseg.hub.local.history import MAIN, Commit, refs
from hfseg.hub.local.page_parts import Safe, badge, join, link, place, tag, time_text
from hfseg.hub.local.store import Repo
from hfseg.hub.local.wire import Call


def head_of(call: Call, repo: Repo, now: str, revision: str) -> Safe:
    """The name of a repository, and the ways to its pages."""
    owner, name = repo.name.split("/")
    title = tag("h1", tag("span", link(owner, f"/{quote(owner)}"), " / ", class_="owner"), link(name, place(repo)), " ",
                badge(repo.type), " ", marks_of(repo))  # fmt: skip
    count = len([row for row in list_discussions(call.hub.store.read(), repo) if row["status"] == "open"])
    tabs = {"Card": card_url(repo, revision), "Files": place(repo, "tree", revision),
            "History": place(repo, "commits", revision), "Pull requests": place(repo, "discussions")}  # fmt: skip
    links = [link(f"{label} {count}" if label == "Pull requests" and count else label, url,
                  aria_current="page" if label == now else None) for label, url in tabs.items()]  # fmt: skip
    return title + tag("nav", *links, class_="tabs", aria_label=f"Pages of {repo.name}")


def card_url(repo: Repo, revision: str) -> str:
    """Returns the URL of a revision's card."""
    return place(repo) if revision == "main" else place(repo, "tree", revision) + "?card=1"


def crumbs(repo: Repo, revision: str, path: str) -> Safe:
    """Returns the way to a file or folder."""
    steps = [link(repo.name.split("/")[1], place(repo, "tree", revision))]
    parts = path.split("/") if path else []
    steps += [link(part, place(repo, "tree", revision, "/".join(parts[: i + 1]))) for i, part in enumerate(parts[:-1])]
    return tag("span", join([*steps, *(tag("b", part) for part in parts[-1:])], " / "), class_="path")


def several(call: Call, repo: Repo, revision: str) -> bool:
    """Says whether there is more than the main branch."""
    db = call.hub.store.read()
    return revision != "main" or len(refs(db, repo, "refs/heads/")) + len(refs(db, repo, "refs/tags/")) > 1


def revisions(call: Call, repo: Repo, what: str, now: str) -> Safe:
    """The branches and tags to choose from."""
    db, groups = call.hub.store.read(), []
    for label, prefix in (("Branches", "refs/heads/"), ("Tags", "refs/tags/")):
        names = [name for name, _ in refs(db, repo, prefix)][:200]
        names.sort(key=lambda name: prefix + name != MAIN)
        links = [link(name, card_url(repo, name) if what == "card" else place(repo, what, name),
                      aria_current="true" if name == now else None) for name in names]  # fmt: skip
        groups += [tag("h3", label), *links] if links else []
    shown = now[:10] if re.fullmatch(r"[0-9a-f]{40}", now) else now
    return tag("details", tag("summary", shown, title=now), tag("div", *groups), class_="revisions")


def commit_item(repo: Repo, made: Commit) -> Safe:
    """Returns a commit as a line of a history."""
    return tag("li", link(made.title, place(repo, "commit", made.oid), class_="title"),
               tag("span", made.author, " · ", time_text(made.created), class_="facts quiet"),
               tag("span", tag("code", link(made.oid[:8], place(repo, "tree", made.oid))), class_="oid"))  # fmt: skip


def pager(call: Call, count: int, size: int, query: dict[str, str] | None = None) -> Safe:
    """Returns links to the newer and older part of a list; `query` is what else stands in the URL."""
    now, last = call.number("p", 1, 1_000_000), max(1, math.ceil(count / size))
    kept = {name: value for name, value in (query or {}).items() if value}
    steps = [link(label, "?" + urlencode({**kept, "p": number}))
             for label, number in (("Newer", now - 1), ("Older", now + 1)) if 1 <= number <= last]  # fmt: skip
    return tag("nav", *steps, class_="pager", aria_label="Pages") if steps else Safe("")


def marks_of(repo: Repo) -> Safe:
    """Returns whether a repository is private or gated."""
    return join([badge("private", "private") if repo.private else "", badge("gated", "gated") if repo.gated else ""])

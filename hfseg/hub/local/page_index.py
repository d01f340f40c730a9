"""Lists of repositories: all, those of a kind, those of a user."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.responses import Response

from hfseg.hub.local.access import may_see
from hfseg.hub.local.card_reading import card_data
from hfseg.hub.local.describing import text_of
from hfseg.hub.local.history import find_revision, list_files
from hfseg.hub.local.page_parts import KINDS, Safe, badge, clean, link, place, show, size_text, tag, time_text
from hfseg.hub.local.page_repo import marks_of, pager
from hfseg.hub.local.store import Repo, list_repos
from hfseg.hub.local.wire import Call

_FEW, _MANY = 20, 50  # repositories of each kind where all are shown, and on a page of one kind


def is_by(author: str, repo: Repo) -> bool:
    """Says whether a repository is in somebody's namespace; no name means everybody's."""
    return author.lower().strip() in ("", repo.namespace.lower())


def repositories(call: Call, only: str | None, author: str | None = None) -> Response:
    """Returns a page that lists repositories, those that changed last first.

    Args:
        call: The request; `search`, `author` and `p`, the number of the page, are parameters of its URL.
        only: `model`, `dataset` or `space`; None for all three.
        author: Whose, if the page is somebody's own.

    Returns:
        The page.
    """
    search = call.query.get("search", "").strip()
    whose = call.query.get("author", "") if author is None else author
    found = [repo for repo in list_repos(call.hub.store.read(), only) if may_see(call.identity, repo)
             and is_by(whose, repo) and all(word in repo.name.lower() for word in search.lower().split())]  # fmt: skip
    size = _MANY if only else _FEW
    start = (call.number("p", 1, 1_000_000) - 1) * size if only else 0
    groups = []
    for kind, name in KINDS.items():
        repos = [repo for repo in found if repo.type == kind]
        if only not in (None, kind) or not (repos or only):
            continue
        items = [_item(call, repo) for repo in repos[start : start + size]]
        body = tag("ul", *items, class_="repos") if items else tag("p", "None.", class_="quiet")
        query = {"search": search, "author": whose}
        more = pager(call, len(repos), size, query) if only else (
            link(f"All {len(repos)} {name.lower()}", f"/{kind}s?{urlencode(query)}") if len(repos) > size else "")
        groups.append(tag("section", tag("h2", name, " ", tag("small", len(repos))), body, more, class_="group"))
    fields = tag("form", tag("input", type="search", name="search", value=search or None, placeholder="Name",
                             aria_label="Name contains"),
                 tag("input", name="author", value=whose or None, placeholder="Owner",
                     aria_label="User or organization"), tag("button", "Filter"),
                 action=f"/{only}s" if only else "/", method="get", class_="filter")  # fmt: skip
    title = author or (KINDS[only] if only else "Repositories")
    nothing = "" if groups else tag("p", "Nothing fits." if search or whose else "Nothing has been published yet.",
                                    class_="box quiet")  # fmt: skip
    here = tag("div", tag("h1", title), fields, *groups, nothing)
    commands = (f"export HF_ENDPOINT={call.base}\nexport HF_TOKEN=…", "hfseg push RUN_DIR USER/NAME",
                "hfseg pull USER/NAME \\\n  --local_dir DIR", "hfseg push-data DATA USER/NAME")  # fmt: skip
    aside = tag("aside", tag("div", tag("h2", "Use this hub"), *(tag("pre", tag("code", line)) for line in commands),
                             tag("p", "The token is what ", tag("code", "hfseg hub serve"), " prints. transformers, "
                                 "datasets and huggingface_hub follow the same variables.", class_="quiet"),
                             class_="box"))  # fmt: skip
    return show(call, f"{title} · hfseg hub", tag("div", here, aside, class_="with-side"))


def _item(call: Call, repo: Repo) -> Safe:
    db = call.hub.store.read()
    head = find_revision(db, repo, "main")
    data = card_data(text_of(db, call.hub.store.files, head, "README.md"))
    marks = [badge(clean(data[name], 60)) for name in ("pipeline_tag", "sdk", "license") if data.get(name)]
    size = size_text(sum(entry.size for entry in list_files(db, head.tree)))
    owner, name = repo.name.split("/")
    title = tag("span", link(tag("span", owner, "/", class_="owner") + name, place(repo)), " ", marks_of(repo),
                class_="name")  # fmt: skip
    more = tag("span", *marks, class_="more") if marks else ""
    return tag("li", title, tag("span", size, " · ", time_text(head.created), class_="facts"), more)

"""Pages for a browser: what is on the hub, and of each repository the card, the files, the history and the threads.

Every page only reads. What a page shows is made of `page_parts.tag`, which escapes; cards go through `markdown`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response

from hfseg.hub.local import api_files, history, page_style
from hfseg.hub.local import discussions as threads
from hfseg.hub.local.access import check_may_download, find_readable, may_see
from hfseg.hub.local.card_reading import card_data, check_card, split_card
from hfseg.hub.local.describing import describe, text_of
from hfseg.hub.local.history import find_entry, find_revision, list_files, read_commit
from hfseg.hub.local.markdown import render_markdown
from hfseg.hub.local.page_card import facts, results, tags, usage
from hfseg.hub.local.page_files import last_changes, show_changes, view
from hfseg.hub.local.page_index import is_by, repositories
from hfseg.hub.local.page_parts import (
    POLICY,
    STYLE_URL,
    Safe,
    badge,
    clean,
    content,
    link,
    place,
    show,
    size_text,
    table,
    tag,
    time_text,
)  # fmt: skip
from hfseg.hub.local.page_repo import commit_item, crumbs, head_of, pager, revisions, several
from hfseg.hub.local.page_session import show_form, sign_in, sign_out, viewer
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import Repo, list_repos, used_bytes
from hfseg.hub.local.wire import Call, Routes

routes = Routes()
_COMMITS, _NAMES = 50, 2000  # on a page
# Calls of the API that do not exist stay the API's to answer, and a POST to one is no wrong method of a page.
_NOT_API = r"/(?!(?:api|xet|uploads|v[0-9])(?:/|$)|[^?]*\.git/)"
_FOLDER = Safe('<svg class="icon folder" viewBox="0 0 16 16" aria-hidden="true"><path d="M1 3h5l2 2h7v9H1z"/></svg>')
_FILE = Safe('<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1h6v4h4v10H3z"/></svg>')


def page(pattern: str, method: str = "GET") -> Callable:
    """Adds a page: its function sees who is signed in, and a `HubError` becomes a page too.

    Args:
        pattern: See `wire.Routes`.
        method: HTTP method.

    Returns:
        A decorator.
    """

    def add(function: Callable[[Call], Response]) -> Callable:
        @routes.on(method, pattern)
        def handler(call: Call) -> Response:
            call.identity = viewer(call)
            try:
                return function(call)
            except HubError as problem:
                return show_problem(call, problem)

        return function

    return add


def show_problem(call: Call, problem: HubError) -> Response:
    """Returns a page for an error; to somebody who may not see a repository it is one that is not there."""
    status, message = problem.status, problem.message
    if problem.code == "RepoNotFound":
        status, message = 404, "There is no such repository, or it is private and not yours."
    hint = ""
    if call.identity.user is None and problem.code in ("RepoNotFound", "GatedRepo"):
        here = call.request.scope["raw_path"].decode("latin-1")
        hint = tag("p", link("Sign in", f"/login?next={quote(here, safe='')}"), " to see what is yours.")
    title = "Not found" if status == 404 else "This did not work"
    return show(call, title, tag("section", tag("h1", title), tag("p", clean(message)), hint,
                                 tag("p", link("All repositories", "/")), class_="narrow"), status=status)  # fmt: skip


@routes.on("GET", STYLE_URL.replace(".", "\\."))
def style(call: Call):
    return Response(page_style.STYLE, headers={"Cache-Control": "max-age=31536000, immutable",
                                    "X-Content-Type-Options": "nosniff"}, media_type="text/css")  # fmt: skip


@routes.on("GET", "/-/icon\\.svg")
def icon(call: Call):
    return Response(page_style.ICON, headers={"Cache-Control": "max-age=86400", "Content-Security-Policy": POLICY,
                                   "X-Content-Type-Options": "nosniff"}, media_type="image/svg+xml")  # fmt: skip


@page("/-/{prefix}{repo}/resolve/{rev}/{path}")
def file_content(call: Call):
    """A file as the API sends it, to a browser that is signed in too."""
    answer = api_files.resolve(call)
    answer.headers["Vary"] = "Cookie, Authorization"
    answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"  # pages of other ports would send the cookie too
    answer.headers["Cache-Control"] = "private, no-cache"
    answer.headers["Content-Security-Policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    if call.places["path"].lower().endswith(".svg"):  # a picture; no script in it runs, wherever it is opened
        answer.headers["Content-Type"] = "image/svg+xml"
    return answer


@page("/login")
def login(call: Call):
    return show_form(call, call.query.get("next", "/"))


@page("/login", "POST")
def login_with_token(call: Call):
    return sign_in(call)


@page("/logout", "POST")
def logout(call: Call):
    return sign_out(call)


@page("/settings/tokens")
def tokens(call: Call):
    """Where clients send somebody who needs a token."""
    return show(call, "Tokens", tag(
        "section", tag("h1", "Tokens"),
        tag("p", "The owner's token, which may do everything here, is printed by ", tag("code", "hfseg hub serve"),
            " and kept in the file ", tag("code", "owner_token"), " of the hub's folder. Others get theirs by:"),
        tag("pre", tag("code", "hfseg hub token ada --role write --root DIR")),
        tag("p", "Give it to the tools with ", tag("code", "hf auth login"), " or as ", tag("code", "HF_TOKEN"), "."),
        class_="narrow"))  # fmt: skip


@page("/settings/billing")
def storage(call: Call):
    """Where clients send somebody whose storage is full."""
    db, quota = call.hub.store.read(), call.hub.quota_bytes
    names = sorted({repo.namespace for repo in list_repos(db) if call.identity.owns(repo.namespace)})
    rows = [(link(name, f"/{quote(name)}"), tag("td", size_text(used_bytes(db, name)), class_="number"))
            for name in names]
    limit = f"Each user and organization may hold {size_text(quota)}." if quota else "There is no limit but the disk's."
    held = table(("owner", "size"), rows, "list") if rows else tag("p", "Nothing of yours is here, or you are not "
                                                                   "signed in.", class_="box quiet")  # fmt: skip
    return show(call, "Storage", tag(
        "section", tag("h1", "Storage"), tag("p", limit, " Files that several commits share count once; to free some, "
                                             "delete repositories, or ask the hub's owner for more."), held,
        class_="narrow"))  # fmt: skip


@page("/")
def index(call: Call):
    return repositories(call, None)


@page("/(?P<kind>models|datasets|spaces)")
def of_kind(call: Call):
    return repositories(call, call.repo_type)


@page(_NOT_API + "(?P<author>[^/]+)")
def of_author(call: Call):
    author = call.places["author"]
    if not any(is_by(author, repo) and may_see(call.identity, repo) for repo in list_repos(call.hub.store.read())):
        raise HubError(404, "There is no such page, and nobody of this name has published here.")
    return repositories(call, None, author)


@page(_NOT_API + "{prefix}{repo}")
def card(call: Call):
    return _card(call, "main")


@page("/{prefix}{repo}/tree/{rev}")
@page("/{prefix}{repo}/tree/{rev}/{path}")
def tree(call: Call):
    """A folder; at the root of another branch than main, the card is one link away."""
    if call.query.get("card"):
        return _card(call, call.places["rev"])
    db, repo = call.hub.store.read(), _repo(call)
    revision, path = call.places["rev"], (call.places.get("path") or "").strip("/")
    head = find_revision(db, repo, revision)
    folder = find_entry(db, head.tree, path)
    if folder is None:
        raise HubError(404, f"{revision} holds no {path}.", "EntryNotFound")
    if not folder.is_folder:
        return RedirectResponse(place(repo, "blob", revision, path), 302)
    changed = last_changes(db, repo, head, path)
    rows = []
    entries = list(history.walk(db, folder.oid, f"{path}/" if path else "", recursive=False))
    note = tag("p", f"The first {_NAMES:,} of {len(entries):,} names.", class_="note") if len(entries) > _NAMES else ""
    for entry in sorted(entries, key=lambda entry: not entry.is_folder)[:_NAMES]:
        name, last = entry.path.rsplit("/", 1)[-1], changed.get(entry.path.rsplit("/", 1)[-1])
        url = place(repo, "tree" if entry.is_folder else "blob", revision, entry.path)
        size = get = None
        if not entry.is_folder:
            size = size_text(entry.size)
            get = link("Download", content(repo, revision, entry.path, True), download=True)
        rows.append((
            tag("td", _FOLDER if entry.is_folder else _FILE, link(name, url), class_="name"),
            tag("td", size, class_="number"), tag("td", get, class_="fit wide"),
            tag("td", last and link(last.title, place(repo, "commit", last.oid)), class_="title wide"),
            tag("td", last and time_text(last.created), class_="fit wide"),
        ))  # fmt: skip
    total = sum(entry.size for entry in history.walk(db, folder.oid) if not entry.is_folder)
    bar = tag("div", revisions(call, repo, "tree", revision), crumbs(repo, revision, path),
              tag("span", size_text(total), class_="quiet right"), class_="bar")  # fmt: skip
    head_row = ("name", "size", " ", "last commit", " ")
    return show(call, f"{path or 'Files'} · {repo.name}", head_of(call, repo, "Files", revision), bar, note,
                table(head_row, rows, "list") if rows else tag("p", "No files.", class_="box quiet"))  # fmt: skip


@page("/{prefix}{repo}/blob/{rev}/{path}")
def blob(call: Call):
    db, repo = call.hub.store.read(), _repo(call)
    revision, path = call.places["rev"], call.places["path"].strip("/")
    entry = find_entry(db, find_revision(db, repo, revision).tree, path)
    if entry is None:
        raise HubError(404, f"{revision} holds no {path}.", "EntryNotFound")
    if entry.is_folder:
        return RedirectResponse(place(repo, "tree", revision, path), 302)
    check_may_download(db, call.identity, repo)
    kind, digest = ("SHA-256", entry.sha256) if entry.sha256 else ("git", entry.oid)
    bar = tag("div", revisions(call, repo, "tree", revision), crumbs(repo, revision, path),
              tag("span", size_text(entry.size), " · ", link("Raw", content(repo, revision, path)), " · ",
                  link("Download", content(repo, revision, path, True), download=True), class_="right"),
              class_="bar")  # fmt: skip
    return show(call, f"{path} · {repo.name}", head_of(call, repo, "Files", revision), bar,
                tag("p", f"{kind} ", tag("code", digest), class_="quiet"),
                view(call.hub.store.files, repo, revision, entry))  # fmt: skip


@page("/{prefix}{repo}/commits/{rev}")
def commits(call: Call):
    db, repo, revision = call.hub.store.read(), _repo(call), call.places["rev"]
    start = (call.number("p", 1, 1_000_000) - 1) * _COMMITS
    found = list(islice(history.log(db, repo, find_revision(db, repo, revision).oid), start + _COMMITS + 1))
    items = [commit_item(repo, commit) for commit in found[start : start + _COMMITS]]
    bar = tag("div", revisions(call, repo, "commits", revision), class_="bar")
    return show(call, f"History · {repo.name}", head_of(call, repo, "History", revision), bar,
                tag("ol", *items, class_="history") if items else tag("p", "None.", class_="quiet"),
                pager(call, len(found), _COMMITS))  # fmt: skip


@page("/{prefix}{repo}/commit/{rev}")
def commit(call: Call):
    db, repo = call.hub.store.read(), _repo(call)
    made = find_revision(db, repo, call.places["rev"])
    before = read_commit(db, repo, made.parent).tree if made.parent else history.EMPTY_TREE
    parent = [" · parent ", link(made.parent[:8], place(repo, "commit", made.parent))] if made.parent else []
    about = tag("p", made.author, " · ", time_text(made.created), " · ", tag("code", made.oid), *parent, " · ",
                link("files", place(repo, "tree", made.oid)), class_="quiet")  # fmt: skip
    return show(call, f"{made.title} · {repo.name}", head_of(call, repo, "History", "main"), tag("h2", made.title),
                tag("pre", made.message) if made.message else "", about,
                show_changes(db, call.hub.store.files, repo, before, made.tree, made.oid,
                             contents=_may_download(call, repo)))  # fmt: skip


@page("/{prefix}{repo}/discussions")
def discussions(call: Call):
    db, repo = call.hub.store.read(), _repo(call)
    rows = [
        (tag("td", link(row["title"], place(repo, f"discussions/{row['num']}")), class_="name"),
         badge(row["status"], row["status"]), "pull request" if row["is_pull_request"] else "discussion",
         row["author"], tag("td", time_text(row["created"]), class_="fit"))
        for row in threads.list_discussions(db, repo)[:500]
    ]  # fmt: skip
    none = tag("p", "None yet: ", tag("code", f"hfseg push RUN_DIR {repo.name} --create_pr"), " proposes a change.",
               class_="box quiet")  # fmt: skip
    return show(call, f"Pull requests · {repo.name}", head_of(call, repo, "Pull requests", "main"),
                table(("title", "state", "kind", "author", "opened"), rows, "list") if rows else none)  # fmt: skip


@page("/{prefix}{repo}/discussions/(?P<num>[0-9]+)")
def discussion(call: Call):
    db, repo = call.hub.store.read(), _repo(call)
    num = int(call.places["num"][:10])
    row, told = threads.find_discussion(db, repo, num), threads.details(db, repo, num)
    said = [_event(repo, event) for event in told["events"]]
    changed, source = Safe(""), []
    if row["is_pull_request"]:
        head = read_commit(db, repo, history.read_ref(db, repo, f"refs/pr/{num}"))
        base = read_commit(db, repo, json.loads(row["data"])["base"])
        changed = tag("h2", "Files") + show_changes(db, call.hub.store.files, repo, base.tree, head.tree, head.oid,
                                                    contents=_may_download(call, repo))  # fmt: skip
        name = f"refs/pr/{num}"
        source = [" · ", link(tag("code", name), place(repo, "tree", name))]
    about = tag("p", badge(row["status"], row["status"]), " ", row["author"], " · ", time_text(row["created"]), *source,
                class_="quiet")  # fmt: skip
    return show(call, f"{row['title']} · {repo.name}", head_of(call, repo, "Pull requests", "main"),
                tag("h2", f"{row['title']} ", tag("small", f"#{num}")), about, *said, changed)  # fmt: skip


@page(_NOT_API + "(?P<rest>.*)")
def nothing(call: Call):
    raise HubError(404, "There is no such page.")


def _event(repo: Repo, event: dict) -> Safe:
    kind, data, who = event["type"], event["data"], tag("b", event["author"]["name"])
    when = time_text(event["createdAt"])
    if kind == "comment":
        text = render_markdown(data["latest"]["raw"], place(repo, "blob", "main") + "/", content(repo, "main", ""))
        body = tag("div", text, class_="card") if text else tag("p", "No description.", class_="quiet")
        return tag("section", tag("h3", who, " · ", when), body, class_="box comment")
    what = {"commit": lambda: ["added ", link(data["subject"], place(repo, "commit", data["oid"]))],
            "status-change": lambda: ["made it ", badge(data["status"], data["status"])],
            "title-change": lambda: [f"renamed it from “{data['from']}” to “{data['to']}”"]}  # fmt: skip
    return tag("p", who, " ", *what.get(kind, lambda: [kind])(), " · ", when, class_="quiet")


def _card(call: Call, revision: str) -> Response:
    db, files, repo = call.hub.store.read(), call.hub.store.files, _repo(call)
    head = find_revision(db, repo, revision)
    text = text_of(db, files, head, "README.md")
    data, (_, body) = card_data(text), split_card(text)
    told = describe(db, files, repo, revision)
    wrong = check_card(text, repo.type)[0] if text else []
    notes = [tag("p", "The metadata is not as it should be: ", clean(wrong), class_="note")] if wrong else []
    here = render_markdown(body, place(repo, "blob", revision) + "/", content(repo, revision, ""))
    if not body.strip():
        here = tag("p", "There is no card (README.md) yet.", class_="box quiet")
    entries = list_files(db, head.tree)
    size = tag("p", f"{len(entries)} files, {size_text(sum(entry.size for entry in entries))} · ",
               time_text(head.created), class_="quiet")  # fmt: skip
    known = {**data, "library_name": told.get("library_name"), "pipeline_tag": told.get("pipeline_tag")}
    known = {name: value for name, value in known.items() if value is not None}
    side = [tag("aside", size, tags(data), facts(call, data), results(data), class_="first"),
            tag("aside", tag("h3", "Use it"),
                usage(call, repo, known, told.get("config") or {}, revision))]  # fmt: skip
    bar = tag("div", revisions(call, repo, "card", revision), class_="bar") if several(call, repo, revision) else ""
    return show(call, f"{repo.name} · hfseg hub", head_of(call, repo, "Card", revision), bar, *notes,
                tag("div", tag("article", here, class_="card"), *side, class_="with-side"))  # fmt: skip


def _repo(call: Call) -> Repo:
    return find_readable(call.hub.store, call.identity, call.repo_type, call.places["repo"])


def _may_download(call: Call, repo: Repo) -> bool:
    try:
        check_may_download(call.hub.store.read(), call.identity, repo)
    except HubError:
        return False
    return True



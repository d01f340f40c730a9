"""What a file looks like on a page: text, pictures, the tensors of a safetensors file, and what a commit changed."""

from __future__ import annotations

import difflib
import json
import math
import sqlite3
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hfseg.hub.local.files import Files
from hfseg.hub.local.history import EMPTY_TREE, Commit, Entry, find_entry, log, read_commit, read_tree
from hfseg.hub.local.page_parts import Safe, badge, clean, content, join, link, place, size_text, table, tag
from hfseg.hub.local.store import Repo

TEXT_LIMIT = 200_000  # bytes of a text file that a page shows
HEADER_LIMIT = 16 << 20  # bytes of a safetensors header that is read
DIFF_LIMIT = 40_000  # bytes of each side of a difference that is shown
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".svg")
_TENSORS, _CHANGES, _DIFFS, _COMMITS = 2000, 500, 12, 500


def view(files: Files, repo: Repo, revision: str, entry: Entry) -> Safe:
    """Returns what a page shows of a file.

    Args:
        files: The contents.
        repo: The repository.
        revision: Branch, tag or commit, for the URL of a picture.
        entry: The file.

    Returns:
        The HTML.
    """
    path, name = files.path(entry.key), entry.path.rsplit("/", 1)[-1].lower()
    if name.endswith(PICTURES):
        picture = tag("p", tag("img", src=content(repo, revision, entry.path), alt=entry.path, class_="picture"))
        return Safe(picture + _source(path, entry)) if name.endswith(".svg") else picture
    if name.endswith(".safetensors"):
        return _tensors(path)
    return _source(path, entry)


def read_header(path: Path) -> dict[str, Any]:
    """Reads the header of a safetensors file, and nothing else of it.

    Args:
        path: The file.

    Returns:
        {tensor: {dtype, shape, data_offsets}}, and `__metadata__` where there is some.

    Raises:
        ValueError: When it is no such header.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, path.stat().st_size - 8):
            raise ValueError(f"a header of {length} bytes")
        try:
            header = json.loads(file.read(length))
        except RecursionError:
            raise ValueError("a header that is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("a header that is no mapping")
    for name, tensor in header.items():
        good = isinstance(tensor, dict) and (name == "__metadata__" or (
            isinstance(tensor.get("dtype"), str) and isinstance(tensor.get("shape"), list)
            and all(type(n) is int and 0 <= n < 1 << 48 for n in tensor["shape"]) and len(tensor["shape"]) < 16))
        if not good:
            raise ValueError(f"no dtype and shape for {clean(name, 60)}")
    return header


def changes(db: sqlite3.Connection, before: str, after: str, prefix: str = "") -> Iterator[tuple[Entry | None, ...]]:
    """Yields the (old, new) entries of the files in which two trees differ; folders that are alike are not read."""
    old = {name: (oid, folder) for name, oid, folder in read_tree(db, before)}
    new = {name: (oid, folder) for name, oid, folder in read_tree(db, after)}
    for name in sorted({*old, *new}):
        one, two = old.get(name), new.get(name)
        if one == two:
            continue
        folders = [side[0] if side and side[1] else EMPTY_TREE for side in (one, two)]
        path = f"{prefix}{name}"
        sides = [find_entry(db, tree, name) if side and not side[1] else None
                 for side, tree in ((one, before), (two, after))]  # fmt: skip
        if any(sides):
            yield tuple(side and Entry(path, side.oid, False, side.size, side.sha256) for side in sides)
        if folders[0] != folders[1]:
            yield from changes(db, *folders, f"{path}/")


def show_changes(db: sqlite3.Connection, files: Files, repo: Repo, before: str, after: str, oid: str, *,
                 contents: bool) -> Safe:  # fmt: skip
    """Returns which files differ between two trees, and for small texts how.

    Args:
        db: Connection.
        files: The contents.
        repo: The repository.
        before: git's name of the old tree.
        after: Of the new one.
        oid: Commit of the new tree, for links.
        contents: Whether to show what changed inside of the files.

    Returns:
        The HTML.
    """
    found = list(islice(changes(db, before, after), _CHANGES + 1))
    rows, diffs = [], []
    for old, new in found[:_CHANGES]:
        what = "added" if old is None else "removed" if new is None else "changed"
        path = (new or old).path
        sizes = " → ".join(size_text(side.size) for side in (old, new) if side)
        name = tag("td", link(path, place(repo, "blob", oid, path)) if new else path, class_="name")
        rows.append((name, badge(what, what), tag("td", sizes, class_="number")))
        if contents and len(diffs) < _DIFFS and (diff := _diff(files, old, new)):
            diffs.append(tag("section", tag("h3", path), tag("pre", diff, class_="diff")))
    if not rows:
        return tag("p", "No file differs.", class_="quiet")
    more = tag("p", f"Only the first {_CHANGES} files are listed.", class_="quiet") if len(found) > _CHANGES else ""
    return join([table(("file", "", "size"), rows, "list"), more, *diffs])


def last_changes(db: sqlite3.Connection, repo: Repo, head: Commit, path: str) -> dict[str, Commit]:
    """Returns for the names in a folder the commit that changed them last, as far as some hundred commits tell."""

    def names(tree: str) -> dict[str, str]:
        folder = find_entry(db, tree, path)
        return {} if folder is None or not folder.is_folder else {n: oid for n, oid, _ in read_tree(db, folder.oid)}

    now, found = names(head.tree), {}
    for commit in islice(log(db, repo, head.oid), _COMMITS):
        if len(found) == len(now):
            break
        before = names(read_commit(db, repo, commit.parent).tree) if commit.parent else {}
        for name, oid in now.items():
            if name not in found and before.get(name) != oid:
                found[name] = commit
    return found


def _source(path: Path, entry: Entry) -> Safe:
    with path.open("rb") as file:
        start = file.read(TEXT_LIMIT)
    text = _text(start, cut=entry.size > TEXT_LIMIT)
    if text is None:
        return tag("p", f"A binary file of {size_text(entry.size)}.", class_="box quiet")
    lines = text.count("\n") + (not text.endswith("\n"))
    shown = tag("div", tag("pre", "\n".join(map(str, range(1, lines + 1))), class_="lines", aria_hidden="true"),
                tag("pre", "\n", text, class_="text"), class_="source")  # fmt: skip
    if entry.size > TEXT_LIMIT:
        shown = tag("p", f"The first {size_text(TEXT_LIMIT)} of {size_text(entry.size)}.", class_="note") + shown
    return Safe(shown) if text else tag("p", "An empty file.", class_="box quiet")


def _text(content: bytes, cut: bool) -> str | None:
    """Returns a file's content as text, or None where it is none; the last character may be cut in half."""
    if b"\0" in content:
        return None
    for shorter in range(4 if cut else 1):
        try:
            return content[: len(content) - shorter].decode().replace("\r\n", "\n")
        except UnicodeDecodeError:
            pass
    return None


def _tensors(path: Path) -> Safe:
    try:
        header = read_header(path)
    except ValueError as problem:
        return tag("p", f"No safetensors file: {problem}.", class_="note")
    metadata = header.pop("__metadata__", None)
    kinds: dict[str, int] = {}
    for tensor in header.values():
        kinds[tensor["dtype"]] = kinds.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    largest = sorted(kinds.items(), key=lambda kind: -kind[1])[:9]
    total = ", ".join(f"{count:,} of {clean(kind, 20)}" for kind, count in largest)
    rows = [
        (tag("td", clean(name, 300), class_="name"), " × ".join(map(str, tensor["shape"])) or "one number",
         clean(tensor["dtype"], 20), tag("td", f"{math.prod(tensor['shape']):,}", class_="number wide"))
        for name, tensor in islice(header.items(), _TENSORS)
    ]  # fmt: skip
    parts = [tag("p", tag("b", f"{sum(kinds.values()):,}"), f" parameters in {len(header):,} tensors ({total})")]
    if metadata:
        text = clean(json.dumps(metadata, ensure_ascii=False))
        parts.append(tag("p", "Metadata: ", tag("code", text), class_="quiet"))
    if len(header) > _TENSORS:
        parts.append(tag("p", f"The first {_TENSORS:,} of them:", class_="quiet"))
    return join([*parts, table(("tensor", "shape", "type", "parameters"), rows, "list")])


def _diff(files: Files, old: Entry | None, new: Entry | None) -> Safe | None:
    """Returns how a small text changed, or None: the comparison of long ones would take too long."""
    sides = []
    for side in (old, new):
        if side is not None and side.size > DIFF_LIMIT:
            return None
        text = _text(files.read(side.key), cut=False) if side else ""
        if text is None or text.count("\n") > 1500:
            return None
        sides.append(text.splitlines())
    kinds = {"+": "plus", "-": "minus", "@": "where"}
    lines = list(islice(difflib.unified_diff(*sides, lineterm="", n=2), 2, 400))
    return join(tag("span", line + "\n", class_=kinds.get(line[:1])) for line in lines) if lines else None

"""Writing a card again without losing what a person wrote into it.

Each section that hfseg writes has a comment under its heading with its name and a digest of its text, and one comment
at the top has digests of the metadata; neither shows in a browser. Where a digest no longer fits, a person was there.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt

from hfseg.errors import UserError
from hfseg.hub.card_metadata import MODEL_INDEX, to_yaml

INTRODUCTION = "introduction"
_MARKER = re.compile(r"^<!-- hfseg: ([a-z-]+) ([0-9a-f]{16}) -->[ \t]*$", re.MULTILINE)
_METADATA = re.compile(r"^<!-- hfseg: metadata((?: [a-z_-]+=[0-9a-f]{16})*) -->[ \t]*$\n*", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A heading of the first or second level and all below it, as it stands in a card.

    Attributes:
        text: Markdown, without blank lines at the ends.
        heading: The words of the heading; empty for what stands before the first one.
        key: Of a section of hfseg's; None for one of a person's.
        edited: Whether a person changed it.
    """

    text: str
    heading: str = ""
    key: str | None = None
    edited: bool = False


class Merge:
    """A card that is there, and what is to be written over it.

    Args:
        old: The text of the card; None where there is none.
        where: How to call it in messages.

    Raises:
        UserError: When its metadata is no YAML.

    Example:
        >>> first = Merge(None).write({"tags": ["a"]}, {"introduction": "# a", "usage": "## Usage\\n\\nold"})
        >>> card = first.replace("- a", "- b").replace("## Usage", "## Mine\\n\\nkept\\n\\n## Usage")
        >>> merge = Merge(card)
        >>> values = merge.metadata({"tags": ["a", "c"]})
        >>> again = merge.write(values, {"introduction": "# a", "usage": "## Usage\\n\\nnew"})
        >>> "- b" in again, "## Mine\\n\\nkept" in again, "old" in again, merge.kept
        (True, True, False, ['metadata: tags'])
    """

    def __init__(self, old: str | None, where: str = "README.md"):
        self.kept: list[str] = []
        self._digests: dict[str, str] = {}
        self._given: dict[str, Any] | None = None
        body = (old or "").replace("\r\n", "\n").replace("\r", "\n")
        if block := REGEX_YAML_BLOCK.match(body):
            try:
                self._given = yaml.safe_load(block[2]) or {}
            except yaml.YAMLError as error:
                raise UserError(f"the metadata of {where} is no YAML: {' '.join(str(error).split())[:300]}",
                                "YAML between the two lines of ---", "mend it, or delete the file") from error
            if not isinstance(self._given, dict):
                raise UserError(f"the metadata of {where} is no list of keys and values", "key: value",
                                "mend it, or delete the file")
            body = body[block.end() :]
        if found := _METADATA.search(body):
            self._was = dict(pair.split("=") for pair in found[1].split())
            body = body[: found.start()] + body[found.end() :]
        else:
            self._was = {}
        self._body = body

    def metadata(self, new: dict[str, Any]) -> dict[str, Any]:
        """Puts what a person added, changed or took away into the metadata of the run; scores are always the run's.

        Args:
            new: Metadata that follows from the run.

        Returns:
            Metadata to write.
        """
        self._digests = {key: _digest(json.dumps(value, sort_keys=True, default=str)) for key, value in new.items()}
        if self._given is None:
            return dict(new)
        merged = {key: value for key, value in new.items() if key != MODEL_INDEX}
        for key, value in self._given.items():
            ours = self._was.get(str(key)) == _digest(json.dumps(value, sort_keys=True, default=str))
            if key == MODEL_INDEX:
                if not ours and MODEL_INDEX not in new and key not in self._was:
                    merged[key] = value  # scores of a model that hfseg has not scored
            elif not ours and (key not in merged or merged[key] != value):
                merged[key] = value
                self.kept.append(f"metadata: {key}")
        for key in self._was:
            if key not in self._given and key in merged:
                del merged[key]
                self.kept.append(f"metadata: without {key}")
        if MODEL_INDEX in new:
            merged[MODEL_INDEX] = new[MODEL_INDEX]
        return merged

    def write(self, metadata: dict[str, Any], sections: dict[str, str]) -> str:
        """Puts the sections of the run where those of the card were, and new ones after those that precede them.

        Args:
            metadata: What `metadata` returned.
            sections: Markdown by key, each with its heading, in order.

        Returns:
            The text of the card. `kept` says which sections were left as a person wrote them.
        """
        digests = self._digests or {key: _digest(json.dumps(value, sort_keys=True, default=str))
                                    for key, value in metadata.items()}
        headings = {_heading(text): key for key, text in sections.items() if key != INTRODUCTION}
        preamble, *parts = split(self._body, headings)
        placed: list[tuple[str | None, str]] = []
        done: set[str] = set()
        for part in parts:
            key = part.key if part.key not in done else None
            if key is None or part.edited:
                if part.key is not None and part.key in done and not part.edited:
                    continue  # a second copy of what is written anew
                placed.append((key, part.text))
                if key is not None and key in sections:
                    self.kept.append(f"section: {part.heading}")
            elif key in sections:
                placed.append((key, marked(key, sections[key])))
            done.update({key} - {None})
        order = list(sections)
        for key in order:
            if key not in done:
                before = {*order[: order.index(key)]}
                spots = [i for i, (other, _) in enumerate(placed, start=1) if other in before]
                placed.insert(spots[-1] if spots else 0, (key, marked(key, sections[key])))
        top = "".join(f" {key}={digest}" for key, digest in digests.items())
        blocks = [f"---\n{to_yaml(metadata)}\n---", f"<!-- hfseg: metadata{top} -->", preamble.text,
                  *(text for _, text in placed)]
        return "\n\n".join(block for block in blocks if block) + "\n"


def marked(key: str, text: str) -> str:
    """Returns a section with its marker under its heading.

    Args:
        key: Of the section.
        text: Markdown, heading first.

    Returns:
        Markdown.
    """
    heading, _, rest = text.strip().partition("\n")
    return f"{heading}\n\n<!-- hfseg: {key} {_digest(text)} -->\n\n{rest.strip()}".strip()


def split(body: str, headings: dict[str, str]) -> list[Section]:
    """Splits a card at its headings of the first and second level, as Markdown sees them.

    Args:
        body: The card without metadata.
        headings: Key by heading of the sections that hfseg writes: one without a marker is a person's version of it.

    Returns:
        What stands before the first heading, and the sections.
    """
    lines = body.split("\n")
    tokens = MarkdownIt("commonmark").parse(body)
    starts = [(token.map[0], tokens[i + 1].content, token.tag) for i, token in enumerate(tokens)
              if token.type == "heading_open" and token.level == 0 and token.tag in ("h1", "h2")]  # fmt: skip
    ends = [start for start, _, _ in starts[1:]] + [len(lines)]
    sections = [Section("\n".join(lines[: starts[0][0] if starts else len(lines)]).strip("\n").rstrip())]
    for (start, heading, tag), end in zip(starts, ends):
        text = "\n".join(lines[start:end]).strip("\n").rstrip()
        if found := _MARKER.search(text):
            plain = text[: found.start()] + text[found.end() :]
            sections.append(Section(text, heading, found[1], _digest(plain) != found[2]))
        else:
            key = INTRODUCTION if tag == "h1" else headings.get(heading.strip())
            sections.append(Section(text, heading, key, key is not None))
    return sections


def _heading(text: str) -> str:
    return text.strip().partition("\n")[0].lstrip("#").strip()


def _digest(text: str) -> str:
    """Blank lines and spaces at the ends of lines are not looked at: editors change them."""
    rows = [row.rstrip() for row in text.split("\n") if row.strip()]
    return hashlib.sha256("\n".join(rows).encode("utf-8", "replace")).hexdigest()[:16]

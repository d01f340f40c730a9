"""Reads HTML as a browser would, and fails for whatever should not be in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hypothesis import strategies as st

from hfseg.hub.local.markdown import render_markdown

CARD_TAGS = {
    "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "em", "strong", "s", "code", "pre", "a", "img", "span", "blockquote",
    "ul", "ol", "li", "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
}  # fmt: skip
PAGE_TAGS = CARD_TAGS | {
    "html", "head", "meta", "title", "link", "body", "header", "nav", "main", "footer", "section", "aside", "article",
    "h1", "form", "input", "button", "label", "svg", "path", "rect", "time", "b", "small",
}  # fmt: skip
CARD_ATTRIBUTES = {"id", "class", "href", "rel", "title", "src", "alt", "loading", "start"}
PAGE_ATTRIBUTES = CARD_ATTRIBUTES | {
    "lang", "charset", "name", "content", "type", "action", "method", "role", "placeholder", "value", "required",
    "autofocus", "autocomplete", "download", "datetime", "scope", "d", "viewbox", "width", "height",
    "preserveaspectratio", "aria-label", "aria-current", "aria-hidden",
}  # fmt: skip
VOID = {"br", "hr", "img", "input", "link", "meta"}
NASTY = """a"b'<i>&é 你 %2e#?.txt"""


class Strict(HTMLParser):
    """Reads HTML as a browser would and fails for whatever should not be in it."""

    def __init__(self, tags: set[str], attributes: set[str]):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.stack, self.links, self.images = tags, attributes, [], [], []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        assert tag in self.tags, tag
        if tag not in VOID:
            self.stack.append(tag)
        for name, value in attrs:
            assert name in self.attributes, (tag, name)
            if name in ("href", "src", "action"):
                scheme = re.match(r"[\s\x00-\x20]*([^/?#]*?):", value or "")
                assert scheme is None or (name == "href" and scheme[1].lower() in ("http", "https", "mailto")), value
                assert not re.match(r"[/\\]{2}|[\\]", value or ""), value
                (self.images if name == "src" else self.links).append(value)
                if name == "src":
                    assert value.startswith("/"), value

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID | {"path"}, tag
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, tag

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data):
        raise AssertionError(data)

    handle_pi = unknown_decl


def read(html: str, tags=CARD_TAGS, attributes=CARD_ATTRIBUTES) -> Strict:
    parser = Strict(tags, attributes)
    parser.feed(html)
    parser.close()
    assert not parser.stack, parser.stack
    return parser


def card(text: str) -> Strict:
    return read(render_markdown(text, "/me/net/blob/main/", "/-/me/net/resolve/main/"))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                    max_leaves=12)  # fmt: skip

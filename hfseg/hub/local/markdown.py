"""Cards as HTML: markdown of strangers, of which only known elements, attributes and kinds of links come through."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from html import escape
from itertools import chain
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from hfseg.hub.local.page_parts import Safe, tag

LONGEST, BRACKETS = 100_000, 5_000  # characters, and of them `[`: the parser's time grows with their square
NESTING = 40
SCHEMES = ("http", "https", "mailto")
_KNOWN = r"(?P<fold></?details>)|<summary>(?P<summary>[^<]*)</summary>"
_TAGS, _HTML = re.compile(_KNOWN), re.compile(rf"<!--.*?-->|{_KNOWN}", re.S)


@lru_cache(maxsize=64)
def render_markdown(text: str, pages: str, contents: str) -> Safe:
    """Returns markdown as HTML that is safe to show.

    Raw HTML is shown as text, but for comments, which are hidden, and `<details>` with a plain `<summary>`. Links lead
    to http, https, mailto and into the repository; images come from the repository only, as a page may load nothing
    from elsewhere: others become links.

    Args:
        text: Markdown, without front matter.
        pages: URL of the page of the repository's file "", for relative links.
        contents: URL of its content, for images.

    Returns:
        The HTML.

    Example:
        >>> render_markdown("*a* <b> [x](javascript:1) [y](z.md) <!-- no -->", "/me/net/blob/main/", "/")
        '<p><em>a</em> &lt;b&gt; [x](javascript:1) <a href="/me/net/blob/main/z.md">y</a> </p>\\n'
    """
    if len(text) > LONGEST or text.count("[") > BRACKETS:
        words = f"This text is too much to lay out: its first {LONGEST:,} characters as they are."
        return tag("p", words, class_="quiet") + tag("pre", "\n", text[:LONGEST])
    return Safe(_parser().render(text, {"pages": pages, "contents": contents}))


@cache
def _parser() -> MarkdownIt:
    # With html off, comments would be text; with it on they are tokens, and no token's HTML is written as it came.
    parser = MarkdownIt("commonmark", {"html": True, "maxNesting": NESTING}).enable(["table", "strikethrough"])
    parser.core.ruler.push("hub", _make_safe)
    for name in ("html_block", "html_inline", "image"):
        parser.add_render_rule(name, _write)
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _write(renderer, tokens: Sequence[Token], index: int, options, env) -> str:
    """Writes what `_make_safe` prepared; a token that it has not seen is text."""
    return tokens[index].meta.get("safe", escape(tokens[index].content))


def _make_safe(state: StateCore) -> None:
    open_folds, slugs = 0, {}
    for index, token in enumerate(state.tokens):
        if token.type == "html_block":
            html, open_folds = _block(token, open_folds)
            token.meta["safe"] = html
        elif token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"  # the page's own title is the only h1
            if token.nesting == 1:
                token.attrs = {"id": _anchor(state.tokens[index + 1].content, slugs)}
        elif token.type in ("th_open", "td_open"):
            side = str(token.attrs.get("style", "")).removeprefix("text-align:")
            token.attrs = {"class": side} if side in ("left", "center", "right") else {}
        elif token.type == "inline":
            token.children = list(_inline(token.children or [], state))
    if open_folds:
        end = Token("html_block", "", 0)
        end.meta["safe"] = "</details>\n" * open_folds
        state.tokens.append(end)


def _block(token: Token, folds: int) -> tuple[str, int]:
    """Returns what is shown of raw HTML, and how many `<details>` are open behind it."""
    written, rest = [], 0
    # Behind the last end of a comment, each search for one would go on to the end of the text.
    closed = token.content.rfind("-->") + 3 if "-->" in token.content else 0
    for found in chain(_HTML.finditer(token.content, 0, closed), _TAGS.finditer(token.content, closed)):
        written.append(_shown(token.content[rest : found.start()]))
        rest = found.end()
        if found["fold"] and token.level:  # inside of a list it could close what it has not opened
            written.append(_shown(found[0]))
        elif found["fold"] == "<details>":
            written.append("<details>")
            folds += 1
        elif found["fold"] and folds:
            written.append("</details>\n")
            folds -= 1
        elif found["summary"] is not None:
            written.append(f"<summary>{escape(found['summary'])}</summary>" if folds else _shown(found[0]))
    return "".join([*written, _shown(token.content[rest:])]), folds


def _shown(html: str) -> str:
    return f"<p>{escape(html.strip())}</p>\n" if html.strip() else ""


def _inline(children: list[Token], state: StateCore) -> Iterator[Token]:
    """Yields the tokens of a paragraph with links and images that may be followed."""
    in_link = False
    for token in children:
        if token.type == "link_open":
            url = _target(str(token.attrs.get("href", "")), state.env["pages"])
            in_link = url is not None
            if not in_link:
                continue
            title = {"title": token.attrs["title"]} if "title" in token.attrs else {}
            away = {} if url.startswith(("/", "#")) else {"rel": "noopener noreferrer nofollow"}
            token.attrs = {"href": url, **title, **away}
        elif token.type == "link_close":
            if not in_link:
                continue
            in_link = False
        elif token.type == "image":
            token.meta["safe"] = _image(token, state, in_link)
        elif token.type == "html_inline":
            comment = token.content.startswith("<!--")
            token.meta["safe"] = "" if comment else escape(token.content)
        yield token


def _image(token: Token, state: StateCore, in_link: bool) -> Safe:
    source = str(token.attrs.get("src", ""))
    alt = state.md.renderer.renderInlineAsText(token.children, state.md.options, state.env)
    if not re.match(r"[a-z][a-z0-9+.-]*:|//", source, re.I):
        inside = _inside(source.lstrip("/"), state.env["contents"])
        if inside is not None:
            return tag("img", src=inside, alt=alt, title=token.attrs.get("title"), loading="lazy")
    elsewhere = _target(source, state.env["pages"])
    if elsewhere is None or in_link or not elsewhere.startswith("http"):
        return tag("span", alt or "image", class_="image")
    return tag("a", alt or "image", href=elsewhere, rel="noopener noreferrer nofollow", class_="image")


def _target(url: str, pages: str) -> str | None:
    """Returns where a link leads, or None where nobody should follow it."""
    if re.search(r"[\x00-\x20\x7f\\]", url) or url.startswith("//") or not url:
        return None
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", url, re.I)
    if scheme:
        return url if scheme[1].lower() in SCHEMES else None
    if url.startswith("#"):
        return "#" + _slug(unquote(url[1:]))
    return url if url.startswith("/") else _inside(url, pages)


def _inside(url: str, base: str) -> str | None:
    """Returns the URL of a file of the repository, or None where the path leaves it."""
    path, _, fragment = url.partition("#")
    path = posixpath.normpath(unquote(path.partition("?")[0]))
    if path in (".", "..") or path.startswith(("../", "/")) or "\\" in path:
        return None
    return base + quote(path) + (f"#{quote(unquote(fragment))}" if fragment else "")


def _anchor(text: str, seen: dict[str, int]) -> str:
    slug = _slug(text)
    seen[slug] = seen.get(slug, 0) + 1
    return slug if seen[slug] == 1 else f"{slug}-{seen[slug] - 1}"


def _slug(text: str) -> str:
    """Returns a heading's name in links; the beginning keeps it apart from the page's own names."""
    return "card-" + re.sub(r"[^\w\- ]", "", text.lower().strip())[:200].replace(" ", "-")

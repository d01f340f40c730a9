"""What strangers wrote in a card shows as text, whatever it is."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hfseg.hub.local import LocalHub
from hfseg.hub.local.access import ANONYMOUS
from hfseg.hub.local.markdown import BRACKETS, LONGEST, render_markdown
from hfseg.hub.local.page_card import facts, results, tags, usage
from hfseg.hub.local.page_parts import tag
from hfseg.hub.local.store import Repo
from strict_html import JSON, PAGE_ATTRIBUTES, PAGE_TAGS, card, read

PIECES = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<svg/onload=alert(1)>",
        "<style>*{}</style>",
        "<!--",
        "-->",
        "<details>\n",
        "</details>\n",
        "<summary>a</summary>\n",
        "<summary><b>x</b></summary>",
        "<details open onclick=x>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x](java\tscript:a)",
        "[x](data:text/html,<script>)",
        "![x](data:image/svg+xml;base64,AAAA)",
        "![x](data:image/png;base64,AA)",
        "<javascript:a>",
        "![x](javascript:a)",
        "![x](https://a.b/c.png)",
        "![x](//a.b/c.png)",
        "![x](a/../../c.png)",
        "![x](/\\a.b/c)",
        "[x](//a.b)",
        "[x](\\\\a.b)",
        "[x](/\\a.b)",
        "[x](vbscript:a)",
        "[x](file:///etc/passwd)",
        "<https://a.b/'\"<>",
        "<a@b.c>",
        "[![x](a.png)](https://a.b)",
        "[x]: javascript:a\n\n[x]",
        "[x]: a 'b\"><script>'\n\n[x]",
        '[x](a "t\\"><b>")',
        '```"><script>\n',
        "~~~\n",
        "`",
        "``",
        "    <!-- code -->\n",
        "<![CDATA[",
        "<?php ?>",
        "<!DOCTYPE html>",
        "&lt;script&gt;",
        "&#x3C;b&#x3E;",
        "\0",
        "\u202e",
        "| a | b |\n|:-:|--:|\n| <b> | ![](x.png) |\n",
        "# <i>h</i> \"'\n",
        "> ",
        "- ",
        "1. ",
        "99999999999. ",
        "***",
        "~~a~~",
        "  \n",
        "\n\n",
        "\\",
        "[",
        "]",
        "(",
        ")",
        "![",
        "<",
        ">",
        '"',
        "'",
        "&",
        "=",
        '<a href="javascript:a">',
        "</p></div></body>",
        "[x](<a b>)",
        '[x](#a"b)',
        "x:y",
    ]
)


@settings(max_examples=400)
@given(st.lists(PIECES | st.text(max_size=8), max_size=25).map("".join))
@example("<details>\n<details>\n\n- <details>\n\n</details>\n</details>\n</details>")
@example("[x](data:image/png;base64,AA) [x](ftp://a.b) <steam:run/1> [x](tel:1)")
@example("[a](https://x.y/?q=1:2) <!-- <script> --> b")
def test_only_known_elements_attributes_and_schemes_come_out_of_any_card(text):
    card(text)


@settings(max_examples=60)
@given(st.text(max_size=200), st.text(max_size=20))
def test_a_tag_gives_back_what_was_put_in(text, value):
    text, value = (re.sub("[\r\0\ud800-\udfff]", "", each) for each in (text, value))
    parser = HTMLParser(convert_charrefs=True)
    seen = []
    parser.handle_data = lambda data: seen.append(data)
    parser.handle_starttag = lambda name, attrs: seen.append((name, attrs))
    parser.feed(tag("p", text, title=value))
    parser.close()
    assert seen[0] == ("p", [("title", value)]) and "".join(seen[1:]) == text


def test_comments_are_hidden_except_in_code():
    shown = card("<!-- hfseg: usage 12ab -->\n\ntext <!-- a\nb --> more\n\n`<!-- c -->`\n\n```\n<!-- d -->\n```\n").text
    assert "12ab" not in shown and "a\nb" not in shown
    assert "text  more" in shown and "<!-- c -->" in shown and "<!-- d -->" in shown
    assert "never closed" in card("<!-- never closed\n\nrest").text


def test_links_and_images_stay_in_the_repository_or_lead_to_a_known_scheme():
    seen = card(
        "[a](docs/b.md#part) [b](../c.md) [c](#usage) [d](https://e.f) ![g](samples/h%20i.png?raw=1) [j](/me/k)\n\n"
        "![l](https://m.n/o.png) ![p](./samples/q.png) [![r](https://s.t/u.svg)](https://v.w)\n\n## Usage\n"
    )
    assert seen.links == [
        "/me/net/blob/main/docs/b.md#part",
        "#card-usage",
        "https://e.f",
        "/me/k",
        "https://m.n/o.png",
        "https://v.w",
    ]
    assert seen.images == ["/-/me/net/resolve/main/samples/h%20i.png", "/-/me/net/resolve/main/samples/q.png"]
    assert 'id="card-usage"' in render_markdown("## Usage", "/", "/")


def test_folded_tables_of_hfsegs_own_cards_fold():
    html = render_markdown(
        "<details>\n<summary>All 3 classes</summary>\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n</details>\n\nafter",
        "/",
        "/",
    )
    assert html.index("<details><summary>All 3 classes</summary>") < html.index('<td class="right">2</td>')
    assert html.index("</table>") < html.index("</details>") < html.index("after")
    assert render_markdown("<details>\n\nx", "/", "/").rstrip().endswith("</details>")


@pytest.mark.parametrize("piece", ["[", "![", "> ", "*a ", "[a](", "- ", "<!--", "a <![CDATA[ ", "**a", "|a", "`a``"])
def test_a_card_cannot_keep_the_hub_busy(piece):
    began = time.process_time()
    card((piece * LONGEST)[:LONGEST])
    card((piece * BRACKETS)[:LONGEST])
    assert time.process_time() - began < 8  # 2 on a quiet core
    assert "too much to lay out" in card((piece * LONGEST)[:LONGEST] + "x").text


def test_deep_lists_do_not_break_the_page():
    assert card("".join("  " * i + f"- item {i}\n" for i in range(200))).text.count("item") > 10


METRIC = st.fixed_dictionaries(
    {}, optional={"type": JSON, "value": JSON, "name": JSON, "args": JSON | st.just({"class_id": 1})}
)
RESULT = st.fixed_dictionaries({}, optional={"metrics": st.lists(METRIC | JSON, max_size=8) | JSON, "dataset": JSON})
FRONT = st.dictionaries(
    st.sampled_from(
        ["license", "base_model", "datasets", "tags", "pipeline_tag", "library_name", "sdk", "app_file", "widget"]
    ),
    JSON,
) | st.fixed_dictionaries(
    {
        "model-index": JSON
        | st.lists(JSON | st.fixed_dictionaries({"results": st.lists(RESULT | JSON, max_size=3)}), max_size=3)
    }
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@settings(max_examples=150)
@given(data=FRONT, revision=st.text(min_size=1, max_size=10), kind=st.sampled_from(["model", "dataset", "space"]))
def test_any_front_matter_shows(hub, data, revision, kind):
    call = SimpleNamespace(hub=hub._hub, identity=ANONYMOUS, base="http://127.0.0.1:1")
    repo = Repo(1, kind, "me/net", False, "auto", "", {})
    config = {"architectures": data.get("tags")}
    for html in (facts(call, data), tags(data), results(data), usage(call, repo, data, config, revision)):
        read(html.encode("utf-8", "replace").decode(), PAGE_TAGS, PAGE_ATTRIBUTES)

"""Text for a card: what strangers wrote means nothing to Markdown, HTML or YAML here, and machines stay unnamed."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from typing import Any
from urllib.parse import quote

LONGEST = 200  # characters of a stranger's name that are shown
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TURNS_TEXT = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"  # reorder or hide it
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_PART = r"""[^\s'",()\[\]]"""
_PATH = re.compile(rf"""(?:(?<=[\s'"=(,\[])|^)(?:file:)?(?:~|(?=/)|[A-Za-z]:)[/\\]+{_PART}*[/\\]+{_PART}+""")


def line(text: Any) -> str:
    """Returns a stranger's text as one line of visible characters.

    Args:
        text: Anything that has a text.

    Returns:
        At most 200 characters, without control characters and those that reorder what stands around them.

    Example:
        >>> line("a\\n\\tb\\u202e")
        'a b'
    """
    text = str(text).encode("utf-8", "replace").decode("utf-8")  # file names may hold what is no character
    text = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter
                   for letter in text if letter not in _TURNS_TEXT)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def code(text: Any) -> str:
    """Returns a stranger's text as a code span, which also holds in the cell of a table.

    Renderers link bare addresses in any other text, escaped or not, and disagree on bars and backticks, which are
    therefore shown as look-alikes; the metadata has the true name.

    Args:
        text: Anything that has a text.

    Returns:
        Markdown.

    Example:
        >>> code("<b>|`")
        "`<b>¦'`"
    """
    shown = line(text).replace("`", "'").replace("|", "¦")
    return f"`{shown or '(no name)'}`"


def title(text: Any) -> str:
    """Returns a name as a heading shows it.

    Args:
        text: Anything that has a text.

    Returns:
        The plain name where it is harmless, else a code span.

    Example:
        >>> title("my_run"), title("[a](b)")
        ('my\\\\_run', '`[a](b)`')
    """
    shown = line(text)
    if re.fullmatch(r"[\w .-]*\w", shown) and not re.search(r"www\.", shown, re.IGNORECASE):
        return shown.replace("_", r"\_")
    return code(text)


def fenced(text: str, language: str) -> str:
    """Returns a code block whose fence is longer than any in the text.

    Args:
        text: Its content.
        language: Such as `yaml`.

    Returns:
        Markdown.

    Example:
        >>> print(fenced("a: '```'", "yaml"))
        ````yaml
        a: '```'
        ````
    """
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def literal(text: Any) -> str:
    """Returns a stranger's text as a string of Python code.

    Args:
        text: Anything that has a text.

    Returns:
        Such as `"me/model"`.

    Example:
        >>> print(literal('a"b'))
        "a\\"b"
    """
    return json.dumps(line(text), ensure_ascii=False)


def picture(words: str, *path: str) -> str:
    """Returns a picture of the run.

    Args:
        words: What it shows; our own words.
        path: Folders and file name below the card.

    Returns:
        Markdown.

    Example:
        >>> picture("a sample", "samples", "a b#.png")
        '![a sample](samples/a%20b%23.png)'
    """
    return f"![{words}]({address(*path)})"


def address(*path: str) -> str:
    """Returns the address of a file, relative to the card.

    Args:
        path: Folders and file name.

    Returns:
        A quoted relative URL.

    Example:
        >>> address("samples", "a b.png")
        'samples/a%20b.png'
    """
    return "/".join(quote(os.fsencode(part), safe="") for part in path)


def repository(repo_id: Any, kind: str = "") -> str:
    """Returns a link to a repository of the hub.

    Args:
        repo_id: user/name; anything else is shown as code.
        kind: `datasets/`, or empty for a model.

    Returns:
        Markdown.

    Example:
        >>> repository("nvidia/mit-b0")
        '[nvidia/mit-b0](https://huggingface.co/nvidia/mit-b0)'
    """
    if not is_repo_id(repo_id):
        return code(repo_id)
    return f"[{repo_id}](https://huggingface.co/{kind}{repo_id})".replace("_", r"\_", repo_id.count("_"))


def is_repo_id(text: Any) -> bool:
    """Says whether a text is a repository's id, with its owner.

    Args:
        text: Anything.

    Returns:
        True for user/name; False for hfseg's own names of what the package ships.

    Example:
        >>> is_repo_id("me/model"), is_repo_id("hfseg/shapes-segformer"), is_repo_id("../model")
        (True, False, False)
    """
    return isinstance(text, str) and bool(REPO_ID.fullmatch(text)) and not text.startswith(("hfseg/", "shapes/"))


def public(value: Any) -> Any:
    """Returns values without tokens and without where files lie on a machine.

    Args:
        value: Texts, or any nesting of dicts and lists of them.

    Returns:
        The same, with the last part of each absolute path alone.

    Example:
        >>> public({"config": ["/home/ann/nets/small.yaml", "and/or", 3]})
        {'config': ['small.yaml', 'and/or', 3]}
    """
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(lambda found: re.split(r"[/\\]+", found[0].rstrip("/\\"))[-1], _TOKEN.sub("hf_...", value))


def number(value: float | None, digits: int = 4) -> str:
    """Returns a score for people.

    Args:
        value: The score; None where it is not defined.
        digits: After the point.

    Returns:
        Such as `0.8771`, or a dash.

    Example:
        >>> number(0.87711), number(None)
        ('0.8771', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def share(value: float) -> str:
    """Returns a share as a percentage that is never rounded to nothing.

    Args:
        value: 0 to 1.

    Returns:
        Such as `12.3 %`.

    Example:
        >>> share(0.1234), share(0.00001), share(0.0)
        ('12.3 %', '< 0.01 %', '0.0 %')
    """
    if value == 0 or value >= 0.01:
        return f"{100 * value:.1f} %"
    return "< 0.01 %" if value < 1e-4 else f"{100 * value:.2f} %"


def listing(items: list[str], most: int | None = None) -> str:
    """Returns items as a sentence lists them.

    Args:
        items: Markdown.
        most: How many at most; the others are counted.

    Returns:
        Such as `a, b and c`.

    Example:
        >>> listing(["a", "b", "c"]), listing(["a", "b", "c"], most=1)
        ('a, b and c', 'a and 2 more')
    """
    if most is not None and len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def counted(count: int, what: str) -> str:
    """Returns a count with its noun.

    Args:
        count: How many.
        what: Of what, for one of it.

    Returns:
        Such as `1 image`, `2 images`.

    Example:
        >>> counted(1, "class"), counted(1200, "image")
        ('1 class', '1,200 images')
    """
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{count:,} {what if count == 1 else plural}"

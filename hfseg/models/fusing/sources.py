"""Which version of a library's class this is: a digest of what its source does."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import textwrap
from typing import Any


def find(path: str) -> Any:
    """Imports what a path names.

    Args:
        path: "module.path:name", dots in the name going deeper.

    Returns:
        The class or function.
    """
    module, _, name = path.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


@functools.cache
def digest(original: type, fused: type) -> str:
    """Returns a digest of the sources that a fused class was written against.

    Args:
        original: The class of transformers.
        fused: The fused class, whose `reads` lists methods of `original` or "module.path:function".

    Returns:
        Twelve hexadecimal digits, indifferent to comments, docstrings, annotations and layout; "unreadable" where the
        source is not there.
    """
    try:
        texts = [_normalised(find(one) if ":" in one else getattr(original, one)) for one in fused.reads]
    except (AttributeError, ImportError, OSError, TypeError, SyntaxError):
        return "unreadable"
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _normalised(function) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            node.decorator_list = [one for one in node.decorator_list if "auto_docstring" not in ast.unparse(one)]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.unparse(tree)

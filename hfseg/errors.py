"""The one exception that means: the user can mend this."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem that the user can mend, told as what was found, what is allowed and what to do.

    The command line prints it without a traceback and exits with status 2.

    Args:
        found: What is wrong, with the file, row or value named.
        allowed: What would have been right, if that is a short list or a rule.
        fix: What to do next: a command, a recipe line, a value.

    Example:
        >>> print(UserError("crop_size is -1", "a positive number of pixels", "--augment.crop_size 256"))
        crop_size is -1
          allowed: a positive number of pixels
          to mend: --augment.crop_size 256
    """

    def __init__(self, found: str, allowed: str | None = None, fix: str | None = None):
        self.found, self.allowed, self.fix = found, allowed, fix
        super().__init__(found, allowed, fix)

    def __str__(self) -> str:
        lines = [self.found]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.fix:
            lines.append(f"  to mend: {self.fix}")
        return "\n".join(lines)


class BadSample(UserError):
    """One image or label map that cannot be used; `data.on_bad_sample: skip` passes over it.

    Args:
        sample: The file or row, as a person would look for it.
        found: What is wrong with it.
        allowed: What would have been right.
        fix: What to do.
    """

    def __init__(self, sample: str, found: str, allowed: str | None = None, fix: str | None = None):
        self.sample, self.reason = sample, found
        super().__init__(f"{sample}: {found}", allowed, fix)
        self.args = (sample, found, allowed, fix)  # so that it survives pickling out of a loader worker


class UnknownValues(BadSample):
    """A label map that holds values without a meaning: most often the labels are described wrongly, not the map."""


def one_of(value: str, allowed: Iterable[str], what: str) -> str:
    """Returns `value` if it is among `allowed`, else raises with the nearest name suggested.

    Args:
        value: The name that was given.
        allowed: The names that exist.
        what: What kind of name it is, for the message.

    Returns:
        `value`.

    Raises:
        UserError: When `value` is unknown.

    Example:
        >>> one_of("adamw", ["adamw", "sgd"], "optimizer")
        'adamw'
    """
    names = list(allowed)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    raise UserError(
        f"unknown {what} {value!r}", ", ".join(names), f"did you mean {near[0]!r}?" if near else None
    )

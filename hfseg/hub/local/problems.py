"""What the hub answers when it does not do what it was asked: a status, a sentence and a code for clients."""

from __future__ import annotations


class HubError(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        message: One sentence for the user.
        code: What clients tell errors apart by: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`.
        headers: More headers.
        body: JSON body, if it is not just the message.
    """

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, body=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers or {}), body

"""What the hub's client raises, told as what was found and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hfseg.errors import UserError

NAMES = "NAME or USER/NAME of letters, digits, '-', '_' and '.', at most 96 characters"


@contextmanager
def hub_errors(repo_id: str, what: str = "model", api=None) -> Iterator[None]:
    """Turns what huggingface_hub raises inside into a `UserError`.

    Args:
        repo_id: user/name.
        what: `model`, `dataset` or `space`.
        api: The client that is used, if not one of HF_ENDPOINT's hub with the token that is logged in.

    Raises:
        UserError: In place of the client's exceptions; others pass.

    Example:
        >>> from huggingface_hub import HfApi
        >>> with hub_errors("not a name"):
        ...     HfApi().repo_info("not a name")
        Traceback (most recent call last):
        hfseg.errors.UserError: 'not a name' is no name of a repository on the hub
          allowed: NAME or USER/NAME of letters, digits, '-', '_' and '.', at most 96 characters
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = explain(error, repo_id, what, api)
        if told is None:
            raise
        raise told from error


def explain(error: BaseException, repo_id: str, what: str = "model", api=None) -> UserError | None:
    """Says what an exception of huggingface_hub means to the user.

    Args:
        error: What was raised.
        repo_id: user/name.
        what: `model`, `dataset` or `space`.
        api: The client that was used, if not one of HF_ENDPOINT's hub with the token that is logged in.

    Returns:
        A `UserError`, or None for an exception that does not come from the hub or the way to it.
    """
    import httpx2
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    error = _inner(error)
    site = api.endpoint if api is not None else constants.ENDPOINT
    plural = {"model": "", "dataset": "datasets/", "space": "spaces/"}[what]
    token = api.token if api is not None else None
    signed_in = isinstance(token, str) or (token is not False and bool(get_token()))
    status, said = status_of(error), _said(error)
    sign_in = f"`hf auth login` with a token from {site}/settings/tokens, or set HF_TOKEN"

    if isinstance(error, HFValidationError):
        return UserError(f"{repo_id!r} is no name of a repository on the hub", NAMES)
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{repo_id} is asked of the hub, and HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE")
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and not signed_in):
        return UserError(f"{repo_id} on {site}: nobody is signed in" + _missing_hint(error, what), fix=sign_in)
    if isinstance(error, GatedRepoError):
        return UserError(f"access to {repo_id} must be asked for",
                         fix=f"ask at {site}/{plural}{repo_id}" + ("" if signed_in else f", and {sign_in}"))
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repo_id} has no such branch, tag or commit",
                         fix=f"{site}/{plural}{repo_id} lists them; leave --revision out for the newest")
    if isinstance(error, RepositoryNotFoundError) or (status == 404 and "Repository" in said):
        return UserError(f"there is no {what} {repo_id} on {site} that you can see", "a repository that exists",
                         "check the name; a private one needs its owner's token: " + sign_in)
    if status == 401:
        return UserError(f"{site} does not accept this token{_reason(said)}", fix=sign_in)
    if status == 402 or (status in (403, 413) and re.search(r"quota|storage|limit|payment", said, re.I)):
        return UserError(f"{site} has no more room for {repo_id}{_reason(said)}",
                         fix=f"free some or get more: {site}/settings/billing")
    if status in (401, 403) and getattr(error, "response", None) is None:
        return UserError(f"the storage of {site} refused the files of {repo_id}: {_first_line(error)}",
                         "a token with write access, and room for the files",
                         f"see {site}/settings/tokens and {site}/settings/billing")
    if status == 403:
        return UserError(f"your token may not do this with {repo_id}{_reason(said)}",
                         "a repository of your own or of an organization that lets you write",
                         f"a token with write access: {site}/settings/tokens; --create_pr proposes a change to others'")
    if status == 409:
        return UserError(f"the name {repo_id} is taken{_reason(said)}", fix="choose another name")
    if status == 412:
        return UserError(f"{repo_id} changed at the same moment", fix="push again")
    if status == 429:
        return UserError(f"{site} is answering too many requests{_reason(said)}", fix="wait some minutes, then again")
    if status is not None:
        where = "https://status.huggingface.co" if "huggingface.co" in site else "what its log says"
        return UserError(f"{site} answered {status} for {repo_id}{_reason(said)}",
                         fix=f"see {where}, then try again" if status >= 500 else None)
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return UserError(f"{repo_id} is not in the cache of this machine, and HF_HUB_OFFLINE is set",
                         fix="unset HF_HUB_OFFLINE, or pull it where there is a network")
    if isinstance(error, LocalEntryNotFoundError):
        return UserError(f"{repo_id} is not in the cache of this machine, and {site} does not answer",
                         fix="check the network (HF_ENDPOINT names the hub, HF_HUB_OFFLINE switches it off)")
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return UserError(f"{site} is no address of a hub", "https://huggingface.co, http://127.0.0.1:8787...",
                         "set HF_ENDPOINT, or unset it for huggingface.co")
    if _is_transport(error) or _is_transfer(error):
        return UserError(f"the way to {repo_id} on {site} failed: {_first_line(error)}",
                         fix="check the network (HF_ENDPOINT names the hub), then again; nothing is half done")
    return None


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status that an exception is about; Xet's client only tells it in its text.

    Args:
        error: What was raised.

    Returns:
        The status, or None where the hub did not answer.

    Example:
        >>> status_of(RuntimeError("Data processing error: HTTP status client error (403 Forbidden) for url"))
        403
    """
    error = _inner(error)
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code
    if isinstance(error, (RuntimeError, OSError, PermissionError)):
        found = re.search(r"\b([45]\d\d) (?:[A-Z][a-zA-Z']+)|status(?: code)?:? \(?([45]\d\d)\b", str(error))
        return int(found[1] or found[2]) if found else None
    return None


def may_pass(error: BaseException) -> bool:
    """Says whether the same call may succeed a little later.

    Args:
        error: What was raised.

    Returns:
        Whether it is worth a second try.

    Example:
        >>> may_pass(ConnectionResetError("peer")), may_pass(ValueError("no"))
        (True, False)
    """
    status = status_of(error)
    if status is not None:
        return status in (408, 409, 412, 425, 429) or status >= 500
    error = _inner(error)
    return _is_transport(error) or _is_transfer(error)


def _inner(error: BaseException) -> BaseException:
    """The client wraps what failed for one of many files in a RuntimeError that only names the file."""
    return error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error


def _is_transport(error: BaseException) -> bool:
    import httpx2

    passes = isinstance(error, (httpx2.HTTPError, ConnectionError, TimeoutError))
    return passes and not isinstance(error, httpx2.UnsupportedProtocol) and status_of(error) is None


def _is_transfer(error: BaseException) -> bool:
    """Xet's client raises bare RuntimeErrors and OSErrors."""
    if isinstance(error, OSError) and error.errno is not None:  # the disk's
        return False
    return isinstance(error, (RuntimeError, OSError)) and bool(
        re.search(r"error sending request|\bconnection|timed? ?out|data processing|\b(cas|xet)\b|consistency",
                  str(error), re.I)
    )


def _said(error: BaseException) -> str:
    return getattr(error, "server_message", None) or str(error)


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f": {lines[0][:300]}" if lines else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _missing_hint(error: BaseException, what: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    return f" (or there is no such {what})" if isinstance(error, RepositoryNotFoundError) else ""

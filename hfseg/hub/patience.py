"""Try again what may pass: a hub that fails for a while, and others who write at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session

from hfseg.errors import UserError
from hfseg.hub_errors import explain, may_pass, status_of

# Seconds for which a hub that fails is tried again, and one that this process has never heard of: a wrong address?
PATIENCE, UNHEARD = 60.0, 10.0
RACES = 100  # how often a hub where others write at the same time is tried again
# Seconds until a hub that has accepted a request and says nothing counts as one that fails: the client waits for ever.
SILENCE, CONNECTING = 100.0, 10.0

Result = TypeVar("Result")
_heard: set[str] = set()  # the hubs that have answered


def patiently(
    call: Callable[[], Result], repo_id: str, repo_type: str, api: HfApi, say: Callable[[str], None] | None = None
) -> Result:
    """Calls until it succeeds, until waiting does not help, or for a minute (seconds, if the hub never answered).

    Args:
        call: What may be repeated without harm.
        repo_id: user/name, for the message.
        repo_type: `model`, `dataset` or `space`.
        api: The client that is used.
        say: Called with a sentence about each trouble.

    Returns:
        What `call` returned.

    Raises:
        UserError: When it failed for good, with the next step.

    Example:
        >>> patiently(lambda: "done", "me/roads", "model", HfApi())
        'done'
    """
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = httpx2.Timeout(SILENCE, connect=CONNECTING)
    began, tries, races = time.monotonic(), 0, 0
    while True:
        try:
            result = call()
            _heard.add(api.endpoint)
            return result
        except UserError:
            raise
        except Exception as error:
            told = explain(error, repo_id, repo_type, api)
            if told is None:
                raise
            if status_of(error) is not None:
                _heard.add(api.endpoint)
            if status_of(error) == 412 and races < RACES:  # somebody was faster, so the hub is well
                races += 1
                time.sleep(random.uniform(0.0, 0.1 * min(races, 20)))
                continue
            tries += 1
            pause = max(_retry_after(error), min(0.25 * 2**tries, 10.0) * random.uniform(0.5, 1.0))
            limit = PATIENCE if api.endpoint in _heard else min(PATIENCE, UNHEARD)
            if not may_pass(error) or time.monotonic() - began + pause > limit:
                raise told from error
            if say:
                say(f"{told.found}; trying again in {pause:.1f} s")
            time.sleep(pause)


def _retry_after(error: BaseException) -> float:
    response = getattr(error, "response", None)
    seconds = response.headers.get("Retry-After", "") if response is not None else ""
    return float(seconds) if seconds.isdigit() else 0.0

"""The door to a repository: who is there, may they write, and is it there at all; found out before hours of work."""

from __future__ import annotations

import re

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from hfseg.errors import UserError
from hfseg.hub.patience import patiently
from hfseg.hub_errors import NAMES


def open_repo(
    repo_id: str, *, repo_type: str = "model", private: bool = False, space_sdk: str | None = None,
    create_pr: bool = False, token: str | None = None, endpoint: str | None = None,
) -> tuple[HfApi, str]:  # fmt: skip
    """Makes sure that a repository is there and can be written; creates it where it is missing.

    Args:
        repo_id: USER/NAME, or NAME for one of your own.
        repo_type: `model`, `dataset` or `space`.
        private: Whether a new repository is private; one that exists must then be.
        space_sdk: Of a new Space, `gradio`.
        create_pr: Whether a change will only be proposed: then the repository must exist, and reading it is enough.
        token: Hub token, if not the one that is logged in.
        endpoint: URL of the hub, if not HF_ENDPOINT's.

    Returns:
        A tuple of the client and the full name of the repository.

    Raises:
        UserError: With the next step: no token, a wrong one, no right, a wrong name, no hub.
    """
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo_id, re.ASCII):
        raise UserError(f"{repo_id!r} is no name of a repository on the hub", NAMES)
    api = HfApi(endpoint=endpoint, token=token)
    full = patiently(lambda: _open(api, repo_id, repo_type, private, space_sdk, create_pr), repo_id, repo_type, api)
    return api, full


def _open(api: HfApi, repo_id: str, repo_type: str, private: bool, space_sdk: str | None, create_pr: bool) -> str:
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    if create_pr:
        return api.repo_info(repo_id, repo_type=repo_type).id
    try:
        api.auth_check(repo_id, repo_type=repo_type, write=True)  # one that exists may be somebody else's
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError):
            raise
        api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True)
    else:
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise UserError(f"{repo_id} is there already, and public", "a new or private repository with --private",
                            "make it private in its settings, choose another name, or leave --private out")
    return repo_id

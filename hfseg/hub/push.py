"""Push a run directory to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hfseg.errors import UserError

# Resumable state is large and of use to nobody else.
LEFT_OUT = ["checkpoints/**", ".writing-*", ".writing-*/**", "events.out.*", "hfseg/**"]


def check_access(repo_id: str, private: bool = False, token: str | None = None) -> None:
    """Makes sure, before hours of training, that the run can be pushed in the end; creates the repository.

    Args:
        repo_id: user/name.
        private: Whether a new repository is private.
        token: Hub token, if not the one that is logged in.

    Raises:
        UserError: When there is no token, no right to write, or no hub.
    """
    try:
        HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True)
        HfApi(token=token).auth_check(repo_id, write=True)  # one that exists may be somebody else's
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"cannot write to {repo_id} on the hub: {str(error).splitlines()[0][:300]}",
                        "a repository that your token may write to",
                        "log in with `hf auth login`, or leave hub.push_to_hub out") from error


def push_run(run: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Uploads a run directory in one commit, without its checkpoints.

    Args:
        run: The run directory.
        repo_id: user/name.
        private: Whether a new repository is private.
        token: Hub token, if not the one that is logged in.

    Returns:
        The URL of the commit.

    Raises:
        UserError: When the hub refuses or cannot be reached; the run directory is untouched.
    """
    check_access(repo_id, private, token)
    try:
        commit = HfApi(token=token).upload_folder(
            folder_path=run, repo_id=repo_id, ignore_patterns=LEFT_OUT, commit_message="Upload from hfseg"
        )
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the push to {repo_id} failed: {str(error).splitlines()[0][:300]}",
                        fix=f"{run} is whole; push it again once the hub answers") from error
    return commit.commit_url

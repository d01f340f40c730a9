"""One commit of many files: whole or not at all, never twice, and none when nothing changed."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hfseg.hub_errors import explain, hub_errors, may_pass, status_of

# For how long a hub that fails is tried again, and how often a hub where others write at the same time, is.
PATIENCE, RACES = 60.0, 100


@dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Attributes:
        repo_id: user/name.
        oid: The commit, 40 hex digits, that now holds the files.
        url: Where a browser shows it: the pull request's page, or the repository's.
        changed: How many files the commit changed; 0 when all were there already and nothing was committed.
    """

    repo_id: str
    oid: str
    url: str
    changed: int


def commit(
    api: HfApi, repo_id: str, files: Mapping[str, Path | bytes], *, repo_type: str = "model",
    delete: Iterable[str] = (), message: str, revision: str | None = None, create_pr: bool = False,
    say: Callable[[str], None] | None = None,
) -> Pushed:  # fmt: skip
    """Commits files in one step, so that nobody ever sees a part of them.

    A hub that fails is tried again for a minute. Each try names the commit that it builds on: where the answer to a
    commit was lost, the next try finds the files there and commits nothing, and where somebody else was faster, it
    builds on theirs.

    Args:
        api: The client, from `open_repo`.
        repo_id: user/name.
        files: Paths in the repository, and what goes there: a local file, or bytes.
        repo_type: `model`, `dataset` or `space`.
        delete: Paths in the repository to remove in the same commit, where they exist.
        message: The commit's title.
        revision: Branch; it is made where it does not exist. None is the main branch.
        create_pr: Whether to propose the change as a pull request in place of making it.
        say: Called with a sentence about each trouble.

    Returns:
        A `Pushed`.

    Raises:
        UserError: When the hub refuses or stays unreachable; its head is then what it was.
    """
    say = say or (lambda _: None)
    contents = {name: CommitOperationAdd(name, file if isinstance(file, bytes) else str(file))
                for name, file in files.items()}  # fmt: skip
    where = {"repo_id": repo_id, "repo_type": repo_type}
    if revision and not create_pr:
        with hub_errors(repo_id, repo_type, api):
            api.create_branch(branch=revision, exist_ok=True, **where)
    began, tries, races, sent, known_requests = time.monotonic(), 0, 0, 0, None
    while True:
        try:
            if create_pr and known_requests is None:
                known_requests = _requests(api, **where)
            head = api.repo_info(revision=revision, **where).sha
            changed, removed = _difference(api, where, head, contents, delete)
            if not changed and not removed:
                return Pushed(repo_id, head, f"{api.endpoint}/{_prefix(repo_type)}{repo_id}", sent)
            if sent and create_pr and (request := _landed_request(api, where, contents, known_requests)):
                return Pushed(*request, sent)
            operations = [CommitOperationAdd(name, contents[name].path_or_fileobj) for name in changed]
            operations += [CommitOperationDelete(name) for name in removed]
            sent = len(operations)
            made = api.create_commit(operations=operations, commit_message=message, revision=revision,
                                     parent_commit=head, create_pr=create_pr, **where)  # fmt: skip
            return Pushed(repo_id, made.oid, made.pr_url or made.commit_url, sent)
        except Exception as error:
            tries += 1
            told = explain(error, repo_id, repo_type, api)
            if told is None:
                raise
            if status_of(error) == 412:
                races += 1
                if races <= RACES:
                    time.sleep(random.uniform(0.0, 0.1 * min(races, 20)))
                    continue
            waited = time.monotonic() - began
            pause = max(_retry_after(error), min(0.25 * 2**tries, 10.0) * random.uniform(0.5, 1.0))
            if not may_pass(error) or waited + pause > PATIENCE:
                raise told from error
            say(f"{told.found}; trying again in {pause:.0f} s")
            time.sleep(pause)


def _difference(api: HfApi, where: dict, head: str, contents: Mapping[str, CommitOperationAdd], delete: Iterable[str]):
    """Returns which files differ from those of a commit, and which of those to delete it has."""
    delete, there = list(delete), {}
    names = [*contents, *delete]
    for start in range(0, len(names), 500):
        for entry in api.get_paths_info(paths=names[start:start + 500], revision=head, **where):
            there[entry.path] = getattr(getattr(entry, "lfs", None), "sha256", None) or getattr(entry, "blob_id", None)
    changed = [name for name, new in contents.items() if not _is_same(there.get(name), new)]
    return changed, [name for name in delete if name in there]


def _is_same(there: str | None, new: CommitOperationAdd) -> bool:
    """Compares with what the hub calls a file: the SHA-256 of a large one, git's SHA-1 of another."""
    if there is None or len(there) == 64:
        return there == new.upload_info.sha256.hex()
    digest = hashlib.sha1(f"blob {new.upload_info.size}\0".encode(), usedforsecurity=False)
    with new.as_file() as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return there == digest.hexdigest()


def _requests(api: HfApi, **where) -> set[int]:
    return {request.num for request in api.get_repo_discussions(discussion_type="pull_request", **where)}


def _landed_request(api: HfApi, where: dict, contents, known: set[int]) -> tuple[str, str, str] | None:
    """Finds the pull request of an earlier try whose answer was lost."""
    for number in sorted(_requests(api, **where) - known):
        head = api.repo_info(revision=f"refs/pr/{number}", **where).sha
        if _difference(api, where, head, contents, ())[0] == []:
            url = f"{api.endpoint}/{_prefix(where['repo_type'])}{where['repo_id']}/discussions/{number}"
            return where["repo_id"], head, url
    return None


def _prefix(repo_type: str) -> str:
    return "" if repo_type == "model" else f"{repo_type}s/"


def _retry_after(error: BaseException) -> float:
    response = getattr(error, "response", None)
    seconds = response.headers.get("Retry-After", "") if response is not None else ""
    return float(seconds) if seconds.isdigit() else 0.0

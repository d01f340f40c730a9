"""One commit of many files: whole or not at all, never twice, and none when nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from hfseg.errors import UserError
from hfseg.hub.patience import patiently


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
    delete: Callable[[str], bool] | None = None, message: str, revision: str | None = None, create_pr: bool = False,
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
        delete: Says of another path in the repository whether the same commit removes it.
        message: The commit's title.
        revision: Branch; it is made where it does not exist. None is the main branch.
        create_pr: Whether to propose the change as a pull request in place of making it.
        say: Called with a sentence about each trouble.

    Returns:
        A `Pushed`.

    Raises:
        UserError: When the hub refuses or stays unreachable; its head is then what it was.
    """
    contents = {name: CommitOperationAdd(name, file if isinstance(file, bytes) else str(file))
                for name, file in files.items()}  # fmt: skip
    where = {"repo_id": repo_id, "repo_type": repo_type}
    if revision and not create_pr and not revision.startswith("refs/"):
        patiently(lambda: _make_branch(api, where, revision), repo_id, repo_type, api, say)
    known = patiently(lambda: _requests(api, where), repo_id, repo_type, api, say) if create_pr else set()
    sent = 0

    def attempt() -> Pushed:
        nonlocal sent
        head = api.repo_info(revision=revision, **where).sha
        changed, removed = _difference(api, where, head, contents, delete)
        if not changed and not removed:
            return Pushed(repo_id, head, f"{api.endpoint}/{_prefix(repo_type)}{repo_id}", sent)
        if sent and create_pr and (request := _landed_request(api, where, contents, delete, known)):
            return Pushed(*request, sent)
        # A second try asks anew what the hub holds, which operations that were sent do not.
        operations = [CommitOperationAdd(name, contents[name].path_or_fileobj) if sent else contents[name]
                      for name in changed]  # fmt: skip
        operations += [CommitOperationDelete(name) for name in removed]
        sent = len(operations)
        made = api.create_commit(operations=operations, commit_message=message, revision=revision,
                                 parent_commit=head, create_pr=create_pr, **where)  # fmt: skip
        return Pushed(repo_id, made.oid, made.pr_url or made.commit_url, sent)

    return patiently(attempt, repo_id, repo_type, api, say)


def _make_branch(api: HfApi, where: dict, name: str) -> None:
    references = api.list_repo_refs(**where)
    if name in {reference.name for reference in references.tags}:
        raise UserError(f"{name} is a tag of {where['repo_id']}, which stays where it is", "a branch",
                        "choose another --revision")
    if name not in {reference.name for reference in references.branches}:
        api.create_branch(branch=name, exist_ok=True, **where)


def _difference(api: HfApi, where: dict, head: str, contents: Mapping[str, CommitOperationAdd],
                delete: Callable[[str], bool] | None) -> tuple[list[str], list[str]]:
    """Returns which files differ from those of a commit, and which it has that are to go."""
    there = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
             for entry in api.list_repo_tree(recursive=True, revision=head, **where) if isinstance(entry, RepoFile)}
    changed = [name for name, new in contents.items() if not _is_same(there.get(name), new)]
    return changed, [name for name in there if delete and name not in contents and delete(name)]


def _is_same(there: str | None, new: CommitOperationAdd) -> bool:
    """Compares with what the hub calls a file: the SHA-256 of a large one, git's SHA-1 of another."""
    if there is None or len(there) == 64:
        return there == new.upload_info.sha256.hex()
    digest = hashlib.sha1(f"blob {new.upload_info.size}\0".encode(), usedforsecurity=False)
    with new.as_file() as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return there == digest.hexdigest()


def _requests(api: HfApi, where: dict) -> set[int]:
    return {request.num for request in api.get_repo_discussions(discussion_type="pull_request", **where)}


def _landed_request(api: HfApi, where: dict, contents, delete, known: set[int]) -> tuple[str, str, str] | None:
    """Finds the pull request of an earlier try whose answer was lost."""
    for number in sorted(_requests(api, where) - known):
        head = api.repo_info(revision=f"refs/pr/{number}", **where).sha
        if _difference(api, where, head, contents, delete) == ([], []):
            url = f"{api.endpoint}/{_prefix(where['repo_type'])}{where['repo_id']}/discussions/{number}"
            return where["repo_id"], head, url
    return None


def _prefix(repo_type: str) -> str:
    return "" if repo_type == "model" else f"{repo_type}s/"

"""Pull a model or a data set from the hub, and make sure that every file arrived as it was pushed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from hfseg.errors import UserError
from hfseg.hub.patience import patiently
from hfseg.hub_errors import hub_errors
from hfseg.models.hub_files import PICKLED, damage, has_hash, is_whole, refuse_pickled, remove_cached

# Says, in a folder that was pulled, what it holds; beside the client's own notes.
OWNER = ".cache/huggingface/hfseg-pull.json"


def pull(
    repo_id: str, *, revision: str | None = None, local_dir: str | Path | None = None, repo_type: str = "model",
    token: str | None = None, endpoint: str | None = None, say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Downloads a repository and compares every file's hash with the hub's.

    Pickled files are left out. Files that arrived damaged are downloaded once more, and then refused. With
    HF_HUB_OFFLINE, what the cache holds is checked and returned.

    Args:
        repo_id: user/name.
        revision: Branch, tag or commit.
        local_dir: Folder to put the files into; None leaves them in the hub's cache.
        repo_type: `model`, `dataset` or `space`.
        token: Hub token, if not the one that is logged in.
        endpoint: URL of the hub, if not HF_ENDPOINT's.
        say: Called with what a person wants to know.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: When there is no such repository, the hub cannot be reached, a file stays damaged, the weights are
            pickled, or the folder holds other files.

    Example:
        >>> import hfseg, tempfile
        >>> from hfseg.models.configs import SHIPPED
        >>> with tempfile.TemporaryDirectory() as root, hfseg.LocalHub(root) as hub:
        ...     at_hub = {"endpoint": hub.url, "token": hub.token, "say": lambda text: None}
        ...     pushed = hfseg.push(SHIPPED / "shapes-segformer", "me/shapes", **at_hub)
        ...     (hfseg.pull("me/shapes", local_dir=f"{root}/copy", **at_hub) / "labels.json").is_file()
        True
    """
    api = HfApi(endpoint=endpoint, token=token)
    asked = {"repo_id": repo_id, "revision": revision, "repo_type": repo_type}
    if constants.HF_HUB_OFFLINE:
        return _from_cache(asked, local_dir, api, say)
    folder = Path(local_dir).expanduser() if local_dir is not None else None
    owner = f"{repo_type} {repo_id}"
    before = _check_target(folder, owner) if folder is not None else {}
    damaged: list[str] = []

    def attempt() -> tuple[Path, str, dict[str, str], list[str]] | None:
        info = api.repo_info(files_metadata=True, **asked)
        hashes = {file.rfilename: (file.lfs and file.lfs.sha256) or file.blob_id or "" for file in info.siblings}
        left_out = [name for name in hashes if repo_type == "model" and name.endswith(PICKLED)]
        if left_out:
            refuse_pickled(repo_id, info.sha, token, api=api)
            hashes = {name: value for name, value in hashes.items() if name not in left_out}
        how = {**asked, "ignore_patterns": left_out or None, "token": token, "endpoint": endpoint}
        if folder is not None:
            _mark(folder, owner, {name: [*before.get(name, []), value] for name, value in {
                **dict.fromkeys(before, ""), **hashes}.items()})  # whichever of them a pull that ends here leaves
            where = Path(snapshot_download(**{**how, "revision": info.sha}, local_dir=folder))
        else:
            where = Path(snapshot_download(**how))
            if where.name != info.sha:  # pushed to between the two calls, or an older one of the cache
                raise ConnectionError(f"the hub has {info.sha[:12]} and gives {where.name[:12]}")
        if wrong := [name for name, value in hashes.items() if not has_hash(where / name, value)]:
            for name in wrong:
                (remove_cached if folder is None else Path.unlink)(where / name)
            if damaged:
                raise damage(repo_id, wrong)
            damaged.extend(wrong)
            return None
        return where, info.sha, hashes, left_out

    while (done := patiently(attempt, repo_id, repo_type, api, say)) is None:
        say(f"{', '.join(damaged)} arrived damaged: downloading again")
    where, commit_id, hashes, left_out = done
    if folder is not None:
        for name in set(before) - set(hashes):  # an earlier revision's
            (folder / name).unlink(missing_ok=True)
        _mark(folder, owner, {name: [value] for name, value in hashes.items()})
    for name in left_out:
        say(f"left out: {name}, which is pickled and can run code when it is read")
    say(f"{repo_id} at {commit_id[:12]}: {len(hashes)} files in {where}, every hash as the hub states it")
    return where


def _from_cache(asked: dict, local_dir: str | Path | None, api: HfApi, say: Callable[[str], None]) -> Path:
    repo_id = asked["repo_id"]
    if local_dir is not None:
        raise UserError("--local_dir is filled by the hub, and HF_HUB_OFFLINE is set",
                        fix="leave --local_dir out for what the cache holds, or unset HF_HUB_OFFLINE")
    with hub_errors(repo_id, asked["repo_type"], api):
        folder = Path(snapshot_download(**asked, local_files_only=True))
    damaged = [file for file in folder.rglob("*") if file.is_file() and not is_whole(file)]
    if damaged:
        for file in damaged:
            remove_cached(file)
        raise damage(repo_id, [file.relative_to(folder).as_posix() for file in damaged])
    say(f"{repo_id} at {folder.name[:12]}, from the cache: {folder}")
    return folder


def _check_target(folder: Path, owner: str) -> dict[str, list[str]]:
    """Refuses a folder with anything that a pull would spoil; returns the hashes of an earlier pull's files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--local_dir {folder} is a file", "a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}
    mark = json.loads((folder / OWNER).read_text(encoding="utf-8")) if (folder / OWNER).is_file() else {}
    if mark.get("holds") != owner:
        raise UserError(f"--local_dir {folder} holds {mark.get('holds', 'other files')}",
                        "a new or empty folder, or one of an earlier pull", f"choose another folder for {owner}")
    edited = [name for name, hashes in mark["files"].items()
              if (folder / name).is_file() and not any(has_hash(folder / name, value) for value in hashes if value)]
    if edited:
        raise UserError(f"{', '.join(edited[:5])} in --local_dir {folder} changed since the pull that wrote "
                        f"{'it' if len(edited) == 1 else 'them'}", "files as they were pulled",
                        "choose another folder, or remove what you do not need")
    return mark["files"]


def _mark(folder: Path, owner: str, files: dict[str, list[str]]) -> None:
    try:
        (folder / OWNER).parent.mkdir(parents=True, exist_ok=True)
        (folder / OWNER).write_text(json.dumps({"holds": owner, "files": files}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--local_dir {folder} cannot be written: {error.strerror}", "a writable folder") from error

"""Pull a model or a data set from the hub, and make sure that every file arrived as it was pushed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

from hfseg.errors import UserError
from hfseg.hub.commit import PATIENCE
from hfseg.hub_errors import explain, hub_errors, may_pass
from hfseg.models.hub_files import PICKLED, damage, has_hash, is_whole, refuse_pickled, remove_cached

# Says, in a folder that was pulled, what it holds; beside the client's own notes.
OWNER = ".cache/huggingface/hfseg-pull.txt"


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
    target = Path(local_dir).expanduser() if local_dir is not None else None
    if target is not None:
        _check_target(target, f"{repo_type} {repo_id}")
    asked = {"revision": revision, "repo_type": repo_type}
    api = HfApi(endpoint=endpoint, token=token)
    download = {"local_dir": target, "token": token, "endpoint": endpoint}
    if constants.HF_HUB_OFFLINE:
        with hub_errors(repo_id, repo_type, api):
            folder = Path(snapshot_download(repo_id, local_files_only=True, **asked, **download))
        names = [file for file in folder.rglob("*") if file.is_file()]
        if damaged := [file for file in names if not is_whole(file)]:
            raise damage(repo_id, [file.relative_to(folder).as_posix() for file in damaged])
        return folder

    began, tries, refused = time.monotonic(), 0, False
    while True:
        try:
            info = api.repo_info(repo_id, files_metadata=True, **asked)
            hashes = {file.rfilename: (file.lfs and file.lfs.sha256) or file.blob_id for file in info.siblings}
            left_out = [name for name in hashes if repo_type == "model" and name.endswith(PICKLED)]
            if left_out:
                refuse_pickled(repo_id, info.sha, token, api=api)
            if target is not None:
                (target / OWNER).parent.mkdir(parents=True, exist_ok=True)
                (target / OWNER).write_text(f"{repo_type} {repo_id}\n", encoding="utf-8")
            folder = Path(snapshot_download(repo_id, ignore_patterns=left_out or None, **asked, **download))
            if target is None and folder.name != info.sha:  # pushed to between the two calls
                continue
            wanted = {name: value for name, value in hashes.items() if name not in left_out}
            damaged = [name for name, value in wanted.items() if not has_hash(folder / name, value or "")]
            if not damaged:
                break
            for name in damaged:
                (remove_cached if target is None else Path.unlink)(folder / name)
            if refused:
                raise damage(repo_id, damaged)
            refused = True
            say(f"{', '.join(damaged)} arrived damaged: downloading again")
        except (UserError, EntryNotFoundError):
            raise
        except Exception as error:
            tries += 1
            told = explain(error, repo_id, repo_type, api)
            if told is None:
                raise
            pause = min(0.25 * 2**tries, 10.0) * random.uniform(0.5, 1.0)
            waited = time.monotonic() - began
            if isinstance(error, OfflineModeIsEnabled) or not may_pass(error) or waited + pause > PATIENCE:
                raise told from error
            say(f"{told.found}; trying again in {pause:.0f} s")
            time.sleep(pause)
    for name in left_out:
        say(f"left out: {name}, which is pickled and can run code when it is read")
    say(f"{repo_id} at {info.sha[:12]}: {len(wanted)} files in {folder}, every hash as the hub states it")
    return folder


def _check_target(folder: Path, owner: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--local_dir {folder} is a file", "a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    mark = folder / OWNER
    holds = mark.read_text(encoding="utf-8").strip() if mark.is_file() else "other files"
    if holds != owner:
        raise UserError(f"--local_dir {folder} holds {holds}", "a new or empty folder, or one of an earlier pull",
                        f"choose another folder for {owner}")

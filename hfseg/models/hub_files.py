"""Weights from the hub: hashed against what the hub said they are, and never pickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from hfseg.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def find_weights(repo_id: str, revision: str | None = None, token: str | None = None) -> str | None:
    """Finds the weights of a repository, downloads them into the cache unless they lie there, and checks their hashes.

    The client compares sizes only, so a flipped bit would go unnoticed. A damaged file is removed from the cache.
    Many old repositories have pickled weights, and safetensors in a pull request of the hub's converter: these serve.

    Args:
        repo_id: user/name.
        revision: Branch, tag or commit.
        token: Hub token, if not the one that is logged in.

    Returns:
        The revision that has them: `revision`, or the converter's `refs/pr/N`.

    Raises:
        UserError: When a file is damaged, or when the repository has pickled weights alone.
        OSError: The client's own, for all else.
    """
    damaged: list[Path] = []
    for _ in range(2):
        try:
            revision, files = _locate(repo_id, revision, token)
        except LocalEntryNotFoundError:
            if not damaged:
                raise
            break
        damaged = [file for file in files if not is_whole(file, repo_id, revision, token)]
        if not damaged:
            return revision
        for file in damaged:  # so that the second round downloads them again
            remove_cached(file)
    raise damage(repo_id, [file.name for file in damaged])


def _locate(repo_id: str, revision: str | None, token: str | None) -> tuple[str | None, list[Path]]:
    unreached = None
    try:
        files = _download(repo_id, revision, token)
    except LocalEntryNotFoundError as error:  # neither the hub nor the cache has it
        files, unreached = None, error
    if files is None and revision in (None, "main") and (request := _converted(repo_id, token)):
        revision = request
        files = _download(repo_id, revision, token)
    if files is None and unreached:
        raise unreached
    if files is None:
        refuse_pickled(repo_id, revision, token)
        raise UserError(f"{repo_id} has no weights", f"{WEIGHTS}, or {INDEX} and what it lists",
                        "check the revision, or ask its owner")
    return revision, files


def _download(repo_id: str, revision: str | None, token: str | None) -> list[Path] | None:
    def get(name: str) -> Path:
        return Path(hf_hub_download(repo_id, name, revision=revision, token=token))

    unreached = None
    for name in (WEIGHTS, INDEX):
        try:
            found = get(name)
            break
        except LocalEntryNotFoundError as error:
            unreached = error
        except EntryNotFoundError:
            continue
    else:
        if unreached:
            raise unreached
        return None
    if name == WEIGHTS:
        return [found]
    return [found, *map(get, sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values())))]


def _converted(repo_id: str, token: str | None) -> str | None:
    """Finds the pull request of the hub's converter; with no network, the one that is in the cache."""
    try:
        for request in HfApi(token=token).get_repo_discussions(repo_id, discussion_type="pull_request"):
            if request.author == "SFconvertbot" and request.status == "open" and "safetensors" in request.title:
                return request.git_reference
    except (OSError, httpx2.HTTPError):
        cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
        for reference in sorted((cache / "refs" / "refs" / "pr").glob("*")):
            return f"refs/pr/{reference.name}"
    return None


def damage(repo_id: str, names: Iterable[str]) -> UserError:
    """Returns the message about files that are not what the hub says they are.

    Args:
        repo_id: user/name.
        names: The files.

    Returns:
        An error to raise.
    """
    return UserError(
        f"{', '.join(names)} of {repo_id} arrived damaged: the hash is not the one that the hub states",
        "files exactly as they were pushed",
        "try again: the damaged copy was removed. If it stays, the network or the hub's storage is at fault",
    )


def is_whole(
    file: Path, repo_id: str | None = None, revision: str | None = None, token: str | None = None
) -> bool:
    """Says whether a file of the hub's cache is what the hub said it is.

    Args:
        file: A file of a snapshot: a link to a blob whose name is its hash; where there are no links, the hub is asked.
        repo_id: user/name, to ask with.
        revision: Branch, tag or commit.
        token: Hub token, if not the one that is logged in.

    Returns:
        False only for a file whose hash is known and another.
    """
    blob = Path(os.path.realpath(file))
    if blob.parent.name == "blobs":
        return has_hash(blob, blob.name)
    try:
        [entry] = HfApi(token=token).get_paths_info(repo_id, [file.name], revision=revision) if repo_id else [None]
    except (OSError, ValueError, httpx2.HTTPError):
        return True
    return entry is None or has_hash(file, entry.lfs.sha256 if entry.lfs else entry.blob_id)


def has_hash(file: Path, expected: str) -> bool:
    """Compares a file with a hash of the hub's.

    Args:
        file: The file.
        expected: SHA-256 (64 hex digits), or git's SHA-1 of a small file (40).

    Returns:
        Whether it matches; True for anything that is no such hash.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a").write_bytes(b"hello\\n")
        ...     has_hash(Path(folder) / "a", "ce013625030ba8dba906f756967f9e9ca394464a")
        True
    """
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", expected):
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return True
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == expected


def remove_cached(file: Path) -> None:
    """Removes a file of the hub's cache, so that the next call downloads it again.

    Args:
        file: A file of a snapshot.
    """
    Path(os.path.realpath(file)).unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def refuse_pickled(repo_id: str, revision: str | None, token: str | None, api: HfApi | None = None) -> None:
    """Raises where a repository has weights that can only be read by running what is in them.

    Args:
        repo_id: user/name.
        revision: Branch, tag or commit.
        token: Hub token, if not the one that is logged in.
        api: The client, if not one of HF_ENDPOINT's hub.

    Raises:
        UserError: With the way out.
    """
    names = (api or HfApi(token=token)).list_repo_files(repo_id, revision=revision)
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{repo_id} has its weights in pickled files alone ({', '.join(pickled[:3])}), which can run code when "
            "they are read", WEIGHTS,
            "ask its owner for safetensors (https://huggingface.co/spaces/safetensors/convert proposes them), or, if "
            f"you trust it: python -c 'from transformers import AutoModelForSemanticSegmentation as M; "
            f"M.from_pretrained(\"{repo_id}\", use_safetensors=False).save_pretrained(\"COPY\")', and use COPY",
        )

"""What the hub tells about a repository: the answer to `model_info` and its like, and what can be searched."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any

from hfseg.hub.local.card_reading import card_data, tags_of
from hfseg.hub.local.files import Files, pointer
from hfseg.hub.local.history import Commit, Entry, find_entry, find_revision, list_files, read_file
from hfseg.hub.local.store import Repo

# What transformers' pipeline() asks the hub: the task of a model whose card does not name it.
_TASKS = {
    "ForSemanticSegmentation": "image-segmentation", "ForInstanceSegmentation": "image-segmentation",
    "ForUniversalSegmentation": "image-segmentation", "ForImageSegmentation": "image-segmentation",
    "ForSegmentation": "image-segmentation", "ForObjectDetection": "object-detection",
    "ForImageClassification": "image-classification", "ForDepthEstimation": "depth-estimation",
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering", "ForMaskedLM": "fill-mask", "ForCausalLM": "text-generation",
}  # fmt: skip
_SMALL = 1 << 20  # cards and configs above that are not read


def describe(
    db: sqlite3.Connection, files: Files, repo: Repo, revision: str = "main", *, blobs: bool = False
) -> dict[str, Any]:
    """Returns all that the hub tells about a repository.

    Args:
        db: Connection.
        files: The contents.
        repo: The repository.
        revision: Branch, tag or commit.
        blobs: Whether to tell size and hashes of each file.

    Returns:
        What `model_info`, `dataset_info` or `space_info` read.
    """
    head = find_revision(db, repo, revision)
    entries = list_files(db, head.tree)
    data = card_data(text_of(db, files, head, "README.md"))
    told: dict[str, Any] = {
        "_id": f"{repo.id:024x}", "id": repo.name, "author": repo.namespace, "sha": head.oid,
        "lastModified": head.created, "createdAt": repo.created, "private": repo.private, "gated": repo.gated,
        "disabled": False, "downloads": 0, "downloadsAllTime": 0, "likes": 0, "trendingScore": 0, "cardData": data,
        "siblings": [_sibling(entry, blobs) for entry in entries], "usedStorage": _stored(db, repo),
    }  # fmt: skip
    if repo.type == "model":
        config = _config(text_of(db, files, head, "config.json"))
        data = {**_model_facts(config, entries), **{k: v for k, v in data.items() if v is not None}}
        told |= {"modelId": repo.name, "config": config, "library_name": data.get("library_name"),
                 "pipeline_tag": data.get("pipeline_tag"), "model-index": data.get("model-index"),
                 "transformersInfo": _transformers_info(config, data), "spaces": [],
                 "widgetData": data.get("widget"), "mask_token": data.get("mask_token"), "securityRepoStatus": None,
                 "evalResults": None, "baseModels": None, "childrenModelCount": 0}  # fmt: skip
    elif repo.type == "dataset":
        told |= {"description": data.get("pretty_name"), "citation": None, "paperswithcode_id":
                 data.get("paperswithcode_id"), "mainSize": sum(entry.size for entry in entries)}  # fmt: skip
    else:
        sdk = data.get("sdk") or repo.data.get("sdk")
        data = {**data, "sdk": sdk}
        told |= {"sdk": sdk, "runtime": runtime(db, repo), "subdomain": subdomain(repo), "host": None,
                 "models": data.get("models") or [], "datasets": data.get("datasets") or [],
                 "region": "us"}  # fmt: skip
    told["tags"] = tags_of(data, repo.type, [entry.path for entry in entries])
    return {name: value for name, value in told.items() if value is not None}


def narrowed(told: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """Keeps of a description what was asked for by `expand`."""
    return {name: value for name, value in told.items() if name in ("_id", "id", "modelId", *wanted)}


def text_of(db: sqlite3.Connection, files: Files, commit: Commit, path: str) -> str:
    """Returns a small text file of a commit; nothing where it is missing, large or no text."""
    entry = find_entry(db, commit.tree, path)
    if entry is None or entry.is_folder or entry.size > _SMALL:
        return ""
    return read_file(files, entry).decode("utf-8", "replace")


def lfs_of(entry: Entry) -> dict[str, Any] | None:
    """Returns what the hub tells about a large file."""
    if entry.sha256 is None:
        return None
    return {"oid": entry.sha256, "size": entry.size, "pointerSize": len(pointer(entry.sha256, entry.size))}


def is_called(name: str, search: str, author: str) -> bool:
    """Says whether a repository's name is one that was searched for.

    Args:
        name: namespace/name.
        search: Words that must all be in it.
        author: Its namespace.

    Returns:
        Whether it is.

    Example:
        >>> is_called("me/net", "NET", ""), is_called("me/net", "", "you")
        (True, False)
    """
    words = re.split(r"\s+", search.lower().strip())
    return all(word in name.lower() for word in words) and author.lower() in ("", name.lower().split("/")[0])


def runtime(db: sqlite3.Connection, repo: Repo) -> dict[str, Any]:
    """Returns the state of a Space; none runs on a local hub."""
    kept = repo.data.get("runtime", {})
    stage = kept.get("stage") or ("NO_APP_FILE" if _has_no_app(db, repo) else "STOPPED")
    hardware = kept.get("hardware")
    return {"stage": stage, "hardware": {"current": None, "requested": hardware}, "storage": kept.get("storage"),
            "gcTimeout": kept.get("sleep"), "replicas": {"current": 0, "requested": 1}, "devMode": False,
            "volumes": kept.get("volumes") or None, "domains": []}  # fmt: skip


def subdomain(repo: Repo) -> str:
    """Returns the first part of the name of a Space's own host."""
    return re.sub(r"[^a-z0-9]+", "-", repo.name.lower()).strip("-")


def _has_no_app(db: sqlite3.Connection, repo: Repo) -> bool:
    tree = find_revision(db, repo, "main").tree
    return not any(find_entry(db, tree, name) for name in ("app.py", "index.html", "Dockerfile"))


def _sibling(entry: Entry, blobs: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        told |= {"size": entry.size, "blobId": entry.oid}
        if lfs := lfs_of(entry):
            told["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return told


def _stored(db: sqlite3.Connection, repo: Repo) -> int:
    return db.execute("SELECT coalesce(sum(size), 0) FROM objects WHERE repo = ?", (repo.id,)).fetchone()[0]


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    wanted = ("architectures", "model_type", "auto_map", "quantization_config")
    return {name: config[name] for name in wanted if name in config} if isinstance(config, dict) else {}


def _model_facts(config: dict[str, Any], entries: list[Entry]) -> dict[str, Any]:
    """What a model's files say where its card is silent."""
    facts: dict[str, Any] = {}
    if config.get("model_type"):
        facts["library_name"] = "transformers"
    for architecture in config.get("architectures") or []:
        for ending, task in _TASKS.items():
            if isinstance(architecture, str) and architecture.endswith(ending):
                facts.setdefault("pipeline_tag", task)
    return facts


def _transformers_info(config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any] | None:
    if not config.get("model_type") or data.get("library_name") != "transformers":
        return None
    return {"auto_model": "AutoModel", "pipeline_tag": data.get("pipeline_tag")}

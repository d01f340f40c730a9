"""Push a run directory to the hub: everything a user needs, in one commit, and nothing of this machine."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hfseg.errors import UserError
from hfseg.hub.access import open_repo
from hfseg.hub.card import card_files, without_paths
from hfseg.hub.commit import Pushed, commit
from hfseg.hub_errors import hub_errors
from hfseg.recipe import to_yaml
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import CARD, LABELS, LOG, RECIPE, RESULTS, SAMPLES

# What a model's repository holds. Checkpoints, trackers' files, predictions and notes stay at home.
PUBLISHED = ("*.safetensors", "*.safetensors.index.json", "config.json", "*processor_config.json", LABELS, RECIPE,
             RESULTS, LOG, CARD, "LICENSE*", "*.png", "*.jpg", f"{SAMPLES}/*.png",
             f"{SAMPLES}/inputs/*.png")  # fmt: skip
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{24,}\b")


def push(
    run: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, create_pr: bool = False,
    tag: str | None = None, message: str | None = None, space: bool = False, token: str | None = None,
    endpoint: str | None = None, say: Callable[[str], None] = print,
) -> Pushed:  # fmt: skip
    """Pushes a run directory, or any folder that `save_pretrained` wrote, in one commit.

    Weights, configuration, processor, labels, recipe, results, log, samples and card go; checkpoints never. Paths of
    this machine are taken out of the recipe. What is there already is not sent again, and where nothing changed, no
    commit is made.

    Args:
        run: The run directory.
        repo_id: USER/NAME, or NAME for one of your own; it is created where it is missing.
        private: Whether a new repository is private.
        revision: Branch; it is made where it does not exist.
        create_pr: Whether to propose the change as a pull request.
        tag: Name of a tag to put on the commit.
        message: The commit's title.
        space: Whether to push a Space of the same name, too, that serves the model in a browser.
        token: Hub token, if not the one that is logged in.
        endpoint: URL of the hub, if not HF_ENDPOINT's.
        say: Called with what a person wants to know.

    Returns:
        A `Pushed`: commit, URL, and how many files changed.

    Raises:
        UserError: When the folder is no model, holds a token, or the hub refuses; the hub's head is what it was.

    Example:
        >>> import hfseg, tempfile
        >>> from hfseg.models.configs import SHIPPED
        >>> with tempfile.TemporaryDirectory() as root, hfseg.LocalHub(root) as hub:
        ...     at_hub = {"endpoint": hub.url, "token": hub.token, "say": lambda text: None}
        ...     pushed = hfseg.push(SHIPPED / "shapes-segformer", "me/shapes", **at_hub)
        ...     pushed.changed > 0, hfseg.push(SHIPPED / "shapes-segformer", "me/shapes", **at_hub).changed
        (True, 0)
    """
    folder = Path(run).expanduser()
    check_folder(folder)
    files = published(folder)  # refuses secrets before anything is made
    api, repo_id = open_repo(repo_id, private=private, create_pr=create_pr, token=token, endpoint=endpoint)
    if tag:
        _check_tag(api, repo_id, tag, revision, create_pr)
    if RESULTS in files and RECIPE in files:
        files |= card_files(folder, repo_id)[0]  # with this name in its examples; the run stays as it is
    delete = [] if create_pr else outdated(api, repo_id, files, revision)
    pushed = commit(api, repo_id, files, delete=delete, message=message or f"Model from hfseg: {folder.resolve().name}",
                    revision=revision, create_pr=create_pr, say=say)  # fmt: skip
    say(f"{pushed.changed} files pushed: {pushed.url}" if pushed.changed else f"{pushed.url} has all of this already")
    if tag:
        with hub_errors(repo_id, api=api):
            api.create_tag(repo_id, tag=tag, revision=pushed.oid, exist_ok=True)
        say(f"tagged {tag}")
    if space:
        from hfseg.hub.space import push_space

        push_space(repo_id, [repo_id], private=private, token=token, endpoint=endpoint, say=say)
    return pushed


def check_folder(folder: Path) -> None:
    """Makes sure that a folder holds a model that can be published.

    Args:
        folder: The run directory.

    Raises:
        UserError: When it does not.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model", "a run directory, or a folder that save_pretrained wrote",
                        "hfseg train makes one")
    if not any(folder.glob("*.safetensors")):
        pickled = [file.name for pattern in PICKLED for file in folder.glob(pattern)]
        only = f" (only pickled: {', '.join(pickled[:3])})" if pickled else ""
        raise UserError(f"{folder} has no safetensors{only}", "model.safetensors",
                        "load it where you trust it, and save_pretrained it again")


def published(folder: Path) -> dict[str, Path | bytes]:
    """Collects what of a run directory is published.

    Args:
        folder: The run directory.

    Returns:
        Path in the repository by name: a local file, or what goes in its place.

    Raises:
        UserError: When a text holds a hub token.
    """
    files: dict[str, Path | bytes] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        inside = file.resolve().is_relative_to(folder.resolve())
        if file.is_file() and inside and any(_matches(name, pattern) for pattern in PUBLISHED):
            files[name] = file
    if RECIPE in files:
        files[RECIPE] = to_yaml(without_paths(load_recipe(str(files[RECIPE])))).encode()
    for name, content in files.items():
        if not name.endswith((".safetensors", ".png", ".jpg")):
            text = content if isinstance(content, bytes) else content.read_bytes()
            if TOKEN.search(text):
                raise UserError(f"{folder / name} holds what looks like a hub token", "files without secrets",
                                "take it out, and revoke it: whoever reads it can write as you")
    return files


def outdated(api: HfApi, repo_id: str, files: Mapping[str, Path | bytes], revision: str | None) -> list[str]:
    """Lists what an earlier push left that this one does not replace: samples, and weights cut otherwise.

    Args:
        api: The client.
        repo_id: user/name.
        files: What is pushed now.
        revision: Branch.

    Returns:
        Paths in the repository.
    """
    try:
        there = api.list_repo_files(repo_id, revision=revision)
    except HfHubHTTPError:  # a new branch
        return []
    replaced = (f"{SAMPLES}/*.png", f"{SAMPLES}/inputs/*.png", "model*.safetensors", "model*.safetensors.index.json")
    return [name for name in there if name not in files and any(_matches(name, pattern) for pattern in replaced)]


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _check_tag(api: HfApi, repo_id: str, tag: str, revision: str | None, create_pr: bool) -> None:
    if create_pr:
        raise UserError("--tag goes with a commit, and --create_pr makes none yet", fix="tag it when it is merged")
    with hub_errors(repo_id, api=api):
        references = api.list_repo_refs(repo_id)
        held = {reference.name: reference.target_commit for reference in references.tags}
        head = api.repo_info(repo_id, revision=revision).sha if tag in held else None
    if tag in held and held[tag] != head:
        raise UserError(f"{repo_id} has a tag {tag} already, on {held[tag][:8]}", "a name that is free",
                        "choose another --tag: people rely on what a tag means")

"""Push a run directory to the hub: everything a user needs, in one commit, and nothing of this machine."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import HfApi

from hfseg.errors import UserError
from hfseg.hub.access import open_repo
from hfseg.hub.card import card_files, without_paths
from hfseg.hub.commit import Pushed, commit
from hfseg.hub_errors import hub_errors
from hfseg.recipe import to_yaml
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import CARD, LABELS, LOG, RECIPE, RESULTS, SAMPLES

# What a model's repository holds. Checkpoints, trackers' files, predictions and notes stay at home.
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
PANELS = (f"{SAMPLES}/*.png", f"{SAMPLES}/inputs/*.png")
PUBLISHED = (*WEIGHTS, "config.json", "*processor_config.json", LABELS, RECIPE, RESULTS, LOG, CARD, "LICENSE*",
             "learning_curve.png", "per_class_iou.png", "per_class_ap.png", "per_class_pq.png",
             "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", *PANELS)  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".gif")  # they go where the card shows them
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
    if create_pr and (tag or space):
        raise UserError("--create_pr only proposes a change, which has no tag and no Space yet",
                        fix="tag it, and push the Space, when it is merged")
    if space and revision:
        raise UserError("a Space serves the main branch", fix="leave --revision or --space out")
    api, repo_id = ready(repo_id, private, tag, space, create_pr=create_pr, token=token, endpoint=endpoint)
    if RESULTS in files and RECIPE in files:
        files |= card_files(folder, repo_id)[0]  # with this name in its examples; the run stays as it is
    pushed = commit(
        api, repo_id, files, message=message or f"Model from hfseg: {folder.resolve().name}", revision=revision,
        create_pr=create_pr, say=say, delete=lambda name: any(_matches(name, pattern) for pattern in WEIGHTS + PANELS),
    )  # fmt: skip
    say(f"{pushed.changed} files pushed: {pushed.url}" if pushed.changed else f"{pushed.url} has all of this already")
    if tag:
        _put_tag(api, repo_id, tag, pushed.oid)
        say(f"tagged {tag}")
    if space:
        from hfseg.hub.space import push_space

        push_space(repo_id, [repo_id], private=private, token=token, endpoint=endpoint, say=say)
    return pushed


def ready(
    repo_id: str, private: bool = False, tag: str | None = None, space: bool = False, *, create_pr: bool = False,
    token: str | None = None, endpoint: str | None = None,
) -> tuple[HfApi, str]:  # fmt: skip
    """Makes sure, before hours of training, that a push can succeed; creates the repository.

    Args:
        repo_id: As for `push`; so are the others.
        private: Whether a new repository is private.
        tag: Name of a tag.
        space: Whether a Space will be pushed.
        create_pr: Whether the change is only proposed.
        token: Hub token, if not the one that is logged in.
        endpoint: URL of the hub, if not HF_ENDPOINT's.

    Returns:
        A tuple of the client and the full name of the repository.

    Raises:
        UserError: When something is in the way.
    """
    if tag and (not re.fullmatch(r"\w[\w./-]*", tag) or ".." in tag or tag.endswith((".", "/", ".lock"))):
        raise UserError(f"{tag!r} is no name of a tag", "letters, digits, '.', '-', '_' and '/', such as v1.0")
    if space and not find_spec("gradio"):
        raise UserError("a Space states the version of gradio, which is not installed", fix="pip install 'hfseg[demo]'")
    return open_repo(repo_id, private=private, create_pr=create_pr, token=token, endpoint=endpoint)


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
    if not any(folder.glob(WEIGHTS[0])):
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
    places = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # of the hub's cache, whose files are links
        places.append(folder.resolve().parent.parent / "blobs")
    shown = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    for file in sorted([*folder.glob("*"), *folder.glob(f"{SAMPLES}/*"), *folder.glob(f"{SAMPLES}/inputs/*")]):
        name = file.relative_to(folder).as_posix()
        wanted = any(_matches(name, pattern) for pattern in PUBLISHED) or (
            file.suffix.lower() in PICTURES and not name.startswith(".") and f"({name})" in shown)
        if file.is_file() and wanted and any(file.resolve().is_relative_to(place) for place in places):
            files[name] = file
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"config.json or the weights of {folder} are links to files elsewhere", "the files themselves",
                        "copy them into the folder")
    config = json.loads(files["config.json"].read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None):  # where the base model lay
        files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    if RECIPE in files:
        files[RECIPE] = to_yaml(without_paths(load_recipe(str(files[RECIPE])))).encode()
    for name, content in files.items():
        if not name.endswith((".safetensors", ".png", ".jpg")):
            text = content if isinstance(content, bytes) else content.read_bytes()
            if TOKEN.search(text):
                raise UserError(f"{folder / name} holds what looks like a hub token", "files without secrets",
                                "take it out, and revoke it: whoever reads it can write as you")
    return files


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _put_tag(api: HfApi, repo_id: str, tag: str, commit_id: str) -> None:
    with hub_errors(repo_id, api=api):
        api.create_tag(repo_id, tag=tag, revision=commit_id, exist_ok=True)
        held = {reference.name: reference.target_commit for reference in api.list_repo_refs(repo_id).tags}
    if held[tag] != commit_id:
        raise UserError(f"pushed as {commit_id[:12]}, but {repo_id} has a tag {tag} already, on {held[tag][:12]}",
                        "a name that is free: people rely on what a tag means", "push again with another --tag")

"""A Space that serves models in a browser: its files, and pushing them in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from hfseg.errors import UserError
from hfseg.hub.access import open_repo
from hfseg.hub.card_text import REPO_ID, is_repo_id, line, listing, repository
from hfseg.hub.card_text import title as heading
from hfseg.hub.commit import Pushed, commit
from hfseg.hub.wheel import build_wheel, requirements
from hfseg.hub_errors import hub_errors
from hfseg.models.configs import SHIPPED
from hfseg.run_directory import CARD

APP, REQUIREMENTS, PYTHON = "app.py", "requirements.txt", "3.11"

_APP = '''\
"""Segment images in the browser; made by hfseg."""

import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path

if importlib.util.find_spec("hfseg") is None:  # its wheel lies here: a zip file of the package
    packages = tempfile.mkdtemp(prefix="hfseg-")
    zipfile.ZipFile(next(Path(__file__).parent.glob("hfseg-*.whl"))).extractall(packages)
    sys.path.insert(0, packages)

from hfseg.demo import launch

MODELS = {models}

if __name__ == "__main__":
    launch(MODELS)
'''


def space_files(
    model_ids: Sequence[str], title: str, *, wheel: bool = True, gradio_version: str | None = None
) -> dict[str, bytes]:
    """Makes the files of a Space.

    hfseg is on no package index, so its wheel goes along. A Space is built from requirements.txt alone, before it has
    its other files, so that a path in there fails; and the address of a wheel in a private Space cannot be read.
    Therefore requirements.txt lists what hfseg needs, and app.py puts the wheel on the path when it starts.

    Args:
        model_ids: Models of the hub, or shipped ones such as `hfseg/shapes-segformer`.
        title: The Space's name.
        wheel: Whether to put the wheel in.
        gradio_version: By default that of the gradio that is installed.

    Returns:
        Content by path in the repository. The same models and hfseg give the same bytes.

    Raises:
        UserError: When a model is not one of the hub, or neither is gradio installed nor its version given.

    Example:
        >>> sorted(space_files(["hfseg/shapes-segformer"], "shapes", wheel=False, gradio_version="6.0.0"))
        ['README.md', 'app.py', 'requirements.txt']
    """
    models = list(dict.fromkeys(model_ids))
    for name in models:
        if not (REPO_ID.fullmatch(name) and (not name.startswith("hfseg/") or _is_shipped(name))):
            raise UserError(f"a Space cannot load {name!r}", "models of the hub: USER/NAME",
                            "push it first: hfseg push")
    if not models:
        raise UserError("a Space without a model", "at least one USER/NAME")
    listed = "[\n" + "".join(f'    "{name}",\n' for name in models) + "]"
    files = {
        APP: _APP.format(models=listed).encode(),
        REQUIREMENTS: ("\n".join(requirements("demo")) + "\n").encode(),
        CARD: _readme(models, title, gradio_version or _gradio_version()).encode(),
    }
    if wheel:
        with tempfile.TemporaryDirectory() as folder:
            built = build_wheel(folder)
            files[built.name] = built.read_bytes()
    return files


def write_space(folder: str | Path, model_ids: Sequence[str], title: str, **options) -> Path:
    """Writes the files of a Space into a folder, for a look at them or for `gradio deploy`.

    Args:
        folder: Where to; made where needed.
        model_ids: As for `space_files`.
        title: As for `space_files`; `gradio deploy` takes it as the name of the repository.
        **options: Of `space_files`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in space_files(model_ids, title, **options).items():
        (folder / name).write_bytes(content)
    return folder


def push_space(
    repo_id: str, model_ids: Sequence[str], *, private: bool = False, title: str | None = None,
    token: str | None = None, endpoint: str | None = None, say: Callable[[str], None] = print,
) -> Pushed:  # fmt: skip
    """Pushes a Space that serves models in a browser, in one commit.

    Args:
        repo_id: USER/NAME of the Space, or NAME for one of your own; it is created where it is missing.
        model_ids: As for `space_files`.
        private: Whether a new Space is private.
        title: What it is called; by default the repository's name.
        token: Hub token, if not the one that is logged in.
        endpoint: URL of the hub, if not HF_ENDPOINT's.
        say: Called with what a person wants to know.

    Returns:
        A `Pushed`: commit, URL, and how many files changed.

    Raises:
        UserError: As `space_files` does, or when the hub refuses; its head is then what it was.
    """
    files = space_files(model_ids, title or repo_id.split("/")[-1])
    api, repo_id = open_repo(repo_id, repo_type="space", private=private, space_sdk="gradio", token=token,
                             endpoint=endpoint)
    hidden = []
    for name in filter(is_repo_id, model_ids):
        with hub_errors(name, "model", api):
            hidden += [name] if api.model_info(name).private else []
    pushed = commit(api, repo_id, files, repo_type="space", say=say,
                    delete=lambda name: name.startswith("hfseg-") and name.endswith(".whl"),
                    message=f"Space from hfseg: {', '.join(model_ids)}")
    url = f"{api.endpoint}/spaces/{repo_id}"
    say(f"Space pushed: {url}" if pushed.changed else f"{url} has all of this already")
    if hidden:
        one = len(hidden) == 1
        say(f"{listing(hidden)} {'is' if one else 'are'} private: give the Space a secret HF_TOKEN that may read "
            f"{'it' if one else 'them'}, at {url}/settings")
    return pushed


def _readme(models: Sequence[str], title: str, gradio_version: str) -> str:
    shown = [repository(name) if is_repo_id(name) else f"`{name}`, which comes with hfseg" for name in models]
    metadata = {
        "title": line(title), "colorFrom": "blue", "colorTo": "gray", "sdk": "gradio", "sdk_version": gradio_version,
        "python_version": PYTHON, "app_file": APP, "pinned": False,
        **({"models": hub} if (hub := [name for name in models if is_repo_id(name)]) else {}),
        "tags": ["hfseg", "image-segmentation", "semantic-segmentation"],
    }  # fmt: skip
    return (f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()}\n---\n\n"
            f"# {heading(title)}\n\nSegments images in the browser with {listing(shown)}: every pixel gets a class.\n\n"
            "On your own machine: `pip install -r requirements.txt`, then `python app.py`, which takes hfseg itself "
            "from the wheel beside it. A private model needs a secret `HF_TOKEN` in the settings of the Space.\n")


def _is_shipped(name: str) -> bool:
    return (SHIPPED / name.removeprefix("hfseg/") / "config.json").is_file()


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError as error:
        raise UserError("gradio is not installed, and a Space states its version", "gradio 6 or newer",
                        "pip install 'hfseg[demo]'") from error

"""Opening data where it lies: embedded, in a folder, in tables, on the hub. What the rows mean is settled elsewhere."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from hfseg.data.folder_names import SPLIT_NAMES, split_name
from hfseg.data.folder_pairs import Pairs
from hfseg.data.folders import LAYOUTS, read_folder
from hfseg.data.images import needs_path_column
from hfseg.errors import UserError, one_of


def read_shapes(path: str, scenes: int | None) -> tuple[dict[str, datasets.Dataset], dict[str, Any]]:
    """Draw the embedded scenes.

    Args:
        path: `shapes`, `shapes/source` or `shapes/target`.
        scenes: How many training scenes; None for the usual number.

    Returns:
        Dataset by split, and what the labels are called.

    Raises:
        UserError: For a domain that does not exist.
    """
    from hfseg.data.shapes import DOMAINS, shapes_dataset

    domain = one_of(path.partition("/")[2] or "source", list(DOMAINS), "shapes domain")
    splits = None if scenes is None else {"train": scenes, "validation": min(100, max(1, scenes))}
    names, palette = DOMAINS[domain].names, DOMAINS[domain].palette
    return shapes_dataset(domain, splits), {"names": names, "palette": palette, "origin": f"shapes/{domain}"}


def read_local(
    root: Path, *, instances: bool = False, streaming: bool = False, skip: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Open a parquet file, a folder of parquet files, a `save_to_disk` folder, or a folder of image files.

    Args:
        root: The file or folder.
        instances: Take instance maps where there are no semantic ones.
        streaming: Read parquet row by row.
        skip: Leave out files without a partner instead of stopping.

    Returns:
        Dataset by split, and notes.

    Raises:
        UserError: When there is nothing usable.
    """
    if root.is_file():
        if root.suffix != ".parquet":
            raise UserError(f"{root} is a file", f"a folder ({LAYOUTS}), or a .parquet file")
        return _read_parquet({split_name(_first_word(root)): [str(root)]}, streaming), []
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"{root} cannot be read", fix="check its permissions")
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return _read_saved(root), []
    tables = sorted(file for file in root.rglob("*.parquet")
                    if not any(part.startswith(".") for part in file.relative_to(root).parts))
    if tables:
        files: dict[str, list[str]] = {}
        for file in tables:
            words = (*file.relative_to(root).parts[:-1], _first_word(file))
            known = [split_name(word) for word in words if split_name(word) in SPLIT_NAMES]
            files.setdefault(known[-1] if known else "train", []).append(str(file))
        return _read_parquet(files, streaming), []
    splits, notes = read_folder(root, instances=instances, skip=skip)
    return {split: _from_pairs(pairs) for split, pairs in splits.items()}, notes


def _read_saved(root: Path) -> dict[str, datasets.Dataset]:
    """Read what `save_to_disk` wrote, split by split: `load_from_disk` stumbles over an empty one."""
    folders = {"train": root}
    split = None
    try:
        if (root / "dataset_dict.json").is_file():
            names = json.loads((root / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if not names:
                raise UserError(f"{root} was saved without a split", "at least one split with an image")
            folders = {name: root / name for name in names}
        result = {}
        for split, folder in folders.items():
            if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
                raise UserError(f"the split {split!r} is empty", "at least one image", "remove it, or fill it")
            result[split] = datasets.load_from_disk(str(folder))
        return result
    except UserError:
        raise
    except Exception as error:  # whatever datasets meets in a broken folder
        raise UserError(
            f"{folders.get(split, root)} cannot be loaded: {_line(error)}", "what save_to_disk wrote"
        ) from error


def _first_word(file: Path) -> str:
    return re.split(r"[-_.]", file.name)[0]


def _read_parquet(files: dict[str, list[str]], streaming: bool) -> dict[str, Any]:
    try:
        return dict(datasets.load_dataset("parquet", data_files=files, streaming=streaming))
    except Exception as error:  # datasets wraps whatever pyarrow meets
        first = next(iter(files.values()))[0]
        raise UserError(f"{first} cannot be read: {_line(error)}", "parquet with an image and a map column") from error


def _from_pairs(pairs: Pairs) -> datasets.Dataset:
    """Columns of paths, which cost nothing until a row is read."""
    rows = datasets.Dataset.from_dict({"image": pairs.images, "semantic_map": pairs.maps, "image_id": pairs.ids})
    for column, paths in (("image", pairs.images), ("semantic_map", pairs.maps)):
        if not needs_path_column(paths):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def read_hub(path: str, name: str | None, revision: str | None, streaming: bool) -> dict[str, Any]:
    """Open a data set of the hub, or say what was tried.

    Args:
        path: Hub id.
        name: Configuration.
        revision: Branch, tag or commit.
        streaming: Read row by row.

    Returns:
        Dataset by split.

    Raises:
        UserError: When it cannot be loaded.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise UserError(f"{path} does not exist", "a folder, a hub id such as user/name, or shapes",
                        _near(path))
    try:
        _check_hub(path, revision)
        loaded = datasets.load_dataset(path, name, revision=revision, streaming=streaming)
    except Exception as error:  # httpx, huggingface_hub, datasets and pyarrow each have their own
        offline = ", but HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else ""
        choose = "--data.name NAME" if "config" in str(error).lower() else _near(path)
        raise UserError(
            f"{path!r} is no folder here (tried {Path(path).absolute()}) and could not be loaded from the hub (tried "
            f"{huggingface_hub.constants.ENDPOINT}{offline}): {type(error).__name__}: {_line(error)}",
            "a local folder, which needs no network; a hub id that exists, with a network or in the cache; shapes",
            choose,
        ) from error
    return dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}


def _check_hub(path: str, revision: str | None) -> None:
    """Ask the hub once: `load_dataset` would ask for half a minute before it says that there is no network."""
    try:
        huggingface_hub.HfApi().dataset_info(path, revision=revision, timeout=10)
    except RepositoryNotFoundError:
        raise
    except (HfHubHTTPError, OfflineModeIsEnabled):
        return  # load_dataset knows better, and is quick
    except Exception:
        cached = (
            Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}",
            Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___").lower(),
        )
        if not any(folder.exists() for folder in cached):
            raise


def _near(path: str) -> str:
    """Suggest a folder whose name is close to one that is not there."""
    target = Path(path).expanduser()
    try:
        near = difflib.get_close_matches(target.name, os.listdir(target.parent), n=3)
    except OSError:
        return f"{target.parent} does not exist either: check the path"
    if near:
        return f"did you mean {' or '.join(str(target.parent / name) for name in near)}?"
    return "check the path; --data.path PATH says where the data lies"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240]


def find_beside(root: Path, file: str) -> Path | None:
    """Look for a file in a folder, or above it where the folder is one split of a data set.

    Args:
        root: The folder, or a parquet file in it.
        file: Name of the file.

    Returns:
        Its path, or None.
    """
    folder = root.absolute() if root.is_dir() else root.absolute().parent
    candidates = [folder / file] + ([folder.parent / file] if split_name(folder.name) in SPLIT_NAMES else [])
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def find_on_hub(repo: str, revision: str | None, file: str) -> Path | None:
    """Download a file of a data set on the hub.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit.
        file: Name of the file.

    Returns:
        Where it lies now, or None if there is no such file, or no network and no copy.
    """
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, OSError, ValueError):
        return None

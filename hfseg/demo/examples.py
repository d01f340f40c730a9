"""Pictures to try a model with: local files that it can make sense of, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hfseg.data.shapes import DOMAINS, scene
from hfseg.errors import UserError
from hfseg.models.configs import resolve_name
from hfseg.run_directory import SAMPLES

MOST = 4
_SCENES = {"source": (3, 11, 21, 32), "target": (2, 12, 20, 33)}  # of the validation split
_SIZE = (288, 384)  # (height, width)
_VALIDATION = 1_000_000


def find_examples(models: dict[str, Any]) -> list[str]:
    """Finds pictures for the first model that has some.

    A model of the embedded data gets scenes of its domain, another one the pictures that its run or repository was
    looked at with.

    Args:
        models: Configuration by path or hub id.

    Returns:
        Files, at most four.
    """
    for name, config in models.items():
        names = tuple((getattr(config, "id2label", None) or {}).values())
        domain = next((domain for domain, one in DOMAINS.items() if one.names == names), None)
        if found := _scenes(domain) if domain else _samples(name):
            return found
    return []


def _scenes(domain: str) -> list[str]:
    folder = Path(tempfile.mkdtemp(prefix="hfseg-examples-"))
    files = []
    for number in _SCENES[domain][:MOST]:
        files.append(str(folder / f"{domain} scene {number}.png"))
        Image.fromarray(scene(0, _VALIDATION + number, domain, _SIZE).image).save(files[-1])
    return files


def _samples(name: str) -> Sequence[str]:
    try:
        folder = Path(resolve_name(name))
    except UserError:
        return []
    if folder.is_dir():
        return [str(file) for file in sorted((folder / SAMPLES / "inputs").glob("*.png"))][:MOST]
    from huggingface_hub import hf_hub_download

    files = []
    for number in range(MOST):
        try:
            files.append(hf_hub_download(name, f"{SAMPLES}/inputs/{number:02}.png"))
        except Exception:  # a repository of somebody else's has none, and no network is no reason to fail
            break
    return files

"""Transfer learning for image segmentation, the Hugging Face way.

Public names load on first use, so that `import hfseg` is quick and changes nothing global.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "hfseg.recipe",
    "load_recipe": "hfseg.recipe_reading",
    "LabelSchema": "hfseg.labels",
    "UserError": "hfseg.errors",
    "load_data": "hfseg.data",
    "load_model": "hfseg.models",
    "fuse": "hfseg.models.fusing",
    "unfuse": "hfseg.models.fusing",
    "Segmenter": "hfseg.segmenter",
    "Segmentation": "hfseg.result",
    "Prompter": "hfseg.prompter",
    "evaluate": "hfseg.evaluation",
    "train": "hfseg.training",
    "push": "hfseg.hub.push",
    "pull": "hfseg.hub.pull",
    "push_data": "hfseg.hub.push_data",
    "LocalHub": "hfseg.hub.local",
}
_MODULES = ("data", "metrics", "models", "ops")

__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"hfseg.{name}")
    raise AttributeError(f"module 'hfseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

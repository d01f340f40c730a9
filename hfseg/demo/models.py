"""The models of a page: checked when it is built, loaded once and in the background, a few kept in memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from hfseg.errors import UserError
from hfseg.models.configs import load_config, readable_errors, resolve_name
from hfseg.models.families import tasks_of
from hfseg.prompter import PROMPTABLE, Prompter
from hfseg.run_directory import RECIPE, WEIGHTS
from hfseg.segmenter import Segmenter

SHIPPED_MODEL = "hfseg/shapes-segformer"


def default_model(folder: str | os.PathLike = "runs") -> str:
    """Chooses what to show if nothing was named.

    Args:
        folder: Where runs lie.

    Returns:
        The newest finished run of the quickstart there, or else the model that hfseg ships.

    Example:
        >>> default_model("not-there")
        'hfseg/shapes-segformer'
    """
    runs = [run for run in Path(folder).glob("quickstart*") if (run / WEIGHTS).is_file() and (run / RECIPE).is_file()]
    return max(runs, key=lambda run: (run / WEIGHTS).stat().st_mtime).as_posix() if runs else SHIPPED_MODEL


class Models:
    """Models by name. A thread loads them, one after another; who asks for one waits for it.

    Args:
        names: Run directories, folders or hub ids.
        kept: How many stay in memory; the ones used longest ago make room.

    Raises:
        UserError: When there is none, or a configuration cannot be read.

    Example:
        >>> models = Models(["hfseg/shapes-segformer"])
        >>> models.state("hfseg/shapes-segformer")[0] in ("waiting", "loading", "ready")
        True
        >>> len(models.get("hfseg/shapes-segformer").id2label)
        7
    """

    def __init__(self, names: Sequence[str | os.PathLike], kept: int = 3):
        names = list(dict.fromkeys(map(os.fspath, names)))
        if not names:
            raise UserError("no model to show", "a run directory, a folder or a hub id")
        self.paths = _shown(names)
        self.configs = {name: _config(path) for name, path in self.paths.items()}
        self.prompted = [name for name, config in self.configs.items() if config.model_type in PROMPTABLE]
        self.names = [name for name in self.paths if name not in self.prompted] or self.prompted
        self.kept, self._found, self._lock = kept, OrderedDict[str, Future](), threading.RLock()
        self._one_at_a_time = threading.Lock()

    def tasks(self, name: str) -> tuple[str, ...]:
        """Tells what can be asked of a model.

        Args:
            name: One of the page's.

        Returns:
            Tasks, what it was trained for first; of a promptable one as of one for areas.
        """
        return tasks_of(self.configs[name])

    def start(self, name: str) -> Future:
        """Begins to load a model, if it is not there.

        Args:
            name: One of the page's.

        Returns:
            What will hold it.

        Raises:
            UserError: For another name.
        """
        if not isinstance(name, str) or name not in self.paths:
            raise UserError(f"this page has no model {str(name)[:100]!r}", ", ".join(self.paths))
        with self._lock:
            future = self._found.get(name)
            if future is None or (future.done() and future.exception()):
                future = self._found[name] = Future()
                threading.Thread(target=self._load, args=(name, future), daemon=True).start()
            self._found.move_to_end(name)
            return future

    def get(self, name: str) -> Any:
        """Waits for a model.

        Args:
            name: One of the page's.

        Returns:
            A `Segmenter`, or for a promptable model a `Prompter`.

        Raises:
            UserError: For another name, or when it cannot be loaded.
        """
        return self.start(name).result()

    def state(self, name: str) -> tuple[str, str]:
        """Tells how far a model is.

        Args:
            name: One of the page's.

        Returns:
            `waiting`, `loading`, `ready` or `failed`, and the reason for the latter.
        """
        future = self._found.get(name)
        if future is None:
            return "waiting", ""
        if not future.done():
            return "loading", ""
        error = future.exception()
        return ("failed", str(error).splitlines()[0]) if error else ("ready", "")

    def _load(self, name: str, future: Future) -> None:
        try:
            with self._one_at_a_time:
                future.set_result(_loader(name in self.prompted)(self.paths[name]))
        except BaseException as error:  # whoever waits is told
            future.set_exception(error)
        with self._lock:
            ready = [one for one, found in self._found.items() if found.done()]
            for one in ready[: max(0, len(ready) - self.kept)]:
                del self._found[one]


def _loader(prompted: bool) -> Callable[[str], Any]:
    return Prompter.from_pretrained if prompted else _ready_segmenter


def _ready_segmenter(path: str) -> Segmenter:
    """A segmenter after its first image, for which kernels are compiled, so that no visitor waits for that."""
    segmenter = Segmenter.from_pretrained(path)
    image = np.zeros((64, 64, segmenter.channels), np.uint8)
    for task in segmenter.tasks:
        segmenter.using(task=task, threshold=0.0)(image).confidence  # noqa: B018 - computed when read
    return segmenter


def _shown(names: Sequence[str]) -> dict[str, str]:
    """Names for strangers' eyes: of a path elsewhere on this machine, the last two parts."""
    shown = {}
    for name in names:
        path = Path(name).expanduser()
        short = "/".join(path.parts[-2:]) if path.is_absolute() or ".." in path.parts else name
        shown[name if short in shown else short] = name
    return shown


def _config(name: str) -> Any:
    """Reads the configuration, so that a wrong name is found before anybody waits."""
    from transformers import AutoConfig, PreTrainedConfig

    source = resolve_name(name)
    with readable_errors(name):
        kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if kind in PROMPTABLE:
            return AutoConfig.from_pretrained(source)
    hub = {"revision": None, "token": None, "trust_remote_code": False}
    return load_config(name, source, "pretrained", {}, hub, training=False)


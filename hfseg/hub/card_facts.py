"""What a card says comes from these facts: the files of one folder."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from hfseg.errors import UserError
from hfseg.hub.card_text import is_repo_id, public
from hfseg.labels import Colour, LabelSchema, make_palette
from hfseg.recipe import Recipe
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import CARD, LABELS, LOG, RECIPE, RESULTS, SAMPLES, RunDirectory, read_log

CURVE = "learning_curve.png"
PER_CLASS = {  # by task: the key of the scores of each class, what they are called, and their chart
    "semantic": ("per_category_iou", "IoU", "per_class_iou.png"),
    "instance": ("per_category_ap", "AP", "per_class_ap.png"),
    "panoptic": ("per_category_pq", "PQ", "per_class_pq.png"),
}
INPUTS = "inputs"  # folder of samples/: pictures as the model takes them, for the hub's widget
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Facts:
    """All that is known of a model from its folder.

    Attributes:
        path: The folder.
        name: Of the repository, else of the folder.
        repo_id: user/name, where it is known.
        config: config.json.
        names: Class names by id.
        palette: A colour per class.
        results: eval_results.json, if hfseg wrote it.
        recipe: recipe.yaml as it may be published, if there is one.
        log: Lines of train_log.jsonl.
        curve: Whether there is a picture of the learning curve.
        samples: File names of the panels in samples/.
        inputs: File names of the pictures in samples/inputs/.
        parameters: How many numbers the network has learnt; None where the weights do not lie here.
        old: The card that lies there, if there is one.
    """

    path: Path
    name: str
    repo_id: str | None
    config: dict
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    results: dict | None = None
    recipe: Recipe | None = None
    log: tuple[dict, ...] = ()
    curve: bool = False
    samples: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    parameters: int | None = None
    old: str | None = None

    @property
    def training(self) -> dict:
        """What the loop noted about the run."""
        return (self.results or {}).get("training") or {}

    @property
    def protocol(self) -> dict:
        """How the scores were taken."""
        return (self.results or {}).get("protocol") or {}

    @property
    def task(self) -> str:
        """`semantic`, `instance` or `panoptic`."""
        task = (self.results or {}).get("task") or self.config.get("segmentation_task")
        return task if task in PER_CLASS else "semantic"

    @property
    def per_class(self) -> dict:
        """The score of each class by its name; None for one that does not occur."""
        return (self.results or {}).get(PER_CLASS[self.task][0]) or {}

    @property
    def bars(self) -> str:
        """File name of the chart of these."""
        return PER_CLASS[self.task][2]

    @property
    def model_type(self) -> str:
        """Kind of network."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def channels(self) -> int:
        """Bands of an image."""
        return self.config.get("num_channels") or (self.config.get("backbone_config") or {}).get("num_channels") or 3

    @property
    def data(self) -> str | None:
        """What it was scored on: a hub id, `shapes/...`, or the name of a local folder."""
        return self.protocol.get("data") or (self.recipe.data.path if self.recipe else None)

    @property
    def dataset(self) -> str | None:
        """The hub id of the data: the name of a local folder, as it is recorded, has no slash."""
        return self.protocol.get("data") if is_repo_id(self.protocol.get("data")) else None

    @property
    def random(self) -> bool:
        """Whether training began with nothing but random weights."""
        recipe = self.recipe
        if recipe is None or self.training.get("backbone_weights"):
            return False
        return recipe.model.weights == "random" or recipe.model.name == self.model_type


def read_facts(run: str | Path, repo_id: str | None = None, old: str | None = None) -> Facts:
    """Reads a run directory, or any folder that `save_pretrained` wrote; files that hfseg did not write are left out.

    Args:
        run: The folder.
        repo_id: user/name of the repository that it will be in.
        old: Text of the card to write over; by default that in the folder.

    Returns:
        The facts.

    Raises:
        UserError: When there is no model, or a file of hfseg's cannot be read.
    """
    folder = RunDirectory(run)
    path = folder.path
    if not path.is_dir():
        raise UserError(f"there is no folder {run}", "a run directory, or a folder that save_pretrained wrote")
    config = _json(path / "config.json")
    if config is None:
        raise UserError(f"{run} holds no config.json, so there is no model to write about",
                        "a run directory, or a folder that save_pretrained wrote")
    by_id = config.get("id2label") or {}
    names = tuple(str(by_id[key]) for key in sorted(by_id, key=_as_id))
    results = _json(path / RESULTS)
    scored = results and results.get(PER_CLASS.get(results.get("task"), PER_CLASS["semantic"])[0])
    if results is not None and not (isinstance(scored, dict) and "protocol" in results):
        results = None  # examples of transformers write a file of this name, too
    if old is None and (path / CARD).is_file():
        try:
            old = (path / CARD).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path / CARD} is no UTF-8 text", fix="save it as UTF-8, or delete it") from error
    recipe = without_paths(load_recipe(str(path / RECIPE))) if (path / RECIPE).is_file() else None
    repo_id = repo_id or (recipe.hub.repo_id if recipe else None) or _repo_of(old)
    log = tuple(read_log(path)) if (path / LOG).is_file() else ()
    return Facts(
        path, (repo_id or "").rpartition("/")[2] or path.resolve().name or "model", repo_id, config,
        tuple(scored) if results else names, _palette(path, len(names)), results, recipe,
        log=tuple(entry for entry in log if isinstance(entry, dict) and "step" in entry),
        curve=bool(log) or (path / CURVE).is_file(), samples=_pictures(path / SAMPLES, ".png"),
        inputs=_pictures(path / SAMPLES / INPUTS, ".png", ".jpg", ".jpeg"), parameters=_parameters(path), old=old,
    )  # fmt: skip


def without_paths(recipe: Recipe) -> Recipe:
    """Returns the recipe as it is published: with the names of local folders in place of where they lie.

    Args:
        recipe: The recipe.

    Returns:
        A copy.

    Example:
        >>> without_paths(Recipe(output_dir="/home/ann/runs/a")).output_dir
        'runs/a'
    """
    def name(path: str) -> str:
        local = path.startswith(("/", "~", ".")) or "\\" in path or Path(path).expanduser().exists()
        return Path(path.replace("\\", "/")).expanduser().resolve().name if local else public(path)

    return replace(
        recipe, output_dir=f"runs/{Path(recipe.output_dir).expanduser().resolve().name}",
        model=replace(recipe.model, name=name(recipe.model.name), config=public(recipe.model.config)),
        data=replace(recipe.data, path=name(recipe.data.path)),
        train=replace(recipe.train, resume=bool(recipe.train.resume)),
    )  # fmt: skip


def _json(file: Path) -> dict | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", "JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object")
    return content


def _as_id(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdecimal() else (1 << 31, key)


def _palette(path: Path, count: int) -> tuple[Colour, ...]:
    try:
        palette = LabelSchema.load(path / LABELS).palette
    except (OSError, UserError):  # somebody else's file may have this name
        palette = ()
    return tuple(palette if len(palette) == count else make_palette(count))


def _pictures(folder: Path, *endings: str) -> tuple[str, ...]:
    files = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(file.name for file in files
                        if file.suffix.lower() in endings and not file.name.startswith(".") and file.is_file()))


def _parameters(path: Path) -> int | None:
    """Counts from the headers of the weights, without reading them."""
    total = 0
    for file in sorted(path.glob("*.safetensors")):
        try:
            with open(file, "rb") as content:
                [length] = struct.unpack("<Q", content.read(8))
                header = json.loads(content.read(min(length, 1 << 27)))
            total += sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
                         and tensor["dtype"] in _FLOATS and not name.endswith(("running_mean", "running_var")))
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None
    return total or None


def _repo_of(card: str | None) -> str | None:
    """The repository that the card was last written for."""
    found = re.search(r'Segmenter\.from_pretrained\("([^"/]+/[^"/]+)"\)', card or "")
    return found[1] if found and is_repo_id(found[1]) else None

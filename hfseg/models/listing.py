"""`hfseg models`: which networks there are, how large, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hfseg.errors import UserError
from hfseg.models.configs import KNOWN_CONFIGS, load_config
from hfseg.models.dry_run import dry_run
from hfseg.models.families import FAMILIES
from hfseg.models.networks import ARCHITECTURES, PREFIX

SIDE = 512
_HUB = {"revision": None, "token": None, "trust_remote_code": False}


@dataclass(frozen=True)
class ModelRow:
    """A network of the list.

    Attributes:
        name: For `model.name`.
        family: Model type of its configuration.
        backbone: For `model.backbone`; None where the name says it all.
        parameters: How many, in training, with 21 classes.
        gflops: Billions of multiplications and additions for an image of `side` pixels squared, each counted; None for
            networks that propose masks.
        side: 512, or the only size that the network takes.
        task: What it does, such as `semantic`.
    """

    name: str
    family: str
    backbone: str | None
    parameters: int
    gflops: float | None
    side: int
    task: str = "semantic"


def list_models(
    pattern: str = "",
    *,
    backbone: str | None = None,
    task: str | None = None,
    max_parameters: float | None = None,
    max_gflops: float | None = None,
) -> list[ModelRow]:
    """Builds each network without memory, and counts.

    Args:
        pattern: A part of the name, the family, the backbone or the tasks.
        backbone: Lists hfseg's own networks on this backbone, those that take it.
        task: `semantic`, `instance` or `panoptic`: leave out what does not do it.
        max_parameters: Leave out what has more, in millions.
        max_gflops: Leave out what costs more, or is not counted.

    Returns:
        A row per network, in the order of the table of families.

    Raises:
        UserError: When nothing is left.

    Example:
        >>> [row] = list_models("lraspp")
        >>> row.backbone, row.parameters, row.side
        ('mobilenet_v3_large', 3221538, 512)
    """
    own = {PREFIX + name: backbone or line.backbone for name, line in ARCHITECTURES.items()}
    names = own if backbone else {**dict.fromkeys(KNOWN_CONFIGS), **dict.fromkeys(_other_families()), **own}
    rows, uncounted, refused = [], [], None
    for name, body in names.items():
        tasks = " ".join(FAMILIES[_family(name)].tasks)
        if pattern.lower() not in f"{name} {body or ''} {_family(name)} {tasks}".lower():
            continue
        if task is not None and task not in FAMILIES[_family(name)].tasks:
            continue
        try:
            row = count(name, body)
        except UserError as error:
            if not backbone:  # with one that is asked for, some networks cannot take it
                raise
            refused = error
            continue
        if max_parameters is not None and row.parameters > max_parameters * 1e6:
            continue
        if max_gflops is not None and row.gflops is None:
            uncounted.append(name)
        elif max_gflops is None or row.gflops <= max_gflops:
            rows.append(row)
    if not rows:
        if refused is not None and "there is no backbone" in refused.found:
            raise refused
        if uncounted:
            raise UserError(f"no network of known cost fits, and that of {', '.join(uncounted)} is not counted",
                            fix="leave max_gflops out; max_parameters holds for all")
        raise UserError("no network fits", "hfseg models lists all", "ask for less: a shorter name, higher limits")
    return rows


def _other_families() -> list[str]:
    return [name for name in FAMILIES if name != "segformer" and not name.startswith("hfseg_")]


def _family(name: str) -> str:
    own = ARCHITECTURES.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    return own.config.model_type if own else name if name in FAMILIES else "segformer"


def count(name: str, backbone: str | None = None) -> ModelRow:
    """Counts one network.

    Args:
        name: For `load_model`.
        backbone: By name, for hfseg's own.

    Returns:
        Its row.

    Raises:
        UserError: When it cannot be built.
    """
    config = load_config(name, name, "random", {}, _HUB, backbone=backbone)
    config.num_labels = 21
    size = FAMILIES[config.model_type].input_size(config) or (SIDE, SIDE)
    model, operations = dry_run(name, config, size)
    return ModelRow(name, config.model_type, backbone, sum(p.numel() for p in model.parameters()),
                    operations and operations / 1e9, size[0], ", ".join(FAMILIES[config.model_type].tasks))


def print_models(rows: Iterable[ModelRow], say: Callable[[str], None] = print) -> None:
    """Prints rows as a table.

    Args:
        rows: From `list_models`.
        say: Prints a line.
    """
    rows = list(rows)
    width, body = (max(len(str(value or "")) for value in column) + 2 for column in (
        ["model.name", *(row.name for row in rows)], ["model.backbone", *(row.backbone for row in rows)]))
    say(f"{'model.name':<{width}}{'model.backbone':<{body}}{'parameters':>12}{'GFLOPs':>10}{'at':>6}  task")
    for row in rows:
        cost = "" if row.gflops is None else f"{row.gflops:.1f}"
        say(f"{row.name:<{width}}{row.backbone or '':<{body}}{row.parameters / 1e6:>10.2f} M{cost:>10}"
            f"{row.side if cost else '':>6}  {row.task}")



"""Reading recipes: shipped ones by name, YAML files, command-line flags; and refusing what has no meaning."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path

from hfseg.errors import UserError, one_of
from hfseg.inference_settings import check_tile, read_tta
from hfseg.recipe import Recipe


def load_recipe(config: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe from YAML and command-line flags, the flags last.

    Args:
        config: A path, the name of a shipped recipe, or None for the defaults.
        overrides: Flags such as `["--train.max_steps", "10"]`; they win over the file wherever they stand.

    Returns:
        The typed recipe, checked.

    Raises:
        UserError: For a file that is not there, an unknown key, or a value of the wrong type or range.

    Example:
        >>> load_recipe(overrides=["--train.max_steps", "10"]).train.max_steps
        10
    """
    parser = recipe_parser()
    arguments = with_values(overrides)
    if config is not None:
        path = find_config(config)
        check_keys(path)
        # The text: given a path, the parser changes the working directory while it reads, under all other threads.
        arguments = [f"--config={path.read_text(encoding='utf-8')}", *arguments]
    parsed = parser.parse_args(arguments)
    parsed.pop("config", None)
    recipe = parser.instantiate_classes(parsed)
    recipe = Recipe(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)})
    check(recipe)
    return recipe


def recipe_parser(prog: str = "hfseg train"):
    """Returns the command-line parser of a recipe.

    Args:
        prog: What the usage line calls the command.

    Returns:
        A jsonargparse parser whose errors are `UserError`s.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Parser(ArgumentParser):
        def error(self, message, ex=None):
            raise _as_user_error(str(message))

    parser = Parser(
        prog=prog, allow_abbrev=False, usage=f"{prog} [--config RECIPE] [--section.field VALUE ...]",
        description="Fine-tune a segmentation model. A recipe has the sections and fields below; flags win over it.",
    )  # fmt: skip
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe: a path, a shipped name, or a run.")
    parser.add_class_arguments(Recipe)
    return parser


def with_values(flags: Sequence[str]) -> list[str]:
    """Completes flags of yes-or-no fields that stand alone.

    Args:
        flags: Of the command line.

    Returns:
        The flags, each with its value.

    Example:
        >>> with_values(["--hub.push_to_hub", "--hub.repo_id", "me/my-model"])
        ['--hub.push_to_hub', 'true', '--hub.repo_id', 'me/my-model']
    """
    switches = {
        f"--{section.name}.{field.name}"
        for section in dataclasses.fields(Recipe) if dataclasses.is_dataclass(section.default_factory)
        for field in dataclasses.fields(section.default_factory) if field.default is False
    }  # fmt: skip
    completed = []
    for flag, following in zip(flags, [*flags[1:], "--"]):
        completed += [flag, "true"] if flag in switches and following.startswith("--") else [flag]
    return completed


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the package.

    Returns:
        Their paths by name.

    Example:
        >>> "shapes_transfer" in shipped_recipes()
        True
    """
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def find_config(config: str | Path) -> Path:
    """Returns the file of a recipe given by path or shipped name.

    Args:
        config: A path or a name.

    Returns:
        An existing file.

    Raises:
        UserError: When there is neither, with the nearest name suggested.
    """
    path = Path(config)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{config} is a folder without recipe.yaml", "a recipe or a run",
                        f"if it is data: --data.path {config}, or hfseg init {config} > recipe.yaml")
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"there is no recipe {config}", "a YAML file, or a shipped name: "
                        + ", ".join(shipped_recipes()))
    return shipped_recipes()[one_of(path.stem if path.suffix else str(config), shipped_recipes(), "recipe")]


def check_keys(path: Path) -> None:
    """Refuses a recipe file with a key that is no field: the parser's own words name no file and suggest nothing.

    Args:
        path: A YAML file.

    Raises:
        UserError: Names the file and the key, with the nearest field suggested.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {' '.join(str(error).split())}", "YAML",
                        "hfseg init DATA > recipe.yaml writes one") from error

    def walk(value, kind, prefix: str) -> None:
        if not isinstance(value, dict):
            found = "empty" if value is None else repr(value)[:60]
            raise UserError(f"{path}: {prefix.rstrip('.') or 'the recipe'} is {found}",
                            f"fields such as {field_names(kind, prefix)[0]}", "fill it in, or leave it out")
        sections = {f.name: f.default_factory for f in dataclasses.fields(kind)
                    if dataclasses.is_dataclass(f.default_factory)}
        for key, item in value.items():
            if key in sections:
                walk(item, sections[key], f"{prefix}{key}.")
            elif key not in {f.name for f in dataclasses.fields(kind)}:
                raise _unknown_field(f"{prefix}{key}", f"{path}: ")

    walk(content, Recipe, "")


def check(recipe: Recipe) -> None:
    """Refuses values that have the right type and no meaning.

    Args:
        recipe: The recipe.

    Raises:
        UserError: For the first such value, with what is allowed.
    """
    _check_numbers(recipe)
    train, data, augment = recipe.train, recipe.data, recipe.augment
    positive = {
        "train.num_train_epochs": train.num_train_epochs,
        "train.per_device_train_batch_size": train.per_device_train_batch_size,
        "train.gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train.learning_rate": train.learning_rate,
        "train.logging_steps": train.logging_steps,
        "train.save_total_limit": train.save_total_limit,
        "train.cycles": train.cycles,
        "eval.batch_size": recipe.eval.batch_size,
        "eval.max_detections": recipe.eval.max_detections,
        "eval.eval_epochs": recipe.eval.eval_epochs,
        "transfer.head_learning_rate_factor": recipe.transfer.head_learning_rate_factor,
        "transfer.stages": recipe.transfer.stages,
    }
    optional = {
        "train.save_steps": train.save_steps, "eval.eval_steps": recipe.eval.eval_steps,
        "train.overfit": train.overfit, "train.early_stopping": train.early_stopping,
        "data.max_train_samples": data.max_train_samples, "data.max_eval_samples": data.max_eval_samples,
        "loss.num_points": recipe.loss.num_points,
        "train.max_grad_norm": train.max_grad_norm, "transfer.head_steps": recipe.transfer.head_steps,
    }
    for name, value in {**positive, **{k: v for k, v in optional.items() if v is not None}}.items():
        if not value > 0:
            raise UserError(f"{name} is {value}", "a number above 0")
    for name, size in {"data.image_size": data.image_size, "augment.crop_size": augment.crop_size}.items():
        if size is not None and min(size if isinstance(size, (tuple, list)) else (size,)) < 1:
            raise UserError(f"{name} is {size}", "a positive number of pixels, or (height, width)")
    shares = {
        "data.validation_fraction": data.validation_fraction, "train.ema": train.ema,
        "loss.label_smoothing": recipe.loss.label_smoothing, "loss.ohem_fraction": recipe.loss.ohem_fraction,
    } | {
        f"augment.{name}": value for name in (
            "max_class_share", "rare_class_crop", "horizontal_flip", "vertical_flip", "photometric", "blur",
            "sharpen", "autocontrast", "equalize", "cutout", "copy_paste",
        ) if (value := getattr(augment, name)) is not None
    }
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}", "a share from 0 to 1")
    not_negative = {
        "train.warmup_steps": train.warmup_steps, "train.weight_decay": train.weight_decay, "train.l1": train.l1,
        "loss.no_object_weight": recipe.loss.no_object_weight,
        "data.num_workers": data.num_workers, "data.cache_gb": data.cache_gb, "eval.samples": recipe.eval.samples,
    }  # fmt: skip
    for name, value in not_negative.items():
        if value is not None and not value >= 0:
            raise UserError(f"{name} is {value}", "0 or more")
    check_tile(recipe.eval.tile, name="eval.tile")
    read_tta(recipe.eval.tta, name="eval.tta")
    if (most := recipe.eval.nms_threshold) is not None:
        if not 0 <= most <= 1:
            raise UserError(f"eval.nms_threshold is {most}", "0 to 1")
        if recipe.task != "instance":
            raise UserError(f"eval.nms_threshold is {most}, and the task is {recipe.task}", "the instance task",
                            "leave it out")
    if not 0 <= recipe.seed < 2**32:
        raise UserError(f"seed is {recipe.seed}", "0 to 4294967295")
    for name, value in {"train.momentum": (train.momentum,), "train.betas": train.betas}.items():
        if not all(0 <= number < 1 for number in value):
            raise UserError(f"{name} is {getattr(train, name.split('.')[1])}", "0 or more, below 1")
    if not recipe.loss.terms:
        raise UserError("loss.terms is empty", "at least one loss with its weight, such as {cross_entropy: 1.0}")
    if recipe.hub.push_to_hub and not recipe.hub.repo_id:
        raise UserError("hub.push_to_hub is set without hub.repo_id", "user/name", "--hub.repo_id me/my-model")


def _check_numbers(section, prefix: str = "") -> None:
    """Refuses nothing where something is needed, and numbers that are none."""
    hints = typing.get_type_hints(type(section))
    for item in dataclasses.fields(section):
        value, name = getattr(section, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{name}.")
        elif value is None and type(None) not in typing.get_args(hints[item.name]):
            default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
            raise UserError(f"{name} is empty", f"such as {default!r}, the default", "give a value, or leave it out")
        else:
            for number in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) \
                    else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise UserError(f"{name} is {value}", "finite numbers")


def _as_user_error(message: str) -> UserError:
    """Turns a parser's message into ours, with the nearest field suggested for an unknown one."""
    unknown = re.search(r"[Kk]ey [\"']([\w.]+)[\"'] is not expected|[Uu]nrecognized arguments: --([\w.]+)|"
                        r"[Dd]oes not accept nested key [\"']([\w.]+)[\"']|option [\"']?--?([\w.]+)[\"']? ", message)
    if unknown:
        name = next(group for group in unknown.groups() if group)
        return UserError(message.splitlines()[0]) if name in field_names() else _unknown_field(name)
    loose = re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", message)
    if loose:
        return UserError(f"{loose[1]} stands alone", "--config RECIPE and --section.field value",
                         f"--config {loose[1]}, if it is a recipe; `hfseg train --help` lists every field")
    text = " ".join(message.split()).replace("typing.", "")
    text = re.sub(r"<class '(?:NoneType|(\w+))'>", lambda kind: kind[1] or "nothing", text)
    wrong = re.search(r"[Pp]arser key \"([\w.]+)\": .*(?:Got|Given) value: (.*)", text)
    if not wrong:
        return UserError(text[:600], fix="`hfseg train --help` lists every field with its type")
    name, value = wrong.groups()
    kinds = re.search(r"Subtypes: \[(.*?)\] Errors:", text) or re.search(r"Expected an? (.*?)\. Got", text)
    kind = kinds[1].removesuffix(", nothing") if kinds else "another type"
    choices = re.findall(r"'(\w+)'", kind) if kind.startswith("Literal") else []
    near = difflib.get_close_matches(value, choices, n=1)
    return UserError(f"{name} is {value[:200]!r}", ", ".join(choices) or kind,
                     f"did you mean {near[0]}?" if near else "`hfseg train --help` says what it is")


def _unknown_field(name: str, where: str = "") -> UserError:
    names = field_names()
    last = name.rsplit(".", 1)[-1]
    if difflib.get_close_matches(name, ["config", "debug", "help"], n=1, cutoff=0.75):
        names = ["config", "debug", "help"]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or [n for n in names if n.rsplit(".", 1)[-1] == last]
    return UserError(f"{where}the recipe has no field {name!r}", "the fields that `hfseg train --help` lists",
                     f"did you mean {near[0]}?" if near else None)


def field_names(kind=None, prefix: str = "") -> list[str]:
    """Returns the dotted names of all fields of a recipe.

    Returns:
        Such as `train.learning_rate`.

    Example:
        >>> "transfer.strategy" in field_names()
        True
    """
    names = []
    for item in dataclasses.fields(kind or Recipe):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            names += field_names(type(default), f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names

"""What the commands share: their parser, their common flags, and what is made of them."""

from __future__ import annotations

import argparse
import difflib
import math
import tempfile
from pathlib import Path

from hfseg.errors import UserError

TASKS = ["semantic", "instance", "panoptic"]


class Parser(argparse.ArgumentParser):
    """argparse with our errors."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str):
        raise UserError(message, fix=f"{self.prog} --help")

    def parse_args(self, arguments: list[str]) -> argparse.Namespace:
        """Reads arguments, of which each has to be known.

        Args:
            arguments: What follows the command.

        Returns:
            The options.

        Raises:
            UserError: For one that is unknown, with the nearest name suggested, or wrong.
        """
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            raise self._unknown(unknown[0], ", ".join(self._names()) or None)
        return options

    def parse_with_data_flags(self, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Reads arguments, beside which there may be those of a recipe that say how data is read.

        Args:
            arguments: What follows the command.

        Returns:
            The options, and the flags `--data.*` and `--task` with their values.

        Raises:
            UserError: For a flag that says nothing about data, with the nearest name suggested, or a wrong one.
        """
        options, flags = self.parse_known_args(arguments)
        for flag in flags:
            if flag.startswith("--") and not flag.startswith("--data.") and flag.partition("=")[0] != "--task":
                raise self._unknown(flag, ", ".join(["--data.*", *self._names()]))
        return options, flags

    def _names(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _unknown(self, argument: str, allowed: str | None) -> UserError:
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, self._names(), n=1)
        fix = f"did you mean {near[0]}?" if near else f"{self.prog} --help"
        return UserError(f"{self.prog} takes no {name}", allowed, fix)


def read_recipe(config: str | None, flags: list[str]):
    """Returns the recipe of a file and flags.

    Args:
        config: Path or shipped name, or None.
        flags: `--section.field value` and so on.

    Returns:
        A checked `Recipe`.
    """
    from hfseg.recipe_reading import load_recipe

    return load_recipe(config, flags)


def open_data(path: str, flags: list[str], **more):
    """Returns the data at a path, read as the `--data.*` flags say.

    Args:
        path: Folder or hub id.
        flags: From `Parser.parse_with_data_flags`.
        **more: Arguments of `load_data` that a recipe does not have.

    Returns:
        A tuple of the `SegmentationData` and the `DataConfig` that the flags make.

    Raises:
        UserError: For data that cannot be read.
    """
    recipe = read_recipe(None, [*flags, "--data.path", path])
    from hfseg.data import load_recipe_data

    return load_recipe_data(recipe, **more), recipe.data


def add_inference_flags(parser: Parser) -> None:
    """Adds the flags that say how images are shown to the network.

    Args:
        parser: Of a command that uses a model.
    """
    parser.add_argument("--tile", type=int, metavar="PIXELS", help=(
        "compute images larger than this in overlapping windows of this side, a multiple of 32; 0 for whole images; "
        "default: as the model was scored in its training"))
    parser.add_argument("--tta", metavar="VIEWS", help=(
        "average over views: horizontal_flip, vertical_flip and scales, with commas (horizontal_flip,0.75,1.25); "
        "'' for none"))
    parser.add_argument("--task", choices=TASKS,
                        help="for models that do several; default: what it was trained for")


OBJECT_FLAGS = ("threshold", "mask_threshold", "overlap_mask_area_threshold", "overlaps", "max_segments")


def add_object_flags(parser: Parser) -> None:
    """Adds the flags that say which objects are taken: `OBJECT_FLAGS`, each None unless it is given.

    Args:
        parser: Of a command that tells objects apart.
    """
    group = parser.add_argument_group("objects, for the tasks instance and panoptic")
    group.add_argument("--threshold", type=float, help="least score of an object (default: 0.5)")
    group.add_argument("--mask_threshold", type=float, help="probability from which a pixel is an object's (0.5)")
    group.add_argument("--overlap_mask_area_threshold", type=float, metavar="SHARE", help=(
        "of a mask that others hide, the share that has to stay where objects may not overlap (0.8)"))
    group.add_argument("--no_overlaps", dest="overlaps", action="store_const", const=False, help=(
        "a pixel belongs to one instance alone, the best"))
    group.add_argument("--max_segments", type=positive, metavar="N", help="instances of an image, at most: the best")


def add_push_flags(parser: Parser) -> None:
    """Adds the flags of every push.

    Args:
        parser: Of a command that pushes.
    """
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository; it is created where it is missing")
    parser.add_argument("--private", action="store_true", help="create it as private")
    parser.add_argument("--revision", help="branch; it is made where it does not exist")
    parser.add_argument("--create_pr", action="store_true", help="propose the change as a pull request")
    parser.add_argument("--message", help="the commit's title")


def add_root_flag(parser: Parser) -> None:
    """Adds the flag that says where a local hub keeps its files.

    Args:
        parser: Of a command about a local hub.
    """
    parser.add_argument("--root", default="~/hfseg-hub", metavar="DIR", help="its files (default: ~/hfseg-hub)")


def positive(text: str) -> int:
    """Reads a count from the command line.

    Args:
        text: What was given.

    Returns:
        A whole number above 0.

    Raises:
        ArgumentTypeError: For anything else; argparse makes the message.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def above_zero(text: str) -> float:
    """Reads an amount from the command line.

    Args:
        text: What was given.

    Returns:
        A number above 0.

    Raises:
        ArgumentTypeError: For anything else; argparse makes the message.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def make_room(file: Path) -> None:
    """Makes the folder of a file to be written, and makes sure, before hours of work, that it can be.

    Args:
        file: What will be written.

    Raises:
        UserError: When it cannot be.
    """
    if file.is_dir():
        raise UserError(f"--output {file} is a folder", "a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError(f"{file.parent} cannot be written: {error.strerror}", "a writable folder",
                        "choose another --output") from error


def split_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Takes `--config X` out of the flags, so that flags win wherever they stand.

    Args:
        arguments: Of `hfseg train`.

    Returns:
        The recipe's path or name, and the other flags.

    Example:
        >>> split_config(["--train.max_steps", "3", "--config", "a.yaml"])
        ('a.yaml', ['--train.max_steps', '3'])
    """
    parser = Parser("hfseg train", add_help=False)
    parser.add_argument("--config")
    options, flags = parser.parse_known_args(arguments)
    return options.config, flags

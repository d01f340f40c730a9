"""The command line: a function per command, and one place where errors become messages."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from hfseg.errors import BadSample, UnknownValues, UserError, one_of

HELP = """\
usage: hfseg COMMAND ...

Fine-tune, evaluate and use segmentation models of the Hugging Face Hub.

  hfseg quickstart                        the whole journey on embedded data, in minutes
  hfseg init DATA > recipe.yaml           look at your data, write a recipe that fits it
  hfseg preview --config RECIPE           a picture of the augmented training samples
  hfseg train --config RECIPE             fine-tune; any field can be given as --section.field VALUE
  hfseg evaluate MODEL --data DATA        score a model at the images' own sizes
  hfseg predict MODEL IMAGE... --output DIR

`hfseg COMMAND --help` says more. MODEL is a run directory, a folder or a hub id; DATA a folder or a hub id; RECIPE a
YAML file or one of: {recipes}.
Exit status: 0 done; 2 for something you can mend, with what to do; 1 for a defect of hfseg. --debug shows tracebacks.
"""


class Parser(argparse.ArgumentParser):
    """argparse with our errors."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str):
        raise UserError(message, fix=f"{self.prog} --help")


def train(arguments: list[str]) -> None:
    """Fine-tune by a recipe."""
    from hfseg.recipe_reading import recipe_parser

    config, flags = split_config(arguments)
    if "-h" in flags or "--help" in flags:
        recipe_parser().print_help()
        return
    recipe = read_recipe(config, flags)
    folder = Path(config).parent if config and Path(config).is_file() else Path(config or "")
    own = Path(recipe.output_dir).expanduser()
    moved = config and any(folder.glob("checkpoints/step-*")) and folder.resolve() != own.resolve()
    if recipe.train.resume and moved and not any(flag.startswith("--output_dir") for flag in flags):
        raise UserError(f"{folder} holds a run whose recipe says output_dir {own}: it was moved",
                        fix=f"--output_dir {folder} goes on with it there")
    from hfseg.training import train as run

    run(recipe)


def preview(arguments: list[str]) -> None:
    """Draw augmented training samples."""
    parser = Parser("hfseg preview", description=(
        "Draw training samples as the recipe augments them, image beside map.\nTakes the flags of `hfseg train` too."))
    parser.add_argument("--config", help="recipe: a path or a shipped name")
    parser.add_argument("--output", default="preview.png", help="PNG to write (default: preview.png)")
    parser.add_argument("--count", type=positive, default=12, help="how many samples (default: 12)")
    options, flags = parser.parse_known_args(arguments)
    recipe = read_recipe(options.config, flags)
    if Path(options.output).suffix.lower() != ".png":
        raise UserError(f"--output {options.output} is no PNG", "a file name that ends in .png")
    make_room(Path(options.output))
    from hfseg.preview import draw_preview

    print(draw_preview(recipe, options.output, options.count))


def init(arguments: list[str]) -> None:
    """Write a recipe that fits some data."""
    parser = Parser("hfseg init", description=(
        "Look at the data and print a commented recipe that fits it.\n"
        "Takes --data.* flags (--data.labels.binary true, ...) where the data leaves something open."))
    parser.add_argument("data", help="folder or hub id")
    parser.add_argument("--limit", type=positive, default=200, help="samples per split to look at (default: 200)")
    options, flags = parser.parse_known_args(arguments)
    scan = {"max_scanned": 3 * options.limit}
    try:
        data, given = open_data(options.data, flags, **scan)
    except UserError as error:
        decided = any(flag.startswith("--data.on_bad_sample") for flag in flags)
        skip_helps = not decided and (isinstance(error, BadSample) or "on_bad_sample skip" in (error.fix or ""))
        if isinstance(error, UnknownValues) or not skip_helps:
            raise
        data, given = open_data(options.data, [*flags, "--data.on_bad_sample", "skip"], **scan)
    from hfseg.data import inspect_data, write_recipe

    print(write_recipe(inspect_data(data, limit=options.limit), options.data, given))


def evaluate(arguments: list[str]) -> None:
    """Score a model on a split."""
    parser = Parser("hfseg evaluate", description=(
        "Score a model at the original size of every image.\n"
        "Takes --data.* flags (--data.labels.names, --data.image_column, ...) for data that needs them.\n"
        "A run is scored in the tiles and views of its recipe, unless --tile and --tta say otherwise."))
    parser.add_argument("model", help="run directory, folder or hub id")
    parser.add_argument("--data", required=True, help="folder or hub id")
    parser.add_argument("--split", help="which split; found if not given")
    parser.add_argument("--output", help="JSON file to write the results to")
    parser.add_argument("--batch_size", type=positive, default=8, help="images per forward pass (default: 8)")
    parser.add_argument("--limit", type=positive, help="score the first n images only")
    parser.add_argument("--on_bad_sample", choices=["stop", "skip"], default="stop", help="default: stop")
    parser.add_argument("--revision", help="of a model on the hub")
    add_inference_flags(parser)
    options, flags = parser.parse_known_args(arguments)
    if options.output:
        make_room(Path(options.output))
    check_data_flags(flags)
    from hfseg.evaluation import evaluate as score

    results = score(
        options.model, options.data, split=options.split, overrides=flags, batch_size=options.batch_size,
        limit=options.limit, on_bad_sample=options.on_bad_sample, tile=options.tile, tta=options.tta,
        revision=options.revision, verbose=True, say=print,
    )  # fmt: skip
    width = max(len(name) for name in (*results["per_category_iou"], "overall_accuracy")) + 2
    print(f"{'class':<{width}}{'IoU':>8}{'F1':>8}")
    for name, value in results["per_category_iou"].items():
        f1 = results["per_category_f1"][name]
        print(f"{name:<{width}}" + ("  absent" if value is None else f"{value:8.4f}{f1:8.4f}"))
    for key in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        print(f"{key:<{width}}" + ("  absent" if results[key] is None else f"{results[key]:8.4f}"))
    print(f"{results['num_images']} images of the split {results['protocol']['split']}")
    if options.output:
        from hfseg.run_directory import write_atomic

        write_atomic(Path(options.output), json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        print(f"written to {options.output}")


def predict(arguments: list[str]) -> None:
    """Predict masks of images."""
    parser = Parser("hfseg predict", description="Write a semantic map, an overlay and the areas of each image.")
    parser.add_argument("model", help="run directory, folder or hub id")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="images, folders, globs")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--revision", help="of a model on the hub")
    add_inference_flags(parser)
    options = parser.parse_args(arguments)
    output = Path(options.output).expanduser()
    make_room(output / "map.png")
    from hfseg.prediction import find_images, predict_files

    files = find_images(options.inputs)
    written = predict_files(options.model, files, output, options.revision, tile=options.tile, tta=options.tta)
    print(f"{written} of {len(files)} images written to {output}")
    if written < len(files):
        raise UserError(f"{len(files) - written} of {len(files)} images could not be read",
                        fix="see the messages above")


def quickstart(arguments: list[str]) -> None:
    """Run the whole journey."""
    parser = Parser("hfseg quickstart", description=(
        "Fine-tune the shipped checkpoint on embedded data, evaluate it, load it again and predict."))
    parser.add_argument("--output_dir", default="runs/quickstart", help="default: runs/quickstart")
    parser.add_argument("--compare", action="store_true", help="also train from random weights, and draw both curves")
    options, flags = parser.parse_known_args(arguments)
    from hfseg.quickstart import run_quickstart

    run_quickstart(options.output_dir, compare=options.compare, overrides=flags)


COMMANDS = {
    "quickstart": quickstart, "init": init, "preview": preview, "train": train, "evaluate": evaluate,
    "predict": predict,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What follows `hfseg`; None takes the process's own.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            from hfseg.recipe_reading import shipped_recipes

            print(HELP.format(recipes=", ".join(shipped_recipes())), end="")
            return 0
        if arguments[0] == "--version":
            import hfseg

            print(hfseg.__version__)
            return 0
        COMMANDS[one_of(arguments[0], COMMANDS, "command")](arguments[1:])
        return 0
    except UserError as error:
        if debug:
            raise
        print(f"hfseg: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("hfseg: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            raise
        if error.speaks:
            print(f"hfseg: {error}", file=sys.stderr)
        return 128 + error.signum


def run() -> None:
    """Is the `hfseg` command."""
    sys.exit(main())


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
        flags: Of the command line.
        **more: Arguments of `load_data` that a recipe does not have.

    Returns:
        A tuple of the `SegmentationData` and the `DataConfig` that the flags make.

    Raises:
        UserError: For a flag that says nothing about data, or data that cannot be read.
    """
    check_data_flags(flags)
    recipe = read_recipe(None, [*flags, "--data.path", path])
    from hfseg.data import load_recipe_data

    return load_recipe_data(recipe, **more), recipe.data


def check_data_flags(flags: list[str]) -> None:
    """Refuses flags of a recipe that say nothing about data.

    Args:
        flags: Of the command line.

    Raises:
        UserError: For the first of them.
    """
    for flag in flags:
        if flag.startswith("--") and not flag.startswith("--data."):
            raise UserError(f"this command takes no {flag.partition('=')[0]}", "--data.* and what --help lists")


def add_inference_flags(parser: Parser) -> None:
    """Adds the flags that say how images are shown to the network.

    Args:
        parser: Of a command that uses a model.
    """
    parser.add_argument("--tile", type=int, metavar="PIXELS", help=(
        "compute images larger than this in overlapping windows of this side, a multiple of 32; 0 for whole images"))
    parser.add_argument("--tta", metavar="VIEWS", help=(
        "average over views: horizontal_flip, vertical_flip and scales, with commas (horizontal_flip,0.75,1.25); "
        "'' for none"))


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



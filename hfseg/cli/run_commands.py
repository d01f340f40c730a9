"""The commands that look at data, train, score and predict."""

from __future__ import annotations

import json
from pathlib import Path

from hfseg.cli.arguments import (
    OBJECT_FLAGS,
    TASKS,
    Parser,
    above_zero,
    add_inference_flags,
    add_object_flags,
    make_room,
    open_data,
    positive,
    read_recipe,
    split_config,
)
from hfseg.errors import BadSample, UnknownValues, UserError


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
        "Takes --data.* flags (--data.labels.binary true, ...) where the data leaves something open, and --task\n"
        "instance or panoptic for data with objects; without, it says what the data can be read for."))
    parser.add_argument("data", help="folder or hub id")
    parser.add_argument("--limit", type=positive, default=200, help="samples per split to look at (default: 200)")
    options, flags = parser.parse_with_data_flags(arguments)
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
    options, flags = parser.parse_with_data_flags(arguments)
    if options.output:
        make_room(Path(options.output))
    from hfseg.evaluation import evaluate as score

    results = score(
        options.model, options.data, split=options.split, overrides=flags, batch_size=options.batch_size,
        limit=options.limit, on_bad_sample=options.on_bad_sample, tile=options.tile, tta=options.tta,
        task=options.task, revision=options.revision, verbose=True, say=print,
    )  # fmt: skip
    print_scores(results)
    whole = results["protocol"]["images_in_split"]
    print(f"{'the first ' if whole else ''}{results['num_images']} images {f'of the {whole} ' if whole else ''}"
          f"of the split {results['protocol']['split']}")
    if options.output:
        from hfseg.run_directory import write_atomic

        write_atomic(Path(options.output), json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        print(f"written to {options.output}")


def print_scores(results: dict) -> None:
    """Print the scores of each class, and those of the split."""
    from hfseg.metrics.scorers import SHOWN

    task = results.get("task", "semantic")
    columns, shown = {
        "semantic": ({"IoU": "per_category_iou", "F1": "per_category_f1"}, SHOWN[task]),
        "instance": ({"AP": "per_category_ap"}, (
            *SHOWN[task], *(f"mask_ap_{area}" for area in ("small", "medium", "large")),
            *(key for key in results if key.startswith("mask_ar_")), "boundary_ap")),
        "panoptic": ({key.upper(): f"per_category_{key}" for key in ("pq", "sq", "rq")}, (
            *SHOWN[task], "panoptic_quality_things", "panoptic_quality_stuff", "mean_iou")),
    }[task]  # fmt: skip
    names = results[next(iter(columns.values()))]
    width = max(len(name) for name in (*names, *shown)) + 2
    print(f"{'class':<{width}}" + "".join(f"{column:>8}" for column in columns))
    for name, value in names.items():
        row = [f"{results[key][name]:8.4f}" for key in columns.values()] if value is not None else ["  absent"]
        print(f"{name:<{width}}" + "".join(row))
    for key in shown:
        print(f"{key:<{width}}" + ("  absent" if results.get(key) is None else f"{results[key]:8.4f}"))


def predict(arguments: list[str]) -> None:
    """Predict masks of images."""
    parser = Parser("hfseg predict", description=(
        "Write a semantic map, an overlay and the areas of each image; and where objects are told apart, a map of "
        "their ids, with scores, boxes and masks in the JSON file."))
    parser.add_argument("model", help="run directory, folder or hub id")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="images, folders, globs")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--revision", help="of a model on the hub")
    add_inference_flags(parser)
    add_object_flags(parser)
    parser.add_argument("--batch_size", type=positive, default=4, help="images per forward pass (default: 4)")
    options = parser.parse_args(arguments)
    output = Path(options.output).expanduser()
    make_room(output / "map.png")
    from hfseg.prediction import find_images, predict_files

    files = find_images(options.inputs)
    rules = {name: getattr(options, name) for name in ("task", *OBJECT_FLAGS) if getattr(options, name) is not None}
    written = predict_files(options.model, files, output, options.revision, tile=options.tile, tta=options.tta,
                            batch_size=options.batch_size, **rules)
    print(f"{written} of {len(files)} images written to {output}")
    if written < len(files):
        raise UserError(f"{len(files) - written} of {len(files)} images could not be read",
                        fix="see the messages above")


def demo(arguments: list[str]) -> None:
    """Serve a page."""
    parser = Parser("hfseg demo", description=(
        "Serve a page that segments photos, videos and a webcam in the browser, until Ctrl-C. Several models can be\n"
        "compared; a promptable one (SAM, SAM 2, EdgeTAM) turns clicks and boxes into masks."))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=(
        "run directories, folders or hub ids (default: the newest runs/quickstart, else the model that hfseg ships)"))
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on; 0 takes any free one")
    parser.add_argument("--host", default=None, metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    options = parser.parse_args(arguments)
    from hfseg.demo import launch

    launch(options.models or None, server_port=options.port, server_name=options.host)


def quickstart(arguments: list[str]) -> None:
    """Run the whole journey."""
    parser = Parser("hfseg quickstart", description=(
        "Fine-tune the shipped checkpoint on embedded data, evaluate it, load it again and predict."))
    parser.add_argument("--output_dir", default="runs/quickstart", help="default: runs/quickstart")
    parser.add_argument("--compare", action="store_true", help="also train from random weights, and draw both curves")
    options, flags = parser.parse_known_args(arguments)
    from hfseg.quickstart import run_quickstart

    run_quickstart(options.output_dir, compare=options.compare, overrides=flags)


def models(arguments: list[str]) -> None:
    """List networks."""
    parser = Parser("hfseg models", description="List networks with their size and cost, at 21 classes and 512 x 512.")
    parser.add_argument("pattern", nargs="?", default="", help="part of a name, family, backbone or task")
    parser.add_argument("--backbone", help="hfseg's own networks on this backbone")
    parser.add_argument("--task", choices=TASKS, help="those that do it")
    parser.add_argument("--max_parameters", type=above_zero, metavar="MILLIONS", help="no larger ones")
    parser.add_argument("--max_gflops", type=above_zero, metavar="GFLOPS",
                        help="no costlier ones; leaves out those whose cost is not counted")
    options = parser.parse_args(arguments)
    from hfseg.models.listing import list_models, print_models

    print_models(list_models(**vars(options)))

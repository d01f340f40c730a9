"""The command line: a function per command, and one place where errors become messages."""

from __future__ import annotations

import os
import sys

from hfseg.cli.arguments import split_config
from hfseg.cli.hub_commands import card, hub, pull, push, push_data
from hfseg.cli.run_commands import demo, evaluate, init, models, predict, preview, quickstart, train
from hfseg.errors import UserError, one_of

HELP = """\
usage: hfseg COMMAND ...

Fine-tune, evaluate and use segmentation models of the Hugging Face Hub.

  hfseg quickstart                        the whole journey on embedded data, in minutes
  hfseg init DATA > recipe.yaml           look at your data, write a recipe that fits it
  hfseg preview --config RECIPE           a picture of the augmented training samples
  hfseg train --config RECIPE             fine-tune; any field can be given as --section.field VALUE
  hfseg evaluate MODEL --data DATA        score a model at the images' own sizes
  hfseg predict MODEL IMAGE... --output DIR
  hfseg demo [MODEL ...]                  a page in the browser: photos, videos, webcam; compare, correct, export
  hfseg models [PATTERN]                  networks, their size and cost
  hfseg card DIR                          write a run's model card again
  hfseg push DIR USER/NAME                publish a run, in one commit; --space serves it, too
  hfseg pull USER/NAME                    download a model and check every file's hash
  hfseg push-data DATA USER/NAME          publish data as a parquet data set
  hfseg hub serve --root DIR              a hub of your own on this machine, for work with no internet

`hfseg COMMAND --help` says more. MODEL is a run directory, a folder or a hub id; DATA a folder or a hub id; RECIPE a
YAML file or one of: {recipes}.
Exit status: 0 done; 2 for something you can mend, with what to do; 1 for a defect of hfseg. --debug shows tracebacks.
"""

COMMANDS = {
    "quickstart": quickstart, "init": init, "preview": preview, "train": train, "evaluate": evaluate,
    "predict": predict, "demo": demo, "models": models, "card": card, "push": push, "pull": pull,
    "push-data": push_data, "hub": hub,
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
    status = main()
    if status == 130:  # threads of a download that hangs would keep the process for as long
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


__all__ = ["COMMANDS", "main", "run", "split_config"]

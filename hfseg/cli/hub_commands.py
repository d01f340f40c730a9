"""The commands that publish, download, and serve a hub."""

from __future__ import annotations

from hfseg.cli.arguments import Parser, add_push_flags, add_root_flag
from hfseg.errors import one_of

HUB_HELP = """\
usage: hfseg hub serve [--root DIR] [--port N]
       hfseg hub token USER [--role read] [--root DIR]

A hub of your own: huggingface_hub, transformers, datasets and browsers use it as they use the real one."""


def card(arguments: list[str]) -> None:
    """Write a run's model card again."""
    parser = Parser("hfseg card", description=(
        "Write the model card of a run directory again, from its files.\n"
        "Sections, metadata and changes that a person made are kept; scores always come from eval_results.json."))
    parser.add_argument("run", help="run directory")
    parser.add_argument("--repo_id", help="name on the hub to show in the examples")
    options = parser.parse_args(arguments)
    from hfseg.hub.card import write_card

    print(write_card(options.run, repo_id=options.repo_id, say=print))


def push(arguments: list[str]) -> None:
    """Publish a run."""
    parser = Parser("hfseg push", description=(
        "Push a run directory, or any folder that save_pretrained wrote, in one commit: weights, configuration,\n"
        "processor, labels, recipe, results, log, samples and card; never checkpoints."))
    parser.add_argument("run", metavar="DIR", help="run directory")
    add_push_flags(parser)
    parser.add_argument("--tag", help="name of a tag to put on the commit")
    parser.add_argument("--space", action="store_true", help="also push a Space that serves the model in a browser")
    options = parser.parse_args(arguments)
    from hfseg.hub.push import push as run

    run(options.run, options.repo_id, private=options.private, revision=options.revision, create_pr=options.create_pr,
        tag=options.tag, message=options.message, space=options.space)  # fmt: skip


def pull(arguments: list[str]) -> None:
    """Download a model."""
    parser = Parser("hfseg pull", description=(
        "Download a model into the hub's cache or a folder, and compare every file's hash with the hub's.\n"
        "Pickled files are left out."))
    parser.add_argument("repo_id", metavar="USER/NAME")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--local_dir", metavar="DIR", help="folder to put the files into (default: the hub's cache)")
    parser.add_argument("--repo_type", choices=["model", "dataset", "space"], default="model", help="default: model")
    options = parser.parse_args(arguments)
    from hfseg.hub.pull import pull as run

    run(options.repo_id, revision=options.revision, local_dir=options.local_dir, repo_type=options.repo_type)


def push_data(arguments: list[str]) -> None:
    """Publish data."""
    parser = Parser("hfseg push-data", description=(
        "Push any data that hfseg reads as a parquet data set with a card: load_dataset reads it back.\n"
        "Takes --data.* flags (--data.labels.names, --data.image_column, ...) for data that needs them."))
    parser.add_argument("data", help="folder or hub id")
    add_push_flags(parser)
    options, flags = parser.parse_with_data_flags(arguments)
    from hfseg.hub.push_data import push_data as run

    run(options.data, options.repo_id, private=options.private, revision=options.revision,
        create_pr=options.create_pr, message=options.message, overrides=flags)  # fmt: skip


def hub(arguments: list[str]) -> None:
    """Serve a hub on this machine."""
    commands = {"serve": hub_serve, "token": hub_token}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HUB_HELP)
        return
    commands[one_of(arguments[0], commands, "command of hfseg hub")](arguments[1:])


def hub_serve(arguments: list[str]) -> None:
    """Serve until Ctrl-C."""
    parser = Parser("hfseg hub serve", description=(
        "Serve a hub until Ctrl-C. Prints the lines that make other programs use it."))
    add_root_flag(parser)
    parser.add_argument("--port", type=int, default=8787, help="default: 8787; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    options = parser.parse_args(arguments)
    from hfseg.hub.local import serve

    serve(options.root, host=options.host, port=options.port)


def hub_token(arguments: list[str]) -> None:
    """Make a token for somebody."""
    parser = Parser("hfseg hub token", description=(
        "Print a new token of a hub, which may be serving meanwhile."))
    parser.add_argument("user", help="whom it stands for; may write to repositories USER/...")
    parser.add_argument("--role", choices=["read", "write"], default="write", help="default: write")
    add_root_flag(parser)
    options = parser.parse_args(arguments)
    from hfseg.hub.local import token_for

    print(token_for(options.root, options.user, options.role))

"""Push data to the hub: whatever hfseg reads becomes a parquet data set that `load_dataset` reads back."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import HfApi

from hfseg.data import SegmentationData, StreamingSegmentationData, load_recipe_data
from hfseg.errors import UserError
from hfseg.hub.access import open_repo
from hfseg.hub.card_text import public
from hfseg.hub.commit import Pushed, commit
from hfseg.hub.data_card import PICTURE, data_card, draw_samples
from hfseg.hub.parquet import Data, columns, published_files, write_splits
from hfseg.hub_errors import hub_errors
from hfseg.labels import LabelSchema
from hfseg.recipe import DataConfig
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import CARD, LABELS

ID2LABEL = "id2label.json"
SHARD = re.compile(r"data/\w+-\d{5}-of-\d{5}(-\w+)?\.parquet")


def push_data(
    path_or_data: str | os.PathLike | Data, repo_id: str, *, private: bool = False, revision: str | None = None,
    create_pr: bool = False, message: str | None = None, token: str | None = None, endpoint: str | None = None,
    max_shard_bytes: int = 500_000_000, overrides: Sequence[str] = (), say: Callable[[str], None] = print,
) -> Pushed:  # fmt: skip
    """Pushes images with label maps as a parquet data set, in one commit.

    Images keep the bytes of their files. Label maps become PNGs of class ids, so that no remap is left to whoever
    reads them. All splits go as they are: nothing is held out for validation, unless `overrides` ask for it. Rows are
    read one at a time, and the parquet files wait in the temporary folder until all are written. A card that is there
    keeps what a person wrote into it.

    Args:
        path_or_data: What `hfseg.load_data` reads, or what it gave.
        repo_id: USER/NAME, or NAME for one of your own; it is created where it is missing.
        private: Whether a new repository is private.
        revision: Branch; it is made where it does not exist.
        create_pr: Whether to propose the change as a pull request.
        message: The commit's title.
        token: Hub token, if not the one that is logged in.
        endpoint: URL of the hub, if not HF_ENDPOINT's.
        max_shard_bytes: Size of a parquet file beyond which the next one is begun.
        overrides: Flags such as `["--data.labels.binary", "true"]`; `--data.on_bad_sample skip` leaves bad rows out.
        say: Called with what a person wants to know.

    Returns:
        A `Pushed`: commit, URL, and how many files changed.

    Raises:
        UserError: When the data cannot be read, or the hub refuses; the hub's head is what it was.

    Example:
        >>> import hfseg, tempfile
        >>> with tempfile.TemporaryDirectory() as root, hfseg.LocalHub(root) as hub:
        ...     data = hfseg.load_data("shapes/target", scenes=4)
        ...     push_data(data, "me/shapes", endpoint=hub.url, token=hub.token, say=lambda text: None).changed
        6
    """
    data, wanted = _read(path_or_data, overrides)
    for note in data.notes:
        say(note)
    api, repo_id = open_repo(repo_id, repo_type="dataset", private=private, create_pr=create_pr, token=token,
                             endpoint=endpoint)
    schema, features = published_schema(data.schema), columns(data)
    with hub_errors(repo_id, "dataset", api):
        old = (_card(api, repo_id, revision) if revision else None) or _card(api, repo_id, None)
    with tempfile.TemporaryDirectory(prefix="hfseg-data-") as folder:
        limits = {key: wanted.max_train_samples if key == data.train else wanted.max_eval_samples for key in data}
        splits = write_splits(data, Path(folder), features, limits=limits, skip=wanted.on_bad_sample == "skip",
                              max_shard_bytes=max_shard_bytes)
        text, kept = data_card(data, schema, splits, features, repo_id, old)
        files: dict[str, Path | bytes] = {
            CARD: text.encode(),
            LABELS: _json(schema.to_dict()),
            ID2LABEL: _json({str(i): name for i, name in schema.id2label.items()}),
            PICTURE: draw_samples(schema, splits, Path(folder) / PICTURE),
            **{name: file for split in splits for name, file in published_files(split)},
        }
        for split in splits:
            skipped = f"; {len(split.skipped)} left out" if split.skipped else ""
            say(f"{split.name}: {split.rows} images in {len(split.files)} parquet "
                f"file{'s' * (len(split.files) > 1)}{skipped}")
        for what in kept:
            say(f"kept as a person left it: {what}")
        # Rows of an earlier push would come beside the new ones.
        pushed = commit(api, repo_id, files, repo_type="dataset", delete=lambda name: bool(SHARD.fullmatch(name)),
                        message=message or f"Data from hfseg: {public(data.source)}", revision=revision,
                        create_pr=create_pr, say=say)  # fmt: skip
    say(f"{pushed.changed} files pushed: {pushed.url}" if pushed.changed else f"{pushed.url} has all of this already")
    return pushed


def published_schema(schema: LabelSchema) -> LabelSchema:
    """Returns the labels of maps whose remap has been applied.

    Args:
        schema: Of the source.

    Returns:
        The same classes, stored as their ids.

    Example:
        >>> schema = LabelSchema.from_names(["void", "road"], reduce_labels=True)
        >>> published_schema(schema).stored, published_schema(schema).stored_names
        (((0, 0), (255, None)), ('road', 'void'))
    """
    ignored = dict.fromkeys(name for (_, i), name in zip(schema.stored, schema.stored_names, strict=True)
                            if i is None and name != "ignored")  # fmt: skip
    ids = tuple((i, i) for i in range(schema.num_labels))
    return LabelSchema(schema.names, schema.palette, (*ids, (schema.ignore_index, None)),
                       (*schema.names, ", ".join(ignored) or "ignored"), origin=public(schema.origin),
                       things=schema.things)  # fmt: skip


def _read(path_or_data: str | os.PathLike | Data, overrides: Sequence[str]) -> tuple[Data, DataConfig]:
    given = isinstance(path_or_data, (SegmentationData, StreamingSegmentationData))
    if not given and not isinstance(path_or_data, (str, os.PathLike)):
        raise UserError(f"data of type {type(path_or_data).__name__}, whose labels are not known",
                        "a path, a hub id, or what hfseg.load_data gives", "save it, and give the path")
    place = [] if given else ["--data.path", os.fspath(path_or_data)]
    recipe = load_recipe(None, ["--data.validation_fraction", "0", *overrides, *place])
    if recipe.data.image_size is not None:
        raise UserError("--data.image_size resizes images, and images are published as they are", fix="leave it out")
    return path_or_data if given else load_recipe_data(recipe), recipe.data


def _card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The card that is there, if there is one."""
    if not api.file_exists(repo_id, CARD, repo_type="dataset", revision=revision):
        return None
    path = api.hf_hub_download(repo_id, CARD, repo_type="dataset", revision=revision)
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

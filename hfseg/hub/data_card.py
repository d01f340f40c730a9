"""The card of a data set: what is in it, how it was made, how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

import hfseg
from hfseg.data.contact_sheet import contact_sheet
from hfseg.hub.card_merge import INTRODUCTION, Merge
from hfseg.hub.card_text import code, counted, is_repo_id, line, listing, literal, picture, public, repository, share
from hfseg.hub.card_text import title as heading
from hfseg.hub.parquet import Data, WrittenSplit, published_files
from hfseg.labels import LabelSchema
from hfseg.remap import hex_colour

PICTURE, IGNORED_COLOUR = "samples.png", (60, 60, 66)
LISTED = 256  # classes in the table
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def data_card(
    data: Data, schema: LabelSchema, splits: Sequence[WrittenSplit], features: datasets.Features, repo_id: str,
    old: str | None = None,
) -> tuple[str, list[str]]:  # fmt: skip
    """Writes the card of a data set around what a person wrote into the one that is there.

    Args:
        data: What was published.
        schema: The labels as they are published, with no remap left.
        splits: What was written.
        features: Of the columns.
        repo_id: user/name.
        old: The card that is there.

    Returns:
        A tuple of the text, and what of it was left as a person wrote it.

    Raises:
        UserError: When the metadata of the card that is there is no YAML.
    """
    merge = Merge(old, "README.md")
    needed = _description(splits, features)
    rows = sum(split.rows for split in splits)
    kinds = ["semantic"] if data.task == "semantic" else [data.task, "semantic"]
    values = merge.metadata({
        "pretty_name": line(repo_id.split("/")[-1]),
        "task_categories": ["image-segmentation"],
        "task_ids": [f"{kind}-segmentation" for kind in kinds],
        "tags": ["hfseg", "image-segmentation", *(f"{kind}-segmentation" for kind in kinds)],
        "size_categories": [next((name for most, name in SIZES.items() if rows < most), "10M<n<100M")],
        **needed,
    })  # fmt: skip
    values |= needed  # without these as they are, load_dataset finds other splits, or none
    sections = {
        INTRODUCTION: _introduction(data, schema, splits, repo_id),
        "classes": _classes(schema, splits),
        "columns": _columns(schema, features),
        "usage": _usage(repo_id, splits, features),
        "origin": _origin(data, splits, features),
        "license": None if values.get("license") else (
            "## License\n\nNo license is stated. Whoever may decide it adds `license:` to the metadata of this card."),
    }
    text = merge.write(values, {key: text for key, text in sections.items() if text})
    return text, [what for what in merge.kept if what.removeprefix("metadata: ") not in needed]


def draw_samples(schema: LabelSchema, splits: Sequence[WrittenSplit], path: Path) -> Path:
    """Draws some images beside their maps, with a legend.

    Args:
        schema: The labels.
        splits: What was written; the first one is drawn.
        path: PNG to write.

    Returns:
        `path`.
    """
    samples = [(torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))),
                torch.from_numpy(sample.semantic_map.astype(np.int32))) for sample in splits[0].samples]
    return contact_sheet(samples, path, schema.palette, schema.ignore_index, names=[line(n) for n in schema.names],
                         ignore_colour=IGNORED_COLOUR, side=160)  # fmt: skip


def _description(splits: Sequence[WrittenSplit], features: datasets.Features) -> dict[str, Any]:
    """What `load_dataset` and the hub's viewer read: files, columns and sizes."""
    listed = datasets.SplitDict()
    for split in splits:
        listed.add(datasets.SplitInfo(split.name, num_bytes=split.num_bytes, num_examples=split.rows))
    info = datasets.DatasetInfo(
        features=features, splits=listed, dataset_size=sum(split.num_bytes for split in splits),
        download_size=sum(file.stat().st_size for split in splits for file in split.files),
    )
    data = DatasetCardData()
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": split.name, "path": f"data/{split.name}-*"} for split in splits]
    return {"dataset_info": data["dataset_info"], "configs": [{"config_name": "default", "data_files": files}]}


def _introduction(data: Data, schema: LabelSchema, splits: Sequence[WrittenSplit], repo_id: str) -> str:
    rows = sum(split.rows for split in splits)
    table = ["| split | images | width | height | parquet |", "|---|--:|--:|--:|--:|"]
    for split in splits:
        size = sum(file.stat().st_size for _, file in published_files(split))
        table.append(f"| {code(split.name)} | {split.rows:,} | {_span(split.widths)} | {_span(split.heights)} "
                     f"| {size / 1e6:,.1f} MB |")
    shown = picture(f"Some images of the split {splits[0].name} beside their label maps", PICTURE)
    return (f"# {heading(repo_id.split('/')[-1])}\n\n{counted(rows, 'image')}, each with a map that gives every pixel "
            f"one of {counted(schema.num_labels, 'class')}.\n\n" + "\n".join(table) + f"\n\n{shown}")


def _span(ends: tuple[int, int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def _classes(schema: LabelSchema, splits: Sequence[WrittenSplit]) -> str:
    total = sum(int(split.pixels.sum()) for split in splits)
    heads = [f"pixels, {code(split.name)}" for split in splits]
    table = ["| id | class | colour | " + " | ".join([*heads, "images"]) + " |", "|--:|---|---|" + "--:|" * len(heads)
             + "--:|"]
    images = sum(split.images for split in splits)
    pixels = sum(split.pixels for split in splits)
    called = dict(zip((value for value, _ in schema.stored), schema.stored_names, strict=True))[schema.ignore_index]
    rows = [(i, code(name), f"`{hex_colour(schema.palette[i])}`", i) for i, name in enumerate(schema.names)]
    if pixels[-1]:
        also = "" if called in ("ignored", "unlabelled") else f" ({code(called)})"
        rows.append((schema.ignore_index, f"unlabelled{also}", "", schema.num_labels))
    for value, name, colour, place in rows[:LISTED]:
        shares = [share(int(split.pixels[place]) / max(1, int(split.pixels.sum()))) for split in splits]
        table.append(f"| {value} | {name} | {colour} | " + " | ".join(shares) + f" | {int(images[place]):,} |")
    empty = [code(name) for name, count in zip(schema.names, pixels, strict=False) if not count]
    never = f"\n\nNo pixel has: {listing(empty, most=40)}." if empty else ""
    if len(rows) > LISTED:
        never = f"\n\nAnd {len(rows) - LISTED} more, in `id2label.json`.{never}"
    return (f"## Classes\n\nOf {total / 1e6:,.1f} million pixels. `id2label.json` has the names, `labels.json` the "
            "colours, too.\n\n" + "\n".join(table) + never)


def _columns(schema: LabelSchema, features: datasets.Features) -> str:
    image = "the image, in the bytes of its original file"
    if not isinstance(features["image"], datasets.Image):
        image += ", a npy array or a TIFF, which `tifffile` and hfseg read"
    bits = 8 if schema.dtype == np.uint8 else 16
    objects = "" if "instances" not in features else (
        "\n- `instances`: the objects, each with `category_id` (the class id), `iscrowd` (a region of many that "
        "nobody told apart), `id` (from 1), `segmentation`: its mask as COCO run-length code, in JSON, "
        "and `area`: that which its annotation stated, if it did. "
        f"`hfseg train --task {'instance' if all(schema.is_thing) else 'panoptic'}` reads them.")
    return (f"## Columns\n\n- `image`: {image}.\n- `semantic_map`: a PNG of one channel of {bits} bits, as large as "
            f"the image: the class id of every pixel, {schema.ignore_index} where it has none.\n- `image_id`: its "
            "name, once in each split." + objects)


def _usage(repo_id: str, splits: Sequence[WrittenSplit], features: datasets.Features) -> str:
    name, split = literal(repo_id), literal(splits[0].name)
    size = 'data[0]["image"].size, ' if isinstance(features["image"], datasets.Image) else ""
    return f"""## Usage

```python
import numpy as np
from datasets import load_dataset

data = load_dataset({name}, split={split})  # streaming=True reads it without a download
print({size}np.unique(np.array(data[0]["semantic_map"])))
```

or with hfseg, which knows the class names and fine-tunes on it (`hfseg train --data.path {repo_id}`):

```python
import hfseg

data = hfseg.load_data({name})
print(data.schema.table())
sample = data.read({split}, 0)
print(sample.image.shape, sample.semantic_map.shape)
```"""


def _origin(data: Data, splits: Sequence[WrittenSplit], features: datasets.Features) -> str:
    source = public(line(data.source))
    origin = repository(source, "datasets/") if is_repo_id(source) else code(source)
    revision = f" at revision {code(data.revision)}" if data.revision else ""
    text = [f"Made by hfseg {hfseg.__version__} from {origin}{revision}. Files of images are the original ones, byte "
            "by byte; label maps were read, their values turned into class ids once, and written without loss."]
    was = [f"{code(name)} → {code(data.schema.names[i])}"
           for (_, i), name in zip(data.schema.stored, data.schema.stored_names, strict=True)
           if i is not None and data.schema.names[i] != name]  # fmt: skip
    if was:
        text.append(f"Names that changed: {listing(was, most=40)}.")
    if skipped := sum(len(split.skipped) for split in splits):
        text.append(f"{counted(skipped, 'row')} of the source could not be used and {'is' if skipped == 1 else 'are'} "
                    "left out.")
    notes = [f"- {code(public(note))}" for note in data.notes]
    if notes:
        text.append("What hfseg found and assumed while reading it:\n\n" + "\n".join(notes))
    return "## How it was made\n\n" + "\n\n".join(text)

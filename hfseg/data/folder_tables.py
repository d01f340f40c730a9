"""Pairs that a table lists: the metadata.csv or metadata.jsonl of an imagefolder."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict

from hfseg.data.folder_names import ROLE_OF
from hfseg.data.folder_pairs import Pairs
from hfseg.errors import UserError


def is_table(name: str) -> bool:
    """Tells whether a file is such a table, by its name.

    Args:
        name: Of the file.

    Returns:
        True for metadata.csv and metadata.jsonl.
    """
    return name in ("metadata.csv", "metadata.jsonl")


def read_table(table: str) -> dict[str | None, Pairs]:
    """Reads a table: `file_name`, a column such as `mask_file_name`, and perhaps `split`.

    Args:
        table: The file.

    Returns:
        The pairs by split, as it is called there; None where the table has no such column.

    Raises:
        UserError: When it is no such table, or a line is not whole.
    """
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = (
                list(csv.DictReader(file))
                if table.endswith(".csv")
                else [json.loads(line) for line in file if line.strip()]
            )
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no object")
    except (ValueError, csv.Error) as error:  # JSON's and UTF-8's are ValueErrors
        raise UserError(f"{table} cannot be read: {error}", "a table of file names, in UTF-8") from error
    if not rows:
        raise UserError(f"{table} is empty", "a row per image")
    columns = [column for column in rows[0] if column]
    image = next((c for c in ("file_name", "image_file_name", "image", "image_path") if c in columns), None)
    label = next((c for c in columns if c != image and ROLE_OF.get(_stripped(c)) == "map"), None)
    if image is None or label is None:
        raise UserError(
            f"{table} has the columns {', '.join(columns)}",
            "file_name and mask_file_name, relative to the table",
            "rename the columns",
        )
    folder = os.path.dirname(table)
    split = next((c for c in ("split", "subset", "partition") if c in columns), None)
    splits: dict[str | None, Pairs] = defaultdict(Pairs)
    seen = set()
    for number, row in enumerate(rows, start=2 if table.endswith(".csv") else 1):
        for column in (image, label):
            value = row.get(column)
            row[column] = value.get("path") if isinstance(value, dict) else value
            if not isinstance(row[column], str) or not row[column]:
                found = f"{column} is {value!r}" if value else f"no {column}"
                raise UserError(f"{table}, line {number}: {found}", "a path relative to the table", "fill it in")
        if row[image] in seen:
            raise UserError(f"{table} lists {row[image]} more than once", "each image once", "remove the other rows")
        seen.add(row[image])
        pairs = splits[str(row[split]) if split and row.get(split) else None]
        pairs.images.append(os.path.join(folder, row[image]))
        pairs.maps.append(os.path.join(folder, row[label]))
        pairs.ids.append(os.path.splitext(row[image])[0])
    return dict(splits)


def _stripped(column: str) -> str:
    for ending in ("_file_name", "_filename", "_path", "_file"):
        column = column.lower().removesuffix(ending)
    return column

"""Matching the classes of a data set with those of a model, by name."""

from __future__ import annotations

import json

import numpy as np

from hfseg.errors import UserError
from hfseg.labels import LabelSchema


def align_classes(schema: LabelSchema, names: list[str], say=lambda line: None) -> np.ndarray | None:
    """Matches the data's classes with the model's by name.

    Args:
        schema: Of the data.
        names: Classes of the model, in order.
        say: Prints a line.

    Returns:
        Model id per data id, or None when they are the same.

    Raises:
        UserError: When a class of the data is unknown to the model.
    """
    if list(schema.names) == names:
        return None
    match = schema.align(names)
    left = [name for name, target in zip(schema.names, match) if target < 0]
    if left:
        raise UserError(
            f"the model does not know these classes of the data: {', '.join(left[:20])}",
            f"the model's classes: {', '.join(names[:40])}" + (", ..." if len(names) > 40 else ""),
            "name them alike with --data.labels.names, merge them with --data.labels.merge, or leave them out with "
            "--data.labels.drop",
        )
    for target in set(match):
        same = [name for name, found in zip(schema.names, match) if found == target]
        if len(same) > 1:
            raise UserError(f"several classes of the data are called {names[target]!r} by the model: {', '.join(same)}",
                            "one class each", f"--data.labels.merge '{{{names[target]}: {json.dumps(same)}}}'")
    say("classes aligned by name:")
    for class_id, (name, target) in enumerate(zip(schema.names, match)):
        say(f"  {class_id:>4} {name:<24} -> {target:>4} {names[target]}")
    return np.asarray(match, np.int64)

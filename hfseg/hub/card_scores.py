"""What a card says about scores, whatever the task: on which data, which classes are weak, how it was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import yaml

from hfseg.hub.card_facts import Facts
from hfseg.hub.card_metadata import SCORES
from hfseg.hub.card_sections import data_of
from hfseg.hub.card_text import code, counted, fenced, listing, number, picture, public
from hfseg.run_directory import SAMPLES

_PANELS = 4  # in the card; the run may hold more
_WORST = 5


def opening(facts: Facts) -> list[str]:
    """Says what was scored, and how well.

    Args:
        facts: Of the run.

    Returns:
        Heading, sentence and table.
    """
    split, shown = facts.protocol.get("split", "unknown"), SCORES[facts.task]
    header = "| " + " | ".join(shown.values()) + " |\n" + "|---" * len(shown) + "|\n"
    return ["## Results",
            f"On {code(split)} of {data_of(facts)}, {_images_of(facts)}, at their original size:",
            header + "| " + " | ".join(number(facts.results.get(key)) for key in shown) + " |"]


def more_samples(facts: Facts, shows: str) -> list[str]:
    """Shows samples beyond the first, which opens the card.

    Args:
        facts: Of the run.
        shows: What is side by side in them.

    Returns:
        A sentence and pictures, if there are any.
    """
    panels = facts.samples[1:_PANELS]
    if not panels:
        return []
    caption = f"A sample: {shows.removesuffix(' in red')}"
    return [f"More samples, with {shows}:", *(picture(caption, SAMPLES, panel) for panel in panels)]


def weakest(values: Mapping[str, float | None], in_words: Callable[[str, float], str]) -> list[str]:
    """Names the classes that score worst.

    Args:
        values: Score of each class; None for one that has none.
        in_words: Tells (name, score).

    Returns:
        A sentence, if there are two classes or more.
    """
    scored = sorted((value, i, name) for i, (name, value) in enumerate(values.items()) if value is not None)
    if len(scored) < 2:
        return []
    worst = scored[: min(_WORST, len(scored) // 2)]
    return ["Weakest: " + "; ".join(in_words(name, value) for value, _, name in worst) + "."]


def limits_section(facts: Facts, points: list[str], values: Mapping[str, float | None], absent_from: str) -> str:
    """Closes the limits with what holds for every task: what was not measured, or not read, and whose scores they are.

    Args:
        facts: Of the run.
        points: What was said already.
        values: Score of each class; None for one that has none.
        absent_from: Why a class may have none.

    Returns:
        The section.
    """
    points = list(points)
    if absent := [code(name) for name, value in values.items() if value is None]:
        points.append(f"Not measured, since {absent_from}: {listing(absent, 20)}.")
    if skipped := facts.protocol.get("skipped_images"):
        points.append(f"{counted(skipped, 'image')} of the split could not be read and were left out of the scores.")
    points.append(f"The scores are those of {_images_of(facts)} of {data_of(facts)}"
                  + (", by which the best weights were also chosen; expect less elsewhere."
                     if "best_step" in facts.training else "; expect others elsewhere."))
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _images_of(facts: Facts) -> str:
    """Such as "20 images", or "the first 20 of 101 images"."""
    count, whole = facts.results.get("num_images", 0), facts.protocol.get("images_in_split")
    return f"the first {count} of {counted(whole, 'image')}" if whole else counted(count, "image")


def recorded(facts: Facts) -> str:
    """Shows the protocol as it was recorded.

    Args:
        facts: Of the run.

    Returns:
        A block of YAML.
    """
    noted = {key: value for key, value in public(facts.protocol).items() if value is not None}
    text = yaml.safe_dump(json.loads(json.dumps(noted)), sort_keys=False, allow_unicode=True, width=88)
    return fenced(text, "yaml")

"""The sections of a card of a model that tells objects apart: its scores, where it fails, and how that was measured."""

from __future__ import annotations

from typing import Any

from hfseg.hub.card_facts import PER_CLASS, Facts
from hfseg.hub.card_scores import limits_section, more_samples, opening, recorded, weakest
from hfseg.hub.card_text import code, line, listing, number, picture

_LOW = 0.1  # an average precision below: most objects are missed


def object_results(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """Shows the scores, those of each class as chart and table, and samples.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None for a model that was not scored.
    """
    if facts.results is None:
        return None
    _, called, chart = PER_CLASS[facts.task]
    parts = opening(facts)
    if facts.task == "instance":
        found = facts.results
        parts.append("| | small | medium | large |\n|---|---|---|---|\n| AP | " + " | ".join(
            number(found.get(f"mask_ap_{area}")) for area in ("small", "medium", "large")) + " |\n| AR | " + " | ".join(
            number(found.get(f"mask_ar_{area}")) for area in ("small", "medium", "large")) + " |")
        recalls = [f"{int(key[8:])} {number(value)}" for key, value in found.items()
                   if key.startswith("mask_ar_") and key[8:].isdigit()]
        parts.append("Small objects have less than 32 x 32 pixels, large ones more than 96 x 96."
                     + (" AR is the mean recall over the thresholds; by how many detections of a class in an image "
                        f"count: {'; '.join(recalls)}." if recalls else ""))
    else:
        parts.append("| | PQ | SQ | RQ |\n|---|---|---|---|\n" + "\n".join(
            f"| {kind} | " + " | ".join(number(facts.results.get(f"{name}_quality_{kind}")) for name in (
                "panoptic", "segmentation", "recognition")) + " |" for kind in ("things", "stuff")))
    parts.append(picture(f"{called} per class", chart))
    parts.append("\n".join([f"| id | class | {called} |", "|---:|---|---:|"] + [
        f"| {i} | {code(name)} | {number(value)} |" for i, (name, value) in enumerate(facts.per_class.items())]))
    parts += more_samples(facts, "image, truth and prediction")
    return "\n\n".join(parts)


def object_limits(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """Names the classes that are worst or not measured, and the sizes that are missed.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None for a model that was not scored.
    """
    if facts.results is None:
        return None
    called = PER_CLASS[facts.task][1]
    points = weakest(facts.per_class, lambda name, value: f"{code(name)} ({called} {value:.3f})")
    if facts.task == "instance":
        low = [area for area in ("small", "medium", "large")
               if (value := facts.results.get(f"mask_ap_{area}")) is not None and value < _LOW]
        if low:
            points.append(f"Most {listing(low)} objects are missed, or their outlines are far off.")
        points.append("Masks of one image may overlap, and an object may be found twice: a score of 0.5 is where "
                      "`hfseg predict` stops showing them, and another threshold may suit your images better.")
    return limits_section(facts, points, facts.per_class, "this split does not have them")


def object_evaluation(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """States the protocol of the scores, in words and as it was recorded.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None for a model that was not scored.
    """
    if facts.results is None:
        return None
    most, tile = facts.protocol.get("nms_threshold"), facts.protocol.get("tile")
    words = {
        "instance": "Average precision as COCO has it: detections are ranked by their score. One is right if the IoU "
                    "of its mask with an object that no better one found is above a threshold. The score is the mean, "
                    "over the thresholds 0.50, 0.55 ... 0.95, of the area under the curve of precision over recall. "
                    f"The {facts.protocol.get('max_detections', 100)} best detections of a class in an image count. "
                    + (f"Of two whose masks have an IoU above {most:g}, the better one alone is kept. " if most else "")
                    + "An object's area is the one that its annotation states, or else that of its mask. The boundary "
                    "score compares outlines as well, and is the stricter one for large objects.",
        "panoptic": "Panoptic quality: a predicted and a true segment of one class match if their IoU is above a half. "
                    "PQ is the sum of the IoUs of matches, divided by the matches and half of what is left unmatched "
                    "on either side; it is the product of SQ, the mean IoU of matches, and RQ, an F1 score.",
    }[facts.task]
    return "\n\n".join((
        "## Evaluation protocol",
        "Each prediction is compared with the truth at the original size of its image; the logits of masks are brought "
        "to that size bilinearly. Regions of many objects that nobody told apart count for nothing.",
        words, *([f"Images larger than {line(tile.get('size'))} pixels are computed in overlapping windows of that "
                  "side; masks that agree where windows overlap are one object."] if tile else []), recorded(facts),
    ))

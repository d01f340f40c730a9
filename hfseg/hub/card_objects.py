"""The sections of a card of a model that tells objects apart: its scores, where it fails, and how that was measured."""

from __future__ import annotations

from typing import Any

from hfseg.hub.card_facts import PER_CLASS, Facts
from hfseg.hub.card_results import images_of, recorded, score_table
from hfseg.hub.card_sections import data_of
from hfseg.hub.card_text import code, counted, listing, number, picture
from hfseg.run_directory import SAMPLES

_PANELS, _WORST = 4, 5
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
    split = facts.protocol.get("split", "unknown")
    parts = ["## Results", f"On {code(split)} of {data_of(facts)}, "
             f"{images_of(facts)}, at their original size:", score_table(facts)]
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
    if panels := facts.samples[1:_PANELS]:
        parts.append("More samples, with image, truth and prediction:")
        parts += [picture("A sample: image, truth and prediction", SAMPLES, panel) for panel in panels]
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
    scored = sorted((value, name) for name, value in facts.per_class.items() if value is not None)
    points = []
    if len(scored) > 1:
        worst = scored[: min(_WORST, max(1, len(scored) // 2))]
        points.append("Weakest: " + "; ".join(f"{code(name)} ({called} {value:.3f})" for value, name in worst) + ".")
    if facts.task == "instance":
        low = [area for area in ("small", "medium", "large")
               if (value := facts.results.get(f"mask_ap_{area}")) is not None and value < _LOW]
        if low:
            points.append(f"Most {listing(low)} objects are missed, or their outlines are far off.")
        points.append("Masks of one image may overlap, and an object may be found twice: a score of 0.5 is where "
                      "`hfseg predict` stops showing them, and another threshold may suit your images better.")
    if absent := [code(name) for name, value in facts.per_class.items() if value is None]:
        points.append(f"Not measured, since this split does not have them: {listing(absent, 20)}.")
    if skipped := facts.protocol.get("skipped_images"):
        points.append(f"{counted(skipped, 'image')} of the split could not be read and were left out of the scores.")
    points.append(f"The scores are those of {images_of(facts)} of {data_of(facts)}"
                  + (", by which the best weights were also chosen; expect less elsewhere."
                     if "best_step" in facts.training else "; expect others elsewhere."))
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


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
    words = {
        "instance": "Average precision as COCO has it: detections are ranked by their score. One is right if the IoU "
                    "of its mask with an object that no better one found is above a threshold. The score is the mean, "
                    "over the thresholds 0.50, 0.55 ... 0.95, of the area under the curve of precision over recall. "
                    f"The {facts.protocol.get('max_detections', 100)} best detections of a class in an image count. "
                    "An object's area is the one that its annotation states, or else that of its mask. The boundary "
                    "score compares outlines as well, and is the stricter one for large objects.",
        "panoptic": "Panoptic quality: a predicted and a true segment of one class match if their IoU is above a half. "
                    "PQ is the sum of the IoUs of matches, divided by the matches and half of what is left unmatched "
                    "on either side; it is the product of SQ, the mean IoU of matches, and RQ, an F1 score.",
    }[facts.task]
    return "\n\n".join((
        "## Evaluation protocol",
        "Each prediction is compared with the truth at the original size of its image; the logits of masks are brought "
        "to that size bilinearly. Regions of many objects that nobody told apart count for nothing.",
        words, recorded(facts),
    ))

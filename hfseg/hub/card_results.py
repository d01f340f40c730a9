"""The sections of a card that say how good the model is, where it fails, and how that was measured."""

from __future__ import annotations

from typing import Any

from hfseg.hub.card_facts import Facts
from hfseg.hub.card_scores import limits_section, more_samples, opening, recorded, weakest
from hfseg.hub.card_text import code, counted, line, listing, number, picture, public, share

_LONG_TABLE = 40  # classes; a longer table is folded
_FEW = 1e-3  # of the labelled pixels: a class with less is named as one with few
_PAIRS = 5
_LEAST_CONFUSED = 0.01  # of a class's pixels
_BUSY = 1.25  # processes that want to run, per core
COLUMNS = {
    "IoU": "per_category_iou", "precision": "per_category_precision", "recall": "per_category_recall",
    "F1 / Dice": "per_category_f1",
}  # fmt: skip


def results(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """Shows the scores, those of each class as chart and table, and samples.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None for a model that was not scored.
    """
    if facts.results is None:
        return None
    parts = [*opening(facts), picture("IoU per class", facts.bars), _table(facts)]
    return "\n\n".join(parts + more_samples(facts, "image, truth, prediction and errors in red"))


def limits(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """Names the classes that are worst, confused with each other, rare, or not measured at all.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None for a model that was not scored.
    """
    if facts.results is None:
        return None
    iou = facts.results["per_category_iou"]
    points = weakest(iou, lambda name, value: _how(facts, name, value))
    if pairs := confused(facts.results):
        points.append("Most often confused: " + "; ".join(
            f"{share(part)} of the pixels of {code(truth)} are labelled {code(other)}" for part, truth, other in pairs)
            + ".")
    counts = pixels(facts.results)
    total = sum(counts.values())
    if few := [name for name in counts if 0 < counts[name] < _FEW * total]:
        shown = [f"{code(name)} ({counts[name]:,})" for name in sorted(few, key=lambda name: counts[name])]
        points.append(f"Few labelled pixels in this split, so chance weighs in their scores: {listing(shown, 10)}.")
    return limits_section(facts, points, iou, "neither the labels nor the predictions of this split have them")


def evaluation(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """States the protocol of the scores, in words and as it was recorded.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None for a model that was not scored.
    """
    if facts.results is None:
        return None
    protocol = facts.protocol
    resize = protocol.get("resize")
    seen = f"Images are resized to {code(_size(resize))} for the network." if resize else \
        "The network sees images at their own size."
    words = [
        f"Each prediction is compared with the labels at the original size of its image. {seen} The logits are brought "
        "to that size bilinearly, and the largest one is the class.",
        "Pixels are counted in one confusion matrix over the whole split, not per image. The IoU of a class is the "
        "pixels that are rightly labelled with it, divided by all that have it in the labels or in the prediction; the "
        "mean is over the classes that occur in either. Unlabelled pixels count for nothing.",
    ]
    if tile := protocol.get("tile"):
        words.append(f"Images larger than {line(tile.get('size'))} pixels are computed in overlapping windows of that "
                     "side, whose logits are blended.")
    if views := protocol.get("test_time_augmentation"):
        words.append(f"Probabilities are averaged over views of the image: {listing([code(view) for view in views])}.")
    return "\n\n".join(("## Evaluation protocol", *words, recorded(facts)))


def speed(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """States how fast the model was on the machine that trained it.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None where that was not measured.
    """
    found = facts.training.get("speed")
    if not isinstance(found, dict) or not isinstance(found.get("milliseconds"), (int, float)):
        return None
    height, width = found.get("image_size") or (None, None)
    of = f" of {width} x {height} pixels" if height else ""
    threads = f", {counted(found['threads'], 'thread')}" if found.get("threads") and str(
        found.get("device")).startswith("cpu") else ""
    text = (f"**{found['milliseconds']:.1f} ms** per image{of} on {code(public(str(found.get('device', 'unknown'))))}"
            f"{threads}, {code(found.get('dtype', 'float32'))}: the median of {counted(found.get('calls', 1), 'call')} "
            f"of hfseg's `Segmenter`, one image at a time, from the decoded image to its "
            f"{'semantic map' if facts.task == 'semantic' else 'segments'}.")
    if _number(found, "load") > _BUSY * max(1.0, _number(found, "cores")):
        text += " The machine was busy with other work at the time, so this is slower than it can be."
    if found.get("fused"):
        text += " hfseg computed the same function with less work (`hfseg.fuse`)."
    if found.get("peak_extra_bytes"):
        text += f" A call took up to {found['peak_extra_bytes'] / 1e6:.0f} MB of its memory beside the weights."
    return f"## Speed\n\n{text} Other machines and image sizes give other numbers."


def pixels(found: dict) -> dict[str, int]:
    """Returns the labelled pixels of each class in the split.

    Args:
        found: eval_results.json.

    Returns:
        Counts by class name; empty where the counts were not recorded.

    Example:
        >>> pixels({"per_category_confusion": {"road": {"road": 8, "car": 2}, "car": {}}})
        {'road': 10, 'car': 0}
    """
    return {name: sum(row.values()) for name, row in (found.get("per_category_confusion") or {}).items()}


def confused(found: dict) -> list[tuple[float, str, str]]:
    """Returns the pairs of classes of which the first is most often labelled as the second.

    Args:
        found: eval_results.json.

    Returns:
        Share of the class's pixels, class, what it is taken for; the largest shares first.

    Example:
        >>> confused({"per_category_confusion": {"road": {"road": 8, "car": 2}, "car": {"car": 1}}})
        [(0.2, 'road', 'car')]
    """
    counts = pixels(found)
    pairs = [(count / counts[truth], truth, other)
             for truth, row in (found.get("per_category_confusion") or {}).items()
             for other, count in row.items() if other != truth and count]
    pairs = [pair for pair in pairs if pair[0] >= _LEAST_CONFUSED]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:_PAIRS]


def _table(facts: Facts) -> str:
    found = facts.results
    columns = {name: key for name, key in COLUMNS.items() if key in found}
    counts = pixels(found)
    total = sum(counts.values())
    header = ["id", "class", *columns, *(["share of pixels"] if total else [])]
    rows = ["| " + " | ".join(header) + " |", "|---:|---" + "|---:" * (len(header) - 2) + "|"]
    for class_id, name in enumerate(found["per_category_iou"]):
        cells = [number(found[key].get(name)) for key in columns.values()]
        cells += [share(counts.get(name, 0) / total)] if total else []
        rows.append(f"| {class_id} | {code(name)} | " + " | ".join(cells) + " |")
    table = "\n".join(rows)
    if len(rows) - 2 <= _LONG_TABLE:
        return table
    return f"<details>\n<summary>All {len(rows) - 2} classes</summary>\n\n{table}\n\n</details>"


def _how(facts: Facts, name: str, value: float) -> str:
    """An IoU in words: what is missed, and what is seen where it is not."""
    precision, recall = ((facts.results.get(f"per_category_{key}") or {}).get(name) for key in ("precision", "recall"))
    told = ""
    if recall is not None and precision is not None:
        if recall < precision - 0.1:
            told = f", since {share(1 - recall)} of its pixels are missed"
        elif precision < recall - 0.1:
            told = f", since {share(1 - precision)} of what is labelled so is something else"
    elif recall is None:
        told = ", since it is predicted where no label has it"
    elif precision is None:
        told = ", since it is never predicted"
    return f"{code(name)} (IoU {value:.3f}{told})"


def _number(found: dict, key: str) -> float:
    return found[key] if isinstance(found.get(key), (int, float)) else 0.0


def _size(resize: Any) -> str:
    if isinstance(resize, dict) and {"height", "width"} <= set(resize):
        return f"{resize['width']} x {resize['height']}"
    if isinstance(resize, dict) and "shortest_edge" in resize:
        return f"shortest side {resize['shortest_edge']}"
    return line(resize)

"""Scores as pure functions of pixel counts.

Over all pixels that are counted, a class has its true pixels, its predicted pixels and the pixels that are both:

    IoU = both / (true + predicted - both)      precision = both / predicted
    accuracy = recall = both / true             F1 = Dice = 2 both / (true + predicted)

A class for which the divisor is zero scores NaN and is left out of the mean: it is not there to be right or wrong
about. A class that occurs only in predictions has IoU 0 and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def scores_from_matrix(matrix: np.ndarray, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Score a confusion matrix.

    Args:
        matrix: (n, n) pixel counts, rows = reference, columns = prediction.
        names: Class names, to give the per-class scores by name.

    Returns:
        What `scores_from_areas` returns; the per-class scores as {name: float} if there are names.

    Example:
        >>> scores_from_matrix(np.array([[3, 1], [0, 4]]), ["sky", "sea"])["per_category_iou"]
        {'sky': 0.75, 'sea': 0.8}
    """
    matrix = np.asarray(matrix)
    scores = scores_from_areas(np.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1))
    if names is None:
        return scores
    return {
        key: dict(zip(names, value.tolist(), strict=True)) if isinstance(value, np.ndarray) else value
        for key, value in scores.items()
    }


def scores_from_areas(both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Score the pixel counts of each class.

    Args:
        both: (n,) pixels predicted as the class that they are.
        predicted: (n,) pixels predicted as the class.
        true: (n,) pixels of the class.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy`, `mean_precision`, `mean_f1`: floats;
        `per_category_iou`, `per_category_accuracy` (the recall), `per_category_precision`, `per_category_recall`,
        `per_category_f1` (the Dice coefficient): (n,) float64, NaN where undefined;
        `num_classes_averaged`: int, the classes that `mean_iou` is the mean of.

    Example:
        >>> scores_from_areas(np.array([3, 0]), np.array([3, 0]), np.array([4, 0]))["mean_iou"]
        0.75
    """
    both, predicted, true = (np.asarray(area, dtype=np.float64) for area in (both, predicted, true))
    iou, accuracy, precision = (_ratio(both, area) for area in (predicted + true - both, true, predicted))
    f1 = _ratio(2 * both, predicted + true)
    return {
        "mean_iou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "overall_accuracy": float(_ratio(both.sum(), true.sum())),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
        "mean_precision": _mean(precision),
        "mean_f1": _mean(f1),
        "per_category_precision": precision,
        "per_category_recall": accuracy.copy(),
        "per_category_f1": f1,
        "num_classes_averaged": int((~np.isnan(iou)).sum()),
    }


def to_json_ready(value: Any) -> Any:
    """Turn scores into what JSON can hold: plain Python numbers, lists and dicts, with None for NaN.

    Args:
        value: Scores, or any nesting of dicts, lists, arrays and numbers.

    Returns:
        The same in plain Python values.

    Example:
        >>> to_json_ready({"mean_iou": np.float64(0.5), "per_category_iou": np.array([0.5, np.nan])})
        {'mean_iou': 0.5, 'per_category_iou': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_json_ready(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values: np.ndarray) -> float:
    count = int((~np.isnan(values)).sum())
    return float(np.nansum(values) / count) if count else float("nan")

"""The metadata of a card: what the hub's search, leaderboards and widget read."""

from __future__ import annotations

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from hfseg.hub.card_facts import INPUTS, PER_CLASS, Facts
from hfseg.hub.card_text import address, is_repo_id, line
from hfseg.run_directory import SAMPLES

SCORES = {
    "semantic": {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy", "overall_accuracy": "Overall accuracy"},
    "instance": {"mask_ap": "Mask AP", "mask_ap50": "Mask AP50", "mask_ap75": "Mask AP75",
                 "boundary_ap": "Boundary AP"},
    "panoptic": {"panoptic_quality": "PQ", "segmentation_quality": "SQ", "recognition_quality": "RQ",
                 "mean_iou": "Mean IoU"},
}  # fmt: skip
_TYPES = {"semantic": "iou", "instance": "mask_ap", "panoptic": "panoptic_quality"}
MODEL_INDEX = "model-index"


def metadata(facts: Facts) -> dict[str, Any]:
    """Returns the metadata that follows from a run's files; what they do not hold is left out.

    Args:
        facts: Of the run.

    Returns:
        Plain values by key, in the order in which they are written.
    """
    training, dataset = facts.training, facts.dataset
    base = training.get("base_model")
    data = ModelCardData(
        license=training.get("license"), license_name=training.get("license_name"),
        license_link=training.get("license_link"),
        library_name="transformers", pipeline_tag="image-segmentation",
        base_model=base if is_repo_id(base) else None,
        datasets=[dataset] if dataset else None,
        tags=["hfseg", "image-segmentation", f"{facts.task}-segmentation", line(facts.model_type)],
    )  # fmt: skip
    values = data.to_dict()
    if "base_model" in values:
        values["base_model_relation"] = "finetune"
    if facts.channels == 3 and facts.inputs:
        values["widget"] = [{"src": address(SAMPLES, INPUTS, name), "example_title": f"Sample {i}"}
                            for i, name in enumerate(facts.inputs[:3], start=1)]  # fmt: skip
    scores = evaluations(facts)
    if scores:
        values["metrics"] = list(dict.fromkeys(score.metric_type for score in scores))
        index = ModelCardData(model_name=line(facts.name) or "model", eval_results=scores).to_dict()[MODEL_INDEX]
        values[MODEL_INDEX] = index
    order = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model",
             "base_model_relation", "datasets", "metrics", "tags", "widget", MODEL_INDEX)  # fmt: skip
    return {key: values[key] for key in order if key in values}


def evaluations(facts: Facts) -> list[EvalResult]:
    """Returns the scores as the hub's model index has them.

    Args:
        facts: Of the run.

    Returns:
        The scores of the task and that of each class that has one; empty where the run was not scored.
    """
    results, protocol, recipe = facts.results, facts.protocol, facts.recipe
    if results is None:
        return []
    data = str(facts.data or "unknown")
    common: dict[str, Any] = {
        "task_type": "image-segmentation", "task_name": f"{facts.task.capitalize()} segmentation",
        "dataset_type": facts.dataset or ("shapes" if data.split("/")[0] == "shapes" else "local"),
        "dataset_name": line(data) or "unknown", "dataset_split": line(protocol.get("split", "unknown")),
        "dataset_revision": protocol.get("data_revision"),
        "dataset_config": recipe.data.name if recipe and facts.dataset == recipe.data.path else None,
    }  # fmt: skip
    if results.get("num_images") is not None:
        common["dataset_args"] = {"num_images": results["num_images"]}
    scores = [EvalResult(metric_type=key, metric_name=name, metric_value=round(results[key], 5), **common)
              for key, name in SCORES[facts.task].items() if _is_number(results.get(key))]
    return scores + [
        EvalResult(metric_type=_TYPES[facts.task], metric_name=f"{PER_CLASS[facts.task][1]} of {line(name)}",
                   metric_value=round(value, 5), metric_args={"class_id": class_id}, **common)
        for class_id, (name, value) in enumerate(facts.per_class.items()) if _is_number(value)
    ]


def to_yaml(values: dict[str, Any]) -> str:
    """Writes metadata, each text on one line, so that nothing in it can end the block.

    Args:
        values: Plain values by key.

    Returns:
        YAML.

    Example:
        >>> to_yaml({"license": "mit", "tags": ["---"]})
        "license: mit\\ntags:\\n- '---'"
    """
    return yaml_dump(values, sort_keys=False, width=math.inf).strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)

"""The model card of a run, from the run's own files."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hfseg.curves import draw_class_bars
from hfseg.labels import LabelSchema
from hfseg.recipe import Recipe, to_yaml
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import CARD, LABELS, RECIPE, RESULTS, SAMPLES, RunDirectory

SCORES = {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy", "overall_accuracy": "Overall accuracy"}


def write_card(run: str | Path) -> Path:
    """Writes README.md with valid metadata, scores, charts and usage.

    Every number comes from eval_results.json of the same folder. Names from data sets are escaped.

    Args:
        run: The run directory.

    Returns:
        The card's path.
    """
    folder = RunDirectory(run)
    results = folder.read_json(RESULTS)
    config = folder.read_json("config.json")
    recipe = without_paths(load_recipe(str(folder.path / RECIPE)))
    schema = LabelSchema.load(folder.path / LABELS)
    draw_class_bars(results["per_category_iou"], schema.palette, folder.path / "per_class_iou.png")
    text = "\n\n".join((
        f"---\n{_metadata(folder.path, recipe, results, config)}\n---",
        _introduction(folder.path, recipe, results, config),
        _usage(recipe, _channels(config)),
        _scores(folder.path, results, schema),
        _training(recipe, results),
        _protocol(results),
    ))
    folder.write(CARD, text + "\n")
    return folder.path / CARD


def _metadata(path: Path, recipe, results: dict, config: dict) -> str:
    protocol, data_is_on_hub = results["protocol"], _hub_id(recipe.data.path)
    common = {
        "task_type": "image-segmentation", "task_name": "Semantic segmentation",
        "dataset_type": recipe.data.path if data_is_on_hub else "local", "dataset_name": _line(protocol["data"]),
        "dataset_split": protocol["split"], "dataset_revision": protocol["data_revision"],
    }
    scores = [
        EvalResult(metric_type=key, metric_name=name, metric_value=round(results[key], 5), **common)
        for key, name in SCORES.items() if results[key] is not None
    ]
    pretrained = _hub_id(recipe.model.name) and recipe.model.weights == "pretrained"
    data = ModelCardData(
        model_name=_line(path.resolve().name),
        base_model=recipe.model.name if pretrained else None,
        datasets=[recipe.data.path] if data_is_on_hub else None,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["hfseg", "image-segmentation", "semantic-segmentation", config["model_type"]],
        eval_results=scores,
    )
    return data.to_yaml().strip()


def _introduction(path: Path, recipe, results: dict, config: dict) -> str:
    random = recipe.model.weights == "random" or recipe.model.name == config["model_type"]
    origin = "trained from random weights" if random else f"fine-tuned from {_code(recipe.model.name)}"
    return (
        f"# {_plain(path.resolve().name)}\n\n"
        f"A {config['model_type']} model that labels every pixel with one of {len(results['per_category_iou'])} "
        f"classes. It was {origin} on {_code(results['protocol']['data'])} by "
        f"hfseg {results['protocol']['versions']['hfseg']}. On the {results['protocol']['split']} split "
        f"({results['num_images']} images) it reaches a mean IoU of **{results['mean_iou'] or 0:.4f}**."
    )


def _channels(config: dict) -> int:
    return config.get("num_channels") or (config.get("backbone_config") or {}).get("num_channels") or 3


def _usage(recipe, channels: int) -> str:
    name = recipe.hub.repo_id or "PATH_OR_REPO"
    photo, opener = "photo.jpg", "from PIL import Image"
    opened, size, layout = 'Image.open("photo.jpg").convert("RGB")', "image.size[::-1]", ""
    if channels != 3:  # an array of (height, width, bands)
        photo, opener = "scene.npy", "import numpy as np"
        opened, size, layout = 'np.load("scene.npy")', "image.shape[:2]", ', input_data_format="channels_last"'
    return f"""## Usage

```python
import hfseg

segmenter = hfseg.Segmenter.from_pretrained("{name}")
result = segmenter("{photo}")
print(result.areas())
result.overlay().save("overlay.png")
```

or with transformers alone:

```python
import torch
{opener}
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModelForSemanticSegmentation.from_pretrained("{name}")
image = {opened}
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"{layout}))
[semantic_map] = processor.post_process_semantic_segmentation(outputs, target_sizes=[{size}])
```"""


def _scores(path: Path, results: dict, schema: LabelSchema) -> str:
    rows = ["| score | value |", "|---|---|"]
    rows += [f"| {name} | {_number(results[key])} |" for key, name in SCORES.items()]
    names = list(results["per_category_iou"])
    columns = {"IoU": "per_category_iou", "precision": "per_category_precision", "recall": "per_category_recall",
               "F1 / Dice": "per_category_f1"}
    columns = {title: key for title, key in columns.items() if key in results}
    table = ["| class | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_number(results[key][name]) for key in columns.values()]
        table.append(f"| {_plain(name)} | " + " | ".join(cells) + " |")
    scored = {name: value for name, value in results["per_category_iou"].items() if value is not None}
    worst = ", ".join(_plain(name) for name in sorted(scored, key=scored.get)[:3])
    panels = sorted((path / SAMPLES).glob("*.png"))  # none where the data may not be shown
    pictures = "\n\n".join(f"![image, truth, prediction]({SAMPLES}/{quote(panel.name)})" for panel in panels[:4])
    return "\n\n".join(part for part in (
        "## Results", "\n".join(rows), "![IoU per class](per_class_iou.png)", "\n".join(table),
        f"Weakest classes: {worst}. Expect errors there, and on images unlike the training data.",
        pictures and f"Image, truth and prediction:\n\n{pictures}",
    ) if part)


def _training(recipe: Recipe, results: dict) -> str:
    lines = ["## Training", "![Learning curve](learning_curve.png)"]
    if facts := results.get("training"):
        took = f"{facts['steps']} steps took {facts['seconds'] / 60:.1f} minutes on {facts['processes']} process(es) " \
               f"({facts['device']}); these are the weights after step {facts['best_step']}."
        skipped = facts["skipped_samples"]
        lines.append(took + (f" {skipped} samples could not be used and were skipped." if skipped else ""))
    lines.append("The recipe, whole:\n\n```yaml\n" + to_yaml(recipe).strip() + "\n```")
    return "\n\n".join(lines)


def _protocol(results: dict) -> str:
    protocol = {key: value for key, value in results["protocol"].items() if value is not None}
    return ("## Evaluation protocol\n\n```yaml\n"
            + yaml.safe_dump(json.loads(json.dumps(protocol)), sort_keys=False, allow_unicode=True).strip() + "\n```")


def without_paths(recipe: Recipe) -> Recipe:
    """Returns the recipe as it is published: with the names of local folders in place of where they lie.

    Args:
        recipe: The recipe.

    Returns:
        A copy.
    """
    def name(path: str) -> str:
        return Path(path).resolve().name if Path(path).expanduser().exists() or path.startswith("/") else path

    return replace(
        recipe, output_dir=f"runs/{name(recipe.output_dir)}", model=replace(recipe.model, name=name(recipe.model.name)),
        data=replace(recipe.data, path=name(recipe.data.path)),
    )  # fmt: skip


def _hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/", "shapes/", "hfseg/"))


def _number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def _line(text: str) -> str:
    """Returns a stranger's text as one line, for metadata, whose writer quotes it."""
    return " ".join(str(text).split())


def _code(text: str) -> str:
    """Returns a stranger's text as code, where nothing but a backtick means anything."""
    return f"`{_line(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """Returns a stranger's text with everything that Markdown or HTML would act on made harmless."""
    text = html.escape(_line(text))
    return "".join(f"\\{letter}" if letter in "\\`*_[]|<>#" else letter for letter in text)

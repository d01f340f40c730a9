"""The whole journey on embedded data: fine-tune, evaluate, load again, predict, look."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hfseg.curves import compare_curves
from hfseg.data import decode_image, load_recipe_data
from hfseg.evaluation import evaluate
from hfseg.recipe_reading import load_recipe
from hfseg.run_directory import WEIGHTS
from hfseg.segmenter import Segmenter
from hfseg.training import train

RECIPE_NAME = "shapes_transfer"


def run_quickstart(output_dir: str = "runs/quickstart", compare: bool = False, overrides: Sequence[str] = ()) -> dict:
    """Fine-tunes the shipped checkpoint to the target domain, then does what a user does next.

    Args:
        output_dir: The run directory; a number is added when it holds a run already.
        compare: Whether to train from random weights too, with the same budget, and draw both curves.
        overrides: Flags for the recipe.

    Returns:
        Mean IoU by arm: `pretrained`, and `random` with `compare`.
    """
    began = time.monotonic()
    folder = free_folder(Path(output_dir))
    arms = {"pretrained": [], **({"random": ["--model.weights", "random"]} if compare else {})}
    scores, runs = {}, {}
    for arm, flags in arms.items():
        runs[arm] = folder if arm == "pretrained" else folder / arm
        print(f"== fine-tuning, {arm} weights -> {runs[arm]}")
        recipe = load_recipe(RECIPE_NAME, [*overrides, *flags, "--output_dir", str(runs[arm])])
        scores[arm] = train(recipe)["mean_iou"]

    print(f"== evaluating {folder} again, from its files")
    data = load_recipe_data(recipe)
    again = evaluate(str(folder), data, limit=recipe.data.max_eval_samples)["mean_iou"]
    if abs(again - scores["pretrained"]) > 1e-3:
        raise RuntimeError(f"evaluated again, the run scores {again}, and {scores['pretrained']} in training")

    print("== predicting")
    segmenter = Segmenter.from_pretrained(str(folder))
    pictures = folder / "predictions"
    pictures.mkdir(exist_ok=True)
    for row in data[data.validation].select(range(4)):
        photo = pictures / f"{row['image_id']}.png"
        Image.fromarray(decode_image(row["image"])).save(photo)
        segmenter(photo).save(pictures, stem=row["image_id"])
    if compare:
        compare_curves({f"{arm} weights": run for arm, run in runs.items()}, folder / "comparison.png")

    print(f"\nDone in {time.monotonic() - began:.0f} s. Validation mean IoU: "
          + ", ".join(f"{score:.3f} from {arm} weights" for arm, score in scores.items()))
    print(f"""
  {folder}/README.md             the model card
  {folder}/samples/              image, truth, prediction
  {folder}/learning_curve.png    how it learnt{f'''
  {folder}/comparison.png        pretrained against random weights''' if compare else ''}
  {folder}/predictions/          semantic maps and overlays

Next:
  hfseg init YOUR_DATA > recipe.yaml && hfseg train --config recipe.yaml
  hfseg predict {shlex.quote(str(folder))} YOUR_IMAGES --output out
  hfseg evaluate {shlex.quote(str(folder))} --data shapes/target""")
    return scores


def free_folder(folder: Path) -> Path:
    """Returns the folder, or the first of its name and a number that holds no run.

    Args:
        folder: The one that is wanted.

    Returns:
        A folder without a run.

    Example:
        >>> free_folder(Path("runs/not-there")).as_posix()
        'runs/not-there'
    """
    number, candidate = 1, folder
    while (candidate / WEIGHTS).exists() or (candidate / "recipe.yaml").exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate

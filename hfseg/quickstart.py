"""The whole journey on embedded data: fine-tune, evaluate, load again, predict, push, pull, look."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hfseg.curves import compare_curves
from hfseg.data import decode_image, load_recipe_data
from hfseg.evaluation import evaluate
from hfseg.hub.local import LocalHub
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
    photos = [pictures / f"{row['image_id']}.png" for row in data[data.validation].select(range(4))]
    for photo, row in zip(photos, data[data.validation]):
        Image.fromarray(decode_image(row["image"])).save(photo)
    for photo, result in zip(photos, segmenter(photos)):
        result.save(pictures, stem=photo.stem)
    print("== pushing to a hub on this machine, pulling back and predicting, in another process")
    push_and_pull(folder, photos)
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
  {folder}/hub/                  the hub that it was pushed to: hfseg hub serve --root {shlex.quote(str(folder))}/hub

Next:
  hfseg init YOUR_DATA > recipe.yaml && hfseg train --config recipe.yaml
  hfseg predict {shlex.quote(str(folder))} YOUR_IMAGES --output out
  hfseg evaluate {shlex.quote(str(folder))} --data shapes/target
  hfseg push {shlex.quote(str(folder))} USER/NAME""")
    return scores


def push_and_pull(folder: Path, photos: list[Path]) -> None:
    """Pushes the run to a hub of its own, and makes sure that who loads it from there gets the same maps.

    Args:
        folder: The run directory.
        photos: Photos, with the maps that the run predicted of them beside them.

    Raises:
        RuntimeError: When a map differs.
    """
    with LocalHub(folder / "hub") as hub, tempfile.TemporaryDirectory() as other:
        commands = [["push", str(folder), "me/quickstart"],
                    ["predict", "me/quickstart", *map(str, photos), "--output", other]]  # fmt: skip
        code = f"import sys; from hfseg.cli import main; sys.exit(any(main(command) for command in {commands!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env={**os.environ, **hub.environment(), "HF_HOME": f"{other}/.home"})  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"pushed to the local hub and pulled, the run fails: {done.stdout}{done.stderr}")
        for photo in photos:
            name = f"{photo.stem}_semantic_map.png"
            if (Path(other) / name).read_bytes() != photo.with_name(name).read_bytes():
                raise RuntimeError(f"pulled from the local hub, the run gives another {name}")
    print(f"{len(photos)} maps are the same, bit by bit")


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

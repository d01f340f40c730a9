"""Make the cards of model_cards/ again, from models that are trained and scored here and now.

    python scripts/make_model_cards.py                 # both; minutes on two CPU cores
    python scripts/make_model_cards.py shapes-segformer --work DIR

`shapes-segformer` is the checkpoint that comes with hfseg, scored anew; what it says about its training is what its run
noted then. `shapes-transfer` is trained by the quickstart's recipe. Every number in a card is one of these runs' own.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image

import hfseg
from hfseg.evaluation import Evaluator
from hfseg.hub.card import write_card
from hfseg.hub.card_facts import CURVE, PER_CLASS
from hfseg.hub.card_speed import measure_speed
from hfseg.models.configs import SHIPPED
from hfseg.run_directory import CARD, RESULTS, SAMPLES, WEIGHTS, RunDirectory

BARS = PER_CLASS["semantic"][2]
CARDS = Path(__file__).resolve().parent.parent / "model_cards"
PANELS = 2  # pictures are larger than all else


def score_shipped(run: Path) -> None:
    """Scores the shipped checkpoint on the validation split that it was trained beside, in a copy of its folder."""
    shutil.copytree(SHIPPED / run.name, run, ignore=shutil.ignore_patterns(CARD, BARS))
    folder, recipe = RunDirectory(run), hfseg.load_recipe(str(run))
    before = folder.read_json(RESULTS)
    data = hfseg.load_data(recipe.data.path, scenes=100)  # as many for validation; those for training are not read
    segmenter = hfseg.Segmenter.from_pretrained(str(run))
    evaluator = Evaluator(data, data.validation, limit=recipe.data.max_eval_samples)
    results = evaluator.run(segmenter)
    speed = measure_speed(segmenter, [sample.image for sample in evaluator.samples(3)])
    results["training"] = {**before.get("training", {}), "speed": speed}
    folder.write_json(RESULTS, results)
    evaluator.draw_samples(segmenter, run / SAMPLES, PANELS)


def train_transfer(run: Path) -> None:
    """Trains by the quickstart's recipe."""
    hfseg.train(hfseg.load_recipe("shapes_transfer", ["--output_dir", str(run), "--eval.samples", str(PANELS)]))


MODELS = {"shapes-segformer": score_shipped, "shapes-transfer": train_transfer}


def publish(run: Path, target: Path) -> None:
    """Copies the card and the pictures that it shows, small.

    Args:
        run: A folder with its card.
        target: Where they go; a card that a person edited there is written over, and what was edited is kept.
    """
    target.mkdir(parents=True, exist_ok=True)
    if (target / CARD).is_file():
        shutil.copy(target / CARD, run / CARD)
    write_card(run, say=print)
    shutil.rmtree(target / SAMPLES, ignore_errors=True)
    for file in (CARD, CURVE, BARS):
        if (run / file).is_file():
            shutil.copy(run / file, target / file)
    for picture in sorted((run / SAMPLES).rglob("*.png")):
        small = target / picture.relative_to(run)
        small.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(picture) as drawn:
            drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, optimize=True)
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()) / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(MODELS)}; all by default")
    parser.add_argument("--work", type=Path, help="keep the runs in this folder, and use those that are there")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODELS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.names or MODELS:
            if not (work / name / WEIGHTS).is_file() or not (work / name / SAMPLES).is_dir():
                shutil.rmtree(work / name, ignore_errors=True)
                MODELS[name](work / name)
            publish(work / name, CARDS / name)


if __name__ == "__main__":
    main()

"""Copy a run's card and charts to model_cards/, without pictures of the data, which may not be ours to show.

    python scripts/publish_card.py runs/camvid_small camvid-segformer-small
    python scripts/publish_card.py runs/nuclei-mask-rcnn nuclei-mask-rcnn --samples 4    # where they are (CC0)
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from hfseg.hub.card import write_card
from hfseg.run_directory import CARD, SAMPLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--samples", type=int, default=0, help="panels to publish, where the data's license allows")
    options = parser.parse_args()
    target = Path(__file__).resolve().parent.parent / "model_cards" / options.name
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / options.name
        shutil.copytree(options.run, copy, ignore=shutil.ignore_patterns("checkpoints", "samples", ".*"))
        panels = sorted((options.run / SAMPLES).glob("*.png"))[: options.samples]
        for panel in panels:
            (copy / SAMPLES).mkdir(exist_ok=True)
            with Image.open(panel) as picture:
                picture.convert("RGB").quantize(256).save(copy / SAMPLES / panel.name, optimize=True)
        write_card(copy)
        target.mkdir(parents=True, exist_ok=True)
        for name in (CARD, "learning_curve.png", *(file.name for file in copy.glob("per_class_*.png"))):
            shutil.copy(copy / name, target / name)
        if panels:
            shutil.copytree(copy / SAMPLES, target / SAMPLES, dirs_exist_ok=True)
    print(target)


if __name__ == "__main__":
    main()

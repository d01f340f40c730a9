"""Copy a run's card and charts to model_cards/, without pictures of the data, which may not be ours to show.

    python scripts/publish_card.py runs/camvid_small camvid-segformer-small
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from hfseg.hub.card import write_card
from hfseg.run_directory import CARD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    target = Path(__file__).resolve().parent.parent / "model_cards" / options.name
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / options.name
        shutil.copytree(options.run, copy, ignore=shutil.ignore_patterns("checkpoints", "samples", ".*"))
        write_card(copy)
        target.mkdir(parents=True, exist_ok=True)
        for name in (CARD, "learning_curve.png", "per_class_iou.png"):
            shutil.copy(copy / name, target / name)
    print(target)


if __name__ == "__main__":
    main()

"""Put a finished run into the package, in half precision, scored again as it is shipped.

    hfseg train --config shapes_pretrain
    python scripts/ship_checkpoint.py runs/shapes_pretrain shapes-segformer
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import hfseg
from hfseg.hub.card import without_paths, write_card
from hfseg.models.configs import SHIPPED
from hfseg.recipe import to_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", nargs="?", default="shapes-segformer")
    options = parser.parse_args()

    target = SHIPPED / options.name
    shutil.rmtree(target, ignore_errors=True)
    left_out = shutil.ignore_patterns("checkpoints", "samples", ".*", "train_log.jsonl")
    shutil.copytree(options.run, target, ignore=left_out)
    (target / "recipe.yaml").write_text(to_yaml(without_paths(hfseg.load_recipe(str(options.run)))))
    model, _ = hfseg.load_model(str(options.run))
    model.half().save_pretrained(target)

    results = hfseg.evaluate(str(target), hfseg.load_recipe(str(target)).data.path, verbose=True)
    before = json.loads((options.run / "eval_results.json").read_text())
    results |= {key: before[key] for key in ("loss", "training") if key in before}
    (target / "eval_results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_card(target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.2f} MB, mean IoU {results['mean_iou']:.4f} ({before['mean_iou']:.4f} in float32)")
    if size > 5e6:
        raise SystemExit("larger than 5 MB: not to be shipped")


if __name__ == "__main__":
    main()

"""What ImageNet weights are worth: the same small training with and without them, as curves and a table.

    python scripts/transfer_trial.py --camvid PATH --isbi PATH --runs runs/transfer --output scripts/benchmarks/transfer
    python scripts/transfer_trial.py --camvid PATH --isbi PATH --runs runs/transfer --output ... --speed

A thin FPN on EfficientNet-Lite0, ImageNet weights (the extra `imagenet`) against random ones, each with
`transfer.strategy` full and feature_extraction, three seeds each; nothing else differs, rates included. Runs that are
done are not repeated. `--speed` times a step of each kind, on one thread, for the times in the table.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from itertools import product
from pathlib import Path

import torch
from trials import CAMVID, ISBI, first_reached, mean_and_spread, run, seconds_per_step

NETWORK = ["--model.name", "hfseg/fpn", "--model.backbone", "tf_efficientnet_lite0", "--model.config",
           "{options: {decoder_pyramid_channels: 128, decoder_segmentation_channels: 64}}",
           "--train.learning_rate", "1e-3", "--transfer.head_learning_rate_factor", "1"]  # fmt: skip
LENGTH = {"camvid": ["--train.max_steps", "138", "--eval.eval_steps", "23"],  # three epochs
          "isbi": ["--train.max_steps", "120", "--eval.eval_steps", "20"]}  # 20 epochs # fmt: skip
SET = {"camvid": (CAMVID, 8, "CamVid, 180x240, batch 8"), "isbi": (ISBI, 4, "ISBI 2012, crops of 256x256, batch 4")}
WEIGHTS = {"imagenet": "pretrained", "random": "random"}
STRATEGIES = ("full", "feature_extraction")
SEEDS = (1, 2, 3)
COLOURS = {"imagenet": "#2a6fdb", "random": "#e8590c"}


def flags(name: str, path: Path, weights: str, strategy: str, seed: int = 1) -> list[str]:
    """Returns what a run's recipe says."""
    return [*SET[name][0], "--data.path", str(path), *NETWORK, *LENGTH[name], "--model.weights", WEIGHTS[weights],
            "--transfer.strategy", strategy, "--seed", str(seed)]  # fmt: skip


def curves(runs: list[dict]) -> dict:
    """Joins the seeds of an arm."""
    scores = list(zip(*(one["mean_iou"] for one in runs), strict=True))
    means, spreads = zip(*map(mean_and_spread, scores), strict=True)
    return {"steps": runs[0]["steps"], "mean": means, "spread": spreads,
            "seeds": [one["mean_iou"] for one in runs]}  # fmt: skip


def table(found: dict) -> list[str]:
    """Returns the Markdown table of all data sets."""
    lines = ["| data | weights | strategy | mean IoU at the end, 3 seeds | reaches the random network's best after |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, result in found.items():
        best = max(result["arms"]["random full"]["mean"])
        for arm, curve in result["arms"].items():
            weights, strategy = arm.split()
            step = first_reached(curve["steps"], curve["mean"], best)
            when = "never in this budget" if math.isinf(step) else f"{step:.0f} steps"
            if step == curve["steps"][0]:  # it was there at the first look
                when = f"at most {when}"
            each = result.get("seconds_per_step", {}).get(strategy)
            if each and not math.isinf(step):
                when += f", {step * each:.0f} s"
            lines.append(f"| {SET[name][2]} | {'ImageNet' if weights == 'imagenet' else 'random'} | `{strategy}` | "
                         f"{curve['mean'][-1]:.3f} ± {curve['spread'][-1]:.3f} | {when} |")
    return lines


def draw(found: dict, path: Path) -> None:
    """Draws a panel per data set: each arm's mean, the range of its seeds, and the random network's best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        for arm, curve in result["arms"].items():
            weights, strategy = arm.split()
            style = {"color": COLOURS[weights], "ls": "-" if strategy == "full" else "--"}
            axes.plot(curve["steps"], curve["mean"], marker="o", ms=3, **style,
                      label=f"{'ImageNet' if weights == 'imagenet' else 'random'}, {strategy.replace('_', ' ')}")
            low, high = (list(map(pick, zip(*curve["seeds"]))) for pick in (min, max))
            axes.fill_between(curve["steps"], low, high, color=COLOURS[weights], alpha=0.15, lw=0)
        axes.axhline(max(result["arms"]["random full"]["mean"]), color="#868e96", lw=1, ls=":")
        axes.set(xlabel="step", ylabel="validation mean IoU", title=SET[name][2])
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, help="the folder of CamVid")
    parser.add_argument("--isbi", type=Path, help="the folder of the ISBI 2012 micrographs")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--output", type=Path, required=True, metavar="STEM", help="write STEM.json, .md and .png")
    parser.add_argument("--speed", action="store_true", help="time a step of each kind first, on one thread")
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = {name: getattr(options, name) for name in SET if getattr(options, name)}
    timed = options.runs / "seconds_per_step.json"
    if options.speed:
        with tempfile.TemporaryDirectory() as scratch:
            seconds = {name: {strategy: seconds_per_step(Path(scratch) / f"{name}-{strategy}",
                                                         flags(name, path, "imagenet", strategy), SET[name][1])
                              for strategy in STRATEGIES} for name, path in paths.items()}  # fmt: skip
        options.runs.mkdir(parents=True, exist_ok=True)
        timed.write_text(json.dumps(seconds))
    found = {}
    for name, path in paths.items():
        arms = {f"{weights} {strategy}": [run(options.runs / f"{name}-{weights}-{strategy}-{seed}",
                                              flags(name, path, weights, strategy, seed)) for seed in SEEDS]
                for weights, strategy in product(WEIGHTS, STRATEGIES)}  # fmt: skip
        found[name] = {"arms": {arm: curves(runs) for arm, runs in arms.items()}}
        if timed.is_file():
            found[name]["seconds_per_step"] = json.loads(timed.read_text()).get(name, {})
    lines = table(found)
    print(*lines, sep="\n")
    options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(found, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()

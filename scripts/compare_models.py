"""Which model should I take: accuracy after the same small training, speed, memory and size, as a table and a picture.

    python scripts/compare_models.py --camvid PATH --runs runs/models --output scripts/benchmarks/models
    python scripts/compare_models.py --camvid PATH --runs runs/models --output ... --speed

Three epochs of CamVid at 180x240 each, with the rates that suit the weights. Runs that are done are not repeated.
`--speed` measures calls on a photo of 480x360, on one thread, which wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from trials import CAMVID, run

import hfseg

LENGTH = ["--train.max_steps", "138", "--eval.eval_steps", "138"]
PRETRAINED = ["--train.learning_rate", "3e-4"]  # of the backbone; the head learns ten times as fast
RANDOM = ["--model.weights", "random", "--train.learning_rate", "1e-3"]
LITE = "tf_efficientnet_lite0"
THIN = "{options: {decoder_channels: [128, 64, 48, 32, 16]}}"  # as in the recipe camvid_unet
SEGFORMER = "{hidden_sizes: [32, 64, 128, 192], num_attention_heads: [1, 2, 4, 8], decoder_hidden_size: 128}"


@dataclass
class Entry:
    """A network of the comparison.

    Args:
        name: For `model.name`.
        backbone: For `model.backbone`, or for people where the name takes none.
        weights: What it starts from, for people.
        flags: Further flags of the recipe.
    """

    name: str
    backbone: str
    weights: str
    flags: list[str] = field(default_factory=list)


ENTRIES = {
    "unet": Entry("hfseg/unet", LITE, "ImageNet", ["--model.backbone", LITE, "--model.config", THIN, *PRETRAINED]),
    "segformer": Entry("segformer", "as in `camvid_segformer_small`", "random", ["--model.config", SEGFORMER, *RANDOM]),
    **{name: Entry(f"hfseg/{name}", LITE, "ImageNet", ["--model.backbone", LITE, *PRETRAINED])
       for name in ("fpn", "linknet", "deeplabv3plus", "pspnet")},
    "lraspp": Entry("hfseg/lraspp", "mobilenet_v3_large", "random", RANDOM),
    "segnet": Entry("hfseg/segnet", "a quarter of VGG16's widths", "random",
                    ["--model.config", "{widths: [16, 32, 64, 128, 128]}", *RANDOM]),
    "hrnet": Entry("hfseg/hrnet", "hrnet_w18_small", "random", ["--model.backbone", "hrnet_w18_small", *RANDOM]),
    "shapes": Entry("hfseg/shapes-segformer", "", "`shapes`, shipped", PRETRAINED),
}  # fmt: skip


def flags(entry: Entry, camvid: Path) -> list[str]:
    """Returns what a run's recipe says."""
    return [*CAMVID, *LENGTH, "--data.path", str(camvid), "--model.name", entry.name, *entry.flags]


def measure(folder: Path, photo: Image.Image) -> dict:
    """Times calls of a trained model, on one thread."""
    segmenter = hfseg.Segmenter.from_pretrained(str(folder), device="cpu")
    profile = segmenter.profile(photo, rounds=15)
    return {"milliseconds": profile.milliseconds["total"], "megabytes": profile.peak_extra_bytes / 1e6}


def size(folder: Path) -> dict:
    """Counts parameters, and operations at the size of the training."""
    model, processor = hfseg.load_model(str(folder))
    pixels = processor(Image.new("RGB", (480, 360)), return_tensors="pt")["pixel_values"]
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(pixel_values=pixels)
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflops": counted.get_total_flops() / 1e9}


def table(rows: dict) -> list[str]:
    """Returns the Markdown table, the most accurate first."""
    lines = ["| model.name | backbone | weights | mean IoU | ms an image | peak extra MB | parameters | GFLOPs |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for key, row in sorted(rows.items(), key=lambda item: -item[1]["mean_iou"]):
        entry = ENTRIES[key]
        backbone = f"`{entry.backbone}`" if "_" in entry.backbone and " " not in entry.backbone else entry.backbone
        speed = f"{row['milliseconds']:.0f} | {row['megabytes']:.0f}" if "milliseconds" in row else " | "
        lines.append(f"| `{entry.name}` | {backbone} | {entry.weights} | {row['mean_iou']:.3f} | {speed} "
                     f"| {row['parameters'] / 1e6:.2f} M | {row['gflops']:.1f} |")
    return lines


def draw(rows: dict, path: Path) -> None:
    """Draws mean IoU against photos a second; the area of a mark is the number of parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(dict.fromkeys(entry.weights for entry in ENTRIES.values()), ("#2a6fdb", "#e8590c", "#2b8a3e")))
    for key, row in rows.items():
        speed = 1000 / row["milliseconds"]
        axes.scatter(speed, row["mean_iou"], s=18 * row["parameters"] / 1e6, color=colours[ENTRIES[key].weights],
                     alpha=0.6, lw=0)
        axes.annotate(ENTRIES[key].name.removeprefix("hfseg/"), (speed, row["mean_iou"]), fontsize=8,
                      xytext=(6, 4), textcoords="offset points")
    for weights, colour in colours.items():
        axes.scatter([], [], color=colour, alpha=0.6, label=f"weights before: {weights.replace('`', '')}")
    axes.set(xlabel="images of 480x360 a second, one thread", ylabel="validation mean IoU")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="the folder of CamVid")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--output", type=Path, required=True, metavar="STEM", help="write STEM.json, .md and .png")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=list(ENTRIES), help="these networks")
    parser.add_argument("--speed", action="store_true", help="measure time and memory, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for key in options.only:
        folder = options.runs / key
        found = run(folder, flags(ENTRIES[key], options.camvid))["results"]
        rows[key] = {"mean_iou": found["mean_iou"], **size(folder)}
    if options.speed:
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (360, 480, 3), dtype=np.uint8))
        for key in rows:
            rows[key] |= measure(options.runs / key, photo)
        draw(rows, options.output.with_suffix(".png"))
    lines = table(rows)
    print(*lines, sep="\n")
    options.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

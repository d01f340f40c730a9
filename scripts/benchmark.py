"""Measures hfseg against its peers, on the CPU: a Markdown table for the README, JSON, and a picture.

    python scripts/benchmark.py                                   # every section
    python scripts/benchmark.py upsample fuse --output results    # results.md, results.json, results.png
    python scripts/benchmark.py loop data --data PATH

Both sides of a comparison run in one process on the same inputs, turn by turn, after a warm-up, once their results
have been found equal; the ratio is the median over the rounds. Ratios travel between machines, times do not. The
sections lie in scripts/benchmarks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

# The peers are compared on the CPU, and nothing is looked up on a hub; both are read when the libraries load.
os.environ |= {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

import torch
import transformers
from benchmarks import hub, inference, kernels, masks, scaling, segments, training
from benchmarks.measuring import Setting

import hfseg

SECTIONS = {
    "upsample": kernels.measure_upsample,
    "fuse": inference.measure_fuse,
    "segmenter": inference.measure_segmenter,
    "step": training.measure_step,
    "loss": kernels.measure_loss,
    "metric": kernels.measure_metric,
    "masks": masks.measure_masks,
    "masks_others": masks.measure_masks_others,
    "segments": segments.measure_segments,
    "startup": inference.measure_startup,
    "scaling": scaling.measure_scaling,
    "memory": kernels.measure_memory,
    "hub": hub.measure_hub,
    "loop": training.measure_loop,
    "data": training.measure_data,
}


def machine() -> str:
    """Returns what was measured on, in one line."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line] \
        if info.exists() else []  # fmt: skip
    load = os.getloadavg()[0]
    return (
        f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, hfseg {hfseg.__version__}; load average at the start {load:.1f}"
    )


def main() -> None:
    """Runs the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"{', '.join(SECTIONS)}; all if none is given")
    parser.add_argument("--data", metavar="PATH", help="a folder, such as CamVid, for the section data")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side, after the warm-up (5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script; the figures mean nothing")
    parser.add_argument("--peer-metric", default="mean_iou", metavar="FILE",
                        help="evaluate's own metrics/mean_iou/mean_iou.py, where the hub cannot be reached")
    parser.add_argument("--output", type=Path, metavar="STEM", help="write STEM.md, STEM.json and STEM.png, too")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    transformers.logging.set_verbosity_error()
    picture = chosen.output and chosen.output.with_suffix(".png")
    setting = Setting(chosen.data, chosen.rounds, chosen.quick, chosen.peer_metric, picture)
    lines = [f"{machine()}. Median of {setting.rounds} rounds after a warm-up.", "",
             "| what | hfseg | against | result | bar |", "|---|---|---|---|---|"]  # fmt: skip
    results = {"machine": machine(), "date": datetime.date.today().isoformat(), "rounds": setting.rounds, "rows": []}
    print(*lines, sep="\n", flush=True)
    for name in chosen.sections or SECTIONS:
        for row in SECTIONS[name](setting):
            bar = f"{row.bar}: {'met' if row.met else 'missed'}" if row.bar else ""
            lines.append(f"| {row.what} | {row.hfseg} | {row.peer} | {row.result} | {bar} |")
            results["rows"].append({"section": name, **row.as_dict()})
            print(lines[-1], flush=True)
            if chosen.output:  # after each line: a long run that is stopped keeps what it measured
                chosen.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
                chosen.output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

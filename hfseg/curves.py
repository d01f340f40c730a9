"""Charts: the learning curve of a run, the curves of several, and the score of each class."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from hfseg.metrics.scorers import WORDS
from hfseg.run_directory import read_log

COLOURS = ("#2a6fdb", "#e8590c", "#2b8a3e", "#9c36b5", "#c92a2a")
COLUMN, ROW, LABEL = 60, 0.23, 36  # bars in one column; inches a bar; letters of a class name


def draw_learning_curve(log: str | Path, path: str | Path) -> None:
    """Draws training loss and learning rate, validation loss and scores over the steps.

    Args:
        log: A run's train_log.jsonl.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure  # not pyplot: nothing global is touched, and no display is needed

    lines = read_log(Path(log).parent)
    train = [line for line in lines if "eval" not in line]
    evals = [line for line in lines if "eval" in line]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([line["step"] for line in train], [line["loss"] for line in train], color=COLOURS[0], lw=1,
              marker="o" if len(train) == 1 else None, ms=3, label="training loss")
    with_loss = [line for line in evals if line["eval"].get("loss") is not None]
    if with_loss:
        left.plot([line["step"] for line in with_loss], [line["eval"]["loss"] for line in with_loss], color=COLOURS[1],
                  marker="o", ms=3, label="validation loss")
    rate = left.twinx()
    rate.plot([line["step"] for line in train], [line["learning_rate"] for line in train], color="#adb5bd", lw=1,
              marker="o" if len(train) == 1 else None, ms=3)
    rate.set_ylabel("learning rate", color="#868e96")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    left.set_xlabel("step")
    left.legend(frameon=False)
    keys = [key for key in (evals[-1]["eval"] if evals else ()) if key != "loss"]
    for colour, key in zip(COLOURS, keys):
        right.plot([line["step"] for line in evals], [line["eval"].get(key) for line in evals], color=colour,
                   marker="o", ms=3, label=WORDS.get(key, key.replace("_", " ")))
    right.set_ylim(0, 1)
    right.set_xlabel("step")
    right.grid(alpha=0.3)
    right.legend(frameon=False, loc="lower right")
    _save(figure, path)


def compare_curves(logs: dict[str, str | Path], path: str | Path, metric: str = "mean_iou") -> None:
    """Draws one score of several runs over their steps.

    Args:
        logs: Run directories by name.
        path: The PNG to write.
        metric: A score of the evaluation lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, (name, run) in zip(COLOURS, logs.items()):
        evals = [line for line in read_log(run) if "eval" in line]
        axes.plot([line["step"] for line in evals], [line["eval"][metric] for line in evals], color=colour, marker="o",
                  ms=3, label=name)
    axes.set(xlabel="step", ylabel=f"validation {metric.replace('_', ' ').replace('iou', 'IoU')}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_class_bars(scores: dict[str, float | None], palette, path: str | Path, label: str = "IoU",
                    mean: float | None = None) -> None:
    """Draws one bar per class, best first, in the colour of the class; many classes go in columns.

    Args:
        scores: A score per class name, in the order of the class ids; None where it is not defined.
        palette: A colour per class, in the same order.
        path: The PNG to write.
        label: Name of the score.
        mean: Where to draw a line; None for none.
    """
    from matplotlib.figure import Figure

    names = class_labels(scores)
    rows = [(name, value, colour) for name, value, colour in zip(names, scores.values(), palette)]
    rows.sort(key=lambda row: 0.0 if row[1] is None else -1 - row[1])  # stable: equal ones stay in the order of ids
    columns = 1 if len(rows) <= COLUMN else 2
    height = max(1, -(-len(rows) // columns))
    figure = Figure(figsize=(7.2 if columns == 1 else 12, 0.8 + ROW * height), layout="constrained")
    for number, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        part = rows[number * height : (number + 1) * height]
        axes.barh(range(len(part)), [value or 0.0 for _, value, _ in part], height=0.78, linewidth=0.5,
                  color=[[channel / 255 for channel in colour] for _, _, colour in part], edgecolor="#495057")
        axes.set_yticks(range(len(part)), [name for name, _, _ in part], fontsize=9, parse_math=False)
        for place, (_, value, _) in enumerate(part):
            axes.text((value or 0) + 0.01, place, "undefined" if value is None else f"{value:.3f}", va="center",
                      fontsize=8, color="#868e96" if value is None else "#212529",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        if mean is not None:
            axes.axvline(mean, color="#868e96", lw=1, ls="--", zorder=0)
            axes.text(mean, -0.8, f"mean {mean:.3f}", ha="center", va="bottom", fontsize=8, color="#495057")
        axes.set(xlim=(0, 1.12), ylim=(height - 0.4, -0.9), xlabel=label)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def class_labels(names: Iterable[str]) -> list[str]:
    """Returns class names as a chart can show them: short, and `class 7` where the font lacks their letters.

    Args:
        names: By class id.

    Returns:
        As many labels.

    Example:
        >>> class_labels(["road", "a very long name of a class that does not end", chr(0x10FFFD)])
        ['road', 'a very long name of a class that do …', 'class 2']
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    labels = []
    for class_id, name in enumerate(names):
        name = " ".join(str(name).split())
        shown = name if len(name) <= LABEL else f"{name[: LABEL - 1].rstrip()} …"
        drawn = all(font.get_char_index(ord(letter)) and unicodedata.category(letter)[0] != "C" for letter in shown)
        labels.append(shown if shown and drawn else f"class {class_id}")
    return labels


def _save(figure, path: str | Path) -> None:
    """Writes a small file whose bytes follow from the picture alone."""
    path, picture = Path(path), io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    temporary = path.with_name(f".writing-{path.name}")
    with Image.open(picture) as drawn:
        drawn.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            temporary, format="png", optimize=True)
    temporary.replace(path)

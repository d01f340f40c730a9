"""The learning curve of a run, drawn from its log."""

from __future__ import annotations

from pathlib import Path

from hfseg.run_directory import read_log

COLOURS = ("#2a6fdb", "#e8590c", "#2b8a3e", "#9c36b5", "#c92a2a")


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
    left.plot([line["step"] for line in evals], [line["eval"]["loss"] for line in evals], color=COLOURS[1], marker="o",
              ms=3, label="validation loss")
    rate = left.twinx()
    rate.plot([line["step"] for line in train], [line["learning_rate"] for line in train], color="#adb5bd", lw=1,
              marker="o" if len(train) == 1 else None, ms=3)
    rate.set_ylabel("learning rate", color="#868e96")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    left.set_xlabel("step")
    left.legend(frameon=False)
    for colour, (key, label) in zip(COLOURS, {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy",
                                              "overall_accuracy": "overall accuracy"}.items()):
        right.plot([line["step"] for line in evals], [line["eval"][key] for line in evals], color=colour, marker="o",
                   ms=3, label=label)
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


def draw_class_bars(scores: dict[str, float | None], palette, path: str | Path, label: str = "IoU") -> None:
    """Draws one bar per class, best first, in the colour of the class.

    Args:
        scores: A score per class name; None where the class does not occur.
        palette: A colour per class, in the same order.
        path: The PNG to write.
        label: Name of the score.
    """
    from matplotlib.figure import Figure

    rows = sorted(zip(scores.items(), palette), key=lambda row: -1.0 if row[0][1] is None else row[0][1])
    figure = Figure(figsize=(6.5, 0.6 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    values = [value or 0.0 for (_, value), _ in rows]
    axes.barh(range(len(rows)), values, color=[[part / 255 for part in colour] for _, colour in rows],
              edgecolor="#495057", linewidth=0.5)
    axes.set_yticks(range(len(rows)), [name[:40].replace("$", r"\$") for (name, _), _ in rows])
    for height, ((_, value), _) in enumerate(rows):
        axes.text((value or 0) + 0.01, height, "absent" if value is None else f"{value:.3f}", va="center", fontsize=8)
    axes.set(xlim=(0, 1.08), xlabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure, path: str | Path) -> None:
    path = Path(path)
    temporary = path.with_name(f".writing-{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)

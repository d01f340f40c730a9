"""Looking at a data set, and writing the recipe that fits it: what `hfseg init` does."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hfseg.data.images import look_at, read_row
from hfseg.data.sources import SegmentationData, StreamingSegmentationData
from hfseg.errors import BadSample, UnknownValues
from hfseg.labels import LabelSchema
from hfseg.recipe import DataConfig, LabelsConfig
from hfseg.remap import percent

STEPS = 4000  # optimizer steps that a recipe aims at
RARE, THIN = 0.05, 10.0  # share of the pixels, width in pixels


@dataclass
class Report:
    """What was seen in a data set.

    Args:
        schema: Its labels.
        labels: The choices about labels that it was loaded with.
        channels: Channels that a model for it takes.
        splits: Number of images by split, None for a stream.
        train: The training split.
        validation: The split to evaluate on.
        notes: What loading found and assumed.
        looked: How many samples were read.
        sizes: How many images have each (height, width).
        kinds: How many images are of each kind ("RGB", "grey"...).
        map_kinds: The same of the label maps.
        pixels: (num_labels,) labelled pixels of each class.
        present: (num_labels,) in how many images each class occurs.
        widths: (num_labels,) mean width of each class in pixels, as area over half of its outline.
        ignored: Pixels without a class.
        bad: What is wrong with the samples that could not be read.
        task: What the data was read for.
    """

    schema: LabelSchema
    labels: LabelsConfig | LabelSchema
    channels: int
    splits: dict[str, int | None]
    train: str | None
    validation: str | None
    notes: list[str]
    pixels: np.ndarray
    present: np.ndarray
    widths: np.ndarray
    looked: int = 0
    sizes: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    map_kinds: Counter = field(default_factory=Counter)
    ignored: int = 0
    bad: list[str] = field(default_factory=list)
    task: str = "semantic"

    @property
    def shares(self) -> np.ndarray:
        """(num_labels,) share of each class among the labelled pixels."""
        return self.pixels / max(1, self.pixels.sum())

    def __str__(self) -> str:
        splits = ", ".join(f"{name} {'?' if count is None else count}" for name, count in self.splits.items())
        total = max(1, int(self.pixels.sum()) + self.ignored)
        assumed = self.schema.origin.startswith("assumed")
        lines = [
            f"images: {splits}; {self.looked} looked at",
            f"sizes (height x width): {_common(self.sizes, lambda size: f'{size[0]}x{size[1]}')}",
            f"kinds: images {_common(self.kinds)}; label maps {_common(self.map_kinds)}",
            f"labels: {self.schema.num_labels} classes, {'' if assumed else 'from '}{self.schema.origin}",
        ]
        for i in np.argsort(-self.pixels, kind="stable"):
            seen = f"in {self.present[i]} of {self.looked} images" if self.present[i] else "not seen"
            lines.append(f"  {100 * self.shares[i]:6.2f} %  {self.schema.names[i]}, {seen}")
        if self.ignored:
            lines.append(f"  {100 * self.ignored / total:6.2f} % of all pixels are unlabelled")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"cannot be used: {' '.join(text.split())}" for text in self.bad[:10]]
        return "\n".join(lines)


def inspect_data(data: SegmentationData | StreamingSegmentationData, limit: int = 200) -> Report:
    """Read samples, evenly spaced over each split, and count what they hold.

    Args:
        data: As `load_data` gives it.
        limit: How many samples per split, at most.

    Returns:
        The report.

    Raises:
        BadSample: When a label map holds values without a meaning, or not one sample can be used.

    Example:
        >>> from hfseg.data import load_data
        >>> report = inspect_data(load_data("shapes", scenes=4))
        >>> report.looked, dict(report.sizes)
        (8, {(128, 128): 8})
    """
    count = data.schema.num_labels
    report = Report(
        schema=data.schema,
        labels=data.labels,
        channels=data.channels,
        task=data.task,
        splits={split: None if data.streaming else len(rows) for split, rows in data.items()},
        train=data.train,
        validation=data.validation,
        notes=list(data.notes),
        pixels=np.zeros(count, np.int64),
        present=np.zeros(count, np.int64),
        widths=np.zeros(count),
    )
    outline, first = np.zeros(count, np.int64), None
    for row in _rows(data, limit):
        try:
            sample = read_row(row, data.schema, data.channels)
            stored = row.get("segment_map") or row.get("semantic_map")
            image, label = look_at(row["image"]), look_at(stored) if stored is not None else None
        except UnknownValues:
            raise  # passing over such maps would train on the others alone
        except BadSample as error:
            first = first or error
            report.bad.append(str(error))
            continue
        report.looked += 1
        report.sizes[sample.image.shape[:2]] += 1
        report.kinds[image.kind] += 1
        report.map_kinds[label.kind if label else "listed objects"] += 1
        ids = sample.semantic_map
        counts = np.bincount(ids.ravel(), minlength=data.schema.ignore_index + 1)
        report.ignored += int(counts[data.schema.ignore_index])
        report.pixels += counts[:count]
        report.present += counts[:count] > 0
        outline += np.bincount(ids[_on_outline(ids)], minlength=data.schema.ignore_index + 1)[:count]
    if first and not report.looked:
        raise first
    report.widths = 2 * report.pixels / np.maximum(outline, 1)
    return report


def _rows(data: SegmentationData | StreamingSegmentationData, limit: int) -> Iterator[dict]:
    for rows in data.values():
        if data.streaming:
            yield from rows.take(limit)
        else:
            places = np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))
            yield from (rows[int(place)] for place in places)


def _on_outline(ids: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour of another value, as a mask."""
    edge = np.zeros(ids.shape, bool)
    across, along = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= across
    edge[:-1] |= across
    edge[:, 1:] |= along
    edge[:, :-1] |= along
    return edge


def _common(counter: Counter, show=str) -> str:
    shown = ", ".join(f"{show(key)} ({count})" for key, count in counter.most_common(4))
    return shown + (f" and {len(counter) - 4} more" if len(counter) > 4 else "")


# -- the recipe ---------------------------------------------------------------------------------------------


def write_recipe(report: Report, path: str | Path, given: DataConfig | None = None) -> str:
    """Write a recipe that fits the data; its comments say what was seen and why each value was chosen.

    Args:
        report: What `inspect_data` saw.
        path: The data, as it goes into the recipe.
        given: How the data was read; what differs from the defaults goes into the recipe.

    Returns:
        YAML that `hfseg train --config` reads.

    Example:
        >>> from hfseg.data import load_data
        >>> print(write_recipe(inspect_data(load_data("shapes", scenes=4)), "shapes").splitlines()[0])
        # A recipe for shapes, written by `hfseg init` after a look at 8 images.
    """
    name = Path(str(path)).name or Path(str(path)).resolve().name or "data"
    crop, crop_why = _crop(report)
    area = crop[0] * crop[1] if crop else 128 * 128
    count = (report.splits.get(report.train) if report.train else None) or None
    batch = 16 if area <= 256**2 else 8 if area <= 512**2 else 4
    batch = max(1, min(batch, count or batch))
    lines = [
        f"# A recipe for {path}, written by `hfseg init` after a look at {report.looked} images.",
        *(f"#   {line}" for line in str(report).splitlines()),
        "#",
        "# Every other field has its default: hfseg train --help lists them.",
        *([] if report.task == "semantic" else [f"task: {report.task}"]),
        "model:",
        *_MODELS[report.task],
    ]
    if report.channels != 3:
        lines.append(f"  # Images have {report.channels} bands: the first layer is adapted to them.")
    lines += ["data:", f"  path: {_value(str(path))}", *_labels(report)]
    chosen = {f.name: getattr(given or DataConfig(), f.name) for f in dataclasses.fields(DataConfig)}
    usual = vars(DataConfig())
    lines += [f"  {key}: {_value(value)}" for key, value in chosen.items()
              if value != usual[key] and key not in ("path", "labels", "on_bad_sample")]
    if report.bad or chosen["on_bad_sample"] == "skip":
        some = f"{len(report.bad)} samples" if report.bad else "Some samples"
        lines += [
            f"  # {some} cannot be used, see above: `skip` passes over them, `stop` stops there.",
            "  on_bad_sample: skip",
        ]
    masks = report.task != "semantic"
    lines += ["augment:", *_augmentation(report, crop, crop_why)]
    lines += ["train:"] if masks else ["loss:", *_loss(report), "train:"]
    if count:
        epochs = int(np.clip(round(STEPS * batch / count), 10, 300))
        steps = epochs * -(-count // batch)
        lines.append(f"  # {count} training images: {epochs} epochs are {steps} steps of {batch} images.")
    elif report.train is None:
        epochs = 20
        lines[0:0] = [
            f"# There is no training split here, only {', '.join(report.splits)}: before this recipe can train, add",
            "# train/ beside it, or set data.train_split.",
        ]
    else:
        epochs = 20
        lines.append("  # How many training images there are is not known: watch the validation score.")
    lines += [
        f"  num_train_epochs: {epochs}",
        f"  # For {f'crops of {crop[0]} x {crop[1]}' if crop else 'whole images'}; less if memory runs out.",
        f"  per_device_train_batch_size: {batch}",
        *(_MASK_TRAINING if masks else [
            "  # Usual for pretrained SegFormers; ten times as much from random weights.",
            "  learning_rate: 6.0e-5",
        ]),
        "eval:",
        f"  # About {min(epochs, 20)} evaluations in the run, on {report.validation or 'no split yet'}.",
        f"  eval_epochs: {max(1, round(epochs / 20))}",
        f"output_dir: {_value(f'runs/{name}')}",
    ]
    return "\n".join(lines) + "\n"


_MODELS = {
    "semantic": ["  # On the hub. With no network: hfseg/shapes-segformer (shipped), or segformer (random weights).",
                 "  name: nvidia/mit-b0"],
    **{task: [f"  # On the hub. With no network: {offline} (random weights).",
              f"  name: facebook/mask2former-swin-tiny-coco-{task}"]
       for task, offline in (("instance", "mask2former, or hfseg/mask-rcnn"), ("panoptic", "mask2former"))},
}  # fmt: skip
_MASK_TRAINING = [
    "  # Usual for Mask2Former: the backbone at a tenth of the head's 1e-4, short steps; 3e-4 from random weights.",
    "  learning_rate: 1.0e-5",
    "  weight_decay: 0.05",
    "  max_grad_norm: 0.01",
]


def _value(value) -> str:
    """JSON is YAML, and quotes what has to be quoted."""
    return json.dumps(value, ensure_ascii=False)


def _labels(report: Report) -> list[str]:
    """The labels section, where the data alone does not settle it."""
    given, schema = report.labels, report.schema
    if isinstance(given, LabelSchema):
        return [f"  # Labels from {schema.origin}."]
    chosen = {key: value for key, value in vars(given).items() if value not in (None, False, [], {})}
    if not schema.origin.startswith("assumed"):
        comment = (
            [] if chosen else [f"  # Labels come with the data ({schema.origin}); data.labels would win over them."]
        )
    elif given.merge or given.drop:
        comment = [f"  # Before merging and dropping: {schema.origin}."]
    else:
        comment = [f"  # {schema.origin.capitalize()}. Put the real names here."]
        values = [value for value, i in schema.stored if i is not None]
        first = int(given.reduce_labels)
        if schema.threshold is not None:
            chosen |= {"binary": True, "names": list(schema.names)}
        elif schema.rgb:
            colours = [list(colour) for colour in schema.palette]
            chosen |= {"names": list(schema.names), "palette": colours} if given.ignore_index is None else {}
        elif len(values) == 2 and values[0] == 0 and values[1] > 1:
            chosen |= {"binary": True, "names": list(schema.names)}
        elif values == list(range(first, first + len(values))):
            chosen["names"] = list(schema.names)
        else:
            example = json.dumps({str(value): f"name of {value}" for value in values[:3]})
            comment = [
                f"  # {schema.origin.capitalize()}. For real names, put id2label.json beside the data: {example}"
            ]
    return comment + (["  labels:"] if chosen else []) + [f"    {k}: {_value(v)}" for k, v in chosen.items()]


def _crop(report: Report) -> tuple[tuple[int, int] | None, str]:
    """Choose (height, width) of training crops, and say why."""
    if not report.sizes:
        return None, ""
    heights = np.repeat([size[0] for size in report.sizes], list(report.sizes.values()))
    widths = np.repeat([size[1] for size in report.sizes], list(report.sizes.values()))
    if len(report.sizes) == 1 and max(heights[0], widths[0]) <= 640:
        return (int(heights[0]), int(widths[0])), "All images have this size, which fits as it is."
    short = float(np.median(np.minimum(heights, widths)))
    side = 512 if short >= 512 else max(32, int(short) // 32 * 32)
    smaller = int((np.minimum(heights, widths) < side).sum())
    why = f"The shorter side of an image has {short:.0f} pixels in the median; training sees square crops"
    why += f", and {smaller} of {report.looked} images are padded." if smaller else "."
    return (side, side), why


def _augmentation(report: Report, crop: tuple[int, int] | None, why: str) -> list[str]:
    grey = all("grey" in kind or "1-bit" in kind for kind in report.kinds)
    lines = []
    if grey or report.channels != 3:
        lines += ["  # No colours to vary: crops and flips.", "  preset: light"]
    else:
        lines += ["  # Scale jitter, crops, flips and photometric distortion.", "  preset: segformer"]
    if crop:
        lines += [f"  # {why}", f"  crop_size: [{crop[0]}, {crop[1]}]"]
    lines.append("  # Where up and down mean nothing (microscopes, satellites): vertical_flip: 0.5, rotation: 180")
    rare = report.present[(report.pixels > 0) & (report.shares < RARE)]
    if rare.size and report.looked and rare.min() < 0.3 * report.looked:
        lines += [
            "  # A rare class is in few of the images: half of the crops are placed around one.",
            "  rare_class_crop: 0.5",
        ]
    return lines


def _loss(report: Report) -> list[str]:
    shares, seen = report.shares, report.pixels > 0
    if seen.sum() < 2:
        return [
            "  # Fewer than two classes were seen: check the labels before training.",
            "  terms: {cross_entropy: 1.0}",
        ]
    least = int(np.argmin(np.where(seen, shares, 2)))
    what = f"{report.schema.names[least]} covers {percent(shares[least])} of the labelled pixels"
    if report.schema.num_labels == 2 and shares[least] < 2 * RARE and report.widths[least] < THIN:
        return [
            f"  # {what} and is thin (about {report.widths[least]:.0f} pixels wide): Dice counts regions, not pixels.",
            "  terms: {cross_entropy: 1.0, dice: 1.0}",
        ]
    if shares[seen].max() > 10 * shares[least]:
        return [
            f"  # {what}, the commonest class {percent(shares.max())}: weights from the frequencies.",
            "  class_weights: auto",
        ]
    return [f"  # No class is rare: {what}.", "  terms: {cross_entropy: 1.0}"]

"""Measures hfseg against its peers, on the CPU, and prints a Markdown table for the README.

    python scripts/benchmark.py                                   # every section
    python scripts/benchmark.py loop data --data PATH --output table.md

Both sides of a comparison run in one process on the same inputs, turn by turn, after a warm-up; the ratio is the
median over the rounds. Ratios travel between machines, times do not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

# The peers are compared on the CPU, and nothing is looked up on a hub; both are read when the libraries load.
os.environ |= {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
import transformers
from accelerate.utils import set_seed
from PIL import Image
from torch.nn import functional as F
from torch.utils.data.dataloader import DataLoader, _BaseDataLoaderIter

import hfseg
from hfseg.data.augment import PRESETS, Augmentation, rare_classes
from hfseg.data.frequencies import class_counts
from hfseg.data.loading import Preparation, TrainingSet, train_loader
from hfseg.data.shapes import scene
from hfseg.recipe import AugmentConfig
from hfseg.run_setup import crop_size, fill_colour

B0 = {"name": "nvidia/mit-b0", "weights": "random"}  # SegFormer-B0; speed does not depend on the weights
MANY_LABELS = hfseg.LabelSchema.from_names([f"class {i}" for i in range(150)])
SEED = 42


@dataclass
class Setting:
    """What the command line chose."""

    data: str | None
    rounds: int
    quick: bool  # sizes for trying the script out; the figures then mean nothing


@dataclass
class Row:
    """A line of the table."""

    what: str
    hfseg: str
    peer: str
    result: str


# -- Measuring -------------------------------------------------------------------------------------------------------


def take_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times functions turn by turn, so that whatever else the machine does meets all of them alike.

    Args:
        sides: Functions by name.
        rounds: How often each is timed, after one call that is not.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Returns the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def shown(seconds: list[float]) -> str:
    """Returns the median as text, in milliseconds."""
    value = 1000 * statistics.median(seconds)
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def extra_memory(call: Callable[[], object]) -> float:
    """Returns by how many MB the process grew at most during a call (Linux)."""

    def status(key: str) -> float:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
        return int(line.split()[1]) / 1000

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    call()
    return max(0.0, status("VmHWM") - before)


# -- loop ------------------------------------------------------------------------------------------------------------


class BatchClock:
    """Notes when any `DataLoader` is asked for a batch and when it gives one, in hfseg's loop as in a bare one.

    From a batch to the next request is the loop; from a request to its batch is the data.

    Args:
        skip: Batches at the start that do not count.
    """

    def __init__(self, skip: int = 3):
        self.skip, self.times = skip, []

    def __enter__(self) -> BatchClock:
        original, times = _BaseDataLoaderIter.__next__, self.times

        def timed(iterator):
            asked = time.perf_counter()
            batch = original(iterator)
            times.append((asked, time.perf_counter()))
            return batch

        self._patch = mock.patch.object(_BaseDataLoaderIter, "__next__", timed)
        self._patch.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._patch.__exit__(*error)

    @property
    def step(self) -> float:
        """Median seconds of a step without its wait for data."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return statistics.median([asked - given for (_, given), (asked, _) in pairs][self.skip :])

    @property
    def wait(self) -> float:
        """Median seconds of a wait for a batch."""
        return statistics.median([given - asked for asked, given in self.times][self.skip :])


def training_loader(data, recipe: hfseg.Recipe, processor, rare=()) -> DataLoader:
    """Returns the batches that `hfseg.train` would see."""
    augmentation = Augmentation(
        recipe.augment, size=crop_size(recipe, data, None), ignore_index=data.schema.ignore_index,
        mean=fill_colour(processor, data.channels), rare_classes=rare,
    )  # fmt: skip
    prepare = Preparation(augmentation, processor, recipe.data.image_size, recipe.seed)
    rows = TrainingSet(data[data.train], data.schema, prepare, data.channels)
    return train_loader(rows, recipe.train.per_device_train_batch_size, seed=recipe.seed,
                        num_workers=recipe.data.num_workers)  # fmt: skip


def bare_step(model, optimizer, batch: dict, ignore_index: int) -> torch.Tensor:
    """Forward, backward and optimizer, as few lines as PyTorch needs."""
    logits = model(pixel_values=batch["pixel_values"]).logits
    logits = F.interpolate(logits, size=batch["labels"].shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, batch["labels"], ignore_index=ignore_index)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def bare_loop(data, recipe: hfseg.Recipe) -> list[float]:
    """Trains in a bare loop as the recipe says, and returns the losses."""
    set_seed(recipe.seed)
    model, processor = hfseg.load_model(**B0, labels=data.schema)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, weight_decay=0.0)
    batches = iter(training_loader(data, recipe, processor))
    set_seed(recipe.seed)
    model.train()
    losses = [bare_step(model, optimizer, next(batches), data.schema.ignore_index)
              for _ in range(recipe.train.max_steps)]  # fmt: skip
    return torch.stack(losses).tolist()


def hfseg_loop(data, recipe: hfseg.Recipe) -> list[float]:
    """Trains with hfseg, everything printed that a user sees, and returns the losses."""
    with tempfile.TemporaryDirectory() as folder:
        recipe.output_dir = folder
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            hfseg.train(recipe, data=data)
        lines = (Path(folder) / "train_log.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def measure_loop(setting: Setting) -> Iterator[Row]:
    """What hfseg.train costs beyond forward + backward + optimizer, and how long it waits for data."""
    recipe = hfseg.Recipe(seed=SEED)
    recipe.model.name, recipe.model.weights = B0["name"], B0["weights"]
    recipe.data.path, recipe.data.max_eval_samples = "shapes/source", 2
    # The same arithmetic as the bare loop; a log line and the bar at every step; evaluated at the end only.
    recipe.train.weight_decay, recipe.train.schedule, recipe.train.max_grad_norm = 0.0, "constant", None
    recipe.train.logging_steps, recipe.eval.samples = 1, 0
    recipe.train.per_device_train_batch_size = batch_size = 2 if setting.quick else 8
    recipe.train.max_steps = recipe.eval.eval_steps = 6 if setting.quick else 24
    data = hfseg.load_data(recipe.data.path, scenes=8 if setting.quick else 200)
    for workers in (0, 1):
        recipe.data.num_workers = workers
        step: dict[str, list[float]] = {"bare": [], "hfseg": []}
        waits = []
        for number in range(setting.rounds + 1):
            losses = {}
            for name, loop in (("bare", bare_loop), ("hfseg", hfseg_loop)):
                with BatchClock() as clock:
                    losses[name] = loop(data, recipe)
                if number:
                    step[name].append(clock.step)
            waits.append(clock.wait)
            np.testing.assert_allclose(losses["hfseg"], losses["bare"], rtol=1e-3, err_msg="not the same training")
        wait, whole = statistics.median(waits[1:]), statistics.median(step["hfseg"])
        task = f"SegFormer-B0, batch {batch_size}, 128x128, num_workers {workers}"
        yield Row(f"Training step without its data, {task}", shown(step["hfseg"]),
                  f"bare PyTorch loop, with neither gradient norm nor log, {shown(step['bare'])}",
                  f"{ratio(step['hfseg'], step['bare']) - 1:+.1%} overhead")  # fmt: skip
        yield Row(f"Wait for a batch, {task}", shown([wait]), f"a step without it {shown([whole])}",
                  f"{wait / (wait + whole):.1%} of the time")  # fmt: skip


# -- data ------------------------------------------------------------------------------------------------------------


def take_batches(batches: Iterator[dict], count: int) -> None:
    """Takes batches with one thread, as a worker process prepares them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(count):
        next(batches)
    torch.set_num_threads(threads)


def measure_data(setting: Setting) -> Iterator[Row]:
    """Images per second that one core prepares, against those that the model trains on with all cores."""
    batch_size, images = 4, 8 if setting.quick else 64
    sources = {"embedded shapes": hfseg.load_data("shapes/source", scenes=64)}
    if setting.data:
        sources[Path(setting.data).name] = hfseg.load_data(setting.data)
    for title, data in sources.items():
        model, processor = hfseg.load_model(**B0, labels=data.schema)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        rare = rare_classes(class_counts(data, data.train, limit=100))
        recipe = hfseg.Recipe(seed=SEED)
        recipe.train.per_device_train_batch_size = batch_size
        height, width = crop_size(recipe, data, None)
        batch = next(iter(training_loader(data, recipe, processor)))
        sides = {"model": partial(bare_step, model, optimizer, batch, data.schema.ignore_index)}
        for preset in PRESETS:
            recipe.augment = AugmentConfig(preset=preset)
            batches = iter(training_loader(data, recipe, processor, rare))
            sides[preset] = partial(take_batches, batches, images // batch_size)
        seconds = take_turns(sides, setting.rounds)
        trained = batch_size / statistics.median(seconds["model"])
        for preset in PRESETS:
            prepared = images / statistics.median(seconds[preset])
            faster = ratio(seconds["model"], seconds[preset]) * images / batch_size
            yield Row(f"Data pipeline on one core, {title} {height}x{width}, preset `{preset}`",
                      f"{prepared:.0f} images/s", f"SegFormer-B0 trains on {trained:.1f} images/s",
                      f"{faster:.1f}x as fast")  # fmt: skip


# -- memory ----------------------------------------------------------------------------------------------------------


def evaluation_memory(count: int, keep_maps: bool) -> float:
    """Returns the MB that scoring `count` embedded scenes takes; to be called in a process of its own.

    Args:
        count: Number of images.
        keep_maps: Score in the usual way: gather all maps, then compute.
    """
    torch.set_num_threads(1)
    data = hfseg.load_data("shapes/source", scenes=16)
    split = data.validation
    data[split] = data[split].select([i % 16 for i in range(count)])
    small = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1],
             "decoder_hidden_size": 16}  # fmt: skip
    segmenter = hfseg.Segmenter(*hfseg.load_model("segformer", labels=data.schema, config=small))
    metric = hfseg.metrics.load("mean_iou", num_labels=data.schema.num_labels)  # what it imports does not count

    def gather() -> None:
        predictions, references = [], []
        for first in range(0, count, 8):  # batches as in `hfseg.evaluate`
            samples = [data.read(split, i) for i in range(first, min(first + 8, count))]
            predictions += segmenter.predict_maps([sample.image for sample in samples])
            references += [sample.semantic_map for sample in samples]
        metric.compute(predictions=predictions, references=references)

    return extra_memory(gather if keep_maps else lambda: hfseg.evaluate(segmenter, data, split=split))


def measure_memory(setting: Setting) -> Iterator[Row]:
    """Memory of an evaluation of 10 to 1000 images: the peak above what the process held before."""
    counts = (5, 10, 20) if setting.quick else (10, 100, 1000)
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh:
        peaks = {keep: list(fresh.map(evaluation_memory, counts, [keep] * 3)) for keep in (False, True)}
    text = {keep: " / ".join(f"{mb:.0f}" for mb in values) + " MB" for keep, values in peaks.items()}
    growth = {keep: f"{values[-1] - values[0]:+.0f} MB" for keep, values in peaks.items()}
    task = f"evaluation of {' / '.join(map(str, counts))} images of 128x128 (a process each)"
    yield Row(f"Peak extra memory, {task}", text[False],
              f"all maps gathered first {text[True]}", f"{growth[False]} against {growth[True]}")  # fmt: skip


# -- metric ----------------------------------------------------------------------------------------------------------


def patches(rng: np.random.Generator, size: int, labels: int) -> np.ndarray:
    """Returns a map of `size` x `size` class ids in areas like those of a real one."""
    coarse = rng.integers(0, labels, (size // 32, size // 32), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.NEAREST))


def measure_metric(setting: Setting) -> Iterator[Row]:
    """Mean IoU of maps with 150 classes, through `evaluate`'s interface."""
    from torchmetrics.classification import MulticlassJaccardIndex

    size, images, n = (64, 2, 150) if setting.quick else (512, 8, 150)
    rng = np.random.default_rng(SEED)
    references = [patches(rng, size, n) for _ in range(images)]
    predictions = [np.where(rng.random(r.shape) < 0.8, r, patches(rng, size, n)) for r in references]
    for reference in references:
        reference[: size // 16] = 255
    pairs = list(zip(predictions, references, strict=True))
    tensors = [tuple(torch.from_numpy(ids.astype(np.int64)) for ids in pair) for pair in pairs]
    scores: dict[str, float] = {}

    def ours() -> None:
        metric = hfseg.metrics.load("mean_iou", num_labels=n, ignore_index=255)
        for prediction, reference in pairs:
            metric.add(prediction=prediction, reference=reference)
        scores["hfseg"] = metric.compute()["mean_iou"]

    def by_torchmetrics() -> None:
        metric = MulticlassJaccardIndex(num_classes=n, average=None, ignore_index=255)
        for pair in tensors:
            metric.update(*pair)
        scores["torchmetrics"] = float(metric.compute().mean())

    def by_bincount() -> None:
        matrix = np.zeros((n, n), np.int64)
        for prediction, reference in pairs:
            kept = reference != 255
            joint = reference[kept].astype(np.int64) * n + prediction[kept]
            matrix += np.bincount(joint, minlength=n * n).reshape(n, n)
        both = np.diag(matrix)
        with np.errstate(invalid="ignore"):
            scores["masked numpy.bincount"] = float(np.nanmean(both / (matrix.sum(0) + matrix.sum(1) - both)))

    sides = {"hfseg": ours, "torchmetrics": by_torchmetrics, "masked numpy.bincount": by_bincount}
    with contextlib.suppress(OSError):  # evaluate's own module lies on the hub; measured where it can be had
        import evaluate

        own = evaluate.load("mean_iou")

        def by_evaluate() -> None:
            result = own.compute(predictions=predictions, references=references, num_labels=n, ignore_index=255)
            scores["evaluate's mean_iou"] = float(result["mean_iou"])

        sides["evaluate's mean_iou"] = by_evaluate
    seconds = {name: [s / images for s in values] for name, values in take_turns(sides, setting.rounds).items()}
    for name in list(sides)[1:]:
        if all(c in np.concatenate(references) for c in range(n)):  # peers differ on classes that never occur
            np.testing.assert_allclose(scores["hfseg"], scores[name], rtol=1e-5, err_msg=name)
        faster = ratio(seconds[name], seconds["hfseg"])
        yield Row(f"Mean IoU of an image, {size}x{size}, {n} classes", shown(seconds["hfseg"]),
                  f"{name} {shown(seconds[name])}", f"{faster:.2f}x as fast")  # fmt: skip


# -- segmenter -------------------------------------------------------------------------------------------------------


def measure_segmenter(setting: Setting) -> Iterator[Row]:
    """An image file's pixels in, a segmentation out."""
    height, width, inner = (180, 320, 128) if setting.quick else (720, 1280, 512)
    photo = Image.fromarray(scene(SEED, 0, size=(height, width)).image)
    model, processor = hfseg.load_model(**B0, labels=MANY_LABELS, image_size=(inner, inner))
    segmenter = hfseg.Segmenter(model, processor)
    peer = transformers.pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
    seconds = take_turns({"hfseg": lambda: segmenter(photo), "peer": lambda: peer(photo)}, setting.rounds)
    memory = {name: extra_memory(lambda call=call: call(photo)) for name, call in
              (("hfseg", segmenter), ("peer", peer))}  # fmt: skip
    ours, theirs = segmenter(photo).semantic_map, np.full((height, width), -1)
    for part in peer(photo):
        theirs[np.asarray(part["mask"]) > 0] = model.config.label2id[part["label"]]
    agreement = float((ours == theirs).mean())
    if agreement < 0.999:
        raise SystemExit(f"Segmenter and pipeline agree on {agreement:.2%} of the pixels only: no comparison")
    task = f"SegFormer-B0, {len(MANY_LABELS.names)} labels, {width}x{height} photo"
    name = 'transformers pipeline("image-segmentation")'
    yield Row(f"`Segmenter(image)`, {task}", shown(seconds["hfseg"]), f"{name} {shown(seconds['peer'])}",
              f"{ratio(seconds['peer'], seconds['hfseg']):.2f}x as fast")  # fmt: skip
    yield Row("The same, peak extra memory", f"{memory['hfseg']:.0f} MB", f"{memory['peer']:.0f} MB",
              f"{memory['hfseg'] / memory['peer']:.2f} of it")  # fmt: skip


# -- The table -------------------------------------------------------------------------------------------------------

SECTIONS = {
    "loop": measure_loop,
    "data": measure_data,
    "memory": measure_memory,
    "metric": measure_metric,
    "segmenter": measure_segmenter,
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
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the table goes, too")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    transformers.logging.set_verbosity_error()
    setting = Setting(chosen.data, chosen.rounds, chosen.quick)
    lines = [f"{machine()}. Median of {setting.rounds} rounds after a warm-up.", "",
             "| what | hfseg | against | result |", "|---|---|---|---|"]  # fmt: skip
    print(*lines, sep="\n", flush=True)
    for name in chosen.sections or SECTIONS:
        for row in SECTIONS[name](setting):
            lines.append(f"| {row.what} | {row.hfseg} | {row.peer} | {row.result} |")
            print(lines[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Predict masks of many files, and lose none of them."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from hfseg.data.images import ARRAY_SUFFIXES, PHOTO_SUFFIXES
from hfseg.errors import BadSample, UserError
from hfseg.segmenter import Segmenter

RESULT_ENDINGS = ("_semantic_map", "_overlay", "_segment_map")  # of the pictures that `hfseg predict` writes
MOST_BYTES = 120  # of a result's stem: file systems take 255 for a name
SAVERS = 2  # threads that write results; as many more may wait


def predict_files(
    model: str, files: list[Path], output: Path, revision: str | None = None, *, tile: int | None = None,
    tta: str | Iterable[str | float] | None = None, batch_size: int = 4, **rules,
) -> int:
    """Writes a semantic map, an overlay and the areas of each image.

    Files are read and results written in threads while the network computes. Every result that was begun is written
    whole, also when the command is stopped.

    Args:
        model: Run directory, folder or hub id.
        files: The images.
        output: Folder to write to; made when needed.
        revision: Of a model on the hub.
        tile: As for `Segmenter`.
        tta: As for `Segmenter`.
        batch_size: Images that are read before the network starts on them; large ones, in tiles, come one by one.
        **rules: `task`, `threshold` and the like, as for `Segmenter`.

    Returns:
        How many images were written; what is wrong with each of the others is printed.

    Raises:
        UserError: When the model cannot be read, rules for objects are given and it has none, or a result would
            replace a file that is no result.
    """
    segmenter = Segmenter.from_pretrained(model, revision=revision, tile=tile, tta=tta, **rules)
    told_apart = sorted(set(rules) - {"task"})
    if segmenter.task == "semantic" and told_apart:
        other = next((f", or --task {task}" for task in segmenter.tasks if task != "semantic"), "")
        raise UserError(f"{', '.join(told_apart)}: for objects, and the task is semantic",
                        "the tasks instance and panoptic", f"leave it out{other}")
    stems, waiting, written = unique_stems(files), deque[Future](), 0
    protect(output, stems, files)
    results = segmenter.stream(files, 1 if segmenter.tile else batch_size, on_bad_sample="yield")
    with ThreadPoolExecutor(SAVERS, "hfseg-save") as savers, closing(results):  # leaving waits for what is begun
        bar = tqdm(zip(files, stems, results), total=len(files), desc="predicting", unit="img", leave=False)
        for file, stem, result in bar:
            if isinstance(result, BadSample):
                tqdm.write(str(result), file=sys.stderr)
                continue
            source = os.fsencode(file).decode(errors="replace")
            waiting.append(savers.submit(result.save, output, stem=stem, source=source))
            del result  # or it would be held while the next ones are computed
            if len(waiting) > 2 * SAVERS:
                waiting.popleft().result()
                written += 1
        for saved in waiting:
            saved.result()
            written += 1
    return written


def find_images(inputs: list[str]) -> list[Path]:
    """Returns the image files that inputs stand for.

    Args:
        inputs: Files, folders (searched whole) and globs.

    Returns:
        Files in order, each once.

    Raises:
        UserError: When an input stands for none.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*")
                if file.suffix.lower() in (*PHOTO_SUFFIXES, *ARRAY_SUFFIXES) and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts) and not is_result(file)
            )  # fmt: skip
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            files = [file for file in files if not is_result(file)]
        if not files:
            raise UserError(f"no image found at {text}", "an image, a folder with images, or a glob")
        found.update(dict.fromkeys(files))
    return list(found)


def is_result(file: Path) -> bool:
    """Returns whether `hfseg predict` wrote this picture.

    Args:
        file: A file.

    Returns:
        True where it is named like a result and its segments.json lies beside it.
    """
    stem = next((file.stem.removesuffix(e) for e in RESULT_ENDINGS if file.stem.endswith(e)), None)
    return stem is not None and file.suffix == ".png" and is_own(file.with_name(f"{stem}_segments.json"))


def is_own(file: Path) -> bool:
    """Returns whether `hfseg predict` wrote this segments.json.

    Args:
        file: A file, or none.

    Returns:
        True where it holds what a result holds.
    """
    try:
        return {"width", "height", "id2label", "areas"} <= set(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def protect(output: Path, stems: list[str], inputs: list[Path]) -> None:
    """Makes sure that no result replaces an input, or a file that is no earlier result.

    Args:
        output: The folder of the results.
        stems: Of their names.
        inputs: The images.

    Raises:
        UserError: When one would.
    """
    own = {file.resolve() for file in inputs}
    for stem in stems:
        segments = output / f"{stem}_segments.json"
        for file in (segments, *(output / f"{stem}{ending}.png" for ending in RESULT_ENDINGS)):
            if file.resolve() in own or (file.exists() and not is_own(segments)):
                raise UserError(f"{file} exists already, and would be replaced by a result", "a folder without it",
                                "choose another --output")


def unique_stems(files: list[Path]) -> list[str]:
    """Returns a name for each file's results; files of one name get their folder's or a number.

    Args:
        files: The inputs.

    Returns:
        Different names, in order.

    Example:
        >>> unique_stems([Path("a/x.png"), Path("b/x.png"), Path("b/y.png")])
        ['a_x', 'b_x', 'y']
    """
    stems = [os.fsencode(file.stem)[:MOST_BYTES].decode(errors="ignore") for file in files]
    times = Counter(stems)
    names = [f"{file.parent.name}_{stem}" if times[stem] > 1 else stem for file, stem in zip(files, stems)]
    taken: set[str] = set()
    for number in range(len(names)):
        while names[number] in taken:
            names[number] += f"_{number}"
        taken.add(names[number])
    return names

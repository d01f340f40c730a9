"""What the page does when it is asked: one function per endpoint, each of which checks what it is sent."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from hfseg.demo.encoding import completed, encode, message, no_class
from hfseg.demo.exports import KINDS, Request, write_export
from hfseg.demo.limits import read_upload, told
from hfseg.demo.models import Models
from hfseg.demo.video import MOST_FRAMES, segment_frame, segment_video
from hfseg.errors import UserError, one_of
from hfseg.models.families import TASKS
from hfseg.result import Segmentation
from hfseg.segmenter import Segmenter

TILES = {"automatic": None, "off": 0, "512": 512, "1024": 1024}
SIZES = {"as it is": None, "2048": 2048, "1024": 1024, "512": 512}
VIEWS = ("horizontal_flip", "vertical_flip", "0.75", "1.25")
LARGE = 4_000_000  # pixels; above, the network is shown tiles unless it resizes images anyway

OUTPUTS = 2  # of networks that propose masks, which are remembered
ENCODED = 4  # images that promptable models remember
MOST_POINTS = 100


class Handlers:
    """The endpoints of a page.

    Args:
        models: What it serves.
    """

    def __init__(self, models: Models):
        self.models = models
        self._looked_at: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._outputs = Outputs()

    def segment(
        self, image: str | None, model: str, compare_with: str | None = None, tiles: str = "automatic",
        views: list[str] | None = None, longest_side: str = "as it is", task: str | None = None,
        threshold: float = 0.5, mask_threshold: float = 0.5,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Finds the class of every pixel of an image, or its objects.

        Args:
            image: A file: JPEG, PNG, TIFF, WebP...
            model: One of the page's models.
            compare_with: Another one, to be shown beside it, or nothing.
            tiles: Side in pixels of the windows that a large image is computed in: automatic, off, 512 or 1024.
            views: Test-time augmentation: horizontal_flip, vertical_flip, 0.75, 1.25.
            longest_side: Down to how many pixels the image is made smaller for the network: as it is, 2048, 1024, 512.
            task: semantic, instance or panoptic, of models that do several; nothing for what it was trained for.
            threshold: The least score of an object, 0 to 1.
            mask_threshold: The probability from which a pixel belongs to an object, 0 to 1.

        Returns:
            Twice, first without the confidence: the photo, and per model the class ids (grey PNG, from 255 classes on
            red + 256 green), the confidence (PNG, 255 is certain), class names, colours and segments; the milliseconds
            of each part.
        """
        with told(image):
            options = Options(tiles, views, longest_side, task, threshold, mask_threshold)
            chosen = [model] + ([compare_with] if compare_with and compare_with != model else [])
            if model in self.models.prompted:  # it says nothing by itself: an empty map to add masks to
                yield from self._messages({model: nothing(read_upload(image))}, image, {}, [])
                return
            start = time.perf_counter()
            segmenters = {name: self._segmenter(name) for name in chosen}
            times = {"wait for model": time.perf_counter() - start, "read": 0.0}
            results, notes = {}, []
            for name, segmenter in segmenters.items():
                start = time.perf_counter()
                array = read_upload(image, segmenter.channels)
                times["read"] += time.perf_counter() - start
                results[name], note = run(segmenter, array, options, times, self._outputs)
                notes += [note] * (note is not None and note not in notes)
            yield from self._messages(results, image, times, notes)

    def export(
        self, semantic_map: str | None, kind: str, photo: str | None, request: dict | None,
        segment_map: str | None = None,
    ) -> str:  # fmt: skip
        """Writes a map, which may have been corrected by hand, as a file of another kind.

        Args:
            semantic_map: The class ids as a PNG: palette, grey with 8 or 16 bits.
            kind: coco (run-length codes), geojson (polygons), overlay or cutout (PNG).
            photo: The photo, for overlay and cutout.
            request: `classes` as a list of id, name and colour; `hidden` class ids, which overlay and cutout leave
                out; `opacity` of an overlay, 0 to 1; with a segment map `segments` as a list of id, label_id and
                perhaps score; `name` to call the file by.
            segment_map: Segment ids as a PNG of red + 256 green + 65536 blue, where segments are not classes.

        Returns:
            The file.
        """
        with told(semantic_map, photo, segment_map):
            if kind not in KINDS:
                raise UserError(f"no export of kind {str(kind)[:40]!r}", ", ".join(KINDS))
            return write_export(Request.read(semantic_map, photo, request, segment_map), kind)

    def prompt(self, image: str | None, model: str, prompts: dict | None) -> tuple[str, dict[str, Any]]:
        """Finds the mask of what was pointed at. An image is encoded once, however often it is asked about.

        Args:
            image: A file: JPEG, PNG, TIFF, WebP...
            model: One of the page's promptable models.
            prompts: `points` as a list of [x, y, label], in pixels, where label 1 lies on the object and 0 does not;
                `box` as [left, top, right, bottom]; any `number`, which comes back.

        Returns:
            The mask as a PNG of 0 and 255, at the image's own size; and `score`, the IoU that the model expects,
            `milliseconds`, and the `number`.
        """
        with told(image):
            if model not in self.models.prompted:
                raise UserError(f"this page has no promptable model {str(model)[:100]!r}",
                                ", ".join(self.models.prompted) or "none", "hfseg demo MODEL PROMPTABLE-MODEL")
            points, labels, box, number = read_prompts(prompts)
            prompter = self.models.get(model)
            start = time.perf_counter()
            mask, score = prompter.predict(self._encoded(model, prompter, image), points, labels, box)
            facts = {"score": float(score), "milliseconds": 1000 * (time.perf_counter() - start), "number": number}
            return encode(Image.fromarray(mask * np.uint8(255)), "mask.png")["path"], facts

    def video(
        self, video: str | None, model: str, every: float = 1, progress: gr.Progress | None = None,
    ) -> tuple[str, str]:  # fmt: skip
        """Segments the frames of a video, up to the page's cap.

        Args:
            video: A file: MP4, WebM, MOV...
            model: One of the page's models.
            every: Every how many frames one is taken, 1 to 60.

        Returns:
            An MP4 (H.264) of the video and its classes side by side, and what was done, in a line.
        """
        with told(video):
            segmenter = self._segmenter(model)
            whole = isinstance(every, (int, float)) and every == int(every)
            path, facts = segment_video(video, segmenter, int(every) if whole else every, progress or (lambda *_: None))
        shown = ", ".join(f"{name} {share:.1f} %" for name, share in facts["classes"][:8])
        cut = f" The cap is {MOST_FRAMES}; the rest was left out." if facts["cut"] else ""
        return path, f"{facts['frames']} frames, {facts['seconds']:.1f} s at {facts['fps']:g} fps.{cut} Mean: {shown}"

    def frame(self, frame: np.ndarray | None, model: str) -> np.ndarray | None:
        """Segments one frame of a webcam.

        Args:
            frame: The picture.
            model: One of the page's models.

        Returns:
            The frame with its classes, at most 480 pixels long.
        """
        if frame is None:
            return None
        with told():
            return segment_frame(frame, self._segmenter(model))

    def _encoded(self, model: str, prompter: Any, image: str | None) -> Any:
        """The image as the model keeps it; the last few images are remembered."""
        array = read_upload(image)
        key = model, hashlib.blake2b(array.tobytes(), digest_size=16).digest(), array.shape
        with self._lock:
            if key not in self._looked_at:
                self._looked_at[key] = prompter.encode(array)
            self._looked_at.move_to_end(key)
            while len(self._looked_at) > ENCODED:
                self._looked_at.popitem(last=False)
            return self._looked_at[key]

    def _messages(
        self, results: dict[str, Segmentation], image: str | None, times: dict, notes: list
    ) -> Iterator[dict[str, Any]]:
        array = next(iter(results.values())).image
        first = message(results, array, image, times, notes) | {"prompter": next(iter(self.models.prompted), None)}
        yield first
        yield completed(first, results, times)

    def _segmenter(self, name: str) -> Segmenter:
        if name not in self.models.names or name in self.models.prompted:
            raise UserError(f"this page has no model {str(name)[:100]!r}", ", ".join(self.models.names))
        return self.models.get(name)


class Options:
    """How the network is shown an image.

    Args:
        tiles: A key of `TILES`.
        views: Some of `VIEWS`.
        longest_side: A key of `SIZES`.
        task: What is wanted of a model that can do it; others do what they can.
        threshold: As for a `Segmenter`; None for what it does.
        mask_threshold: So, too.

    Raises:
        UserError: For anything else.
    """

    def __init__(self, tiles: str = "automatic", views: list[str] | None = None, longest_side: str = "as it is",
                 task: str | None = None, threshold: float | None = None, mask_threshold: float | None = None):
        views = views or []
        for what, value, allowed in (("tiles", tiles, TILES), ("longest side", longest_side, SIZES),
                                     *(("view", view, VIEWS) for view in views)):
            if not isinstance(value, str) or value not in allowed:
                raise UserError(f"{what} {str(value)[:40]!r}", ", ".join(allowed))
        self.tile, self.views, self.longest_side = TILES[tiles], tuple(views), SIZES[longest_side]
        self.task = one_of(task, TASKS, "task") if task else None
        rules = {"threshold": threshold, "mask_threshold": mask_threshold}
        self.rules = {what: value for what, value in rules.items() if value is not None}
        for what, value in self.rules.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UserError(f"{what} {str(value)[:40]!r}", "0 to 1")

    def settled(self, segmenter: Segmenter, tile: int | None) -> Segmenter:
        """Makes a segmenter that does what is wanted.

        Args:
            segmenter: The model.
            tile: The tile that was settled on.

        Returns:
            Another segmenter.
        """
        task = self.task if self.task in segmenter.tasks else None
        return segmenter.using(tile=tile, tta=self.views, task=task, **self.rules)


class Outputs:
    """What networks said last, for a visitor who moves a slider: the network need not look again."""

    def __init__(self):
        self._kept: OrderedDict[tuple, Any] = OrderedDict()

    def remember(self, segmenter: Segmenter) -> None:
        """Makes a segmenter remember.

        Args:
            segmenter: A copy to spend, of a model that proposes masks.
        """
        forward = segmenter._forward

        def remembered(pixel_values: torch.Tensor) -> Any:
            digest = hashlib.blake2b(pixel_values.float().cpu().numpy().tobytes(), digest_size=16).digest()
            key = id(segmenter.model), segmenter.task, tuple(pixel_values.shape), digest
            if key not in self._kept:
                self._kept[key] = forward(pixel_values)
            self._kept.move_to_end(key)
            while len(self._kept) > OUTPUTS:
                self._kept.popitem(last=False)
            return self._kept[key]

        segmenter._forward = remembered


def run(
    segmenter: Segmenter, image: np.ndarray, options: Options, times: dict[str, float], outputs: Outputs | None = None
) -> tuple[Segmentation, str | None]:
    """Segments an image by the page's options.

    Args:
        segmenter: The model.
        image: (H, W, C).
        options: How.
        times: Seconds by part are added here.
        outputs: Where outputs of networks are remembered.

    Returns:
        The result at the image's own size, and what a visitor should know of how it was made, or None.

    Raises:
        UserError: When the network cannot take them.
    """
    shown, note = _smaller(image, options.longest_side), None
    tile, large = options.tile, shown.shape[0] * shown.shape[1] > LARGE
    if tile is None and large and not segmenter.tile and not getattr(segmenter.processor, "do_resize", False):
        tile, note = 1024, "Large image: computed in tiles of 1024 pixels."
    timed, spent = options.settled(segmenter, tile).timed()
    if outputs is not None and timed.task != "semantic" and not timed.tta and not timed.needs_tiles(shown.shape):
        outputs.remember(timed)
    start = time.perf_counter()
    result = timed(shown)
    total = time.perf_counter() - start
    parts = {"forward": spent["forward"], "preprocess": spent["preprocess"],
             "map": total - spent["forward"] - spent["preprocess"]}  # fmt: skip
    if shown is not image:
        start = time.perf_counter()
        result = _at_size(result, image)
        parts["map"] += time.perf_counter() - start
        note = f"The network saw {shown.shape[1]} x {shown.shape[0]} pixels."
    for name, seconds in parts.items():
        times[name] = times.get(name, 0.0) + seconds
    return result, note


def nothing(image: np.ndarray) -> Segmentation:
    """Makes a map without a class.

    Args:
        image: (H, W, C).

    Returns:
        A result in which no pixel has a class.
    """
    return Segmentation(np.full(image.shape[:2], no_class({}), np.uint8), {}, (), image=image)


def read_prompts(prompts: Any) -> tuple[list, list, list | None, int]:
    """Checks what was pointed at.

    Args:
        prompts: As the endpoint says.

    Returns:
        Points, their labels, a box or None, and the number.

    Raises:
        UserError: For anything else.
    """
    prompts = prompts if isinstance(prompts, dict) else {}
    points, box, number = prompts.get("points") or [], prompts.get("box"), prompts.get("number")
    good = isinstance(points, list) and len(points) <= MOST_POINTS and all(_numbers(point, 3) for point in points)
    if not good or not (box is None or _numbers(box, 4)):
        raise UserError("prompts of another form", f"up to {MOST_POINTS} points [x, y, label] and perhaps a box "
                        "[left, top, right, bottom]")
    return [point[:2] for point in points], [point[2] for point in points], box, number if _numbers([number], 1) else 0


def _numbers(values: Any, count: int) -> bool:
    plain = isinstance(values, list) and len(values) == count
    return plain and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _smaller(image: np.ndarray, longest: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if longest is None or max(height, width) <= longest:
        return image
    size = [max(1, round(side * longest / max(height, width))) for side in (width, height)]
    bands = [_resize(image[..., band], size, Image.Resampling.BOX) for band in range(image.shape[2])]
    return np.stack(bands, -1)


def _resize(array: np.ndarray, size: list[int], how: Image.Resampling) -> np.ndarray:
    kind = array.dtype
    if kind != np.uint8:
        array = array.astype(np.int32 if kind.kind in "iu" else np.float32)
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(size, how)).astype(kind)


def _at_size(result: Segmentation, image: np.ndarray) -> Segmentation:
    size = [image.shape[1], image.shape[0]]
    changes: dict[str, Any] = {"image": image}
    for name in ("semantic_map", *(("segment_map",) if result.segments is not None else ())):
        changes[name] = _resize(getattr(result, name), size, Image.Resampling.NEAREST)
    if result.confidence is not None:
        changes["confidence"] = _resize(result.confidence, size, Image.Resampling.BILINEAR)
    if result.segments is None:
        changes["segment_map"] = None
    else:  # whole masks, beside the map, have the other size
        changes["segments"] = [{key: value for key, value in one.items() if key != "rle"} for one in result.segments]
    return replace(result, **changes)

"""What a model says about one image, and everything one does with it: look, measure, cut out, export."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfseg.drawing import paint, paint_segments, to_rgb
from hfseg.errors import UserError, one_of
from hfseg.labels import Colour
from hfseg.ops import rle, trace_polygons


class _ComputedWhenRead:
    """A field that may be given as a function, called when the field is first read and forgotten then."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:  # a dataclass asks for the default
            return None
        value = instance.__dict__[self._key]
        if callable(value):  # two threads may both compute it, and find the same
            value = instance.__dict__[self._key] = value()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._key] = value


@dataclass(eq=False)
class Segmentation:
    """The classes, and where there are objects the objects, of one image.

    Args:
        semantic_map: (H, W) class ids, 0 or more. A value that `id2label` does not name is unlabelled.
        id2label: Class name by class id.
        palette: (red, green, blue) per class id.
        image: (H, W), (H, W, C) array that was segmented, if overlays and cut-outs are wanted.
        confidence: (H, W) probability of the class of each pixel, or a function of no arguments that gives it: it
            is called when `confidence` or a segment's score is first read, or the result is pickled or copied.
        segment_map: (H, W) segment ids; by default the segments are the classes.
        segments: With `segment_map`, a dict with `id` and `label_id` (and perhaps `score`) per segment; and where
            masks overlap `rle`, the COCO run-length code of the whole mask, of which the map shows what is on top.

    Raises:
        ValueError: When the arrays do not fit each other.

    Example:
        >>> result = Segmentation(np.array([[0, 1, 1]]), {0: "sky", 1: "cat"}, [(0, 0, 255), (255, 0, 0)])
        >>> result.segment_at(2, 0)["label"]
        'cat'
    """

    semantic_map: np.ndarray
    id2label: Mapping[int, str]
    palette: Sequence[Colour]
    image: np.ndarray | None = None
    confidence: np.ndarray | Callable[[], np.ndarray] | None = _ComputedWhenRead()
    segment_map: np.ndarray | None = None
    segments: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self):
        self.id2label = {int(i): str(name) for i, name in self.id2label.items()}
        own = self.segment_map is None or self.segment_map is self.semantic_map  # as `dataclasses.replace` gives it
        if own != (self.segments is None):
            raise ValueError("segment_map and segments come together")
        given = {"image": self.image, "confidence": self.__dict__["_confidence"], "segment_map": self.segment_map}
        for name, array in given.items():
            if array is not None and not callable(array) and array.shape[:2] != self.semantic_map.shape:
                raise ValueError(f"{name} is {array.shape}, the semantic map {self.semantic_map.shape}")
        if self.segment_map is None:
            self.segment_map = self.semantic_map

    def __getstate__(self) -> dict[str, Any]:
        self.confidence  # noqa: B018 - a function, and the logits it holds, stay behind
        return self.__dict__

    def __repr__(self) -> str:
        height, width = self.semantic_map.shape
        found = ", ".join(f"{name} {area['share']:.0%}" for name, area in self.areas().items())
        return f"Segmentation({width} x {height}: {found or 'nothing'})"

    # -- look and measure -------------------------------------------------------------------------------

    @functools.cached_property
    def segments_info(self) -> list[dict[str, Any]]:
        """One entry per segment: `id`, `label_id`, `label`, `area` (pixels), `bbox` ([left, top, width, height]
        in pixels) and `score` (0 to 1; the mean confidence if none was given, None if that is unknown).
        Without `segment_map`, the segments are the classes that occur, and `id` is the class id."""
        entries = []
        for segment in self._segments:
            code, score = self.rles[segment["id"]], segment["score"]
            if score is None and self.confidence is not None and rle.area(code):
                score = self.confidence[rle.decode(code)].mean(dtype=np.float64)
            entries.append(
                {
                    **segment,
                    "area": rle.area(code),
                    "bbox": rle.bbox(code),
                    "score": None if score is None else float(score),
                }
            )
        return entries

    @functools.cached_property
    def rles(self) -> dict[int, dict[str, Any]]:
        """The mask of each segment, by its `id`, as COCO run-length code: `size` [height, width] and `counts`."""
        given = {int(segment["id"]): segment["rle"] for segment in self.segments or () if segment.get("rle")}
        return {
            segment["id"]: given.get(segment["id"]) or rle.encode(self.segment_map == segment["id"])
            for segment in self._segments
        }

    @functools.cached_property
    def _segments(self) -> list[dict[str, Any]]:
        """`id`, `label_id`, `label` and, where one was given, `score` of each segment: what costs nothing."""
        segments = self.segments
        if segments is None:
            present = np.flatnonzero(np.bincount(self.semantic_map.ravel()))
            segments = [{"id": i, "label_id": i} for i in present.tolist() if i in self.id2label]
        return [
            {
                "id": int(segment["id"]),
                "label_id": int(segment["label_id"]),
                "label": self.id2label[int(segment["label_id"])],
                "score": segment.get("score"),
            }
            for segment in segments
        ]

    def areas(self) -> dict[str, dict[str, float]]:
        """Measure how much of the image each class covers.

        Returns:
            {class name: {"pixels": int, "share": 0 to 1 of all pixels of the image}}, the largest first.
        """
        counts = np.bincount(self.semantic_map.ravel())
        pixels: dict[str, int] = {}
        for i, name in self.id2label.items():
            if i < len(counts) and counts[i]:
                pixels[name] = pixels.get(name, 0) + int(counts[i])
        total = self.semantic_map.size
        ordered = sorted(pixels.items(), key=lambda item: -item[1])
        return {name: {"pixels": count, "share": count / total} for name, count in ordered}

    def segment_at(self, x: int, y: int) -> dict[str, Any] | None:
        """Find the segment at a pixel.

        Args:
            x: Column, 0 at the left.
            y: Row, 0 at the top.

        Returns:
            Its entry of `segments_info`, or None where the pixel is unlabelled.

        Raises:
            UserError: When the pixel lies outside the image.
        """
        height, width = self.semantic_map.shape
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"({x}, {y}) lies outside the image", f"x from 0 to {width - 1}, y from 0 to {height - 1}")
        here = self.segment_map[int(y), int(x)]
        return next((entry for entry in self.segments_info if entry["id"] == here), None)

    def mask(self, segment: str | int) -> np.ndarray:
        """Tell which pixels belong to a class or a segment.

        Args:
            segment: A class name, which takes all its segments, or the `id` of one segment.

        Returns:
            (H, W) bool.

        Raises:
            UserError: When this image has no such segment; lists what there is.
        """
        if isinstance(segment, str):
            names = dict.fromkeys(entry["label"] for entry in self._segments)
            one_of(segment, names, "class in this image")
            ids = [entry["id"] for entry in self._segments if entry["label"] == segment]
        else:
            ids = [entry["id"] for entry in self._segments if entry["id"] == segment]
            if not ids:
                known = ", ".join(str(entry["id"]) for entry in self._segments)
                raise UserError(f"no segment {segment} in this image", known or "there is none")
        if any(segment.get("rle") for segment in self.segments or ()):
            return np.logical_or.reduce([rle.decode(self.rles[i]) for i in ids])
        return np.isin(self.segment_map, ids)

    # -- pictures ---------------------------------------------------------------------------------------

    def overlay(self, alpha: float = 0.55) -> Image.Image:
        """Lay the colours of the classes over the image, segments outlined.

        Args:
            alpha: How opaque the colours are, 0 to 1. Without an image they are opaque.

        Returns:
            An RGB image of the image's size; unlabelled pixels show the image.

        Raises:
            UserError: When `alpha` is outside 0 to 1.
        """
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}", "0 (the image) to 1 (the colours)")
        if self.segments is not None and self.image is not None:
            labels = {segment["id"]: segment["label_id"] for segment in self._segments}
            return Image.fromarray(paint_segments(self.segment_map, labels, self.palette, self.image, alpha))
        return Image.fromarray(paint(self.semantic_map, self.palette, self.image, alpha, self.segment_map))

    def cutout(self, segment: str | int) -> Image.Image:
        """Cut a class or a segment out of the image.

        Args:
            segment: As for `mask`.

        Returns:
            An RGBA image of the image's size, transparent elsewhere.

        Raises:
            UserError: When this image has no such segment, or the result holds no image.
        """
        if self.image is None:
            raise UserError("this result holds no image to cut from", fix="make it with image=...")
        mask = self.mask(segment)
        return Image.fromarray(np.dstack([to_rgb(self.image), mask * np.uint8(255)]))

    # -- files and formats ------------------------------------------------------------------------------

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Write the segments as COCO annotations with compressed run-length codes.

        Args:
            image_id: The image's id in the COCO file.

        Returns:
            Annotations, ready for JSON; `category_id` is the class id.
        """
        return [
            {
                "id": number,
                "image_id": image_id,
                "category_id": entry["label_id"],
                "segmentation": self.rles[entry["id"]],
                "area": entry["area"],
                "bbox": entry["bbox"],
                "iscrowd": 0,
                "score": entry["score"],
            }
            for number, entry in enumerate(self.segments_info, start=1)
        ]

    def to_geojson(self) -> dict[str, Any]:
        """Write the segments as polygons with holes that run exactly along the edges of pixels.

        Coordinates are pixels, x to the right and y down, with (0, 0) at the upper left corner of the image; the
        first pixel reaches from 0 to 1. Outer rings are counterclockwise by the numbers (positive shoelace area).

        Returns:
            A GeoJSON FeatureCollection, ready for JSON.
        """
        features = []
        for entry in self.segments_info:
            polygons = [
                [np.vstack([ring, ring[:1]]).tolist() for ring in polygon]
                for polygon in trace_polygons(rle.decode(self.rles[entry["id"]]))
            ]
            geometry = (
                {"type": "Polygon", "coordinates": polygons[0]}
                if len(polygons) == 1
                else {"type": "MultiPolygon", "coordinates": polygons}
            )
            features.append({"type": "Feature", "geometry": geometry, "properties": dict(entry)})
        return {"type": "FeatureCollection", "features": features}

    def save(self, folder: str | os.PathLike, stem: str = "", source: str | None = None) -> dict[str, Path]:
        """Write what there is into a folder, which is made where needed.

        `semantic_map.png` holds class ids as an index PNG with the palette (16 bits above 255, without),
        `overlay.png` the picture, `segments.json` the segments, areas and class names; `segment_map.png` (16 bits;
        ids above 65535 as red + 256 green + 65536 blue) is added where segments are not classes.

        Args:
            folder: Where to.
            stem: Put before each name with an underscore, for several images in one folder.
            source: What was segmented, for `segments.json`.

        Returns:
            The files by what they hold, such as `semantic_map`.

        Raises:
            UserError: When something cannot be written.
        """
        folder = Path(folder)
        if stem != Path(stem).name:
            raise UserError(f"the stem {stem!r} leads to another folder", "a name without / in it")
        try:
            return self._save(folder, f"{stem}_" if stem else "", source)
        except OSError as error:
            where = error.filename or folder
            raise UserError(f"{where} cannot be written: {error.strerror or error}", "a writable folder") from error

    def _save(self, folder: Path, prefix: str, source: str | None) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "semantic_map": folder / f"{prefix}semantic_map.png",
            "overlay": folder / f"{prefix}overlay.png",
        }
        # First, since it tells what the pictures beside it are, should they be the last that is written.
        files["segments"] = folder / f"{prefix}segments.json"
        height, width = self.semantic_map.shape
        content = {
            **({"image": source} if source else {}),
            "width": width,
            "height": height,
            "id2label": self.id2label,
            "areas": self.areas(),
            "segments_info": [
                {**entry, **({"rle": self.rles[entry["id"]]} if self.segments is not None else {})}
                for entry in self.segments_info
            ],
        }
        files["segments"].write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        index_image(self.semantic_map, self.palette).save(files["semantic_map"])
        self.overlay().save(files["overlay"])
        if self.segments is not None:
            files["segment_map"] = folder / f"{prefix}segment_map.png"
            ids = self.segment_map
            wide = ids.size and ids.max() > 65535
            ids = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1) if wide else ids
            Image.fromarray(ids.astype(np.uint8 if wide else np.uint16)).save(files["segment_map"])
        return files


def index_image(ids: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """Class ids as an image: 8 bits with the palette, or 16 bits without."""
    if ids.max() > 255:
        return Image.fromarray(ids.astype(np.uint16))
    picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
    colours = [int(value) for colour in palette[:256] for value in colour]
    picture.putpalette(colours + [0] * (768 - len(colours)))  # PIL stores ids beyond a short palette wrong
    return picture

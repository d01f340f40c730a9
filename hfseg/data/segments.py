"""The objects of one image: from codes, polygons or id maps to what augmentation and collating work on.

Masks that do not touch each other share a layer, an integer map of the objects' numbers. Few images need more than two
layers, so that a hundred objects cost what two label maps do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as coco

from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.ops import rle

IGNORED = -1  # class id of an object that nobody learns
_FAR = 1_000_000  # pixels


@dataclass
class Segments:
    """The objects, or segments, of one image.

    Args:
        layers: (L, H, W) integers: the number of the object that covers a pixel, from 1; 0 where there is none.
        layer_of: (N,) the layer that each object is in.
        labels: (N,) class ids; `IGNORED` for an object of no class.
        crowd: (N,) bool: a region of many objects that nobody told apart.
        areas: (N,) pixels, as the annotations state them, which COCO's size ranges go by; NaN where one states none.
            None where no one does, and once the pixels were moved.
    """

    layers: np.ndarray
    layer_of: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_codes(cls, size: tuple[int, int], codes: Sequence[Mapping], labels: Sequence[int],
                   crowd: Sequence[bool]) -> Segments:
        """Packs masks. The smaller of two that overlap lies above, and a crowd below all others: in one map of them,
        none would be seen of what a larger one covers.

        Args:
            size: (H, W).
            codes: A COCO run-length code of each object.
            labels: Class id of each.
            crowd: Whether each is a crowd.

        Returns:
            The segments, in the same order.

        Example:
            >>> from hfseg.ops import rle
            >>> codes = [rle.encode(np.array([[1, 0, 0]])), rle.encode(np.array([[1, 1, 0]]))]
            >>> Segments.from_codes((1, 3), codes, [0, 0], [False, False]).layers.tolist()
            [[[1, 0, 0]], [[2, 2, 0]]]
        """
        kind = np.uint8 if len(codes) < 256 else np.uint16 if len(codes) < 65536 else np.int32
        layers: list[np.ndarray] = []
        layer_of = np.zeros(len(codes), np.int64)
        for number in np.lexsort((rle.areas(codes), np.asarray(crowd, bool).reshape(-1))):
            mask = coco.decode(codes[number]).view(bool)
            place = max((k + 1 for k, layer in enumerate(layers) if layer[mask].any()), default=0)
            if place == len(layers):
                layers.append(np.zeros(size, kind))
            layers[place][mask] = number + 1
            layer_of[number] = place
        stacked = np.stack(layers) if layers else np.zeros((1, *size), kind)
        return cls(stacked, layer_of, np.asarray(labels, np.int64).reshape(-1), np.asarray(crowd, bool).reshape(-1))

    @classmethod
    def from_map(cls, ids: np.ndarray, known: Sequence[int], labels: Sequence[int], crowd: Sequence[bool]) -> Segments:
        """Numbers the objects of an id map anew.

        Args:
            ids: (H, W) integers.
            known: The id of each object.
            labels: Class id of each.
            crowd: Whether each is a crowd.

        Returns:
            The segments, in the same order.
        """
        kind = np.uint8 if len(known) < 256 else np.uint16 if len(known) < 65536 else np.int32
        order = np.argsort(known, kind="stable")
        keys = np.asarray(known, np.int64)[order]
        layer = np.zeros(ids.shape, kind)
        if len(keys):
            found = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            layer = np.where(keys[found] == ids, order[found] + 1, 0).astype(kind)
        return cls(layer[None], np.zeros(len(known), np.int64), np.asarray(labels, np.int64).reshape(-1),
                   np.asarray(crowd, bool).reshape(-1))

    def masks(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Gives each object its own mask.

        Args:
            chosen: Numbers from 0; all if None.

        Returns:
            (N, H, W) bool.
        """
        chosen = np.arange(len(self)) if chosen is None else np.asarray(chosen, np.int64)
        if not len(chosen):
            return np.zeros((0, *self.layers.shape[1:]), bool)
        return self.layers[self.layer_of[chosen]] == (chosen + 1)[:, None, None]

    def codes(self) -> list[dict[str, Any]]:
        """Gives each object its COCO run-length code, as pycocotools takes it.

        Returns:
            N codes.
        """
        return coco.encode(np.asfortranarray(self.masks().transpose(1, 2, 0).view(np.uint8))) if len(self) else []

    def semantic_map(self, ignore_index: int, dtype) -> np.ndarray:
        """Gives each pixel the class of the object that covers it.

        Args:
            ignore_index: For pixels of no object, or of one of no class.
            dtype: Of the map.

        Returns:
            (H, W) class ids.
        """
        table = np.concatenate([[ignore_index], np.where(self.labels < 0, ignore_index, self.labels)])
        ids = table[self.layers[-1]]
        for layer in self.layers[-2::-1]:
            ids = np.where(layer > 0, table[layer], ids)
        return ids.astype(dtype)

    def flat(self) -> np.ndarray:
        """Lays all layers on top of each other.

        Returns:
            (H, W) numbers from 1 of the objects; 0 where there is none.
        """
        ids = self.layers[-1].astype(np.int64)
        for layer in self.layers[-2::-1]:
            ids = np.where(layer > 0, layer, ids)
        return ids

    def relabelled(self, to_model: np.ndarray | None) -> Segments:
        """Gives the classes other ids.

        Args:
            to_model: The new id of each class id; None leaves them.

        Returns:
            The same objects.
        """
        if to_model is None:
            return self
        return replace(self, labels=np.where(self.labels < 0, IGNORED, np.asarray(to_model)[self.labels]))

    def transformed(self, change: Callable[[np.ndarray], np.ndarray]) -> Segments:
        """Moves the pixels of all layers alike.

        Args:
            change: From a layer (H, W) to another (h, w).

        Returns:
            The same objects, some of which may have lost all their pixels.
        """
        return replace(self, layers=np.stack([change(layer) for layer in self.layers]), areas=None)

    def with_others(self, others: Segments, chosen: np.ndarray, where: np.ndarray) -> Segments:
        """Lays objects of another image on top.

        Args:
            others: Of the same size.
            chosen: Which of them, from 0.
            where: (H, W) bool: the pixels that change hands.

        Returns:
            All objects; those below lose what is covered.
        """
        kind = np.int32 if len(self) + len(chosen) >= 256 else np.uint8
        layers = [np.where(where, 0, layer).astype(kind) for layer in self.layers]
        table = np.zeros(len(others) + 1, np.int64)
        table[np.asarray(chosen, np.int64) + 1] = len(self) + 1 + np.arange(len(chosen))
        layers += [np.where(where, table[layer], 0).astype(kind) for layer in others.layers]
        return Segments(
            np.stack(layers), np.concatenate([self.layer_of, others.layer_of[chosen] + len(self.layers)]),
            np.concatenate([self.labels, others.labels[chosen]]), np.concatenate([self.crowd, others.crowd[chosen]]),
        )  # fmt: skip


def mask_targets(segments: Segments | None, semantic_map: np.ndarray, task: str, is_thing: Sequence[bool],
                 ignore_index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a network that predicts masks is to find in an image. Crowds are nobody's target.

    Args:
        segments: The objects, after augmentation; None for an image with a semantic map alone.
        semantic_map: (H, W) class ids.
        task: `semantic`: a mask per class; `instance`: one per thing; `panoptic`: that, and one per class of stuff.
        is_thing: Of each class id.
        ignore_index: The id of pixels without a class.

    Returns:
        (N, H, W) bool, none of them empty, and (N,) int64 class ids; N may be 0.

    Example:
        >>> masks, classes = mask_targets(None, np.array([[2, 0, 255]]), "semantic", [True] * 3, 255)
        >>> masks.tolist(), classes.tolist()
        ([[[False, True, False]], [[True, False, False]]], [0, 2])
    """
    if task == "semantic" or segments is None:
        classes = np.unique(semantic_map)
        classes = classes[classes != ignore_index].astype(np.int64)
        return semantic_map == classes[:, None, None], classes
    things = np.asarray(is_thing)[segments.labels] if len(segments) else np.zeros(0, bool)
    known = (segments.labels >= 0) & ~segments.crowd
    chosen = np.flatnonzero(known & things)
    masks, classes = segments.masks(chosen), segments.labels[chosen]
    if task == "panoptic":
        stuff = np.unique(segments.labels[known & ~things])
        joined = [segments.masks(np.flatnonzero(known & (segments.labels == c))).any(0) for c in stuff]
        if joined:
            masks, classes = np.concatenate([masks, np.stack(joined)]), np.concatenate([classes, stuff])
    seen = masks.any((1, 2))
    return masks[seen], classes[seen]


# -- reading rows -------------------------------------------------------------------------------------------------


def read_segments(row: Mapping[str, Any], schema: LabelSchema, size: tuple[int, int], name: str) -> Segments:
    """Decodes the objects of a row.

    Args:
        row: With `instances` (a list of `category_id`, `iscrowd`, and `segmentation`: COCO's, as JSON), or with
            `segment_map` and perhaps `instances` (of `category_id`, `iscrowd`, `id`) or `semantic_map`, as stored.
        schema: Classes by `category_id`, or by the values of the semantic map.
        size: (H, W) of the image.
        name: Of the sample, for messages.

    Returns:
        The segments.

    Raises:
        BadSample: When something cannot be read, or does not fit the image.
    """
    _refuse_other_size(row.get("drawn_on"), size, name)
    if row.get("class_object_map") is not None:
        return _from_class_object_map(row["class_object_map"], schema, size, name)
    if row.get("segment_map") is not None:
        return _from_maps(row, schema, size, name)
    entries = row.get("instances") or []
    try:
        codes = [to_code(json.loads(entry["segmentation"]), size) for entry in entries]
    except (UserError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        reason = error.found if isinstance(error, UserError) else str(error)
        raise BadSample(name, f"a mask that cannot be read: {' '.join(reason.split())[:120]}",
                        "COCO polygons or run-length codes of the image's size",
                        "mend it, or remove the row") from error
    for code in codes:
        if tuple(code["size"]) != tuple(size):
            (height, width), (mask_height, mask_width) = size, code["size"]
            raise BadSample(name, f"the image is {width} x {height} pixels and a mask {mask_width} x {mask_height}",
                            "the same width and height", "resize the masks, or remove the row")
    labels = _class_ids([entry["category_id"] for entry in entries], schema, name)
    found = Segments.from_codes(size, codes, labels, [bool(entry.get("iscrowd")) for entry in entries])
    stated = [entry.get("area") for entry in entries]
    if any(area is not None for area in stated):
        found.areas = np.array(stated, np.float64)  # None becomes NaN
    return found


def _refuse_other_size(drawn_on: Sequence[int] | None, size: tuple[int, int], name: str) -> None:
    """Outlines of another size would lie elsewhere, and nothing would tell."""
    if not drawn_on or tuple(drawn_on) == tuple(size):
        return
    turned = tuple(drawn_on)[::-1] == tuple(size)
    raise BadSample(name, f"the image is {size[1]} x {size[0]} pixels, and its annotations are for {drawn_on[1]} x "
                    f"{drawn_on[0]}", "the same width and height",
                    "the image may carry a rotation (EXIF) that was passed over: save it upright, and state its size"
                    if turned else "annotate the image as it is, or state its size rightly")


def to_code(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Turns what COCO calls a segmentation into a run-length code.

    Args:
        segmentation: Polygons `[[x, y, x, y...]...]`, of which those of less than three points are passed over, or a
            code: `counts` as text or as a list of numbers.
        size: (H, W) of the image, for polygons.

    Returns:
        A code that pycocotools takes.

    Raises:
        ValueError: For anything else.

    Example:
        >>> coco.decode(to_code([[0, 0, 2, 0, 2, 1, 0, 1]], (1, 3))).tolist()
        [[1, 1, 0]]
    """
    if isinstance(segmentation, list):
        rings = [np.asarray(ring, np.float64) for ring in segmentation]
        rings = [ring for ring in rings if len(ring) >= 6]
        if any(not np.isfinite(ring).all() or len(ring) % 2 for ring in rings):
            raise ValueError("a polygon of odd length, or of numbers that are none")
        if any(np.abs(ring).max() > _FAR for ring in rings):  # pycocotools walks along all of it
            raise ValueError(f"a polygon that reaches more than {_FAR} pixels beyond the image")
        if not rings:
            return coco.encode(np.zeros(size, np.uint8, order="F"))
        return coco.merge(coco.frPyObjects([ring.tolist() for ring in rings], *size))
    counts = segmentation["counts"]
    code = {"size": [int(side) for side in segmentation["size"]], "counts": counts}
    if isinstance(counts, list):
        if sum(counts) != code["size"][0] * code["size"][1] or min(counts, default=0) < 0:
            raise ValueError(f"run lengths of {sum(counts)} pixels for {code['size']}")
        return coco.frPyObjects(code, *code["size"])
    rle.area(code)  # which checks what pycocotools would follow blindly
    return {**code, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _class_ids(stored: Sequence[int], schema: LabelSchema, name: str) -> np.ndarray:
    ids = schema.apply(np.asarray(stored, np.int64).reshape(1, -1), name)[0].astype(np.int64)
    return np.where(ids == schema.ignore_index, IGNORED, ids)


def _from_class_object_map(value: Any, schema: LabelSchema, size: tuple[int, int], name: str) -> Segments:
    """Objects of a picture whose red is the class and whose green is the object's number, 0 for none."""
    from hfseg.data.images import decode_ids

    ids = decode_ids(value, name)
    _refuse_other_map(ids, "map of objects", size, name)
    known = np.unique(ids) + 1  # so that class 0 without an object is a region, too
    labels = _class_ids((known - 1) % 256, schema, name)
    things = np.asarray(schema.is_thing)[labels] & (labels >= 0)
    alone = (known - 1) // 256 > 0
    return Segments.from_map(ids + 1, known, np.where(things & ~alone, IGNORED, labels), np.zeros(len(known), bool))


def _refuse_other_map(found: np.ndarray, what: str, size: tuple[int, int], name: str) -> None:
    if found.shape != tuple(size):
        raise BadSample(name, f"the image is {size[1]} x {size[0]} pixels and its {what} {found.shape[1]} x "
                        f"{found.shape[0]}", "the same width and height", "resize the map by nearest neighbour")


def _from_maps(row: Mapping[str, Any], schema: LabelSchema, size: tuple[int, int], name: str) -> Segments:
    from hfseg.data.images import decode_ids, decode_map

    ids = decode_ids(row["segment_map"], name)
    semantic = None
    if row.get("semantic_map") is not None:
        semantic = schema.apply(decode_map(row["semantic_map"], name, schema.rgb), name).astype(np.int64)
    for found, what in ((ids, "map of objects"), (semantic, "label map")):
        if found is not None:
            _refuse_other_map(found, what, size, name)
    if row.get("instances") is not None:
        entries = row["instances"]
        labels = _class_ids([entry["category_id"] for entry in entries], schema, name)
        return Segments.from_map(ids, [entry["id"] for entry in entries], labels,
                                 [bool(entry.get("iscrowd")) for entry in entries])
    known = np.unique(ids)
    known = known[known > 0]
    if semantic is None:
        labels = _class_ids([1] * len(known), schema, name)
        return Segments.from_map(ids, known, labels, np.zeros(len(known), bool))
    # The class of an object is the one that most of its pixels have; what is no object is stuff.
    classes = semantic.copy()
    classes[classes == schema.ignore_index] = schema.num_labels
    numbers = np.searchsorted(known, ids[ids > 0])
    votes = np.zeros((len(known), schema.num_labels + 1), np.int64)
    np.add.at(votes, (numbers, classes[ids > 0]), 1)
    labels = np.where(votes[:, :-1].any(1), votes[:, :-1].argmax(1), IGNORED) if len(known) else np.zeros(0, np.int64)
    rest = np.where((ids == 0) & (classes < schema.num_labels), classes, -1)
    stuff = [c for c in np.unique(rest) if c >= 0 and not schema.is_thing[c]]
    top = int(ids.max()) + 1
    whole = np.where(np.isin(rest, stuff), rest + top, ids)
    return Segments.from_map(whole, [*known, *(c + top for c in stuff)], [*labels, *stuff],
                             np.zeros(len(known) + len(stuff), bool))

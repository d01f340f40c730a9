"""The result of one image: what it measures, and that every export holds exactly the same pixels."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from hfseg.drawing import draw_panels
from hfseg.errors import UserError
from hfseg.result import Segmentation

NAMES = {0: "sky", 1: "cat", 2: "rug"}
PALETTE = [(70, 130, 180), (220, 120, 20), (120, 30, 90)]
maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, 255])
)


@pytest.fixture
def result():
    semantic_map = np.zeros((6, 8), np.uint8)
    semantic_map[2:5, 1:4] = 1
    semantic_map[5] = 255
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    confidence = np.where(semantic_map == 1, 0.9, 0.6).astype(np.float32)
    return Segmentation(semantic_map, NAMES, PALETTE, image=image, confidence=confidence)


def test_segments_areas_and_points(result):
    sky, cat = result.segments_info
    assert (sky["id"], sky["label_id"], sky["label"], sky["area"]) == (0, 0, "sky", 31)
    assert cat["label"] == "cat"
    assert cat["area"] == 9
    assert cat["bbox"] == [1, 2, 3, 3]
    assert cat["score"] == pytest.approx(0.9)
    assert result.areas() == {"sky": {"pixels": 31, "share": 31 / 48}, "cat": {"pixels": 9, "share": 9 / 48}}
    assert result.segment_at(1, 2) == cat
    assert result.segment_at(0, 0) == sky
    assert result.segment_at(0, 5) is None  # unlabelled
    assert repr(result) == "Segmentation(8 x 6: sky 65%, cat 19%)"
    for x, y in ((8, 0), (0, 6), (-1, 0)):
        with pytest.raises(UserError, match="outside the image"):
            result.segment_at(x, y)


def test_objects_of_one_class_stay_apart():
    segment_map = np.array([[1, 1, 2, 0]])
    segments = [{"id": 1, "label_id": 1, "score": 0.75}, {"id": 2, "label_id": 1}]
    result = Segmentation(np.array([[1, 1, 1, 0]]), NAMES, PALETTE, segment_map=segment_map, segments=segments)
    assert [entry["area"] for entry in result.segments_info] == [2, 1]
    assert [entry["score"] for entry in result.segments_info] == [0.75, None]
    assert result.mask("cat").tolist() == [[True, True, True, False]]
    assert result.mask(2).tolist() == [[False, False, True, False]]
    assert len(result.to_geojson()["features"]) == 2


def test_confidence_may_be_a_function_that_is_called_when_it_is_needed(result):
    calls = []

    def compute():
        calls.append(1)
        return confidence

    confidence = result.confidence
    later = Segmentation(result.semantic_map, NAMES, PALETTE, image=result.image, confidence=compute)
    for look in (repr, Segmentation.areas, Segmentation.overlay):
        look(later)
    later.mask("cat"), later.cutout(0)
    assert not calls
    assert later.segments_info == result.segments_info and later.confidence is confidence
    assert len(calls) == 1
    again = Segmentation(result.semantic_map, NAMES, PALETTE, confidence=compute)
    other = pickle.loads(pickle.dumps(again))  # a local function cannot be pickled: its result can
    assert np.array_equal(other.confidence, confidence) and other.segment_at(1, 2)["score"] == pytest.approx(0.9)
    bare = Segmentation(result.semantic_map, NAMES, PALETTE)
    assert bare.confidence is None and bare.segments_info[0]["score"] is None
    bare.confidence = confidence
    assert bare.confidence is confidence
    with pytest.raises(ValueError, match="confidence"):
        Segmentation(result.semantic_map, NAMES, PALETTE, confidence=confidence[:2])


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image"):
        Segmentation(np.zeros((2, 3), int), NAMES, PALETTE, image=np.zeros((3, 2, 3)))
    with pytest.raises(ValueError, match="together"):
        Segmentation(np.zeros((2, 3), int), NAMES, PALETTE, segment_map=np.zeros((2, 3), int))


def test_overlay_blends_and_leaves_unlabelled_pixels_alone(result):
    picture = np.asarray(result.overlay(alpha=0.5))
    assert picture.shape == (6, 8, 3)
    assert np.array_equal(picture[5], result.image[5])
    expected = (result.image[0, 0].astype(float) + PALETTE[0]) / 2
    assert np.abs(picture[0, 0] - expected).max() <= 0.5
    assert np.array_equal(np.asarray(result.overlay(alpha=0))[0, 0], result.image[0, 0])
    bare = Segmentation(result.semantic_map, NAMES, PALETTE).overlay()
    assert np.asarray(bare)[3, 2].tolist() == list(PALETTE[1])


def test_cutout(result):
    picture = np.asarray(result.cutout("cat"))
    assert picture.shape == (6, 8, 4)
    assert np.array_equal(picture[..., 3] == 255, result.semantic_map == 1)
    assert np.array_equal(picture[..., :3], result.image)
    with pytest.raises(UserError, match=r"unknown class in this image 'rug'(.|\n)*sky, cat"):
        result.cutout("rug")
    with pytest.raises(UserError, match="did you mean 'cat'"):
        result.cutout("cta")
    with pytest.raises(UserError, match="no segment 7"):
        result.mask(7)
    with pytest.raises(UserError, match="no image"):
        Segmentation(result.semantic_map, NAMES, PALETTE).cutout("cat")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((6, 8), np.uint8),
        np.full((6, 8, 1), 3, np.uint16),
        np.random.default_rng(0).normal(size=(6, 8, 7)).astype(np.float32),
        np.full((6, 8, 4), np.nan, np.float32),
    ],
)
def test_every_kind_of_image_can_be_shown(result, image):
    shown = Segmentation(result.semantic_map, NAMES, PALETTE, image=image)
    assert shown.overlay().mode == "RGB"
    assert shown.cutout("sky").size == (8, 6)


def fill(feature, size):
    """Rasterise a GeoJSON feature by PIL on a grid of 4 x 4 per pixel, read at pixel centres."""
    geometry = feature["geometry"]
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    filled = np.zeros((size[1], size[0]), bool)
    for polygon in polygons:
        canvas = Image.new("1", (size[0] * 4, size[1] * 4))
        for k, ring in enumerate(polygon):
            assert ring[0] == ring[-1]
            ImageDraw.Draw(canvas).polygon([(4 * x - 0.5, 4 * y - 0.5) for x, y in ring], fill=not k)
        filled |= np.asarray(canvas)[2::4, 2::4]
    return filled


@settings(max_examples=80, deadline=None)
@given(maps)
def test_every_export_holds_the_same_pixels(semantic_map):
    result = Segmentation(semantic_map, NAMES, PALETTE)
    coco_entries, features = result.to_coco(image_id=3), result.to_geojson()["features"]
    assert len(coco_entries) == len(features) == len(set(semantic_map.ravel()) - {255})
    json.dumps([coco_entries, features], allow_nan=False)
    for entry, feature in zip(coco_entries, features, strict=True):
        expected = semantic_map == entry["category_id"]
        assert np.array_equal(coco.decode(entry["segmentation"]).astype(bool), expected)
        assert entry["area"] == expected.sum()
        assert entry["bbox"] == coco.toBbox(entry["segmentation"]).tolist()
        assert entry["image_id"] == 3
        assert feature["properties"]["label"] == NAMES[entry["category_id"]]
        assert np.array_equal(fill(feature, semantic_map.shape[::-1]), expected)


def test_save(result, tmp_path):
    files = result.save(tmp_path / "new" / "out", stem="photo")
    assert sorted(file.name for file in files.values()) == [
        "photo_overlay.png",
        "photo_segments.json",
        "photo_semantic_map.png",
    ]
    saved = Image.open(files["semantic_map"])
    assert saved.mode == "P"
    assert np.array_equal(np.asarray(saved), result.semantic_map)
    assert tuple(saved.getpalette()[3:6]) == PALETTE[1]
    content = json.loads(files["segments"].read_text(encoding="utf-8"))
    assert content["segments_info"] == result.segments_info
    assert (content["width"], content["height"]) == (8, 6)
    assert content["areas"]["cat"]["pixels"] == 9


def test_save_of_many_classes_and_of_objects(tmp_path):
    semantic_map = np.array([[0, 299, 65535]], dtype=np.uint16)
    names = {i: f"class {i}" for i in range(300)}
    palette = [(i % 256, 0, 0) for i in range(300)]
    segment_map = np.array([[70, 300, 0]])
    segments = [{"id": 70, "label_id": 0}, {"id": 300, "label_id": 299}]
    result = Segmentation(semantic_map, names, palette, segment_map=segment_map, segments=segments)
    files = result.save(tmp_path)
    assert np.array_equal(np.asarray(Image.open(files["semantic_map"])), semantic_map)
    assert np.array_equal(np.asarray(Image.open(files["segment_map"])), segment_map)


def test_an_image_without_any_label():
    result = Segmentation(np.full((3, 4), 255, np.uint8), NAMES, PALETTE, image=np.zeros((3, 4, 3), np.uint8))
    assert result.segments_info == result.to_coco() == result.to_geojson()["features"] == []
    assert result.areas() == {}
    assert repr(result) == "Segmentation(4 x 3: nothing)"
    assert not np.asarray(result.overlay()).any()


def test_panels_show_errors_and_unlabelled_pixels(tmp_path):
    truth = np.zeros((90, 120), np.int64)
    truth[30:60, 40:80] = 1
    truth[80:] = 255
    prediction = truth.copy()
    prediction[truth == 255] = 2
    prediction[:10] = 2
    image = np.full((90, 120, 3), 128, np.uint8)
    path = tmp_path / "panel.png"
    picture = draw_panels(image, truth, prediction, list(NAMES.values()), PALETTE, path)
    assert Image.open(path).size == picture.size
    red = (np.asarray(picture) == (220, 38, 38)).all(axis=2)
    assert red.sum() == (10 * 120) * 9  # each pixel is shown as 3 x 3
    perfect = draw_panels(image, truth, truth % 255, list(NAMES.values()), PALETTE)
    assert not (np.asarray(perfect) == (220, 38, 38)).all(axis=2).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (700, 3), (1000, 1400)])
def test_panels_of_any_size(shape):
    ids = np.zeros(shape, np.uint8)
    picture = draw_panels(np.zeros(shape, np.uint16), ids, ids, ["only"], [(1, 2, 3)])
    assert picture.mode == "RGB"
    all_unlabelled = draw_panels(np.zeros(shape, np.uint8), ids + 255, ids, ["only"], [(1, 2, 3)])
    assert all_unlabelled.size[1] >= picture.size[1]

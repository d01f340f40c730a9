"""Label schemas: every remap against a plain loop, and what people are told."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.remap import make_palette

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def one_by_one(schema: LabelSchema, stored: np.ndarray) -> np.ndarray:
    """The remap as a loop over pixels: the oracle of `apply`."""
    ids = dict(schema.stored)
    out = np.zeros(stored.shape[:2], int)
    for place in np.ndindex(*stored.shape[:2]):
        value = stored[place]
        if schema.rgb and np.ndim(value):
            value = int(value[0]) * 65536 + int(value[1]) * 256 + int(value[2])
        value = int(value)
        if value not in ids and schema.threshold is not None:
            value = schema.threshold if value >= schema.threshold else 0
        out[place] = schema.ignore_index if ids[value] is None else ids[value]
    return out


@st.composite
def schemas(draw):
    names = [f"c{i}" for i in range(draw(st.integers(2, 12)))]
    ignore = draw(st.none() | st.integers(0, 20))
    schema = LabelSchema.from_names(names, ignore_index=ignore, reduce_labels=draw(st.booleans()))
    if schema.num_labels > 2 and draw(st.booleans()):
        schema = schema.merge({"joined": draw(st.sets(st.sampled_from(schema.names), min_size=1))})
    if schema.num_labels > 2 and draw(st.booleans()):
        schema = schema.drop(draw(st.sets(st.sampled_from(schema.names), max_size=schema.num_labels - 1)))
    return schema


@settings(max_examples=150, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 1000), kind=st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]))
def test_apply_is_the_loop_over_pixels(schema, seed, kind):
    rng = np.random.default_rng(seed)
    stored = rng.choice([value for value, _ in schema.stored], size=(5, 7)).astype(kind)
    ids = schema.apply(stored)
    assert ids.dtype == schema.dtype and ids.shape == (5, 7)
    np.testing.assert_array_equal(ids, one_by_one(schema, stored))
    assert set(np.unique(ids)) <= {*range(schema.num_labels), schema.ignore_index}


@settings(max_examples=60, deadline=None)
@given(schema=schemas())
def test_labels_json_gives_the_same_schema(schema, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.json"
    schema.save(path)
    assert LabelSchema.load(path) == schema == pickle.loads(pickle.dumps(schema))
    assert json.loads(path.read_text())["names"] == list(schema.names)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), spare=st.integers(0, 3))
def test_colours_decode_to_their_class(seed, count, spare):
    rng = np.random.default_rng(seed)
    palette = list({tuple(int(c) for c in colour) for colour in rng.integers(0, 256, (count + spare, 3))})
    names = [f"c{i}" for i in range(max(1, len(palette) - spare))]
    schema = LabelSchema.from_names(names, palette, rgb=True)
    index = rng.integers(0, len(palette), (6, 5))
    stored = np.array(palette, np.uint8)[index]
    want = np.where(index < len(names), index, 255)
    np.testing.assert_array_equal(schema.apply(stored), want)
    np.testing.assert_array_equal(schema.apply(stored), one_by_one(schema, stored))


def test_a_grey_map_of_a_colour_set_is_a_colour_map():
    schema = LabelSchema.from_names(["black", "red"], [(0, 0, 0), (255, 0, 0)], rgb=True)
    assert schema.apply(np.zeros((2, 2), np.uint8)).tolist() == [[0, 0], [0, 0]]


def test_camvid_void_is_eleven():
    schema = LabelSchema.from_names(CAMVID, make_palette(12), ignore_index=11, ignore_name="void")
    assert schema.num_labels == 11 and schema.ignore_index == 255
    assert schema.apply(np.array([[0, 10, 11, 255]], np.uint8)).tolist() == [[0, 10, 255, 255]]
    assert "11      void" in schema.table() and schema.palette == tuple(make_palette(12)[:11])


def test_the_ignored_name_may_be_among_the_names():
    schema = LabelSchema.from_names(["void", "road", "car"], [(1, 1, 1), (2, 2, 2), (3, 3, 3)], ignore_index=0)
    assert schema.names == ("road", "car") and schema.palette == ((2, 2, 2), (3, 3, 3))
    assert schema.apply(np.array([[0, 1, 2]])).tolist() == [[255, 0, 1]]


@pytest.mark.parametrize("names", [["wall", "floor"], ["background", "wall", "floor"], ["Unlabeled", "wall", "floor"]])
def test_reduce_labels_with_and_without_a_name_for_zero(names):
    schema = LabelSchema.from_names(names, reduce_labels=True)
    assert schema.names == ("wall", "floor")
    assert schema.apply(np.array([[0, 1, 2, 255]], np.uint8)).tolist() == [[255, 0, 1, 255]]


def test_reduce_labels_is_what_transformers_does():
    # BeitImageProcessor's reduce_label: 0 -> 255, then minus one, and 254 (the old 255) -> 255.
    stored = np.array([[0, 1, 5, 150, 255]], np.uint8)
    label = stored.copy()
    label[label == 0] = 255
    label = label - 1
    label[label == 254] = 255
    schema = LabelSchema.from_names([f"c{i}" for i in range(150)], reduce_labels=True)
    np.testing.assert_array_equal(schema.apply(stored), label)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_binary_takes_every_value_above_zero(kind):
    schema = LabelSchema.from_names(["crack"], [(255, 0, 0)], binary=True)
    assert schema.names == ("background", "crack") and schema.palette[1] == (255, 0, 0)
    assert schema.apply(np.array([[0, 1, 7, 255]], kind)).tolist() == [[0, 1, 1, 1]]
    assert schema.apply(np.array([[0, 40000]], np.uint16)).tolist() == [[0, 1]]  # instance ids


def test_binary_with_an_ignored_value_and_a_threshold():
    schema = LabelSchema.from_names([], binary=True, ignore_index=1)
    assert schema.apply(np.array([[0, 1, 2, 255]])).tolist() == [[0, 255, 1, 1]]
    schema = LabelSchema.from_names([], binary=True, threshold=128)
    assert schema.apply(np.array([[0, 3, 127, 128, 250]], np.uint8)).tolist() == [[0, 0, 0, 1, 1]]
    assert schema.drop(["foreground"]).apply(np.array([[0, 3, 127, 128, 250]])).tolist() == [[0, 0, 0, 255, 255]]
    assert "128 and above" in schema.table()


def test_more_than_255_classes():
    schema = LabelSchema.from_names([f"c{i}" for i in range(1000)])
    assert schema.ignore_index == 65535 and schema.dtype == np.uint16
    assert schema.apply(np.array([[0, 255, 256, 999, 65535]], np.uint16)).tolist() == [[0, 255, 256, 999, 65535]]
    assert schema.table().endswith("more") and len(schema.table().splitlines()) == 67
    assert len(set(schema.palette)) == 1000
    exact = LabelSchema.from_names([f"c{i}" for i in range(255)])
    assert exact.ignore_index == 255 and exact.apply(np.array([[254, 255]], np.uint8)).tolist() == [[254, 255]]


def test_a_negative_ignore_index():
    schema = LabelSchema.from_names(["a", "b"], ignore_index=-1)
    assert schema.apply(np.array([[-1, 0, 1]], np.int16)).tolist() == [[255, 0, 1]]


def test_merge_and_drop():
    schema = LabelSchema.from_names(CAMVID, ignore_index=11)
    merged = schema.merge({"vehicle": ["car", "bicyclist"], "road": ["pavement"]}).drop(["sky"])
    assert merged.names == ("building", "pole", "road", "tree", "sign", "fence", "vehicle", "pedestrian")
    ids = merged.apply(np.arange(12, dtype=np.uint8)[None])[0].tolist()
    assert ids == [255, 0, 1, 2, 2, 3, 4, 5, 6, 7, 6, 255]
    assert "car" in merged.table() and merged.stored_names[8] == "car"  # the table says where it went
    with pytest.raises(UserError, match="did you mean 'car'"):
        schema.drop(["cart"])
    with pytest.raises(UserError, match="merged twice"):
        schema.merge({"a": ["car"], "b": ["car"]})
    with pytest.raises(UserError, match="every class"):
        schema.drop(CAMVID)


@pytest.mark.parametrize(
    ("names", "value", "fix"),
    [
        (["background", "crack"], 254, "labels.binary true"),
        (CAMVID, 11, "labels.ignore_index 11"),
        (CAMVID, 11, "reduce_labels true"),
        (CAMVID, 11, "add its name to data.labels.names"),
        (CAMVID, 200, "labels.ignore_index 200"),
    ],
)
def test_unknown_values_are_listed_and_mended(names, value, fix):
    schema = LabelSchema.from_names(names, ignore_index=99)
    stored = np.zeros((10, 10), np.uint8)
    stored[0, :3] = value
    with pytest.raises(BadSample, match=rf"street_7\.png.*{value} \(3 % of it\)") as caught:
        schema.apply(stored, "street_7.png")
    assert fix in str(caught.value)
    # What is proposed is right.
    if "binary" in fix:
        assert LabelSchema.from_names(names, binary=True).apply(stored)[0, 0] == 1
    elif "ignore" in fix:
        assert LabelSchema.from_names(names, ignore_index=value).apply(stored)[0, 0] == 255


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_unknown_values_are_found_in_every_type(kind):
    schema = LabelSchema.from_names(["a", "b", "c"])
    for bad in (
        [3, 77] + ([-5] if np.dtype(kind).kind == "i" else []) + ([70000] if kind in (np.int32, np.int64) else [])
    ):
        with pytest.raises(BadSample, match=str(bad)):
            schema.apply(np.array([[0, bad]], kind))


def test_unknown_colours_are_listed_as_colours():
    schema = LabelSchema.from_names(["a"], [(1, 2, 3)], rgb=True)
    with pytest.raises(BadSample, match="#ff8000"):
        schema.apply(np.array([[[1, 2, 3], [255, 128, 0]]], np.uint8))


def test_a_colour_map_without_palette():
    with pytest.raises(BadSample, match="no palette"):
        LabelSchema.from_names(["a", "b"]).apply(np.zeros((2, 2, 3), np.uint8), "x.png")


def test_contradictions_are_refused():
    for wrong in (
        {"names": []},
        {"names": ["a", "b", "c"], "binary": True},
        {"names": ["a", "b"], "palette": [(0, 0, 0)]},
        {"names": ["a", "b"], "palette": [(0, 0, 0)], "rgb": True},
        {"names": ["a", "b"], "palette": [(0, 0, 0), (0, 0, 0)], "rgb": True},
        {"names": ["a"], "palette": [(0, 0, 300)]},
        {"names": ["a"], "palette": ["red"]},
        {"names": ["a", "b"], "values": [1]},
        {"names": ["a"], "ignore_index": 0},
    ):
        with pytest.raises(UserError):
            LabelSchema.from_names(**wrong)


def test_equal_names_stay_apart():
    schema = LabelSchema.from_names(["door", "wall", "door"])
    assert schema.label2id == {"door": 0, "wall": 1, "door (2)": 2}


def test_align_by_name():
    schema = LabelSchema.from_names(["Traffic light", "car", "Sky-line", "moon"])
    assert schema.align(["sky_line", "CAR", "traffic_light"]).tolist() == [2, 1, 0, -1]


def test_a_broken_labels_json_is_named(tmp_path):
    path = tmp_path / "labels.json"
    for text in ("", "{}", '{"names": ["a"], "palette": [], "remap": []}', "[1]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"labels\.json"):
            LabelSchema.load(path)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 3000))
def test_palettes_are_distinct_and_stable(count):
    palette = make_palette(count)
    assert len(set(palette)) == count and palette == make_palette(count + 5)[:count]


def test_labels_need_no_torch():
    code = "import sys, hfseg.labels; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

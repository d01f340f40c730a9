"""Sampling under an affine map is its definition, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfseg.ops.affine import affine_bilinear, affine_nearest

PLACES = st.builds(
    lambda angle, row_step, column_step, flip, row, column: np.array([
        [row_step * math.cos(angle), row_step * math.sin(angle), row],
        [-column_step * math.sin(angle) * flip, column_step * math.cos(angle) * flip, column],
    ]),
    st.sampled_from([0.0, math.pi / 2]) | st.floats(-math.pi, math.pi),
    st.sampled_from([1.0, 0.5]) | st.floats(0.3, 3),
    st.floats(0.3, 3),
    st.sampled_from([-1, 1]),
    st.integers(-5, 20) | st.floats(-5, 20),
    st.floats(-5, 20),
)  # fmt: skip
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def wanted(places: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: size[0], : size[1]]
    return tuple(a * y + b * x + c for a, b, c in places)


def bilinear(image: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    result = 0
    rows, columns = (at.clip(0, side - 1) for at, side in zip(wanted(places, size), image.shape))
    for row_offset in range(2):
        for column_offset in range(2):
            row, column = np.floor(rows) + row_offset, np.floor(columns) + column_offset
            weight = (1 - np.abs(rows - row)) * (1 - np.abs(columns - column))
            row, column = (at.astype(int).clip(0, side - 1) for at, side in zip((row, column), image.shape))
            result = result + weight * image.astype(np.float64)[row, column].transpose(2, 0, 1)
    return result


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6), sides=SIZES, size=SIZES, places=PLACES, channels=st.sampled_from([1, 2, 3, 4, 5, 9]),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64]), layout=st.sampled_from(["inner", "outer", "window"]),
)  # fmt: skip
def test_bilinear_is_its_definition(seed, sides, size, places, channels, dtype, layout):
    random = np.random.default_rng(seed)
    whole = random.integers(0, 256, (sides[0] + 2, sides[1] + 3, channels)).astype(dtype)
    image = whole[1:-1, 2:-1]
    given_image = {"inner": image.copy(), "window": image,
                   "outer": np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)}[layout]  # fmt: skip
    where, before = random.random(size) < random.random(), random.integers(0, 256, (channels, *size)).astype(dtype)
    out = affine_bilinear(given_image, places, where, before.copy())
    assert (out == before)[:, ~where].all()
    off = np.abs(out - bilinear(image, places, size))[:, where]
    # A place is exact to 10^-5 pixels in float32, and neighbours differ by up to 255.
    assert off.max(initial=0) <= {np.uint8: 0.52, np.float32: 2e-2, np.float64: 1e-9}[dtype]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6), sides=SIZES, size=SIZES, places=PLACES,
    dtypes=st.sampled_from([(np.uint8, np.int16), (np.uint16, np.int32), (np.int64, np.int64)]),
)  # fmt: skip
def test_nearest_is_its_definition(seed, sides, size, places, dtypes):
    stored, result = dtypes
    high = min(2**40, np.iinfo(stored).max)
    ids = np.random.default_rng(seed).integers(0, high, sides, stored, endpoint=True)
    out = affine_nearest(ids, places, -1, np.empty(size, result))
    rows, columns = wanted(places, size)
    clear = (np.abs(rows % 1 - 0.5) > 1e-6) & (np.abs(columns % 1 - 0.5) > 1e-6)  # not half-way between two
    row, column = np.rint(rows).astype(int), np.rint(columns).astype(int)
    inside = (row >= 0) & (row < sides[0]) & (column >= 0) & (column < sides[1])
    expected = np.where(inside, ids[row.clip(0, sides[0] - 1), column.clip(0, sides[1] - 1)].astype(result), -1)
    assert (out == expected)[clear].all()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_crops_and_quarter_turns_are_exact(turns, channels):
    image = np.random.default_rng(0).integers(0, 256, (31, 31, channels), np.uint8)
    angle, middle = turns * math.pi / 2, np.array([15, 15])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    places = np.column_stack([turn, middle - turn @ middle])
    out = affine_bilinear(image, places, np.ones((31, 31), bool), np.empty((channels, 31, 31), np.uint8))
    ids = affine_nearest(image[..., 0], places, -1, np.empty((31, 31), np.int16))
    expected = np.rot90(image, turns).transpose(2, 0, 1)
    assert (out == expected).all() and (ids == expected[0]).all()

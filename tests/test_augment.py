"""Augmentation: image and map stay together, ids stay exact, draws come from the seed alone."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as v2

from hfseg.data.augment import (
    MAX_DRAWS,
    PRESETS,
    Augmentation,
    rare_classes,
    resize,
    resolve,
)
from hfseg.data.contact_sheet import contact_sheet
from hfseg.data.pixels import autocontrast, blur, equalize, recolour, sample
from hfseg.errors import UserError
from hfseg.ops.affine import affine_bilinear
from hfseg.ops.colour import sharpen
from hfseg.recipe import AugmentConfig

IGNORE = 255
MEAN = (10.0, 120.0, 240.0)
EVERYTHING = {
    "preset": "strong", "rare_class_crop": 0.5, "vertical_flip": 0.5, "rotation": 30.0, "photometric": 1.0,
    "blur": 0.5, "sharpen": 0.5, "autocontrast": 0.5, "equalize": 0.5, "cutout": 0.5, "copy_paste": 0.5,
}  # fmt: skip
PHOTOMETRIC = ["photometric", "blur", "sharpen", "autocontrast", "equalize"]


def augmentation(
    size=(48, 40), ignore_index=IGNORE, mean=MEAN, rare=(), preset="none", **fields
) -> Augmentation:
    config = AugmentConfig(preset=preset, **fields)
    return Augmentation(config, size=size, ignore_index=ignore_index, mean=mean, rare_classes=rare)


def blobs(height=60, width=80, classes=5, seed=0) -> torch.Tensor:
    """A map of a few large regions."""
    coarse = torch.randint(0, classes, (4, 5), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse[None, None].double(), size=(height, width))[0, 0].to(torch.uint8)


def photo(channels=3, height=60, width=80, seed=0) -> torch.Tensor:
    return torch.randint(
        0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed)
    ).byte()


def even_around(semantic_map: torch.Tensor) -> torch.Tensor:
    """Where the 5 x 5 pixels around are of one id; not at the border, where rotation blends with the mean."""
    padded = F.pad(semantic_map[None, None].double(), (2, 2, 2, 2), value=-1)
    return (F.max_pool2d(padded, 5, 1) == -F.max_pool2d(-padded, 5, 1))[0, 0]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)) | st.none(),
    scale=st.tuples(st.floats(0.4, 1), st.floats(1, 2.5)),
    rotation=st.sampled_from([0.0, 0.5, 20.0, 180.0]),
    cutout=st.sampled_from([0.0, 1.0]),
    copy_paste=st.sampled_from([0.0, 1.0]),
)
def test_image_and_map_stay_together(seed, size, scale, rotation, cutout, copy_paste):
    """The image is painted from the map, so wherever the map is even, the image must still be that paint."""
    paint = torch.tensor([[0, 0, 0], [60, 0, 200], [120, 70, 3], [180, 255, 90], [250, 140, 33]])
    paint = torch.cat([paint, 255 - paint]).byte()
    augment = augmentation(
        size, rare=(2, 4, 6, 8), scale=scale, rotation=rotation, horizontal_flip=0.5, vertical_flip=0.5,
        cutout=cutout, copy_paste=copy_paste, rare_class_crop=0.5, max_class_share=0.6,
    )  # fmt: skip
    semantic_map, other = blobs(seed=seed), blobs(50, 64, seed=seed + 1) + 5
    torch.manual_seed(seed)
    image, semantic_map = augment(
        paint[semantic_map.long()].permute(2, 0, 1),
        semantic_map,
        (paint[other.long()].permute(2, 0, 1), other),
    )
    assert semantic_map.shape == image.shape[1:] == (size or (60, 80)) and semantic_map.dtype == torch.uint8
    ignored = semantic_map == IGNORE
    assert (image.movedim(0, -1)[ignored] == torch.tensor(MEAN)).all()
    even = even_around(semantic_map) & ~ignored
    expected = paint[semantic_map[even].long()].int()
    assert (image.movedim(0, -1)[even].int() - expected).abs().max() <= 1 if even.any() else True


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dtype_and_top=st.sampled_from(
        [(torch.uint8, 254), (torch.int32, 65534), (torch.int32, 2**24 + 9), (torch.int64, 2**40 + 9)]
    ),
)
def test_ids_stay_exact_and_none_is_invented(seed, dtype_and_top):
    dtype, top = dtype_and_top
    ids = torch.tensor([0, 1, top - 4, top - 2, top])  # the odd ones above 2^24 are not float32 numbers
    stored = ids[blobs(seed=seed).long()].to(dtype)
    large = {"max_class_share": 1.0} if top > 2**24 else {}  # counting the pixels of a class takes class ids
    augment = augmentation(ignore_index=IGNORE, rare=(1, top), **EVERYTHING | large)
    torch.manual_seed(seed)
    _, semantic_map = augment(photo(), stored, (photo(), stored))
    assert semantic_map.dtype == dtype
    assert set(semantic_map.unique().tolist()) <= {*ids.tolist(), IGNORE}


def test_image_and_map_have_the_same_pixel_centres():
    """On a ramp, image and map both say where they were read: on average at the same place, to 1/50 pixel."""
    ramp = torch.arange(200).expand(200, 200)
    for scale in (0.4, 0.8, 1.5, 2.0):  # at 1/2, nearest must choose between two that are equally near
        image, semantic_map = augmentation((200, 200), scale=(scale, scale), mean=(0,))(
            ramp[None].float(), ramp
        )
        difference = (image[0] - semantic_map)[:, 5:-5][semantic_map[:, 5:-5] != IGNORE]
        inside = difference[difference.abs() < 5]
        assert abs(inside.mean()) < 0.02 and inside.abs().max() <= max(1, 1 / scale)


def test_none_without_a_size_changes_nothing():
    image, semantic_map = photo(), blobs()
    out_image, out_map = augmentation(None)(image, semantic_map)
    assert torch.equal(out_image, image) and torch.equal(out_map, semantic_map)


def test_a_sample_is_a_function_of_its_seed_alone():
    augment, other = augmentation(rare=(1, 2), **EVERYTHING), augmentation(rare=(1, 2), **EVERYTHING)
    image, semantic_map = photo(), blobs()
    image_before, map_before = image.clone(), semantic_map.clone()
    random_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    for seed in range(20):
        torch.manual_seed(seed)
        first = augment(image, semantic_map, (photo(seed=1), blobs(seed=1)))
        torch.rand(seed)
        torch.manual_seed(seed)
        again = other(image, semantic_map, lambda: (photo(seed=1), blobs(seed=1)))
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert torch.equal(image, image_before) and torch.equal(semantic_map, map_before)
    assert random.getstate() == random_state and (np.random.get_state()[1] == numpy_state).all()


def test_seeds_differ():
    augment, sums = augmentation(preset="segformer"), set()
    for seed in range(10):
        torch.manual_seed(seed)
        sums.add(int(augment(photo(), blobs())[0].sum()))
    assert len(sums) == 10


def test_a_small_image_is_padded_with_the_mean_and_ignored():
    image, semantic_map = photo(height=20, width=30), blobs(20, 30)
    out_image, out_map = augmentation((64, 64))(image, semantic_map)
    rows, columns = (out_map != IGNORE).nonzero().T
    inside = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    assert torch.equal(out_image[:, *inside], image) and torch.equal(out_map[inside], semantic_map)
    assert (out_image.movedim(0, -1)[out_map == IGNORE] == torch.tensor(MEAN)).all()
    assert int((out_map == IGNORE).sum()) == 64 * 64 - 20 * 30


@pytest.mark.parametrize("field", PHOTOMETRIC)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colours_change_and_the_map_does_not(field, channels, dtype):
    torch.manual_seed(1)
    # A dull ramp with grain, in reflectance-like units when it is float.
    image = 60 + torch.rand(channels, 60, 80) * 40 + torch.arange(80) / 2
    image = image.byte() if dtype == torch.uint8 else 100 * image
    semantic_map = blobs()
    out_image, out_map = augmentation(None, mean=(90,), **{field: 1.0})(image, semantic_map)
    assert out_image.dtype == dtype and out_image.shape == image.shape and torch.equal(out_map, semantic_map)
    assert out_image.float().isfinite().all()
    # A float image has no bounds but its own: with one channel there is nothing to stretch it to.
    assert torch.equal(out_image, image) == (
        field == "autocontrast" and channels == 1 and dtype == torch.float32
    )
    assert 0.3 < out_image.float().mean() / image.float().mean() < 1.7  # its own units, not 0 to 1


def test_contrast_is_stretched_and_histograms_are_equalised():
    image = photo(4) // 4 + 90
    stretched, _ = augmentation(None, mean=(90,), autocontrast=1.0)(image, blobs())
    assert stretched.amin((1, 2)).tolist() == [0] * 4 and stretched.amax((1, 2)).min() >= 254
    dark = (photo(4).float() ** 2 / 255).byte()
    even, _ = augmentation(None, mean=(90,), equalize=1.0)(dark, blobs())
    assert dark.float().mean() < 90 and abs(even.float().mean() - 127.5) < 8


def test_grey_stays_grey_under_saturation_and_hue():
    image = photo(1).expand(3, -1, -1)
    for seed in range(5):
        torch.manual_seed(seed)
        changed, _ = augmentation(None, photometric=1.0)(image, blobs())
        assert (changed.int() - changed[:1].int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int32, torch.uint16, torch.half, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 50)])
def test_tiny_constant_and_unlabelled_images_pass(dtype, shape):
    augment = augmentation((16, 16), rare=(1,), **EVERYTHING)
    image = torch.full((3, *shape), 7).to(dtype)
    for seed in range(8):
        torch.manual_seed(seed)
        semantic_map = torch.full(shape, IGNORE, dtype=torch.uint8)
        out_image, out_map = augment(image, semantic_map, (image, semantic_map))
        assert out_image.shape == (3, 16, 16) and (out_map == IGNORE).all()
        assert out_image.float().isfinite().all()


def test_no_class_covers_more_of_a_crop_than_allowed():
    semantic_map = torch.zeros(100, 100, dtype=torch.uint8)
    semantic_map[:, 80:] = 1
    shares = []
    for limit in (1.0, 0.9):
        augment = augmentation((20, 20), max_class_share=limit)
        torch.manual_seed(0)
        crops = [augment(photo(3, 100, 100), semantic_map)[1] for _ in range(100)]
        shares.append(sum(crop.flatten().bincount().max() > 0.9 * 400 for crop in crops) / 100)
    chance = shares[0]
    assert chance > 0.6 and shares[1] <= 3 * chance**MAX_DRAWS + 0.05


def test_a_crop_that_cannot_meet_the_limit_is_taken_anyway():
    image, semantic_map = augmentation((20, 20), max_class_share=0.5)(photo(), torch.zeros(60, 80).byte())
    assert image.shape == (3, 20, 20) and not semantic_map.any()


def test_rare_crops_show_a_rare_class():
    semantic_map = torch.zeros(200, 200, dtype=torch.uint8)
    semantic_map[3, 190], semantic_map[120, 60] = 1, 2
    augment = augmentation((32, 32), rare=(1, 2, 3), rare_class_crop=1.0)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        found = augment(photo(3, 200, 200), semantic_map)[1].unique().tolist()
        assert found in ([0, 1], [0, 2])
        seen.add(found[1])
    assert seen == {1, 2}
    augment(photo(), torch.zeros(60, 80).byte())  # none there: an ordinary crop


def test_pasting_brings_the_rare_classes_of_the_other_and_nothing_else():
    image, semantic_map = torch.zeros(3, 60, 80).byte(), torch.zeros(60, 80).byte()
    other_map = torch.full((60, 80), 3, dtype=torch.uint8)
    other_map[20:40, 30:50] = 2
    other_image = torch.where(other_map == 2, 200, 90).byte().expand(3, -1, -1)
    out_image, out_map = augmentation(None, rare=(2,), copy_paste=1.0)(
        image, semantic_map, (other_image, other_map)
    )
    assert out_map.unique().tolist() == [0, 2] and int((out_map == 2).sum()) == 400
    assert (out_image == torch.where(out_map == 2, 200, 0)).all()


def test_the_other_image_is_read_only_when_it_is_needed():
    def other():
        raise AssertionError("read")

    augmentation(None, rare=(2,), copy_paste=0.0)(photo(), blobs(), other)
    augmentation(None, rare=(), copy_paste=1.0)(photo(), blobs(), other)
    with pytest.raises(AssertionError, match="read"):
        augmentation(None, rare=(2,), copy_paste=1.0)(photo(), blobs(), other)


def test_cutout_is_one_rectangle_of_a_bounded_size():
    augment = augmentation(None, cutout=1.0)
    for seed in range(30):
        torch.manual_seed(seed)
        image, semantic_map = augment(photo(), blobs())
        gone = semantic_map == IGNORE
        rows, columns = gone.nonzero().T
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert gone.sum() == height * width and 0.015 < gone.float().mean() < 0.17
        assert (image.movedim(0, -1)[gone] == torch.tensor(MEAN)).all()


def test_flips_and_quarter_turns_are_exact():
    image, semantic_map = photo(3, 50, 50), blobs(50, 50)
    out_image, out_map = augmentation(None, horizontal_flip=1.0, vertical_flip=1.0)(image, semantic_map)
    assert torch.equal(out_image, image.rot90(2, (1, 2))) and torch.equal(out_map, semantic_map.rot90(2))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sides=st.tuples(st.integers(3, 70), st.integers(3, 70)),
    sigma=st.floats(0.3, 1.5),
    factor=st.floats(1.5, 3.0),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
)
def test_blurring_and_sharpening_are_those_of_torchvision(seed, sides, sigma, factor, dtype):
    image = photo(3, *sides, seed=seed).to(dtype)
    reach = math.ceil(2 * sigma)
    if reach < min(sides):
        expected = v2.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
        # Another order of summation: where the sum is near a half, it may round to the other side.
        off = np.abs(blur(image.numpy(), sigma, reach) - expected.double().numpy())
        assert off.max() <= (1 if dtype == torch.uint8 else 1e-3) and (off > 1e-3).mean() < 0.01
    low, high = (0, 255) if dtype == torch.uint8 else image.aminmax()
    unit = image if dtype == torch.uint8 else (image - low) / (high - low)
    expected = v2.adjust_sharpness(unit, factor)
    expected = expected if dtype == torch.uint8 else expected * (high - low) + low
    # v2 rounds the blurred image to bytes as well, which `factor - 1` multiplies, and cuts fractions off at the end.
    off = np.abs(sharpen(image.numpy(), factor) - expected.double().numpy()).max()
    assert off <= (2 if dtype == torch.uint8 else 1e-2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([1, 3, 4]),
    factors=st.tuples(*[st.floats(0.5, 1.5)] * 3),
    turn=st.floats(-0.3, 0.3),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64]),
)
def test_recolouring_is_its_definition_and_measures_only_what_is_shown(seed, channels, factors, turn, dtype):
    brightness, contrast, saturation = factors
    image, where = photo(channels, seed=seed).numpy().astype(dtype), blobs(seed=seed).numpy() > 0
    where[:3] = True
    values = image.astype(np.float64)
    centre = values[:, where].mean(1)[:, None, None]
    if channels == 3:
        luma, i, q = (np.tensordot(row, values, 1) for row in
                      ([0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]))  # fmt: skip
        centre = np.tensordot([0.299, 0.587, 0.114], centre, 1)[None]
        i, q = (saturation * part for part in (i * math.cos(turn) - q * math.sin(turn),
                                               i * math.sin(turn) + q * math.cos(turn)))  # fmt: skip
        back = np.linalg.inv([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        values = np.tensordot(back, np.stack([luma, i, q]), 1)
    expected = brightness * (contrast * values + (1 - contrast) * centre)
    result = recolour(image, where, brightness, contrast, saturation, turn)
    assert result.dtype == dtype
    if dtype == np.uint8:
        expected = expected.clip(0, 255)
    assert np.abs(result - expected).max() <= (0.501 if dtype == np.uint8 else 1e-3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), low=st.integers(0, 100), span=st.integers(0, 155), channels=st.sampled_from([1, 3, 5])
)
def test_contrast_and_histogram_are_those_of_torchvision(seed, low, span, channels):
    image = (low + photo(channels, seed=seed).float() * span / 255).byte()
    everywhere = np.ones((60, 80), bool)
    off = autocontrast(image.numpy(), everywhere) - v2.autocontrast(image[:, None])[:, 0].int().numpy()
    assert np.abs(off).max() <= 1  # v2 cuts fractions off
    expected = v2.equalize(image[:, None])[:, 0].numpy()
    assert (equalize(image.numpy(), everywhere) == expected).all()
    # Where nothing is shown, anything may stand.
    where, beyond = blobs(seed=seed).numpy() > 0, image.numpy().copy()
    if where.any():
        beyond[:, ~where] = 255 - beyond[:, ~where]
        for operation in (autocontrast, equalize):
            assert (operation(beyond, where) == operation(image.numpy(), where))[:, where].all()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sides=st.tuples(st.integers(2, 70), st.integers(2, 70)),  # v2 0.29 does not resize a single column
    size=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    flips=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.uint16]),
)
def test_an_upright_sample_is_a_resized_crop_of_torchvision(seed, sides, size, flips, dtype):
    image = photo(3, *sides, seed=seed).to(dtype)
    step = np.divide(sides, size)
    first = np.where(np.array(flips) > 0, 0.5 * step, sides - 0.5 * step)
    places = np.column_stack([np.diag(step * flips), first - 0.5])
    out = np.zeros((3, *size), np.uint8 if dtype == torch.uint8 else np.float32)
    sample(image, places, np.ones(size, bool), out)
    expected = v2.resize(image.float(), list(size), antialias=True)
    expected = expected.flip([axis - 2 for axis in range(2) if flips[axis] < 0]).double().numpy()
    # Of one axis that shrinks and one that grows, bytes are rounded twice.
    assert np.abs(out - expected).max() <= (1.01 if dtype == torch.uint8 else 1e-2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    angle=st.just(0.0) | st.floats(-math.pi, math.pi),
    step=st.floats(0.2, 0.99),
    start=st.tuples(st.floats(-5, 55), st.floats(-5, 75)),
)
def test_an_enlarged_sample_is_the_whole_image_interpolated(seed, angle, step, start):
    image, size = photo(seed=seed), (20, 24)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    places = np.column_stack([step * turn, start])
    rows, columns = (sum(factor * at for factor, at in zip(place, (*np.mgrid[:20, :24], 1), strict=True))
                     for place in places)  # fmt: skip
    shown = (rows > -0.5) & (rows < 59.5) & (columns > -0.5) & (columns < 79.5)
    out, expected = np.zeros((2, 3, *size), np.uint8)
    sample(image, places, shown, out)
    affine_bilinear(image.permute(1, 2, 0).numpy(), places, shown, expected)
    assert np.abs(out.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 1.37, 2.0])
def test_turned_image_and_map_show_the_same_places(scale):
    """Image and map hold the row, then the column, that they were read from; nearest is at most half a pixel off."""
    augment = augmentation(
        (90, 110), scale=(scale, scale), rotation=180.0, horizontal_flip=0.5, vertical_flip=0.5, mean=(0,)
    )
    for seed in range(10):
        places = []
        for ids in (torch.arange(150)[:, None].expand(150, 150), torch.arange(150).expand(150, 150)):
            torch.manual_seed(seed)
            image, semantic_map = augment(ids[None].double(), ids)
            shown = semantic_map != IGNORE
            off = image[0][shown] - semantic_map[shown]
            assert shown.double().mean() > 0.3 and off.abs().max() <= 0.5 + 1e-3 and abs(off.mean()) < 0.02
            places.append(image[0])
        down, across = (torch.stack([place.diff(dim=axis)[40:50, 50:60] for place in places]).flatten(1)
                        for axis in range(2))  # fmt: skip
        # Neighbours lie 1 / scale apart, but for the rounding of a window to whole pixels, and at right angles.
        assert all((step.norm(dim=0) * scale - 1).abs().max() < 1e-2 for step in (down, across))
        assert (down * across).sum(0).abs().max() < 1e-2


@pytest.mark.parametrize("layout", [(1, 2, 0), (0, 1, 2)])
def test_the_layout_of_an_image_in_memory_changes_nothing(layout):
    """Decoded images have their channels innermost, and tensors of images usually outermost."""
    back = [layout.index(axis) for axis in range(3)]
    augment, semantic_map = augmentation(rare=(1, 2), **EVERYTHING), blobs()
    for seed in range(12):
        other = photo(seed=seed).permute(layout).contiguous().permute(back)
        torch.manual_seed(seed)
        out_image, out_map = augment(other, semantic_map, (other, semantic_map))
        torch.manual_seed(seed)
        expected = augment(photo(seed=seed), semantic_map, (photo(seed=seed), semantic_map))
        assert out_image.is_contiguous() and torch.equal(out_map, expected[1])
        assert (out_image.int() - expected[0].int()).abs().double().mean() < 0.1


def test_rotation_is_about_the_centre_and_shows_the_image_in_the_corners():
    semantic_map = torch.zeros(201, 301, dtype=torch.uint8)
    semantic_map[98:103, 148:153] = 1
    for size, unlabelled in (((201, 301), True), (None, True), ((101, 101), False)):
        augment = augmentation(size, rotation=30.0, rare=(1,), rare_class_crop=1.0)
        for seed in range(5):
            torch.manual_seed(seed)
            _, out = augment(photo(3, 201, 301), semantic_map)
            assert (out == IGNORE).any() == unlabelled
            if unlabelled:
                centre = (out == 1).nonzero().double().mean(0) - torch.tensor([100.0, 150.0])
                assert centre.abs().max() <= 1


@pytest.mark.parametrize("size", [37, 60, 200, (31, 45), (90, 40)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_is_that_of_transformers(size, dtype):
    from transformers import SegformerImageProcessor

    wanted = (
        {"shortest_edge": size}
        if isinstance(size, int)
        else dict(zip(("height", "width"), size, strict=True))
    )
    processor = SegformerImageProcessor(size=wanted, do_rescale=False, do_normalize=False)
    image, semantic_map = photo().numpy().astype(dtype), blobs().numpy()
    expected = processor(image, semantic_map, input_data_format="channels_first", return_tensors="pt")
    out_image, out_map = resize(torch.from_numpy(image), torch.from_numpy(semantic_map), size)
    torch.testing.assert_close(out_image.float(), expected["pixel_values"][0].float(), rtol=0, atol=0)
    assert torch.equal(out_map.long(), expected["labels"][0])
    assert resize(torch.from_numpy(image), None, size)[1] is None


def test_presets_fill_what_is_empty():
    for preset in PRESETS:
        config = resolve(AugmentConfig(preset=preset, rotation=33.0))
        filled = {name for name, value in dataclasses.asdict(config).items() if value is not None}
        assert filled >= {field.name for field in dataclasses.fields(config)} - {"crop_size"}
        assert config.rotation == 33.0 and resolve(config) == config
    assert resolve(AugmentConfig(preset="strong", cutout=0.0)).cutout == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "segforme"}, "segformer"),
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"copy_paste": math.nan}, "copy_paste"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"max_class_share": 0.0}, "max_class_share"),
        ({"rotation": -5.0}, "rotation"),
        ({"crop_size": 0}, "crop_size"),
        ({"crop_size": (64, -1)}, "crop_size"),
    ],
)
def test_wrong_recipes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        resolve(AugmentConfig(**fields))


@given(st.lists(st.integers(0, 10**9), max_size=20))
def test_rare_classes_are_a_minority(counts):
    rare = rare_classes(counts)
    assert all(counts[k] > 0 for k in rare)
    assert not rare or sum(counts[k] for k in rare) < sum(counts) / 2


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_contact_sheet_shows_every_kind_of_image(tmp_path, channels):
    palette = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    half = blobs()
    half[:20] = IGNORE
    samples = [
        (photo(channels), blobs()),
        (photo(channels, 30, 90).float() * 1e3, blobs(30, 90)),
        (photo(channels), half),
    ]
    path = contact_sheet(samples, tmp_path / "new" / "sheet.png", palette, IGNORE, columns=2, title="strong")
    colours = {tuple(colour) for _, colour in Image.open(path).convert("RGB").getcolors(10**7)}
    assert set(palette) <= colours
    assert contact_sheet([], tmp_path / "empty.png", palette, IGNORE).exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_real_photographs(shared_data, preset):
    folder = shared_data / "camvid" / "train"
    augment = augmentation((180, 180), preset=preset, rare=(2, 6, 9, 10), ignore_index=IGNORE)
    for seed, path in enumerate(sorted((folder / "images").iterdir())[::60]):
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        semantic_map = torch.from_numpy(np.array(Image.open(folder / "masks" / f"{path.stem}.png")))
        semantic_map[semantic_map == 11] = IGNORE
        torch.manual_seed(seed)
        out_image, out_map = augment(image, semantic_map, (image, semantic_map))
        assert out_image.shape == (3, 180, 180) and out_image.is_contiguous()
        assert set(out_map.unique().tolist()) <= {*semantic_map.unique().tolist(), IGNORE}
        assert (out_map != IGNORE).float().mean() > 0.1

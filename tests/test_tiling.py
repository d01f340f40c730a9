"""Windows and views against the plain computation: blended in one piece, averaged by hand, upsampled at once."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import DPTConfig, DPTForSemanticSegmentation, DPTImageProcessor, SegformerImageProcessor

from hfseg.errors import UserError
from hfseg.inference.profiling import _peak_extra_bytes
from hfseg.inference.test_time_augmentation import averaged_logits
from hfseg.inference.tiling import Tiles, lay_out
from hfseg.inference_settings import read_tta, views
from hfseg.ops import upsample_argmax
from hfseg.segmenter import Segmenter


def a_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def a_field(height, width):
    """A picture that tells where each of its pixels lies, as 16 times finer values than it shows."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return np.stack([255 * x, 255 * y, 127 + 127 * np.sin(5 * x + 3 * y)], -1).astype(np.uint8)


class Local(nn.Module):
    """A network whose logits depend on the pixels of their cell alone."""

    def __init__(self, stride=4, classes=5, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 3, 1, 1, generator=generator))
        self.stride, self.sizes = stride, []
        self.config = SimpleNamespace(id2label={i: f"class {i}" for i in range(classes)}, num_labels=classes)

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape))
        cells = F.avg_pool2d(pixel_values, self.stride, ceil_mode=True)
        return SimpleNamespace(logits=F.conv2d(torch.sin(3 * cells), self.weight))


def a_segmenter(model=None, processor=None, **settings):
    return Segmenter(model or Local(), processor or SegformerImageProcessor(do_resize=False), **settings)


# -- how windows lie ------------------------------------------------------------------------------------------


@given(st.integers(33, 700), st.sampled_from([32, 64, 96]), st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(0, 0.75))
def test_weights_add_up_to_one_and_windows_overlap_as_wanted(pixels, tile, stride, overlap):
    cells = tile // stride
    axis = lay_out(pixels, tile, cells, overlap)
    sums = np.zeros(axis.cells)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert (weights > 0).all()
        sums[start : start + cells] += weights.numpy()
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    if pixels <= tile:
        assert axis.starts == (0,) and axis.covered == pixels
        return
    assert 0 <= axis.covered - pixels < stride
    ramp = min(cells - 1, round(overlap * cells))
    assert all(a + cells - b >= ramp for a, b in zip(axis.starts, axis.starts[1:]))
    count = len(axis.starts)
    assert (count - 1) * (cells - ramp) + ramp < axis.cells  # one window less would not do


def test_weights_fall_towards_the_border_of_a_window():
    axis = lay_out(400, 64, 16, 0.25)
    inner = axis.weights[2]
    assert inner[0] < inner[1] < inner[2] and inner[-1] < inner[-2] < inner[-3]
    assert inner[0] < 0.2 and inner.max() == 1


@pytest.mark.parametrize(
    ("tile", "overlap"),
    [(31, 0.25), (64.0, 0.25), ("64", 0.25), (True, 0.25), (-32, 0.25), (48, 0.25), (64, -0.1), (64, 0.9), (64, "x")],
)
def test_tiles_that_cannot_be(tile, overlap):
    with pytest.raises(UserError, match="tile"):
        a_segmenter(tile=tile, tile_overlap=overlap)


# -- what comes out -------------------------------------------------------------------------------------------


def test_a_constant_stays_constant():
    class Constant(Local):
        def forward(self, pixel_values):
            logits = super().forward(pixel_values).logits
            return SimpleNamespace(logits=torch.arange(5.0)[None, :, None, None].expand_as(logits))

    logits = a_segmenter(Constant(), tile=64).tiles(a_picture(150, 230)).logits()
    assert logits.shape == (5, 38, 58)
    torch.testing.assert_close(logits, torch.arange(5.0)[:, None, None].expand_as(logits))


@pytest.mark.parametrize("size", [(256, 160), (160, 256), (64, 320), (320, 40)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_a_smooth_field_is_that_of_the_whole_image(size, overlap):
    image = a_field(*size)
    tiled, whole = a_segmenter(tile=64, tile_overlap=overlap), a_segmenter()
    torch.testing.assert_close(tiled.tiles(image).logits(), whole.logits([image])[0], atol=1e-5, rtol=0)
    assert (tiled.predict_maps([image])[0] == whole.predict_maps([image])[0]).mean() > 0.9999


def test_where_windows_disagree_the_step_is_shared_out():
    class Moody(Local):
        """Says of each window something else: seams would be steps of up to 1."""

        def forward(self, pixel_values):
            logits = super().forward(pixel_values).logits
            mood = pixel_values[:, :1].mean(dim=(2, 3), keepdim=True) * 1000 % 1
            return SimpleNamespace(logits=mood.expand_as(logits))

    logits = a_segmenter(Moody(), tile=64, tile_overlap=0.5).tiles(a_picture(256, 256)).logits()
    assert logits.std() > 0.1
    for axis in (1, 2):
        assert logits.diff(dim=axis).abs().max() < 1.01 / 8  # half of 16 cells overlap


@settings(max_examples=25)
@given(st.integers(10, 200), st.integers(97, 200), st.sampled_from([1, 2, 3, 4, 8, 32]), st.booleans(),
       st.floats(0, 0.75))  # fmt: skip
def test_bands_give_the_maps_of_the_whole_blended_logits(short, long, stride, wide, overlap):
    image = a_picture(*((short, long) if wide else (long, short)))
    tile = 96 if stride == 3 else 64  # whole cells
    tiles = [Tiles(image, lambda images: network(images, stride), tile, overlap) for _ in range(2)]
    whole = F.interpolate(tiles[0].logits()[None], tiles[0].covered, mode="bilinear", align_corners=False)
    whole = whole[0, :, : image.shape[0], : image.shape[1]]
    labels, confidence = tiles[1].maps(lambda logits, size: upsample_argmax(logits, size, return_confidence=True))
    best = whole.topk(2, dim=0).values
    sure = (best[0] - best[1] > 1e-4).numpy()
    assert sure.mean() > 0.5
    assert np.array_equal(labels[sure], whole.argmax(0).numpy()[sure])
    np.testing.assert_allclose(confidence, whole.softmax(0).amax(0).numpy(), atol=1e-4)


def network(images, stride):
    """Rough logits that differ from window to window."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 64
    cells = F.avg_pool2d(pixels, stride, ceil_mode=True)
    return torch.cat([cells, cells.flip(1) + pixels.mean(dim=(2, 3), keepdim=True).sin()], dim=1)


def test_an_image_that_fits_is_computed_whole():
    for processor in (None, SegformerImageProcessor(size={"height": 48, "width": 48})):
        tiled, whole = a_segmenter(processor=processor, tile=96), a_segmenter(processor=processor)
        image = a_picture(96, 70)
        found, wanted = tiled(image), whole(image)
        assert np.array_equal(found.semantic_map, wanted.semantic_map)
        assert np.array_equal(found.confidence, wanted.confidence)
        assert tiled.model.sizes == whole.model.sizes
        assert tiled.tiles(image) is None


def test_confidence_of_a_tiled_image():
    image = a_field(200, 120)
    np.testing.assert_allclose(a_segmenter(tile=64)(image).confidence, a_segmenter()(image).confidence, atol=1e-5)


@pytest.mark.parametrize("size", [(50, 201), (201, 50), (97, 131), (33, 65)])
def test_sides_that_no_number_of_cells_fits(size):
    image = a_field(*size)
    segmenter = a_segmenter(tile=64)
    result = segmenter(image)
    assert result.semantic_map.shape == result.confidence.shape == size
    [field], [whole] = (a_segmenter(Local(stride)).predict_maps([image]) for stride in (1, 4))
    assert (result.semantic_map == field).mean() > (whole == field).mean() - 0.005  # as good as cells of 4 pixels are
    assert {shape[1:] for shape in segmenter.model.sizes} == {(3, max(32, min(64, size[0])), max(32, min(64, size[1])))}
    assert max(sizes := [shape[0] for shape in segmenter.model.sizes]) > 1 or sum(sizes) == 2  # several at a time


def test_logits_of_no_whole_number_of_pixels_are_resampled_to_a_quarter():
    class Odd(Local):
        def forward(self, pixel_values):
            logits = super().forward(pixel_values).logits
            return SimpleNamespace(logits=F.interpolate(logits, (23, 23), mode="bilinear"))

    image = a_field(256, 192)
    tiles = a_segmenter(Odd(), tile=64).tiles(image)
    assert tiles.logits().shape == (5, 64, 48)
    found, wanted = a_segmenter(Odd(), tile=64).predict_maps([image])[0], a_segmenter().predict_maps([image])[0]
    assert (found == wanted).mean() > 0.97


def test_windows_are_not_resized_unless_the_network_takes_one_size_only():
    segmenter = a_segmenter(processor=SegformerImageProcessor(size={"height": 48, "width": 48}), tile=64)
    segmenter(a_picture(100, 150))
    assert {shape[2:] for shape in segmenter.model.sizes} == {(64, 64)}
    vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = DPTConfig(**vit, image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
                       neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, num_labels=3)  # fmt: skip
    seen = []
    model = DPTForSemanticSegmentation(config)
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["pixel_values"].shape), with_kwargs=True)
    square = Segmenter(model, DPTImageProcessor(size={"height": 32, "width": 32}), tile=64, tta="horizontal_flip")
    assert square(a_picture(100, 150)).semantic_map.shape == (100, 150)
    assert {tuple(shape[2:]) for shape in seen} == {(32, 32)}
    with pytest.raises(UserError, match=r"32, 32\) only"):
        square.using(tta=(0.5,))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_length_of_the_image():
    """The logits of the longer image alone would take 134 MB more."""
    segmenter = a_segmenter(Local(stride=2, classes=64), tile=128)
    images = [np.ascontiguousarray(np.repeat(a_field(256, 256), times, axis=0)) for times in (2, 16, 32)]
    extra = []
    for image in images:  # the first one compiles and loads what is needed
        found = _peak_extra_bytes(lambda: segmenter.predict_maps([image]), torch.device("cpu"))  # noqa: B023
        if found is None:
            pytest.skip("this system does not tell how much memory a process took")
        extra.append(found - image.shape[0] * image.shape[1])
    assert extra[2] - extra[1] < 20e6, extra
    whole = _peak_extra_bytes(lambda: a_segmenter(Local(stride=2, classes=64)).predict_maps(images[2:]),
                              torch.device("cpu"))  # fmt: skip
    assert whole > extra[2] + 150e6  # so that what is measured is there to be seen


# -- views ----------------------------------------------------------------------------------------------------


def test_all_combinations_and_the_image_as_it_is():
    assert views(()) == [(1.0, ())]
    found = views(read_tta(["vertical_flip", 0.5, "horizontal_flip", 1, 0.5, "2"]))
    assert len(found) == len(set(found)) == 12 and found[0] == (1.0, ())
    assert {scale for scale, _ in found} == {0.5, 1.0, 2.0}
    assert {axes for _, axes in found} == {(), (-1,), (-2,), (-2, -1)}
    assert read_tta(None) == read_tta("") == read_tta([1.0]) == ()
    assert read_tta("0.75,horizontal_flip") == read_tta(("horizontal_flip", 0.75)) == ("horizontal_flip", 0.75)


@pytest.mark.parametrize("wrong", ["flip", "horizontal_flip,x", [0], [-1.0], [float("nan")], [True], [100], [None]])
def test_views_that_are_none(wrong):
    with pytest.raises(UserError, match="tta holds"):
        a_segmenter(tta=wrong)


@pytest.mark.parametrize("size", [(64, 96), (37, 51), (33, 32)])
@pytest.mark.parametrize("tta", [["horizontal_flip"], ["vertical_flip"], ["horizontal_flip", "vertical_flip"]])
def test_flips_of_an_equivariant_network_change_nothing(size, tta):
    image = a_picture(*size)
    plain, turned = (a_segmenter(Local(stride=1), tta=views) for views in ((), tta))
    logits = turned.logits([image])
    torch.testing.assert_close(logits, plain.logits([image]).log_softmax(1), atol=1e-5, rtol=0)
    assert np.array_equal(plain(image).semantic_map, turned(image).semantic_map)
    assert len(turned.model.sizes) == 2 * 2 ** len(tta)


def test_scales_of_a_smooth_field_change_little():
    image = a_field(128, 96)
    plain, scaled = (a_segmenter(Local(stride=1), tta=tta).predict_maps([image])[0] for tta in ((), (0.75, 1.25)))
    assert (plain == scaled).mean() > 0.98


@pytest.mark.parametrize("size", [(64, 96), (45, 71)])
def test_the_average_is_the_mean_of_the_probabilities(size):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 5, stride=4, padding=2)  # what is to the left of a pixel counts
    pixels = torch.randn(2, 3, *size)
    wanted, count, resolution = 0, 0, convolution(pixels).shape[-2:]
    with torch.no_grad():
        for scale in (1, 0.5, 1.5):
            side = [round(length * scale) for length in size]
            wide = F.interpolate(pixels, side, mode="bilinear", antialias=True) if scale != 1 else pixels
            for turned in (False, True):
                logits = convolution(wide[..., ::1].flip(3) if turned else wide)
                logits = logits.flip(3) if turned else logits
                logits = F.interpolate(logits, resolution, mode="bilinear", align_corners=False)
                wanted, count = wanted + logits.softmax(1), count + 1
        found = averaged_logits(convolution, pixels, ("horizontal_flip", 0.5, 1.5))
    assert count == 6
    torch.testing.assert_close(found.exp(), wanted / 6)
    torch.testing.assert_close(found.softmax(1), wanted / 6)
    plain = averaged_logits(convolution, pixels, ())
    torch.testing.assert_close(plain, convolution(pixels).log_softmax(1))


def test_scaled_sides_are_whole_patches():
    seen = []

    def record(pixels):
        seen.append(tuple(pixels.shape[-2:]))
        return pixels

    averaged_logits(record, torch.zeros(1, 3, 64, 96), (0.7, 1.3), step=14)
    assert seen == [(64, 96), (42, 70), (84, 126)]


def test_views_within_windows():
    image = a_picture(150, 100)
    segmenter = a_segmenter(tile=64, tta=("horizontal_flip", 0.5))
    blended = segmenter.tiles(image).logits()
    assert {shape[2:] for shape in segmenter.model.sizes} == {(64, 64), (32, 32)}
    plain = a_segmenter(tile=64)

    def by_hand(images):
        with torch.no_grad():
            pixels = plain._pixel_values(images)
            return averaged_logits(plain._network, pixels, ("horizontal_flip", 0.5))

    torch.testing.assert_close(blended, Tiles(image, by_hand, 64, 0.25).logits())
    assert not torch.allclose(blended, plain.tiles(image).logits().log_softmax(0), atol=0.01)


def test_settings_of_another_segmenter_of_the_same_model():
    first = a_segmenter(tile=64, tta="horizontal_flip")
    assert (first.using().tile, first.using().tta) == (64, ("horizontal_flip",))
    other = first.using(tile=0, tta=())
    assert (other.tile, other.tta, first.tile, other.model is first.model) == (None, (), 64, True)


def test_a_model_brings_the_tile_that_it_was_scored_with():
    model = Local()
    model.config.segmentation_tile = 64
    assert a_segmenter(model).tile == 64 and a_segmenter(model).using(tile=0).tile is None
    assert a_segmenter(model, tile=0).tile is None and a_segmenter(model, tile=96).tile == 96
    assert a_segmenter(model, compat=True).tile is None
    model.config.segmentation_tile = "64"
    with pytest.raises(UserError, match="tile is '64'"):
        a_segmenter(model)

"""The inference path on tiny random networks of every family that gives per-pixel logits."""

from __future__ import annotations

import copy
import http.server
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DPTImageProcessor,
    SegformerConfig,
)

from hfseg.errors import UserError
from hfseg.labels import LabelSchema
from hfseg.segmenter import Segmenter
from tiny_networks import LABELS, a_picture, beit, dpt, mobilenet, mobilevit, segformer, upernet

from tiny_networks import segmenter_fixture  # isort: skip  # noqa: F401


@pytest.mark.parametrize("family", [segformer, upernet, dpt, beit, mobilenet, mobilevit])
def test_every_family_answers_at_the_size_of_the_image(family):
    torch.manual_seed(0)
    model, processor = family()
    segmenter = Segmenter(model, processor)
    results = segmenter([a_picture(50, 70), a_picture(33, 47), a_picture(50, 70, seed=1)])
    assert [r.semantic_map.shape for r in results] == [(50, 70), (33, 47), (50, 70)]
    for result in results:
        assert result.semantic_map.dtype == np.uint8
        assert result.semantic_map.max() <= 2
        assert (result.confidence >= 1 / 3 - 1e-6).all()
        assert sum(entry["area"] for entry in result.segments_info) == result.semantic_map.size
    assert results[0].id2label == {0: "sky", 1: "cat", 2: "rug"}


@pytest.mark.parametrize("family", [mobilenet, mobilevit, beit])
def test_centre_crops_lose_no_pixels(family):
    model, processor = family()
    seen = []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["pixel_values"]), with_kwargs=True)
    image = np.zeros((64, 64, 3), np.uint8)
    image[0] = image[:, -1] = 255
    Segmenter(model, processor).logits([image])
    assert seen[0].shape[-2:] == (64, 64)
    assert seen[0][0, :, 0].min() == seen[0][0, :, :, -1].min() == seen[0].max() > seen[0][0, 0, 1, 0]
    assert processor.do_center_crop  # the processor itself is left as it was


def test_the_result_equals_transformers_own_postprocessing(segmenter):
    image = a_picture(75, 99)
    inputs = segmenter.processor(Image.fromarray(image), return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model.eval()(**inputs)
    [expected] = segmenter.processor.post_process_semantic_segmentation(outputs, target_sizes=[(75, 99)])
    [found] = segmenter.predict_maps([image])
    assert (found == expected.numpy()).mean() > 0.999
    assert np.array_equal(found, segmenter(image).semantic_map)


def test_batching_changes_nothing(segmenter):
    images = [a_picture(40, 60, seed) for seed in range(5)] + [a_picture(60, 40, 9)]
    alone = [segmenter.predict_maps([image])[0] for image in images]
    together = segmenter.predict_maps(images[:2] + images[5:] + images[2:5])
    for found, expected in zip(together, alone[:2] + alone[5:] + alone[2:5], strict=True):
        assert (found == expected).mean() > 0.999
    assert segmenter.logits(images[:5]).shape == (5, 3, 16, 16)
    assert len(segmenter(images, batch_size=2)) == 6
    assert segmenter([]) == []
    with pytest.raises(ValueError, match="one size"):
        segmenter.logits([images[0], images[5]])


def test_padding_is_cut_off_again():
    """A network that sees each pixel alone gives the same map with and without padding."""

    class Pixelwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)
            self.config = SegformerConfig(**LABELS)
            self.sizes = []

        def forward(self, pixel_values):
            self.sizes.append(tuple(pixel_values.shape[-2:]))
            return type("Output", (), {"logits": self.conv(pixel_values)})

    torch.manual_seed(0)
    model, image = Pixelwise(), a_picture(30, 45)
    plain = Segmenter(model, DPTImageProcessor(do_resize=False, do_pad=False))
    padded = Segmenter(model, DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=32))
    assert np.array_equal(plain.predict_maps([image])[0], padded.predict_maps([image])[0])
    assert padded.logits([image]).shape[-2:] == (30, 45)
    assert model.sizes[:2] == [(32, 45), (32, 64)]  # no network takes less than 32 pixels


def test_it_leaves_the_model_in_the_mode_it_had(segmenter):
    model = segmenter.model
    model.train()
    model.segformer.eval()  # a frozen backbone
    before = [module.training for module in model.modules()]
    dropout_free = segmenter.logits([a_picture()])
    assert torch.equal(dropout_free, segmenter.logits([a_picture()]))
    assert [module.training for module in model.modules()] == before
    assert not dropout_free.requires_grad
    assert not dropout_free.is_inference()  # so that nothing the model caches breaks the next training step
    model.eval()
    assert segmenter.logits([a_picture()]).is_inference()
    model.train()
    with pytest.raises(ValueError, match="one size"):
        segmenter.logits([a_picture(3, 4), a_picture(4, 3)])
    assert model.training
    model.eval()


def test_dtype_and_autocast():
    torch.manual_seed(0)
    model, processor = segformer()
    assert next(Segmenter(model, processor).model.parameters()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert Segmenter(model, processor)(a_picture()).semantic_map.shape == (50, 70)
    half = Segmenter(model, processor, device="cpu", dtype="bfloat16")
    assert half.logits([a_picture()]).dtype == torch.bfloat16
    assert half(a_picture()).confidence.dtype == np.float32


# -- what an image may be -----------------------------------------------------------------------------------


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_paths_bytes_arrays_and_pil_images_are_the_same_image(segmenter, tmp_path):
    picture = Image.fromarray(a_picture())
    path = tmp_path / "a.png"
    picture.save(path)
    expected = segmenter(picture).semantic_map
    for value in (path, str(path), path.read_bytes(), a_picture()):
        assert np.array_equal(segmenter(value).semantic_map, expected)
    result = segmenter((path, picture))
    assert isinstance(result, list)
    assert np.array_equal(result[0].image, a_picture())


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_of_pil_works(segmenter, mode):
    grey = Image.fromarray(a_picture()[..., 0])
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200) if mode == "I;16" else grey.convert(mode)
    assert segmenter(image).semantic_map.shape == (50, 70)
    assert segmenter(np.asarray(grey)).semantic_map.shape == (50, 70)


def test_a_rotated_photo_is_segmented_upright(segmenter):
    exif = Image.Exif()
    exif[0x0112] = 6
    result = segmenter(as_bytes(Image.fromarray(a_picture(50, 70)), "JPEG", exif=exif))
    assert result.semantic_map.shape == (70, 50)
    assert result.image.shape == (70, 50, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (300, 2)])
def test_tiny_and_narrow_images(segmenter, shape):
    assert segmenter(Image.fromarray(np.zeros((*shape, 3), np.uint8))).semantic_map.shape == shape


def test_many_bands():
    torch.manual_seed(0)
    statistics = {"image_mean": [0.5] * 6, "image_std": [0.5] * 6}
    segmenter = Segmenter(*segformer(channels=6, **statistics))
    bands = np.random.default_rng(0).integers(0, 4000, (40, 50, 6)).astype(np.uint16)
    assert segmenter(bands).semantic_map.shape == (40, 50)


def test_unreadable_images_are_named(segmenter, tmp_path):
    good = as_bytes(Image.fromarray(a_picture()))
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "note.txt").write_text("no image")
    for name in ("cut.png", "empty.jpg", "note.txt", "missing.png"):
        with pytest.raises(UserError, match=name):
            segmenter([a_picture(), str(tmp_path / name)])
    with pytest.raises(UserError, match="is a folder"):
        segmenter(tmp_path)
    with pytest.raises(UserError, match="image 2 of 2"):
        segmenter([a_picture(), b"nothing"])
    for empty in (np.zeros((0, 5, 3), np.uint8), Image.new("RGB", (0, 4)), np.zeros((0, 0), np.uint8)):
        with pytest.raises(UserError, match="image"):
            segmenter(empty)


@pytest.fixture
def server():
    content = as_bytes(Image.fromarray(a_picture()))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path in ("/a.png", "/cut.png")
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(content if self.path == "/a.png" else content[:100])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls(segmenter, server):
    assert np.array_equal(segmenter(f"{server}/a.png").semantic_map, segmenter(a_picture()).semantic_map)
    with pytest.raises(UserError, match=r"cannot fetch .*missing.png.*404"):
        segmenter(f"{server}/missing.png")
    with pytest.raises(UserError, match=r"cut\.png"):
        segmenter(f"{server}/cut.png")
    with pytest.raises(UserError, match="cannot fetch"):
        segmenter("http://127.0.0.1:9/a.png")
    with pytest.raises(UserError, match="cannot fetch"):
        segmenter("http://[broken/a.png")


# -- loading ------------------------------------------------------------------------------------------------


def test_from_pretrained_takes_a_folder_and_its_palette(tmp_path):
    torch.manual_seed(0)
    model, processor = segformer()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    generated = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert len(generated.palette) == 3
    colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    LabelSchema.from_names(["sky", "cat", "rug"], colours).save(tmp_path / "labels.json")
    loaded = Segmenter.from_pretrained(str(tmp_path), device="cpu")
    assert loaded.palette == tuple(colours)
    assert not loaded.model.training
    direct = Segmenter(model, processor)
    assert np.array_equal(loaded(a_picture()).semantic_map, direct(a_picture()).semantic_map)
    LabelSchema.from_names(["other"], [(9, 9, 9)]).save(tmp_path / "labels.json")
    assert Segmenter.from_pretrained(tmp_path, device="cpu").palette == generated.palette


def test_from_pretrained_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        Segmenter.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="nobody/nothing"):
        Segmenter.from_pretrained("nobody/nothing")


def test_threads_share_a_model_in_train_mode():
    segmenter = Segmenter(*segformer())
    segmenter.model.train()
    images = [a_picture(40, 48 + 8 * i) for i in range(4)]
    alone = [segmenter(image).semantic_map for image in images]
    state = {name: value.clone() for name, value in segmenter.model.state_dict().items()}
    wanted = dict(zip(map(id, images), alone, strict=True))
    with ThreadPoolExecutor(4) as pool:
        for image, result in zip(images * 6, pool.map(segmenter, images * 6), strict=True):
            np.testing.assert_array_equal(result.semantic_map, wanted[id(image)])
    assert segmenter.model.training
    assert all(torch.equal(value, state[name]) for name, value in segmenter.model.state_dict().items())


def test_inputs_of_other_kinds(segmenter):
    array = a_picture(40, 48)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    want = segmenter(array).semantic_map
    for value in (torch.from_numpy(array.copy()), bytearray(file.getvalue()), io.BytesIO(file.getvalue())):
        np.testing.assert_array_equal(segmenter(value).semantic_map, want)
    for wrong in (7, object(), np.array([["a"]]), np.zeros((4, 4), complex)):
        with pytest.raises(UserError):
            segmenter(wrong)
    with pytest.raises(UserError, match="batch_size"):
        segmenter([array], batch_size=-1)
    with pytest.raises(UserError, match="dtype"):
        Segmenter.from_pretrained("hfseg/shapes-segformer", dtype="foo")
    with pytest.raises(UserError, match="cannot compute on"):
        Segmenter.from_pretrained("hfseg/shapes-segformer", device="cuda:99")
    cut = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    with pytest.raises(UserError, match="truncated"):
        segmenter(cut)


def test_weights_that_are_not_numbers():
    segmenter = Segmenter(*segformer())
    with torch.no_grad():
        next(segmenter.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        segmenter(a_picture(40, 48))


def test_a_segmenter_can_be_copied_and_sent_to_another_process():
    segmenter, picture = Segmenter(*segformer()), a_picture(40, 48)
    for other in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
        np.testing.assert_array_equal(other(picture).semantic_map, segmenter(picture).semantic_map)


# -- settings -------------------------------------------------------------------------------------------------


def test_channels_last_changes_the_layout_and_not_the_answer(segmenter):
    seen = []
    model = copy.deepcopy(segmenter.model)
    other = Segmenter(model, segmenter.processor, channels_last=True)
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["pixel_values"]), with_kwargs=True)
    images = [a_picture(40, 60, seed) for seed in range(2)]
    torch.testing.assert_close(other.logits(images), segmenter.logits(images), atol=1e-5, rtol=1e-4)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()


def test_compile_compiles_the_network(segmenter, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    assert Segmenter(segmenter.model, segmenter.processor, compile=True).model in compiled
    assert len(compiled) == 1


def test_from_pretrained_fuses_and_takes_settings(tmp_path):
    name = "hfseg/shapes-segformer"
    plain = Segmenter.from_pretrained(name, device="cpu", fuse=False)
    fused = Segmenter.from_pretrained(name, device="cpu", tile=64, tta="horizontal_flip", channels_last=True)
    assert (fused.tile, fused.tta, fused.channels_last) == (64, ("horizontal_flip",), True)
    image = a_picture(96, 128)
    torch.testing.assert_close(fused.using(tile=0, tta=()).logits([image]), plain.logits([image]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", [segformer, beit, mobilevit])
@pytest.mark.parametrize("sizes", [[(50, 70)], [(50, 70), (50, 70)]])
def test_pixel_values_are_those_of_the_processor(family, sizes):
    model, processor = family()
    images = [a_picture(*size, seed) for seed, size in enumerate(sizes)]
    wanted = processor(images, return_tensors="pt", do_center_crop=False)["pixel_values"]
    assert torch.equal(Segmenter(model, processor)._pixel_values(images), wanted)

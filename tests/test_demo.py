"""The demo's server: its endpoints by name, what it refuses, and what many visitors at once get."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import hfseg
from hfseg.errors import UserError

from demo_page import HOSTILE, MODEL, demo_fixture, photo_fixture, write_video  # isort: skip  # noqa: F401

gr = pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def segmenter() -> hfseg.Segmenter:
    return hfseg.Segmenter.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def client(demo):
    from gradio_client import Client

    return Client(demo.url, verbose=False, download_files=str(demo.cache.parent / "got"))


@pytest.fixture(scope="module")
def handlers(demo):
    from hfseg.demo.handlers import Handlers
    from hfseg.demo.models import Models

    return Handlers(Models([MODEL, demo.models[3]]))


def ids_of(layer: dict) -> np.ndarray:
    ids = layer["ids"]
    stored = np.asarray(Image.open(ids if isinstance(ids, str) else ids["path"])).astype(np.int64)
    return stored[..., 0] + 256 * stored[..., 1] if stored.ndim == 3 else stored


def segment(handlers, *arguments, **options) -> dict:
    *_, shown = handlers.segment(*arguments, **options)
    return shown


# -- by name ----------------------------------------------------------------------------------------------


def test_every_endpoint_has_a_name_and_says_what_it_does(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/segment", "/export", "/prompt", "/video", "/frame"} == set(endpoints)
    for name, one in endpoints.items():
        assert len(one["description"]) > 20 and "<function" not in one["description"], name
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_segment_and_export_through_the_client(client, demo, photo, segmenter):
    from gradio_client import handle_file

    shown = client.predict(handle_file(photo), MODEL, demo.shown[1], "512", ["horizontal_flip"], "512",
                           api_name="/segment")  # fmt: skip
    expected = segmenter.using(tile=512, tta=("horizontal_flip",))(photo)
    np.testing.assert_array_equal(ids_of(shown["maps"][0]), expected.semantic_map)
    assert [layer["model"] for layer in shown["maps"]] == [MODEL, demo.shown[1]]
    assert {name for name, _ in shown["times"]} >= {"read", "forward", "preprocess", "map", "confidence", "encode"}

    request = {"classes": shown["maps"][0]["classes"], "name": "mine"}
    file = client.predict(handle_file(shown["maps"][0]["ids"]), "coco", None, request, None, api_name="/export")
    assert Path(file).name == "mine_coco.json"
    found = json.loads(Path(file).read_text())["annotations"]
    assert [one["segmentation"] for one in found] == [one["segmentation"] for one in expected.to_coco()]


def test_prompt_through_the_client(client, demo, photo):
    from gradio_client import handle_file

    mask, facts = client.predict(handle_file(photo), demo.shown[3], {"points": [[60, 70, 1]], "number": 3},
                                 api_name="/prompt")  # fmt: skip
    prompter = hfseg.Prompter.from_pretrained(demo.models[3])
    expected, score = prompter.predict(prompter.encode(photo), [(60, 70)])
    np.testing.assert_array_equal(np.asarray(Image.open(mask)) > 0, expected)
    assert facts["score"] == pytest.approx(score, abs=1e-4) and facts["number"] == 3


def test_an_image_is_encoded_once(handlers, photo, demo):
    prompter = handlers.models.get(demo.shown[3])
    count = []
    hook = prompter.model.vision_encoder.register_forward_hook(lambda *_: count.append(1))
    for x in (5, 100, 150):
        handlers.prompt(str(photo), demo.shown[3], {"points": [[x, 20, 1]]})
    hook.remove()
    assert len(count) == 1


def test_a_smaller_view_of_the_image_gives_a_map_of_its_own_size(handlers, tmp_path, segmenter):
    image = np.random.default_rng(0).integers(0, 255, (300, 700, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "wide.png")
    shown = segment(handlers, str(tmp_path / "wide.png"), MODEL, longest_side="512")
    small = np.asarray(Image.fromarray(image).resize((512, 219), Image.Resampling.BOX))
    small_map = Image.fromarray(segmenter(small).semantic_map.astype(np.uint8))
    expected = small_map.resize((700, 300), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(ids_of(shown["maps"][0]), np.asarray(expected))
    assert shown["notes"] == ["The network saw 512 x 219 pixels."]


def test_large_images_are_computed_in_tiles(handlers, photo, monkeypatch):
    from hfseg.demo import handlers as module

    monkeypatch.setattr(module, "LARGE", 1000)
    assert segment(handlers, str(photo), MODEL)["notes"] == ["Large image: computed in tiles of 1024 pixels."]
    assert segment(handlers, str(photo), MODEL, tiles="off")["notes"] == []


def test_segments_travel_with_their_scores(tmp_path):
    from hfseg.demo.encoding import message

    segments = [{"id": 7, "label_id": 1, "score": np.float32(0.5)}, {"id": 70000, "label_id": 1, "score": 0.25}]
    segment_map = np.array([[7, 7, 70000], [-1, 70000, 70000]])
    result = hfseg.Segmentation(np.array([[1, 1, 1], [9, 1, 1]]), {0: "sky", 1: "cat"}, [(0, 0, 0), (9, 9, 9)],
                                image=np.zeros((2, 3, 3), np.uint8), segment_map=segment_map, segments=segments)
    Image.new("RGB", (3, 2)).save(tmp_path / "x.png")
    [layer] = json.loads(json.dumps(message({"m": result}, result.image, str(tmp_path / "x.png"), {})))["maps"]
    stored = np.asarray(Image.open(layer["segments"]["path"])).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(stored, np.where(segment_map < 0, 0xFFFFFF, segment_map))
    assert [(one["id"], one["score"], one["area"]) for one in layer["segments_info"]] == [(7, 0.5, 2), (70000, 0.25, 3)]
    assert ids_of(layer)[1, 0] == 255 == layer["none"]  # 9 has no name


def test_objects_keep_their_segments_at_any_size():
    from hfseg.demo.handlers import Options, run
    from hfseg.models import load_model
    from mask_networks import CONFIGS

    model, processor = load_model("mask2former", ["sky", "cat"], task="instance", config=CONFIGS["mask2former"])
    segmenter = hfseg.Segmenter(model, processor, task="instance", threshold=0.0, mask_threshold=0.3)
    image = np.random.default_rng(0).integers(0, 255, (64, 600, 3)).astype(np.uint8)
    whole, _ = run(segmenter, image, Options(), {})
    np.testing.assert_array_equal(whole.segment_map, segmenter(image).segment_map)
    times: dict[str, float] = {}
    small, note = run(segmenter, image, Options(longest_side="512"), times)
    assert small.segment_map.shape == (64, 600) and "512 x 55" in note and times["forward"] > 0
    assert [entry["area"] for entry in small.segments_info] == [
        int((small.segment_map == one["id"]).sum()) for one in small.segments]
    tiled, _ = run(segmenter, image, Options(tiles="512"), {})
    np.testing.assert_array_equal(tiled.segment_map, segmenter.using(tile=512)(image).segment_map)


def test_a_slider_asks_for_other_objects_and_not_the_network_again():
    from hfseg.demo.handlers import Options, Outputs, run
    from hfseg.models import load_model
    from mask_networks import CONFIGS

    model, processor = load_model("mask2former", ["sky", "cat"], task="panoptic", config=CONFIGS["mask2former"])
    segmenter, outputs, asked = hfseg.Segmenter(model, processor), Outputs(), []
    model.register_forward_hook(lambda *_: asked.append(1))
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    for threshold in (0.0, 0.3, 0.9):
        found, _ = run(segmenter, image, Options(threshold=threshold), {}, outputs)
        expected = segmenter.using(threshold=threshold)(image)
        np.testing.assert_array_equal(found.segment_map, expected.segment_map)
    assert len(asked) == 1 + 3
    by_task = {task: run(segmenter, image, Options(task=task, threshold=0.0), {}, outputs)[0]
               for task in ("semantic", "instance")}  # fmt: skip
    assert by_task["semantic"].segments is None and any("rle" in one for one in by_task["instance"].segments)
    assert run(segmenter, image[::-1].copy(), Options(threshold=0.0), {}, outputs)[0].segments is not None
    assert len(asked) == 1 + 3 + 3


# -- videos -----------------------------------------------------------------------------------------------


def test_a_video_comes_back_side_by_side(client, tmp_path):
    import av
    from gradio_client import handle_file

    video = write_video(tmp_path / "clip.mp4", 7)
    shown, facts = client.predict(handle_file(video), MODEL, 2, api_name="/video")
    shown = shown["video"] if isinstance(shown, dict) else shown
    with av.open(shown) as file:
        track = file.streams.video[0]
        assert track.codec_context.name == "h264" and (track.width, track.height) == (200, 74)
        assert sum(1 for _ in file.decode(track)) == 4 and track.average_rate == 5
    assert facts.startswith("4 frames, 0.8 s at 5 fps. Mean: background")


def test_the_cap_on_frames_is_kept_and_told(tmp_path, monkeypatch, segmenter):
    from hfseg.demo import video

    monkeypatch.setattr(video, "MOST_FRAMES", 3)
    seen = []
    _, facts = video.segment_video(str(write_video(tmp_path / "clip.webm", 6)), segmenter, 1,
                                   lambda done, total: seen.append((done, total)))  # fmt: skip
    assert facts["frames"] == 3 and facts["cut"] and seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("content", [b"", b"hello", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
                                     b"\x00\x00\x00\x18ftypmp42"])  # fmt: skip
def test_what_is_no_video_is_refused(content, tmp_path, handlers):
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(gr.Error) as told:
        handlers.video(str(tmp_path / "x.mp4"), MODEL)
    assert str(tmp_path) not in str(told.value)


# -- what is refused --------------------------------------------------------------------------------------


def forged(demo, **file) -> str:
    """What the server says to a request that names a file itself."""
    import httpx

    data = [{"meta": {"_type": "gradio.FileData"}, **file}, MODEL, "", "automatic", [], "as it is", None, 0.5, 0.5]
    answer = httpx.post(f"{demo.url}gradio_api/call/segment", json={"data": data}, timeout=60)
    if answer.status_code != 200:
        return answer.text
    event = answer.json()["event_id"]
    return httpx.get(f"{demo.url}gradio_api/call/segment/{event}", timeout=60).text


def test_files_of_the_machine_are_neither_served_nor_read(demo, photo):
    import httpx

    source = Path(hfseg.__file__).resolve()
    for path in ("/etc/passwd", str(source), f"{demo.cache}/../other-model/config.json", "../../etc/passwd"):
        assert httpx.get(f"{demo.url}gradio_api/file={path}").status_code in (403, 404), path
    # A picture that was never uploaded, an address of this machine, and one that says file:.
    for path in (str(photo), str(source), f"{demo.url}config", "file:///etc/passwd"):
        said = forged(demo, path=path)
        assert "event: complete" not in said, path
        assert "root:" not in said and "semantic" not in said
    assert "event: complete" not in forged(demo, path="x", url=f"{demo.url}config")


def test_uploads_have_a_largest_size(demo):
    import httpx

    answer = httpx.post(f"{demo.url}gradio_api/upload", files={"files": ("x.png", bytes(21_000_000))}, timeout=60)
    assert answer.status_code == 413


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header says more than it holds."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), [
    ("bomb.png", bomb(12_000, 12_000), "more than 24 million pixels"),
    ("huge.png", bomb(60_000, 60_000), "more than 24 million pixels"),
    ("text.png", b"hello", "not an image file"),
    ("empty.jpg", b"", "empty"),
    ("picture.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS is not opened here"),
    ("picture.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not an image file"),
])  # fmt: skip
def test_bombs_and_what_is_no_image_are_refused_in_words(name, content, said, tmp_path, handlers):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(gr.Error) as told:
        segment(handlers, str(tmp_path / name), MODEL)
    text = told.value.message
    assert said in text and name not in text and str(tmp_path) not in text and not told.value.print_exception


def test_a_truncated_image_is_refused_in_words(photo, tmp_path, handlers):
    whole = io.BytesIO()
    Image.open(photo).save(whole, "jpeg")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(gr.Error, match="broken or truncated"):
        segment(handlers, str(tmp_path / "half.jpg"), MODEL)


def test_arrays_are_measured_by_their_header(tmp_path):
    from hfseg.demo.limits import check_size

    for name, shape in (("large.npy", (9000, 9000, 1)), ("fine.npy", (90, 90, 1))):
        np.lib.format.open_memmap(tmp_path / name, "w+", np.uint8, shape)
    import tifffile

    tifffile.memmap(tmp_path / "large.tif", shape=(9000, 9000), dtype=np.uint8)
    check_size(str(tmp_path / "fine.npy"))
    for name in ("large.npy", "large.tif"):
        with pytest.raises(UserError, match="pixels"):
            check_size(str(tmp_path / name))


def pictures(folder: Path, photo: Path) -> dict[str, Path]:
    """One scene in every kind of file that gradio would spoil."""
    image = Image.open(photo)
    files = {}
    rotated = Image.Exif()
    rotated[0x0112] = 6
    alpha = image.convert("RGBA")
    alpha.paste((255, 0, 0, 0), (0, 0, 40, 40))
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 12
    for name, one, options in (
        ("animated.gif", image.convert("P"), {"save_all": True, "append_images": [Image.new("P", image.size)]}),
        ("palette.png", image.quantize(64), {}), ("cmyk.jpg", image.convert("CMYK"), {}), ("alpha.png", alpha, {}),
        ("rotated.jpg", image, {"exif": rotated}), ("sixteen.png", Image.fromarray(deep), {}),
        ("bilevel.png", image.convert("1"), {}), ("grey.webp", image.convert("L"), {}),
    ):  # fmt: skip
        files[name] = folder / name
        one.save(files[name], **options)
    return files


def test_every_kind_of_picture_is_read_as_the_segmenter_reads_it(tmp_path, photo, handlers, segmenter):
    for name, file in pictures(tmp_path, photo).items():
        shown, expected = segment(handlers, str(file), MODEL), segmenter(file)
        np.testing.assert_array_equal(ids_of(shown["maps"][0]), expected.semantic_map, err_msg=name)
        source = Image.open(shown["source"]["path"])
        assert source.size == expected.semantic_map.shape[::-1] == (shown["width"], shown["height"]), name
        assert np.abs(np.asarray(source).astype(float) - expected.image).mean() < 25, name
    sideways = Image.open(tmp_path / "rotated.jpg")
    assert segment(handlers, str(tmp_path / "rotated.jpg"), MODEL)["width"] == ImageOps.exif_transpose(sideways).width


BAD = [({"model": "nobody/nothing"}, "no model"), ({"model": 7}, "no model"), ({"compare_with": "../x"}, "no model"),
       ({"tiles": "1"}, "Tiles"), ({"views": ["3.5"]}, "View"), ({"views": [["x"]]}, "View"),
       ({"longest_side": 9}, "Longest side"), ({"task": "both"}, "task"), ({"threshold": 2}, "Threshold"),
       ({"mask_threshold": "x"}, "Mask_threshold")]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), BAD)
def test_every_argument_is_checked(changed, said, handlers, photo):
    with pytest.raises(gr.Error, match=said):
        segment(handlers, **{"image": str(photo), "model": MODEL, **changed})


@pytest.mark.parametrize("request_", [
    None, {}, {"classes": []}, {"classes": [{"id": -1, "name": "x"}]}, {"classes": [{"id": 1, "name": 3}]},
    {"classes": [{"id": 0, "name": "x", "colour": "url(x)"}]}, {"classes": [{"id": 0, "name": "x"}], "opacity": 7},
    {"classes": [{"id": 0, "name": "x"}], "hidden": ["a"]}, {"classes": [{"id": 70000, "name": "x"}]},
])  # fmt: skip
def test_exports_of_anything_else_are_refused(request_, handlers, tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "map.png")
    with pytest.raises(gr.Error):
        handlers.export(str(tmp_path / "map.png"), "coco", None, request_)


def test_exports_of_maps_that_are_none_are_refused(handlers, tmp_path, photo):
    good = {"classes": [{"id": 0, "name": HOSTILE}], "name": "../../etc/x"}
    Image.new("L", (4, 3)).save(tmp_path / "map.png")
    file = Path(handlers.export(str(tmp_path / "map.png"), "geojson", None, good))
    assert file.name == "x_geojson" or file.is_file()
    for semantic_map, kind, source in ((str(photo), "coco", None), ("nothing", "coco", None), (None, "coco", None),
                                       (str(tmp_path / "map.png"), "exe", None),
                                       (str(tmp_path / "map.png"), "overlay", None),
                                       (str(tmp_path / "map.png"), "overlay", str(photo))):  # fmt: skip
        with pytest.raises(gr.Error):
            handlers.export(semantic_map, kind, source, good)


@pytest.mark.parametrize("code", [7, "é", "0", "~~~~", "<1"])
def test_masks_that_are_none_are_refused(code, handlers, tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "map.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "ids.png")
    request = {"classes": [{"id": 0, "name": "x"}], "segments": [{"id": 0, "label_id": 0, "rle": code}]}
    with pytest.raises(gr.Error):
        handlers.export(str(tmp_path / "map.png"), "coco", None, request, str(tmp_path / "ids.png"))


@pytest.mark.parametrize("prompts", [None, {}, {"points": "x"}, {"points": [[1, 2]]}, {"points": [[1, 2, 5]]},
                                     {"points": [[1, 2, 1]] * 200}, {"box": [1, 2, 3]}, {"points": [[9e9, 2, 1]]}])
def test_prompts_of_anything_else_are_refused(prompts, handlers, photo, demo):
    with pytest.raises(gr.Error):
        handlers.prompt(str(photo), demo.shown[3], prompts)
    with pytest.raises(gr.Error, match="no promptable model"):
        handlers.prompt(str(photo), MODEL, {"points": [[1, 2, 1]]})


def test_names_of_models_show_no_path_and_a_wrong_one_is_told_at_once(demo, tmp_path):
    from hfseg.demo.models import Models, default_model

    assert demo.shown[1].endswith("/other-model") and not demo.shown[1].startswith("/")
    with pytest.raises(UserError, match="no folder"):
        Models([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="no model to show"):
        Models([])
    assert default_model(tmp_path) == MODEL
    for number, name in enumerate(("quickstart", "quickstart-2")):
        (tmp_path / name).mkdir()
        for file in ("model.safetensors", "recipe.yaml"):
            (tmp_path / name / file).write_text("")
        import os

        os.utime(tmp_path / name / "model.safetensors", (number, number))
    assert default_model(tmp_path).endswith("quickstart-2")


def test_the_command_says_what_is_wrong(capsys, tmp_path, monkeypatch):
    from hfseg import demo
    from hfseg.cli import main

    assert main(["demo", str(tmp_path / "nothing")]) == 2 and "no folder" in capsys.readouterr().err
    assert main(["demo", "--port", "many"]) == 2
    asked = {}
    monkeypatch.setattr(demo, "launch", lambda models, **settings: asked.update(settings, models=models))
    assert main(["demo", "a/b", "c/d", "--port", "0"]) == 0
    assert asked == {"models": ["a/b", "c/d"], "server_port": 0, "server_name": None}


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(tmp_path, demo):
    import shutil

    from hfseg.demo.models import Models

    shutil.copytree(demo.models[1], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"x")
    models = Models([str(tmp_path / "broken")])
    [name] = models.names
    with pytest.raises(UserError, match="cannot load"):
        models.get(name)
    assert models.state(name)[0] == "failed"
    shutil.copy(Path(demo.models[1]) / "model.safetensors", tmp_path / "broken")
    assert models.get(name).id2label and models.state(name) == ("ready", "")


def test_limits_of_queue_sessions_and_disk(demo):
    from hfseg.demo import launch_settings
    from hfseg.demo.limits import WAITING

    settings, page = launch_settings(), demo.page
    assert page._queue.max_size == WAITING and page.delete_cache == (3600, 3600)
    assert settings["max_file_size"] == "20mb" and settings["state_session_capacity"] <= 200
    assert "allowed_paths" not in settings and settings["share"] is False and not page.analytics_enabled
    limits = {(one.concurrency_id, one.concurrency_limit) for one in page.fns.values() if one.concurrency_id == "model"}
    assert limits == {("model", 1)}


# -- many at once -----------------------------------------------------------------------------------------


def test_fifty_visitors_at_once_are_served_or_told(demo, photo):
    import httpx

    async def visit(client: httpx.AsyncClient) -> str:
        with photo.open("rb") as file:
            [path] = (await client.post("gradio_api/upload", files={"files": (photo.name, file)})).json()
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, MODEL, "",
                "automatic", [], "as it is", None, 0.5, 0.5]
        event = (await client.post("gradio_api/call/segment", json={"data": data})).json()["event_id"]
        return (await client.get(f"gradio_api/call/segment/{event}")).text

    async def all_of_them(count: int) -> list[str]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=demo.url, timeout=200, limits=limits) as client:
            return await asyncio.gather(*(visit(client) for _ in range(count)))

    answers = asyncio.run(all_of_them(50))
    served = sum("event: complete" in answer and "ids" in answer for answer in answers)
    told = sum("queue is full" in answer.lower() for answer in answers)
    assert served + told == 50 and served >= 40

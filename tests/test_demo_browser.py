"""The demo in a real browser: what is painted, toggled, exported, refused; and that nothing leaves this machine."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hfseg
from hfseg.ops import rle

from demo_page import (  # isort: skip  # noqa: F401
    HOSTILE, MODEL, browser_fixture, demo_fixture, page_fixture, photo_fixture, write_video,
)  # fmt: skip

pytest.importorskip("gradio")
from hfseg.demo.encoding import message

VIEWER = "window.hfsegViewer"


@pytest.fixture(scope="module")
def expected(photo) -> hfseg.Segmentation:
    return hfseg.Segmenter.from_pretrained(MODEL)(photo)


def send(page, file) -> None:
    """Uploads a photo, which starts the model, and waits until its mask is painted."""
    before = page.get_attribute(".hv", "data-complete")
    if page.locator("#photo button[aria-label='Remove Image'], #photo button[aria-label='Clear']").count():
        page.locator("#photo button[aria-label='Remove Image'], #photo button[aria-label='Clear']").first.click()
        page.wait_for_selector("#photo img", state="detached")  # the field for files is another one then
    page.set_input_files("#photo input[type=file]", str(file))
    wait_painted(page, before)


def wait_painted(page, before) -> None:
    page.wait_for_function("before => document.querySelector('.hv').dataset.complete !== before", arg=before)


def choose(page, dropdown: str, text: str) -> None:
    page.click(f"#{dropdown} input")
    page.get_by_role("option", name=text, exact=True).click()


def ids(page, layer: int = 0) -> np.ndarray:
    height, width = page.evaluate(f"[{VIEWER}.size.height, {VIEWER}.size.width]")
    return np.array(page.evaluate(f"{VIEWER}.layers[{layer}].ids.join()").split(","), np.int64).reshape(height, width)


def canvas(page) -> np.ndarray:
    """What is painted, as RGBA."""
    data = page.evaluate(f"{VIEWER}.paintNow(); document.querySelector('.hv-stage canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGBA"))


def requests_during(page, act) -> list[str]:
    found = []
    page.on("request", lambda request: found.append(request.url))
    act()
    return [url for url in found if not url.startswith(("blob:", "data:"))]


def download(page, kind: str) -> tuple[Path, str]:
    with page.expect_download() as started:
        page.click(f"[data-export={kind}]")
    return Path(started.value.path()), started.value.suggested_filename


def test_ids_in_the_browser_are_the_segmenters(page, photo, expected):
    send(page, photo)
    np.testing.assert_array_equal(ids(page), expected.semantic_map)
    confidence = np.array(page.evaluate(f"{VIEWER}.layers[0].confidence.join()").split(","), float) / 255
    assert np.abs(confidence.reshape(expected.semantic_map.shape) - expected.confidence).max() < 0.003

    rows = page.locator(".hv-legend li")
    areas = expected.areas()
    assert [rows.nth(i).get_attribute("data-name") for i in range(rows.count())] == list(areas)
    assert rows.nth(0).locator(".hv-share").inner_text() == f"{100 * areas['background']['share']:.1f} %"

    times = page.inner_text(".hv-times")
    assert "203 × 141 pixels" in times and "forward" in times and "paint" in times and "transfer" in times


def test_the_mask_view_paints_each_class_in_its_colour(page, photo, expected):
    send(page, photo)
    page.click("[data-act=outlines]")
    page.click("[data-view=mask]")
    painted = canvas(page)
    x, y, scale = page.evaluate(f"(({{x, y, scale}}) => [x, y, scale])({VIEWER}.stage.transform)")
    height, width = expected.semantic_map.shape
    for row in range(0, height, 7):
        for column in range(0, width, 5):
            there = painted[int(y + (row + 0.5) * scale), int(x + (column + 0.5) * scale), :3]
            assert tuple(there) == tuple(expected.palette[expected.semantic_map[row, column]])


def test_looking_needs_no_server(page, photo):
    send(page, photo)
    pictures = [canvas(page)]

    def look():
        page.locator(".hv-opacity input").fill("90")
        pictures.append(canvas(page))
        page.uncheck(".hv-legend li[data-name=background] input")
        pictures.append(canvas(page))
        page.locator(".hv-legend li[data-name=disk]").dblclick(position={"x": 120, "y": 8})
        pictures.append(canvas(page))
        for view in ("confidence", "image", "mask", "wipe"):
            page.click(f"[data-view={view}]")
            pictures.append(canvas(page))
        page.hover(".hv-stage")
        assert "% sure" in page.inner_text(".hv-readout")

    assert requests_during(page, look) == []
    assert all((one != other).any() for one, other in itertools.pairwise(pictures))
    assert page.locator(".hv-legend input:checked").count() == 1
    assert page.input_value(".hv-opacity input") == "90" and page.inner_text(".hv-opacity output") == "90 %"


def test_hovering_a_class_dims_the_others_but_not_the_image(page, photo, expected):
    send(page, photo)
    plain = canvas(page)
    page.hover(".hv-legend li[data-name=disk]")
    hovered = canvas(page)
    page.click("[data-view=image]")
    page.mouse.move(5, 5)
    image = canvas(page)
    x, y, scale = page.evaluate(f"(({{x, y, scale}}) => [x, y, scale])({VIEWER}.stage.transform)")

    def distance(picture, name):  # from the image, inside a class
        rows, columns = np.nonzero(expected.semantic_map == expected.semantic_map.dtype.type(
            next(i for i, one in expected.id2label.items() if one == name)))
        at = (y + (rows + 0.5) * scale).astype(int), (x + (columns + 0.5) * scale).astype(int)
        return np.abs(picture[at].astype(float) - image[at]).mean()

    assert distance(hovered, "disk") > distance(plain, "disk") > 0
    assert distance(hovered, "background") < 0.4 * distance(plain, "background")


def test_keys_work_while_the_viewer_has_focus(page, photo):
    send(page, photo)
    page.focus(".hv-stage")
    for key, view in {"m": "mask", "i": "image", "u": "confidence", "b": "wipe", "o": "overlay"}.items():
        page.keyboard.press(key)
        assert page.get_attribute(f"[data-view={view}]", "aria-checked") == "true"
    page.keyboard.press("]")
    assert page.inner_text(".hv-opacity output") == "60 %"
    page.keyboard.press("[")
    shown = canvas(page)
    page.keyboard.press("Space")
    assert (canvas(page) != shown).any()
    page.keyboard.press("Space")
    assert (canvas(page) == shown).all()
    page.keyboard.press("+")
    assert page.get_attribute(".hv-stage", "data-zoomed") == "true"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("f")
    assert page.get_attribute(".hv-stage", "data-zoomed") == "false" and (canvas(page) == shown).all()
    page.focus("[data-view=overlay]")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("[data-view=mask]", "aria-checked") == "true"


def test_the_wheel_scrolls_the_page_unless_the_viewer_is_meant(page, photo):
    send(page, photo)
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur()")
    page.hover(".hv-stage")
    page.mouse.wheel(0, -200)
    assert page.get_attribute(".hv-stage", "data-zoomed") == "false"
    page.focus(".hv-stage")
    page.mouse.wheel(0, -400)
    page.wait_for_selector(".hv-stage[data-zoomed=true]")
    box = page.locator(".hv-stage").bounding_box()
    before = page.evaluate(f"{VIEWER}.stage.transform.x")
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 180, steps=4)
    page.mouse.up()
    assert page.evaluate(f"{VIEWER}.stage.transform.x") < before


def test_before_and_after_have_a_border_that_moves(page, photo):
    send(page, photo)
    page.click("[data-view=wipe]")
    middle = canvas(page)
    handle = page.locator(".hv-handle")
    box = handle.bounding_box()
    page.mouse.move(box["x"] + 14, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] - 150, box["y"] + 60, steps=5)
    page.mouse.up()
    assert int(handle.get_attribute("aria-valuenow")) < 45 and (canvas(page) != middle).any()
    handle.focus()
    page.keyboard.press("End")
    end = canvas(page)
    page.click("[data-view=image]")
    assert (canvas(page) == end).all()


def test_exports_hold_what_the_segmenter_says(page, photo, expected):
    send(page, photo)
    file, name = download(page, "map")
    stored = Image.open(file)
    assert name == "my_photo_semantic_map.png" and stored.mode == "P"
    np.testing.assert_array_equal(np.asarray(stored), expected.semantic_map)
    assert stored.getpalette()[:6] == [value for colour in expected.palette[:2] for value in colour]

    file, name = download(page, "coco")
    coco = json.loads(file.read_text())
    assert name.endswith(".json") and [one["name"] for one in coco["categories"]] == list(expected.id2label.values())
    assert [one["segmentation"] for one in coco["annotations"]] == \
        [one["segmentation"] for one in expected.to_coco()]

    file, _ = download(page, "geojson")
    found = json.loads(file.read_text())
    assert [one["geometry"] for one in found["features"]] == \
        [one["geometry"] for one in json.loads(json.dumps(expected.to_geojson()))["features"]]

    page.uncheck(".hv-legend li[data-name=background] input")
    file, _ = download(page, "cutout")
    cut = np.asarray(Image.open(file))
    np.testing.assert_array_equal(cut[..., 3] > 0, expected.semantic_map != 0)
    np.testing.assert_array_equal(cut[..., :3], expected.image)

    page.check(".hv-legend li[data-name=background] input")
    file, _ = download(page, "overlay")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(expected.overlay(0.55)))


def test_many_classes_and_names_that_are_no_markup(page, demo, photo):
    choose(page, "model", demo.shown[2])
    send(page, photo)
    segmenter = hfseg.Segmenter.from_pretrained(demo.models[2])
    expected = segmenter(photo)
    assert expected.semantic_map.max() > 255
    np.testing.assert_array_equal(ids(page), expected.semantic_map)
    names = page.locator(".hv-legend .hv-name").all_inner_texts()
    assert HOSTILE in names and page.locator(".hv img").count() == 0
    if len(names) > 12:
        page.fill(".hv-search", "onerror")
        assert page.locator(".hv-legend li:visible").count() == 1
    file, _ = download(page, "map")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), expected.semantic_map)
    file, _ = download(page, "coco")
    named = {one["id"]: one["name"] for one in json.loads(file.read_text())["categories"]}
    assert named[299] == HOSTILE
    assert [rle.area(one["segmentation"]) for one in json.loads(file.read_text())["annotations"]] == \
        [entry["area"] for entry in expected.segments_info]


def test_two_models_side_by_side_and_where_they_differ(page, demo, photo, expected):
    choose(page, "compare", demo.shown[1])
    send(page, photo)
    other = hfseg.Segmenter.from_pretrained(demo.models[1])(photo)
    np.testing.assert_array_equal(ids(page, 0), expected.semantic_map)
    np.testing.assert_array_equal(ids(page, 1), other.semantic_map)
    assert page.locator(".hv-labels span").all_inner_texts()[0] == MODEL
    assert page.locator(".hv-legend li").first.locator(".hv-share").count() == 2
    side = canvas(page)
    page.click("[data-view=difference]")
    share = (expected.semantic_map == other.semantic_map).mean()
    page.get_by_text(f"{100 * share:.1f} % of the pixels agree", exact=True).wait_for()  # it is painted a frame later
    assert canvas(page).shape != side.shape  # one picture instead of two
    page.click("[data-view=wipe]")
    assert page.inner_text("[data-view=wipe]") == "Wipe"


def test_what_is_no_image_is_refused_in_words(page, tmp_path, photo):
    (tmp_path / "<b>text.png").write_text("hello")
    page.set_input_files("#photo input[type=file]", str(tmp_path / "<b>text.png"))
    toast = page.locator(".toast-body")
    toast.wait_for()
    assert "not an image file" in toast.inner_text() and "traceback" not in toast.inner_text().lower()
    assert str(tmp_path) not in toast.inner_text() and page.locator(".toast-body b").count() == 0
    page.wait_for_selector(".hv[aria-busy=false]")
    send(page, photo)  # and the next one works


def test_an_example_runs_when_it_is_clicked(page):
    page.locator("#examples button").first.click()
    wait_painted(page, "0")
    assert page.evaluate(f"{VIEWER}.size.width") == 384 and page.locator(".hv-legend li").count() > 2
    page.wait_for_selector("#status span[data-state=ready]")


@pytest.mark.parametrize("page", ["?__theme=dark"], indirect=True)
def test_dark_mode(page, photo):
    send(page, photo)
    ground, text = (page.eval_on_selector(name, f"one => getComputedStyle(one).{what}") for name, what in
                    ((".gradio-container", "backgroundColor"), (".hv-name", "color")))  # fmt: skip
    dark, light = (np.mean([float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]])
                   for colour in (ground, text))  # fmt: skip
    assert dark < 60 and light > 180


def test_a_phone_shows_everything_in_one_column(page, photo):
    page.set_viewport_size({"width": 390, "height": 844})
    send(page, photo)
    inputs, stage, legend = (page.locator(name).bounding_box() for name in ("#inputs", ".hv-stage", ".hv-legend"))
    assert inputs["y"] + inputs["height"] <= stage["y"] and stage["y"] + stage["height"] <= legend["y"]
    assert stage["width"] > 320 and stage["height"] > 180
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_can_be_named(page):
    nameless = page.evaluate("""() => [...document.querySelectorAll('.hv button, .hv input, .hv [role]')].filter(
        (one) => !(one.getAttribute('aria-label') || one.textContent.trim() || one.closest('label')
                   || one.labels?.length || one.getAttribute('aria-live'))).map((one) => one.outerHTML)""")
    assert nameless == []


def drag(page, *points) -> None:
    """Drags over the image, by its own coordinates."""
    box = page.locator(".hv-stage").bounding_box()
    x, y, scale = page.evaluate(f"(({{x, y, scale}}) => [x, y, scale])({VIEWER}.stage.transform)")
    ratio = page.evaluate(f"{VIEWER}.stage.ratio")
    places = [(box["x"] + (x + (column + 0.5) * scale) / ratio, box["y"] + (y + (row + 0.5) * scale) / ratio)
              for column, row in points]  # fmt: skip
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def test_brush_and_eraser_correct_a_map_and_are_undone(page, photo, expected):
    send(page, photo)
    page.click("[data-tool=brush]")
    page.select_option(".hv-class-choice", "5")
    page.locator(".hv-brush-size input").fill("8")
    drag(page, (40, 40), (80, 60))
    painted = ids(page)
    changed = painted != expected.semantic_map
    assert set(painted[changed]) == {5} and painted[40, 40] == 5 and painted[60, 80] == 5 and painted[50, 60] == 5
    assert not changed[:30].any() and not changed[:, 100:].any()
    assert page.locator(".hv-legend li[data-name=star]").count() == 1

    page.select_option(".hv-class-choice", "new")
    page.fill(".hv-new-class", HOSTILE)
    drag(page, (120, 100), (121, 100))
    assert ids(page)[100, 120] == 7 and HOSTILE in page.locator(".hv-legend .hv-name").all_inner_texts()
    page.click("[data-tool=eraser]")
    drag(page, (120, 100), (121, 100))
    corrected = ids(page)
    assert corrected[100, 120] == 255
    file, _ = download(page, "map")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), corrected)
    file, _ = download(page, "coco")
    areas = {one["category_id"]: one["area"] for one in json.loads(file.read_text())["annotations"]}
    assert areas == {i: (corrected == i).sum() for i in np.unique(corrected) if i != 255}

    page.focus(".hv-stage")
    for _ in range(3):
        page.keyboard.press("Control+z")
    np.testing.assert_array_equal(ids(page), expected.semantic_map)
    page.keyboard.press("Control+Shift+z")
    np.testing.assert_array_equal(ids(page), painted)


def test_clicks_and_boxes_become_masks_of_a_class(page, demo, photo):
    send(page, photo)
    before = ids(page)
    prompter = hfseg.Prompter.from_pretrained(demo.models[3])
    encoded = prompter.encode(photo)

    def answered(act):
        last = page.get_attribute(".hv", "data-prompted")
        act()
        page.wait_for_function(f"last => (({VIEWER}.root.dataset.prompted || null) !== last)", arg=last)

    page.click("[data-tool=point]")
    answered(lambda: drag(page, (60, 70), (60, 70)))
    expected, score = prompter.predict(encoded, [(60.5, 70.5)])
    found = np.array(page.evaluate(f"{VIEWER}.editor.prompts.mask.join()").split(","), int).reshape(before.shape)
    np.testing.assert_array_equal(found > 0, expected)
    assert f"score {score:.2f}" in page.inner_text(".hv-prompting output")

    page.click("[data-tool=box]")
    answered(lambda: drag(page, (20, 20), (90, 100)))
    mask, _ = prompter.predict(encoded, box=page.evaluate(f"{VIEWER}.editor.prompts.box"))
    page.select_option(".hv-class-choice", "new")
    page.fill(".hv-new-class", "my thing")
    page.click("[data-act=add]")
    np.testing.assert_array_equal(ids(page), np.where(mask, 7, before))
    page.click("[data-act=undo]")
    np.testing.assert_array_equal(ids(page), before)


def show_cats(page, photo, **more) -> dict:
    """Hands a result with two objects to the viewer, as the server does."""
    segment_map = np.zeros((141, 203), np.int64)
    segment_map[20:60, 30:90], segment_map[70:120, 100:160] = 3, 70000
    result = hfseg.Segmentation(np.where(segment_map > 0, 1, 0), {0: "floor", 1: "cat"}, [(9, 9, 9), (200, 30, 30)],
                                image=np.asarray(Image.open(photo)), segment_map=segment_map,
                                segments=[{"id": 3, "label_id": 1, "score": 0.875},
                                          {"id": 70000, "label_id": 1, "score": 0.5, **more}])  # fmt: skip
    send(page, photo)  # its files are served, and have addresses of the same form
    address = page.evaluate(f"{VIEWER}.message.source.url")
    sent = message({"cats": result}, result.image, str(photo), {"forward": 0.01})
    for one in (sent["source"], sent["maps"][0]["ids"], sent["maps"][0]["segments"]):
        one["url"] = address.partition("file=")[0] + "file=" + one["path"]
    page.evaluate(f"sent => {VIEWER}.take(sent)", json.loads(json.dumps(sent)))
    assert page.get_attribute(".hv", "data-painted") == str(sent["number"])
    return sent


def test_objects_are_listed_outlined_and_exported_whole(page, photo):
    whole = np.zeros((141, 203), bool)
    whole[60:120, 80:160] = True  # the map shows a part of it
    show_cats(page, photo, rle=rle.encode(whole))
    rows = page.locator(".hv-objects li")
    assert [rows.nth(i).inner_text().split("\n") for i in range(2)] == [
        ["cat #3", "0.88", "2,400"], ["cat #70000", "0.50", "4,800"]]
    page.select_option(".hv-objects select", "area")
    assert rows.nth(0).inner_text().startswith("cat #70000")
    assert page.is_hidden("[data-view=confidence]") and page.is_visible("[data-export=ids]")

    plain = canvas(page)
    rows.nth(1).hover()
    page.wait_for_timeout(100)
    assert (canvas(page) != plain).any()
    rows.nth(1).click()
    assert page.get_attribute(".hv", "data-segment") == "3" and "60 × 40 at 30, 20" in page.inner_text(".hv-segment")
    page.uncheck(".hv-legend li[data-name=cat] input")
    assert not rows.nth(0).is_visible() and page.inner_text(".hv-objects .hv-count") == "0"
    page.check(".hv-legend li[data-name=cat] input")

    file, name = download(page, "ids")
    assert name.endswith("_segment_map.png")
    stored = np.asarray(Image.open(file)).astype(int) @ [1, 256, 65536]
    assert np.unique(stored).tolist() == [0, 3, 70000] and (stored[20:60, 30:90] == 3).all()
    file, _ = download(page, "coco")
    found = {one["id"]: one for one in json.loads(file.read_text())["annotations"]}
    assert sorted((one["area"], one["score"]) for one in found.values()) == [(2400, 0.875), (4800, 0.5)]


def test_a_corrected_object_is_what_the_map_shows(page, photo):
    whole = np.zeros((141, 203), bool)
    whole[60:120, 80:160] = True
    show_cats(page, photo, rle=rle.encode(whole))
    page.click("[data-tool=eraser]")
    drag(page, (110, 80), (111, 80))
    file, _ = download(page, "coco")
    areas = sorted(one["area"] for one in json.loads(file.read_text())["annotations"])
    assert areas[0] == 2400 and areas[1] < 3000
    page.click("[data-tool=move]")


def test_segments_are_selected_by_a_click(page, photo):
    show_cats(page, photo)
    plain = canvas(page)
    drag(page, (50, 40), (50, 40))
    assert page.get_attribute(".hv", "data-segment") == "3" and (canvas(page) != plain).any()
    told = page.inner_text(".hv-segment")
    assert "cat #3" in told and "0.875" in told and "2,400 px" in told and "60 × 40 at 30, 20" in told
    page.hover(".hv-stage", position={"x": 5, "y": 5})
    page.focus(".hv-stage")
    page.keyboard.press("Escape")
    assert not page.is_visible(".hv-segment")
    file, _ = download(page, "coco")
    found = json.loads(file.read_text())["annotations"]
    assert [(one["area"], one["bbox"], one["score"]) for one in found] == \
        [(2400, [30, 20, 60, 40], 0.875), (3000, [100, 70, 60, 50], 0.5)]


def test_a_video_plays_with_its_classes_beside_it(page, tmp_path):
    page.get_by_role("tab", name="Video").click()
    page.set_input_files("#video-input input[type=file]", str(write_video(tmp_path / "clip.mp4", 3)))
    page.wait_for_selector("#video-input video")
    page.click("#video-segment")
    page.wait_for_function("document.querySelector('#video-result video')?.readyState >= 2")
    assert page.eval_on_selector("#video-result video", "one => [one.videoWidth, one.videoHeight]") == [200, 74]
    assert page.input_value("#video-facts :is(textarea, input)").startswith("3 frames")


def test_the_webcam_is_segmented(page):
    page.get_by_role("tab", name="Webcam").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#webcam-input .capture-button").click()
    page.wait_for_function("document.querySelector('#webcam-result img')?.naturalWidth === 480")

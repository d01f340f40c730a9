"""What label maps and class files of other people hold, and the splits they come in: read right, or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import tifffile
from PIL import Image

import hfseg
from hfseg.cli import main
from hfseg.data import load_data
from hfseg.data.images import decode_image, decode_map, is_lossy
from hfseg.errors import UserError
from hfseg.evaluation import evaluate
from hfseg.recipe import LabelsConfig
from hfseg.recipe_reading import load_recipe
from runs import small_recipe

SIZE = (40, 48)
COLOURS = [[0, 0, 0], [200, 0, 0], [0, 160, 0], [30, 60, 220]]


def ids(seed: int, classes: int = 3) -> np.ndarray:
    """Blocks of class ids, all of them present."""
    blocks = np.random.default_rng(seed).integers(0, classes, (5, 6), dtype=np.uint8)
    blocks.flat[:classes] = np.arange(classes)
    return np.kron(blocks, np.ones((8, 8), np.uint8))


def write(root: Path, stored=lambda i: Image.fromarray(ids(i)), ending: str = ".png", count: int = 4, where: str = "{}",
          **options) -> Path:
    """A folder of photographs and maps; `where` holds images and masks in place of {}."""
    for i in range(count):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        for role, content, end in (("images", image, ".jpg"), ("masks", stored(i), ending)):
            file = root / where.format(role) / f"im{i}{end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            content.save(file, **(options if role == "masks" else {}))
    return root


def maps(path, **options) -> list[np.ndarray]:
    data = load_data(path, validation_fraction=0, **options)
    return [data.read("train", i).semantic_map for i in range(len(data["train"]))]


def complaint(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        maps(path, **options)
    return str(caught.value)


# -- palettes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_palette_images_whose_indices_differ_are_read_by_colour(tmp_path, declared, ending):
    def shuffled(i):
        order = np.random.default_rng(10 + i).permutation(4)
        image = Image.fromarray(order.astype(np.uint8)[ids(i, 4)])
        image.putpalette(np.array(COLOURS, np.uint8)[np.argsort(order)].tobytes())
        return image

    write(tmp_path, shuffled, ending)
    if declared:
        (tmp_path / "classes.json").write_text(json.dumps({"names": list("abcd"), "palette": COLOURS}))
    data = load_data(tmp_path, validation_fraction=0)
    assert any("by their colours" in note for note in data.notes)
    for i in range(4):
        painted = np.array(data.schema.palette)[data.read("train", i).semantic_map]
        np.testing.assert_array_equal(painted, np.array(COLOURS)[ids(i, 4)])


def test_palette_images_of_one_palette_are_read_by_index(tmp_path):
    def painted(i):
        image = Image.fromarray(ids(i))
        image.putpalette(np.array(COLOURS, np.uint8).tobytes())
        return image

    write(tmp_path, painted)
    (tmp_path / "classes.json").write_text(json.dumps({"names": list("abc"), "palette": COLOURS[:3]}))
    for i, found in enumerate(maps(tmp_path)):
        np.testing.assert_array_equal(found, ids(i))


# -- lossy maps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_lossy_maps_are_two_classes_or_refused(tmp_path, ending):
    write(tmp_path / "two", lambda i: Image.fromarray((ids(i) > 0) * np.uint8(255)), ending, quality=75)
    for i, found in enumerate(maps(tmp_path / "two")):
        assert (found == (ids(i) > 0)).mean() > 0.99
    for name, levels in (("three", [0, 128, 255]), ("ids", [0, 1, 2])):
        levels = np.array(levels, np.uint8)
        write(tmp_path / name, lambda i, levels=levels: Image.fromarray(levels[ids(i)]), ending, quality=75)
        assert "changes values" in complaint(tmp_path / name) or "different colours" in complaint(tmp_path / name)


def test_lossy_colour_masks_are_split_by_their_brightest_channel(tmp_path):
    red = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    write(tmp_path, lambda i: Image.fromarray(red[(ids(i) > 0).astype(int)]), ".jpg", quality=85)
    for i, found in enumerate(maps(tmp_path, labels=LabelsConfig(binary=True))):
        assert (found == (ids(i) > 0)).mean() > 0.97


def test_what_is_lossy(tmp_path):
    image = Image.fromarray(ids(0))
    for name, options, lossy in (("a.png", {}, False), ("a.jpg", {}, True), ("a.webp", {}, True),
                                 ("b.webp", {"lossless": True}, False), ("a.jp2", {"irreversible": True}, True),
                                 ("b.jp2", {"irreversible": False}, False)):  # fmt: skip
        image.save(tmp_path / name, **options)
        assert is_lossy(str(tmp_path / name)) == is_lossy((tmp_path / name).read_bytes()) == lossy, name


# -- values that a sample of the maps does not show ---------------------------------------------------------


def test_an_assumed_binary_coding_refuses_a_third_value(tmp_path):
    write(tmp_path, lambda i: Image.fromarray((ids(i) > 0) * np.uint8(255)))
    data = load_data(tmp_path, validation_fraction=0)
    Image.fromarray((ids(2) * 127).astype(np.uint8)).save(tmp_path / "masks/im2.png")
    with pytest.raises(UserError, match="127"):
        data.read("train", 2)
    binary = load_data(tmp_path, validation_fraction=0, labels=LabelsConfig(binary=True))  # asked for, so it holds
    assert (binary.read("train", 2).semantic_map == (ids(2) > 0)).all()


def test_init_sees_a_rare_class(tmp_path, capsys):
    write(tmp_path / "d", lambda i: Image.fromarray(ids(i, 4 if i in (17, 70) else 3)), count=90)
    assert main(["init", str(tmp_path / "d")]) == 0
    text = capsys.readouterr().out
    (tmp_path / "r.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert recipe.data.labels.names == [f"class_{i}" for i in range(4)] and recipe.data.on_bad_sample == "stop"


@pytest.mark.parametrize("value, kind", [(65535, np.uint16), (-1, np.int32)])
def test_usual_values_for_nothing(tmp_path, value, kind):
    def stored(i):
        content = ids(i).astype(kind)
        content[:3] = value
        return content

    write(tmp_path, lambda i: Image.fromarray(ids(i)))
    for i in range(4):
        (tmp_path / "masks" / f"im{i}.png").unlink()
        np.save(tmp_path / "masks" / f"im{i}.npy", stored(i))
    data = load_data(tmp_path, validation_fraction=0)
    assert data.schema.num_labels == 3 and any("taken as unlabelled" in note for note in data.notes)
    found = data.read("train", 0).semantic_map
    assert (found[:3] == 255).all() and (found[3:] == ids(0)[3:]).all()


# -- class files --------------------------------------------------------------------------------------------

GOOD = {
    '{"0": {"name": "road", "color": [0, 0, 0]}, "1": {"name": "car", "color": [9, 9, 9]}, "2": "sky"}': None,
    '[["road", [0, 0, 0]], ["car", [9, 9, 9]], ["sky", [1, 1, 1]]]': None,
    '{"road": {"id": 0}, "car": {"id": 1}, "sky": {"id": 2}}': None,
    '{"names": ["road", "car", "sky"], "ignore_index": "7"}': None,
    '{"road": 0, "car": 1, "sky": 2, "void": 255, "border": 255}': None,
    '\ufeff["road", "car", "sky"]': None,
}


@pytest.mark.parametrize("content", GOOD)
def test_class_files_of_many_kinds(tmp_path, content):
    (write(tmp_path) / "classes.json").write_text(content, encoding="utf-8")
    assert load_data(tmp_path).schema.names == ("road", "car", "sky")


@pytest.mark.parametrize("content", [
    '{"road": 0, "street": 0, "car": 1, "sky": 2}', '{"names": "a,b,c"}', '{"names": ["a"], "ignore_index": [0, 255]}',
    '[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]', "{", "[]", '{"0": 3}',
])  # fmt: skip
def test_class_files_that_say_nothing_clear(tmp_path, content):
    (write(tmp_path) / "classes.json").write_text(content)
    assert "classes.json cannot be read" in complaint(tmp_path)
    assert len(maps(tmp_path, labels=LabelsConfig(names=["a", "b", "c"]))) == 4  # as the message advises


def test_a_background_that_is_stored_as_255_is_a_class(tmp_path):
    levels = np.array([0, 128, 255], np.uint8)
    write(tmp_path, lambda i: Image.fromarray(levels[ids(i)]))
    (tmp_path / "id2label.json").write_text('{"0": "cell", "128": "membrane", "255": "background"}')
    for i, found in enumerate(maps(tmp_path)):
        np.testing.assert_array_equal(found, ids(i))


def test_a_labels_file_of_another_tool_is_passed_over(tmp_path):
    (write(tmp_path) / "labels.json").write_text('{"dataset": "x", "labels": [{"label": 1}]}')
    (tmp_path / "classes.txt").write_text("road\ncar\nsky\n")
    assert load_data(tmp_path).schema.names == ("road", "car", "sky")


# -- splits -------------------------------------------------------------------------------------------------


def test_splits_with_a_year(tmp_path):
    for split, count in (("train2017", 4), ("val2017", 2)):
        write(tmp_path, count=count, where="{}/" + split)
    data = load_data(tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "validation": 2}


def test_a_link_in_circles_gives_each_image_once(tmp_path):
    (write(tmp_path / "d") / "latest").symlink_to(tmp_path / "d")
    assert len(maps(tmp_path / "d")) == 4


def test_a_split_column_and_a_table_beside_a_folder(tmp_path):
    rows = [f"images/im{i}.jpg,masks/im{i}.png,{'val' if i == 3 else 'train'}" for i in range(4)]
    text = "\n".join(["file_name,mask_file_name,split", *rows])
    (write(tmp_path / "a") / "metadata.csv").write_text("\ufeff" + text, encoding="utf-8")  # as Excel writes it
    data = load_data(tmp_path / "a")
    assert {split: len(found) for split, found in data.items()} == {"train": 3, "validation": 1}
    write(tmp_path / "b", where="train/{}")
    (tmp_path / "b/train/metadata.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in text.split("\n")))
    write(tmp_path / "b", where="val/{}", count=2)
    assert {split: len(found) for split, found in load_data(tmp_path / "b").items()} == {"train": 4, "validation": 2}
    (tmp_path / "a/metadata.csv").write_bytes("file_name,mask_file_name\nimages/é.jpg,masks/é.png".encode("latin-1"))
    assert "UTF-8" in complaint(tmp_path / "a")


def test_split_lists_of_pascal_voc(tmp_path):
    write(tmp_path, count=6)
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "masks").rename(tmp_path / "SegmentationClass")
    (tmp_path / "SegmentationClass/im5.png").unlink()  # most photographs of VOC have no map
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": "im0 im1 im2", "val": "im3", "trainval": "im0 im1 im2 im3"}.items():
        (lists / f"{split}.txt").write_text("\n".join(names.split()) + "\n")
    data = load_data(tmp_path)
    assert data["train"]["image_id"][:] == ["im0", "im1", "im2"] and data["validation"]["image_id"][:] == ["im3"]


def test_two_codings_in_one_set(tmp_path):
    write(tmp_path, count=3)
    for i in range(3):
        (tmp_path / f"images/im{i}.jpg").rename(tmp_path / f"images/im{i}_leftImg8bit.jpg")
        (tmp_path / f"masks/im{i}.png").rename(tmp_path / f"masks/im{i}_gtFine_labelIds.png")
    Image.fromarray(ids(9)).save(tmp_path / "masks/im0_gtFine_labelTrainIds.png")
    assert (maps(tmp_path)[0] == ids(0)).all()  # the coding that all of them have
    (tmp_path / "masks/im0_gtFine_labelIds.png").unlink()
    assert "one coding" in complaint(tmp_path)


def test_an_unlabelled_test_split_is_left_out(tmp_path):
    rows = datasets.load_dataset("imagefolder", data_files={"train": str(write(tmp_path / "d") / "images/*.jpg")})
    image = rows["train"].remove_columns([name for name in rows["train"].column_names if name != "image"])
    label = datasets.Dataset.from_dict({"annotation": [str(f) for f in sorted((tmp_path / "d/masks").glob("*"))]})
    train = datasets.concatenate_datasets([image, label.cast_column("annotation", datasets.Image())], axis=1)
    datasets.DatasetDict({"train": train, "test": image}).save_to_disk(str(tmp_path / "saved"))
    data = load_data(tmp_path / "saved")
    assert set(data) == {"train", "validation"} and any("left out" in note for note in data.notes)
    with pytest.raises(UserError, match="annotation"):
        load_data(tmp_path / "saved", validation_split="test")


def test_a_picture_column_wins_over_a_word_called_label(tmp_path):
    write(tmp_path / "d")
    table = {
        "image": [str(f) for f in sorted((tmp_path / "d/images").glob("*"))], "label": ["indoor"] * 4,
        "mask": [str(f) for f in sorted((tmp_path / "d/masks").glob("*"))],
    }  # fmt: skip
    rows = datasets.Dataset.from_dict(table)
    for column in ("image", "mask"):
        rows = rows.cast_column(column, datasets.Image())
    rows.to_parquet(str(tmp_path / "train.parquet"))
    for i, found in enumerate(maps(tmp_path / "train.parquet")):
        np.testing.assert_array_equal(found, ids(i))


def test_a_short_stream_keeps_rows_to_train_on(tmp_path):
    table = {"image": [np.zeros((8, 8, 3), np.uint8)] * 20, "mask": [np.eye(8, dtype=np.uint8)] * 20}
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    rows = datasets.Dataset.from_dict(table, features=features)
    rows.to_parquet(str(tmp_path / "train.parquet"))
    data = load_data(tmp_path, streaming=True)
    assert len(list(data["validation"])) == 2 and len(list(data["train"])) == 18


# -- names of files, and what init does with flags and bad samples -------------------------------------------


def test_names_that_macos_decomposed_and_names_that_are_not_utf8(tmp_path):
    write(tmp_path, count=2)
    (tmp_path / "images/im0.jpg").rename(tmp_path / "images/caf\u00e9.jpg")
    (tmp_path / "masks/im0.png").rename(tmp_path / "masks/cafe\u0301.png")
    assert len(maps(tmp_path)) == 2
    os.rename(os.fsencode(tmp_path / "images/im1.jpg"), os.fsencode(tmp_path / "images") + b"/caf\xe9.jpg")
    assert "not UTF-8" in complaint(tmp_path)


def test_init_keeps_its_flags_and_writes_what_trains(tmp_path, capsys):
    write(tmp_path / "d")
    Image.fromarray(ids(0)).save(tmp_path / "d/images/extra.png")
    assert main(["init", str(tmp_path / "d"), "--data.validation_fraction", "0.25"]) == 0
    (tmp_path / "r.yaml").write_text(capsys.readouterr().out)
    data = load_recipe(str(tmp_path / "r.yaml")).data
    assert data.on_bad_sample == "skip" and data.validation_fraction == 0.25
    for file in (tmp_path / "d/masks").glob("*"):
        file.write_bytes(b"")
    assert main(["init", str(tmp_path / "d")]) == 2
    assert "empty (0 bytes)" in capsys.readouterr().err


# -- many bands, many depths --------------------------------------------------------------------------------


def test_tiffs_of_scientists(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "a.tif"
    for bands in (2, 5, 7):  # tifffile calls the axes of these QYX
        array = rng.integers(0, 256, (40, 52, bands), dtype=np.uint8)
        tifffile.imwrite(file, array)
        np.testing.assert_array_equal(decode_image(str(file), bands), array)
    array = rng.integers(0, 256, (40, 52, 4), dtype=np.uint8)
    tifffile.imwrite(file, array, photometric="rgb", extrasamples=["unspecified"])  # the fourth is infrared
    np.testing.assert_array_equal(decode_image(str(file), 4), array)
    with pytest.raises(UserError, match="4 channels"):
        decode_image(str(file), 3)
    deep = rng.integers(0, 65536, (40, 52), dtype=np.uint16)
    Image.fromarray(deep).save(file, compression="tiff_lzw")
    np.testing.assert_array_equal(decode_map(str(file)), deep)
    tifffile.imwrite(file, deep, photometric="miniswhite")
    np.testing.assert_array_equal(decode_map(str(file)), 65535 - deep)
    photo, small = (Image.fromarray(array[::step, ::step, :3]) for step in (1, 4))
    photo.save(file, save_all=True, append_images=[small])  # an overview, as in a cloud-optimised GeoTIFF
    np.testing.assert_array_equal(decode_image(str(file)), array[..., :3])


def test_numbers_that_no_sensor_measured():
    array = np.random.default_rng(0).random((8, 9, 5)).astype(np.float32)
    array[0, 0], array[1, 1, 2], array[2, 2, 0] = np.nan, np.inf, -3.4e38
    found = decode_image(array, 5)
    assert np.isfinite(found).all() and found[0, 0].sum() == found[1, 1, 2] == found[2, 2, 0] == 0
    light = np.random.default_rng(0).random((8, 9, 3)).astype(np.float32)
    above = light.copy()
    above[0, 0, 0] = 1.0000001  # as resizing gives
    assert np.abs(decode_image(light).astype(int) - decode_image(above))[1:].max() == 0


# -- the same reading in training and evaluation ------------------------------------------------------------


def test_a_run_reads_undeclared_maps_as_in_training(tmp_path):
    def stored(i):
        content = ids(i, 2)
        content[:9] = 255
        return Image.fromarray(content)

    recipe = small_recipe(tmp_path / "run", max_steps=1)
    recipe.data.path, recipe.eval.eval_steps = str(write(tmp_path / "d", stored)), 1
    recipe.data.labels.names = ["cell", "wall"]
    hfseg.train(recipe, verbose=False)
    # Of these maps, a look alone would say: 0 and 255, so two classes.
    write(tmp_path / "test", lambda i: Image.fromarray(np.where(np.asarray(stored(i)) == 1, 255, stored(i))))
    said = []
    results = evaluate(str(tmp_path / "run"), str(tmp_path / "test"), say=said.append)
    assert results["per_category_recall"]["wall"] is None  # 255 is unlabelled, as it was
    assert any("trained on" in line for line in said) and any("binary true" in line for line in said)


@pytest.mark.parametrize("trained, tested", [(1, 255), (255, 1)])
def test_two_codings_of_two_classes_score_the_same(tmp_path, trained, tested):
    recipe = small_recipe(tmp_path / "run", max_steps=1)
    recipe.eval.eval_steps = 1
    for name, value in (("a", trained), ("b", tested), ("same", trained)):
        write(tmp_path / name, lambda i, value=value: Image.fromarray((ids(i) > 0) * np.uint8(value)))
    recipe.data.path = str(tmp_path / "a")
    hfseg.train(recipe, verbose=False)
    one, other = (evaluate(str(tmp_path / "run"), str(tmp_path / name), split="train") for name in ("same", "b"))
    assert one["per_category_iou"] == other["per_category_iou"] and one["per_category_recall"]["foreground"] is not None
    loaded = evaluate(str(tmp_path / "run"), load_data(tmp_path / "b", validation_fraction=0), split="train")
    assert loaded["per_category_iou"] == other["per_category_iou"]


@pytest.mark.parametrize("level", [255, 180])
def test_thin_lines_in_jpegs(tmp_path, level):
    def lines(i):
        content = np.zeros(SIZE, np.uint8)
        content[4::9] = content[5::9] = level
        return Image.fromarray(content)

    write(tmp_path, lines, ".jpg", quality=70)
    data = load_data(tmp_path, validation_fraction=0, labels=LabelsConfig(binary=True))
    assert any("split at" in note for note in data.notes)
    np.testing.assert_allclose(data.read("train", 0).semantic_map.mean(), (np.asarray(lines(0)) > 0).mean(), atol=0.03)


def test_palettes_beside_broken_grey_and_colour_maps(tmp_path):
    def shuffled(i):
        order = np.random.default_rng(10 + i).permutation(3)
        image = Image.fromarray(order.astype(np.uint8)[ids(i)])
        image.putpalette(np.array(COLOURS, np.uint8)[:3][np.argsort(order)].tobytes())
        return image

    def check(count):
        data = load_data(tmp_path, validation_fraction=0, on_bad_sample="skip")
        assert data.schema.num_labels == 3
        for i in range(count):
            painted = np.array(data.schema.palette)[data.read("train", i).semantic_map]
            np.testing.assert_array_equal(painted, np.array(COLOURS)[ids(i)])

    write(tmp_path, shuffled, count=6)
    (tmp_path / "masks/im5.png").write_bytes((tmp_path / "masks/im5.png").read_bytes()[:40])
    check(5)
    Image.new("L", SIZE[::-1]).save(tmp_path / "masks/im5.png")
    check(5)
    Image.fromarray(np.array(COLOURS, np.uint8)[ids(5)]).save(tmp_path / "masks/im5.png")
    check(6)


def test_one_coding_under_two_palettes(tmp_path):
    def painted(i):
        image = Image.fromarray(ids(i))
        grey = np.repeat(np.arange(3, dtype=np.uint8), 3)
        image.putpalette((grey if i % 2 else np.array(COLOURS, np.uint8)[:3]).tobytes())
        return image

    write(tmp_path, painted)
    for names in (None, ["a", "b", "c"]):
        for i, found in enumerate(maps(tmp_path, labels=LabelsConfig(names=names))):
            np.testing.assert_array_equal(found, ids(i))


def test_tables_that_reach_outside_their_folder(tmp_path):
    write(tmp_path, count=6)
    for split, numbers in (("train", range(4)), ("val", (4, 5))):
        (tmp_path / split).mkdir()
        rows = [f"../images/im{i}.jpg,../masks/im{i}.png" for i in numbers]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,mask_file_name", *rows]))
    assert {split: len(rows) for split, rows in load_data(tmp_path).items()} == {"train": 4, "validation": 2}


def test_linked_splits_and_two_years_of_pascal_voc(tmp_path):
    write(tmp_path / "a", where="train/{}")
    write(tmp_path / "a", where="test/{}", count=2)
    (tmp_path / "a/val").symlink_to(tmp_path / "a/test")
    assert {split: len(rows) for split, rows in load_data(tmp_path / "a").items()} == {
        "train": 4, "validation": 2, "test": 2}  # fmt: skip
    for year, first in (("VOC2007", 0), ("VOC2012", 4)):
        root = write(tmp_path / "b" / year)
        for role, folder in (("images", "JPEGImages"), ("masks", "SegmentationClass")):
            for i in range(4):
                file = next((root / role).glob(f"im{i}.*"))
                file.rename(file.with_stem(f"im{first + i}"))
            (root / role).rename(root / folder)
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        for split, numbers in (("train", range(3)), ("val", (3,))):
            lines = [f"im{first + i}.jpg" for i in numbers]
            (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(lines))
    assert {split: len(rows) for split, rows in load_data(tmp_path / "b").items()} == {"train": 6, "validation": 2}
    for file in (tmp_path / "b").rglob("*.txt"):
        file.write_text("elsewhere\n")
    data = load_data(tmp_path / "b", validation_fraction=0)
    assert len(data["train"]) == 8 and any("passed over" in note for note in data.notes)

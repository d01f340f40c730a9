"""Every layout, and every kind of file, read as a user has it on disk."""

from __future__ import annotations

import io
import json
import pickle
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hfseg.data import SegmentationData, inspect_data, load_data, write_recipe
from hfseg.data.folders import read_folder, split_name
from hfseg.data.images import decode_image, decode_map, look_at
from hfseg.data.scan import scan_maps
from hfseg.data.schemas import find_schema, names_from_model
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig
from hfseg.recipe_reading import load_recipe

SIZE = (12, 16)


def photo(seed: int = 0, size=SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def label(seed: int = 0, classes: int = 3, size=SIZE) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, classes, size, dtype=np.uint8)
    values[0, :classes] = np.arange(classes)
    return Image.fromarray(values)


def put(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def pairs(root: Path, images: str, maps: str, count: int = 3, first: int = 0, classes: int = 3) -> None:
    """Write pairs at templates such as "train/images/{}.jpg"."""
    for i in range(first, first + count):
        put(root / images.format(f"im{i:03d}"), photo(i))
        put(root / maps.format(f"im{i:03d}"), label(i, classes))


LAYOUTS = {
    "split/images + split/masks": [
        ("train/images/{}.jpg", "train/masks/{}.png"), ("val/images/{}.jpg", "val/masks/{}.png")],
    "split/image + split/annotations": [
        ("training/image/{}.png", "training/annotations/{}.png"), ("dev/image/{}.png", "dev/annotations/{}.png")],
    "images/split + masks/split": [
        ("images/train/{}.jpg", "masks/train/{}.png"), ("images/valid/{}.jpg", "masks/valid/{}.png")],
    "side by side, _mask": [("train/{}.jpg", "train/{}_mask.png"), ("validation/{}.jpg", "validation/{}_mask.png")],
    "side by side, _label and _sat": [
        ("train/{}_sat.jpg", "train/{}_label.png"), ("val/{}_sat.jpg", "val/{}_label.png")],
    "CamVid": [("train/{}.png", "trainannot/{}.png"), ("val/{}.png", "valannot/{}.png")],
    "CamVid's own names": [("train/{}.png", "train_labels/{}_L.png"), ("val/{}.png", "val_labels/{}_L.png")],
    "Cityscapes": [
        ("leftImg8bit/train/aachen/{}_leftImg8bit.png", "gtFine/train/aachen/{}_gtFine_labelIds.png"),
        ("leftImg8bit/val/bonn/{}_leftImg8bit.png", "gtFine/val/bonn/{}_gtFine_labelIds.png")],
    "below another folder": [("data/train/Images/{}.JPG", "data/train/Labels/{}.PNG"),
                             ("data/val/Images/{}.JPG", "data/val/Labels/{}.PNG")],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    (train, val) = LAYOUTS[layout]
    pairs(tmp_path, *train)
    pairs(tmp_path, *val, count=2, first=3)
    data = load_data(tmp_path)
    assert isinstance(data, SegmentationData) and isinstance(data, datasets.DatasetDict)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "validation": 2}
    assert (data.train, data.validation, data.channels, data.streaming) == ("train", "validation", 3, False)
    assert set(data["train"].column_names) == {"image", "semantic_map", "image_id"}
    for split, first in (("train", 0), ("validation", 3)):
        for i in range(len(data[split])):
            sample = data.read(split, i)
            np.testing.assert_array_equal(sample.semantic_map, np.asarray(label(first + i)))
            assert sample.image.shape == (*SIZE, 3) and f"im{first + i:03d}" in sample.name


@pytest.mark.parametrize(
    ("images", "maps"),
    [("images/{}.jpg", "masks/{}.png"), ("{}.jpg", "{}_mask.png"), ("JPEGImages/{}.jpg", "SegmentationClass/{}.png")],
)
def test_no_splits_means_a_seeded_validation_split(images, maps, tmp_path):
    pairs(tmp_path, images, maps, count=20)
    one, same, other = (load_data(tmp_path, validation_fraction=0.2, seed=seed) for seed in (1, 1, 2))
    ids = [set(data["validation"]["image_id"]) for data in (one, same, other)]
    assert len(ids[0]) == 4 and ids[0] == ids[1] != ids[2]
    assert not ids[0] & set(one["train"]["image_id"]) and len(one["train"]) == 16
    assert "4 of 20 training images are held out" in one.notes[-1] and "seed 1" in one.notes[-1]
    assert load_data(tmp_path, validation_fraction=0).validation is None


def test_one_split_alone(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3}))
    pairs(tmp_path, "test/images/{}.jpg", "test/masks/{}.png")
    for path in (tmp_path, tmp_path / "test"):  # the folder itself may be the split, its names lie above
        data = load_data(path)
        assert list(data) == ["test"] and data.train is None and data.validation == "test"
        assert data.schema.names == ("a", "b", "c")


def test_split_names_and_choices(tmp_path):
    pairs(tmp_path, "fold1/images/{}.jpg", "fold1/masks/{}.png")
    pairs(tmp_path, "fold2/images/{}.jpg", "fold2/masks/{}.png", count=2, first=5)
    pairs(tmp_path, "testing/images/{}.jpg", "testing/masks/{}.png", count=1, first=9)
    data = load_data(tmp_path, train_split="fold1", validation_split="fold2")
    assert (data.train, data.validation) == ("fold1", "fold2") and set(data) == {"fold1", "fold2", "test"}
    assert data.find_split("testing") == "test"
    with pytest.raises(UserError, match="did you mean 'fold1'"):
        load_data(tmp_path, train_split="fold11")


def test_the_test_split_is_never_the_validation_split_of_a_training(tmp_path):
    pairs(tmp_path, "train/images/{}.jpg", "train/masks/{}.png", count=5)
    pairs(tmp_path, "test/images/{}.jpg", "test/masks/{}.png", count=2, first=5)
    data = load_data(tmp_path)
    assert data.validation == "validation" and {k: len(v) for k, v in data.items()} == {
        "train": 4, "test": 2, "validation": 1}  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_imagefolder_with_metadata(kind, tmp_path):
    for split, first in (("train", 0), ("validation", 4)):
        pairs(tmp_path / split, "{}.jpg", "seg/{}.png", first=first)
        rows = [
            {"file_name": f"im{i:03d}.jpg", "mask_file_name": f"seg/im{i:03d}.png"} for i in range(first, first + 3)
        ]
        if kind == "csv":
            lines = ["file_name,mask_file_name", *(",".join(row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        (tmp_path / split / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    data = load_data(tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "validation": 3}
    np.testing.assert_array_equal(data.read("validation", 0).semantic_map, np.asarray(label(4)))


def as_dataset(count: int = 4, **names: str) -> datasets.Dataset:
    def png(image):
        buffer = io.BytesIO()
        image.save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    image, annotation = names.get("image", "image"), names.get("label", "annotation")
    columns = {image: [png(photo(i)) for i in range(count)], annotation: [png(label(i)) for i in range(count)]}
    features = {image: datasets.Image(), annotation: datasets.Image()}
    if "classes" in names:
        columns["objects"] = [[0, 1]] * count
        features["objects"] = datasets.Sequence(datasets.ClassLabel(names=names["classes"].split()))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_parquet(tmp_path):
    (tmp_path / "data").mkdir()
    as_dataset(4, classes="sky road car").to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    as_dataset(2, classes="sky road car").to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    data = load_data(tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "validation": 2}
    assert data.schema.names == ("sky", "road", "car") and "feature" in data.schema.origin
    np.testing.assert_array_equal(data.read("validation", 1).semantic_map, np.asarray(label(1)))
    alone = load_data(tmp_path / "data" / "train-00000-of-00001.parquet", validation_fraction=0)
    assert list(alone) == ["train"] and alone["train"]["image_id"][:2] == ["train[0]", "train[1]"]


def test_streaming_has_the_same_attributes_and_samples(tmp_path):
    as_dataset(6).to_parquet(tmp_path / "train.parquet")
    data = load_data(tmp_path, streaming=True, labels=LabelsConfig(names=["a", "b", "c"]))
    assert data.streaming and isinstance(data, datasets.IterableDatasetDict) and data.train == "train"
    assert data.schema.names == ("a", "b", "c") and "stream are held out" in data.notes[-1]
    plain = load_data(tmp_path, validation_fraction=0)
    count = sum(1 for _ in data["validation"])
    assert count > 0
    for i in range(count):
        np.testing.assert_array_equal(data.read("validation", i).image, plain.read("train", i).image)


def test_save_to_disk(tmp_path):
    datasets.DatasetDict({"train": as_dataset(3), "val": as_dataset(2)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "id2label.json").write_text('{"0": "sky", "1": "road", "2": "car"}')
    data = load_data(tmp_path / "saved")
    assert set(data) == {"train", "validation"} and data.schema.names == ("sky", "road", "car")
    np.testing.assert_array_equal(data.read("train", 2).semantic_map, np.asarray(label(2)))


@pytest.mark.parametrize(
    "columns", [("image", "label"), ("pixel_values", "labels"), ("photo", "mask"), ("img", "odd_name")]
)
def test_columns_are_found(columns, tmp_path):
    as_dataset(3, image=columns[0], label=columns[1]).save_to_disk(tmp_path / "d")
    assert load_data(tmp_path / "d").read("train", 0).semantic_map.shape == SIZE


def test_columns_can_be_given(tmp_path):
    rows = as_dataset(3, image="left", label="right")
    rows.save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match=r"left.*right"):
        load_data(tmp_path / "d")
    data = load_data(tmp_path / "d", image_column="left", label_column="right")
    np.testing.assert_array_equal(data.read("train", 0).semantic_map, decode_map(rows[0]["right"]))
    with pytest.raises(UserError, match="did you mean 'left'"):
        load_data(tmp_path / "d", image_column="lleft")


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_many_bands_are_read_lazily(kind, tmp_path):
    bands = np.random.default_rng(0).integers(0, 4000, (4, 7, *SIZE), dtype=np.uint16)
    (tmp_path / "images").mkdir()
    for i, array in enumerate(bands):
        if kind == "npy":
            np.save(tmp_path / "images" / f"t{i}.npy", array)
        else:
            tifffile.imwrite(tmp_path / "images" / f"t{i}.tif", array, photometric="minisblack")
        put(tmp_path / "masks" / f"t{i}.png", label(i))
    data = load_data(tmp_path, validation_fraction=0)
    assert data.channels == 7 and data["train"].features["image"] == datasets.Value("string")
    sample = data.read("train", 2)
    assert sample.image.dtype == np.uint16 and sample.image.flags.writeable
    np.testing.assert_array_equal(sample.image, bands[2].transpose(1, 2, 0))
    with pytest.raises(UserError, match="7 channels, where the model takes 3"):
        data.read("train", 2, channels=3)


def test_shapes():
    data = load_data("shapes", scenes=4)
    assert data.schema.origin == "shapes/source" and len(data["train"]) == len(data["validation"]) == 4
    assert data.schema.names != load_data("shapes/target", scenes=4).schema.names
    sample = data.read("train", 1)
    assert sample.image.shape == (128, 128, 3) and sample.name == "source-train-000001"
    with pytest.raises(UserError, match="did you mean 'target'"):
        load_data("shapes/targat")


def test_ten_thousand_pairs_cost_no_decoding(tmp_path):
    photo().save(tmp_path / "a.jpg")
    label().save(tmp_path / "a.png")
    for split, count in (("train", 9000), ("val", 1000)):
        for role, ending in (("images", "jpg"), ("masks", "png")):
            folder = tmp_path / "d" / split / role
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i:05d}.{ending}").hardlink_to(tmp_path / f"a.{ending}")
    start = time.perf_counter()
    data = load_data(tmp_path / "d")
    assert len(data["train"]) == 9000 and time.perf_counter() - start < 5  # 0.3 s on a quiet machine


def test_it_survives_pickling_and_keeps_its_schema():
    data = load_data("shapes", scenes=2)
    again = pickle.loads(pickle.dumps(data))
    assert again.schema == data.schema and again.train == "train"
    np.testing.assert_array_equal(again.read("train", 0).semantic_map, data.read("train", 0).semantic_map)


# -- what the labels mean -----------------------------------------------------------------------------------


NAME_FILES = {
    "classes.json": {"names": ["a", "b", "c"], "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]},
    "id2label.json": {"0": "a", "1": "b", "2": "c"},
    "id2label.json ": {"a": 0, "b": 1, "c": 2},
    "id2label.json  ": {"id2label": {"0": "a", "1": "b", "2": "c"}},
    "classes.json ": [{"id": 2, "name": "c", "color": [9, 9, 9]}, {"id": 0, "name": "a", "color": [1, 2, 3]},
                      {"id": 1, "name": "b", "color": [4, 5, 6]}],
    "classes.txt": "a\nb\nc\n",
}  # fmt: skip


@pytest.mark.parametrize("file", NAME_FILES)
def test_names_that_come_with_the_data(file, tmp_path):
    pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    content = NAME_FILES[file]
    (tmp_path / file.strip()).write_text(content if isinstance(content, str) else json.dumps(content))
    data = load_data(tmp_path)
    assert data.schema.names == ("a", "b", "c") and data.schema.origin == file.strip()


def test_labels_json_wins_and_the_recipe_wins_over_it(tmp_path):
    pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    saved = LabelSchema.from_names(["a", "b", "c"]).merge({"bc": ["b", "c"]})
    saved.save(tmp_path / "labels.json")
    assert load_data(tmp_path).schema == saved
    assert load_data(tmp_path, labels=saved.drop(["a"])).schema.names == ("bc",)
    assert load_data(tmp_path, labels=LabelsConfig(drop=["a"])).schema.names == ("bc",)
    assert load_data(tmp_path, labels=LabelsConfig(names=["1", "2", "3"])).schema.names == ("1", "2", "3")
    assert load_data(tmp_path, labels=LabelsConfig(ignore_index=0)).schema.names == ("b", "c")


def test_a_broken_names_file_is_named(tmp_path):
    pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    for text in ("{", "[]", '{"names": 3}', '{"names": []}', '{"a": "b"}'):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(UserError, match=r"classes\.json"):
            load_data(tmp_path)


def scan(*maps, config: LabelsConfig | None = None, declared: dict | None = None):
    values = scan_maps([np.array(m, dtype=np.uint8) for m in maps], len(maps))
    return find_schema(declared or {}, config or LabelsConfig(), values)


def test_scanned_zero_and_255_is_binary():
    schema, notes = scan([[0, 255]], [[0, 0]])
    assert schema.names == ("background", "foreground") and schema.apply(np.array([[0, 255]], np.uint8)).tolist() == [
        [0, 1]
    ]
    assert "the 2 maps looked at hold only 0 and 255: assumed binary" in notes[0]
    schema, notes = scan([[0, 255]], declared={"names": ["road", "crack"]})
    assert schema.names == ("road", "crack") and dict(schema.stored) == {0: 0, 255: 1}
    with pytest.raises(BadSample, match="128"):  # not among what was seen
        schema.apply(np.array([[0, 128, 255]], np.uint8))
    for values in ([[0, 1]], [[0, 255]]):  # one name is the foreground's
        assert scan(values, declared={"names": ["nucleus"]})[0].names == ("background", "nucleus")
    # Where a file says that 255 is ignored, that holds, and the trap is pointed out.
    schema, notes = scan([[0, 255]], declared={"names": ["road", "crack"], "ignore_index": 255})
    assert schema.threshold is None and "binary true" in notes[0]


def test_scanned_contiguous_values():
    schema, notes = scan([[0, 1, 2, 255]])
    assert schema.num_labels == 3 and schema.apply(np.array([[2, 255]], np.uint8)).tolist() == [[2, 255]]
    assert "0 to 2, and 255, taken as unlabelled: 3 classes" in notes[0]
    schema, notes = scan([[0, 1, 3]])
    assert schema.num_labels == 4 and "but for 2" in notes[0]
    schema, _ = scan([[0, 1, 2]], config=LabelsConfig(reduce_labels=True))
    assert schema.num_labels == 2 and schema.apply(np.array([[0, 1, 2]], np.uint8)).tolist() == [[255, 0, 1]]


def test_scanned_grey_levels_are_a_class_each():
    schema, notes = scan([[0, 60, 120, 180]])
    assert schema.apply(np.array([[0, 60, 120, 180]], np.uint8)).tolist() == [[0, 1, 2, 3]]
    assert "each is a class" in notes[0]


def test_scanned_colours_are_proposed_as_palette():
    maps = [[[0, 0, 0], [255, 0, 0]], [[0, 0, 0], [0, 255, 0]]]
    schema, notes = scan(*(np.array(m)[None] for m in maps), np.zeros((1, 2)))
    assert schema.names == ("#000000", "#00ff00", "#ff0000") and schema.rgb
    assert "each of the 3 colours" in notes[0] and "data.labels.palette" in notes[0]


def test_an_explicit_palette_decodes_colour_masks(tmp_path):
    palette = [(128, 64, 128), (0, 0, 142), (0, 0, 0)]
    index = np.random.default_rng(0).integers(0, 3, SIZE)
    put(tmp_path / "images" / "a.jpg", photo())
    put(tmp_path / "masks" / "a.png", Image.fromarray(np.array(palette, np.uint8)[index]))
    config = LabelsConfig(names=["road", "car"], palette=palette)
    sample = load_data(tmp_path, labels=config, validation_fraction=0).read("train", 0)
    np.testing.assert_array_equal(sample.semantic_map, np.where(index == 2, 255, index))


def test_a_jpeg_mask_is_split_in_the_middle(tmp_path):
    drawn = np.zeros((64, 64), np.uint8)
    drawn[16:40, 10:50] = 255
    put(tmp_path / "images" / "a.jpg", photo(size=(64, 64)))
    put(tmp_path / "masks" / "a.jpg", Image.fromarray(drawn))
    assert len(np.unique(decode_map(tmp_path / "masks" / "a.jpg"))) > 2
    data = load_data(tmp_path, validation_fraction=0)
    np.testing.assert_array_equal(data.read("train", 0).semantic_map, drawn // 255)
    assert "JPEG" in data.notes[0]


def test_a_models_names_are_taken_only_where_they_fit(tmp_path):
    pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    assert load_data(tmp_path, model_names=["a", "b", "c"]).schema.names == ("a", "b", "c")
    assert load_data(tmp_path, model_names=["a", "b"]).schema.names == ("class_0", "class_1", "class_2")
    values = scan_maps([np.array([[0, 1, 2, 255]], np.uint8)])
    assert names_from_model(["a", "b", "c"], values)["names"] == ["a", "b", "c"]
    assert not names_from_model(["a", "b", "c", "d"], values)
    assert not names_from_model(["LABEL_0", "LABEL_1", "LABEL_2"], values)


# -- decoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_an_image(mode, channels):
    rgb = photo(3)
    image = (
        Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 200) if mode == "I;16" else rgb.convert(mode)
    )
    array = decode_image(image, channels)
    assert array.shape == (*SIZE, channels) and array.dtype == np.uint8 and array.flags.writeable
    if mode in ("L", "LA", "I;16", "I", "F"):
        grey = np.asarray(rgb.convert("L")).astype(int)
        if mode == "I;16":  # stretched, in order
            assert np.corrcoef(array[..., 0].ravel(), grey.ravel())[0, 1] > 0.999
        else:
            assert abs(array[..., 0].astype(int) - grey).max() <= 1


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decode_image(image)[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 255])
    palette.info["transparency"] = 0
    assert decode_image(palette)[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_stretched_only_if_needed():
    dark = np.linspace(100, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    array = decode_image(dark, 1)
    assert array.min() == 0 and array.max() == 255 and np.all(np.diff(array.ravel().astype(int)) >= 0)
    small = np.arange(200, dtype=np.uint16).reshape(10, 20)
    np.testing.assert_array_equal(decode_image(small, 1)[..., 0], small)
    np.testing.assert_array_equal(decode_image(np.full((4, 4), 9000, np.uint16), 1), np.zeros((4, 4, 1)))
    unit = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(decode_image(unit, 1)[..., 0], np.rint(unit * 255))
    unit[0, 0] = np.nan
    assert decode_image(unit, 1)[0, 0, 0] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_turns_image_and_map_alike(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    base = label(1, 3)
    base.save(tmp_path / "m.png", exif=exif)
    photo(1).save(tmp_path / "i.jpg", exif=exif)
    image, values = decode_image(tmp_path / "i.jpg"), decode_map(tmp_path / "m.png")
    assert image.shape[:2] == values.shape == (SIZE if orientation < 5 else SIZE[::-1])
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: np.transpose,
            6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.T, 2), 8: np.rot90}[orientation]  # fmt: skip
    np.testing.assert_array_equal(values, turn(np.asarray(base)))
    assert look_at(tmp_path / "i.jpg")[:2] == image.shape[:2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), top=st.sampled_from([2, 5, 200, 256, 60000]))
def test_maps_keep_their_values_in_every_file(seed, top):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, top, (7, 9)).astype(np.uint8 if top <= 256 else np.uint16)
    images = [Image.fromarray(values)]
    if top <= 256:
        palette = Image.fromarray(values, "L").convert("P")
        palette.putdata(values.ravel().tolist())
        palette.putpalette(rng.integers(0, 256, 768).tolist())  # colours that say nothing about the ids
        images += [palette, Image.merge("RGB", [images[0]] * 3), Image.merge("RGBA", [*[images[0]] * 3, images[0]])]
        images += [Image.merge("LA", [images[0]] * 2)]
    if top == 2:
        images.append(Image.fromarray(values.astype(bool)))
    for image in images:
        for ending in ("png", "tiff") if image.mode != "LA" else ("png",):
            buffer = io.BytesIO()
            image.save(buffer, ending)
            for value in (buffer.getvalue(), {"bytes": buffer.getvalue(), "path": None}, image):
                np.testing.assert_array_equal(decode_map(value), values)
    np.testing.assert_array_equal(decode_map(values.astype(np.float32)), values)


def test_colour_maps_stay_colours():
    colours = np.asarray(photo(2))
    np.testing.assert_array_equal(decode_map(Image.fromarray(colours)), colours)


def test_split_names():
    assert [split_name(s) for s in ("Train", "training", "val", "valid", "dev", "testing", "extra")] == [
        "train", "train", "validation", "validation", "validation", "test", "extra"]  # fmt: skip


# -- hfseg init ---------------------------------------------------------------------------------------------


def recipe_of(path, tmp_path, **options):
    text = write_recipe(inspect_data(load_data(path, **options)), path)
    (tmp_path / "recipe.yaml").write_text(text)
    return load_recipe(str(tmp_path / "recipe.yaml")), text


def test_a_recipe_repeats_what_was_assumed(tmp_path):
    for i in range(4):
        put(tmp_path / "d" / "images" / f"{i}.png", photo(i).convert("L"))
        put(tmp_path / "d" / "masks" / f"{i}.png", Image.fromarray(np.asarray(label(i, 2)) * 255))
    recipe, text = recipe_of(tmp_path / "d", tmp_path)
    assert recipe.data.labels.binary and recipe.data.labels.names == ["background", "foreground"]
    assert recipe.augment.crop_size == SIZE and recipe.augment.preset == "light"
    assert "4 images" in text and "12x16" in text and "assumed" in text.lower()
    again = load_data(tmp_path / "d", labels=recipe.data.labels)
    np.testing.assert_array_equal(
        again.read("train", 0).semantic_map, load_data(tmp_path / "d").read("train", 0).semantic_map
    )


@pytest.mark.parametrize("kind", ["contiguous", "gaps", "colours", "reduced"])
def test_a_recipe_gives_the_same_schema_again(kind, tmp_path):
    palette = np.array([[9, 9, 9], [200, 0, 0], [0, 0, 255]], np.uint8)
    for i in range(3):
        ids = np.asarray(label(i))
        stored = {"gaps": ids * np.uint8(70), "colours": palette[ids]}.get(kind, ids)
        put(tmp_path / "d" / "images" / f"{i}.png", photo(i))
        put(tmp_path / "d" / "masks" / f"{i}.png", Image.fromarray(stored))
    config = LabelsConfig(reduce_labels=kind == "reduced")
    first = load_data(tmp_path / "d", labels=config)
    recipe, text = recipe_of(tmp_path / "d", tmp_path, labels=config)
    again = load_data(tmp_path / "d", labels=recipe.data.labels)
    assert (again.schema.names, again.schema.palette, again.schema.stored) == (
        first.schema.names, first.schema.palette, first.schema.stored)  # fmt: skip
    assert ("id2label.json" in text) == (kind == "gaps")


def test_a_recipe_for_a_thin_rare_foreground(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        crack = np.zeros((96, 96), np.uint8)
        crack[np.arange(96), np.clip(48 + np.cumsum(rng.integers(-1, 2, 96)), 0, 95)] = 1
        put(tmp_path / "d" / "images" / f"{i}.jpg", photo(i, (96, 96)))
        put(tmp_path / "d" / "masks" / f"{i}.png", Image.fromarray(crack))
    recipe, text = recipe_of(tmp_path / "d", tmp_path)
    assert recipe.loss.terms == {"cross_entropy": 1.0, "dice": 1.0} and "thin" in text


def test_recipes_for_the_real_sets(shared_data, tmp_path):
    for name, options in {
        "camvid": {}, "isbi2012_em": {}, "crackforest": {}, "dubai_aerial": {},
        "dsb2018_nuclei": {"labels": LabelsConfig(binary=True)},
    }.items():  # fmt: skip
        data = load_data(shared_data / name, **options)
        report = inspect_data(data, limit=10)
        text = write_recipe(report, shared_data / name)
        (tmp_path / "recipe.yaml").write_text(text)
        recipe = load_recipe(str(tmp_path / "recipe.yaml"))
        again = load_data(recipe.data.path, labels=recipe.data.labels)
        assert again.schema == data.schema, name
        assert report.looked == sum(report.sizes.values()) > 0 and not report.bad
        if name == "crackforest":
            assert "dice" in recipe.loss.terms
        if name == "camvid":
            assert recipe.loss.class_weights == "auto" and data.schema.num_labels == 11


# -- real data ----------------------------------------------------------------------------------------------


def test_camvid_frequencies_are_those_of_its_statistics(shared_data):
    """stats.json was counted by other code: it is the oracle for remap and decoding together."""
    data = load_data(shared_data / "camvid")
    stats = json.loads((shared_data / "camvid" / "stats.json").read_text())["val"]["freq_pct"]
    counts = np.zeros(256, np.int64)
    for i in range(len(data["validation"])):
        counts += np.bincount(data.read("validation", i).semantic_map.ravel(), minlength=256)
    shares = 100 * counts / counts.sum()
    for i, name in enumerate(data.schema.names):
        assert shares[i] == pytest.approx(stats[name], abs=0.006)
    assert shares[255] == pytest.approx(stats["ignore11"], abs=0.006)


def test_instances_are_read_as_binary_only_if_asked(shared_data):
    with pytest.raises(UserError, match=r"instance annotations[\s\S]*labels\.binary true"):
        load_data(shared_data / "dsb2018_nuclei")
    data = load_data(shared_data / "dsb2018_nuclei", labels=LabelsConfig(binary=True))
    assert data.schema.names == ("background", "nucleus")
    row = data["validation"][3]
    np.testing.assert_array_equal(data.read("validation", 3).semantic_map, decode_map(row["semantic_map"]) > 0)


def test_an_unlabelled_split_is_left_out_and_named(shared_data):
    data = load_data(shared_data / "isbi2012_em")
    assert set(data) == {"train", "validation"} and "test_unlabelled" in data.notes[0]
    with pytest.raises(UserError, match="images but no label maps"):
        load_data(shared_data / "isbi2012_em" / "test_unlabelled")


def test_the_folder_walk_takes_nothing_for_granted(tmp_path):
    pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    put(tmp_path / "preview.png", photo())
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / ".im000.jpg").write_bytes(b"x")
    (tmp_path / "masks" / "notes.txt").write_text("x")
    put(tmp_path / "__MACOSX" / "images" / "im000.jpg", photo())
    splits, notes = read_folder(tmp_path)
    assert len(splits["train"].images) == 3 and notes == []

"""Data that cannot be used: each kind gives one message that names the file and says what to do."""

from __future__ import annotations

import io
import json
import os
import pickle

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hfseg.data import inspect_data, load_data, write_recipe
from hfseg.data import readers as readers_module
from hfseg.data.images import decode_image, decode_map
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.recipe import LabelsConfig
from hfseg.recipe_reading import load_recipe

SIZE = (24, 32)


@pytest.fixture
def folder(tmp_path):
    """A good data set of five pairs, to be spoiled."""
    rng = np.random.default_rng(0)
    for role in ("images", "masks"):
        (tmp_path / "d" / role).mkdir(parents=True)
    for i in range(5):
        image = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        image.save(tmp_path / "d" / "images" / f"s{i}.jpg")
        values = rng.integers(0, 3, SIZE, dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "d" / "masks" / f"s{i}.png")
    (tmp_path / "d" / "classes.json").write_text(json.dumps({"names": ["a", "b", "c"]}))
    return tmp_path / "d"


def read_all(path, **options):
    data = load_data(path, validation_fraction=0, **options)
    return [data.read("train", i) for i in range(len(data["train"]))]


def complaint(path, kind=BadSample, **options) -> str:
    with pytest.raises(kind) as caught:
        read_all(path, **options)
    text = str(caught.value)
    assert "Traceback" not in text and len(text) < 1500
    assert str(pickle.loads(pickle.dumps(caught.value))) == text  # it comes out of a loader worker whole
    return text


def test_the_good_folder_is_good(folder):
    assert len(read_all(folder)) == 5


@pytest.mark.parametrize("role", ["images/s2.jpg", "masks/s2.png"])
def test_a_truncated_file(folder, role):
    content = (folder / role).read_bytes()
    (folder / role).write_bytes(content[: len(content) // 2])
    text = complaint(folder)
    assert role in text and "truncated" in text and "restore the file" in text


@pytest.mark.parametrize("role", ["images/s2.jpg", "masks/s2.png"])
def test_an_empty_file(folder, role):
    (folder / role).write_bytes(b"")
    text = complaint(folder)
    assert role in text and "empty (0 bytes)" in text


@pytest.mark.parametrize("role", ["images/s2.jpg", "masks/s2.png"])
def test_a_file_that_is_no_image(folder, role):
    (folder / role).write_text("this is not an image at all")
    assert role in complaint(folder) and "not an image" in complaint(folder)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["jpeg", "png", "tiff", "gif", "bmp", "webp", "npy"]))
def test_any_damage_is_a_bad_sample_and_never_a_crash(data, form):
    array = np.arange(24 * 32, dtype=np.uint8).reshape(SIZE)
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, array)
    else:
        Image.fromarray(array).save(buffer, form)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    for decode in (decode_image, decode_map):
        try:
            assert decode(content, sample="x").ndim in (2, 3)
        except BadSample as error:
            assert str(error).startswith("x: ")


def test_sizes_that_differ(folder):
    Image.new("L", (31, 24)).save(folder / "masks" / "s1.png")
    text = complaint(folder)
    assert "images/s1.jpg" in text and "32 x 24" in text and "31 x 24" in text and "nearest" in text


def test_an_image_turned_by_exif_whose_map_is_not(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(folder / "images" / "s1.jpg", exif=exif)
    assert "EXIF" in complaint(folder)


def test_values_outside_the_labels_stop_at_once(folder):
    values = np.zeros(SIZE, np.uint8)
    values[0, :8] = 7
    Image.fromarray(values).save(folder / "masks" / "s4.png")
    with pytest.raises(BadSample) as caught:
        load_data(folder)  # before any training step
    text = str(caught.value)
    assert "masks/s4.png" in text and "7 (1 % of it)" in text and "labels.ignore_index 7" in text
    data = load_data(folder, on_bad_sample="skip", validation_fraction=0)
    with pytest.raises(BadSample, match="7 "):
        data.read("train", 4)
    assert len(read_all(folder, labels=LabelsConfig(ignore_index=7))) == 5


def test_binary_maps_as_0_and_255_with_declared_classes(folder):
    (folder / "classes.json").write_text(json.dumps({"names": ["ok", "defect"]}))
    for i in range(5):
        Image.fromarray(np.full(SIZE, 255 * (i % 2), np.uint8)).save(folder / "masks" / f"s{i}.png")
    assert [sample.semantic_map[0, 0] for sample in read_all(folder)] == [0, 1, 0, 1, 0]


def test_colour_maps_without_palette(folder):
    rng = np.random.default_rng(1)
    for i in range(5):
        Image.fromarray(rng.integers(0, 2, (*SIZE, 3), dtype=np.uint8) * 255).save(folder / "masks" / f"s{i}.png")
    text = complaint(folder, UserError)
    assert "no palette" in text and "[255, 255, 255]" in text and "data.labels.palette" in text
    (folder / "classes.json").unlink()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "masks" / f"s{i}.png")
    assert "different colours" in complaint(folder, UserError)


def test_one_colour_map_among_grey_ones(folder):
    colours = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(colours).save(folder / "masks" / "s3.png")
    assert "masks/s3.png: a colour map" in complaint(folder) and "palette" in complaint(folder)
    assert len(load_data(folder, on_bad_sample="skip", validation_fraction=0)["train"]) == 5


def test_missing_maps_and_images(folder):
    (folder / "masks" / "s1.png").unlink()
    (folder / "masks" / "s3.png").unlink()
    text = complaint(folder, UserError)
    assert "2 of 5 images have no label map: images/s1.jpg, images/s3.jpg" in text and "on_bad_sample skip" in text
    data = load_data(folder, on_bad_sample="skip", validation_fraction=0)
    assert len(data["train"]) == 3 and "left out: images/s1.jpg" in data.notes[0]
    for i in (0, 2, 4):
        (folder / "images" / f"s{i}.jpg").rename(folder / "images" / f"renamed{i}.jpg")
    assert "no image has a label map of its name" in complaint(folder, UserError)


def test_a_map_without_image(folder):
    (folder / "images" / "s0.jpg").unlink()
    assert "1 of 5 label maps have no image: masks/s0.png" in complaint(folder, UserError)


def test_a_hundred_missing_maps_are_counted_not_listed(folder):
    for i in range(100):
        (folder / "images" / f"x{i:03d}.jpg").hardlink_to(folder / "images" / "s0.jpg")
    text = complaint(folder, UserError)
    assert "100 of 105" in text and "and 95 more" in text


def test_two_files_of_one_name(folder):
    Image.open(folder / "images" / "s2.jpg").save(folder / "images" / "s2.png")
    text = complaint(folder, UserError)
    assert "images/s2.jpg, images/s2.png have the same name" in text and "rename" in text


def test_images_without_any_map(folder):
    for file in (folder / "masks").iterdir():
        file.unlink()
    text = complaint(folder, UserError)
    assert "images but no label maps" in text and "split/masks" in text


def test_a_file_that_disappears_after_loading(folder):
    data = load_data(folder, validation_fraction=0)
    (folder / "images" / "s0.jpg").unlink()
    with pytest.raises(BadSample, match=r"s0\.jpg: the file does not exist"):
        data.read("train", 0)


def test_nothing_in_the_folder(tmp_path):
    assert "holds no images" in complaint(tmp_path, UserError)
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    assert "x.parquet cannot be read" in complaint(tmp_path, UserError)


def test_an_empty_split(tmp_path):
    def rows(count):
        png = io.BytesIO()
        Image.new("L", (4, 4)).save(png, "png")
        cell = {"bytes": png.getvalue(), "path": None}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
        return datasets.Dataset.from_dict({"image": [cell] * count, "label": [cell] * count}, features=features)

    datasets.DatasetDict({"train": rows(2), "validation": rows(0)}).save_to_disk(tmp_path / "d")
    assert "split 'validation' is empty" in complaint(tmp_path / "d", UserError)


def test_one_image(folder):
    for i in range(1, 5):
        (folder / "images" / f"s{i}.jpg").unlink()
        (folder / "masks" / f"s{i}.png").unlink()
    data = load_data(folder)
    assert len(data["train"]) == 1 and data.validation is None and "no validation split can be made" in data.notes[-1]


def test_maps_that_are_all_ignored_are_ordinary(folder):
    for i in range(5):
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(folder / "masks" / f"s{i}.png")
    assert all((sample.semantic_map == 255).all() for sample in read_all(folder))
    report = inspect_data(load_data(folder))
    assert report.pixels.sum() == 0 and "check the labels" in write_recipe(report, folder)
    (folder / "classes.json").unlink()
    assert "cannot be told" in complaint(folder, UserError) and "data.labels.names" in complaint(folder, UserError)


def test_instance_ids_are_no_classes(folder):
    (folder / "classes.json").unlink()
    rng = np.random.default_rng(0)
    for i in range(5):
        ids = np.minimum(np.arange(SIZE[0] * SIZE[1]) // 8, 30 + 10 * i).reshape(SIZE).astype(np.uint16)
        Image.fromarray(rng.permutation(ids)).save(folder / "masks" / f"s{i}.png")
    text = complaint(folder, UserError)
    assert "instance ids" in text and "labels.binary true" in text
    assert set(np.unique(read_all(folder, labels=LabelsConfig(binary=True))[0].semantic_map)) == {0, 1}


def test_repeated_ids(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(png, "png")
    cell = {"bytes": png.getvalue(), "path": None}
    columns = {"image": [cell] * 4, "mask": [cell] * 4, "image_id": ["a", "b", "a", "c"]}
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), image_id=datasets.Value("string"))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "d")
    assert "1 rows repeat the image_id of another, such as 'a'" in complaint(tmp_path / "d", UserError)
    data = load_data(tmp_path / "d", on_bad_sample="skip", validation_fraction=0)
    assert data["train"]["image_id"][:] == ["a", "b", "c"]


def test_a_table_that_lists_an_image_twice_or_a_file_that_is_not_there(tmp_path, folder):
    rows = ["file_name,mask_file_name", "images/s0.jpg,masks/s0.png", "images/s9.jpg,masks/s1.png"]
    (folder / "metadata.csv").write_text("\n".join(rows))
    assert "s9.jpg: the file does not exist" in complaint(folder)
    (folder / "metadata.csv").write_text("\n".join([*rows[:2], rows[1]]))
    assert "lists" in complaint(folder, UserError) and "more than once" in complaint(folder, UserError)
    (folder / "metadata.csv").write_text("\n".join([rows[0], "images/s0.jpg,"]))
    assert "line 2: no mask_file_name" in complaint(folder, UserError)
    (folder / "metadata.csv").write_text("file_name,text\nimages/s0.jpg,hello")
    assert "file_name, text" in complaint(folder, UserError)


def test_a_classification_set(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "png")
    columns = {"image": [{"bytes": png.getvalue(), "path": None}], "label": [0]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "d")
    assert "no label map column" in complaint(tmp_path / "d", UserError)


def test_a_path_that_does_not_exist(folder):
    text = complaint(folder.parent / "dd", UserError)
    assert "does not exist" in text and str(folder) in text  # the near name
    assert "is a file" in complaint(folder / "classes.json", UserError)


def test_a_folder_that_cannot_be_read(folder, monkeypatch):
    if os.geteuid():
        (folder / "masks").chmod(0)
    else:  # root may read everything
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("masks"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
    text = complaint(folder, UserError)
    assert "masks cannot be read" in text and "permissions" in text


def test_no_network_says_what_was_tried(monkeypatch):
    text = complaint("someone/streets", UserError)  # the tests run with HF_HUB_OFFLINE
    assert "'someone/streets'" in text and "https://huggingface.co" in text and "local folder" in text
    assert "HF_HUB_OFFLINE" in text

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(readers_module.huggingface_hub.HfApi, "dataset_info", unreachable)
    text = complaint("someone/streets", UserError)
    assert "ConnectionError: Name or service not known" in text and "needs no network" in text


def test_a_hub_set_is_read_with_its_names(monkeypatch, tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).save(png, "png")
    cell = {"bytes": png.getvalue(), "path": None}
    features = datasets.Features(pixel_values=datasets.Image(), label=datasets.Image())
    rows = datasets.Dataset.from_dict({"pixel_values": [cell] * 3, "label": [cell] * 3}, features=features)
    (tmp_path / "id2label.json").write_text('{"0": "unlabeled", "1": "road", "2": "car"}')
    asked = []

    def load_dataset(path, name=None, *, revision=None, streaming=False):
        asked.append((path, name, revision, streaming))
        return datasets.DatasetDict({"train": rows})

    def download(repo, file, *, repo_type, revision):
        if not (tmp_path / file).is_file():
            raise readers_module.huggingface_hub.errors.LocalEntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(readers_module, "_check_hub", lambda *args: None)
    monkeypatch.setattr(readers_module.datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(readers_module.huggingface_hub, "hf_hub_download", download)
    data = load_data("segments/streets", name="small", revision="v1", labels=LabelsConfig(reduce_labels=True))
    assert asked == [("segments/streets", "small", "v1", False)]
    assert data.schema.names == ("road", "car") and data.schema.origin == "id2label.json"
    assert data.read("train", 0).semantic_map.tolist() == [[255, 0], [1, 255]]


def test_init_goes_through_bad_samples_and_lists_them(folder, tmp_path):
    (folder / "images" / "s2.jpg").write_bytes(b"")
    report = inspect_data(load_data(folder, on_bad_sample="skip"))
    text = write_recipe(report, folder)
    assert report.looked == 4 and "s2.jpg" in text and "empty (0 bytes)" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "recipe.yaml")).data.on_bad_sample == "skip"


def test_a_wrong_validation_fraction_and_a_wrong_split(folder):
    with pytest.raises(UserError, match="validation_fraction"):
        load_data(folder, validation_fraction=1.0)
    with pytest.raises(UserError, match="unknown split"):
        load_data(folder, validation_split="nope")


def test_labels_that_contradict_the_data(folder):
    text = complaint(folder, UserError, labels=LabelsConfig(binary=True))
    assert "3 names are declared" in text
    assert "did you mean 'a'" in complaint(folder, UserError, labels=LabelsConfig(drop=["aa"]))
    with pytest.raises(BadSample):
        load_data(folder, labels=LabelSchema.from_names(["only"]))

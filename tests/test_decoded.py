"""What makes the input pipeline fast changes nothing: decoded rows on disk, normalisation, raw batches."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

import hfseg
from hfseg.data import decoded
from hfseg.data.augment import Augmentation
from hfseg.data.decoded import USED, DecodedRows, decoded_rows, fingerprint, load, save
from hfseg.data.images import Sample, read_row
from hfseg.data.loading import Preparation, TrainingSet, iterating, train_loader, worker_count
from hfseg.data.preparation import Normalisation
from hfseg.errors import BadSample, UserError
from hfseg.labels import LabelSchema
from hfseg.models import FAMILIES
from hfseg.recipe import AugmentConfig
from hfseg.recipe_reading import load_recipe
from runs import environment

SCHEMA = LabelSchema.from_names(["road", "car", "tree"])
MANY = LabelSchema.from_names([f"class {i}" for i in range(300)])


def sample(dtype=np.uint8, channels=3, ids=np.uint8, name="a", height=13, width=17, seed=0) -> Sample:
    rng = np.random.default_rng(seed)
    image = (rng.random((height, width, channels)) * 250).astype(dtype)
    return Sample(image, rng.integers(0, 3, (height, width)).astype(ids), name)


def same(a: Sample, b: Sample) -> bool:
    return all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in ((a.image, b.image), (a.semantic_map, b.semantic_map))
    ) and a.name == b.name


@pytest.fixture
def photos(tmp_path):
    """Rows of eight photographs and maps, as a folder gives them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    columns = {"image": [], "semantic_map": [], "image_id": []}
    for i in range(8):
        one = sample(seed=i)
        Image.fromarray(one.image).save(folder / f"{i}.jpg")
        Image.fromarray(one.semantic_map).save(folder / f"{i}.png")
        for column, value in zip(columns, (folder / f"{i}.jpg", folder / f"{i}.png", i), strict=True):
            columns[column].append(str(value))
    rows = datasets.Dataset.from_dict(columns)
    for column in ("image", "semantic_map"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def reader(rows, cache, index, schema=SCHEMA, channels=3):
    return lambda: cache.read(index, lambda: read_row(rows[index], schema, channels))


# -- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("ids", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_a_sample_comes_back_as_it_was(tmp_path, dtype, ids, channels):
    for height, width in ((13, 17), (1, 1), (64, 64)):
        one = sample(dtype, channels, ids, "straße 7", height, width)
        save(str(tmp_path / "a"), one)
        assert same(load(str(tmp_path / "a")), one)
    assert os.listdir(tmp_path) == ["a"]


def test_an_array_in_another_order_of_axes_comes_back_as_it_was(tmp_path):
    one = sample()
    turned = Sample(one.image.transpose(1, 0, 2), one.semantic_map.T, "turned")
    save(str(tmp_path / "a"), turned)
    assert same(load(str(tmp_path / "a")), turned)


def test_writing_to_a_sample_does_not_reach_the_file(tmp_path):
    save(str(tmp_path / "a"), sample())
    first = load(str(tmp_path / "a"))
    first.image[:], first.semantic_map[:] = 0, 0
    assert same(load(str(tmp_path / "a")), sample())


def test_every_cut_and_every_turned_byte_is_noticed(tmp_path):
    path = tmp_path / "a"
    save(str(path), sample(height=3, width=4))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert load(str(path)) is None
    gaps = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :])
        found = load(str(path))
        gaps += found is not None
        assert found is None or same(found, sample(height=3, width=4))  # a byte between the arrays
    assert gaps < 128
    path.write_bytes(whole + b"\0")
    assert load(str(path)) is None
    path.write_bytes(whole[:-40] + bytes(40))  # a page that never reached the disk
    assert load(str(path)) is None


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(str(tmp_path / "a"), sample())
    assert not os.listdir(tmp_path)


# -- a data set -----------------------------------------------------------------------------------------------------


def test_later_reads_and_later_runs_do_not_decode(photos, tmp_path):
    expected = [read_row(row, SCHEMA) for row in photos]
    for run in range(2):
        cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
        for _ in range(2):
            assert all(same(reader(photos, cache, i)(), one) for i, one in enumerate(expected))
        assert cache.hits == (8, 16)[run] and str(cache.folder) in cache.note
    assert cache.read(0, lambda: pytest.fail("decoded")).name == expected[0].name


def test_another_process_finds_the_same_folder(tmp_path):
    code = ("import hfseg; from hfseg.data.decoded import fingerprint; d = hfseg.load_data('shapes', scenes=3); "
            "print(fingerprint(d['train'], d.schema, 3))")
    data = hfseg.load_data("shapes", scenes=3)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert other.stdout.split()[-1] == fingerprint(data["train"], data.schema, 3)


def test_whatever_changes_the_result_changes_the_name(photos, tmp_path, monkeypatch):
    names = [fingerprint(photos, SCHEMA, 3)]

    def changed(*arguments):
        names.append(fingerprint(*arguments))
        assert len(set(names)) == len(names)

    changed(photos, SCHEMA, 1)
    changed(photos, SCHEMA.merge({"thing": ["car", "tree"]}), 3)
    changed(photos, SCHEMA.drop(["car"]), 3)
    changed(photos, LabelSchema.from_names(["road", "car", "tree"], reduce_labels=True), 3)
    changed(photos.select([1, 0]), SCHEMA, 3)
    file = photos[0]["semantic_map"]["path"]
    os.utime(file, ns=(1, 1))
    changed(photos, SCHEMA, 3)
    with open(file, "ab") as end:
        end.write(b"more")
    os.utime(file, ns=(1, 1))
    changed(photos, SCHEMA, 3)
    os.unlink(file)
    changed(photos, SCHEMA, 3)
    monkeypatch.setattr(decoded, "VERSION", decoded.VERSION + 1)
    changed(photos, SCHEMA, 3)
    paths = datasets.Dataset.from_dict({c: [row["path"] for row in photos[c]] for c in ("image", "semantic_map")})
    changed(paths, SCHEMA, 3)
    os.utime(photos[0]["image"]["path"], ns=(2, 2))
    changed(paths, SCHEMA, 3)
    content = {"bytes": Path(photos[0]["image"]["path"]).read_bytes(), "path": "x"}
    bytes_inside = photos.map(lambda row: {"image": content, "semantic_map": content}, load_from_cache_file=False)
    changed(bytes_inside, SCHEMA, 3)
    parquet = tmp_path / "a.parquet"
    bytes_inside.to_parquet(parquet)
    changed(datasets.Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path / "hf")), SCHEMA, 3)


def test_a_copy_of_another_row_and_swapped_pages_are_noticed(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(str(tmp_path / "00000001"), Sample(image, np.zeros((64, 64), np.uint8), "a"))
    content = (tmp_path / "00000001").read_bytes()
    (tmp_path / "00000002").write_bytes(content)
    assert load(str(tmp_path / "00000002")) is None
    half = len(content) // 2
    (tmp_path / "00000001").write_bytes(content[:half] + content[half + 64 : half + 128] + content[half : half + 64]
                                        + content[half + 128 :])
    assert load(str(tmp_path / "00000001")) is None


def test_a_file_that_goes_while_the_cache_is_measured_stops_nothing(photos, tmp_path, monkeypatch):
    rows = DecodedRows(photos, SCHEMA, root=tmp_path)
    (rows.folder / "00000009.writing").touch()
    files = decoded._files

    def vanishing(root):
        for entry in files(root):
            if entry.name.endswith(".writing"):
                os.unlink(entry.path)
            yield entry

    monkeypatch.setattr(decoded, "_files", vanishing)
    for _ in range(2):
        rows.read(0, lambda: read_row(photos[0], SCHEMA))
    assert rows.hits == 1


def test_the_bound_is_used_for_large_rows(tmp_path):
    sample = Sample(np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8), "a")
    rows = datasets.Dataset.from_dict({"image": ["a"] * 30, "semantic_map": ["b"] * 30})
    cache = DecodedRows(rows, SCHEMA, gigabytes=20.5 * 41_024 / 1e9, root=tmp_path)
    with warnings.catch_warnings(record=True):
        for index in range(30):
            cache.read(index, lambda: sample)
    assert len(list(cache.folder.glob("0*"))) == 20


def test_a_damaged_file_is_decoded_and_written_anew(photos, tmp_path):
    expected = read_row(photos[0], SCHEMA)
    path = reader(photos, cache := DecodedRows(photos, SCHEMA, root=tmp_path / "c"), 0)() and cache.folder / "00000000"
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-7] + b"damaged"):
        path.write_bytes(damaged)
        cache = DecodedRows(photos, SCHEMA, root=tmp_path / "c")
        assert same(reader(photos, cache, 0)(), expected) and not cache.hits
        assert path.read_bytes() == whole


def test_bad_samples_are_named_each_time_and_never_kept(photos, tmp_path):
    with open(photos[2]["image"]["path"], "wb") as file:
        file.write(b"no image")
    cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(BadSample, match=r"2\.jpg"):
            reader(photos, cache, 2)()
    assert os.listdir(cache.folder) == [USED]
    prepare = Preparation(lambda image, semantic_map, other: (image, semantic_map), None, raw=True)
    items = TrainingSet(photos, SCHEMA, prepare, on_bad_sample="skip", cache=cache)
    for _ in range(2):
        assert items[2]["name"] == "3" and "2.jpg" in items[2]["skipped"][0]


def _read_all(arguments) -> list[bytes]:
    rows, root = arguments
    cache = DecodedRows(rows, SCHEMA, root=root)
    return [reader(rows, cache, i)().image.tobytes() for _ in range(3) for i in range(len(rows))]


def test_many_processes_at_once(photos, tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        results = list(pool.map(_read_all, [(photos, tmp_path / "cache")] * 4))
    assert all(result == results[0] for result in results)
    assert results[0][:8] == [read_row(row, SCHEMA).image.tobytes() for row in photos]
    assert len(os.listdir(fold := DecodedRows(photos, SCHEMA, root=tmp_path / "cache").folder)) == 9, os.listdir(fold)


def test_what_a_killed_writer_left_goes_after_an_hour(photos, tmp_path):
    cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    left, fresh = cache.folder / "00000000.1-1.writing", cache.folder / "00000001.1-1.writing"
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * decoded.SPARED,) * 2)
    DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    assert not left.exists() and fresh.exists()


# -- its bounds -----------------------------------------------------------------------------------------------------


def used(root) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_the_bound_holds_and_the_rest_is_decoded(tmp_path):
    data, root = hfseg.load_data("shapes", scenes=40), tmp_path / "cache"
    rows = data["train"]
    cache = DecodedRows(rows, data.schema, gigabytes=0.0013, root=root)
    with pytest.warns(UserWarning, match="data.cache_gb"):
        for i in range(40):
            reader(rows, cache, i, data.schema)()
    kept = len(os.listdir(cache.folder)) - 1
    assert 0 < kept < 40 and used(root) <= 1.3e6
    assert same(reader(rows, cache, 39, data.schema)(), read_row(rows[39], data.schema))
    assert same(reader(rows, cache, 0, data.schema)(), read_row(rows[0], data.schema)) and cache.hits == 1


def test_a_row_that_is_too_large_does_not_keep_the_others_out(tmp_path):
    cache = DecodedRows(datasets.Dataset.from_dict({"image": ["a"], "semantic_map": ["b"]}), SCHEMA,
                        gigabytes=1e-3, root=tmp_path)
    with pytest.warns(UserWarning, match=r"0\.36 MB is not kept"):
        cache.read(0, lambda: sample(height=300, width=300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        cache.read(2, lambda: sample(height=300, width=300))
        cache.read(1, sample)
    assert sorted(os.listdir(cache.folder)) == ["00000001", USED]


def test_the_least_recently_used_data_set_makes_room(tmp_path):
    names, caches = ("a", "b", "c"), []
    for age, name in enumerate(names):
        rows = datasets.Dataset.from_dict({"image": [name], "semantic_map": [name]})
        caches.append(DecodedRows(rows, SCHEMA, gigabytes=1e-2, root=tmp_path / "cache"))
        if name != "c":  # half of the room each
            for i in range(4):
                save(f"{caches[-1].folder}/{i:08d}", sample(height=540, width=540))
            os.utime(caches[-1].folder / USED, (time.time() - (3 - age) * 10**5,) * 2)
    (tmp_path / "cache" / "not ours").mkdir()
    for i in range(10):
        caches[2].read(i, lambda: sample(height=150, width=150))
    assert not caches[0].folder.exists() and caches[1].folder.exists()
    assert len(os.listdir(caches[2].folder)) == 11 and (tmp_path / "cache" / "not ours").exists()
    # A data set that is being read is spared.
    os.utime(caches[1].folder / USED)
    with pytest.warns(UserWarning, match="no more decoded images"):
        for i in range(10, 80):
            caches[2].read(i, lambda: sample(height=150, width=150))
    assert caches[1].folder.exists() and used(tmp_path / "cache") <= 1e7


def test_a_full_or_small_disk_stops_nothing(photos, tmp_path, monkeypatch):
    cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.warns(UserWarning, match="every"):
        assert same(reader(photos, cache, 0)(), read_row(photos[0], SCHEMA))
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    monkeypatch.setattr(decoded, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert same(reader(photos, cache, 0)(), read_row(photos[0], SCHEMA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        reader(photos, cache, 1)()
    assert os.listdir(cache.folder) == [USED]


def test_a_folder_that_cannot_be_written_stops_nothing(photos, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    assert "no decoded images can be added" in cache.note
    assert same(reader(photos, cache, 0)(), read_row(photos[0], SCHEMA))


def test_an_evicted_folder_stops_nothing(photos, tmp_path):
    cache = DecodedRows(photos, SCHEMA, root=tmp_path / "cache")
    first = reader(photos, cache, 0)()
    decoded.shutil.rmtree(cache.folder)
    assert same(reader(photos, cache, 0)(), first)


@pytest.mark.parametrize("value", ["-1", "lots"])
def test_a_wrong_bound_is_refused(value):
    with pytest.raises(UserError, match="cache_gb"):
        load_recipe(overrides=["--data.cache_gb", value])
    assert load_recipe(overrides=["--data.cache_gb", "0.5"]).data.cache_gb == 0.5


def test_what_a_recipe_asks_for(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    assert decoded_rows(photos, SCHEMA, 3, None, on_gpu=False) is None
    assert decoded_rows(photos, SCHEMA, 3, 0, on_gpu=True) is None
    assert decoded_rows(photos.to_iterable_dataset(), SCHEMA, 3, 1, on_gpu=True) is None
    assert not (tmp_path / "hf").exists()
    assert decoded_rows(photos, SCHEMA, 3, None, on_gpu=True).limit == 8e9
    assert decoded_rows(photos, SCHEMA, 3, 0.5, on_gpu=False).folder.parent == tmp_path / "hf" / "hfseg-decoded"


# -- batches --------------------------------------------------------------------------------------------------------


def batches(data, processor, count, cache=None, raw=False, preset="strong", **loader):
    augmentation = Augmentation(AugmentConfig(preset), size=(48, 40), ignore_index=data.schema.ignore_index,
                                mean=(124, 116, 104), rare_classes=(1, 2))
    prepare = Preparation(augmentation, processor, None, 5, raw=raw)
    rows = TrainingSet(data["train"], data.schema, prepare, data.channels, cache=cache)
    with iterating(train_loader(rows, 4, seed=5, **loader)) as iterator:
        taken = [next(iterator) for _ in range(count)]
    for batch in taken:
        if raw:
            batch["pixel_values"], batch["labels"] = prepare.normalise(batch["pixel_values"]), batch["labels"].long()
        assert batch["pixel_values"].dtype == torch.float32 and batch["labels"].dtype == torch.int64
    return taken


def equal(a, b) -> bool:
    return len(a) == len(b) and all(
        x["names"] == y["names"] and all(torch.equal(x[key], y[key]) for key in ("pixel_values", "labels"))
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_cache_on_raw_or_on_where_they_start(tmp_path, workers):
    data, processor = hfseg.load_data("shapes/target", scenes=10), transformers.SegformerImageProcessor()
    expected = batches(data, processor, 7)
    cache = DecodedRows(data["train"], data.schema, root=tmp_path)
    state = torch.get_rng_state()
    for _ in range(2):  # the first pass writes, and the second reads
        assert equal(batches(data, processor, 7, cache, raw=True, num_workers=workers), expected)
    assert equal(batches(data, processor, 2, cache, num_workers=workers, start=5), expected[5:])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(os.listdir(cache.folder)) == 11 and (workers or cache.hits >= 28)


def test_workers_start_once(tmp_path):
    """The loader has no end, and so its workers go on from epoch to epoch."""
    data = hfseg.load_data("shapes", scenes=4)
    rows = TrainingSet(data["train"], data.schema, lambda sample, key, other: {
        "pixel_values": torch.tensor([[[os.getpid()]]]), "labels": torch.zeros(1, 1), "name": ""})
    with iterating(train_loader(rows, 2, num_workers=2)) as iterator:
        seen = {int(pid) for _ in range(20) for pid in next(iterator)["pixel_values"].flatten()}
    assert len(seen) == 2 and os.getpid() not in seen


def test_how_many_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert worker_count(None, on_gpu=True) == 7 and worker_count(None, on_gpu=False) == 0
    assert worker_count(0, on_gpu=True) == 0 and worker_count(3, on_gpu=False) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(None, on_gpu=True) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert worker_count(None, on_gpu=True) == 0
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert worker_count(None, on_gpu=True) == 8


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("family", FAMILIES)
def test_normalisation_is_that_of_every_familys_processor(family, backend):
    names = IMAGE_PROCESSOR_MAPPING_NAMES["segformer" if family.startswith("hfseg_") else family]
    if backend not in names:
        pytest.skip(f"{family} has no such processor")
    kind = getattr(transformers, names[backend])
    defaults = kind()
    choices = [{}, {"do_rescale": False}, {"do_normalize": False}, {"do_normalize": False, "do_rescale": False},
               {"do_normalize": True, "image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.3, 0.4]}]
    two_steps = family == "rf_detr"  # rescales and normalises one after the other: rounds twice, cannot take bytes
    if two_steps:
        choices.remove({"do_rescale": False})
    for choice in choices:
        processor = kind(**{"do_reduce_labels": False, "do_center_crop": False} | choice)
        assert type(processor) is type(defaults)
        normalise = Normalisation(processor)
        for images in (torch.randint(0, 256, (2, 3, 20, 24)).byte(), torch.randn(2, 3, 20, 24) * 300):
            expected = processor(list(images), return_tensors="pt", do_resize=False,
                                 input_data_format="channels_first")["pixel_values"]
            before = images.clone()
            assert torch.equal(normalise(images), expected.float())
            inner = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels innermost, as decoded
            assert torch.equal(normalise(inner), expected.float()) and torch.equal(images, before)
        asked_in_vain = family.startswith("mobilevit") and choice.get("do_normalize")  # it never normalises
        if backend == "torchvision" and not asked_in_vain and not two_steps:
            assert normalise._simple[3], choice  # else it is right, but slow


def test_normalisation_of_many_bands_and_of_a_processor_that_does_more():
    processor = transformers.SegformerImageProcessor(image_mean=[0.1] * 7, image_std=[0.3] * 7)
    images = torch.randint(0, 256, (1, 7, 20, 24)).byte()
    expected = processor(list(images), return_tensors="pt", do_resize=False, input_data_format="channels_first")
    assert torch.equal(Normalisation(processor)(images), expected["pixel_values"])

    class Inverting(transformers.SegformerImageProcessor):
        def rescale_and_normalize(self, images, *arguments):
            return super().rescale_and_normalize(255 - images, *arguments)

    images = torch.randint(0, 256, (1, 3, 20, 24)).byte()
    expected = Inverting()(list(images), return_tensors="pt", do_resize=False, input_data_format="channels_first")
    normalise = Normalisation(Inverting())
    assert torch.equal(normalise(images), expected["pixel_values"]) and not normalise._simple[3]


def test_raw_labels_above_255_classes_become_int64():
    prepare = Preparation(lambda image, semantic_map, other: (image, semantic_map), None, raw=True)
    rows = [{"image": np.zeros((32, 32, 3), np.uint8), "semantic_map": np.full((32, 32), 299, np.uint16)}] * 2
    batch = next(iter(train_loader(TrainingSet(rows, MANY, prepare), 2)))
    assert batch["labels"].element_size() == 2 and batch["labels"].long().unique().tolist() == [299]

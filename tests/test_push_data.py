"""Data goes to a hub on loopback as parquet, and comes back with the same pixels, ids and labels."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import yaml
from huggingface_hub import HfApi
from markdown_it import MarkdownIt
from PIL import Image

import hfseg
from hfseg.errors import UserError
from hfseg.hub.local import LocalHub
from hfseg.hub.push_data import published_schema, push_data
from hfseg.labels import LabelSchema

pytestmark = pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # no license is made up

RNG = np.random.default_rng(0)
NASTY = "<img src=x onerror=alert(1)>|`*[a](javascript:b)"
COLOURS = {"road": (128, 64, 128), NASTY: (0, 0, 142), "void": (0, 0, 0)}

READER = """
import hashlib, json, re, sys
import numpy as np, datasets, huggingface_hub, hfseg
from hfseg.cli import main

def digest(array):
    head = repr((array.shape, array.dtype.str)).encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()

found = {}
assert main(["push-data", sys.argv[1], "me/by-command", "--data.labels.binary", "true"]) == 0
for name in sys.argv[2:]:
    data = hfseg.load_data(name, validation_fraction=0)
    plain = datasets.load_dataset(name)
    streams = datasets.load_dataset(name, streaming=True)
    rows = {}
    for split in data:
        rows[split] = []
        for i in range(len(data[split])):
            sample, stored = data.read(split, i), data[split][i]["image"]
            stored = stored if isinstance(stored, bytes) else stored["bytes"]
            ids = np.array(plain[split][i]["semantic_map"])
            assert (ids == sample.semantic_map).all() and ids.dtype == data.schema.dtype, (ids.dtype, name)
            rows[split].append([sample.name, digest(sample.image), digest(sample.semantic_map),
                                hashlib.sha256(stored).hexdigest()])
        streamed = [row["image_id"] for row in streams[split]]
        assert streamed == [row[0] for row in rows[split]], (streamed, rows[split])
    card = open(huggingface_hub.hf_hub_download(name, "README.md", repo_type="dataset")).read()
    for block in re.findall("```python\\n(.*?)```", card, re.DOTALL):
        exec(block, {})
    found[name] = {"rows": rows, "schema": data.schema.to_dict(), "channels": data.channels, "notes": data.notes,
                   "features": str(plain[next(iter(rows))].features["image"])}
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def online_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def push(hub, source, repo_id, **more):
    return push_data(source, repo_id, **{"endpoint": hub.url, "token": hub.token, "say": lambda text: None, **more})


def repo(hub) -> HfApi:
    return HfApi(hub.url, hub.token)


def read(hub, repo_id, file, **more) -> bytes:
    return Path(repo(hub).hf_hub_download(repo_id, file, repo_type="dataset", **more)).read_bytes()


def names(hub, repo_id, **more) -> set[str]:
    return set(repo(hub).list_repo_files(repo_id, repo_type="dataset", **more)) - {".gitattributes"}


def digest(array) -> str:
    head = repr((array.shape, array.dtype.str)).encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def photo(size=(24, 20)) -> np.ndarray:
    return RNG.integers(0, 256, (*size, 3), dtype=np.uint8)


def folder(root: Path, splits: dict[str, int], image, label, suffix=".jpg") -> Path:
    """Writes split/images and split/masks; `image` and `label` write a file each."""
    for split, count in splits.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image(root / split / "images" / f"pic {i}{suffix}")
            label(root / split / "masks" / f"pic {i}.png")
    return root


def save_photo(path: Path) -> None:
    Image.fromarray(photo()).save(path)


def save_map(values, dtype=np.uint8):
    def save(path: Path) -> None:
        Image.fromarray(RNG.choice(np.array(values, dtype), (24, 20))).save(path)
    return save


def save_colours(path: Path) -> None:
    colours = np.array(list(COLOURS.values()), np.uint8)
    Image.fromarray(colours[RNG.integers(0, len(colours), (24, 20))]).save(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict:
    """By repository: what is pushed, and the flags that it needs."""
    root = tmp_path_factory.mktemp("sources")
    colours = folder(root / "colours", {"train": 3, "val": 2}, save_photo, save_colours)
    (colours / "classes.json").write_text(json.dumps(
        {"names": list(COLOURS), "palette": list(COLOURS.values()), "ignore_index": 2}))
    reduced = folder(root / "reduced", {"train": 3}, save_photo, save_map(range(5)), ".png")
    (reduced / "classes.json").write_text(json.dumps(["wall", "floor", "tree", "car"]))
    many = folder(root / "many", {"test": 2}, save_photo, save_map(range(300), np.uint16), ".webp")
    (many / "classes.json").write_text(json.dumps([f"c{i}" for i in range(300)]))
    bands = folder(root / "bands", {"train": 3}, lambda path: tifffile.imwrite(
        path, RNG.integers(0, 4000, (24, 20, 7), dtype=np.uint16), planarconfig="contig"), save_map([0, 1]), ".tif")
    floats = folder(root / "floats", {"train": 2}, lambda path: np.save(
        path, RNG.normal(size=(24, 20, 5)).astype(np.float32)), save_map([0, 1]), ".npy")
    deep = folder(root / "deep", {"train": 2}, lambda path: Image.fromarray(
        RNG.integers(0, 65536, (24, 20), dtype=np.uint16)).save(path), save_map([0, 1]), ".png")
    return {
        "me/shapes": ("shapes/target", ["--data.max_train_samples", "5"]),
        "me/colours": (colours, []),
        "me/binary": (folder(root / "binary", {"train": 3}, save_photo, save_map([0, 255])), []),
        "me/reduced": (reduced, ["--data.labels.reduce_labels", "true", "--data.labels.merge", "{thing: [tree, car]}",
                                 "--data.labels.drop", "[floor]"]),
        "me/many": (many, []), "me/bands": (bands, []), "me/floats": (floats, []), "me/deep": (deep, []),
    }  # fmt: skip


@pytest.fixture(scope="module")
def round_trip(hub, sources, tmp_path_factory) -> dict:
    """Pushes all of them, and reads all of them back in a process that knows only this hub."""
    for repo_id, (source, flags) in sources.items():
        assert push(hub, source, repo_id, overrides=flags).changed > 4
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(sources["me/binary"][0]), *sources], capture_output=True, text=True,
        env=os.environ | hub.environment() | {"HF_HOME": str(home), "OMP_NUM_THREADS": "1"}, timeout=280, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("FOUND")[1])


def test_what_comes_back_is_what_was_pushed(sources, round_trip):
    from hfseg.data import load_recipe_data
    from hfseg.recipe_reading import load_recipe

    for repo_id, (source, flags) in sources.items():
        flags = [*flags, "--data.path", str(source), "--data.validation_fraction", "0"]
        data, found = load_recipe_data(load_recipe(None, flags)), round_trip[repo_id]
        assert list(found["rows"]) == list(data), repo_id
        for split in data:
            wanted = []
            for i in range(len(data[split])):
                sample, stored = data.read(split, i), data[split][i]["image"]
                path = stored if isinstance(stored, str) else stored["path"]
                content = Path(path).read_bytes() if path else stored["bytes"]
                wanted.append([sample.name, digest(sample.image), digest(sample.semantic_map),
                               hashlib.sha256(content).hexdigest()])
            assert found["rows"][split] == wanted, (repo_id, split)
        assert tuple(found["schema"]["names"]) == data.schema.names
        assert [tuple(colour) for colour in found["schema"]["palette"]] == list(data.schema.palette)
        assert found["schema"] == published_schema(data.schema).to_dict()
        assert found["channels"] == data.channels and found["notes"] == [], found["notes"]


def test_pictures_are_image_features_and_other_files_bytes(round_trip):
    for repo_id in round_trip:
        wanted = "Value('binary')" if repo_id in ("me/bands", "me/floats") else "Image("
        assert round_trip[repo_id]["features"].startswith(wanted), repo_id
    assert round_trip["me/bands"]["channels"] == 7


def test_the_command_pushes_as_the_function_does(hub, sources, round_trip):
    data = [file for file in names(hub, "me/binary") if file.endswith(".parquet")]
    assert data == ["data/train-00000-of-00001.parquet"]
    assert [read(hub, "me/by-command", file) for file in data] == [read(hub, "me/binary", file) for file in data]


def test_the_same_content_makes_no_second_commit(hub, sources):
    source, flags = sources["me/colours"]
    first = push(hub, source, "me/twice", overrides=flags)
    commits = len(repo(hub).list_repo_commits("me/twice", repo_type="dataset"))
    second = push(hub, hfseg.load_data(source, validation_fraction=0), "me/twice")
    assert first.changed > 0 and second.changed == 0 and second.oid == first.oid
    assert len(repo(hub).list_repo_commits("me/twice", repo_type="dataset")) == commits


def test_label_files_have_no_remap_left(hub, sources):
    push(hub, sources["me/reduced"][0], "me/labels", overrides=sources["me/reduced"][1])
    schema = LabelSchema.from_dict(json.loads(read(hub, "me/labels", "labels.json")))
    assert schema.names == ("wall", "thing") and schema.stored == ((0, 0), (1, 1), (255, None))
    assert schema.stored_names == ("wall", "thing", "unlabelled, floor")
    assert json.loads(read(hub, "me/labels", "id2label.json")) == {"0": "wall", "1": "thing"}


def test_shards_are_cut_by_size_and_old_ones_go(hub):
    data = hfseg.load_data("shapes/source", scenes=12)
    push(hub, data, "me/shards", max_shard_bytes=100_000)
    shards = sorted(name for name in names(hub, "me/shards") if name.startswith("data/train"))
    assert len(shards) > 2 and shards[0] == f"data/train-00000-of-{len(shards):05d}.parquet"
    parts = [read(hub, "me/shards", name) for name in shards]
    assert all(len(part) < 130_000 for part in parts)
    assert sum(pq.read_metadata(io.BytesIO(part)).num_rows for part in parts) == 12
    push(hub, data, "me/shards")
    assert [name for name in names(hub, "me/shards") if name.startswith("data/train")] == [
        "data/train-00000-of-00001.parquet"]
    whole = pq.read_table(io.BytesIO(read(hub, "me/shards", "data/train-00000-of-00001.parquet")))
    assert whole["image_id"].to_pylist() == data["train"]["image_id"][:]


def test_rows_are_held_for_no_more_than_a_row_group(tmp_path, monkeypatch):
    from hfseg.hub import parquet

    monkeypatch.setattr(parquet, "ROWS", 4)
    data = hfseg.load_data("shapes/source", scenes=10)
    held, add = [], parquet._Shards.add

    def watched(self, row):
        add(self, row)
        held.append(len(self._waiting))

    monkeypatch.setattr(parquet._Shards, "add", watched)
    splits = parquet.write_splits(data, tmp_path, parquet.columns(data))
    assert max(held) < 4 and len(held) == 20
    assert pq.read_metadata(splits[0].files[0]).num_row_groups == 3
    assert splits[0].pixels.sum() == 10 * 128 * 128 and splits[0].rows == 10


def test_a_stream_is_pushed_row_by_row(hub, tmp_path):
    data = hfseg.load_data("shapes/source", scenes=6)
    (tmp_path / "data").mkdir()
    data["train"].to_parquet(tmp_path / "data" / "train.parquet")
    data.schema.save(tmp_path / "labels.json")
    stream = hfseg.load_data(tmp_path, streaming=True, validation_fraction=0)
    assert stream.streaming
    push(hub, stream, "me/stream")
    push(hub, hfseg.load_data(tmp_path, validation_fraction=0), "me/not-stream")
    name = "data/train-00000-of-00001.parquet"
    assert read(hub, "me/stream", name) == read(hub, "me/not-stream", name)


def test_bad_rows_stop_or_are_left_out(hub, tmp_path):
    root = folder(tmp_path / "bad", {"train": 4}, save_photo, save_map([0, 1]))
    broken = root / "train" / "images" / "pic 2.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=r"pic 2\.jpg: the file is broken"):
        push(hub, root, "me/bad")
    assert names(hub, "me/bad") == set()
    said = []
    push(hub, root, "me/bad", overrides=["--data.on_bad_sample", "skip"], say=said.append)
    table = pq.read_table(io.BytesIO(read(hub, "me/bad", "data/train-00000-of-00001.parquet")))
    assert table["image_id"].to_pylist() == ["pic 0", "pic 1", "pic 3"]
    assert any("1 left out" in text for text in said)
    assert "1 row of the source could not be used" in read(hub, "me/bad", "README.md").decode()


def test_nothing_is_held_out_unless_asked_for(hub, sources):
    push(hub, sources["me/binary"][0], "me/split", overrides=["--data.validation_fraction", "0.4"])
    assert {"data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"} < names(hub, "me/split")


def test_no_path_of_this_machine_is_published(hub, sources, round_trip):
    for repo_id, (source, _) in sources.items():
        for file in names(hub, repo_id):
            assert str(Path(source).parent).encode() not in read(hub, repo_id, file) or source == "shapes/target"
    table = pq.read_table(io.BytesIO(read(hub, "me/colours", "data/train-00000-of-00001.parquet")))
    assert [value["path"] for value in table["image"].to_pylist()] == ["pic 0.jpg", "pic 1.jpg", "pic 2.jpg"]


def test_the_card_is_valid_and_names_mean_nothing(hub, round_trip):
    card = read(hub, "me/colours", "README.md").decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in metadata and "## License\n" in card
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 3
    assert metadata["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*"}, {"split": "validation", "path": "data/validation-*"}]
    shown = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert "<img src=x" not in shown and 'href="javascript' not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown and "`#804080`" in card
    assert repo(hub).dataset_info("me/colours").card_data["size_categories"] == ["n<1K"]


def test_what_a_person_wrote_into_the_card_stays(hub, sources):
    push(hub, sources["me/binary"][0], "me/edited")
    card = read(hub, "me/edited", "README.md").decode()
    mine = card.replace("---\npretty_name", "---\nlicense: cc0-1.0\npretty_name", 1) + "\n## Collection\n\nBy hand.\n"
    repo(hub).upload_file(path_or_fileobj=mine.encode(), path_in_repo="README.md", repo_id="me/edited",
                          repo_type="dataset")
    push(hub, sources["me/deep"][0], "me/edited")
    again = read(hub, "me/edited", "README.md").decode()
    assert "license: cc0-1.0" in again and "By hand." in again and "No license is stated" not in again
    assert yaml.safe_load(again.split("---\n")[1])["dataset_info"]["splits"][0]["num_examples"] == 2


def test_a_pull_request_and_a_branch_leave_main_alone(hub, sources):
    first = push(hub, sources["me/binary"][0], "me/proposed")
    asked = push(hub, sources["me/deep"][0], "me/proposed", create_pr=True)
    push(hub, sources["me/deep"][0], "me/proposed", revision="next")
    assert repo(hub).dataset_info("me/proposed").sha == first.oid and "/discussions/" in asked.url
    name = "data/train-00000-of-00001.parquet"
    assert read(hub, "me/proposed", name, revision=asked.oid) == read(hub, "me/proposed", name, revision="next")


@pytest.mark.parametrize("source, flags, message", [
    ("shapes", ["--data.image_size", "32"], "published as they are"),
    ({"train": []}, [], "whose labels are not known"),
])  # fmt: skip
def test_what_cannot_be_published_is_refused(hub, source, flags, message):
    with pytest.raises(UserError, match=message):
        push(hub, source, "me/refused", overrides=flags)


def test_splits_whose_names_differ_in_punctuation_are_refused(hub):
    rows = hfseg.load_data("shapes", scenes=2)
    data = type(rows)({"fold-1": rows["train"], "fold 1": rows["train"]}, rows.schema)
    with pytest.raises(UserError, match="punctuation"):
        push(hub, data, "me/refused")


def test_real_data(hub, shared_data):
    """Their void is 11, not 255."""
    flags = ["--data.max_train_samples", "3", "--data.max_eval_samples", "2"]
    push(hub, shared_data / "camvid", "me/camvid", overrides=flags)
    source = hfseg.load_data(shared_data / "camvid")
    table = pq.read_table(io.BytesIO(read(hub, "me/camvid", "data/train-00000-of-00001.parquet"))).to_pylist()
    for i, row in enumerate(table):
        ids = np.array(Image.open(io.BytesIO(row["semantic_map"]["bytes"])))
        assert row["image"]["bytes"] == Path(source["train"][i]["image"]["path"]).read_bytes()
        assert (ids == source.read("train", i).semantic_map).all() and set(np.unique(ids)) <= {*range(11), 255}
    assert len(table) == 3

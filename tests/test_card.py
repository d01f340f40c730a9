"""The card: true numbers, valid metadata, harmless names, usage that runs, and a person's words kept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

import hfseg
from hfseg.curves import class_labels, draw_class_bars
from hfseg.errors import UserError
from hfseg.hub import card_base, card_speed
from hfseg.hub.card import card_files, card_text, without_paths, write_card
from hfseg.hub.card_base import base_facts
from hfseg.hub.card_facts import Facts, read_facts
from hfseg.hub.card_merge import Merge, split
from hfseg.hub.card_results import confused, pixels
from hfseg.hub.card_speed import measure_speed
from hfseg.hub.card_text import public
from hfseg.hub.local.card_reading import check_card
from hfseg.labels import make_palette
from hfseg.metrics.scores import scores_from_matrix, to_json_ready
from hfseg.recipe import Recipe
from runs import environment, small_recipe

CARDS = Path(__file__).resolve().parent.parent / "model_cards"
SPEED = {"milliseconds": 12.34, "image_size": [96, 128], "calls": 15, "images": 3, "device": "cpu, A Processor",
         "threads": 2, "dtype": "float32", "fused": True}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory of a few steps, with what the loop notes, pictures to try, and no card yet."""
    run = tmp_path_factory.mktemp("runs") / "my_run"
    hfseg.train(small_recipe(run), verbose=False)
    results = json.loads((run / "eval_results.json").read_text())
    names = list(results["per_category_iou"])
    matrix = np.random.default_rng(0).integers(0, 50, (len(names), len(names))) + 400 * np.eye(len(names), dtype=int)
    results["per_category_confusion"] = confusion(matrix, names)
    results["training"] |= {"speed": SPEED, "training_images": 8, "training_split": "train"}
    (run / "eval_results.json").write_text(json.dumps(results))
    (run / "samples" / "inputs").mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(run / "samples" / "inputs" / "00.png")
    (run / "README.md").unlink()
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "my_run", ignore=shutil.ignore_patterns("checkpoints"))


def write(run, say=None) -> str:
    """The card without its charts, which take most of the time."""
    text, kept = card_text(read_facts(run))
    (run / "README.md").write_text(text)
    if say:
        say(kept)
    return text


def confusion(matrix, names) -> dict:
    return {name: {other: int(count) for other, count in zip(names, row) if count} for name, row in zip(names, matrix)}


def facts_of(names, matrix=None, **more) -> Facts:
    """Facts of a run that was never trained."""
    matrix = np.eye(len(names), dtype=int) * 7 + 1 if matrix is None else np.asarray(matrix)
    results = to_json_ready(scores_from_matrix(matrix, names)) | {
        "num_images": 3, "protocol": {"split": "validation", "data": "my data", "versions": {"hfseg": "1"}},
        "per_category_confusion": confusion(matrix, names), "training": {"best_step": 2, "steps": 3},
    }  # fmt: skip
    given = {
        "path": Path("net"), "name": "net", "repo_id": None, "config": {"model_type": "segformer"},
        "names": tuple(names), "palette": make_palette(len(names)), "results": results, "recipe": Recipe(),
    }  # fmt: skip
    return Facts(**{**given, **more})


# -- metadata ----------------------------------------------------------------------------------------------------


def test_the_metadata_has_the_true_scores_and_goes_round(run):
    write(run)
    results = json.loads((run / "eval_results.json").read_text())
    card = ModelCard.load(run / "README.md")
    said = {(score.metric_type, score.metric_name): score for score in card.data.eval_results}
    for key, name in {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy",
                      "overall_accuracy": "Overall accuracy"}.items():  # fmt: skip
        assert said[key, name].metric_value == pytest.approx(results[key], abs=1e-5)
    for name, value in results["per_category_iou"].items():
        if value is None:
            assert ("iou", f"IoU of {name}") not in said
        else:
            assert said["iou", f"IoU of {name}"].metric_value == pytest.approx(value, abs=1e-5)
    score = card.data.eval_results[0]
    assert score.task_type == "image-segmentation"
    assert (score.dataset_name, score.dataset_split) == ("shapes/source", "validation")
    assert card.data.model_name == "my_run" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-segmentation" and card.data.language is None
    assert card.data.license is None and card.data.base_model is None and card.data.datasets is None
    assert card.data.widget == [{"src": "samples/inputs/00.png", "example_title": "Sample 1"}]
    assert {"hfseg", "segformer"} <= set(card.data.tags)

    again = ModelCard(str(card))  # through the client's own writer and reader
    assert again.data.to_dict() == card.data.to_dict()
    name, scores = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "my_run" and scores == card.data.eval_results
    assert check_card((run / "README.md").read_text(), "model") == ([], [])


def test_the_local_hub_accepts_the_card(run, tmp_path, monkeypatch):
    import huggingface_hub.repocard

    with hfseg.LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(huggingface_hub.repocard.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        ModelCard(write(run)).validate()
        with pytest.raises(ValueError, match="pipeline_tag"):
            ModelCard("---\npipeline_tag: 3\n---\n").validate()


def test_data_and_base_of_the_hub_are_linked_and_the_license_is_inherited():
    facts = facts_of(["a", "b"], name="net", repo_id="me/net")
    recipe = Recipe()
    recipe.model.name, recipe.data.path, recipe.data.name = "nvidia/mit-b0", "ann/streets", "small"
    facts.results["protocol"] |= {"data": "ann/streets", "data_revision": "v2"}
    facts.results["training"] |= {
        "base_model": "nvidia/mit-b0", "base_revision": "a" * 40, "license": "other",
        "license_name": "nvidia-license", "license_link": "https://example.com/l",
    }  # fmt: skip
    text, _ = card_text(Facts(**{**vars(facts), "recipe": recipe}))
    card = ModelCard(text)
    assert card.data.base_model == "nvidia/mit-b0" and card.data.base_model_relation == "finetune"
    assert card.data.datasets == ["ann/streets"] and card.data.license == "other"
    assert card.data.license_name == "nvidia-license" and card.data.license_link == "https://example.com/l"
    score = card.data.eval_results[0]
    assert (score.dataset_type, score.dataset_config, score.dataset_revision) == ("ann/streets", "small", "v2")
    assert "fine-tuned from [nvidia/mit-b0](https://huggingface.co/nvidia/mit-b0) (commit `aaaaaaaaaaaa`)" in card.text
    assert "[ann/streets](https://huggingface.co/datasets/ann/streets)" in card.text
    assert "`other` (`nvidia-license`), as the card of [nvidia/mit-b0]" in card.text
    assert check_card(text, "model") == ([], [])


def test_what_only_looks_like_a_hub_id_is_not_linked():
    """A relative folder has a slash, too; only what the loop noted counts."""
    recipe = Recipe()
    recipe.model.name, recipe.data.path = "runs/first", "data/streets"
    facts = facts_of(["a", "b"], recipe=recipe)
    card = ModelCard(card_text(facts)[0])
    assert card.data.base_model is None and card.data.datasets is None and "](http" not in card.text
    assert "so none is stated here" in card.text.split("## License")[1]


# -- text --------------------------------------------------------------------------------------------------------


def test_the_text_says_what_was_trained_measured_and_how(run):
    text = write_card(run).read_text()
    results = json.loads((run / "eval_results.json").read_text())
    for heading in ("Usage", "Intended use", "Results", "Limits", "Speed", "Training", "Evaluation protocol",
                    "License"):  # fmt: skip
        assert f"\n## {heading}\n" in text
    for name, value in results["per_category_iou"].items():
        assert f"| `{name}` | {'–' if value is None else format(value, '.4f')} |" in text
    for file in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (run / file).is_file()
    assert "**12.3 ms** per image of 128 x 96 pixels on `cpu, A Processor`, 2 threads" in text
    assert "4 steps of 4 images" in text and "split `train`, 8 images" in text
    recipe = re.search(r"```yaml\n(model:.*?)```", text, re.DOTALL)[1]
    assert yaml.safe_load(recipe)["train"]["learning_rate"] == 2e-3
    protocol = yaml.safe_load(re.search(r"```yaml\n(split:.*?)```", text, re.DOTALL)[1])
    assert protocol == {key: value for key, value in results["protocol"].items() if value is not None}
    assert "carbon" not in text.lower() and "None" not in text and "nan" not in text.split()


def test_limits_name_weak_confused_rare_and_unmeasured_classes():
    names = ["road", "car", "dust", "never"]
    matrix = [[90_000, 10_000, 0, 0], [3_000, 7_000, 0, 0], [30, 0, 10, 0], [0, 0, 0, 0]]
    facts = facts_of(names, matrix)
    limits = card_text(facts)[0].split("## Limits")[1].split("\n## ")[0]
    assert "30.0 % of the pixels of `car` are labelled `road`" in limits
    assert limits.index("75.0 % of the pixels of `dust`") < limits.index("30.0 %") < limits.index("10.0 %")
    assert "`dust` (40)" in limits and "`car` (" not in limits.split("Few labelled")[1].split("\n")[0]
    assert "neither the labels nor the predictions of this split have them: `never`." in limits
    assert "`dust` (IoU 0.250, since 75.0 % of its pixels are missed)" in limits
    assert pixels(facts.results) == {"road": 100_000, "car": 10_000, "dust": 40, "never": 0}
    assert [pair[1:] for pair in confused(facts.results)] == [("dust", "road"), ("car", "road"), ("road", "car")]


def test_a_busy_machine_is_told():
    facts = facts_of(["a", "b"])
    for load, told in ((2.1, False), (6.0, True)):
        facts.training["speed"] = SPEED | {"load": load, "cores": 2}
        assert ("busy with other work" in card_text(facts)[0]) == told


def test_many_classes_are_folded():
    text, _ = card_text(facts_of([f"class {i}" for i in range(150)]))
    assert "<summary>All 150 classes</summary>" in text and "`class 149`" in text
    assert "and 120 more" in text


def blocks(card: str) -> list[str]:
    """The Python code of a card."""
    tokens = MarkdownIt("commonmark").parse(card.split("\n---\n", 1)[1])
    return [token.content for token in tokens if token.type == "fence" and token.info == "python"]


def test_both_usages_run_from_the_text_and_agree(run):
    """The plain one while `hfseg` cannot be imported."""
    folder = run.parent
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)).save(folder / "photo.jpg")
    ours, plain = blocks(write(run))
    assert "my_run" in ours and "hfseg" not in plain
    code = "\n".join((
        "import sys, numpy", "sys.modules['hfseg'] = None", plain, "numpy.save('plain.npy', semantic_map.numpy())",
        "del sys.modules['hfseg']", ours, "numpy.save('ours.npy', result.semantic_map)",
    ))  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("background") == 2, done.stderr
    ours, plain = np.load(folder / "ours.npy"), np.load(folder / "plain.npy")
    assert ours.shape == plain.shape == (48, 80) and (ours == plain).mean() > 0.999
    assert (folder / "overlay.png").is_file()


def test_usage_of_bands_and_of_a_repository(run, monkeypatch):
    model, processor = hfseg.load_model("segformer", ["a", "b"], channels=5, config={"depths": [1, 1, 1, 1]})
    folder = run.parent / "me" / "bands"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    ours, plain = blocks(write_card(folder, "me/bands").read_text())
    monkeypatch.chdir(run.parent)
    np.save("scene.npy", np.random.default_rng(0).integers(0, 255, (40, 72, 5), np.uint8))
    exec(ours, space := {})
    exec(plain, other := {})
    assert (space["result"].semantic_map == other["semantic_map"].numpy()).mean() > 0.999
    assert read_facts(folder).repo_id == "me/bands"  # the card says where it belongs
    assert '"me/bands"' in write_card(folder).read_text()


def test_a_network_of_hfsegs_own_is_not_promised_to_transformers():
    text, _ = card_text(facts_of(["a", "b"], config={"model_type": "hfseg_yolact", "backbone": "resnet50"}))
    assert len(blocks(text)) == 1 and "YOLACT (backbone `resnet50`) is not one of transformers' own" in text
    text, _ = card_text(facts_of(["a", "b"], config={"model_type": "hfseg_smp", "architecture": "unet"}))
    assert "A U-Net model" in text and "import hfseg.auto" in blocks(text)[1] and "transformers alone" not in text


@pytest.mark.parametrize("card", sorted(CARDS.glob("*/README.md")), ids=lambda card: card.parent.name)
def test_the_cards_of_this_repository_are_made_by_it_and_untouched(card):
    text = card.read_text(encoding="utf-8")
    assert check_card(text, "model") == ([], [])
    sections = [part for part in split(text.split("\n---\n", 1)[1], {}) if part.heading]
    assert all(part.key and not part.edited for part in sections), "python scripts/make_model_cards.py makes them"
    assert {"introduction", "usage", "results", "training", "evaluation"} <= {part.key for part in sections}
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (card.parent / unquote(name)).is_file(), name


# -- the same bytes, and nothing of the machine ------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes(run, tmp_path):
    write_card(run)
    first = {file.name: file.read_bytes() for file in run.iterdir() if file.suffix in (".png", ".md")}
    assert {"README.md", "per_class_iou.png", "learning_curve.png"} <= set(first)
    time.sleep(1.1)  # a time in a file would be another one
    write_card(run)
    left_out = shutil.ignore_patterns("README.md", "per_class_iou.png")
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere" / "my_run", ignore=left_out)
    write_card(elsewhere)
    for name, content in first.items():
        assert (run / name).read_bytes() == content and (elsewhere / name).read_bytes() == content
        if name.endswith(".png"):
            with Image.open(run / name) as picture:
                assert not picture.text
    files, kept = card_files(run)
    assert files == first and not kept


def test_nothing_of_the_machine_is_in_the_card(run, tmp_path):
    recipe = Recipe(output_dir=str(tmp_path / "out" / "mine"))
    recipe.data.path, recipe.model.name = str(tmp_path / "photos"), "/home/wilma/nets/base"
    recipe.model.config = {"weights": "/data/wilma/x/w.bin", "key": "hf_" + "a" * 34}
    recipe.train.resume = str(tmp_path / "checkpoints" / "step-3")
    facts = read_facts(run)
    facts.protocol["note"] = f"cached in {tmp_path}/cache/rows and ~/secret/b"
    text, _ = card_text(Facts(**{**vars(facts), "recipe": without_paths(recipe)}))
    for secret in (str(tmp_path), str(run.parent), "/home", "wilma", "aaaaaaaa", "~", "secret"):
        assert secret not in text
    assert "photos" in text and "`base`" in text and "w.bin" in text and "cached in rows and b" in text


@pytest.mark.parametrize("text, shown", [
    ("/home/ann/data", "data"), ("C:\\Users\\ann\\x.yaml", "x.yaml"), ("and/or a/b/c", "and/or a/b/c"),
    ("https://example.com/a/b", "https://example.com/a/b"), ("file:///mnt/a/b", "b"), ("x='/mnt/a/b'", "x='b'"),
    ("4 / 2", "4 / 2"), (3, 3), (["~/a/b"], ["b"]),
])  # fmt: skip
def test_paths_lose_where_they_lie(text, shown):
    assert public(text) == shown


# -- strangers' names --------------------------------------------------------------------------------------------

NASTY = st.one_of(
    st.text(max_size=40),
    st.sampled_from([
        "<script>alert(1)</script>", "![x](http://e.vil/p.png)", "[a](javascript:alert(1))", "# heading", "a\n## b",
        "a\n\n---\n\n# c", "`code`", "``", "|a|b|", "a \\| b", "\\", "<!-- hfseg: usage 0000000000000000 -->", "-->",
        "https://e.vil", "www.e.vil", "a@b.example", "```\n# x", "~~~", "&lt;b&gt;", "&#x3C;b>", "*a*_b_", "---",
        "</details><img src=x>", "[x]: http://e.vil", "<http://e.vil>", "\u202egnp.exe", "a\rb", "\x00", "\udc80",
        "- a", "1. a", "> a", "{{ x }}", "': [", "null", "!!python/object:os.system", "%TAG", "&a", "*a", "$x$",
    ]),
)  # fmt: skip


def rendered(text: str) -> Counter:
    """The tags that a card gives, with the addresses that they lead to."""
    body = text.split("\n---\n", 1)[1]
    found = Counter()

    def walk(tokens):
        for token in tokens:
            if token.type in ("html_block", "html_inline"):
                found.update(re.findall(r"<[^>]*>", re.sub(r"<!-- hfseg: [a-z0-9= _-]+ -->", "", token.content)))
            elif token.nesting >= 0 and token.tag:
                found[token.tag] += 1
                found.update(f"{token.tag} {token.attrs[key]}" for key in ("href", "src") if key in token.attrs)
            walk(token.children or [])

    walk(MarkdownIt("commonmark", {"html": True}).enable("table").parse(body))
    return found


@settings(max_examples=40)
@given(names=st.lists(NASTY, min_size=3, max_size=3, unique=True), data=NASTY, name=NASTY, split=NASTY, device=NASTY,
       strategy=NASTY, kind=NASTY, sample=NASTY)  # fmt: skip
def test_names_of_strangers_mean_nothing(names, data, name, split, device, strategy, kind, sample):
    def facts(names, data, name, split, device, strategy, kind, sample):
        recipe = Recipe()
        recipe.transfer.strategy, recipe.model.name, recipe.data.name = strategy, kind, data
        recipe.data.labels.names, recipe.loss.terms = list(names), {strategy: 1.0}
        made = facts_of(names, name=name, recipe=recipe, config={"model_type": kind},
                        samples=(f"0{sample}.png",), inputs=(f"0{sample}.png",))  # fmt: skip
        made.results["protocol"] |= {"split": split, "data": data, "averaging": device}
        made.results["training"] |= {"speed": SPEED | {"device": device}, "device": device, "license": None}
        return made

    text, _ = card_text(facts(names, data, name, split, device, strategy, kind, sample))
    plain, _ = card_text(facts(["a", "b", "c"], "d", "n", "s", "cpu", "t", "k", "x"))
    found, expected = rendered(text), rendered(plain)
    ignored = {key for key in found + expected if key.startswith("img ") or key == "code"}
    assert {key: count for key, count in found.items() if key not in ignored} == {
        key: count for key, count in expected.items() if key not in ignored}  # fmt: skip
    assert all(re.fullmatch(r"img (samples/[^/:]+\.png|per_class_iou\.png)", key) for key in found if key[:4] == "img ")
    assert sum(count for key, count in found.items() if key == "img") == expected["img"]
    values = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert list(values) == list(yaml.safe_load(plain.split("\n---\n")[0].removeprefix("---\n")))
    assert len(values["model-index"][0]["results"][0]["metrics"]) == 6
    assert check_card(text, "model") == ([], [])
    for block in blocks(text):
        compile(block, "usage", "exec")
    assert card_text(Facts(**{**vars(facts(names, data, name, split, device, strategy, kind, sample)), "old": text}))[
        0] == text  # and it is read back as ours


def test_harmless_names_stay_readable():
    text, _ = card_text(facts_of(["sign_symbol", "traffic light", "道路"], name="my_run-2"))
    assert "# my\\_run-2\n" in text and "`sign_symbol`, `traffic light` and `道路`" in text
    assert yaml.safe_load(text.split("\n---\n")[0][4:])["model-index"][0]["name"] == "my_run-2"


# -- a person's edits --------------------------------------------------------------------------------------------


def test_a_persons_words_stay_and_ours_follow_the_results(run):
    path, said = run / "README.md", []
    write(run)
    card = path.read_text()
    card = card.replace("## Results", "## Ethics\n\nAsk *first*.\n\n```md\n## Not a heading\n```\n\n## Results", 1)
    card = card.replace("## Intended use", "## Intended use\n\nOnly for my own garden.", 1)
    card = card.replace("\n# my", "\nA word before.\n\n# my", 1) + "\nThanks\n======\n\nto all\n"
    path.write_text(card)
    results = json.loads((run / "eval_results.json").read_text())
    results["mean_iou"] = 0.12345
    (run / "eval_results.json").write_text(json.dumps(results))

    again = write(run, said.extend)
    assert "## Ethics\n\nAsk *first*.\n\n```md\n## Not a heading\n```\n\n## Results" in again
    assert "Only for my own garden." in again and "Thanks\n======\n\nto all" in again
    assert again.index("A word before.") < again.index("# my") and "**0.1235**" in again
    assert ModelCard(again).data.eval_results[0].metric_value == 0.12345
    assert said == ["section: Intended use"]
    assert Counter(re.findall(r"^## .*$", again, re.MULTILINE)).most_common(1)[0][1] == 1
    assert write(run) == again
    path.write_text(re.sub(r"## Intended use.*?(?=## Ethics)", "", again, flags=re.DOTALL))
    assert "Only for" not in write(run) and "## Intended use" in path.read_text()


def test_a_persons_metadata_stays_but_scores_are_the_runs(run):
    path, said = run / "README.md", []
    write(run)
    card = ModelCard.load(path)
    card.data.license, card.data.language, card.data.tags = "cc-by-4.0", ["en"], [*card.data.tags, "garden"]
    card.data.eval_results[0].metric_value = 0.99
    card.data.pop("widget")
    card.save(path)  # the client writes the metadata anew
    again = ModelCard(write(run, said.extend))
    results = json.loads((run / "eval_results.json").read_text())
    assert again.data.license == "cc-by-4.0" and again.data.language == ["en"] and "garden" in again.data.tags
    assert again.data.eval_results[0].metric_value == pytest.approx(results["mean_iou"], abs=1e-5)
    assert "widget" not in again.data and "`cc-by-4.0`." in again.text
    assert sorted(said) == ["metadata: language", "metadata: license", "metadata: tags", "metadata: without widget"]
    write_card(run, say=said.append)
    assert said[-1] == "kept as a person left it, delete it to have it written anew: metadata: without widget"
    assert write(run) == path.read_text()


def test_sections_that_are_gone_go_and_new_ones_come_in_place(run):
    path = run / "README.md"
    write(run)
    path.write_text(path.read_text().replace("## Limits", "## Mine\n\nhere\n\n## Limits"))
    results = json.loads((run / "eval_results.json").read_text())
    speed = results["training"].pop("speed")
    (run / "eval_results.json").write_text(json.dumps(results))
    assert "## Speed" not in write(run)
    results["training"]["speed"] = speed
    (run / "eval_results.json").write_text(json.dumps(results))
    headings = re.findall(r"^## (.*)$", write(run), re.MULTILINE)
    assert headings == ["Usage", "Intended use", "Results", "Mine", "Limits", "Speed", "Training",
                        "Evaluation protocol", "License"]  # fmt: skip


def test_a_card_of_somebody_else_keeps_its_words_and_gains_ours(run):
    theirs = "---\nlicense: mit\ntags: [mine]\n---\n# Their net\n\ntheir words\n\n## Training\n\non a farm\n"
    (run / "README.md").write_bytes(theirs.replace("\n", "\r\n").encode("utf-8-sig"))
    text = write(run)
    card = ModelCard(text)
    assert card.data.license == "mit" and card.data.tags == ["mine"] and card.data.eval_results
    assert "# Their net\n\ntheir words" in text and "## Training\n\non a farm" in text and "## Results" in text
    assert text.count("\n# ") == 1 and text.count("\n## Training") == 1
    assert write(run) == text


WORDS = st.text(st.sampled_from("ab #*_`<>-=~|[]()!\\\t\n"), max_size=60)


@settings(max_examples=100)
@given(st.lists(WORDS, max_size=4), st.data())
def test_whatever_a_person_writes_is_still_there(texts, data):
    """Under headings of their own; the text is one that Markdown ends with the section."""
    ours = {"introduction": "# net\n\nold", "usage": "## Usage\n\nold", "results": "## Results\n\nold"}
    values = {"tags": ["a"]}
    front, *parts = Merge(None).write(values, ours).split("\n# ")
    parts = ("# " + "\n# ".join(parts)).split("\n\n## ")
    parts = [parts[0], *("## " + part for part in parts[1:])]
    mine = []
    for i, text in enumerate(texts):
        body = "\n".join(row for row in text.split("\n") if not re.match(r"\s*(#|`|~|=|-|<)", row))
        mine.append(f"## Mine {i}\n\n{body}".rstrip())
        parts.insert(data.draw(st.integers(1, len(parts))), mine[-1])
    card = front + "\n" + "\n\n".join(parts) + "\n"
    merge = Merge(card)
    new = {key: text.replace("old", "new") for key, text in ours.items()}
    again = merge.write(merge.metadata(values), new)
    assert not merge.kept and "old" not in again and again.count("new") == 3
    at = [again.index(text.strip("\n")) for text in mine]
    order = [card.index(text.strip("\n")) for text in mine]
    assert np.argsort(at).tolist() == np.argsort(order).tolist()
    once_more = Merge(again)
    assert once_more.write(once_more.metadata(values), new) == again


# -- what is missing, or broken ----------------------------------------------------------------------------------


def test_a_folder_that_save_pretrained_wrote(run, tmp_path):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / "plain").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "plain" / name)
    (tmp_path / "plain" / "eval_results.json").write_text('{"eval_loss": 1.0}')  # of an example of transformers
    text = write_card(tmp_path / "plain").read_text()
    assert "No scores lie beside these weights" in text and "## Usage" in text
    assert not re.search(r"## (Results|Training|Speed|Limits|Evaluation)|!\[", text)
    assert "model-index" not in yaml.safe_load(text.split("\n---\n")[0][4:])
    assert check_card(text, "model") == ([], [])
    assert not list((tmp_path / "plain").glob("*.png"))


@pytest.mark.parametrize("gone", ["samples", "train_log.jsonl", "recipe.yaml", "labels.json", "model.safetensors"])
def test_a_part_that_is_missing_is_left_out(run, gone):
    (shutil.rmtree if (run / gone).is_dir() else lambda path: path.unlink())(run / gone)
    text = write(run)
    for file in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (run / file).is_file() or file == "per_class_iou.png"
    assert ("recipe.yaml</summary>" in text) == (gone != "recipe.yaml")
    assert (" parameters" in text) == (gone != "model.safetensors")
    assert check_card(text, "model") == ([], [])


@pytest.mark.parametrize("name, content, words", [
    ("config.json", None, "no config.json"), ("config.json", b"{", "cannot be read"),
    ("config.json", b"[]", "no JSON object"),
    ("eval_results.json", b"\xff", "cannot be read"), ("recipe.yaml", b"colour: 3", "colour"),
    ("README.md", b"---\na: [\n---\n", "is no YAML"), ("README.md", b"---\n- a\n---\n", "no list of keys"),
    ("README.md", b"\xff\xfe", "no UTF-8"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(run, name, content, words):
    (run / name).unlink(missing_ok=True)
    if content is not None:
        (run / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        write_card(run)
    assert name in str(error.value)
    with pytest.raises(UserError, match="no folder"):
        write_card(run / "nowhere")


# -- what the loop notes -----------------------------------------------------------------------------------------


def test_base_facts_of_a_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert set(base_facts(str(tmp_path)).values()) == {None}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: x\nlicense_link: https://a.example/l\n"
                                        "base_model: [nvidia/mit-b0]\n---\n")  # fmt: skip
    assert base_facts(str(tmp_path)) == {"base_model": "nvidia/mit-b0", "base_revision": None, "license": "other",
                                         "license_name": "x", "license_link": "https://a.example/l"}  # fmt: skip
    for card in ("---\nlicense: [\n---\n", "---\nlicense: {a: b}\nbase_model: ../x\n---\n", "\x00", "---\n- a\n---\n",
                 "---\nlicense: '<b>'\nlicense_link: 'javascript:alert(1)'\n---\n"):  # fmt: skip
        (tmp_path / "README.md").write_text(card)
        assert set(base_facts(str(tmp_path)).values()) == {None}


def test_base_facts_without_a_network_are_what_the_cache_knows(tmp_path, monkeypatch):
    began = time.monotonic()
    found = base_facts("nobody/nothing-here")
    assert found.pop("base_model") == "nobody/nothing-here" and set(found.values()) == {None}
    for name in ("segformer", "../nowhere", "", "a/b/c", "hfseg/nothing"):
        assert base_facts(name)["base_model"] is None
    assert time.monotonic() - began < 2
    commit = "c" * 40
    snapshot = tmp_path / "models--me--net" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--net" / "refs").mkdir()
    (tmp_path / "models--me--net" / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = base_facts("me/net")
    assert (found["license"], found["base_revision"]) == ("mit", commit)


def test_base_facts_of_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def info(self, name, revision=None, timeout=None):
        assert timeout == card_base.PATIENCE and self.token == "t"
        card = ModelCard("---\nlicense: other\nlicense_name: n\nlicense_link: LICENSE\n---\n").data
        return SimpleNamespace(card_data=card, sha="d" * 40)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(HfApi, "model_info", info)
    assert base_facts("me/net", token="t") == {
        "base_model": "me/net", "base_revision": "d" * 40, "license": "other", "license_name": "n",
        "license_link": f"https://huggingface.co/me/net/blob/{'d' * 40}/LICENSE"}  # fmt: skip

    monkeypatch.setattr(card_base, "PATIENCE", 0.2)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: time.sleep(5))  # a name server that is silent
    began = time.monotonic()
    assert base_facts("me/net")["license"] is None and time.monotonic() - began < 2


def test_speed_is_the_median_of_whole_calls(monkeypatch):
    import torch

    class Slow:
        model = torch.nn.Linear(1, 1)
        calls = 0

        def __call__(self, image):
            self.calls += 1
            clock[0] += {1: 50.0}.get(self.calls, 0.010 * (1 + image.shape[0] // 20))  # the first call warms up

    clock = [0.0]
    monkeypatch.setattr(card_speed, "_now", lambda device: clock[0])
    slow = Slow()
    images = [np.zeros((height, 8, 3), np.uint8) for height in (20, 40, 60)]
    found = measure_speed(slow, images, rounds=4)
    assert found["milliseconds"] == pytest.approx(30) and found["image_size"] == [40, 8]
    assert (found["calls"], found["images"], slow.calls) == (12, 3, 15)
    assert found["threads"] == torch.get_num_threads() and found["device"].startswith("cpu")
    assert found["cores"] >= 1 and found["load"] >= 0
    assert "peak_extra_bytes" not in found  # on a CPU it would not be the call's alone
    monkeypatch.setattr(card_speed.time, "monotonic", iter(range(0, 1000, 100)).__next__)
    assert measure_speed(slow, images[0], rounds=9)["calls"] == 1


# -- charts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 20, 150])
def test_bars_stay_legible(tmp_path, count):
    names = ["a name that is much longer than any chart has room for, really", "дорога", "道路", "$x_1$", "", "\u0000a"]
    names = (names + [f"class number {i}" for i in range(count)])[:count]
    scores = dict(zip(names, np.linspace(0, 1, count).tolist())) | {names[-1]: None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a letter that the font lacks is one
        draw_class_bars(scores, make_palette(count), tmp_path / "a.png", mean=0.4)
    with Image.open(tmp_path / "a.png") as picture:
        rows = count if count <= 60 else -(-count // 2)
        assert picture.height / rows >= 20 and picture.height < 2500  # pixels for a line of 9 points
        assert picture.width <= 1400
    assert (tmp_path / "a.png").stat().st_size < 250_000


def test_names_without_letters_in_the_font_go_by_number():
    assert class_labels(["road", "道路", "дорога", " ", "a\nb"]) == ["road", "class 1", "дорога", "class 3", "a b"]
    assert len(class_labels(["x" * 300])[0]) <= 40

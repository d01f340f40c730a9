"""The card: true numbers, valid metadata, harmless names, usage that runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
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
from card_runs import CARDS, SPEED, facts_of, write
from hfseg.errors import UserError
from hfseg.hub.card import card_files, card_text, without_paths, write_card
from hfseg.hub.card_facts import Facts, read_facts
from hfseg.hub.card_merge import split
from hfseg.hub.card_results import confused, pixels
from hfseg.hub.card_text import public
from hfseg.hub.local.card_reading import check_card
from hfseg.recipe import Recipe
from runs import environment

from card_runs import finished_fixture, run_fixture  # isort: skip  # noqa: F401


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

"""A person's words in a card are kept, and ours follow the results."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from card_runs import write
from hfseg.hub.card import write_card
from hfseg.hub.card_merge import Merge

from card_runs import finished_fixture, run_fixture  # isort: skip  # noqa: F401


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

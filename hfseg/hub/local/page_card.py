"""What stands beside a card: the facts of its front matter, its results, and how to use what it describes."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import yaml

from hfseg.hub.local.access import may_see
from hfseg.hub.local.page_parts import Safe, badge, clean, join, link, place, safe, table, tag
from hfseg.hub.local.store import Repo, find_repo
from hfseg.hub.local.wire import Call

# In the order of the page; the others follow as YAML.
_FACTS = {
    "license": "License", "license_name": "License name", "base_model": "Base model", "datasets": "Data sets",
    "models": "Models", "pipeline_tag": "Task", "task_categories": "Tasks", "library_name": "Library",
    "language": "Language", "size_categories": "Size", "source_datasets": "Sources", "sdk": "SDK",
    "sdk_version": "SDK version", "app_file": "Application", "python_version": "Python", "title": "Title",
    "pretty_name": "Title", "metrics": "Metrics",
}  # fmt: skip
_REPOS = {"base_model": "model", "datasets": "dataset", "models": "model", "source_datasets": "dataset"}
_FEW = 6  # results that are shown at once


def facts(call: Call, data: dict[str, Any]) -> Safe:
    """Returns what a card's metadata says as a table; repositories of this hub are links.

    Args:
        call: The request.
        data: The front matter.

    Returns:
        The table, and the rest as YAML.
    """
    rows = []
    for name, label in _FACTS.items():
        values = [value for value in _listed(data.get(name)) if value not in (None, "")][:30]
        if values:
            rows.append(tag("tr", tag("th", label, scope="row"),
                            tag("td", join((_value(call, name, value) for value in values), ", "))))  # fmt: skip
    rest = {name: value for name, value in data.items() if name not in {*_FACTS, "tags", "model-index"}}
    written = tag("table", tag("tbody", *rows)) if rows else Safe("")
    if rest:
        text = clean(yaml.safe_dump(rest, allow_unicode=True, sort_keys=False), 20_000)
        written += tag("details", tag("summary", "More metadata"), tag("pre", text))
    return Safe(written)


def tags(data: dict[str, Any]) -> Safe:
    """Returns a card's tags."""
    marks = [badge(clean(value, 80)) for value in _listed(data.get("tags"))[:60] if isinstance(value, str)]
    return tag("div", *marks, class_="tags") if marks else Safe("")


def results(data: dict[str, Any]) -> Safe:
    """Returns the scores of a card's `model-index`, those of single classes folded away.

    Args:
        data: The front matter.

    Returns:
        A table for each data set; nothing where there are none.
    """
    written = []
    for model in _listed(data.get("model-index"))[:5]:
        for result in _listed(model.get("results") if isinstance(model, dict) else None)[:20]:
            if not isinstance(result, dict):
                continue
            found = [metric for metric in _listed(result.get("metrics"))[:1000] if isinstance(metric, dict)]
            # A class's own score has its number as an argument.
            whole = [m for m in found if not (isinstance(m.get("args"), dict) and "class_id" in m["args"])][:_FEW]
            rest = [metric for metric in found if metric not in whole]
            written.append(tag("h3", "Results on ", _data_name(result)))
            written.append(_scores(whole))
            if rest:
                label = f"{len(rest)} more, of single classes" if whole else f"{len(rest)} results"
                written.append(tag("details", tag("summary", label), _scores(rest)))
    return join(written)


def usage(call: Call, repo: Repo, data: dict[str, Any], config: dict[str, Any], revision: str) -> Safe:
    """Returns how to get what a repository holds.

    Args:
        call: The request.
        repo: The repository.
        data: The front matter.
        config: Of a model, what its config.json says.
        revision: What is looked at.

    Returns:
        Commands and code, to be copied.
    """
    name, quoted = repo.name, "" if revision == "main" else f" --revision {shlex.quote(revision)}"
    argument = "" if revision == "main" else f", revision={json.dumps(revision, ensure_ascii=False)}"
    kind = "" if repo.type == "model" else f" --repo-type {repo.type}"
    folder = name.split("/")[1]
    parts = [("Set up the shell", f"export HF_ENDPOINT={call.base}")]
    if repo.type == "model":
        parts.append(("Download, every hash checked", f"hfseg pull {name}{quoted} \\\n  --local_dir {folder}"))
        architecture = next((a for a in _listed(config.get("architectures")) if isinstance(a, str)), "")
        if "hfseg" in _listed(data.get("tags")) or data.get("pipeline_tag") == "image-segmentation":
            parts.append(("Use it with hfseg", "import hfseg\n\nsegmenter = hfseg.Segmenter.from_pretrained(\n"
                          f'    "{name}"{argument}\n)\nresult = segmenter("photo.jpg")'))  # fmt: skip
        if re.fullmatch(r"\w{1,80}", architecture) and data.get("library_name", "transformers") == "transformers":
            parts.append(("Use it with transformers", f"from transformers import {architecture} as Model\n\n"
                          f'model = Model.from_pretrained(\n    "{name}"{argument}\n)'))  # fmt: skip
    else:
        parts.append(("Download", f"hf download {name} \\\n {kind}{quoted} \\\n  --local-dir {folder}"))
    if repo.type == "dataset":
        parts.append(("Load it", f'from datasets import load_dataset\n\ndata = load_dataset("{name}"{argument})'))
    if repo.type == "space" and data.get("sdk", repo.data.get("sdk")) == "gradio":
        file = data.get("app_file") or "app.py"
        parts.append(("Run it here: no Space runs on this hub", f"cd {folder}\npip install -r requirements.txt\n"
                      f"python {shlex.quote(clean(file, 200))}"))  # fmt: skip
    blocks = join(tag("h3", label) + tag("pre", tag("code", text)) for label, text in parts)
    gate = Safe("")
    if repo.gated:
        ask = f'curl -X POST -H "Authorization: Bearer $HF_TOKEN" {call.base}/{repo.path}/ask-access'
        gate = tag("p", "Its files must be asked for:") + tag("pre", tag("code", ask))
    return tag("div", gate, blocks, class_="use")


def _scores(metrics: list[dict[str, Any]]) -> Safe:
    rows = []
    for metric in metrics:
        value, name = metric.get("value"), metric.get("name") or metric.get("type") or "score"
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        share = number and isinstance(value, float) and 0 <= value <= 1
        bar = tag("rect", width=f"{100 * value:.2f}", height=1) if share else ""
        gauge = tag("svg", bar, viewBox="0 0 100 1", preserveAspectRatio="none", aria_hidden="true") if share else ""
        written = f"{value:.4g}" if number else clean(value, 60)
        rows.append((clean(name, 120), tag("td", written, class_="number"), tag("td", gauge, class_="gauge")))
    return table((), rows) if rows else Safe("")


def _data_name(result: dict[str, Any]) -> str:
    data = result.get("dataset")
    if not isinstance(data, dict):
        return "an unnamed data set"
    name, split = data.get("name") or data.get("type") or "an unnamed data set", data.get("split")
    return clean(name, 120) + (f" ({clean(split, 60)})" if split else "")


def _value(call: Call, name: str, value: Any) -> Safe:
    text = clean(value, 200)
    kind = _REPOS.get(name)
    if kind and re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII):
        there = find_repo(call.hub.store.read(), kind, text)
        if there is not None and may_see(call.identity, there):
            return link(text, place(there))
    return safe(text)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]

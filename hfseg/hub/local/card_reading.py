"""The front matter of a repository's README: what it says, whether it is well formed, and the tags it leads to."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import yaml

_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*\r?$", re.S | re.M)
# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = (  # noqa: SIM905
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl "
    "lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma unknown other"
).split()
_STRINGS = {"license_name", "license_link", "library_name", "pipeline_tag", "pretty_name", "title", "emoji",
            "colorFrom", "colorTo", "sdk", "app_file", "thumbnail", "base_model_relation"}  # fmt: skip
_LISTS = {"tags", "datasets", "metrics", "task_categories", "task_ids", "size_categories", "annotations_creators",
          "language_creators", "multilinguality", "source_datasets", "models"}  # fmt: skip
_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
_SDKS = {"gradio", "docker", "static", "streamlit"}


class _Strings(yaml.SafeLoader):
    """Reads dates as text, as the hub does: a card's data becomes JSON."""


_Strings.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def split_card(text: str) -> tuple[str | None, str]:
    """Splits a card.

    Args:
        text: README.md.

    Returns:
        A tuple of the YAML in front, None where there is none, and the markdown behind it.

    Example:
        >>> split_card("---\\nlicense: mit\\n---\\n# Net")
        ('license: mit', '\\n# Net')
    """
    found = _FRONT.match(text.replace("\r\n", "\n"))
    return (found[1], text.replace("\r\n", "\n")[found.end() :]) if found else (None, text)


@lru_cache(maxsize=512)
def _read(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Returns the front matter as JSON (hashable, and nobody can change it), and what is wrong with it."""
    front, _ = split_card(text)
    if front is None:
        return None, ()
    if len(front) > 1 << 20:
        return None, ("the metadata is longer than 1 MB",)
    try:
        # Few aliases cannot blow up: a card of some lines could else mean gigabytes.
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(front, Loader=_Strings)) > 20:
            return None, ("the metadata has more than 20 aliases",)
        data = yaml.load(front, Loader=_Strings)
        written = json.dumps(data)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 2})" if where else ""
        return None, (f"YAML: {getattr(error, 'problem', None) or str(error)}{line}",)
    if data is not None and not isinstance(data, dict):
        return None, ("the metadata must be a mapping of names to values",)
    return written if data else None, ()


def card_data(text: str) -> dict[str, Any]:
    """Returns a card's metadata; an unreadable one has none.

    Args:
        text: README.md.

    Returns:
        The front matter as a dictionary.

    Example:
        >>> card_data("---\\nlicense: mit\\n---\\n")
        {'license': 'mit'}
    """
    written, _ = _read(text)
    return json.loads(written) if written else {}


def check_card(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Looks for mistakes in a card's metadata.

    Args:
        text: README.md.
        repo_type: `model`, `dataset` or `space`.

    Returns:
        Errors, with which nothing can be committed, and warnings.

    Example:
        >>> check_card("---\\ntags: 3\\n---\\n", "model")
        (['"tags" must be a list of strings'], [])
    """
    _, wrong = _read(text)
    if wrong:
        return list(wrong), []
    data = card_data(text)
    if not data:
        return [], ["empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards)"]
    errors = []
    for name in sorted(_STRINGS & set(data)):
        if data[name] is not None and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    for name in sorted(_LISTS & set(data)):
        value = [data[name]] if isinstance(data[name], str) else data[name]
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            errors.append(f'"{name}" must be a list of strings')
    for name in ("language", "base_model", "license"):
        value = data[name] if isinstance(data.get(name), list) else [data.get(name) or ""]
        if not all(isinstance(item, str) for item in value):
            errors.append(f'"{name}" must be a string or a list of strings')
    if any(name not in LICENSES for name in _strings(data.get("license"))):
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    if repo_type == "model" and data.get("model-index") is not None:
        errors += _check_model_index(data["model-index"])
    if repo_type == "space":
        if data.get("sdk") is not None and data["sdk"] not in _SDKS:
            errors.append(f'"sdk" must be one of {sorted(_SDKS)}')
        for name in ("colorFrom", "colorTo"):
            if data.get(name) is not None and data[name] not in _COLOURS:
                errors.append(f'"{name}" must be one of {sorted(_COLOURS)}')
        if isinstance(data.get("short_description"), str) and len(data["short_description"]) > 60:
            errors.append('"short_description" must have at most 60 characters')
    return errors, []


def _check_model_index(index: Any) -> list[str]:
    """The structure that the hub asks of `model-index`: names, and results of a task on a dataset with metrics."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        at = f"model-index[{i}]"
        if not isinstance(model, dict):
            errors.append(f'"{at}" must be an object')
            continue
        if not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'"{at}.name" must be a string')
        results = model.get("results")
        if not isinstance(results, list):
            errors.append(f'"{at}.results" must be an array')
            continue
        for j, result in enumerate(results):
            errors += _check_result(result, f"{at}.results[{j}]")
    return errors


def _check_result(result: Any, at: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{at}" must be an object']
    errors = []
    for part, fields in (("task", ("type",)), ("dataset", ("type", "name"))):
        value = result.get(part)
        if not isinstance(value, dict):
            errors.append(f'"{at}.{part}" is required')
            continue
        errors += [f'"{at}.{part}.{name}" must be a string' for name in fields if not isinstance(value.get(name), str)]
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        return [*errors, f'"{at}.metrics" must be an array']
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            errors.append(f'"{at}.metrics[{k}].type" must be a string')
        elif metric.get("value") is None:
            errors.append(f'"{at}.metrics[{k}].value" is required')
    return errors


def tags_of(data: dict, repo_type: str, names: list[str]) -> list[str]:
    """Returns a repository's tags: those of its card, and what its card and its files lead to.

    Args:
        data: The card's metadata.
        repo_type: `model`, `dataset` or `space`.
        names: Paths of its files.

    Returns:
        The tags, each once.

    Example:
        >>> tags_of({"license": "mit", "tags": ["a"]}, "model", ["model.safetensors"])
        ['safetensors', 'a', 'license:mit', 'region:us']
    """
    tags: list[str] = []
    if repo_type == "model":
        tags += _strings(data.get("library_name"))
        if any(name.endswith(".safetensors") for name in names):
            tags.append("safetensors")
    tags += _strings(data.get("sdk")) if repo_type == "space" else []
    tags += _strings(data.get("pipeline_tag"))
    for name in ("task_categories", "task_ids", "annotations_creators", "language_creators", "multilinguality",
                 "size_categories", "source_datasets"):  # fmt: skip
        tags += [f"{name}:{value}" for value in _strings(data.get(name))]
    tags += _strings(data.get("tags"))
    language = _strings(data.get("language"))
    tags += language if repo_type == "model" else [f"language:{value}" for value in language]
    for name, prefix in (("datasets", "dataset"), ("base_model", "base_model"), ("license", "license")):
        tags += [f"{prefix}:{value}" for value in _strings(data.get(name))]
    return list(dict.fromkeys([*tags, "region:us"]))


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]

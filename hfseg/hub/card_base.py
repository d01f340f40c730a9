"""What a run starts from, as its own card states it: noted when training begins, since it may change or vanish."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread
from typing import Any

from hfseg.hub.card_text import is_repo_id, line
from hfseg.run_directory import CARD

PATIENCE = 5.0  # seconds that a hub which does not answer may take


def base_facts(name: str, revision: str | None = None, token: str | None = None) -> dict[str, Any]:
    """Looks up what the card of a checkpoint says about itself: in its folder, else on the hub, else in the cache.

    Args:
        name: What `load_model` is given.
        revision: Branch, tag or commit on the hub.
        token: Hub token, if not the one that is logged in.

    Returns:
        `base_model`: the hub id (of a local folder the one that its card names), `base_revision`: the commit,
        `license`, `license_name`, `license_link`: as its card states them. None for all that is not known: it never
        raises, and takes some seconds at most.

    Example:
        >>> base_facts("segformer")["base_model"] is None
        True
    """
    facts: dict[str, Any] = dict.fromkeys(("base_model", "base_revision", "license", "license_name", "license_link"))
    try:
        from hfseg.models.configs import resolve_name

        folder = Path(resolve_name(name))
        if folder.is_dir():
            said = _metadata(folder / CARD)
            origin = said.get("base_model")
            origin = origin[0] if isinstance(origin, list) and len(origin) == 1 else origin
            facts["base_model"] = origin if is_repo_id(origin) else None
            return {**facts, **_license(said, facts["base_model"], None)}
        if not is_repo_id(name):
            return facts
        facts["base_model"] = name
        said, facts["base_revision"] = _from_hub(name, revision, token)
        return {**facts, **_license(said, name, facts["base_revision"])}
    except Exception:  # a card without these lines is better than no training
        return facts


def _from_hub(name: str, revision: str | None, token: str | None) -> tuple[dict, str | None]:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    answer: list = []

    def ask() -> None:
        try:
            answer.append(HfApi(token=token).model_info(name, revision=revision, timeout=PATIENCE))
        except Exception:  # offline, gone, gated: the cache may know
            pass

    if not constants.HF_HUB_OFFLINE:
        thread = Thread(target=ask, daemon=True)  # a name server that is silent heeds no timeout
        thread.start()
        thread.join(PATIENCE)
    if answer:
        card = answer[0].card_data
        return (card.to_dict() if card else {}), answer[0].sha
    config, card = (try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", CARD))
    commit = Path(config).parent.name if isinstance(config, str) else None  # .../snapshots/COMMIT/config.json
    return _metadata(Path(card)) if isinstance(card, str) else {}, commit


def _metadata(file: Path) -> dict:
    from huggingface_hub.repocard import metadata_load

    try:
        return (metadata_load(file) or {}) if file.is_file() else {}
    except Exception:  # whatever a stranger's file makes a YAML reader do
        return {}


def _license(said: dict, repo_id: str | None, commit: str | None) -> dict[str, Any]:
    """Keeps what can be a license; a link into the base model's repository is made whole."""
    from huggingface_hub import constants

    names = said.get("license")
    names = [name for name in (names if isinstance(names, list) else [names])
             if isinstance(name, str) and re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.+-]{0,60}", name)]
    if not names:
        return {}
    found: dict[str, Any] = {"license": names[0] if len(names) == 1 else names}
    if isinstance(said.get("license_name"), str):
        found["license_name"] = line(said["license_name"])
    link = said.get("license_link")
    if isinstance(link, str) and re.fullmatch(r"https?://[\w.~:/?#@!$&'*+,;=%-]+", link, re.ASCII):
        found["license_link"] = link
    elif repo_id and isinstance(link, str) and re.fullmatch(r"[\w./-]+", link, re.ASCII) and ".." not in link \
            and constants.ENDPOINT == "https://huggingface.co":
        found["license_link"] = f"{constants.ENDPOINT}/{repo_id}/blob/{commit or 'main'}/{link.lstrip('/')}"
    return found

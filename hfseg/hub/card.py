"""The model card of a run, from the run's own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hfseg.curves import draw_class_bars, draw_learning_curve
from hfseg.errors import UserError
from hfseg.hub.card_facts import CURVE, PER_CLASS, Facts, read_facts, without_paths
from hfseg.hub.card_merge import INTRODUCTION, Merge
from hfseg.hub.card_metadata import metadata
from hfseg.hub.card_objects import object_evaluation, object_limits, object_results
from hfseg.hub.card_results import evaluation, limits, results, speed
from hfseg.hub.card_sections import intended_use, introduction, license_note, usage
from hfseg.hub.card_training import training
from hfseg.metrics.scorers import MAIN_SCORE
from hfseg.run_directory import CARD, LOG

__all__ = ["card_files", "card_text", "without_paths", "write_card"]

# In the order of a new card. Each is given the facts and the metadata, and returns Markdown with its heading, or None.
SECTIONS: dict[str, Callable[[Facts, dict[str, Any]], str | None]] = {
    INTRODUCTION: introduction,
    "usage": usage,
    "intended-use": intended_use,
    "results": results,
    "limits": limits,
    "speed": speed,
    "training": training,
    "evaluation": evaluation,
    "license": license_note,
}
OBJECT_SECTIONS = {"results": object_results, "limits": object_limits, "evaluation": object_evaluation}


def write_card(run: str | Path, repo_id: str | None = None, say: Callable[[str], None] | None = None) -> Path:
    """Writes README.md and its charts: valid metadata, scores, samples, limits and usage.

    Every number comes from eval_results.json of the same folder, and names from data sets are escaped. A card that is
    there is written again around what a person wrote: sections under other headings stay in their place, sections and
    metadata that a person changed stay as they are, and scores are always those of eval_results.json. To get a section
    of hfseg's back, delete it. The same files give the same bytes.

    Args:
        run: A run directory, or a folder that `save_pretrained` wrote; what is missing there is left out.
        repo_id: user/name of the repository that it will be in; by default the recipe's, or the one that the card
            was last written for.
        say: Called with a line for each thing that was left as a person wrote it.

    Returns:
        The card's path.

    Raises:
        UserError: When there is no model, or a file cannot be read or written.

    Example:
        >>> import shutil, tempfile
        >>> from hfseg.models.configs import SHIPPED
        >>> folder = Path(tempfile.mkdtemp()) / "shapes"
        >>> _ = shutil.copytree(SHIPPED / "shapes-segformer", folder, ignore=shutil.ignore_patterns("README.md"))
        >>> write_card(folder).read_text().splitlines()[1]
        'library_name: transformers'
    """
    files, kept = card_files(run, repo_id)
    folder = Path(run).expanduser()
    try:
        for name, content in files.items():
            part = folder / f".writing-{name}"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}", "a writable folder") from error
    for what in kept:
        if say:
            say(f"kept as a person left it, delete it to have it written anew: {what}")
    return folder / CARD


def card_files(
    run: str | Path, repo_id: str | None = None, old: str | None = None
) -> tuple[dict[str, bytes], list[str]]:
    """Makes the card and its charts, and leaves the folder as it is.

    Args:
        run: As for `write_card`.
        repo_id: As for `write_card`.
        old: Text of the card to write over, such as the hub's; by default the one in the folder.

    Returns:
        Contents by file name, the card last, and what of the card was left as a person wrote it.

    Raises:
        UserError: When there is no model, or a file cannot be read.
    """
    facts = read_facts(run, repo_id, old)
    text, kept = card_text(facts)
    with TemporaryDirectory() as drawn:
        if facts.results is not None:
            draw_class_bars(facts.per_class, facts.palette, Path(drawn, facts.bars), PER_CLASS[facts.task][1],
                            mean=facts.results.get(MAIN_SCORE[facts.task]))
        if facts.log:
            draw_learning_curve(facts.path / LOG, Path(drawn, CURVE))
        files = {file.name: file.read_bytes() for file in sorted(Path(drawn).iterdir())}
    return {**files, CARD: text.encode()}, kept


def card_text(facts: Facts) -> tuple[str, list[str]]:
    """Returns the text of a card.

    Args:
        facts: Of the run, with the card that is there.

    Returns:
        The text, and what of it was left as a person wrote it.

    Raises:
        UserError: When the metadata of the card that is there is no YAML.
    """
    merge = Merge(facts.old, str(facts.path / CARD))
    values = merge.metadata(metadata(facts))
    writers = SECTIONS if facts.task == "semantic" else SECTIONS | OBJECT_SECTIONS
    sections = {key: write(facts, values) for key, write in writers.items()}
    return merge.write(values, {key: text for key, text in sections.items() if text}), merge.kept

"""The section of a card that says how the model was trained: in words, as a curve, and as the recipe."""

from __future__ import annotations

from typing import Any

from hfseg.data.augment import resolve
from hfseg.errors import UserError
from hfseg.hub.card_facts import CURVE, Facts
from hfseg.hub.card_sections import data_of
from hfseg.hub.card_text import code, counted, fenced, listing, picture, public
from hfseg.models import FAMILIES
from hfseg.recipe import AugmentConfig, Recipe, to_yaml

_STRATEGIES = {
    "full": "all weights were trained",
    "feature_extraction": "the head was trained, and the backbone was left as it was",
}
_SCHEDULES = {
    "poly": "falling polynomially", "cosine": "falling as a cosine", "linear": "falling linearly",
    "step": "divided by ten in steps", "cyclic": "in cosine cycles", "constant": "constant",
}  # fmt: skip


def training(facts: Facts, metadata: dict[str, Any]) -> str | None:
    """Tells how the weights came about.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section, or None where neither recipe nor log lie beside the weights.
    """
    if facts.recipe is None and not facts.curve:
        return None
    parts = ["## Training"]
    if facts.recipe:
        parts.append("\n".join(f"- {point}" for point in _points(facts)))
    if facts.curve:
        parts.append(picture("Learning curve: loss, learning rate and validation scores over the steps", CURVE))
    if facts.recipe:
        parts.append("The recipe, whole; `hfseg train --config recipe.yaml` trains by it again:")
        parts.append("<details>\n<summary>recipe.yaml</summary>\n\n"
                     + fenced(to_yaml(facts.recipe), "yaml") + "\n\n</details>")
    return "\n\n".join(parts)


def _points(facts: Facts) -> list[str]:
    points = [_data(facts), _weights(facts), _optimiser(facts), _loss(facts), _augmentation(facts.recipe)]
    noted, metric = facts.training, facts.recipe.eval.metric
    if noted.get("best_step") is not None:
        points.append(f"**Chosen**: the weights after step {noted['best_step']:,}, the best by {code(metric)}.")
    if noted.get("seconds"):
        points.append(f"**Time**: {_time(noted['seconds'])} on {counted(noted.get('processes', 1), 'process')} "
                      f"({code(public(str(noted.get('device', 'unknown'))))}).")
    return points


def _data(facts: Facts) -> str:
    data, noted = facts.recipe.data, facts.training
    split = noted.get("training_split") or data.train_split
    parts = [data_of(facts)]
    parts += [f"configuration {code(data.name)}"] if data.name else []
    parts += [f"revision {code(data.revision)}"] if data.revision else []
    parts += [f"split {code(split)}"] if split else []
    if noted.get("training_images"):
        parts.append(counted(noted["training_images"], "image"))
    elif data.max_train_samples:
        parts.append(f"at most {counted(data.max_train_samples, 'image')}")
    if size := data.image_size:
        parts.append(f"resized to {'a shorter side of ' if isinstance(size, int) else ''}{_sides(size)}")
    text = f"**Data**: {', '.join(parts)}."
    if skipped := noted.get("skipped_samples"):
        text += f" {counted(skipped, 'sample')} could not be used and were skipped."
    return text


def _weights(facts: Facts) -> str:
    strategy, average = facts.recipe.transfer.strategy, facts.recipe.train.ema
    how = "all weights were trained, from random ones" if facts.random else _STRATEGIES.get(
        strategy, f"strategy {code(strategy)}")
    return f"**Weights**: {how}." + (f" Their moving average with decay {average:g} was kept." if average else "")


def _optimiser(facts: Facts) -> str:
    train, transfer, noted = facts.recipe.train, facts.recipe.transfer, facts.training
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * noted.get("processes", 1)
    steps = f"{noted['steps']:,} steps of " if noted.get("steps") else "steps of "
    rate = f"peak learning rate {train.learning_rate:g}"
    if not facts.random and transfer.strategy != "feature_extraction":
        rate += f" (head: {transfer.head_learning_rate_factor:g} times that)"
    rate += f", {_SCHEDULES.get(train.schedule, code(train.schedule))}"
    rate += f" after {counted(train.warmup_steps, 'step')} of warm-up" if train.warmup_steps else ""
    clipped = [f"gradients clipped to norm {train.max_grad_norm:g}"] if train.max_grad_norm else []
    parts = [code(train.optimizer), steps + counted(batch, "image"), rate, f"weight decay {train.weight_decay:g}",
             code(train.mixed_precision), *clipped, f"seed {facts.recipe.seed}"]
    return f"**Optimiser**: {', '.join(parts)}."


def _loss(facts: Facts) -> str:
    recipe, family = facts.recipe, FAMILIES.get(facts.model_type)
    if family is not None and family.predicts_masks:
        set_here = [f"{code(name)} {value:g}" for name in ("no_object_weight", "num_points")
                    if (value := getattr(recipe.loss, name)) is not None]
        more = f", {listing(set_here)}" if set_here else ""
        return f"**Loss**: the network's own, of classes and masks{more}."
    terms = [(f"{weight:g} " if weight != 1 else "") + code(name) for name, weight in recipe.loss.terms.items()]
    chosen = recipe.loss.class_weights
    weighted = ", classes weighted" if chosen else ""
    weighted += " by their frequencies" if chosen == "auto" else ""
    return f"**Loss**: {' + '.join(terms)}{weighted}."


def _augmentation(recipe: Recipe) -> str:
    try:
        done = [text for text in _steps(resolve(recipe.augment)) if text]
    except UserError:  # a preset of another version
        done = []
    return f"**Augmentation**: preset {code(recipe.augment.preset)}" + (f": {listing(done)}." if done else ".")


def _steps(chosen: AugmentConfig) -> list[str]:
    low, high = chosen.scale
    texts = {
        "horizontal_flip": "left-right flip", "vertical_flip": "up-down flip", "blur": "blur", "sharpen": "sharpening",
        "autocontrast": "stretched contrast", "equalize": "equalised histogram", "cutout": "an erased rectangle",
        "copy_paste": "pasted rare classes of another image", "rare_class_crop": "a crop around a rare class",
    }  # fmt: skip
    size = chosen.crop_size
    rule = f"no class over {100 * chosen.max_class_share:g} % of a crop where that can be"
    colours = f"brightness, contrast, saturation and hue changed (strength {chosen.photometric:g})"
    return [
        f"crops of {_sides(size)}" if size else "crops of the images' one size, or of 512 x 512",
        f"resized by {low:g} to {high:g} times" if (low, high) != (1, 1) else "",
        rule if chosen.max_class_share < 1 else "",
        f"turned by up to {chosen.rotation:g} degrees" if chosen.rotation else "",
        colours if chosen.photometric else "",
        *(f"{text} ({100 * getattr(chosen, name):g} %)" for name, text in texts.items() if getattr(chosen, name)),
    ]


def _sides(size: Any) -> str:
    if isinstance(size, (list, tuple)):
        return f"{size[1]} x {size[0]} pixels"
    return f"{size} pixels"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes" if seconds < 7200 else \
        f"{seconds / 3600:.1f} hours"

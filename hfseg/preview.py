"""A picture of what the network will see: augmented samples as the recipe makes them."""

from __future__ import annotations

from pathlib import Path

from hfseg.data import load_recipe_data
from hfseg.data.augment import Augmentation, rare_classes, resolve
from hfseg.data.contact_sheet import contact_sheet
from hfseg.data.loading import EpochBatches, Preparation, TrainingSet
from hfseg.errors import UserError
from hfseg.recipe import Recipe
from hfseg.training.batches import crop_size
from hfseg.training.setup import frequencies, limit_data


def draw_preview(recipe: Recipe, path: str | Path, count: int = 12) -> Path:
    """Draws the first training samples of a recipe, image beside map.

    No model is loaded; the padding is mid-grey here, and the mean colour of the checkpoint in training.

    Args:
        recipe: The recipe.
        path: The PNG to write.
        count: How many samples.

    Returns:
        `path`.

    Raises:
        UserError: When the data cannot be read, or is a stream.
    """
    data = load_recipe_data(recipe)
    if data.streaming:
        raise UserError("a stream has no preview", fix="--data.streaming false, or a local copy")
    limit_data(recipe, data)
    schema, channels = data.schema, data.channels
    counts = frequencies(recipe, data, print)
    augmentation = Augmentation(
        resolve(recipe.augment), size=crop_size(recipe, data, None), ignore_index=schema.ignore_index,
        mean=[127.0] * channels, rare_classes=rare_classes(counts) if counts is not None else (),
    )  # fmt: skip
    prepare = Preparation(augmentation, None, recipe.data.image_size, recipe.seed)
    rows = TrainingSet(data[data.train], schema, prepare, channels, recipe.data.on_bad_sample)
    batch_size = recipe.train.per_device_train_batch_size
    samples = []
    for batch in EpochBatches(len(rows), batch_size, recipe.seed):
        samples += [rows.augmented(key) for key in batch]
        if len(samples) >= count:
            break
    title = f"{recipe.data.path}, augment.preset {recipe.augment.preset}"
    return contact_sheet(samples[:count], path, schema.palette, schema.ignore_index, names=schema.names, title=title)

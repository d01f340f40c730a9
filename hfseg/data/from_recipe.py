"""The data of a recipe."""

from __future__ import annotations

from hfseg.data.sources import SegmentationData, load_data
from hfseg.recipe import Recipe


def load_recipe_data(recipe: Recipe, **more) -> SegmentationData:
    """Returns the data of a recipe.

    Args:
        recipe: The recipe.
        **more: Arguments of `load_data` that a recipe does not have.

    Returns:
        The data with its schema.

    Raises:
        UserError: When it cannot be found or understood.
    """
    wanted = recipe.data
    return load_data(
        wanted.path, name=wanted.name, revision=wanted.revision, streaming=wanted.streaming, labels=wanted.labels,
        train_split=wanted.train_split, validation_split=wanted.validation_split,
        validation_fraction=wanted.validation_fraction, image_column=wanted.image_column,
        label_column=wanted.label_column, scenes=wanted.max_train_samples, on_bad_sample=wanted.on_bad_sample,
        seed=recipe.seed, task=recipe.task, **more,
    )

"""Fine-tune a model, from the recipe to the run directory. `loop.py` tells the whole story in its order."""

from hfseg.training.loop import train

__all__ = ["train"]

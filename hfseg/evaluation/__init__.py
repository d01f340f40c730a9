"""The one evaluator: training, `hfseg evaluate`, cards and demo all score with it.

Each prediction is compared at the image's own size, and all that is kept is one integer matrix, or one record per
object.
"""

from hfseg.evaluation.any_model import evaluate
from hfseg.evaluation.evaluator import Evaluator

__all__ = ["Evaluator", "evaluate"]

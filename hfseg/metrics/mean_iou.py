"""Mean intersection over union as an `evaluate` module that keeps counts, never maps.

The arguments, keys and values are those of `evaluate`'s own `mean_iou`. That one stores every map until `compute`;
this one keeps how often each pair of values met, so its memory does not grow with the number of images.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from hfseg.errors import UserError
from hfseg.metrics.scores import scores_from_areas
from hfseg.ops.confusion import pair_counts

_DESCRIPTION = """
Intersection over union of predicted and true segmentation maps, averaged over the classes that occur, with
accuracy, precision, recall and F1 (Dice) per class, from one confusion matrix over all pixels.
"""

_INPUTS = """
Args:
    predictions (`List[ndarray]`): maps of class ids, (height, width), each of any size.
    references (`List[ndarray]`): the true maps, of the same sizes.
    num_labels (`int`): number of classes.
    ignore_index (`int`): reference value that is left out; 255 if not given.
    nan_to_num (`int`, *optional*): replaces NaN in the scores, after averaging.
    label_map (`dict`, *optional*): old to new values of the references.
    reduce_labels (`bool`, *optional*): references lose 1, and 0 becomes 255.

Returns:
    `mean_iou`, `mean_accuracy`, `overall_accuracy`, `mean_precision`, `mean_f1` (float), `num_classes_averaged`
    (int), `per_category_iou`, `per_category_accuracy`, `per_category_precision`, `per_category_recall`,
    `per_category_f1` (`ndarray` of `num_labels`).
"""


class MeanIoU(evaluate.Metric):
    """Mean IoU over a stream of maps in constant memory, with the values of `evaluate`'s own `mean_iou`.

    Each option may be given here or to `compute`, which wins. Predicted values that are no label count as wrong,
    and a prediction where the reference is no label (and not ignored) counts against the predicted class: that is
    what `evaluate`'s module does.

    Args:
        num_labels: Number of classes.
        ignore_index: Reference value whose pixels are left out; None leaves nothing out.
        nan_to_num: What to put for NaN in the scores.
        label_map: Old reference value to new, before anything else.
        reduce_labels: Subtract 1 from references; 0 becomes 255, and 255 stays.
        **kwargs: What every `evaluate` module takes, such as `experiment_id`.

    Raises:
        UserError: For `num_process` above 1: processes add up their `matrix` instead of sharing files.

    Example:
        >>> metric = MeanIoU(num_labels=3)
        >>> metric.add(prediction=np.array([[0, 1]]), reference=np.array([[0, 255]]))
        >>> metric.compute()["per_category_iou"].tolist()
        [1.0, nan, nan]
    """

    def __init__(
        self,
        num_labels: int | None = None,
        ignore_index: int | None = 255,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
        **kwargs,
    ):
        if kwargs.get("num_process", 1) != 1:
            raise UserError(
                f"num_process={kwargs['num_process']}",
                "1",
                "sum metric.matrix over processes, then update_matrix",
            )
        super().__init__(**kwargs)
        self.num_labels, self.ignore_index, self.nan_to_num = num_labels, ignore_index, nan_to_num
        self.label_map, self.reduce_labels = label_map, reduce_labels
        self.reset()

    def reset(self) -> None:
        """Forget all that was added."""
        # References as they came, so that what they mean may still be said in `compute`.
        self._rows = self._columns = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros((0, 0), dtype=np.int64)
        self._merged = np.zeros((1, 1), dtype=np.int64)  # what `update_matrix` brought: labels only

    def add(self, *, prediction=None, reference=None, predictions=None, references=None):
        """Count one predicted and one true map."""
        prediction = predictions if prediction is None else prediction
        reference = references if reference is None else reference
        if prediction is None or reference is None:
            raise UserError("a map is missing", "a prediction and a reference")
        self._merge(*pair_counts(_array(reference), _array(prediction)))

    def add_batch(self, *, predictions=None, references=None):
        """Count a batch of predicted and true maps."""
        if predictions is None or references is None:
            raise UserError("maps are missing", "predictions and references")
        if len(predictions) != len(references):
            raise UserError(f"{len(predictions)} predictions for {len(references)} references", "as many of each")
        pairs = [(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]
        counted = [pair_counts(_array(reference), _array(prediction)) for prediction, reference in pairs]
        for counts in counted:  # all or, after an error, none
            self._merge(*counts)

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Score all that was added, the given maps included, and start anew."""
        before = self._rows, self._columns, self._counts.copy()
        try:
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            scores = self._compute(None, None, **kwargs)
        except Exception:  # what these maps added would be counted again in the next attempt
            self._rows, self._columns, self._counts = before
            raise
        self.reset()
        return scores

    @property
    def matrix(self) -> np.ndarray:
        """(n + 1, n + 1) int64 counts under the options of the constructor, rows = reference.

        The last row and column hold the pixels whose true or predicted value is no label.
        """
        return self._matrix(self.num_labels, self.ignore_index, self.label_map, self.reduce_labels)

    def update_matrix(self, matrix: np.ndarray) -> None:
        """Add counts from elsewhere, such as another process.

        Args:
            matrix: (n + 1, n + 1) as `matrix` gives, or an (n, n) confusion matrix; rows = reference, and ignored
                pixels already left out.

        Raises:
            UserError: When it has another size, or is no table of counts.
        """
        given = np.asarray(matrix)
        matrix = np.array(np.nan_to_num(given, nan=-1), dtype=np.int64)  # a copy: the caller may go on with its own
        if (matrix < 0).any() or not np.array_equal(matrix, given):
            raise UserError("a matrix with fractions, NaN or negative numbers", "counts of pixels")
        known = self.num_labels if self.num_labels is not None else len(self._merged) - 1 or len(matrix)
        if matrix.shape == (known, known):
            matrix = np.pad(matrix, (0, 1))
        if matrix.shape != (known + 1, known + 1):
            raise UserError(f"a matrix of shape {matrix.shape}", f"({known}, {known}) or ({known + 1}, {known + 1})")
        self._merged = self._merged + matrix if len(self._merged) == len(matrix) else matrix

    def __len__(self) -> int:
        """Number of pixels that were added."""
        return int(self._counts.sum() + self._merged.sum())

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _build_data_dir(self):
        return self._data_dir_root  # nothing is stored, so no folder is made

    def _merge(self, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> None:
        if np.array_equal(rows, self._rows) and np.array_equal(columns, self._columns):
            self._counts += counts
            return
        all_rows, all_columns = np.union1d(self._rows, rows), np.union1d(self._columns, columns)
        if (len(all_rows), len(all_columns)) != self._counts.shape:
            grown = np.zeros((len(all_rows), len(all_columns)), dtype=np.int64)
            grown[np.ix_(np.searchsorted(all_rows, self._rows), np.searchsorted(all_columns, self._columns))] = (
                self._counts
            )
            self._rows, self._columns, self._counts = all_rows, all_columns, grown
        self._counts[np.ix_(np.searchsorted(all_rows, rows), np.searchsorted(all_columns, columns))] += counts

    def _matrix(self, num_labels, ignore_index, label_map, reduce_labels) -> np.ndarray:
        if num_labels is None:
            raise UserError("mean_iou does not know the number of classes", fix="pass num_labels=...")
        rows = self._rows.copy()
        for old, new in (label_map or {}).items():
            rows[self._rows == old] = new
        if reduce_labels:
            rows[rows == 0] = 255
            rows -= 1
            rows[rows == 254] = 255
        kept = np.ones(len(rows), dtype=bool) if ignore_index is None else rows != ignore_index
        rows, columns = (np.where((v >= 0) & (v < num_labels), v, num_labels) for v in (rows, self._columns))
        matrix = np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64)
        np.add.at(matrix, np.ix_(rows[kept], columns), self._counts[kept])
        if len(self._merged) > 1:
            if len(self._merged) != len(matrix):
                raise UserError(f"counts of {len(self._merged) - 1} classes were added", f"{num_labels} classes")
            matrix += self._merged
        return matrix

    def _compute(self, predictions, references, **options):
        unknown = set(options) - {"num_labels", "ignore_index", "nan_to_num", "label_map", "reduce_labels"}
        if unknown:
            raise TypeError(f"mean_iou has no option {', '.join(sorted(unknown))}")
        nan = options.pop("nan_to_num", self.nan_to_num)
        defaults = {"num_labels": self.num_labels, "ignore_index": self.ignore_index}
        defaults |= {"label_map": self.label_map, "reduce_labels": self.reduce_labels}
        matrix = self._matrix(**{**defaults, **options})
        scores = scores_from_areas(np.diagonal(matrix)[:-1], matrix.sum(axis=0)[:-1], matrix.sum(axis=1)[:-1])
        return scores if nan is None else {key: np.nan_to_num(value, nan=nan) for key, value in scores.items()}


def _array(values) -> np.ndarray:
    """An array, of a tensor on any device too."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # numpy has no bfloat16
    return np.asarray(values)

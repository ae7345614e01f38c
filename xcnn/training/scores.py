"""Figures of merit of a whole data set, functions `(targets, predictions)` of NumPy arrays."""

import numpy as np

from xcnn._check import is_integer
from xcnn.errors import ShapeError, UsageError, explained

__all__ = ["confusion_matrix", "mean_iou", "r2_score"]


def _array(caller: str, name: str, value: object) -> np.ndarray:
    """Return an array or lists as a NumPy array of numbers."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise UsageError(f"{caller}: {name} must be an array, got lists of unequal lengths") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{caller}: {name} must hold numbers, got {array.dtype}")
    return array


@explained
def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how often each class (column) is predicted for each true class (row).

    Parameters
    ----------
    probabilities : (n, classes), or scores.
    labels : (n,), integers in 0..classes-1.

    Raises
    ------
    ShapeError, UsageError
        If the arrays do not fit together.

    Examples
    --------
    >>> confusion_matrix(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 1, 1]))
    array([[1, 0],
           [1, 1]])
    """
    probabilities = _array("confusion_matrix", "probabilities", probabilities)
    labels = _array("confusion_matrix", "labels", labels)
    shapes = probabilities.shape, labels.shape
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        got = " and ".join(map(str, shapes))
        raise ShapeError(f"confusion_matrix: expected probabilities (n, classes) and labels (n,), got {got}")
    wrong = labels[~np.isin(labels, np.arange(shapes[0][1]))]
    if wrong.size:
        raise UsageError(f"confusion_matrix: labels must be integers from 0 to {shapes[0][1] - 1}, got {wrong[0]}")
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts


@explained
def mean_iou(targets: np.ndarray, predictions: np.ndarray, ignore_index: int = -100) -> float:
    """Return the mean over the classes of intersection / union, of what is a class and what is predicted as it.

    Parameters
    ----------
    targets : class indices (n, ...); negative ones are left out.
    predictions : scores or probabilities (n, classes, ...), whose largest entry counts, or class indices (n, ...).
    ignore_index : the class index that is left out, that of the loss, such as 255 for pixels without a class. For a
        `Trainer`, pass `functools.partial(mean_iou, ignore_index=255)`.

    Returns
    -------
    The mean over the classes that occur in the targets or in the predictions; NaN if there are none.

    Raises
    ------
    ShapeError, UsageError
        If the arrays do not fit together, or `ignore_index` is no integer.

    Examples
    --------
    >>> mean_iou(np.array([0, 0, 1, -100]), np.array([0, 1, 1, 1]))
    0.5
    """
    targets, predictions = _array("mean_iou", "targets", targets), _array("mean_iou", "predictions", predictions)
    if predictions.ndim == targets.ndim + 1:
        predictions = predictions.argmax(axis=1)
    if predictions.shape != targets.shape or targets.dtype.kind not in "iu" or predictions.dtype.kind not in "iu":
        raise ShapeError(
            "mean_iou: expected class indices (n, ...) and predictions (n, classes, ...) or (n, ...), got "
            f"{targets.dtype} {targets.shape} and {predictions.dtype} {predictions.shape}"
        )
    if not is_integer(ignore_index):
        raise UsageError(f"mean_iou: ignore_index must be an integer, got {ignore_index!r}")
    counted = (targets >= 0) & (targets != ignore_index)
    true, said = targets[counted], predictions[counted]
    size = max(true.max(initial=-1), said.max(initial=-1)) + 1
    both = np.bincount(true[true == said], minlength=size)
    union = np.bincount(true, minlength=size) + np.bincount(said, minlength=size) - both
    return float(np.mean(both[union > 0] / union[union > 0])) if union.any() else float("nan")


@explained
def r2_score(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return the coefficient of determination, the share of the variance of the targets that is predicted.

    It is `1 - sum((t - p)**2) / sum((t - mean(t))**2)`, the mean over the columns if there are several. 1 is perfect, 0
    is what the mean of the targets gives. A column of equal targets counts 1 if it is predicted exactly, otherwise 0.

    Parameters
    ----------
    targets, predictions : (n,) or (n, ...), of one shape.

    Raises
    ------
    ShapeError, UsageError
        If the shapes differ, or the arrays do not hold numbers.

    Examples
    --------
    >>> r2_score(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    0.5
    """
    t = _array("r2_score", "targets", targets).astype(np.float64)
    p = _array("r2_score", "predictions", predictions).astype(np.float64)
    if t.shape != p.shape or not t.size:
        raise ShapeError(f"r2_score: expected targets and predictions of one shape, got {t.shape} and {p.shape}")
    error, spread = ((t - p) ** 2).sum(axis=0), ((t - t.mean(axis=0)) ** 2).sum(axis=0)
    constant = np.where(error == 0.0, 1.0, 0.0)
    return float(np.mean(np.where(spread > 0.0, 1.0 - error / np.where(spread > 0.0, spread, 1.0), constant)))

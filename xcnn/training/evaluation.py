"""Loss and accuracy of a model on a data set, and its predictions, in inference mode."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._check import integer
from xcnn.devices import Device, to_numpy
from xcnn.errors import DataError, ShapeError, UsageError
from xcnn.nn import Module
from xcnn.training.divergence import look
from xcnn.training.feed import Data, dtype_of, in_order, inputs, place
from xcnn.training.losses import Loss
from xcnn.training.memory import within_memory

__all__ = ["Metrics", "confusion_matrix", "evaluate", "predict"]


@dataclass(repr=False)
class Metrics:
    """Mean loss and accuracy over the images seen so far."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int | None = None

    def add(self, images: int, loss: float, correct: int | None) -> None:
        """Count one batch, whose loss is a mean over its images."""
        self.images += images
        self.loss_sum += loss * images
        if correct is not None:
            self.correct = (self.correct or 0) + correct

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.loss_sum / self.images if self.images else math.nan

    @property
    def accuracy(self) -> float | None:
        """Share of the images whose largest output is the true class; None if the loss does not classify."""
        return None if self.correct is None else self.correct / self.images

    def __repr__(self) -> str:
        return f"Metrics(loss={self.loss:.6g}, accuracy={self.accuracy}, images={self.images})"


def evaluate(
    model: Module,
    data: Data,
    loss: Loss,
    where: Device,
    batch_size: int = 256,
    watch: Callable[[Metrics], None] | None = None,
) -> Metrics:
    """Return loss and accuracy of a model that is on the device `where`; see `Trainer.evaluate`.

    `watch` is called after each batch with the metrics so far.
    """
    metrics, dtype = Metrics(), dtype_of(model)
    integer("evaluate", "batch_size", batch_size)

    def test(x: Any, y: Any) -> tuple[int, float, int | None]:
        output, targets = model(place(x, where, dtype)), place(y, where, dtype)
        return output.shape[0], *look(loss.function(output, targets)[0], loss.count_correct(output, targets))[:2]

    with where.active():
        for x, y in in_order("evaluate: data", data, batch_size, where):
            metrics.add(*within_memory(test, x, y, where=where))
            if watch is not None:
                watch(metrics)
    if not metrics.images:
        raise DataError("evaluate: there is no batch to test on (an iterator gives its batches only once)")
    return metrics


def predict(model: Module, x: Any, loss: Loss, where: Device, batch_size: int = 256) -> np.ndarray:
    """Return the predictions of a model that is on the device `where`; see `Trainer.predict`."""
    integer("predict", "batch_size", batch_size)
    dtype = dtype_of(model)

    def answer(x: Any) -> np.ndarray:
        return to_numpy(loss.activation(model(place(x, where, dtype))))

    with where.active():
        parts = inputs("predict: x", x, batch_size, where)
        return np.concatenate([within_memory(answer, part, where=where) for part in parts])


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
    shapes = np.shape(probabilities), np.shape(labels)
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        got = " and ".join(map(str, shapes))
        raise ShapeError(f"confusion_matrix: expected probabilities (n, classes) and labels (n,), got {got}")
    wrong = np.asarray(labels)[~np.isin(labels, np.arange(shapes[0][1]))]
    if wrong.size:
        raise UsageError(f"confusion_matrix: labels must be integers from 0 to {shapes[0][1] - 1}, got {wrong[0]}")
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts

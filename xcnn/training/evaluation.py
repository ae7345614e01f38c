"""Loss and accuracy of a model on a data set, and its predictions, in inference mode."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._array import Array
from xcnn._check import integer
from xcnn.data import Dataset, Loader
from xcnn.devices import Device, to_numpy
from xcnn.errors import DataError, ShapeError
from xcnn.nn import Module
from xcnn.training.divergence import look
from xcnn.training.feed import Data, in_order, place
from xcnn.training.losses import Loss
from xcnn.training.memory import within_memory

__all__ = ["Metrics", "confusion_matrix", "correct", "evaluate", "predict"]


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
        """Share of the images whose largest output is the right class; None where the loss does not classify."""
        return None if self.correct is None else self.correct / self.images

    def __repr__(self) -> str:
        return f"Metrics(loss={self.loss:.6g}, accuracy={self.accuracy}, images={self.images})"


def correct(loss: Loss, output: Array, y: Array) -> Array | None:
    """Return how many images are predicted right, a number or an array on the device; None if that means nothing."""
    return None if loss.correct is None else loss.correct(output, y)


def evaluate(
    model: Module,
    data: Data,
    loss: Loss,
    where: Device,
    batch_size: int = 256,
    watch: Callable[[Metrics], None] | None = None,
) -> Metrics:
    """Return loss and accuracy over a data set, in inference mode.

    Parameters
    ----------
    model : on the device `where`.
    data, loss, batch_size : see `Trainer.evaluate`.
    where : the device.
    watch : called after each batch with the metrics so far.

    Raises
    ------
    DataError
        If there is no batch.
    OutOfMemoryError
        If a batch is too large.
    """
    metrics = Metrics()
    integer("evaluate", "batch_size", batch_size)

    def test(x: Any, y: Any) -> tuple[int, float, int | None]:
        output, targets = model(place(x, where)), place(y, where)
        return output.shape[0], *look(loss.function(output, targets)[0], correct(loss, output, targets))[:2]

    with where.active():
        for x, y in in_order("evaluate: data", data, batch_size, where):
            metrics.add(*within_memory(test, x, y, where=where))
            if watch is not None:
                watch(metrics)
    if not metrics.images:
        raise DataError("evaluate: there is no batch to test on")
    return metrics


def predict(model: Module, images: Any, loss: Loss, where: Device, batch_size: int = 256) -> np.ndarray:
    """Return what a model predicts for each image, on the host; see `Trainer.predict`."""
    integer("predict", "batch_size", batch_size)
    if isinstance(images, Loader | Dataset):
        parts: Iterable[Any] = (x for x, _ in in_order("predict: images", images, batch_size, where))
    elif len(images := np.asarray(images) if isinstance(images, list | tuple) else images) == 0:
        raise ShapeError("predict: images is empty")
    else:
        parts = (images[i : i + batch_size, ...] for i in range(0, len(images), batch_size))

    def answer(x: Any) -> np.ndarray:
        return to_numpy(loss.activation(model(place(x, where))))

    with where.active():
        return np.concatenate([within_memory(answer, x, where=where) for x in parts])


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count, per true class (row), the predicted classes (columns), from (n, classes) and (n,).

    >>> confusion_matrix(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 1, 1]))
    array([[1, 0],
           [1, 1]])
    """
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts

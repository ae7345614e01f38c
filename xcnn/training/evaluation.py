"""Inference: a model's loss and accuracy on a data set, and what it says of single images."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._array import Array, namespace_of
from xcnn.data import Dataset, Loader, from_arrays
from xcnn.devices import Device, to_numpy
from xcnn.errors import DataError, ShapeError, UsageError
from xcnn.nn import Module
from xcnn.threads import one_blas_thread
from xcnn.training.divergence import look, within_memory
from xcnn.training.losses import Loss

__all__ = [
    "Batch",
    "Data",
    "Metrics",
    "batches",
    "confusion_matrix",
    "correct",
    "evaluate",
    "place",
    "predict",
]

Batch = tuple[Any, Any]
Data = Loader | Dataset | tuple[np.ndarray, np.ndarray] | Sequence[Batch]
"""Batches, or what they are made of: a `Loader`, a `Dataset`, (images, labels), or a list of (x, y) batches."""


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


def batches(data: Data, where: Device | None) -> Loader | Sequence[Batch]:
    """Give batches to train on: data sets are shuffled from seed 0 in batches of 64, on the device or the host."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, np.ndarray) for part in data):
        data = from_arrays(*data)
    if isinstance(data, Loader) and where is not None:
        _check_place(data, where)
    return Loader(data, device=where) if isinstance(data, Dataset) else data  # type: ignore[return-value]


def _check_place(loader: Loader, where: Device) -> None:
    """Refuse a loader whose batches are on another device than the network; those on the host are moved."""
    made_on = loader.device
    if made_on is not None and made_on.xp is not np and made_on != where:
        raise UsageError(
            f"the loader's batches are on {made_on.name}, the network is on {where.name}: give both the same device"
        )


def _in_order(data: Data, batch_size: int, where: Device) -> Iterator[Batch]:
    """Give batches to evaluate: every image once, in the data set's order, not augmented.

    A data set that has no loader yet stays on the host: to move each of its images once takes no copy of all.
    """
    made = batches(data, None)
    if isinstance(made, Loader):
        _check_place(made, where)
    return iter(made.in_order(batch_size) if isinstance(made, Loader) else made)


def place(array: Any, where: Device) -> Array:
    """Move a host array, or a list, to the device; an array of the device's library stays as it is."""
    if isinstance(array, list | tuple):
        array = np.asarray(array)
    return array if namespace_of(array) is where.xp else where.asarray(array)


def correct(loss: Loss, output: Array, y: Array) -> Array | None:
    """Count the rows of `output` (n, classes) whose largest entry is at `y` (n,); None where that means nothing.

    The count is where the output is: an integer, or a 0-d array.
    """
    if not loss.classifies or output.ndim != 2 or y.ndim != 1:
        return None
    xp = namespace_of(output)
    return xp.count_nonzero(xp.argmax(output, axis=1) == y)


def evaluate(
    model: Module,
    data: Data,
    loss: Loss,
    where: Device,
    batch_size: int = 256,
    watch: Callable[[Metrics], None] | None = None,
) -> Metrics:
    """Return loss and accuracy over a data set, in inference mode; the model is on the device `where`.

    `watch` is called after each batch with the metrics so far. Raises DataError where there is no batch, and
    OutOfMemoryError where one is too large.
    """
    metrics = Metrics()

    def test(x: Any, y: Any) -> tuple[int, float, int | None]:
        output, targets = model(place(x, where)), place(y, where)
        return output.shape[0], *look(loss.function(output, targets)[0], correct(loss, output, targets))[:2]

    with one_blas_thread(), where.active():
        for x, y in _in_order(data, batch_size, where):
            metrics.add(*within_memory(test, x, y, where=where, option="batch_size"))
            if watch is not None:
                watch(metrics)
    if not metrics.images:
        raise DataError("evaluate: there is no batch to test on")
    return metrics


def predict(model: Module, images: Any, loss: Loss, where: Device, batch_size: int = 256) -> np.ndarray:
    """Return what a model says of each image, on the host; see `Trainer.predict`."""
    if isinstance(images, Loader | Dataset):
        parts: Iterable[Any] = (x for x, _ in _in_order(images, batch_size, where))
    elif len(images := np.asarray(images) if isinstance(images, list | tuple) else images) == 0:
        raise ShapeError("predict: images is empty")
    else:
        parts = (images[i : i + batch_size, ...] for i in range(0, len(images), batch_size))

    def say(x: Any) -> np.ndarray:
        return to_numpy(loss.activation(model(place(x, where))))

    with one_blas_thread(), where.active():
        return np.concatenate([within_memory(say, x, where=where, option="batch_size") for x in parts])


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count, per true class (row), the predicted classes (columns), from (n, classes) and (n,).

    >>> confusion_matrix(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 1, 1]))
    array([[1, 0],
           [1, 1]])
    """
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts

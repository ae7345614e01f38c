"""Inference: a model's loss and accuracy on a data set, and what it says of single images."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._array import Array, namespace_of
from xcnn._plugins import find, refuse_foreign
from xcnn.data import DATASETS, Dataset, Loader, from_arrays, load, read_image, to_float
from xcnn.devices import Device, device, to_numpy
from xcnn.errors import CheckpointError, DataError, ShapeError, UsageError
from xcnn.nn import Module
from xcnn.threads import one_blas_thread
from xcnn.training.checkpoint import Checkpoint, load_checkpoint
from xcnn.training.diagnosis import look, within_memory
from xcnn.training.losses import LOSSES, Loss

__all__ = [
    "Batch",
    "Data",
    "Metrics",
    "Prediction",
    "Restored",
    "batches",
    "confusion_matrix",
    "correct",
    "evaluate",
    "place",
    "predict",
    "restore",
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


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes
    ----------
    name : the file, or the data set with the index.
    image : (c, h, w) float32 0..1, as the model saw it.
    probabilities : (classes,).
    truth : the true class, if known.
    """

    name: str
    image: np.ndarray
    probabilities: np.ndarray
    truth: int | None = None


class Restored:
    """A trained model from a checkpoint, with the data set that it is tested on; made by `restore`.

    Attributes
    ----------
    checkpoint : the weights and what they are of.
    device : where the model is.
    model : ready to use.
    dataset : name of the data set of the test images.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        where: Device,
        dataset: str,
        load_test: Callable[..., Dataset],
        model: str | None = None,
    ) -> None:
        self.checkpoint, self.device = checkpoint, where
        self.dataset, self._load_test = dataset, load_test
        self.loss = LOSSES["cross_entropy"]
        self.model = checkpoint.build(model).to(where)

    def test_set(self) -> Dataset:
        """Load the test images, which must be of the shape and the classes that the model knows."""
        shape, classes = self.checkpoint.shape, self.checkpoint.classes
        test = self._load_test(shape[1])
        if test.shape != shape or len(test.classes) != len(classes):
            raise UsageError(
                f"the model takes {shape} images of {len(classes)} classes, "
                f"{self.dataset} has {test.shape} images of {len(test.classes)}"
            )
        if self.dataset == self.checkpoint.dataset and test.classes != classes:
            raise UsageError(
                f"the model knows the classes {', '.join(classes)}, {self.dataset} has {', '.join(test.classes)}"
            )
        return test

    def evaluate(self, watch: Callable[[int, Metrics], None] | None = None) -> tuple[Metrics, Dataset]:
        """Test the model; `watch` is called after each batch with the number of images and the metrics so far."""
        test = self.test_set()
        told = None if watch is None else functools.partial(watch, len(test))
        return evaluate(self.model, test, self.loss, self.device, watch=told), test

    def predict(self, files: Sequence[Path] = (), indices: Sequence[int] = ()) -> list[Prediction]:
        """Classify image files and test images.

        Raises
        ------
        DataError
            For a file that is no image.
        UsageError
            For an index outside the test set, or nothing to classify.
        """
        if not files and not indices:
            raise UsageError("nothing to predict; give image files, or --index for images of the test set")
        names, truths = [str(path) for path in files], [None] * len(files)
        images = [to_float(read_image(path, self.checkpoint.shape)[None])[0] for path in files]
        if indices:
            test = self.test_set()
            for index in indices:
                if not 0 <= index < len(test):
                    raise UsageError(f"--index takes 0 .. {len(test) - 1} (test images of {test.name}), got {index}")
            names += [f"{self.dataset}-{index}" for index in indices]
            images += list(to_float(test.images[list(indices)]))
            truths += test.labels[list(indices)].tolist()
        stack = np.stack(images)
        results = predict(self.model, stack, self.loss, self.device)
        return [Prediction(*parts) for parts in zip(names, stack, results, truths, strict=True)]


def restore(
    path: Path,
    where: str | Device = "cpu",
    *,
    model: str | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Restored:
    """Load a checkpoint for evaluation and prediction.

    Parameters
    ----------
    path : the file.
    where : the device.
    model : its model; needed where the file holds plain weights, then with `dataset`, whose images the model must take.
    dataset, data_dir : the data set to test on, in place of the one that it was trained on.
    progress : told of a download; see `data.load`.

    Raises
    ------
    XcnnError
        For a file that is no checkpoint or does not fit, an unknown name, a device that cannot be used.
    """
    if dataset is not None:
        find("data set", dataset, DATASETS)
    opened = device(where)

    def load_test(chosen: str, folder: Path | None, size: int | None = None) -> Dataset:
        if dataset is None:
            refuse_foreign(path, dataset=chosen)
        options = {"size": size} if chosen == "folder" and size is not None else {}
        return load(chosen, folder, progress=progress, **options)[1]

    def describe() -> dict[str, Any]:
        if dataset is None:
            raise UsageError(f"{path} holds weights but does not say of what images; name a data set with --dataset")
        test = load_test(dataset, data_dir)
        return {"shape": test.shape, "classes": test.classes, "dataset": dataset}

    checkpoint = load_checkpoint(path, model, describe)
    chosen = dataset or checkpoint.dataset
    recorded = checkpoint.config.get("data_dir") if chosen == checkpoint.dataset else None
    folder = data_dir if data_dir is not None or recorded is None else Path(str(recorded))
    try:
        return Restored(checkpoint, opened, chosen, functools.partial(load_test, chosen, folder), model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None

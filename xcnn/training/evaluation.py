"""Loss and accuracy of a model on a data set, and its predictions, in inference mode."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xcnn._array import is_kind, namespace_of
from xcnn._check import integer
from xcnn.devices import Device, to_numpy
from xcnn.errors import DataError, ShapeError, UsageError, wrong_call
from xcnn.nn import Module
from xcnn.training.divergence import look
from xcnn.training.feed import Data, dtype_of, in_order, inputs, place
from xcnn.training.losses import Loss, count_labels
from xcnn.training.memory import within_memory
from xcnn.training.processes import ALONE, Processes

__all__ = ["Metric", "Metrics", "PerClass", "evaluate", "metrics_named", "predict"]


class PerClass(NamedTuple):
    """Figures of each class, arrays of shape (classes,); those whose denominator is 0 are 0.

    Attributes
    ----------
    precision : the share of the predictions of this class that are right.
    recall : the share of the samples of this class that are found.
    f1 : the harmonic mean of both.
    support : the number of samples of this class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


@dataclass(repr=False)
class Metrics:
    """Mean loss, accuracy and other figures over the samples seen so far.

    Attributes
    ----------
    samples : the number of samples: images, signals, rows.
    loss_sum, size : the sum of the losses, and by what it is divided: see `Loss.size`.
    correct, counted : the number of right answers, None without an accuracy, and the number of answers that count.
    confusion : how often each class (column) is predicted for each true class (row), int64 (classes, classes);
        None in training and in the validation of `fit`, if the loss does not classify, or for more than 4,096 classes.
    labels : of several labels, how often each is rightly found, is predicted, and is there, int64 (3, labels); None
        as `confusion` is, or if the loss has another accuracy than `count_labels`.
    values : the figures of the functions given as `metrics`.
    """

    samples: int = 0
    loss_sum: float = 0.0
    size: float = 0.0
    correct: int | None = None
    counted: int = 0
    confusion: np.ndarray | None = None
    labels: np.ndarray | None = None
    values: dict[str, float] = field(default_factory=dict)

    def add(
        self, samples: int, loss: float, correct: int | None, counted: int | None = None, size: float | None = None
    ) -> None:
        """Count one batch, whose loss is a mean; by default all its samples count, and each once."""
        size = float(samples if size is None else size)
        self.samples += samples
        self.size += size
        if size:  # the mean of no answers is NaN
            self.loss_sum += loss * size
        if correct is not None:
            self.correct = (self.correct or 0) + correct
            self.counted += samples if counted is None else counted

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.loss_sum / self.size if self.size else math.nan

    @property
    def accuracy(self) -> float | None:
        """Share of the answers that are right; None if the loss has no accuracy, NaN if no answer counts.

        An answer is the class of a sample or a pixel, or one label of several.
        """
        if self.correct is None:
            return None
        return self.correct / self.counted if self.counted else math.nan

    def per_class(self) -> PerClass:
        """Return precision, recall, F1 and support of each class or label, as scikit-learn defines them.

        Raises
        ------
        UsageError
            If neither classes nor labels are counted.

        Examples
        --------
        >>> Metrics(confusion=np.array([[3, 1], [0, 4]])).per_class().recall
        array([0.75, 1.  ])
        """
        if self.confusion is not None:
            right, said, support = np.diag(self.confusion), self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        elif self.labels is not None:
            right, said, support = self.labels
        else:
            raise UsageError(
                "per_class: there is no confusion matrix; it is made by `evaluate` with a loss of classes or labels"
            )

        def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
            return np.asarray(np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0))

        return PerClass(share(right, said), share(right, support), share(2 * right, said + support), support)

    def __repr__(self) -> str:
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy}
        figures = {"loss": self.loss, **accuracy, **self.values}
        shown = ", ".join(f"{name}={value:.6g}" for name, value in figures.items())
        return f"Metrics({shown}, samples={self.samples})"


Metric = Callable[[np.ndarray, np.ndarray], float]
"""A function `(targets, predictions)` of all samples of a data set that returns a number."""

_MOST_CLASSES = 4096
"""The largest number of classes for which a confusion matrix is made."""


def metrics_named(caller: str, metrics: Mapping[str, Metric] | None) -> dict[str, Metric]:
    """Check the argument `metrics` and return it as a dict."""
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, Mapping) or not all(isinstance(k, str) and callable(f) for k, f in metrics.items()):
        raise UsageError(f"{caller}: metrics must map names to functions (targets, predictions), got {metrics!r}")
    if taken := {"loss", "accuracy"} & metrics.keys():
        raise UsageError(f"{caller}: metrics must have other names than {min(taken)}, which is always there")
    for name, function in metrics.items():  # not at the end of the first epoch
        if wrong := wrong_call(f"{caller}: the metric {name}", function, (None, None), {}):
            raise UsageError(f"{wrong}; it must be a function (targets, predictions)")
    return dict(metrics)


def evaluate(
    model: Module,
    data: Data,
    loss: Loss,
    where: Device,
    batch_size: int = 256,
    watch: Callable[[Metrics], None] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    confusion: bool = True,
    parallel: Processes = ALONE,
) -> Metrics:
    """Return loss, accuracy and other figures of a model that is on the device `where`; see `Trainer.evaluate`.

    `watch` is called after each batch with the metrics so far. `confusion` says whether to make a confusion matrix.
    The batches of a data set are dealt out to the processes `parallel`, which all return the same.
    """
    seen, functions, kept = Metrics(), metrics_named("evaluate", metrics), list[tuple[np.ndarray, np.ndarray]]()
    dtype = dtype_of(model)
    integer("evaluate", "batch_size", batch_size)

    def test(x: Any, y: Any) -> tuple[Any, ...]:
        output, targets = model(place(x, where, dtype)), place(y, where, dtype)
        numbers = loss(output, targets)[0], *loss.counts(output, targets)
        if loss.classifies and (true := _indices(output, targets, loss)) is not None and confusion:
            seen.confusion = _confused(seen.confusion, true, output, loss)
        if confusion and loss.correct is count_labels and output.ndim > 1:
            counts = _found(output, targets)
            seen.labels = counts if seen.labels is None else seen.labels + counts
        if functions:
            kept.append((to_numpy(targets), to_numpy(loss.activation(output))))
        return output.shape[0], *look(numbers)[0]

    made, divided = in_order("evaluate: data", data, batch_size, where, parallel=parallel)
    rows: list[tuple[Any, ...]] = []
    with where.active(), contextlib.closing(made) as batches:
        for x, y in batches:
            rows.append(within_memory(test, x, y, where=where))
            seen.add(*rows[-1])
            if watch is not None:
                watch(seen)
    if divided:
        seen, kept = _of_all(seen, rows, kept, parallel)
        if watch is not None:
            watch(seen)
    if not seen.samples:
        raise DataError("evaluate: there is no batch to test on (an iterator gives its batches only once)")
    if functions:
        targets, predictions = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        for name, function in functions.items():
            try:
                value = function(targets, predictions)
            except Exception as error:
                shapes = (
                    f"targets {targets.dtype} {targets.shape} and predictions {predictions.dtype} {predictions.shape}"
                )
                error.add_note(f"evaluate: this is the metric {name} of {shapes}")
                raise
            seen.values[name] = _value(name, value)
    return seen


def _of_all(
    mine: Metrics, rows: list[tuple[Any, ...]], kept: list[tuple[np.ndarray, np.ndarray]], parallel: Processes
) -> tuple[Metrics, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the metrics and what is kept of the batches of all processes, from the batches of each."""
    seen = Metrics()
    for part in parallel.gather_bytes(json.dumps(rows).encode()):
        for row in json.loads(part):
            seen.add(*row)
    for name in ("confusion", "labels"):
        counts = getattr(mine, name)
        found = parallel.gather_rows(None if counts is None else counts[None])
        setattr(seen, name, None if found is None else found.sum(axis=0))
    targets, predictions = map(np.concatenate, zip(*kept, strict=True)) if kept else (None, None)
    targets, predictions = parallel.gather_rows(targets), parallel.gather_rows(predictions)
    return seen, [] if targets is None or predictions is None else [(targets, predictions)]


def _value(name: str, value: Any) -> float:
    """Return what a metric has returned as a float."""
    if not np.isscalar(value) and not (isinstance(value, np.ndarray) and value.size == 1):
        raise UsageError(f"evaluate: the metric {name} must return a number, got {type(value).__name__}")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(f"evaluate: the metric {name} must return a number, got {value!r}") from None


def _indices(output: Any, targets: Any, loss: Loss) -> np.ndarray | None:
    """Return the class indices of one batch on the host, flat; None if the target holds none."""
    if not is_kind(namespace_of(targets), targets.dtype, "integral") or output.ndim < 2:
        return None
    true: np.ndarray = to_numpy(targets).ravel()
    if wrong := true[((true < 0) | (true >= output.shape[1])) & (true != loss.ignore_index)].tolist():
        raise UsageError(f"evaluate: the targets hold {wrong[0]}, the model has classes 0 .. {output.shape[1] - 1}")
    return true


def _confused(counts: np.ndarray | None, true: np.ndarray, output: Any, loss: Loss) -> np.ndarray | None:
    """Return a confusion matrix, to which the answers of one more batch are added in place; None for many classes."""
    k = output.shape[1]
    if k > _MOST_CLASSES:
        return None
    counts = np.zeros((k, k), np.int64) if counts is None else counts
    said, counted = to_numpy(namespace_of(output).argmax(output, axis=1)).ravel(), true != loss.ignore_index
    np.add.at(counts.reshape(-1), true[counted].astype(np.int64) * k + said[counted], 1)
    return counts


def _found(output: Any, targets: Any) -> np.ndarray:
    """Return how often each label of one batch is rightly found, is predicted, and is there."""
    said, true = to_numpy(output) > 0.0, to_numpy(targets) > 0.5
    axes = (0, *range(2, said.ndim))
    return np.stack([np.count_nonzero(each, axis=axes) for each in (said & true, said, true)])


def predict(
    model: Module, x: Any, loss: Loss, where: Device, batch_size: int = 256, parallel: Processes = ALONE
) -> np.ndarray:
    """Return the predictions of a model that is on the device `where`; see `Trainer.predict`.

    The batches of a data set or an array are dealt out to the processes `parallel`, which all return the same.
    """
    integer("predict", "batch_size", batch_size)
    dtype, who = dtype_of(model), "predict: x"

    def answer(x: Any) -> np.ndarray:
        return to_numpy(loss.activation(model(place(x, where, dtype))))

    with where.active():
        try:
            made, divided = inputs(who, x, batch_size, where, parallel)
            with contextlib.closing(made) as parts:
                rows = [within_memory(answer, part, where=where) for part in parts]
            found = np.concatenate(rows) if rows else None
            found = parallel.gather_rows(found) if divided else found
            if found is None:
                raise DataError(f"{who} has no batch (an iterator gives its batches only once)")
            return found
        except ShapeError as error:
            if not (isinstance(x, np.ndarray) and x.shape and x.shape[0] <= batch_size):
                raise
            refused = str(error)
        try:
            answer(next(inputs(who, x[None], batch_size, where)[0]))
        except Exception:
            raise ShapeError(refused) from None
        if "x[None]" in refused:  # the network has said so
            raise ShapeError(refused)
        raise ShapeError(f"{refused}; one example alone is passed as x[None]")

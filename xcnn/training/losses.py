"""The losses that a network can be trained with: one table, by PyTorch's functional names."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import array_api_compat
import numpy as np

from xcnn import ops
from xcnn._array import Array, is_array, is_kind, namespace_of
from xcnn._check import choice, integer
from xcnn._dispatch import Call, bound, tracing, version
from xcnn._plugins import find
from xcnn.devices import like, on_host, to_numpy
from xcnn.errors import DtypeError, ShapeError, UsageError, XcnnError, explained, wrong_call
from xcnn.nn._plan import like as alike
from xcnn.nn._repeat import Repetition, repetition
from xcnn.ops._op import OPS, Backward

__all__ = [
    "LOSSES",
    "Loss",
    "class_weight",
    "count_classes",
    "count_labels",
    "exp",
    "identity",
    "loss_named",
    "sigmoid",
    "softmax",
]


_ROUNDING = 0.01
"""How far the sum of probabilities may be from 1: float16 rounds each by up to 0.0005."""

_MOST = 16
"""The number of shapes for which a loss keeps what it has prepared."""


def identity(output: Array) -> Array:
    """Return the output unchanged."""
    return output


def exp(output: Array) -> Array:
    """Return the probabilities of log-probabilities (n, classes, ...)."""
    return namespace_of(output).exp(output)


def sigmoid(output: Array) -> Array:
    """Return one probability per score, for scores of any shape."""
    return ops.sigmoid(output)[0]


def softmax(output: Array) -> Array:
    """Return the probabilities of scores (n, classes, ...)."""
    return ops.softmax(output, dim=1)[0]


def _per_example(right: Array) -> Array:
    """Return the number of true entries: 0-d for (n,), otherwise one number per example, which float32 can hold."""
    xp = namespace_of(right)
    if right.ndim < 2:
        return xp.count_nonzero(right)
    return xp.count_nonzero(xp.reshape(right, (right.shape[0], -1)), axis=1)


def count_classes(output: Array, target: Array) -> Array | None:
    """Return the number of places where the largest entry of an output (n, classes, ...) is at the target.

    Parameters
    ----------
    output : scores or probabilities.
    target : class indices (n, ...), or probabilities of the shape of the output, whose largest entry counts.

    Returns
    -------
    An array on the device of the output: 0-d, or the numbers of each example. None if the shapes do not fit.
    """
    if output.ndim < 2:
        return None
    xp = namespace_of(output)
    best = xp.argmax(output, axis=1)
    if target.shape == output.shape and is_kind(xp, target.dtype, "real floating"):
        return _per_example(best == xp.argmax(target, axis=1))
    return _per_example(best == target) if target.shape == best.shape else None


def count_labels(output: Array, target: Array) -> Array:
    """Return the number of scores whose sign says what the target, 0 or 1, says; both have any one shape."""
    return _per_example((output > 0.0) == (target > 0.5))


@dataclass(frozen=True)
class Loss:
    """A loss, and how it interprets the output of the network and the target.

    Calling it as `loss(output, target)` checks and converts the target, and returns what `function` returns.

    Attributes
    ----------
    function : `loss, backward = function(output, target, **options)`. The loss is a mean, a 0-d array. The first value
        that `backward()` returns is the gradient of the output.
    activation : function that turns the network's output into what `Trainer.predict` returns, such as probabilities.
    correct : function `(output, target)` that returns the number of correct predictions in a batch, or that number and
        the number of predictions that count. Each is an integer, a 0-d array, or an array with a number for each
        example. None if the loss has no accuracy.
    target : what the target is. `"classes"`: class indices of the shape of the output without its axis 1, such as (n,)
        or (n, h, w), where the index -100 is ignored, or probabilities of the shape of the output,
        which must sum to 1 over the classes (checked on the host). `"numbers"`: an array of the shape of the output.
        None: whatever `function` takes. Numbers and probabilities of another dtype are converted to that of the output.
    options : options of `function`. Lists, such as class weights, become arrays like the output.

    Examples
    --------
    >>> loss = Loss(ops.cross_entropy, softmax, count_classes, "classes", {"label_smoothing": 0.1})
    >>> value, backward = loss(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(float(value), 4)
    1.3863
    """

    function: Callable[..., Any]
    activation: Callable[[Array], Array] = identity
    correct: Callable[[Array, Array], Any] | None = None
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    _runs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UsageError(f"Loss: function must be a function (output, target), got {self.function!r}")
        if self.target is not None:
            choice("Loss", "target", self.target, ("classes", "numbers"))

    def __call__(self, output: Array, target: Array) -> tuple[Array, Callable[..., Any]]:
        """Return the loss, a 0-d array, and its backward pass."""
        key = alike(output), alike(target), version()
        then, run = self._runs.get(key, ({}, None))
        if run is not None and len(then) == len(self.options):
            same = all(self.options.get(name, self) is value for name, value in then.items())
            if same and (made := run(output, target)) is not NotImplemented:
                return made  # type: ignore[no-any-return]
        options = {
            name: like(np.asarray(value), output) if isinstance(value, list) else value
            for name, value in self.options.items()
        }
        repeats = self.function is ops.cross_entropy and self._has_indices(target)
        watch: Any = tracing() if repeats else contextlib.nullcontext([])
        with watch as calls:
            made = self.function(output, self._checked(output, target), **options)
        if not isinstance(made, tuple) or len(made) != 2 or not callable(made[1]):
            raise UsageError(f"{self._name}: a loss must return (loss, backward), got {type(made).__name__}")
        if (shape := getattr(made[0], "shape", ())) and math.prod(shape) != 1:
            raise ShapeError(f"{self._name}: a loss must be one number, the mean of the batch, got shape {shape}")
        if repeats:  # shapes and options decide what it does
            self._repeat(key, repetition(calls, made[0], (output, target), self, (0, 1)), calls, made[0])
        return made

    def _repeat(self, key: Any, call: Repetition | None, calls: Sequence[Call], loss: Array) -> None:
        """Bind the body that was called to its shapes, for later calls with the same options."""
        repeats = call is not None and on_host(loss)
        run = bound(calls[0].body, namespace_of(loss), calls[0].arguments, whole=True) if repeats else None
        if run is None:
            return
        rest, name = calls[0].arguments[2:], "cross_entropy"
        count = len(OPS[name].arrays)

        def again(output: Array, target: Array) -> Any:
            made = run(output, target, *rest)
            return made if made is NotImplemented else (made[0], Backward(name, made[0], count, made[1]))

        if len(self._runs) >= _MOST:
            self._runs.clear()
        self._runs[key] = dict(self.options), again

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_runs": {}}

    @property
    def classifies(self) -> bool:
        """Whether the target holds class indices."""
        return self.target == "classes"

    @property
    def ignore_index(self) -> int:
        """The class index that does not count."""
        return int(self.options.get("ignore_index", -100))

    @property
    def _name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def _checked(self, output: Array, target: Array) -> Array:
        """Return the target in the dtype of the output, or as it is if it holds class indices."""
        if self.target is None:
            return target
        if self._has_indices(target):
            if output.ndim > 1 and target.shape != output.shape[:1] + output.shape[2:]:
                raise self._misplaced(output, target)
            return target
        if self.classifies and target.shape == output.shape and target.ndim > 1 and on_host(target):
            sums = target.sum(axis=1)
            off = abs(sums - 1.0) > _ROUNDING
            if off.any():
                raise UsageError(
                    f"{self._name}: a target holds probabilities that sum to {sums[off][0]:.6g}, expected 1 over the "
                    "classes; for several labels at once use binary_cross_entropy_with_logits"
                )
        if target.dtype == output.dtype and target.shape == output.shape:
            return target
        if target.shape != output.shape:
            raise self._misfit(output, target)
        return namespace_of(target).astype(target, output.dtype)

    def _misfit(self, output: Array, target: Array) -> XcnnError:
        """Return the error for a target that has not the shape of the output."""
        shapes = f"the output {tuple(output.shape)}, the target {tuple(target.shape)}"
        if self.classifies:
            return DtypeError(
                f"{self._name} takes integer class indices or probabilities of the shape of the output, got {shapes} "
                f"of {target.dtype}; use mse_loss for regression, or integer classes"
            )
        if not _is_floating(target) and target.shape == output.shape[:1] + output.shape[2:] and output.shape[1] > 1:
            fix = "use cross_entropy for class indices"
        elif math.prod(target.shape) == math.prod(output.shape):
            fix = "reshape the target, such as by y[:, None]"
        elif target.shape[:1] != output.shape[:1]:
            fix = "pass one target per example"
        else:
            fix = "let the network return one number for each of the target"
        return ShapeError(f"{self._name} takes a target of the shape of the output, got {shapes}; {fix}")

    def _misplaced(self, output: Array, target: Array) -> ShapeError:
        """Return the error for class indices that have not the shape of the output without its axis 1."""
        wanted, came, fix = tuple(output.shape[:1] + output.shape[2:]), tuple(target.shape), ""
        if came == tuple(output.shape):
            fix = "; if the targets are one-hot, pass y.argmax(axis=1)"
        elif came == (*wanted[:1], 1, *wanted[1:]):
            fix = "; pass y[:, 0]"
        elif came == (*wanted, 1):
            fix = "; pass y[..., 0]"
        elif came[:1] != wanted[:1]:
            fix = "; pass one target per example"
        elif came == tuple(output.shape[:-1]):
            fix = "; if the last axis of the output holds the classes, let the network move it to axis 1"
        shapes = f"of shape {wanted} for the output {tuple(output.shape)}, got shape {came}"
        return ShapeError(f"{self._name} takes class indices {shapes}{fix}")

    def gradient(self, backward: Callable[..., Any], output: tuple[tuple[int, ...], Any]) -> Array:
        """Return the gradient of the output, the first entry of what `backward()` returns, in the output's dtype.

        Parameters
        ----------
        backward : the second value that the loss has returned.
        output : shape and dtype of the output.

        Raises
        ------
        ShapeError, UsageError
            If `backward` needs an argument, or does not return a tuple that begins with a floating-point array of the
            shape of the output.
        """
        try:
            made = backward()
        except TypeError:
            if wrong := wrong_call(f"{self._name}: backward", backward, (), {}):
                raise wrong from None
            raise
        first = made[0] if isinstance(made, tuple | list) and made else made
        if alike(first)[1:] == output and first is not made:
            return first
        if first is made or not is_array(first) or first.shape != output[0] or not _is_floating(first):
            got = type(first).__name__ if first is made or not is_array(first) else f"{first.dtype} {first.shape}"
            raise ShapeError(
                f"{self._name}: backward must return a tuple whose first entry is the gradient of the output, "
                f"{output[1]} {tuple(output[0])}, got {got}"
            )
        return first if first.dtype == output[1] else namespace_of(first).astype(first, output[1])

    def counts(self, output: Array, target: Array) -> tuple[Any, Any, Any]:
        """Return the number of correct answers, of answers that count, and `size`; the first two None if unknown.

        Each may be an array on the device, with a number for each example.
        """
        answers = self._answers(target)
        size = self._weight(target) if self.options.get("weight") is not None else answers
        if self.correct is None:
            return None, None, size
        target = self._checked(output, target)
        if self.ignore_index >= 0 and self._has_indices(target):
            target = namespace_of(target).where(target == self.ignore_index, -1, target)
        made = self.correct(output, target)
        if isinstance(made, tuple):
            return *made, size
        return made, None if made is None else answers, size

    def size(self, target: Array) -> Any:
        """Return by what the mean of a batch divides, up to a factor that all batches share.

        It is the number of class indices that count, or the sum of their weights if there is an option `weight`;
        otherwise the number of entries or examples. It may be an array with a number for each example.
        """
        return self._weight(target) if self.options.get("weight") is not None else self._answers(target)

    def _weight(self, target: Array) -> Any:
        """Return the sum of the weights of the class indices that count."""
        weight = self.options["weight"]
        if not self._has_indices(target):
            return self._answers(target)
        xp = namespace_of(target)
        dtype = xp.float64 if on_host(target) else xp.float32
        table = xp.asarray(weight, dtype=dtype, device=array_api_compat.device(target))
        known = (target >= 0) & (target < len(weight)) & (target != self.ignore_index)
        picked = xp.take(table, xp.reshape(xp.where(known, target, 0), (-1,)), axis=0)
        return xp.sum(xp.where(xp.reshape(known, (-1,)), picked, xp.zeros_like(picked)))

    def _has_indices(self, target: Array) -> bool:
        return self.classifies and not _is_floating(target)

    def _answers(self, target: Array) -> Any:
        """Return the number of answers that a target holds: of class indices those that count."""
        if self._has_indices(target):
            xp = namespace_of(target)
            wide = target.dtype in (xp.int64, xp.int32)  # a smaller dtype might not hold the index
            return _per_example((target if wide else xp.astype(target, xp.int32)) != self.ignore_index)
        n, *rest = target.shape or (1,)
        return n if self.target is None else n * math.prod(rest[1:] if self.classifies else rest)


def _is_floating(array: Array) -> bool:
    return is_kind(namespace_of(array), array.dtype, "real floating")


Loss.__init__ = explained(Loss.__init__)  # type: ignore[method-assign]


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(ops.cross_entropy, softmax, count_classes, "classes"),
    "nll_loss": Loss(ops.nll_loss, exp, count_classes, "classes"),
    "mse_loss": Loss(ops.mse_loss, target="numbers"),
    "l1_loss": Loss(ops.l1_loss, target="numbers"),
    "huber_loss": Loss(ops.huber_loss, target="numbers"),
    "binary_cross_entropy_with_logits": Loss(ops.binary_cross_entropy_with_logits, sigmoid, count_labels, "numbers"),
}
"""Every loss by name."""


@explained
def loss_named(loss: str | Loss | Callable[..., Any], **options: Any) -> Loss:
    """Return a loss by its name, with options such as `label_smoothing=0.1`.

    The function of a loss in `LOSSES`, such as `ops.cross_entropy`, is that loss. Another is wrapped in a `Loss`.

    Raises
    ------
    UsageError
        If the name is unknown, or the loss has no such option; the error suggests the nearest.

    Examples
    --------
    >>> loss_named("cross_entropy", weight=[1.0, 5.0]).options
    {'weight': [1.0, 5.0]}
    """
    name = loss if isinstance(loss, str) else "loss"
    if isinstance(loss, str):
        loss = find("loss", loss, LOSSES)
    if not isinstance(loss, Loss):
        if not callable(loss):
            raise UsageError(f"loss must be a name, a Loss or a function (output, target), got {loss!r}")
        loss = next((one for one in LOSSES.values() if one.function is loss), Loss(loss))
    if wrong := wrong_call(name, loss.function, (None, None), {**loss.options, **options}):
        raise wrong
    if options.get("reduction", "mean") != "mean":
        raise UsageError(f"{name}: reduction must be 'mean' for training, got {options['reduction']!r}")
    listed = {key: _listed(f"{name}: {key}", value) for key, value in options.items()}
    return replace(loss, options={**loss.options, **listed}) if options else loss


def _listed(what: str, value: Any) -> Any:
    """Return an array or a sequence as lists of numbers, which can be saved and compared; other values as they are."""
    if not is_array(value) and not isinstance(value, list | tuple):
        return value
    array = _regular(value)
    if array.dtype.kind not in "fiu":
        raise UsageError(f"{what} must hold numbers, got {value!r}")
    return array.tolist()


def _regular(value: Any) -> np.ndarray:
    """Return an array or lists as a NumPy array, of objects if the lists are of unequal lengths."""
    try:
        return to_numpy(value) if is_array(value) else np.asarray(value)
    except ValueError:
        return np.asarray(None)


@explained
def class_weight(class_weight: str, y: Any, classes: int | Sequence[str]) -> np.ndarray:
    """Return the weight of each class for `loss_named("cross_entropy", weight=...)`.

    Parameters
    ----------
    class_weight : `"balanced"`: `n / (k * count)` with n targets, k classes, and the `count` of the class, so that all
        classes count the same in sum, as in scikit-learn's `compute_class_weight`.
    y : class indices, integers of any shape; -100 is left out.
    classes : the number of classes, or their names.

    Returns
    -------
    (k,), float64.

    Raises
    ------
    UsageError
        If a class does not occur, or y holds something else than class indices.

    Examples
    --------
    >>> class_weight("balanced", np.array([0, 0, 0, 1]), 2)
    array([0.66666667, 2.        ])
    """
    choice("class_weight", "class_weight", class_weight, ("balanced",))
    k = integer("class_weight", "classes", len(classes) if isinstance(classes, Sequence) else classes)
    names = list(map(str, classes if isinstance(classes, Sequence) else range(k)))
    labels = _regular(y).ravel()
    if labels.dtype.kind not in "iu":
        raise UsageError(f"class_weight: y must hold integer class indices, got {labels.dtype}")
    labels = labels[labels != -100]
    wrong = labels[(labels < 0) | (labels >= k)]
    if wrong.size:
        raise UsageError(f"class_weight: y must hold class indices from 0 to {k - 1} or -100, got {wrong[0]}")
    counts = np.bincount(labels, minlength=k)
    if absent := np.flatnonzero(counts == 0).tolist():
        missing = ", ".join(names[i] for i in absent[:5])
        raise UsageError(f"class_weight: no target is of the class {missing}; leave out classes that do not occur")
    return np.asarray(labels.size / (k * counts))

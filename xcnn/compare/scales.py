"""The scale S of rounding errors for every result and gradient of each kind of op, and the number of terms K.

The error of a sum of K terms, added in any order, is at most `gamma_K * sum |terms|` with `gamma_K = K u / (1 - K u)`
and u = eps / 2 (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, sections 3.1 and 4.2). For
sums, S is therefore the sum of the magnitudes of the terms. For other ops, the docstrings define S.

Each function takes an `Example` and returns one `Scale` per result and one, or None, per gradient. To support a new
kind of op, add a function here and name it in the table of `budget.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Arrays",
    "Example",
    "Scale",
    "Scales",
    "batch_norm",
    "binary_cross_entropy",
    "cross_entropy",
    "curves",
    "differences",
    "each",
    "gates",
    "group_norm",
    "instance_norm",
    "largest",
    "layer_norm",
    "log_softmax",
    "means",
    "nll_loss",
    "products",
    "response_norm",
    "selections",
    "softmax",
    "weighted",
]

Arrays = dict[str, Any]
"""Array arguments by name: an array, a list of arrays, or None."""


def each(function: Callable[[Any], Any], arrays: Arrays) -> Arrays:
    """Apply a function to every array."""
    return {
        name: list(map(function, value)) if isinstance(value, list) else None if value is None else function(value)
        for name, value in arrays.items()
    }


@dataclass(frozen=True)
class Example:
    """One call of an op with its backward pass, in a wide dtype on the host.

    Attributes
    ----------
    function : (arrays by name) -> (y, backward), with fixed options.
    arrays, options : arguments of the call.
    dy : gradient of y.
    results : y, or all results if there are several.
    backward : backward pass of this call.
    gradients : result of `backward(dy)`.
    """

    function: Callable[[Arrays], tuple[Any, Any]]
    arrays: Arrays
    options: dict[str, Any]
    dy: np.ndarray
    results: tuple[Any, ...]
    backward: Any
    gradients: tuple[Any, ...]


@dataclass(frozen=True)
class Scale:
    """The scale of one array's error.

    Attributes
    ----------
    size : S, broadcasting to the array.
    terms : K, how many terms an element sums at most.
    """

    size: Any
    terms: float = 1.0


Scales = tuple[list[Scale | None], list[Scale | None]]


def _scales(sizes: Sequence[Any], counts: Sequence[Any] | float = 1.0) -> list[Scale | None]:
    """Return a scale per array of `sizes`. K is `counts`, or the largest element of each array in it."""
    terms = counts if isinstance(counts, Sequence) else [counts] * len(sizes)
    return [
        None if size is None else Scale(np.abs(size), float(np.max(np.abs(count), initial=1.0)))
        for size, count in zip(sizes, terms, strict=True)
    ]


def products(example: Example) -> Scales:
    """Sums of products: S is the same op on |x|, |w|, |bias| and |dy|; K is the result of the op on ones."""
    y, backward = example.function(each(np.abs, example.arrays))
    ones, counts = example.function(each(np.ones_like, example.arrays))
    return _scales([y], [ones]), _scales(backward(np.abs(example.dy)), counts(np.ones_like(example.dy)))


def means(example: Example) -> Scales:
    """Means over windows: S is the mean of |x|, and of |dy|; K is the number of pixels of a window."""
    x = example.arrays["x"]
    y, backward = example.function(each(np.abs, example.arrays))
    kernel = example.options.get("kernel_size")
    if kernel is None:  # an adaptive pool divides the map into windows
        rank = x.ndim - (1 if y.ndim == 2 < x.ndim else 0)
        window = max(1.0, x.size / y.size) + rank
    else:
        window = float(kernel ** (x.ndim - 1) if isinstance(kernel, int) else math.prod(kernel))
    return _scales([y], window), _scales(backward(np.abs(example.dy)), window)


def selections(example: Example) -> Scales:
    """Numbers that are selected, or scaled by a constant: S is |y|, and the sum of the |dy| added to one element.

    K is the largest number of dy that are added to one element.
    """
    counts = example.backward(np.ones_like(example.dy))
    return _scales(example.results), _scales(example.backward(np.abs(example.dy)), counts)


def weighted(example: Example) -> Scales:
    """Like `selections`; K of a weight's gradient is the number of elements that share the weight."""
    y, (dx, dweight) = selections(example)
    shared = example.arrays["x"].size / example.arrays["weight"].size
    return y, [dx, dweight and Scale(dweight.size, shared)]


def largest(example: Example) -> Scales:
    """S is the largest magnitude of the tensor, the arguments and dy, and K the number of elements of all arguments."""
    arrays = [a for value in example.arrays.values() for a in (value if isinstance(value, list) else [value])]
    numbers = [a for a in arrays if a is not None and a.dtype.kind == "f"]
    terms = sum(a.size for a in numbers)

    def size(tensor: Any) -> float:
        return max(float(np.max(np.abs(a), initial=0.0)) for a in (tensor, example.dy, *numbers))

    sizes = [[t if t is None else size(t) for t in tensors] for tensors in (example.results, example.gradients)]
    return _scales(sizes[0], terms), _scales(sizes[1], terms)


def curves(example: Example) -> Scales:
    """Smooth functions of each number: S is |y| + |x y'|, the effect of an eps in x; and |dx| + |dy| for the gradient.

    The slope is about 1, and its absolute error is about an eps: `1 - y * y` is not more accurate near 0.
    """
    x, (y,), (dx,) = example.arrays["x"], example.results, example.gradients
    (slope,) = example.backward(np.ones_like(y))
    return [Scale(np.abs(y) + np.abs(x * slope))], [Scale(np.abs(dx) + np.abs(example.dy))]


def gates(example: Example) -> Scales:
    """`x * gate(x)`, with a gate from 0 to 1 whose absolute error is an eps: S is |x|, and |dx| + |dy| (1 + |x|)."""
    x, (dx,) = np.abs(example.arrays["x"]), example.gradients
    return [Scale(x)], [Scale(np.abs(dx) + np.abs(example.dy) * (1.0 + x))]


def _norm(
    example: Example, view: tuple[int, ...], axes: tuple[int, ...], weights: tuple[int, ...], constant: bool = False
) -> Scales:
    """Return S and K of `y = (x - mean) * rstd * weight + bias + residual` on a view of x, also with an activation.

    With `a = (|x| + mean |x|) * rstd`, the centred number before cancellation, S of y is
    `a |weight| max(1, mean(a^2)) + |bias| + |residual|`: the variance is a mean of squares of centred numbers, and the
    error of each of these is `eps * a`. With `constant`, the statistics are the running ones.
    """
    weight, bias = (example.arrays[name] for name in ("weight", "bias"))
    w = 1.0 if weight is None else np.abs(np.reshape(weight, weights))
    b = 0.0 if bias is None else np.abs(np.reshape(bias, weights))
    added = example.arrays.get("residual")
    r = 0.0 if added is None else np.abs(np.reshape(added, view))
    x, dy = np.reshape(example.arrays["x"], view), np.reshape(np.abs(example.dy), view)

    def mean(array: Any) -> Any:
        return np.mean(array, axis=axes, keepdims=True)

    if constant:
        centre, variance = (np.reshape(example.arrays[name], weights) for name in ("running_mean", "running_var"))
    else:
        centre, variance = mean(np.abs(x)), np.var(x, axis=axes, keepdims=True)
    rstd = 1.0 / np.sqrt(variance + example.options.get("eps", 1e-5))
    a = (np.abs(x) + np.abs(centre)) * rstd
    spread = 1.0 if constant else np.maximum(1.0, mean(a * a))
    count = 1.0 if constant else math.prod(view[axis] for axis in axes)
    d = dy * w
    dx = rstd * (d if constant else d + mean(d) + a * mean(d * a)) * spread
    shared = tuple(axis for axis, size in enumerate(weights) if size == 1)
    rows = math.prod(view[axis] for axis in shared)

    def parameter(gradient: Any, terms: Any) -> Scale | None:
        return None if gradient is None else Scale(np.reshape(np.sum(terms, axis=shared), gradient.shape), rows)

    shape = example.arrays["x"].shape
    dweight, dbias, dresidual = example.gradients[-3:]
    return [Scale(np.reshape(a * w * spread + b + r, shape), count)], [
        Scale(np.reshape(dx, shape), count),
        *[None] * (len(example.gradients) - 4),
        parameter(dweight, dy * a * spread),
        parameter(dbias, dy),
        None if dresidual is None else Scale(np.abs(example.dy)),
    ]


def _running(example: Example, own: bool) -> list[Scale | None]:
    """Return the scales of the running statistics: means of |x| and of squares, mixed with the old ones."""
    x, momentum = example.arrays["x"], example.options.get("momentum", 0.1) if own else 0.0
    sizes = []
    for name, terms in (("running_mean", np.abs(x)), ("running_var", 2 * x * x)):
        old, new = example.arrays[name], np.mean(terms, axis=(0, *range(2, x.ndim)))
        sizes.append(None if old is None else (1 - momentum) * np.abs(old) + momentum * new)
    return _scales(sizes, x.size / x.shape[1])


def _channels(example: Example, own: bool) -> Scales:
    """Like `_norm`, per channel by the statistics of the batch or the running ones."""
    n, c, *sizes = example.arrays["x"].shape
    return _norm(example, (n, c, math.prod(sizes)), (0, 2), (1, c, 1), constant=not own)


def _groups(example: Example, groups: int) -> Scales:
    """Like `_norm`, over groups of channels of each image."""
    n, c, *sizes = example.arrays["x"].shape
    return _norm(example, (n, groups, c // groups, math.prod(sizes)), (2, 3), (1, groups, c // groups, 1))


def batch_norm(example: Example) -> Scales:
    """Like `_norm`, per channel, with scales for the running statistics."""
    own = example.options.get("training", False)
    y, gradients = _channels(example, own)
    return [*y, *_running(example, own)], gradients


def instance_norm(example: Example) -> Scales:
    """Like `_norm`, per channel of each image or by the running statistics, with scales for these."""
    own = example.options.get("use_input_stats", True)
    y, gradients = _groups(example, example.arrays["x"].shape[1]) if own else _channels(example, own)
    return [*y, *_running(example, own)], gradients


def group_norm(example: Example) -> Scales:
    """Like `_norm`, over groups of channels."""
    return _groups(example, example.options["num_groups"])


def layer_norm(example: Example) -> Scales:
    """Like `_norm`, over the trailing axes."""
    x, trailing = example.arrays["x"], example.options["normalized_shape"]
    features = trailing if isinstance(trailing, int) else math.prod(trailing)
    return _norm(example, (x.size // features, features), (1,), (1, features))


def response_norm(example: Example) -> Scales:
    """S is |y|, and the sum of the magnitudes of the two terms of dx: twice the first, less their difference.

    K is the number of channels in a window.
    """
    x, dy, size = np.abs(example.arrays["x"]), np.abs(example.dy), example.options["size"]
    y, backward = example.function({"x": x})
    (difference,) = backward(dy)
    return _scales([y], size), _scales([2.0 * dy * y / x - difference], size)


def softmax(example: Example) -> Scales:
    """S is `y (a + sum(y a))` with `a = 1 + |x - max x|`: the argument of the exponential has an error of an eps.

    S of the gradient is `a y (|dy| + sum(a y |dy|))`. K is the number of classes.
    """
    x, (y,), axis = example.arrays["x"], example.results, example.options.get("dim", -1)
    a = 1.0 + np.max(x, axis=axis, keepdims=True) - x
    dy = np.abs(example.dy)

    def total(array: Any) -> Any:
        return np.sum(array, axis=axis, keepdims=True)

    classes = np.atleast_1d(x).shape[axis]
    return [Scale(y * (a + total(y * a)), classes)], [Scale(a * y * (dy + total(a * y * dy)), classes)]


def _logarithms(x: Any, axis: int) -> Any:
    """Return S of `log_softmax`: the distance from the maximum, and the logarithm of a sum of at least 1."""
    below = np.max(x, axis=axis, keepdims=True) - x
    return 1.0 + below + np.log(np.sum(np.exp(-below), axis=axis, keepdims=True))


def log_softmax(example: Example) -> Scales:
    """S is `a = 1 + |x - max x| + log(sum(exp(x - max x)))`, and `|dy| + a exp(y) sum(|dy|)` for the gradient."""
    x, (y,), axis = example.arrays["x"], example.results, example.options.get("dim", -1)
    a, dy, classes = _logarithms(x, axis), np.abs(example.dy), np.atleast_1d(x).shape[axis]
    return [Scale(a, classes)], [Scale(dy + a * np.exp(y) * np.sum(dy, axis=axis, keepdims=True), classes)]


def _rows(example: Example, parts: Any, divisor: Any) -> tuple[Scale, Any]:
    """Return the scale of a loss from those of its parts, and |dy| / divisor, ready to broadcast to x."""
    reduction, axis = example.options.get("reduction", "mean"), min(1, parts.ndim - 1)
    divisor = np.abs(divisor) if reduction == "mean" else 1.0
    dy = np.abs(example.dy) / divisor
    if reduction == "none":
        return Scale(np.sum(parts, axis=axis), parts.shape[axis]), np.expand_dims(dy, axis)
    return Scale(np.sum(parts) / divisor, parts.size), dy


def _targets(example: Example) -> tuple[Any, Any]:
    """Return the weighted target q of every number of x, and the total by which a mean divides."""
    x, target, options = example.arrays["x"], example.arrays["target"], example.options
    axis, smoothing = min(1, x.ndim - 1), options.get("label_smoothing", 0.0)
    c, trailing = x.shape[axis], (1,) * (x.ndim - 1 - axis)
    weight = example.arrays["weight"]
    w = np.ones((c, *trailing)) if weight is None else np.reshape(weight, (c, *trailing))
    if target.dtype.kind == "f":
        return (target * (1 - smoothing) + smoothing / c) * w, x.size / c
    labels = np.expand_dims(target, axis)
    counted = (labels != options.get("ignore_index", -100)) * w
    q = (labels == np.reshape(np.arange(c), (c, *trailing))) * counted
    return q * (1 - smoothing) + counted * smoothing / c, np.sum(q)


def cross_entropy(example: Example) -> Scales:
    """S is `sum(q a) / total`, a as in `log_softmax`, q as in `_targets`; and `(a p sum(q) + q) |dy| / total`."""
    x, axis, weight = example.arrays["x"], min(1, example.arrays["x"].ndim - 1), example.arrays["weight"]
    a, (q, total) = _logarithms(x, axis), _targets(example)
    y, dy = _rows(example, q * a, total)
    classes = x.shape[axis]
    p = np.exp(x - np.max(x, axis=axis, keepdims=True))
    p /= np.sum(p, axis=axis, keepdims=True)
    dx = (a * p * np.sum(q, axis=axis, keepdims=True) + q) * dy
    dtarget = None
    if example.gradients[1] is not None:
        factor = 1.0 if weight is None else np.reshape(weight, (-1, *(1,) * (x.ndim - 2)))
        dtarget = Scale(a * dy * factor * np.ones_like(x), classes)
    return [y], [Scale(dx, classes), dtarget, None]


def nll_loss(example: Example) -> Scales:
    """S is `sum(q |x|) / total` with q as in `_targets`, and `q |dy| / total`; K is the number of terms."""
    q, total = _targets(example)
    y, dy = _rows(example, q * np.abs(example.arrays["x"]), total)
    return [y], [Scale(q * dy, q.size), None, None]


def differences(example: Example) -> Scales:
    """Sums of functions of differences, each rounded once: S is y itself, and |dx|."""
    (y,) = example.results
    return _scales([y], example.arrays["x"].size / max(y.size, 1)), _scales(example.gradients)


def binary_cross_entropy(example: Example) -> Scales:
    """S is y, whose terms are positive; `(s (1 - t + p t) + p t) |dy|` and `(yes + no) |dy|`, before cancellation."""
    x, t = example.arrays["x"], example.arrays["target"]
    weight, p = (1.0 if example.arrays[name] is None else example.arrays[name] for name in ("weight", "pos_weight"))
    (y,) = example.results
    mean = example.options.get("reduction", "mean") == "mean"
    dy = np.abs(example.dy) * weight / (x.size if mean else 1)
    yes, no = p * np.logaddexp(0, -x), np.logaddexp(0, x)
    dx = (np.exp(-np.logaddexp(0, -x)) * (1 - t + p * t) + p * t) * dy
    return [Scale(np.abs(y), x.size / max(y.size, 1))], [Scale(dx), Scale((yes + no) * dy), None, None]

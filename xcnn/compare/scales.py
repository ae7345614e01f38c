"""The scale S of rounding errors for every result and gradient of each kind of op, and the number of terms K.

The error of a sum of K terms, added in any order, is at most `gamma_K * sum |terms|` with `gamma_K = K u / (1 - K u)`
and u = eps / 2 (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, sections 3.1 and 4.2). So S
is that sum of magnitudes, and the bound grows with K. For ops that are not sums, the docstrings define S.

Each function takes an `Example`, evaluated in a wide dtype on the host, and returns one `Scale` per result and one (or
None) per gradient. To support a new kind of op, add a function here; `budget.py` maps ops to these functions.
"""

import math
from collections.abc import Callable
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
    "selections",
    "softmax",
]

Arrays = dict[str, Any]
"""Array arguments by name: an array, a list of arrays, or None."""


def each(function: Callable[[Any], Any], arrays: Arrays) -> Arrays:
    """Apply a function to every array."""

    def mapped(value: Any) -> Any:
        if isinstance(value, list):
            return [mapped(one) for one in value]
        return value if value is None else function(value)

    return {name: mapped(value) for name, value in arrays.items()}


@dataclass(frozen=True)
class Example:
    """One call of an op with its backward pass, in a wide dtype on the host.

    Attributes
    ----------
    function : (arrays by name) -> (y, backward), with fixed options.
    arrays : the arguments of the call.
    options : of the op, for scales that depend on them.
    dy : gradient of y.
    results : y, or all results if there are several.
    backward : of this call.
    gradients : the result of `backward` for dy.
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


def _largest(array: Any) -> float:
    return float(np.max(array, initial=1.0))


def _magnitudes(array: Any) -> Any:
    return np.abs(array) if array.dtype.kind == "f" else array


def _shared(array: Any, terms: float = 1.0) -> Scale | None:
    return None if array is None else Scale(np.abs(array), terms)


def products(example: Example) -> Scales:
    """Sums of products: S is the same op on |x|, |w|, |bias| and |dy|; K is counted by running it on ones."""
    y, backward = example.function(each(_magnitudes, example.arrays))
    ones, counts = example.function(each(np.ones_like, example.arrays))
    sizes = backward(np.abs(example.dy))
    terms = counts(np.ones_like(example.dy))
    return [Scale(np.abs(y), _largest(ones))], [
        None if size is None else Scale(size, _largest(count)) for size, count in zip(sizes, terms, strict=True)
    ]


def means(example: Example) -> Scales:
    """Means over windows: S is the mean of |x|, and of |dy|; K is the size of the window."""
    x = example.arrays["x"]
    y, backward = example.function(each(np.abs, example.arrays))
    kernel = example.options.get("kernel_size")
    if kernel is None:  # adaptive: its windows share the map
        rank = x.ndim - (1 if y.ndim == 2 < x.ndim else 0)
        window = max(1.0, x.size / y.size) + rank
    else:
        window = float(kernel ** (x.ndim - 1) if isinstance(kernel, int) else math.prod(kernel))
    return [Scale(y, window)], [_shared(g, window) for g in backward(np.abs(example.dy))]


def selections(example: Example) -> Scales:
    """Numbers that are selected, or scaled by a constant: S is |y|, and the sum of the |dy| added to one element.

    K is the largest number of them.
    """
    counts = example.backward(np.ones_like(example.dy))
    sizes = example.backward(np.abs(example.dy))
    pairs = zip(sizes, counts, strict=True)
    return [_shared(y) for y in example.results], [None if s is None else _shared(s, _largest(n)) for s, n in pairs]


def largest(example: Example) -> Scales:
    """S is the largest magnitude of the tensor, the arguments and dy, and K the number of elements of all arguments."""
    arrays = [a for value in example.arrays.values() for a in (value if isinstance(value, list) else [value])]
    numbers = [a for a in arrays if a is not None and a.dtype.kind == "f"]
    terms = sum(a.size for a in numbers)

    def scale(array: Any) -> Scale | None:
        if array is None:
            return None
        size = max(float(np.max(np.abs(a), initial=0.0)) for a in (array, example.dy, *numbers))
        return Scale(np.full(array.shape, size), terms)

    return [scale(y) for y in example.results], [scale(g) for g in example.gradients]


def curves(example: Example) -> Scales:
    """Smooth functions of each number: S is |y| + |x y'|, the effect of an eps in x; and |dx| + |dy| for the gradient.

    The slope is about 1 and has an absolute error of an eps, as `1 - y * y` near 0 is not more accurate.
    """
    x, (y,), (dx,) = example.arrays["x"], example.results, example.gradients
    (slope,) = example.backward(np.ones_like(y))
    return [Scale(np.abs(y) + np.abs(x * slope))], [Scale(np.abs(dx) + np.abs(example.dy))]


def gates(example: Example) -> Scales:
    """`x * gate(x)`, with a gate from 0 to 1 and its absolute error an eps: S is |x|, and |dx| + |dy| (1 + |x|)."""
    x, (dx,) = np.abs(example.arrays["x"]), example.gradients
    return [Scale(x)], [Scale(np.abs(dx) + np.abs(example.dy) * (1.0 + x))]


def _norm(
    example: Example, view: tuple[int, ...], axes: tuple[int, ...], weights: tuple[int, ...], constant: bool = False
) -> Scales:
    """Return S and K of `y = (x - mean) * rstd * weight + bias` on a view of x.

    With `a = (|x| + mean |x|) * rstd`, the centred number before cancellation, S of y is
    `a |weight| max(1, mean(a^2)) + |bias|`: the variance is a mean of squares of centred numbers, each with an error of
    an eps of a.
    """
    weight, bias = (example.arrays[name] for name in ("weight", "bias"))
    w = 1.0 if weight is None else np.abs(np.reshape(weight, weights))
    b = 0.0 if bias is None else np.abs(np.reshape(bias, weights))
    x, dy = np.reshape(example.arrays["x"], view), np.reshape(np.abs(example.dy), view)

    def mean(array: Any) -> Any:
        return np.mean(array, axis=axes, keepdims=True)

    if constant:  # normalised by the running statistics
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
    dweight, dbias = example.gradients[-2:]
    return [Scale(np.reshape(a * w * spread + b, shape), count)], [
        Scale(np.reshape(dx, shape), count),
        *[None] * (len(example.gradients) - 3),
        parameter(dweight, dy * a * spread),
        parameter(dbias, dy),
    ]


def _running(example: Example, own: bool) -> list[Scale | None]:
    """Scales of running statistics: means of |x| and of squares, mixed with the old ones."""
    x, momentum = example.arrays["x"], example.options.get("momentum", 0.1)
    results: list[Scale | None] = []
    for name, fresh in (("running_mean", np.abs(x)), ("running_var", 2 * x * x)):
        old = example.arrays[name]
        size = None if old is None else np.abs(old)
        if size is not None and own:
            size = (1 - momentum) * size + momentum * np.mean(fresh, axis=(0, *range(2, x.ndim)))
        results.append(None if size is None else Scale(size, x.size / x.shape[1]))
    return results


def _channels(example: Example, own: bool) -> Scales:
    n, c, *sizes = example.arrays["x"].shape
    return _norm(example, (n, c, math.prod(sizes)), (0, 2), (1, c, 1), constant=not own)


def batch_norm(example: Example) -> Scales:
    """As `_norm`, per channel, and the running statistics."""
    own = example.options.get("training", False)
    y, gradients = _channels(example, own)
    return [*y, *_running(example, own)], gradients


def layer_norm(example: Example) -> Scales:
    """As `_norm`, over the trailing axes."""
    x, trailing = example.arrays["x"], example.options["normalized_shape"]
    features = trailing if isinstance(trailing, int) else math.prod(trailing)
    return _norm(example, (x.size // features, features), (1,), (1, features))


def _grouped(example: Example, groups: int) -> Scales:
    n, c, *sizes = example.arrays["x"].shape
    return _norm(example, (n, groups, c // groups, math.prod(sizes)), (2, 3), (1, groups, c // groups, 1))


def group_norm(example: Example) -> Scales:
    """As `_norm`, over groups of channels."""
    return _grouped(example, example.options["num_groups"])


def instance_norm(example: Example) -> Scales:
    """As `_norm`, per channel of each image, or per channel with the running statistics; and the running statistics."""
    own = example.options.get("use_input_stats", True)
    y, gradients = _grouped(example, example.arrays["x"].shape[1]) if own else _channels(example, own)
    return [*y, *_running(example, own)], gradients


def softmax(example: Example) -> Scales:
    """S is `y (a + sum(y a))` with `a = 1 + |x - max x|`, as an exponential is inaccurate by an eps of its argument.

    That of the gradient is `a y (|dy| + sum(a y |dy|))`. K is the number of classes.
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


def _asked(example: Example) -> tuple[Any, Any]:
    """Return the target q for every number of x, and the divisor of the mean."""
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
    """`sum(q a) / total` with a as in `log_softmax` and q as in `_asked`; `(a p sum(q) + q) |dy| / total`."""
    x, axis, weight = example.arrays["x"], min(1, example.arrays["x"].ndim - 1), example.arrays["weight"]
    a, (q, total) = _logarithms(x, axis), _asked(example)
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
    """`sum(q |x|) / total` with q as in `_asked`, and `q |dy| / total`; K is the number of terms."""
    q, total = _asked(example)
    y, dy = _rows(example, q * np.abs(example.arrays["x"]), total)
    return [y], [Scale(q * dy, q.size), None, None]


def differences(example: Example) -> Scales:
    """Sums of functions of differences, each rounded once: S is y itself, and |dx|."""
    (y,) = example.results
    return [Scale(np.abs(y), example.arrays["x"].size / max(y.size, 1))], [_shared(g) for g in example.gradients]


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

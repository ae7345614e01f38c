"""What is explained: the weights of the outputs whose sum is followed back to the input; checks of the input."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._array import Array, is_array, is_kind, namespace_of
from xcnn._check import is_integer, number, shown
from xcnn.devices import like, to_numpy
from xcnn.errors import DtypeError, ShapeError, UsageError
from xcnn.nn import Module
from xcnn.nn._forward import is_one_image

__all__ = ["Target", "as_host", "as_input", "check_input", "per_pass", "score", "weights"]

Target = int | Sequence[int] | Array | None
"""What to explain: None for the highest score of each example; a class; a class for each example; or an array of the
shape of the output, the weights of the outputs whose sum is explained.

If the output has further axes, as of a network that gives scores to every pixel, a class stands for the sum of its
scores, and None for the sum of the highest score at every place.
"""

_MOST_NUMBERS, _MOST_EXAMPLES = 1 << 18, 64
"""Of the input in one pass of a method that runs the network many times: more would take much memory."""


def check_input(caller: str, model: Any, x: Any) -> Array:
    """Return x if it is an array of floating point with a batch axis, and the model a module."""
    if not isinstance(model, Module):
        raise UsageError(f"{caller}: model must be a module, got {shown(model)}")
    if not is_array(x):
        raise DtypeError(f"{caller}: x must be one array with a batch axis (n, ...), got {type(x).__name__}")
    xp = namespace_of(x)
    if not is_kind(xp, x.dtype, "real floating"):
        hint = ", as by xcnn.data.to_float, which divides by 255" if x.dtype == xp.uint8 else ""
        raise DtypeError(f"{caller}: x must be a floating-point array, got {x.dtype}; convert it first{hint}")
    if x.ndim < 2 or is_one_image(model, x):
        raise ShapeError(f"{caller}: x must be a batch (n, ...), got shape {tuple(x.shape)}; pass x[None]")
    if 0 in x.shape:
        raise ShapeError(f"{caller}: x must have at least one example, got shape {tuple(x.shape)}")
    return x


def weights(caller: str, x: Array, y: Any, target: Any) -> Array:
    """Return the gradient of what is explained at the output y (n, ...) of x: an array of the shape of y."""
    if not is_array(y):
        raise UsageError(f"{caller}: model must return one array, got {type(y).__name__}")
    if y.ndim < 1 or y.shape[0] != x.shape[0]:
        raise ShapeError(f"{caller}: the output must have one row per example, got {tuple(y.shape)} for {x.shape[0]}")
    xp = namespace_of(y)
    if is_array(target) and not is_kind(namespace_of(target), target.dtype, "integral"):
        if tuple(target.shape) != tuple(y.shape):
            wanted = f"a class, one per example, or an array of the shape of the output, {tuple(y.shape)}"
            raise ShapeError(f"{caller}: target must be {wanted}, got an array of shape {tuple(target.shape)}")
        return xp.astype(target, y.dtype) if namespace_of(target) is xp else like(to_numpy(target), y)
    if y.ndim == 1:
        if target is not None:
            raise UsageError(f"{caller}: the output has one number per example and no classes; leave out target")
        return xp.ones_like(y)
    if target is None:
        chosen = to_numpy(xp.argmax(y, axis=1))
    else:
        chosen = _classes(caller, target, y).reshape(-1, *(1,) * (y.ndim - 2))
    places = np.arange(y.shape[1]).reshape(1, -1, *(1,) * (y.ndim - 2))
    host = np.broadcast_to(places == np.expand_dims(chosen, 1), tuple(y.shape))
    return like(host.astype(np.float32), y)


def _classes(caller: str, target: Any, y: Array) -> np.ndarray:
    """Return one class per example."""
    n, classes = y.shape[:2]
    entries = to_numpy(target).tolist() if is_array(target) else target
    entries = list(entries) if isinstance(entries, Sequence) and not isinstance(entries, str) else [entries] * n
    if len(entries) != n:
        raise UsageError(f"{caller}: target must be one class, or one for each of {n} examples, got {shown(target)}")
    for entry in entries:
        if not is_integer(entry) or not 0 <= entry < classes:
            raise UsageError(f"{caller}: target must be a class, 0 to {classes - 1}, got {shown(entry)}")
    return np.asarray(entries, np.int64)


def as_input(caller: str, name: str, value: Any, x: Array) -> Array:
    """Return a number, or an array of any library that broadcasts to the shape of x, as an array like x."""
    array = value if is_array(value) else np.asarray(number(caller, name, value, "(-inf, inf)"))
    try:
        fits = np.broadcast_shapes(tuple(array.shape), tuple(x.shape)) == tuple(x.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{caller}: {name} must broadcast to the shape of x, {tuple(x.shape)}, got {shown(array)}")
    xp = namespace_of(x)
    placed = array if namespace_of(array) is xp and array.dtype == x.dtype else like(to_numpy(array), x)
    return xp.broadcast_to(placed, tuple(x.shape))


def as_host(caller: str, name: str, value: Any) -> np.ndarray:
    """Return numbers, an array of any library or lists, as a host array."""
    try:
        host = np.asarray(to_numpy(value) if is_array(value) else value)
    except ValueError:  # lists of unequal lengths
        host = np.asarray(None)
    if host.dtype.kind not in "fiub":
        raise UsageError(f"{caller}: {name} must be an array of numbers, got {shown(value)}")
    return host


def score(y: Array, dy: Array) -> Array:
    """Return the sum of the outputs y (n, ...) of each example with the weights dy, (n,)."""
    xp = namespace_of(y)
    return xp.sum(xp.reshape(y * dy, (y.shape[0], -1)), axis=1)


def per_pass(x: Array) -> int:
    """Return how many variants of the whole batch x one pass may take."""
    n = int(x.shape[0])
    numbers = math.prod(x.shape[1:])
    most: int = min(_MOST_EXAMPLES, _MOST_NUMBERS // numbers) // n
    return max(1, most)

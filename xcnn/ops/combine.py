"""Ops that combine several arrays into one: the arithmetic of two, and the concatenation of branches."""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, is_array, namespace, namespace_of
from xcnn._check import axis, number
from xcnn._dispatch import binds, body, bound
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._broadcast import broadcast_shape
from xcnn.ops._formula import Activation
from xcnn.ops._op import Gradients, Result, along, op, positive, sample
from xcnn.ops._options import activation as checked_activation
from xcnn.ops._pair import Pair, pair

__all__ = ["add", "concat", "divide", "joined", "maximum", "minimum", "multiply", "subtract"]


def _checked(name: str, x: Array, other: Array) -> Array:
    """Return `other` as a float if it is a Python number, or as it is if it is an array that fits x."""
    if isinstance(other, int | float) and not isinstance(other, bool) and not is_array(other):
        namespace(name, x=x)
        return number(name, "other", other, "(-inf, inf)")
    namespace(name, x=x, other=other)
    if x.shape != other.shape and broadcast_shape(x.shape, other.shape) is None:
        raise ShapeError(f"{name}: other must broadcast with x {tuple(x.shape)}, got {tuple(other.shape)}")
    return other


def _apply(name: str, x: Array, other: Array, rule: Pair, activation: Activation = None) -> Result:
    other = _checked(name, x, other)
    return pair(namespace_of(x), x, other, rule, activation)


def _dy(xp: ModuleType, dy: Array, x: Array, other: Array, y: Array) -> Array:
    return dy


_ADD = Pair(lambda xp, x, other: x + other, _dy, _dy)


@op(
    "x other",
    saves="y?",
    samples=[
        sample({"x": (2, 3, 4), "other": (2, 3, 4)}),
        sample({"x": (2, 3, 4), "other": (3, 1)}),
        sample({"x": (3, 1), "other": (2, 1, 4)}),
        sample({"x": (2, 3), "other": ()}),
        sample({"x": (2, 3, 2), "other": (3, 1)}, activation="relu"),
        sample({"x": (2, 3), "other": (2, 3)}, activation=("leaky_relu", 0.2)),
    ],
    apart=True,
)
def add(x: Array, other: Array, activation: str | tuple[object, ...] | None = None) -> Result:
    """Add two arrays, or an array and a number, and apply an activation.

    Parameters
    ----------
    x : floating-point array of any shape.
    other : array of the dtype of x whose shape broadcasts with that of x, or a Python number.
    activation : the name of an activation whose slope is a function of y, such as `"relu"`, a tuple of the name and
        numbers, or None.

    Returns
    -------
    y : the shape that x and other broadcast to.
    backward : dy -> (dx, dother), each the sum of dy over the axes along which its array was broadcast; dother is None
        for a number. It keeps y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the shapes do not broadcast, the dtypes differ, the number is not finite, or the activation is another one.
    """
    return _apply("add", x, other, _ADD, checked_activation("add", activation))


_SUBTRACT = Pair(lambda xp, x, other: x - other, _dy, lambda xp, dy, x, other, y: -dy)


@op("x other", samples=[sample({"x": (2, 3, 4), "other": (3, 1)})], apart=True)
def subtract(x: Array, other: Array) -> Result:
    """Subtract an array or a number from an array. Arguments, shapes and errors are those of `add`.

    Backward keeps nothing.
    """
    return _apply("subtract", x, other, _SUBTRACT)


_MULTIPLY = Pair(
    lambda xp, x, other: x * other,
    lambda xp, dy, x, other, y: dy * other,
    lambda xp, dy, x, other, y: dy * x,
    ("x", "other"),
)


@op("x other", saves="x? other?", samples=[sample({"x": (2, 3, 2, 2), "other": (3, 1, 1)})], apart=True)
def multiply(x: Array, other: Array) -> Result:
    """Multiply two arrays, such as maps (n, c, h, w) by a gate (n, c, 1, 1), or an array by a number.

    Arguments, shapes and errors are those of `add`. Backward keeps both arrays, or nothing for a number.
    """
    return _apply("multiply", x, other, _MULTIPLY)


_DIVIDE = Pair(
    lambda xp, x, other: x / other,
    lambda xp, dy, x, other, y: dy / other,
    lambda xp, dy, x, other, y: -(dy / other) * y,
    ("other", "y"),
)


@op("x other", saves="other? y?", samples=[sample({"x": (2, 3, 4), "other": positive(3, 1)})], apart=True)
def divide(x: Array, other: Array) -> Result:
    """Divide an array by an array or by a number, which must not be 0.

    Arguments, shapes and errors are those of `add`. Backward keeps y and other, or nothing for a number. Where other is
    0, gradients are infinite or NaN.
    """
    other = _checked("divide", x, other)
    if type(other) is float and other == 0.0:
        raise UsageError("divide: other must not be the number 0")
    return pair(namespace_of(x), x, other, _DIVIDE, None)


def _larger(xp: ModuleType, dy: Array, x: Any, other: Any, y: Array) -> Array:
    """Return dy where x is the larger of both, half of it where they are equal, else 0; dy if one of them is NaN."""
    return dy * (1.0 - xp.astype(x < other, dy.dtype) - 0.5 * xp.astype(x == other, dy.dtype))


def _smaller(xp: ModuleType, dy: Array, x: Any, other: Any, y: Array) -> Array:
    return _larger(xp, dy, other, x, y)


_BOTH = ("x", "other")
_MAXIMUM = Pair(lambda xp, x, other: xp.maximum(x, other), _larger, _smaller, _BOTH, ("x",))
_MINIMUM = Pair(lambda xp, x, other: xp.minimum(x, other), _smaller, _larger, _BOTH, ("x",))


@op("x other", saves="x other?", samples=[sample({"x": (2, 3, 4), "other": (3, 1)})], apart=True)
def maximum(x: Array, other: Array) -> Result:
    """Take the larger of two numbers, at each place. NaN propagates.

    Arguments, shapes and errors are those of `add`. Where both are equal, each gets half of dy, as in PyTorch. Backward
    keeps both arrays.
    """
    return _apply("maximum", x, other, _MAXIMUM)


@op("x other", saves="x other?", samples=[sample({"x": (2, 3, 4), "other": (3, 1)})], apart=True)
def minimum(x: Array, other: Array) -> Result:
    """Take the smaller of two numbers, at each place. Arguments, gradients, NaN and errors are those of `maximum`.

    Backward keeps both arrays.
    """
    return _apply("minimum", x, other, _MINIMUM)


@body
def joined(xp: ModuleType, dim: int, *xs: Array) -> Array:
    """Return arrays joined along an axis."""
    return xp.concat(xs, axis=dim)


@body
def _concat(xp: ModuleType, dim: int, *xs: Array) -> Result:
    """Return arrays joined along an axis, and their slices of dy as gradients."""
    sizes = [x.shape[dim] for x in xs]

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        gradients: list[Array | None] = []
        start = 0
        for size, needed in zip(sizes, needs, strict=True):
            part = (*(slice(None),) * dim, slice(start, start + size), ...)
            gradients.append(dy[part] if needed else None)
            start += size
        return tuple(gradients)

    return joined(xp, dim, *xs), backward


@binds(_concat)
def _bind(xp: ModuleType, *arguments: Any) -> Any:
    return bound(joined, xp, arguments) or functools.partial(joined, xp)  # of the same arguments


@op(
    "*xs",
    samples=[
        sample({"xs": [(2, 3), (1, 3), (4, 3)]}),
        sample({"xs": [(2, 1, 4), (2, 3, 4)]}, dim=1),
        sample({"xs": [(2, 3), (2, 2)]}, dim=-1),
    ],
    apart=along("dim"),
)
def concat(xs: Sequence[Array], dim: int = 0) -> Result:
    """Join arrays along one of their axes.

    Parameters
    ----------
    xs : sequence of at least one floating-point array, all of one dtype and, except along `dim`, of one shape.
    dim : the axis to join. Axis 1 joins the channels of feature maps (n, c, h, w).

    Returns
    -------
    y : the joined array; its size along `dim` is the sum of theirs.
    backward : dy -> one gradient per array, each a slice of dy. It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If there are no arrays, they do not fit each other, or they have no axis `dim`.
    """
    if not isinstance(xs, Sequence) or len(xs) == 0:
        raise UsageError(f"concat: xs must be a sequence of at least one array, got {type(xs).__name__}")
    xp = namespace("concat", **{f"xs[{i}]": x for i, x in enumerate(xs)})
    dim = axis("concat", "dim", dim, xs[0].shape, "xs[0]")
    before, after = xs[0].shape[:dim], xs[0].shape[dim + 1 :]
    for i, x in enumerate(xs):
        if x.ndim != xs[0].ndim or x.shape[:dim] != before or x.shape[dim + 1 :] != after:
            raise ShapeError(
                f"concat: xs[{i}] must have the shape of xs[0] {tuple(xs[0].shape)} except along axis {dim}, "
                f"got {tuple(x.shape)}"
            )
    return _concat(xp, dim, *xs)

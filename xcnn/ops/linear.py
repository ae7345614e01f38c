"""The fully connected layer, and the product of matrices."""

import math
from collections.abc import Sequence
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._check import check_shape
from xcnn._dispatch import body
from xcnn.errors import ShapeError
from xcnn.ops._broadcast import broadcast_shape, sum_to
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import is_relu

__all__ = ["linear", "matmul"]


@body
def _linear(xp: ModuleType, x: Array, weight: Array, bias: Array | None, relu: bool) -> Result:
    """Multiply rows x (n, i) by a matrix, and apply ReLU if `relu`."""
    has_bias = bias is not None
    result = x @ weight.T  # (n, o)
    if has_bias:
        result += bias
    result = xp.maximum(result, 0.0) if relu else result
    y = result if relu else None  # backward keeps it

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if y is not None:
            dy = xp.where(y != 0.0, dy, 0.0)
        dx = dy @ weight if needs[0] else None
        dweight = dy.T @ x if needs[1] else None
        return dx, dweight, sum_over(xp, dy, (0,)) if needs[2] and has_bias else None

    return result, backward


@op(
    "x weight bias",
    saves="x weight y?",
    samples=[
        sample({"x": (3, 5), "weight": (4, 5), "bias": (4,)}),
        sample({"x": (2, 3, 5), "weight": (4, 5), "bias": (4,)}),
        sample({"x": (5,), "weight": (4, 5), "bias": None}),
        sample({"x": (3, 5), "weight": (4, 5), "bias": (4,)}, activation="relu"),
    ],
)
def linear(x: Array, weight: Array, bias: Array | None = None, activation: str | None = None) -> Result:
    """Apply a linear map to vectors: `y = x @ weight.T + bias`.

    Parameters
    ----------
    x : floating-point array (..., i) with any number of leading axes.
    weight : (o, i), of the dtype of x.
    bias : (o,) or None.
    activation : None, or `'relu'` to apply it to y in the same pass.

    Returns
    -------
    y : (..., o).
    backward : dy -> (dx, dweight, dbias). It keeps x and weight, and y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other, or the activation is unknown.
    """
    xp = namespace("linear", optional=("bias",), x=x, weight=weight, bias=bias)
    if weight.ndim != 2:
        raise ShapeError(f"linear: weight must have 2 axes (out, in), got {tuple(weight.shape)}")
    o, i = weight.shape
    if x.ndim == 0 or x.shape[-1] != i:
        raise ShapeError(
            f"linear: weight takes {i} features, x has {x.shape[-1] if x.ndim else 'no axis'} "
            f"(x: {tuple(x.shape)}, weight: {tuple(weight.shape)})"
        )
    check_shape("linear", (o,), "one per output feature", bias=bias)
    relu = is_relu("linear", activation)
    if x.ndim == 2:
        return _linear(xp, x, weight, bias, relu)
    shape, n = x.shape, math.prod(x.shape[:-1])
    y, rows_backward = _linear(xp, xp.reshape(x, (n, i)), weight, bias, relu)  # one product of all leading axes

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias = rows_backward(xp.reshape(dy, (n, o)), needs)
        return None if dx is None else xp.reshape(dx, shape), dweight, dbias

    return xp.reshape(y, (*shape[:-1], o)), backward


@op(
    "x other",
    saves="x other",
    samples=[
        sample({"x": (2, 3, 4), "other": (4, 5)}),
        sample({"x": (2, 3, 4), "other": (3, 1, 4, 2)}),
        sample({"x": (4,), "other": (2, 4, 3)}),
        sample({"x": (3, 4), "other": (4,)}),
    ],
)
def matmul(x: Array, other: Array) -> Result:
    """Multiply matrices, or stacks of them whose leading axes broadcast.

    Parameters
    ----------
    x : floating-point array (..., n, k), or a vector (k,), which is a row.
    other : (..., k, m) of the dtype of x, or a vector (k,), which is a column.

    Returns
    -------
    y : (..., n, m), without the axis n or m of a vector.
    backward : dy -> (dx, dother). It keeps both arrays.

    Raises
    ------
    ShapeError, DtypeError
        If an array has no axis, the arrays do not fit each other, or they are not floating-point arrays.
    """
    xp = namespace("matmul", x=x, other=other)
    x_shape, other_shape = x.shape, other.shape
    batch = broadcast_shape(x_shape[:-2], other_shape[:-2])
    if not x_shape or not other_shape or batch is None or x_shape[-1] != other_shape[-2:][0]:
        fits = "x must be (..., n, k) or (k,) and other (..., k, m) or (k,)"
        raise ShapeError(f"matmul: {fits}, got {tuple(x_shape)} and {tuple(other_shape)}")
    y_shape = (*batch, *x_shape[-2:-1], *(other_shape[-1:] if other.ndim > 1 else ()))
    if other.ndim <= 2 or x.ndim == 1:  # one product of all leading axes
        x = xp.reshape(x, (math.prod(x_shape[:-1]), x_shape[-1]))
    if other.ndim == 1:
        other = xp.reshape(other, (-1, 1))
    y = x @ other  # (..., n, m)
    shape = y.shape

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dy = xp.reshape(dy, shape)
        dx = sum_to(xp, dy @ xp.matrix_transpose(other), x.shape) if needs[0] else None
        dother = sum_to(xp, xp.matrix_transpose(x) @ dy, other.shape) if needs[1] else None
        return (
            None if dx is None else xp.reshape(dx, x_shape),
            None if dother is None else xp.reshape(dother, other_shape),
        )

    return xp.reshape(y, y_shape), backward

"""The fully connected layer, and the product of matrices."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace, sum_over
from xcnn._check import check_shape
from xcnn._dispatch import body
from xcnn.errors import ShapeError
from xcnn.ops._broadcast import broadcast_shape, sum_to
from xcnn.ops._formula import Activation, apply, times_slope
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import activation as activation_option

__all__ = ["linear", "linear_inference", "matmul"]


@body
def _linear(xp: ModuleType, x: Array, weight: Array, bias: Array | None, activation: Activation) -> Result:
    """Multiply vectors x (..., i) by a matrix, and apply an activation whose slope is a function of y."""
    shape, n, (o, i), has_bias = x.shape, math.prod(x.shape[:-1]), weight.shape, bias is not None
    x = xp.reshape(x, (n, i))  # one product of all leading axes
    result = x @ weight.T  # (n, o)
    if has_bias:
        result += bias
    result = apply(xp, result, activation)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dy = times_slope(xp, xp.reshape(dy, (n, o)), y, activation)
        dx = xp.reshape(dy @ weight, shape) if needs[0] else None
        dweight = dy.T @ x if needs[1] else None
        return dx, dweight, sum_over(xp, dy, (0,)) if needs[2] and has_bias else None

    return xp.reshape(result, (*shape[:-1], o)), backward


@body
def linear_inference(
    xp: ModuleType,
    x: Array,
    weight: Array,
    bias: Array | None,
    norm: tuple[Array, Array, Array | None, Array | None, float] | None,
    residual: Array | None,
    activation: Activation,
) -> Array:
    """Return `activation(norm(x @ weight.T + bias) + residual)` (..., o) for x (..., i), with any activation.

    `norm` is None, or the (mean, var, weight, bias, eps) of a batch norm of the o features with given statistics;
    `residual` is None or has the shape of the result.
    """
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    y = xp.reshape(rows @ weight.T, (*x.shape[:-1], weight.shape[0]))
    if bias is not None:
        y = y + bias
    if norm is not None:
        mean, var, scale, shift, eps = norm
        y = (y - mean) / xp.sqrt(var + eps)
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift
    return apply(xp, y if residual is None else y + residual, activation)


@op(
    "x weight bias",
    saves="x weight y?",
    samples=[
        sample({"x": (3, 5), "weight": (4, 5), "bias": (4,)}),
        sample({"x": (2, 3, 5), "weight": (4, 5), "bias": (4,)}),
        sample({"x": (5,), "weight": (4, 5), "bias": None}),
        sample({"x": (3, 5), "weight": (4, 5), "bias": (4,)}, activation="relu"),
        sample({"x": (3, 5), "weight": (4, 5), "bias": (4,)}, activation=("leaky_relu", 0.1)),
    ],
    apart=lambda shape, options: len(shape) > 1,
)
def linear(
    x: Array, weight: Array, bias: Array | None = None, activation: str | tuple[Any, ...] | None = None
) -> Result:
    """Apply a linear map to vectors, and an activation: `y = activation(x @ weight.T + bias)`.

    Parameters
    ----------
    x : floating-point array (..., i) with any number of leading axes.
    weight : (o, i), of the dtype of x.
    bias : (o,) or None.
    activation : None, or an activation to apply in the same pass: the name of an op such as `'relu'`, or a tuple of its
        name and parameters such as `('leaky_relu', 0.1)`. Its slope must be a function of its result.

    Returns
    -------
    y : (..., o).
    backward : dy -> (dx, dweight, dbias). It keeps x and weight, and y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other, or the activation is not one of these.
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
    return _linear(xp, x, weight, bias, activation_option("linear", activation))


@body
def _matmul(xp: ModuleType, x: Array, other: Array) -> Result:
    """Multiply matrices x (..., n, k) and other (..., k, m), whose leading axes broadcast."""
    y = x @ other  # (..., n, m)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = sum_to(xp, dy @ xp.matrix_transpose(other), x.shape) if needs[0] else None
        return dx, sum_to(xp, xp.matrix_transpose(x) @ dy, other.shape) if needs[1] else None

    return y, backward


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
    y, matrices_backward = _matmul(xp, x, other)
    shape = y.shape

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dother = matrices_backward(xp.reshape(dy, shape), needs)
        return (
            None if dx is None else xp.reshape(dx, x_shape),
            None if dother is None else xp.reshape(dother, other_shape),
        )

    return xp.reshape(y, y_shape), backward

"""The fully connected layer."""

import math
from collections.abc import Sequence
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._check import check_shape
from xcnn._dispatch import body
from xcnn.errors import ShapeError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import is_relu

__all__ = ["linear"]


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

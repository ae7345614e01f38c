"""The fully connected layer, and the flattening of maps into the vectors that it takes."""

import math
from collections.abc import Sequence
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._dispatch import body
from xcnn.errors import DtypeError, ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import is_relu

__all__ = ["flatten", "linear"]


@body
def _linear(xp: ModuleType, x: Array, weight: Array, bias: Array | None, relu: bool) -> Result:
    """Multiply rows x (n, i) by a matrix, then cut off what is negative if `relu` says so."""
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
    """Multiply vectors by a matrix: `y = x @ weight.T + bias`.

    Parameters
    ----------
    x : (..., i), any number of leading axes, floating point.
    weight : (o, i), the dtype of x.
    bias : (o,) or None.
    activation : None, or `'relu'` to apply it to y in the same pass; backward then keeps y, too.

    Returns
    -------
    y : (..., o).
    backward : dy -> (dx, dweight, dbias). It keeps x and weight.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other, or the activation is unknown.
    """
    xp = namespace("linear", x=x, weight=weight, bias=bias)
    if weight is None:
        raise DtypeError("linear: weight must be an array, got None")
    if weight.ndim != 2:
        raise ShapeError(f"linear: weight must have 2 axes (out, in), got {tuple(weight.shape)}")
    o, i = weight.shape
    if x.ndim == 0 or x.shape[-1] != i:
        raise ShapeError(
            f"linear: weight takes {i} features, x has {x.shape[-1] if x.ndim else 'no axis'} "
            f"(x: {tuple(x.shape)}, weight: {tuple(weight.shape)})"
        )
    if bias is not None and bias.shape != (o,):
        raise ShapeError(f"linear: bias must have shape ({o},), one per output feature, got {tuple(bias.shape)}")
    relu = is_relu("linear", activation)
    if x.ndim == 2:
        return _linear(xp, x, weight, bias, relu)
    shape, n = x.shape, math.prod(x.shape[:-1])
    y, rows_backward = _linear(xp, xp.reshape(x, (n, i)), weight, bias, relu)  # one product of all leading axes

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias = rows_backward(xp.reshape(dy, (n, o)), needs)
        return None if dx is None else xp.reshape(dx, shape), dweight, dbias

    return xp.reshape(y, (*shape[:-1], o)), backward


@op("x", samples=[sample({"x": (2, 3, 4)}), sample({"x": (2, 3, 4, 5)}, start_dim=-3, end_dim=2)])
def flatten(x: Array, start_dim: int = 1, end_dim: int = -1) -> Result:
    """Join the axes from `start_dim` to `end_dim` into one.

    Parameters
    ----------
    x : at least as many axes as `start_dim` and `end_dim` name, floating point.
    start_dim : the first axis to join. The default keeps the batch axis, as PyTorch's layer does; its function has 0.
    end_dim : the last axis to join.

    Returns
    -------
    y : x in row-major order with the joined axes' sizes multiplied; where the library can, a view of x.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    UsageError, DtypeError
        Where x has no such axes, they come in the wrong order, or x is no floating-point array.
    """
    xp = namespace("flatten", x=x)
    shape = x.shape
    first, last = (dim + len(shape) if dim < 0 else dim for dim in (start_dim, end_dim))
    if not 0 <= first <= last < len(shape):
        raise UsageError(f"flatten: x {tuple(shape)} has no axes {start_dim} to {end_dim} in this order")
    y = xp.reshape(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (xp.reshape(dy, shape) if needs[0] else None,)

    return y, backward

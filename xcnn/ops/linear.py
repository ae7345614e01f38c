"""The fully connected layer, and the flattening of maps into the vectors that it takes."""

import math
from collections.abc import Sequence

from xcnn._array import Array, namespace
from xcnn.errors import DtypeError, ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample

__all__ = ["flatten", "linear"]


@op(
    "x weight bias",
    saves="x weight",
    samples=[
        sample({"x": (3, 5), "weight": (4, 5), "bias": (4,)}),
        sample({"x": (2, 3, 5), "weight": (4, 5), "bias": (4,)}),
        sample({"x": (5,), "weight": (4, 5), "bias": None}),
    ],
)
def linear(x: Array, weight: Array, bias: Array | None = None) -> Result:
    """Multiply vectors by a matrix: `y = x @ weight.T + bias`.

    Parameters
    ----------
    x : (..., i), any number of leading axes, floating point.
    weight : (o, i), the dtype of x.
    bias : (o,) or None.

    Returns
    -------
    y : (..., o).
    backward : dy -> (dx, dweight, dbias). It keeps x and weight.

    Raises
    ------
    ShapeError, DtypeError
        Where the arrays do not fit each other.
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
    has_bias, shape, n = bias is not None, x.shape, math.prod(x.shape[:-1])

    def rows(array: Array, width: int) -> Array:
        return array if array.ndim == 2 else xp.reshape(array, (n, width))

    y = rows(x, i) @ weight.T  # (n, o): one product, however many leading axes
    if has_bias:
        y += bias
    if len(shape) != 2:
        y = xp.reshape(y, (*shape[:-1], o))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dy = rows(dy, o)
        dx = xp.reshape(dy @ weight, shape) if needs[0] else None
        dweight = dy.T @ rows(x, i) if needs[1] else None
        dbias = xp.sum(dy, axis=0) if needs[2] and has_bias else None
        return dx, dweight, dbias

    return y, backward


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

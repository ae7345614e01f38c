"""The fully connected layer, and `flatten` and `unflatten` between maps and its vectors."""

import math
from collections.abc import Sequence
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._check import axis, check_shape, integers
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import is_relu

__all__ = ["flatten", "linear", "split_sizes", "unflatten"]


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


@op("x", samples=[sample({"x": (2, 3, 4)}), sample({"x": (2, 3, 4, 5)}, start_dim=-3, end_dim=2)])
def flatten(x: Array, start_dim: int = 1, end_dim: int = -1) -> Result:
    """Join the axes from `start_dim` to `end_dim` into one.

    Parameters
    ----------
    x : floating-point array of any shape.
    start_dim : the first axis to join. The default keeps the batch axis, as PyTorch's layer does; the default of
        PyTorch's function is 0.
    end_dim : the last axis to join.

    Returns
    -------
    y : x with one axis in place of the joined ones, in row-major order; a view of x if the library can make one.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    UsageError, DtypeError
        If x has no such axes in this order, or is not a floating-point array.
    """
    xp = namespace("flatten", x=x)
    shape = x.shape
    first, last = axis("flatten", "start_dim", start_dim, shape), axis("flatten", "end_dim", end_dim, shape)
    if first > last:
        raise UsageError(f"flatten: x {tuple(shape)} has no axes {start_dim} to {end_dim} in this order")
    y = xp.reshape(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (xp.reshape(dy, shape) if needs[0] else None,)

    return y, backward


@op("x", samples=[sample({"x": (2, 6, 3)}, dim=-2, unflattened_size=(1, 3, 2))])
def unflatten(x: Array, dim: int, unflattened_size: Sequence[int]) -> Result:
    """Split one axis into several, as for the maps of a transposed convolution behind a linear layer.

    Parameters
    ----------
    x : floating-point array of at least one axis.
    dim : the axis to split.
    unflattened_size : the sizes of the new axes, whose product is the size of `dim`.

    Returns
    -------
    y : x with the new axes in place of `dim`, in row-major order; a view of x if the library can make one.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, UsageError, DtypeError
        If the product is another, x has no axis `dim`, or an argument is not as above.
    """
    xp = namespace("unflatten", x=x)
    shape, dim = x.shape, axis("unflatten", "dim", dim, x.shape)
    sizes = split_sizes("unflatten", unflattened_size)
    if math.prod(sizes) != shape[dim]:
        place = f"axis {dim} of x {tuple(shape)}"
        raise ShapeError(f"unflatten: unflattened_size must multiply to {shape[dim]}, {place}, got {sizes}")

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (xp.reshape(dy, shape) if needs[0] else None,)

    return xp.reshape(x, (*shape[:dim], *sizes, *shape[dim + 1 :])), backward


def split_sizes(caller: str, unflattened_size: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the new axes, of which there is at least one."""
    rank = max(1, len(unflattened_size)) if isinstance(unflattened_size, Sequence) else 1
    return integers(caller, "unflattened_size", unflattened_size, rank)

"""Softmax and its logarithm: rows of numbers turned into probabilities, and what the losses share with them."""

from collections.abc import Sequence
from types import ModuleType

from xcnn._array import Array, namespace
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample

__all__ = ["log_probabilities", "log_softmax", "softmax"]


_SAMPLES = [sample({"x": (2, 3, 4)}), sample({"x": (5,)}), sample({"x": (2, 3, 4)}, dim=1)]


def _axis(name: str, x: Array, dim: int) -> int:
    """Check the axis that a softmax runs over: one that x has and that is not empty."""
    if not -x.ndim <= dim < x.ndim:
        raise UsageError(f"{name}: dim must be an axis of x {tuple(x.shape)}, got {dim!r}")
    if x.shape[dim] == 0:
        raise ShapeError(f"{name}: axis {dim} of x must not be empty, got {tuple(x.shape)}")
    return dim


def log_probabilities(xp: ModuleType, x: Array, axis: int) -> Array:
    """Give `x - log(sum(exp(x)))` along an axis: the logarithm of the softmax, of use to the losses too."""
    below = x - xp.max(x, axis=axis, keepdims=True)
    return below - xp.log(xp.sum(xp.exp(below), axis=axis, keepdims=True))


@op("x", saves="y", samples=_SAMPLES)
def softmax(x: Array, dim: int = -1) -> Result:
    """Turn numbers into probabilities: `y = exp(x) / sum(exp(x))` along `dim`.

    Parameters
    ----------
    x : any shape with at least one axis, floating point.
    dim : the axis that sums to 1. The default is the last axis; PyTorch has none.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,). It keeps y.

    Raises
    ------
    UsageError, ShapeError, DtypeError
        Where x has no such axis, it is empty, or x is no floating-point array.
    """
    xp = namespace("softmax", x=x)
    axis = _axis("softmax", x, dim)
    y = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    y /= xp.sum(y, axis=axis, keepdims=True)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (y * (dy - xp.sum(y * dy, axis=axis, keepdims=True)) if needs[0] else None,)

    return y, backward


@op("x", saves="y", samples=_SAMPLES)
def log_softmax(x: Array, dim: int = -1) -> Result:
    """Give the logarithm of the softmax, `y = x - log(sum(exp(x)))` along `dim`, exact where the softmax underflows.

    Parameters
    ----------
    x : any shape with at least one axis, floating point.
    dim : the axis whose exponentials sum to 1. The default is the last axis; PyTorch has none.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,). It keeps y.

    Raises
    ------
    UsageError, ShapeError, DtypeError
        Where x has no such axis, it is empty, or x is no floating-point array.
    """
    xp = namespace("log_softmax", x=x)
    axis = _axis("log_softmax", x, dim)
    y = log_probabilities(xp, x, axis)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True) if needs[0] else None,)

    return y, backward

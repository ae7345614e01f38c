"""Softmax and its logarithm, which the losses use too."""

from collections.abc import Callable, Sequence
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._check import axis
from xcnn._dispatch import body
from xcnn.ops._op import Gradients, Result, along, op, sample

__all__ = ["log_probabilities", "log_softmax", "softmax"]


_SAMPLES = [sample({"x": (2, 3, 4)}), sample({"x": (5,)}), sample({"x": (2, 3, 4)}, dim=1), sample({"x": ()}, dim=0)]


def _below_zero(xp: ModuleType, x: Array, dim: int) -> Array:
    """Return x minus its maximum along an axis that is not empty, so that no exponential overflows."""
    return x - xp.max(x, axis=dim, keepdims=True)


def log_probabilities(xp: ModuleType, x: Array, dim: int) -> Array:
    """Return the logarithm of the softmax, `x - log(sum(exp(x)))` along an axis."""
    if x.shape[dim] == 0:
        return x
    below = _below_zero(xp, x, dim)
    return below - xp.log(sum_over(xp, xp.exp(below), (dim,), keepdims=True))


@body
def _softmax(xp: ModuleType, x: Array, dim: int) -> Result:
    """Return the softmax along an axis."""
    y = x
    if x.shape[dim] > 0:
        y = xp.exp(_below_zero(xp, x, dim))
        y /= sum_over(xp, y, (dim,), keepdims=True)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (y * (dy - sum_over(xp, y * dy, (dim,), keepdims=True)) if needs[0] else None,)

    return y, backward


@body
def _log_softmax(xp: ModuleType, x: Array, dim: int) -> Result:
    """Return the logarithm of the softmax along an axis."""
    y = log_probabilities(xp, x, dim)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy - xp.exp(y) * sum_over(xp, dy, (dim,), keepdims=True) if needs[0] else None,)

    return y, backward


def _as_line(xp: ModuleType, x: Array) -> Array:
    """Return x; if it is 0-d, as an array (1,)."""
    return x if x.ndim else xp.reshape(x, (1,))


def _as_number(xp: ModuleType, y: Array, of_line: Callable[..., Gradients]) -> Result:
    """Return y of one element, and its backward, as those of a 0-d x."""

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        (dx,) = of_line(xp.reshape(dy, (1,)), needs)
        return (None if dx is None else xp.reshape(dx, ()),)

    return xp.reshape(y, ()), backward


@op("x", saves="y", samples=_SAMPLES, apart=along("dim"))
def softmax(x: Array, dim: int = -1) -> Result:
    """Return the softmax, `y = exp(x) / sum(exp(x))` along `dim`: scores become probabilities.

    Parameters
    ----------
    x : floating-point array of any shape. A 0-d x counts as one axis of one element.
    dim : the axis that sums to 1. The default is the last axis; PyTorch has no default.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,). It keeps y.

    Raises
    ------
    UsageError, DtypeError
        If x has no such axis, or is not a floating-point array.
    """
    xp = namespace("softmax", x=x)
    shape, x = x.shape, _as_line(xp, x)
    dim = axis("softmax", "dim", dim, x.shape)
    y, backward = _softmax(xp, x, dim)
    return (y, backward) if y.shape == shape else _as_number(xp, y, backward)


@op("x", saves="y", samples=_SAMPLES, apart=along("dim"))
def log_softmax(x: Array, dim: int = -1) -> Result:
    """Return the logarithm of the softmax, `y = x - log(sum(exp(x)))` along `dim`, exact where the softmax underflows.

    Arguments, shapes and errors are those of `softmax`. Backward keeps y.
    """
    xp = namespace("log_softmax", x=x)
    shape, x = x.shape, _as_line(xp, x)
    dim = axis("log_softmax", "dim", dim, x.shape)
    y, backward = _log_softmax(xp, x, dim)
    return (y, backward) if y.shape == shape else _as_number(xp, y, backward)

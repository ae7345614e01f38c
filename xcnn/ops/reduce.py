"""Reductions: one number in place of all along some axes."""

import math
from collections.abc import Sequence
from types import ModuleType

from xcnn._array import Array, namespace, sum_over, zeros
from xcnn._check import axis, flag
from xcnn._dispatch import body
from xcnn.errors import UsageError
from xcnn.ops._op import Gradients, Result, along, op, sample
from xcnn.ops._options import Integers

__all__ = ["mean", "reduction", "sum"]


def _axes(name: str, x: Array, dim: Integers | None) -> tuple[int, ...]:
    """Return the axes to reduce, in increasing order."""
    if dim is None:
        return tuple(range(x.ndim))
    given = dim if isinstance(dim, Sequence) else (dim,)
    axes = {axis(name, "dim", one, x.shape) for one in given}
    if not axes or len(axes) != len(given):
        raise UsageError(f"{name}: dim must be None, an axis or several different ones, got {dim!r}")
    return tuple(sorted(axes))


@body
def reduction(xp: ModuleType, x: Array, axes: tuple[int, ...], keepdims: bool, average: bool) -> Result:
    """Take the sum or the mean over some axes, in increasing order."""
    shape = x.shape
    count = (math.prod(shape[one] for one in axes) or math.nan) if average else 1
    kept = tuple(1 if one in axes else n for one, n in enumerate(shape))
    y = sum_over(xp, x, axes, keepdims=keepdims)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (zeros(xp, shape, dy) + xp.reshape(dy, kept) / count if needs[0] else None,)

    return y / count if average else y, backward


def _total(name: str, x: Array, dim: Integers | None, keepdim: bool, average: bool) -> Result:
    """Return the sum or the mean over some axes, and its backward pass."""
    xp = namespace(name, x=x)
    return reduction(xp, x, _axes(name, x, dim), flag(name, "keepdim", keepdim), average)


@op(
    "x",
    samples=[
        sample({"x": (2, 3, 4)}, dim=(-1, 0)),
        sample({"x": (2, 3, 4)}, dim=1, keepdim=True),
        sample({"x": (2, 3)}),
    ],
    apart=along("dim"),
)
def mean(x: Array, dim: Integers | None = None, keepdim: bool = False) -> Result:
    """Take the mean over some axes.

    Parameters
    ----------
    x : floating-point array of any shape.
    dim : the axis, or several of them; None for all.
    keepdim : whether y has an axis of length 1 in place of each, so that it broadcasts with x.

    Returns
    -------
    y : x without these axes; NaN if they hold no numbers.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    UsageError, DtypeError
        If x has no such axes, one is given twice or none, keepdim is not a bool, or x is not a floating-point array.
    """
    return _total("mean", x, dim, keepdim, average=True)


@op(
    "x",
    samples=[sample({"x": (2, 3, 4)}, dim=(-1, 0)), sample({"x": (2, 3, 4)}, dim=1, keepdim=True)],
    apart=along("dim"),
)
def sum(x: Array, dim: Integers | None = None, keepdim: bool = False) -> Result:
    """Take the sum over some axes, 0 if they hold no numbers. Arguments, shapes and errors are those of `mean`.

    Backward keeps nothing.
    """
    return _total("sum", x, dim, keepdim, average=False)

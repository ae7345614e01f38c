"""Reductions: one number in place of all along some axes."""

import math
from collections.abc import Sequence

from xcnn._array import Array, namespace, sum_over, zeros
from xcnn._check import axis, flag
from xcnn.errors import UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import Integers

__all__ = ["mean"]


def _axes(name: str, x: Array, dim: Integers | None) -> tuple[int, ...]:
    """Return the axes to reduce, in increasing order."""
    if dim is None:
        return tuple(range(x.ndim))
    given = dim if isinstance(dim, Sequence) else (dim,)
    axes = {axis(name, "dim", one, x.shape) for one in given}
    if not axes or len(axes) != len(given):
        raise UsageError(f"{name}: dim must be None, an axis or several different ones, got {dim!r}")
    return tuple(sorted(axes))


@op(
    "x",
    samples=[
        sample({"x": (2, 3, 4)}, dim=(-1, 0)),
        sample({"x": (2, 3, 4)}, dim=1, keepdim=True),
        sample({"x": (2, 3)}),
    ],
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
    xp = namespace("mean", x=x)
    axes, keepdim, shape = _axes("mean", x, dim), flag("mean", "keepdim", keepdim), x.shape
    count = math.prod(shape[one] for one in axes) or math.nan
    kept = tuple(1 if one in axes else n for one, n in enumerate(shape))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (zeros(xp, shape, dy) + xp.reshape(dy, kept) / count if needs[0] else None,)

    return sum_over(xp, x, axes, keepdims=keepdim) / count, backward

"""Batch norm by the statistics of a whole batch that is computed in parts.

Each part is a call of its own, in a thread or a process of its own, and shares a few numbers per channel with the
others: forward its count, mean and variance, backward the sums of dy and of dy times the normalised x.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from xcnn._array import Array, full
from xcnn.ops._formula import Activation
from xcnn.ops._normalise import View, moments, norm, norm_gradient
from xcnn.ops._op import Gradients

__all__ = ["Gather", "alone", "gathering", "norm_of_parts", "part"]

Gather = Callable[[Array], Array]
"""Takes an array of one part and returns those of all parts, of one shape, stacked in the order of the parts."""


class _Here(threading.local):
    gather: Gather | None = None


_here = _Here()


@contextlib.contextmanager
def part(gather: Gather) -> Iterator[None]:
    """Let batch norms of this thread, inside a `with`, use the statistics of all parts in training.

    All parts must call the same batch norms in the same order, and as many of their backward passes.
    """
    before, _here.gather = _here.gather, gather
    try:
        yield
    finally:
        _here.gather = before


def alone() -> contextlib.AbstractContextManager[None]:
    """Return `part` of the only part, in which also one element has a mean."""
    return part(lambda own: own[None, ...])


def gathering() -> Gather | None:
    """Return the function by which this thread gets the numbers of all parts, or None outside of `part`."""
    return _here.gather


def norm_of_parts(
    xp: ModuleType,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    view: View,
    gather: Gather,
    residual: Array | None = None,
    activation: Activation = None,
) -> tuple[Array, Callable[[Array, Sequence[bool]], Gradients], Array, Array]:
    """Return what `norm` returns of one part: y, backward, and mean and unbiased variance (c,) of all parts.

    The variance of all parts is the mean of their variances and of the squares of their means' distances from the mean
    of all, which loses no digits (T. F. Chan, G. H. Golub and R. J. LeVeque, 1979).
    """
    c, count = x.shape[1], view.count
    own = [full(xp, (c,), count, x), *(xp.reshape(one, (c,)) for one in moments(xp, x, view))]
    parts = gather(xp.stack(own))
    counts, means, variances = parts[:, 0, :], parts[:, 1, :], parts[:, 2, :]
    total = xp.sum(counts, axis=0)
    shares = counts / total
    mean = xp.sum(shares * means, axis=0)
    var = xp.sum(shares * (variances + (means - mean) ** 2), axis=0)

    scale = full(xp, (c,), 1, x) if weight is None else weight
    shift = full(xp, (c,), 0, x) if bias is None else bias
    y, of_part, *_ = norm(xp, x, scale, shift, eps, view, (mean, var), residual, activation)
    has_weight, has_bias, rstd = weight is not None, bias is not None, 1.0 / xp.sqrt(var + eps)
    kept = None if activation is None else y

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        # See `norm`: only the two means of dx are those of all parts.
        _, dweight, dbias, dresidual = of_part(dy, (False, needs[0] or needs[1], needs[0] or needs[2], needs[3]))
        dx = None
        if needs[0]:
            means = xp.sum(gather(xp.stack([dbias, dweight])), axis=0) / total
            shift, slope = scale * means[0, :], scale * rstd * means[1, :]
            known = (dy, kept, activation) if dresidual is None else (dresidual, None, None)
            dx = norm_gradient(xp, x, *known[:2], scale, mean, rstd, shift, slope, view, known[2])
        return dx, dweight if needs[1] and has_weight else None, dbias if needs[2] and has_bias else None, dresidual

    return y, backward, mean, var * (total / (total - 1.0))

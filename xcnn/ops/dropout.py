"""Dropout: numbers set to zero at random in training, so that no feature relies on another one alone."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from xcnn._array import Array, namespace
from xcnn._dispatch import body
from xcnn.devices import like
from xcnn.errors import UsageError
from xcnn.ops._op import Gradients, Result, op, sample

__all__ = ["dropout"]


@body
def _dropout(xp: ModuleType, x: Array, p: float, generator: np.random.Generator) -> Result:
    """Drop what the generator's next float32 numbers, one for each of x in C order, are below p for."""
    mask = like(generator.random(x.shape, dtype=np.float32) >= p, x)
    if p < 1.0:
        mask *= 1.0 / (1.0 - p)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy * mask if needs[0] else None,)

    return x * mask, backward


@op("x", saves="mask", samples=[sample({"x": (3, 4)}, p=0.4, rng=0), sample({"x": (2, 3, 4)}, p=1.0, rng=0)])
def dropout(x: Array, p: float = 0.5, training: bool = True, *, rng: np.random.Generator | int) -> Result:
    """Set each number to zero with probability p and divide the others by 1 - p, which keeps the mean.

    Parameters
    ----------
    x : any shape, floating point.
    p : between 0 and 1.
    training : False returns x, as does p = 0; neither draws a number.
    rng : the generator that the mask is drawn from, or a seed, which always gives the same mask. It is drawn in
        float32, so that every device and dtype sees the same one. (PyTorch has a global generator instead.)

    Returns
    -------
    y : the shape of x; x itself where nothing is dropped.
    backward : dy -> (dx,). It keeps the mask, which holds 0 and 1 / (1 - p) (in compiled code a byte each, 0 or 1), or
        nothing where y is x.

    Raises
    ------
    UsageError, DtypeError
        For a probability out of range, an rng that is none, or an x that is no floating-point array.

    Notes
    -----
    N. Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15 (2014) 1929-1958.
    """
    xp = namespace("dropout", x=x)
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"dropout: p must be between 0 and 1, got {p!r}")
    if not isinstance(rng, np.random.Generator) and not (isinstance(rng, int | np.integer) and rng >= 0):
        raise UsageError(f"dropout: rng must be a numpy.random.Generator or a seed of at least 0, got {rng!r}")
    if not training or p == 0.0:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    return _dropout(xp, x, p, np.random.default_rng(rng))

"""Dropout: elements set to zero at random in training, so that no feature relies on another one alone."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from xcnn._array import Array, full, namespace
from xcnn._check import flag, generator, number
from xcnn._dispatch import body
from xcnn.devices import like
from xcnn.ops._op import Gradients, Result, Sample, op, op_of_ranks, sample
from xcnn.ops._window import map_sizes

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d"]


@body
def _dropout(xp: ModuleType, x: Array, p: float, generator: np.random.Generator) -> Result:
    """Drop the elements of x, in C order, for which the generator's next float32 number is below p."""
    mask = like(generator.random(x.shape, dtype=np.float32) >= p, x)
    if p < 1.0:
        mask *= 1.0 / (1.0 - p)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy * mask if needs[0] else None,)

    return x * mask, backward


@op("x", saves="mask", samples=[sample({"x": (3, 4)}, p=0.4, rng=0), sample({"x": (2, 3, 4)}, p=1.0, rng=0)])
def dropout(x: Array, p: float = 0.5, training: bool = True, *, rng: np.random.Generator | int) -> Result:
    """Set each element to zero with probability p and divide the others by 1 - p, which keeps the mean.

    Parameters
    ----------
    x : floating-point array of any shape.
    p : a probability, from 0 to 1.
    training : if False, or if p is 0, y is x and no number is drawn.
    rng : the generator that draws the mask, or a seed, which always gives the same mask. The mask is drawn in float32,
        so that it is the same on every device and for every dtype. (PyTorch has a global generator instead.)

    Returns
    -------
    y : the shape of x; x itself if nothing is dropped.
    backward : dy -> (dx,). It keeps the mask, which holds 0 and 1 / (1 - p) (in compiled code 0 and 1, a byte each), or
        nothing if y is x.

    Raises
    ------
    UsageError, DtypeError
        If p is not a probability, training not a bool, rng neither a generator nor a seed, or x not a floating-point
        array.

    Notes
    -----
    N. Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15 (2014) 1929-1958.
    """
    xp = namespace("dropout", x=x)
    p = number("dropout", "p", p, "[0, 1]")
    rng = generator("dropout", "rng", rng)
    if not flag("dropout", "training", training) or p == 0.0:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    return _dropout(xp, x, p, rng)


def _dropout_nd(
    rank: int, x: Array, p: float = 0.5, training: bool = True, *, rng: np.random.Generator | int
) -> Result:
    """Set each channel of signals (1d), images (2d) or volumes (3d) to zero with probability p, as `dropout` does.

    Neighbouring pixels resemble each other, so that a single one that is dropped is not missed; a whole map is.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image. The sizes are (w,), (h, w) or (d, h, w).
    p, training, rng : as in `dropout`. One number is drawn per map.

    Returns
    -------
    y : the shape of x; x itself if nothing is dropped.
    backward : dy -> (dx,). It keeps the mask, one number per map, or nothing if y is x.

    Raises
    ------
    ShapeError, UsageError, DtypeError
        If x has other axes; otherwise as in `dropout`.

    Notes
    -----
    J. Tompson et al., Efficient object localization using convolutional networks, 2015, arXiv:1411.4280.
    """
    name = f"dropout{rank}d"
    xp = namespace(name, x=x)
    map_sizes(name, x, rank)
    p = number(name, "p", p, "[0, 1]")
    rng = generator(name, "rng", rng)
    if not flag(name, "training", training) or p == 0.0:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    maps = x.shape[:-rank]
    mask = xp.reshape(_dropout(xp, full(xp, maps, 1.0, x), p, rng)[0], (*maps, *(1,) * rank))
    return x * mask, lambda dy, needs: (dy * mask if needs[0] else None,)


def _maps_samples(rank: int) -> list[Sample]:
    return [sample({"x": (3, 2, *(2, 3, 2)[:rank])}, p=0.4, rng=0)]


dropout1d, dropout2d, dropout3d = op_of_ranks(_dropout_nd, "x", "mask?", _maps_samples)

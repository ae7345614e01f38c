"""Dropout: elements, maps or examples set to zero at random in training, so that no feature relies on another alone."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from xcnn._array import Array, full, namespace
from xcnn._check import flag, generator, number
from xcnn._dispatch import body
from xcnn.devices import like
from xcnn.errors import ShapeError
from xcnn.ops._op import Gradients, Result, Sample, op, op_of_ranks, sample
from xcnn.ops._window import map_sizes

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d", "stochastic_depth"]


@body
def _dropout(xp: ModuleType, x: Array, p: float, generator: np.random.Generator) -> Result:
    """Drop the elements of x, in C order, for which the generator's next float32 number is below p."""
    mask = like(generator.random(x.shape, dtype=np.float32) >= p, x)
    if p < 1.0:
        mask *= 1.0 / (1.0 - p)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy * mask if needs[0] else None,)

    return x * mask, backward


@op(
    "x", saves="mask", samples=[sample({"x": (3, 4)}, p=0.4, rng=0), sample({"x": (2, 3, 4)}, p=1.0, rng=0)], apart=True
)
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
    return _drop(name, xp, x, x.ndim - rank, p, training, rng)


def _drop(
    name: str, xp: ModuleType, x: Array, lead: int, p: float, training: bool, rng: np.random.Generator | int
) -> Result:
    """Drop parts of x with one number for each index of its `lead` first axes."""
    p = number(name, "p", p, "[0, 1]")
    rng = generator(name, "rng", rng)
    if not flag(name, "training", training) or p == 0.0:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    parts = x.shape[:lead]
    mask = xp.reshape(_dropout(xp, full(xp, parts, 1.0, x), p, rng)[0], (*parts, *(1,) * (x.ndim - lead)))
    return x * mask, lambda dy, needs: (dy * mask if needs[0] else None,)


def _maps_samples(rank: int) -> list[Sample]:
    return [sample({"x": (3, 2, *(2, 3, 2)[:rank])}, p=0.4, rng=0)]


dropout1d, dropout2d, dropout3d = op_of_ranks(_dropout_nd, "x", "mask?", _maps_samples, apart=True)


@op("x", saves="mask?", samples=[sample({"x": (5, 2, 3)}, p=0.4, rng=0)], apart=True)
def stochastic_depth(x: Array, p: float, training: bool = True, *, rng: np.random.Generator | int) -> Result:
    """Set each example to zero with probability p, as the branch of a residual block, and divide the others by 1 - p.

    What the branch is added to is then all that remains of the block: the network is less deep for this example. It is
    torchvision's function of this name with `mode="row"`.

    Parameters
    ----------
    x : floating-point array (n, ...).
    p, training, rng : as in `dropout`. One number is drawn per example.

    Returns
    -------
    y : the shape of x; x itself if nothing is dropped.
    backward : dy -> (dx,). It keeps the mask, one number per example, or nothing if y is x.

    Raises
    ------
    ShapeError, UsageError, DtypeError
        If x has no axis; otherwise as in `dropout`.

    Notes
    -----
    G. Huang et al., Deep networks with stochastic depth, 2016, arXiv:1603.09382.
    """
    xp = namespace("stochastic_depth", x=x)
    if x.ndim == 0:
        raise ShapeError("stochastic_depth: x must be (n, ...), got ()")
    return _drop("stochastic_depth", xp, x, 1, p, training, rng)

"""Dropout layers."""

import numpy as np

from xcnn import ops
from xcnn._check import number
from xcnn.nn._layer import Layer

__all__ = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth"]


class Dropout(Layer, op=ops.dropout):
    """Set each element to zero with probability `p` in training and divide the others by 1 - p.

    The masks are drawn from the layer's own generator `rng`, which `reset_parameters` seeds.

    Parameters
    ----------
    p : a probability, from 0 to 1.

    Raises
    ------
    UsageError
        If p is not a probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = number(type(self).__name__, "p", p, "[0, 1]")
        self.rng = np.random.default_rng()

    def initialize(self, rng: np.random.Generator) -> None:
        self.rng = np.random.default_rng(rng.integers(2**63))


class Dropout1d(Dropout, op=ops.dropout1d):
    """Set whole channels of signals (n, c, w) to zero with probability `p` in training; see `Dropout`."""


class Dropout2d(Dropout, op=ops.dropout2d):
    """Set whole channels of images (n, c, h, w) to zero with probability `p` in training; see `Dropout`."""


class Dropout3d(Dropout, op=ops.dropout3d):
    """Set whole channels of volumes (n, c, d, h, w) to zero with probability `p` in training; see `Dropout`."""


class StochasticDepth(Dropout, op=ops.stochastic_depth):
    """Set whole examples (n, ...) to zero with probability `p` in training, in a residual's body; see `Dropout`."""

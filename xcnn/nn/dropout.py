"""Dropout layers."""

import numpy as np

from xcnn import ops
from xcnn.errors import UsageError
from xcnn.nn._layer import Layer

__all__ = ["Dropout"]


class Dropout(Layer, op=ops.dropout):
    """Set each number to zero with probability `p` in training and divide the others by 1 - p.

    Its masks come from `rng`, a stream of its own, which `reset_parameters` seeds.

    Parameters
    ----------
    p : from 0 to 1.

    Raises
    ------
    UsageError
        For a probability out of range.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise UsageError(f"Dropout: p must be a probability from 0 to 1, got {p!r}")
        self.p = p
        self.rng = np.random.default_rng()

    def initialize(self, rng: np.random.Generator) -> None:
        """Draw the initial state; see `Module.initialize`."""
        self.rng = np.random.default_rng(rng.integers(2**63))

"""The yardstick: NumPy's product of two large float32 matrices, the fastest arithmetic that one can hope for."""

import contextlib
from collections.abc import Iterator

import numpy as np

from xcnn.compare.case import Case
from xcnn.compare.contestants import Step

__all__ = ["FLOPS", "SIZE", "opened"]

SIZE = 1536
"""Rows and columns of both."""

FLOPS = 2 * SIZE**3
"""Floating-point operations of a step."""


@contextlib.contextmanager
def opened(case: Case, variant: str) -> Iterator[Step]:
    """Give the product; its threads are the environment's."""
    a, b = np.random.default_rng(0).random((2, SIZE, SIZE), np.float32)
    out = np.empty_like(a)

    def step() -> float:
        return float(np.matmul(a, b, out=out)[0, 0])

    yield step

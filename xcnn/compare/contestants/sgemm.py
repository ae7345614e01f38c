"""The yardstick of arithmetic: the product of two large float32 matrices, by NumPy or, without TF32, by CuPy."""

import contextlib
from collections.abc import Iterator

import numpy as np

from xcnn.compare.case import Case
from xcnn.compare.contestants import Step
from xcnn.compare.gpu import CPU, kind
from xcnn.devices import device as open_device

__all__ = ["SIZES", "opened", "work"]

SIZES = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the matrices by kind of hardware, large enough to keep all of it busy."""


def work(device: str) -> int:
    """Return the floating-point operations of a step."""
    return int(2 * SIZES[kind(device)] ** 3)


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the product. The environment sets the number of threads."""
    where, size = open_device(device), SIZES[kind(device)]
    a, b = map(where.asarray, np.random.default_rng(0).random((2, size, size), np.float32))
    # A GPU's pool reuses the memory of the last product.
    target = {"out": np.empty_like(a)} if where.name == CPU else {}
    yield lambda: float(where.xp.matmul(a, b, **target)[0, 0])

"""The yardstick of arithmetic: the product of two large float32 matrices, without TF32.

On the CPU the faster product counts, NumPy's or that of `ops.linear`: a BLAS may not use all of a processor.
"""

import contextlib
import timeit
from collections.abc import Iterator

import numpy as np

from xcnn import ops
from xcnn.compare.case import Case
from xcnn.compare.contestants import Step
from xcnn.compare.gpu import CPU, kind
from xcnn.devices import device as open_device
from xcnn.threads import get_num_threads, set_num_threads

__all__ = ["SIZES", "TRIALS", "opened", "work"]

SIZES = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the matrices by kind of hardware, large enough to keep all of it busy."""

TRIALS = 4
"""The number of times that each product is tried; the first compiles."""


def work(device: str) -> int:
    """Return the floating-point operations of a step."""
    return int(2 * SIZES[kind(device)] ** 3)


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the product. The environment sets the number of BLAS threads."""
    where, size, threads = open_device(device), SIZES[kind(device)], get_num_threads()
    a, b = map(where.asarray, np.random.default_rng(0).random((2, size, size), np.float32))
    if where.name != CPU:  # where the library's pool reuses the memory of the last product
        yield lambda: float(where.xp.matmul(a, b)[0, 0])
        return
    set_num_threads(case.threads)
    try:
        out = np.empty_like(a)
        products: list[Step] = [lambda: np.matmul(a, b, out=out)[0, 0], lambda: ops.linear(a, b)[0][0, 0]]
        yield min(products, key=lambda product: min(timeit.repeat(product, number=1, repeat=TRIALS)))
    finally:
        set_num_threads(threads)

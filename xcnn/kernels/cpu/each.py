"""Work in threads that needs no compiled code: pieces of a batch, copies, and sums of gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._blas import one_blas_thread
from xcnn.kernels.cpu._share import share
from xcnn.threads import parallel

__all__ = ["added", "each", "joined"]

_FEW = 400_000
"""How many numbers must be moved for a second thread to be worth it."""


@kernel(np)
def each(task: Callable[[int], object], count: int) -> None:
    """Call a task for every piece, with products on one thread, so that no bit depends on their number."""
    with one_blas_thread:
        parallel(task, count)


@kernel(np)
def added(x: np.ndarray, other: np.ndarray) -> Any:
    """Add two arrays, a part of the first axis in each thread."""
    if x.size < _FEW or x.shape != other.shape or x.dtype != other.dtype:
        return NotImplemented
    y = np.empty(x.shape, x.dtype)
    share(lambda begin, end: np.add(x[begin:end], other[begin:end], y[begin:end]), 3 * x.size, n=len(y))
    return y


@kernel(np)
def joined(dim: int, *xs: np.ndarray) -> np.ndarray:
    """Join arrays along an axis, a part of the first axis in each thread."""
    moved = 2 * sum([x.size for x in xs])
    if dim == 0 or moved < _FEW:
        return np.concatenate(xs, axis=dim)
    before, after = xs[0].shape[:dim], xs[0].shape[dim + 1 :]
    y = np.empty((*before, sum(x.shape[dim] for x in xs), *after), xs[0].dtype.newbyteorder("="))
    share(lambda begin, end: np.concatenate([x[begin:end] for x in xs], dim, y[begin:end]), moved, n=len(y))
    return y

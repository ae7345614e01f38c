"""Pieces of a batch in threads."""

from collections.abc import Callable

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._blas import one_blas_thread
from xcnn.threads import parallel

__all__ = ["each"]


@kernel(np)
def each(task: Callable[[int], object], count: int) -> None:
    """Call a task for every piece, with products on one thread, so that no bit depends on their number."""
    with one_blas_thread:
        parallel(task, count)

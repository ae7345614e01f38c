"""The portable code of matrix products on one thread of BLAS, for arguments that no other kernel here handles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import BODIES, kernel
from xcnn.kernels.cpu._blas import one_blas_thread

__all__: list[str] = []


def _held(name: str) -> Callable[..., Any]:
    """Return a kernel that runs a body, and its backward if it has one."""

    def call(*arguments: Any) -> Any:
        with one_blas_thread:
            found = BODIES[name](np, *arguments)
        if not isinstance(found, tuple):
            return found
        result, backward = found

        def held_backward(dy: np.ndarray, needs: Sequence[bool]) -> Any:
            with one_blas_thread:
                return backward(dy, needs)

        return result, held_backward

    call.__name__ = name
    return call


for _name in ("conv", "conv_inference", "conv_transpose", "linear", "matmul"):
    kernel(np)(_held(_name))

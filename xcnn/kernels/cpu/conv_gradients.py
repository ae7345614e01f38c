"""The gradients of a convolution on the CPU."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu._input_gradient import bias_gradient
from xcnn.kernels.cpu._share import flat, share
from xcnn.kernels.cpu._sums import add_rows
from xcnn.kernels.cpu.input_gradients import input_gradients
from xcnn.kernels.cpu.weight_gradients import weight_gradients

__all__ = ["bias_gradients", "conv_gradients"]


def conv_gradients(
    x: np.ndarray,
    dy: np.ndarray,
    y: np.ndarray | None,
    weight: np.ndarray,
    axes: tuple[Any, ...],
    groups: int,
    needs: Sequence[bool],
) -> tuple[np.ndarray | None, ...]:
    """Return dx, dweight and dbias, as needed; dy is masked to where y is not 0, unless y is None."""
    return (
        input_gradients(dy, y, weight, None, axes, groups) if needs[0] else None,
        weight_gradients(x, dy, y, weight, axes, groups) if needs[1] else None,
        bias_gradients(dy, y) if needs[2] else None,
    )


def bias_gradients(dy: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Return dbias; dy is masked to where y is not 0."""
    n, o, pixels = *dy.shape[:2], math.prod(dy.shape[2:])
    sums = np.empty((n, o), dy.dtype)
    share(bias_gradient, dy.size, flat(dy, dy.itemsize), flat(y, dy.itemsize), sums.reshape(-1), pixels, n=n * o)
    total: np.ndarray = sums[0]
    if n > 1:
        total = np.empty(o, dy.dtype)
        add_rows(sums, total)
    return total

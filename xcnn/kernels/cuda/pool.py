"""Max and average pooling. Max pooling keeps a byte per window, the kernel position of its maximum."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, supports
from xcnn.kernels.cuda._library import empty, namespace
from xcnn.kernels.cuda._maps import maps, windows

__all__ = ["avg_pool", "max_pool"]

_NO_PIXEL = 255
"""The winner of a window that is all padding, and one more than the last kernel position that fits a byte."""


def _lead(x: Any, rank: int) -> tuple[int, int]:
    """Return the numbers of images and of channels of (n, c, *sizes) or (c, *sizes)."""
    n, c = (1, *x.shape[:-rank])[-2:]
    return n, c


def _gradient(dy: Any, winners: Any, divisor: float, shape: tuple[int, ...], axes: tuple[Any, ...]) -> Any:
    dx = empty(shape, dy.dtype)
    count = math.prod(shape[: -len(axes)])
    launch("pool_gradient", dx.size, dy, winners, divisor, dx, count, windows(axes))
    return dx


@kernel(namespace)
def max_pool(x: Any, axes: tuple[Any, ...]) -> Any:
    """Return the maxima; keep their positions."""
    if not supports(x) or math.prod(axis.kernel for axis in axes) > _NO_PIXEL:
        return NotImplemented
    rank, shape = len(axes), x.shape
    y = empty((*shape[:-rank], *(axis.out for axis in axes)), x.dtype)
    winners = empty(y.shape, np.uint8)
    launch("max_pool", y.size, *maps(x, rank), y, winners, *_lead(x, rank), windows(axes))

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        return (_gradient(dy, winners, 1, shape, axes) if needs[0] else None,)

    return y, backward


@kernel(namespace)
def avg_pool(x: Any, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Take the means of windows that all have as many pixels; others are left to the portable code."""
    if not supports(x) or (divisor is None and any(min(count) != max(count) for count in counts)):
        return NotImplemented
    rank, shape = len(axes), x.shape
    divisor = divisor or math.prod(count[0] for count in counts)
    y = empty((*shape[:-rank], *(axis.out for axis in axes)), x.dtype)
    launch("average_pool", y.size, *maps(x, rank), divisor, y, *_lead(x, rank), windows(axes))

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        return (_gradient(dy, None, divisor, shape, axes) if needs[0] else None,)

    return y, backward

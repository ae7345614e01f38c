"""Convolution on the CPU without columns: products of the weights with shifted planes.

Each image is laid out (`_planes.py`), multiplied (`_simd.py`) and written while it is in the cache; bias and ReLU are
applied when results are written (`_passes.py`). Images are distributed over threads. `conv_gradients.py` has the
gradients.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND, flops, grouped, layout, skips, volume
from xcnn.kernels.cpu._passes import convolve, pack
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import supports
from xcnn.kernels.cpu.conv_gradients import conv_gradients
from xcnn.threads import parallel, parts

__all__ = ["conv", "convolution"]


def convolution(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int, relu: bool
) -> np.ndarray:
    """Return y, with bias and ReLU applied."""
    n, o, w = x.shape[0], weight.shape[0], grouped(weight, groups)
    _, og, cg, _ = w.shape
    f = layout(axes, cg, og)
    y = np.empty((n, o, *(axis.out for axis in axes)), x.dtype)
    packed = np.empty(w.size, x.dtype)
    pack(w.reshape(groups, og, -1), packed)
    count = parts(n, flops(n, weight, f) / FLOPS_PER_MICROSECOND)
    arrays = volume(x), packed, np.empty(0, x.dtype) if bias is None else bias, volume(y)

    def some(part: int) -> None:
        xs = scratch(f.number, "x", cg * f.phases * f.plane, x.dtype)
        ys = scratch(f.number, "y", og * f.row, x.dtype)
        convolve(*arrays, *f[:5], groups, relu, n * part // count, n * (part + 1) // count, xs, ys)

    parallel(some, count)
    return y


@kernel(np)
def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    axes: tuple[Any, ...],
    groups: int,
    activation: tuple[Any, ...] | None,
) -> Any:
    """Convolve, with bias and ReLU in the same pass."""
    if not supports(x) or skips(axes) or activation not in (None, ("relu",)):
        return NotImplemented
    has_bias, relu = bias is not None, activation is not None
    result = convolution(x, weight, bias, axes, groups, relu)
    y = result if relu else None  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        return conv_gradients(x, dy, y, weight, axes, groups, (needs[0], needs[1], needs[2] and has_bias))

    return result, backward

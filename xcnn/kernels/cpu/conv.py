"""Convolution on the CPU without columns: products of the weights with shifted planes.

Each image is laid out (`_planes.py`), multiplied (`_simd.py`) and written while it is in the cache; bias and ReLU are
applied when results are written, the ReLU's mask when backward lays out dy (`_passes.py`). Images are distributed over
threads.

Rows of dy are stored with zeros between them, and an infinite x times 0 is NaN. So more of dweight may become NaN than
with im2col.

As in `ops/conv.py`, a transposed convolution uses the input gradient as its forward pass, and vice versa.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._passes import convolve, gradients, pack, pack_transposed
from xcnn.kernels.cpu._planes import PLACES, STEP, planes
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import supports
from xcnn.kernels.cpu._sums import add_rows
from xcnn.threads import parallel, parts

__all__ = ["conv", "conv_transpose"]

_FLOPS_PER_MICROSECOND = 80_000

_CHUNK_BYTES = 800_000
"""Size of the planes of x and dy that backward processes together; they should stay in the second-level cache."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""

_MOST_SKIPPED = 4
"""The largest number of pixels of x between windows, per kernel position, for which this layout is used."""

_numbers = itertools.count()


class _Layout(NamedTuple):
    """The planes of a convolution with given channels: first the arguments of compiled code, in order, then the rest.

    Attributes
    ----------
    order, bounds : the taps sorted by phase, and where each phase begins.
    row : places of a row of results.
    number : unique number of the layout.
    """

    axes: np.ndarray
    plane: int
    phases: int
    length: int
    shifts: np.ndarray
    dy_plane: int
    start: int
    phase_shifts: np.ndarray
    bounds: np.ndarray
    order: np.ndarray
    row: int
    number: int


@functools.lru_cache(maxsize=256)
def _layout(axes: tuple[Any, ...], cg: int, og: int) -> _Layout:
    p = planes(axes)
    by_phase = [np.flatnonzero(p.dx_phase == phase) for phase in range(p.phases)]
    outputs = np.arange(og)[:, None] * p.dy_plane
    longest = max(p.length, int(((p.axes[:, PLACES] - 1) * p.axes[:, STEP]).sum()) + 1)
    return _Layout(
        axes=p.axes,
        plane=p.plane,
        phases=p.phases,
        length=p.length,
        shifts=(np.arange(cg)[:, None] * (p.phases * p.plane) + p.x_shifts).ravel(),
        dy_plane=p.dy_plane,
        start=p.dy_start,
        phase_shifts=np.concatenate([(outputs + p.dx_shifts[taps]).ravel() for taps in by_phase]),
        bounds=np.cumsum([0, *map(len, by_phase)]),
        order=np.concatenate(by_phase),
        row=-(-longest // 16) * 16,
        number=next(_numbers),
    )


def _volume(a: np.ndarray) -> np.ndarray:
    """Return maps of one or two axes leading axes of one pixel, in C order."""
    return np.ascontiguousarray(a).reshape(*a.shape[:2], *(1,) * (5 - a.ndim), *a.shape[2:])


def _grouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return weight as (g, og, cg, taps), in C order."""
    o, cg, *kernel = weight.shape
    return np.ascontiguousarray(weight).reshape(groups, o // groups, cg, math.prod(kernel))


def _skips(axes: tuple[Any, ...]) -> bool:
    """Return whether strides pass over most pixels: laying out pixels outside all windows would be wasted work."""
    return bool(math.prod(axis.stride for axis in axes) > _MOST_SKIPPED * math.prod(axis.kernel for axis in axes))


def _flops(n: int, weight: np.ndarray, f: _Layout) -> int:
    return 2 * n * f.length * weight.size


def _convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int, relu: bool
) -> np.ndarray:
    n, o, w = x.shape[0], weight.shape[0], _grouped(weight, groups)
    _, og, cg, _ = w.shape
    f = _layout(axes, cg, og)
    y = np.empty((n, o, *(axis.out for axis in axes)), x.dtype)
    packed = np.empty(w.size, x.dtype)
    pack(w.reshape(groups, og, -1), packed)
    count = parts(n, _flops(n, weight, f) / _FLOPS_PER_MICROSECOND)
    arrays = _volume(x), packed, np.empty(0, x.dtype) if bias is None else bias, _volume(y)

    def some(part: int) -> None:
        xs = scratch(f.number, "x", cg * f.phases * f.plane, x.dtype)
        ys = scratch(f.number, "y", og * f.row, x.dtype)
        convolve(*arrays, *f[:5], groups, relu, n * part // count, n * (part + 1) // count, xs, ys)

    parallel(some, count)
    return y


def _gradients(
    x: np.ndarray | None,
    dy: np.ndarray,
    y: np.ndarray | None,
    weight: np.ndarray,
    axes: tuple[Any, ...],
    groups: int,
    needs: Sequence[bool],
) -> tuple[np.ndarray | None, ...]:
    """Return dx, dweight and dbias, as needed; dy is masked to where y is not 0.

    Parameters
    ----------
    x : None if only dx is needed.
    y : None if dy is not masked.
    """
    n, o, w = dy.shape[0], dy.shape[1], _grouped(weight, groups)
    _, og, cg, _ = w.shape
    c, dtype = cg * groups, dy.dtype
    f = _layout(axes, cg, og)
    # Empty arrays are not computed.
    nothing = np.empty((1, 0, 0, 0, 0), dtype)
    dx = np.empty((n if needs[0] else 0, c, *(axis.size for axis in axes)), dtype)
    packed = np.empty(w.size if needs[0] else 0, dtype)
    if needs[0]:
        pack_transposed(w, f.order, f.bounds, packed)
    count = parts(min(n, max(2, _PARTIAL_BYTES // weight.nbytes)), 2 * _flops(n, weight, f) / _FLOPS_PER_MICROSECOND)
    dweight = np.zeros((count, weight.size if needs[1] else 0), dtype)
    of_images = np.zeros((n, o if needs[2] else 0), dtype)
    chunk = max(1, _CHUNK_BYTES // ((c * f.phases * f.plane + o * f.dy_plane) * dtype.itemsize))
    chunk = min(chunk, -(-n // count))
    arrays = (
        nothing if x is None else _volume(x), _volume(dy), nothing if y is None else _volume(y), packed, _volume(dx)
    )  # fmt: skip

    def some(part: int) -> None:
        xs = scratch(f.number, "x chunk", chunk * c * f.phases * f.plane if needs[1] else 0, dtype)
        dys = scratch(f.number, "dy", chunk * o * f.dy_plane, dtype)
        ys = scratch(f.number, "dx", cg * f.row, dtype)
        first, last = n * part // count, n * (part + 1) // count
        gradients(*arrays, dweight[part], of_images, *f[:9], groups, first, last, chunk, xs, dys, ys)

    parallel(some, count)
    return (
        dx if needs[0] else None,
        (dweight[0] if count == 1 else dweight.sum(axis=0)).reshape(weight.shape) if needs[1] else None,
        _rows_sum(of_images) if needs[2] else None,
    )


def _rows_sum(rows: np.ndarray) -> np.ndarray:
    total: np.ndarray = rows[0]
    if len(rows) > 1:
        total = np.empty(rows.shape[1], rows.dtype)
        add_rows(rows, total)
    return total


@kernel(np)
def conv(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int, relu: bool
) -> Any:
    """Convolve, with bias and ReLU in the same pass."""
    if not supports(x) or _skips(axes):
        return NotImplemented
    has_bias = bias is not None
    result = _convolve(x, weight, bias, axes, groups, relu)
    y = result if relu else None  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        return _gradients(x, dy, y, weight, axes, groups, (needs[0], needs[1], needs[2] and has_bias))

    return result, backward


@kernel(np)
def conv_transpose(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int
) -> Any:
    """Spread x over the kernels: this is the input gradient of the convolution with these axes."""
    if not supports(x) or _skips(axes):
        return NotImplemented
    has_bias = bias is not None
    y, _, _ = _gradients(None, x, None, weight, axes, groups, (True, False, False))
    assert y is not None
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(axes))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx = _convolve(dy, weight, None, axes, groups, False) if needs[0] else None
        dweight = _gradients(dy, x, None, weight, axes, groups, (False, True, False))[1] if needs[1] else None
        dbias = _rows_sum(dy.reshape(*dy.shape[:2], -1).sum(axis=2)) if needs[2] and has_bias else None
        return dx, dweight, dbias

    return y, backward

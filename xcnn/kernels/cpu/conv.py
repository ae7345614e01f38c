"""Convolution on the CPU without columns: products of the weights with shifted planes (`_planes.py`, `_simd.py`).

Each image is laid out, multiplied and written while it is in the cache; bias and ReLU are applied on the way out, and
the ReLU's mask on the way into backward. Images are shared out to the threads.

Names in compiled code: x0, dy0 are places where something starts; cg, og channels of a group; K the products that are
summed for one output, channels times taps.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._planes import planes
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._simd import CORRELATION_BLOCKS, PRODUCT_BLOCKS, correlation, shifted_product
from xcnn.threads import parallel, parts

__all__ = ["convolution"]

_FLOPS_PER_MICROSECOND = 80_000
_CHUNK_BYTES = 800_000
"""Planes of x and dy that backward goes over together: they should stay in the second-level cache."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""

_R0, _R1, _R2, _R3 = (rows for rows, _ in PRODUCT_BLOCKS)
_P0, _P1, _P2, _P3 = (shifted_product(*block) for block in PRODUCT_BLOCKS)
_S0, _S1, _S2 = (rows for rows, _ in CORRELATION_BLOCKS)
_C0, _C1, _C2 = (correlation(*block) for block in CORRELATION_BLOCKS)


@compiled
def _pack(matrix, packed, p0):
    """Copy a matrix (rows, K) block by block, as `_product` reads it: K columns of the rows of a block."""
    rows, count = matrix.shape
    r = 0
    for size in (_R0, _R1, _R2, _R3):
        while r + size <= rows:
            for i in range(size):
                for k in range(count):
                    packed[p0 + (r * count + k * size) + i] = matrix[r + i, k]
            r += size


@compiled
def _product(x, x0, shifts, w, w0, y, step, rows, length):
    """Set y (rows, step) to the packed matrix times the shifted x."""
    count = shifts.size
    b0 = rows // _R0
    _P0(x, x0, shifts, count, w, w0, y, 0, step, b0, length)
    r = b0 * _R0
    b1 = (rows - r) // _R1
    _P1(x, x0, shifts, count, w, w0 + r * count, y, r * step, step, b1, length)
    r += b1 * _R1
    b2 = (rows - r) // _R2
    _P2(x, x0, shifts, count, w, w0 + r * count, y, r * step, step, b2, length)
    r += b2 * _R2
    _P3(x, x0, shifts, count, w, w0 + r * count, y, r * step, step, (rows - r) // _R3, length)


@compiled
def _correlate(dy, dy0, plane, dy_step, x, x_step, shifts, images, length, out, out0, rows):
    """Add the products of dy's rows with the shifted x to out (rows, K)."""
    count = shifts.size
    b0 = rows // _S0
    _C0(dy, dy0, plane, dy_step, x, x_step, shifts, count, images, length, out, out0, b0)
    r = b0 * _S0
    b1 = (rows - r) // _S1
    _C1(dy, dy0 + r * plane, plane, dy_step, x, x_step, shifts, count, images, length, out, out0 + r * count, b1)
    r += b1 * _S1
    b2 = (rows - r) // _S2
    _C2(dy, dy0 + r * plane, plane, dy_step, x, x_step, shifts, count, images, length, out, out0 + r * count, b2)


@compiled
def _span(axis, phase):
    """Give the first place of a phase that is a pixel, its pixel, and how many there are."""
    size, stride, before = axis[0], axis[1], axis[2]
    first = max(0, -((phase - before) // stride))
    return first, first * stride + phase - before, (size - 1 + before - phase) // stride - first + 1


@compiled
def _lay(image, axes, plane, xs, x0):
    """Sort the pixels of an image (c, d, h, w) into the planes of x, c * phases of them."""
    for c in range(image.shape[0]):
        for pz in range(axes[0, 1]):
            tz, z, nz = _span(axes[0], pz)
            for py in range(axes[1, 1]):
                ty, y, ny = _span(axes[1], py)
                for px in range(axes[2, 1]):
                    tx, x, nx = _span(axes[2], px)
                    for i in range(nz):
                        for j in range(ny):
                            at = x0 + (tz + i) * axes[0, 4] + (ty + j) * axes[1, 4] + tx
                            target = xs[at : at + nx]
                            source = image[c, z + i * axes[0, 1], y + j * axes[1, 1]][x:]
                            if axes[2, 1] == 1:
                                for k in range(nx):
                                    target[k] = source[k]
                            else:
                                for k in range(nx):
                                    target[k] = source[k * axes[2, 1]]
                    x0 += plane


@compiled
def _gather(ys, step, axes, phase, dx):
    """Write the rows of one phase of the input gradient to its pixels in dx (c, d, h, w)."""
    _, z, nz = _span(axes[0], phase // (axes[1, 1] * axes[2, 1]))
    _, y, ny = _span(axes[1], phase // axes[2, 1] % axes[1, 1])
    _, x, nx = _span(axes[2], phase % axes[2, 1])
    for c in range(dx.shape[0]):
        for i in range(nz):
            for j in range(ny):
                at = c * step + i * axes[0, 4] + j * axes[1, 4]
                source = ys[at : at + nx]
                target = dx[c, z + i * axes[0, 1], y + j * axes[1, 1]][x:]
                if axes[2, 1] == 1:
                    for k in range(nx):
                        target[k] = source[k]
                else:
                    for k in range(nx):
                        target[k * axes[2, 1]] = source[k]


@compiled
def _write(ys, step, axes, bias, relu, y):
    """Write the rows of outputs to y (o, od, oh, ow), adding the bias and cutting off what is negative."""
    zero = ys.dtype.type(0)
    for o in range(y.shape[0]):
        b = bias[o] if bias.size else zero
        for i in range(axes[0, 3]):
            for j in range(axes[1, 3]):
                at = o * step + i * axes[0, 4] + j * axes[1, 4]
                source = ys[at : at + axes[2, 3]]
                target = y[o, i, j]
                if relu:
                    for k in range(axes[2, 3]):
                        value = source[k] + b
                        target[k] = zero if value <= zero else value
                else:
                    for k in range(axes[2, 3]):
                        target[k] = source[k] + b


@njit(nogil=True, cache=True, fastmath={"reassoc"}, error_model="numpy")
def _lay_gradient(dy, y, axes, plane, start, dys, dy0, dbias):
    """Copy dy (o, od, oh, ow) to its planes, where y is not 0 if there is a y, and add its sums to dbias."""
    zero = dys.dtype.type(0)
    for o in range(dy.shape[0]):
        total = zero
        for i in range(axes[0, 3]):
            for j in range(axes[1, 3]):
                at = dy0 + o * plane + start + i * axes[0, 4] + j * axes[1, 4]
                target = dys[at : at + axes[2, 3]]
                source = dy[o, i, j]
                if y.size:
                    mask = y[o, i, j]
                    for k in range(axes[2, 3]):
                        value = source[k] if mask[k] != zero else zero
                        target[k] = value
                        total += value
                else:
                    for k in range(axes[2, 3]):
                        target[k] = source[k]
                        total += source[k]
        if dbias.size:
            dbias[o] += total


@compiled
def _forward(x, weights, bias, y, axes, plane, phases, length, shifts, groups, relu, first, last, xs, ys):
    """Convolve images first .. last - 1."""
    cg, og, count = x.shape[1] // groups, y.shape[1] // groups, shifts.size
    step = ys.size // og
    for n in range(first, last):
        for g in range(groups):
            _lay(x[n, g * cg : (g + 1) * cg], axes, plane, xs, 0)
            _product(xs, 0, shifts, weights, g * og * count, ys, step, og, length)
            _write(ys, step, axes, bias[g * og : (g + 1) * og], relu, y[n, g * og : (g + 1) * og])


@compiled
def _backward(
    x, dy, y, weights, dx, dweight, dbias, axes, plane, phases, length, shifts, dy_plane, start, phase_shifts, bounds,
    groups, first, last, chunk, xs, dys, ys,
):  # fmt: skip
    """Add the gradients of images first .. last - 1, `chunk` at a time; those whose array is empty are not wanted."""
    c, o = x.shape[1], dy.shape[1]
    cg, og, count = c // groups, o // groups, shifts.size
    step = ys.size // max(cg, 1)
    for n in range(first, last, chunk):
        images = min(chunk, last - n)
        for i in range(images):
            mask = y[n + i] if y.size else y[0]
            _lay_gradient(dy[n + i], mask, axes, dy_plane, start, dys, i * o * dy_plane, dbias)
            if dweight.size:
                _lay(x[n + i], axes, plane, xs, i * c * phases * plane)
        if dweight.size:
            for g in range(groups):
                planes_of_x = xs[g * cg * phases * plane :]
                _correlate(
                    dys, g * og * dy_plane + start, dy_plane, o * dy_plane, planes_of_x, c * phases * plane, shifts,
                    images, length, dweight, g * og * count, og,
                )  # fmt: skip
        if dx.size:
            for i in range(images):
                for g in range(groups):
                    for phase in range(phases):
                        tz, _, nz = _span(axes[0], phase // (axes[1, 1] * axes[2, 1]))
                        ty, _, ny = _span(axes[1], phase // axes[2, 1] % axes[1, 1])
                        tx, _, nx = _span(axes[2], phase % axes[2, 1])
                        if nz <= 0 or ny <= 0 or nx <= 0:
                            continue
                        begin = (i * o + g * og) * dy_plane + tz * axes[0, 4] + ty * axes[1, 4] + tx
                        places = (nz - 1) * axes[0, 4] + (ny - 1) * axes[1, 4] + nx
                        taps = phase_shifts[bounds[phase] : bounds[phase + 1]]
                        w0 = g * cg * phase_shifts.size + cg * bounds[phase]
                        _product(dys, begin, taps, weights, w0, ys, step, cg, places)
                        _gather(ys, step, axes, phase, dx[n + i, g * cg : (g + 1) * cg])


class _Layout(NamedTuple):
    """The planes of a convolution with so many channels: what compiled code takes, in its order, then what it does not.

    Attributes
    ----------
    order : the taps of each phase.
    row : places of a row of results.
    number : no other layout has it.
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
    order: tuple[np.ndarray, ...]
    row: int
    number: int


_numbers = itertools.count()


@functools.lru_cache(maxsize=256)
def _layout(axes: tuple[Any, ...], cg: int, og: int) -> _Layout:
    p = planes(axes)
    channels = np.arange(cg)[:, None] * (p.phases * p.plane)
    order = tuple(np.flatnonzero(p.dx_phase == phase) for phase in range(p.phases))
    outputs = np.arange(og)[:, None] * p.dy_plane
    by_phase = [(outputs + p.dx_shifts[taps]).ravel() for taps in order]
    bounds = np.cumsum([0, *map(len, by_phase)])
    longest = max(p.length, int(((p.axes[:, 5] - 1) * p.axes[:, 4]).sum()) + 1)
    return _Layout(
        p.axes, p.plane, p.phases, p.length, (channels + p.x_shifts).ravel(), p.dy_plane, p.dy_start,
        np.concatenate(by_phase).astype(np.int64), bounds.astype(np.int64), order, -(-longest // 16) * 16,
        next(_numbers),
    )  # fmt: skip


def _packed(matrices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Pack matrices (rows, K) one behind the other."""
    packed = np.empty(sum(m.size for m in matrices), matrices[0].dtype)
    at = 0
    for matrix in matrices:
        _pack(matrix, packed, at)
        at += matrix.size
    return packed


def _volume(a: np.ndarray) -> np.ndarray:
    """Give maps of one or two axes leading axes of one pixel, in C order."""
    return np.ascontiguousarray(a).reshape(*a.shape[:2], *(1,) * (5 - a.ndim), *a.shape[2:])


@kernel(np)
def convolution(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int, relu: bool
) -> Any:
    """Convolve, and apply bias and ReLU in the same pass."""
    if x.dtype.itemsize not in (4, 8) or not x.size:
        return NotImplemented
    n, c, o = x.shape[0], x.shape[1], weight.shape[0]
    cg, og, taps = c // groups, o // groups, math.prod(weight.shape[2:])
    f = _layout(axes, cg, og)
    flops = 2 * n * o * f.length * cg * taps
    none, has_bias = np.empty(0, x.dtype), bias is not None
    volume = _volume(x)
    result = np.empty((n, o, *(axis.out for axis in axes)), x.dtype)
    y = result if relu else None  # backward keeps it
    packed = _packed(np.ascontiguousarray(weight).reshape(groups, og, cg * taps))
    count = parts(n, flops / _FLOPS_PER_MICROSECOND)

    def forward(part: int) -> None:
        xs = scratch(f.number, "x", cg * f.phases * f.plane, x.dtype)
        ys = scratch(f.number, "y", og * f.row, x.dtype)
        bounds = n * part // count, n * (part + 1) // count
        _forward(volume, packed, none if bias is None else bias, _volume(result), *f[:5], groups, relu, *bounds, xs, ys)

    parallel(forward, count)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        f = _layout(axes, cg, og)
        most = min(n, max(2, _PARTIAL_BYTES // weight.nbytes))
        count = parts(most, 2 * flops / _FLOPS_PER_MICROSECOND)
        dy_volume, volume = _volume(dy), _volume(x)
        dx = np.empty(x.shape if needs[0] else (0,) * x.ndim, x.dtype)
        dweight = np.zeros((count, weight.size if needs[1] else 0), x.dtype)
        dbias = np.zeros((count, o if needs[2] and has_bias else 0), x.dtype)
        matrices = weight.reshape(groups, og, cg, taps)
        chosen = [matrices[g][..., t].transpose(1, 0, 2).reshape(cg, -1) for g in range(groups) for t in f.order]
        packed = _packed([np.ascontiguousarray(m) for m in chosen]) if needs[0] else np.empty(0, x.dtype)
        mask = np.empty((1, 0, 0, 0, 0), x.dtype) if y is None else _volume(y)
        chunk = max(1, _CHUNK_BYTES // ((c * f.phases * f.plane + o * f.dy_plane) * x.itemsize))

        def part_gradients(part: int) -> None:
            xs = scratch(f.number, "x chunk", chunk * c * f.phases * f.plane, x.dtype)
            dys = scratch(f.number, "dy", chunk * o * f.dy_plane, x.dtype)
            ys = scratch(f.number, "dx", cg * f.row, x.dtype)
            bounds = n * part // count, n * (part + 1) // count
            _backward(
                volume, dy_volume, mask, packed, _volume(dx), dweight[part], dbias[part], *f[:9], groups, *bounds,
                chunk, xs, dys, ys,
            )  # fmt: skip

        parallel(part_gradients, count)
        return (
            dx if needs[0] else None,
            dweight.sum(axis=0).reshape(weight.shape) if needs[1] else None,
            dbias.sum(axis=0) if dbias.size else None,
        )

    return result, backward

"""Convolution in plain NumPy, by im2col and matrix products, where there is no Numba.

The same three products as in `xcnn/ops/conv.py`, but of so few images, or rows of one image, at a time that their
columns stay in the second-level cache; bias and ReLU are applied while the products are there, too. Images are shared
out to the threads. So BLAS has to be held to one: its own would spend their time waiting for each other.

Names: m images of a tile; cg, og channels of one of g groups; K kernel positions, L outputs.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._scratch import scratch
from xcnn.threads import blas_is_held, parallel, parts

__all__ = ["convolution"]

_TILE_BYTES = 512 * 1024
"""Columns that are made, and used, together."""

_COPIED, _MULTIPLIED = 2_000, 40_000
"""Numbers that a core copies into columns, and that it multiplies and adds, in a microsecond."""

_OWNER = -1  # of scratch arrays; all that is read from them was written in the same call


def _tiles(n: int, c: int, axes: tuple[Any, ...], itemsize: int) -> Iterator[tuple[slice, int, int]]:
    """Cut a batch into tiles whose columns fit the cache: images, and their first row of outputs and the one behind."""
    height = axes[0].out
    row = c * math.prod(a.kernel for a in axes) * math.prod(a.out for a in axes[1:]) * itemsize
    images, rows = max(1, _TILE_BYTES // (row * height)), max(1, min(height, _TILE_BYTES // row))
    for i, top in itertools.product(range(0, n, images), range(0, height, rows)):
        yield slice(i, min(i + images, n)), top, min(top + rows, height)


def _places(axes: tuple[Any, ...], top: int, bottom: int) -> slice:
    row = math.prod(a.out for a in axes[1:])
    return slice(top * row, bottom * row)


def _inside(axes: tuple[Any, ...]) -> tuple[Any, ...]:
    return (..., *(slice(a.before, a.before + a.size) for a in axes))


def _zeros(m: int, c: int, axes: tuple[Any, ...], dtype: Any) -> np.ndarray:
    """Give zeros in place of m images with their padding."""
    shape = m, c, *(a.padded for a in axes)
    padded = scratch(_OWNER, "padded", math.prod(shape), dtype).reshape(shape)
    padded.fill(0)
    return padded


def _padded(x: np.ndarray, axes: tuple[Any, ...]) -> np.ndarray:
    if not any(a.before or a.after for a in axes):
        return x
    padded = _zeros(x.shape[0], x.shape[1], axes, x.dtype)
    padded[_inside(axes)] = x
    return padded


def _windows(padded: np.ndarray, axes: tuple[Any, ...], top: int, bottom: int) -> np.ndarray:
    """View the windows of some rows of outputs as (m, c, *kernel, *outs)."""
    (m, c), steps = padded.shape[:2], padded.strides[2:]
    return np.ndarray(
        (m, c, *(a.kernel for a in axes), bottom - top, *(a.out for a in axes[1:])),
        padded.dtype,
        padded,
        top * axes[0].stride * steps[0],
        (
            *padded.strides[:2],
            *(a.dilation * step for a, step in zip(axes, steps, strict=True)),
            *(a.stride * step for a, step in zip(axes, steps, strict=True)),
        ),
    )


def _columns(x: np.ndarray, axes: tuple[Any, ...], g: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Give, tile by tile, the images, the outputs and their columns (m, g, cg K, L), which the next tile overwrites."""
    padded = x
    for images, top, bottom in _tiles(x.shape[0], x.shape[1], axes, x.itemsize):
        if top == 0:
            padded = _padded(x[images], axes)
        columns = windows = _windows(padded, axes, top, bottom)
        if not windows.flags.c_contiguous:  # as those of a kernel of one pixel are
            columns = scratch(_OWNER, "columns", windows.size, x.dtype).reshape(windows.shape)
            np.copyto(columns, windows)
        places = _places(axes, top, bottom)
        yield images, places, columns.reshape(len(columns), g, -1, places.stop - places.start)


def _convolve(
    x: np.ndarray, matrix: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], relu: bool, y: np.ndarray
) -> None:
    """Set y (n, g, og, L) to the products of a matrix (g, og, cg K) and the columns of x."""
    for images, places, columns in _columns(x, axes, len(matrix)):
        part = y[images, ..., places]
        np.matmul(matrix, columns, out=part)
        if bias is not None:
            part += bias
        if relu:
            np.maximum(part, 0, out=part)


def _add_weight_gradient(x: np.ndarray, dy: np.ndarray, axes: tuple[Any, ...], dweight: np.ndarray) -> None:
    """Add the products of dy (n, g, og, L) and the columns of x to dweight (g, og, cg K)."""
    for images, places, columns in _columns(x, axes, len(dweight)):
        m = len(columns)
        products = scratch(_OWNER, "products", m * dweight.size, x.dtype).reshape(m, *dweight.shape)
        np.matmul(dy[images, ..., places], columns.swapaxes(-1, -2), out=products)
        for product in products:
            dweight += product


def _spread(dy: np.ndarray, matrix: np.ndarray, axes: tuple[Any, ...], dx: np.ndarray) -> None:
    """Add the columns that are the products of a matrix (g, cg K, og) and dy (n, g, og, L) up to the pixels of dx."""
    c = dx.shape[1]
    padded = dx
    for images, top, bottom in _tiles(len(dx), c, axes, dx.itemsize):
        m = len(dx[images])
        if top == 0:
            padded = _zeros(m, c, axes, dx.dtype)
        some = replace(axes[0], out=bottom - top), *axes[1:]
        shape = m, c, math.prod(a.kernel for a in axes), *(a.out for a in some)
        columns = scratch(_OWNER, "columns", math.prod(shape), dx.dtype)
        np.matmul(matrix, dy[images, ..., _places(axes, top, bottom)], out=columns.reshape(m, *matrix.shape[:2], -1))
        columns = columns.reshape(shape)
        below = padded[:, :, top * axes[0].stride :]
        for k, position in enumerate(itertools.product(*(range(a.kernel) for a in axes))):
            below[(..., *(a.tap(i) for a, i in zip(some, position, strict=True)))] += columns[:, :, k]
        if bottom == axes[0].out:
            dx[images] = padded[_inside(axes)]


def _mirrored(axes: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Give the windows of dy whose products with the flipped kernel are the input gradient, where there are any."""
    before = [a.extent - 1 - a.before for a in axes]
    after = [a.extent - 1 - a.after for a in axes]
    if any(a.stride > 1 for a in axes) or min(before + after) < 0:
        return None
    return tuple(
        replace(a, size=a.out, out=a.size, before=b, after=e) for a, b, e in zip(axes, before, after, strict=True)
    )


@kernel(np)
def convolution(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int, relu: bool
) -> Any:
    """Convolve, and apply bias and ReLU to each tile."""
    if not x.size or not blas_is_held():
        return NotImplemented
    n, c, o = x.shape[0], x.shape[1], weight.shape[0]
    g, cg, og, k = groups, c // groups, o // groups, math.prod(weight.shape[2:])
    outs = tuple(a.out for a in axes)
    numbers = n * c * k * math.prod(outs)
    microseconds = numbers / _COPIED + numbers * og / _MULTIPLIED
    images = next(_tiles(n, c, axes, x.itemsize))[0].stop
    has_bias = bias is not None

    def cut(microseconds: float) -> list[slice]:
        count = parts(-(-n // images), microseconds)
        return [slice(n * part // count, n * (part + 1) // count) for part in range(count)]

    pixels = np.ascontiguousarray(x)
    result = np.empty((n, o, *outs), x.dtype)
    products = result.reshape(n, g, og, -1)
    matrix = weight.reshape(g, og, cg * k)
    shift = None if bias is None else bias.reshape(g, og, 1)
    y = result if relu else None  # backward keeps it
    slices = cut(microseconds)
    parallel(
        lambda part: _convolve(pixels[slices[part]], matrix, shift, axes, relu, products[slices[part]]), len(slices)
    )

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        need_dx, need_dweight, need_dbias = needs[0], needs[1], needs[2] and has_bias
        pixels, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy).reshape(n, g, og, -1)
        mask = None if y is None else y.reshape(dy.shape)
        mirrored = _mirrored(axes)
        if mirrored is not None and o * math.prod(a.size for a in axes) > c * math.prod(outs):
            mirrored = None
        matrices = weight.reshape(g, og, cg, k)
        flipped = np.ascontiguousarray(matrices[..., ::-1].swapaxes(1, 2)).reshape(g, cg, og * k)
        transposed = weight.reshape(g, og, cg * k).swapaxes(1, 2)
        slices = cut(2 * microseconds)
        dx = np.empty(x.shape, x.dtype) if need_dx else None
        dweight = np.zeros((len(slices), g, og, cg * k), x.dtype)
        dbias = np.zeros((len(slices), g, og), x.dtype)

        def gradients(part: int) -> None:
            for i in range(slices[part].start, slices[part].stop, images):
                some = slice(i, min(i + images, slices[part].stop))
                d = dy[some]
                if mask is not None:
                    d = scratch(_OWNER, "dy", d.size, d.dtype).reshape(d.shape)
                    np.multiply(dy[some], mask[some] != 0, out=d)
                if need_dbias:
                    dbias[part] += d.sum(axis=(0, 3))
                if need_dweight:
                    _add_weight_gradient(pixels[some], d, axes, dweight[part])
                if dx is not None and mirrored is not None:
                    _convolve(
                        d.reshape(-1, o, *outs), flipped, None, mirrored, False, dx[some].reshape(len(d), g, cg, -1)
                    )
                elif dx is not None:
                    _spread(d, transposed, axes, dx[some])

        parallel(gradients, len(slices))
        return (
            dx,
            dweight.sum(axis=0).reshape(weight.shape) if need_dweight else None,
            dbias.sum(axis=0).reshape(o) if need_dbias else None,
        )

    return result, backward

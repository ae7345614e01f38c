"""Convolution in plain NumPy, by im2col and matrix products, for use without llvmlite.

The same three products as in `xcnn/ops/conv.py`, but of so few images, or rows of one image, at a time that their
columns stay in the second-level cache; bias and ReLU are applied while the products are in the cache, too. Images are
distributed over threads, and BLAS uses one.

A part is a slice of images that depends on shapes alone; the weight gradients of the parts are summed in order.

Names: m images of a tile; cg, og channels of one of g groups; K kernel positions, L outputs.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xcnn._array import sum_over
from xcnn._dispatch import kernel
from xcnn.kernels.cpu._blas import one_blas_thread
from xcnn.kernels.cpu._scratch import scratch
from xcnn.threads import parallel, parts

__all__ = ["conv", "conv_transpose"]

_TILE_BYTES = 1 << 20
"""Size of the columns that are built and used together."""

_LEAST_MICROSECONDS = 50
"""Shorter work is left to the portable code: its columns fit the cache anyway."""

_COPIED, _MULTIPLIED = 2_000, 40_000
"""Numbers that a core copies into columns, and that it multiplies and adds, in a microsecond."""

_OWNER = -1  # of scratch arrays, which are always written before they are read in a call


def _tiles(n: int, c: int, axes: tuple[Any, ...], itemsize: int) -> Iterator[tuple[slice, int, int]]:
    """Yield tiles whose columns fit the cache: images, the first row of outputs and the end."""
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
    """Return zeros of the shape of m padded images."""
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
    """Yield, tile by tile, images, outputs and columns (m, g, cg K, L), which the next tile overwrites."""
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


@functools.lru_cache(maxsize=256)
def _taps(axes: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    positions = itertools.product(*(range(a.kernel) for a in axes))
    return tuple((..., *(a.tap(i) for a, i in zip(axes, position, strict=True))) for position in positions)


def _multiply(
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


def _add_products(x: np.ndarray, dy: np.ndarray, axes: tuple[Any, ...], dweight: np.ndarray) -> None:
    """Add the products of dy (n, g, og, L) and the columns of x to dweight (g, og, cg K)."""
    for images, places, columns in _columns(x, axes, len(dweight)):
        m = len(columns)
        products = scratch(_OWNER, "products", m * dweight.size, x.dtype).reshape(m, *dweight.shape)
        np.matmul(dy[images, ..., places], columns.swapaxes(-1, -2), out=products)
        dweight += sum_over(np, products, (0,))


def _add_up(dy: np.ndarray, matrix: np.ndarray, axes: tuple[Any, ...], dx: np.ndarray) -> None:
    """Set dx to the products of a matrix (g, cg K, og) and dy (n, g, og, L), columns that are added to its pixels."""
    c, padded = dx.shape[1], dx
    for images, top, bottom in _tiles(len(dx), c, axes, dx.itemsize):
        m = len(dx[images])
        if top == 0:
            padded = _zeros(m, c, axes, dx.dtype)
        some = axes[0]._replace(out=bottom - top), *axes[1:]
        taps, places = _taps(some), _places(axes, top, bottom)
        shape = m, c, len(taps), *(a.out for a in some)
        columns = scratch(_OWNER, "columns", math.prod(shape), dx.dtype)
        np.matmul(matrix, dy[images, ..., places], out=columns.reshape(m, *matrix.shape[:2], -1))
        columns = columns.reshape(shape)
        rows = padded[:, :, top * axes[0].stride :]
        for k, tap in enumerate(taps):
            rows[tap] += columns[:, :, k]
        if bottom == axes[0].out:
            dx[images] = padded[_inside(axes)]


def _mirrored(axes: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the windows of dy whose products with the flipped kernel are the input gradient, or None."""
    before = [a.extent - 1 - a.before for a in axes]
    after = [a.size + a.extent - 1 - a.out - b for a, b in zip(axes, before, strict=True)]
    if any(a.stride > 1 for a in axes) or min(before + after) < 0:
        return None
    return tuple(
        a._replace(size=a.out, out=a.size, before=b, after=e) for a, b, e in zip(axes, before, after, strict=True)
    )


class _Products:
    """The three products of one convolution: of the columns of x (n, c, *sizes) with weight (o, cg, *kernel)."""

    def __init__(self, n: int, weight: np.ndarray, axes: tuple[Any, ...], g: int) -> None:
        self.n, self.axes, self.g = n, axes, g
        self.o, self.cg, self.k = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
        self.c, self.og = self.cg * g, self.o // g
        self.sizes, self.outs = (tuple(a.size for a in axes), tuple(a.out for a in axes))
        numbers = n * self.c * self.k * math.prod(self.outs)
        self.microseconds = numbers / _COPIED + numbers * self.og / _MULTIPLIED
        self.images = next(_tiles(n, self.c, axes, weight.itemsize))[0].stop

    def share(self, task: Callable[[int, slice], object]) -> None:
        """Call `task(part, its images)` for every part of the batch."""
        count = self.parts
        with one_blas_thread:
            parallel(lambda part: task(part, slice(self.n * part // count, self.n * (part + 1) // count)), count)

    @property
    def parts(self) -> int:
        return parts(-(-self.n // self.images), self.microseconds)

    def y(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, relu: bool = False) -> np.ndarray:
        x, y = np.ascontiguousarray(x), np.empty((self.n, self.o, *self.outs), x.dtype)
        products = y.reshape(self.n, self.g, self.og, -1)
        matrix = weight.reshape(self.g, self.og, -1)
        column = None if bias is None else bias.reshape(self.g, self.og, 1)
        self.share(lambda _, some: _multiply(x[some], matrix, column, self.axes, relu, products[some]))
        return y

    def dx(self, dy: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """Return the input gradient; plus a bias, it is a transposed convolution."""
        dy, dx = np.ascontiguousarray(dy), np.empty((self.n, self.c, *self.sizes), dy.dtype)
        mirrored = _mirrored(self.axes)
        moved = self.o * math.prod(self.sizes) if self.k > 1 else 0
        if mirrored is not None and moved <= self.c * math.prod(self.outs):
            flipped = weight.reshape(self.g, self.og, self.cg, self.k)[..., ::-1].swapaxes(1, 2)
            matrix = np.ascontiguousarray(flipped).reshape(self.g, self.cg, -1)
            column = None if bias is None else bias.reshape(self.g, self.cg, 1)
            products = dx.reshape(self.n, self.g, self.cg, -1)
            self.share(lambda _, some: _multiply(dy[some], matrix, column, mirrored, False, products[some]))
            return dx
        transposed = weight.reshape(self.g, self.og, -1).swapaxes(1, 2)
        rows = dy.reshape(self.n, self.g, self.og, -1)
        self.share(lambda _, some: _add_up(rows[some], transposed, self.axes, dx[some]))
        if bias is not None:
            dx += bias.reshape(-1, *(1,) * len(self.axes))
        return dx

    def dweight(self, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        x, rows = np.ascontiguousarray(x), np.ascontiguousarray(dy).reshape(self.n, self.g, self.og, -1)
        sums = np.zeros((self.parts, self.g, self.og, self.cg * self.k), x.dtype)
        self.share(lambda part, some: _add_products(x[some], rows[some], self.axes, sums[part]))
        dweight: np.ndarray = np.sum(sums, axis=0)
        return dweight.reshape(self.o, self.cg, *(a.kernel for a in self.axes))


def _products(x: np.ndarray, weight: np.ndarray, axes: tuple[Any, ...], groups: int) -> _Products | None:
    """Return the products, or None if the portable code is as fast."""
    if not x.size:
        return None
    products = _Products(len(x), weight, axes, groups)
    return products if products.microseconds >= _LEAST_MICROSECONDS else None


def _dbias(dy: np.ndarray) -> np.ndarray:
    dbias: np.ndarray = sum_over(np, dy, (0, *range(2, dy.ndim)))
    return dbias


@kernel(np)
def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    axes: tuple[Any, ...],
    groups: int,
    activation: tuple[Any, ...] | None,
) -> Any:
    """Convolve, and apply bias and ReLU to each tile."""
    products, has_bias, relu = _products(x, weight, axes, groups), bias is not None, activation is not None
    if products is None or activation not in (None, ("relu",)):
        return NotImplemented
    result = products.y(x, weight, bias, relu)
    y = result if relu else None  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if y is not None:
            given, dy = dy, np.empty(y.shape, y.dtype)
            products.share(lambda _, some: np.multiply(given[some], y[some] != 0, out=dy[some]))
        return (
            products.dx(dy, weight) if needs[0] else None,
            products.dweight(x, dy) if needs[1] else None,
            _dbias(dy) if needs[2] and has_bias else None,
        )

    return result, backward


@kernel(np)
def conv_transpose(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int
) -> Any:
    """Convolve with x and y exchanged."""
    products, has_bias = _products(x, weight, axes, groups), bias is not None
    if products is None:
        return NotImplemented

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        return (
            products.y(dy, weight) if needs[0] else None,
            products.dweight(dy, x) if needs[1] else None,
            _dbias(dy) if needs[2] and has_bias else None,
        )

    return products.dx(x, weight, bias), backward

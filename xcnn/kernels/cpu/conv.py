"""Convolution on the CPU without columns: products of the weights with shifted planes, and what follows in one pass.

A few images at a time are laid out, multiplied strip by strip and written while the strip is in the nearest cache;
there, bias, batch norm, residual and activation are applied (`_convolve.py`). The input gradient is done in the same
way, with the weights read where they lie, and is also the transposed convolution. The work is distributed over threads.

An infinite weight times padding is NaN, as with im2col. An input gradient pads dy with zeros, too, so there an infinite
weight makes more NaN than portable code does.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._convolve import convolve, folded
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import cleared, scratch
from xcnn.kernels.cpu._share import binding, plain, supports, whole
from xcnn.kernels.cpu._stacks import plan
from xcnn.kernels.cpu._sums import channel_sums
from xcnn.kernels.cpu._winograd import in_tiles, tiles
from xcnn.kernels.cpu.elementwise import applying, clamp, sloping
from xcnn.kernels.cpu.weight_gradients import weight_gradients
from xcnn.threads import parallel

__all__ = ["conv", "conv_inference", "conv_transpose"]

_UNLIMITED = -np.inf, np.inf

_MOST_SKIPPED = 4
"""The largest number of pixels of x between windows, per kernel position, that are laid out."""


def _skips(axes: tuple[Any, ...]) -> bool:
    """Return whether strides pass over most pixels: laying out pixels outside all windows would be wasted work."""
    return bool(math.prod(axis.stride for axis in axes) > _MOST_SKIPPED * math.prod(axis.kernel for axis in axes))


@functools.cache
def _calls(itemsize: int) -> tuple[int, ...]:
    return tuple(function.address(itemsize) for function in (multiply, every, affine))


def _bound(
    n: int, dtype: Any, weights: tuple[int, ...], axes: tuple[Any, ...], groups: int,
    activation: tuple[Any, ...] | None, bare: bool, transposed: bool = False, steady: bool = False,
) -> Any:  # fmt: skip
    """Return a function `(x, weight, scale, shift, residual)` for n images, and weights of a shape.

    It returns `activation(convolution * scale + shift + residual)`; scale and shift are of output channels. If it is
    transposed, it is the input gradient of the convolution with these axes, and has no activation. It is bare if
    there is nothing but x and weight. If it is steady, an image has the same result, bit for bit, in every batch. The
    result is NotImplemented if an array is not plain.
    """
    size, limits = dtype.itemsize, clamp(activation)
    ends, apply = limits or _UNLIMITED, None if activation is None or limits else applying(activation, size)
    if depthwise.pays(weights, groups, size):
        o, sizes = weights[0], [axis.size if transposed else axis.out for axis in axes]
        shape: tuple[int, ...] = (n, groups if transposed else o, *sizes)

        def by_channels(*arrays: Any) -> np.ndarray:
            y = np.empty(shape, dtype)
            depthwise.convolve(y, [*map(plain, arrays)], ends, axes, o, groups, transposed)
            if apply is not None:
                apply(y, y, serial=False)
            return y

        return by_channels
    bare = bare and (activation is None or not limits)
    f = plan(axes, n, weights, groups, size, transposed, bare)
    call, head, middle = convolve(size), _calls(size), (*ends, bare)
    near = apply is not None and f.pieces >= f.parts  # a piece is some images, and still in the cache after that
    shape, pieces, tables, whole = (n, *f.shape), f.pieces if near else f.parts, f.tables, (f.tables, 0, f.jobs)

    def room() -> tuple[np.ndarray, np.ndarray]:
        planes = cleared(f.number, "planes", f.planes, dtype) if f.keeps else scratch(-1, "band", f.planes, dtype)
        return planes, scratch(-1, "sums", f.sums, dtype)

    def run(*arrays: Any) -> Any:
        y = np.empty(shape, dtype)
        if pieces == 1:
            if call(*head, *arrays, *middle, y, *whole, *room()) is NotImplemented:
                return NotImplemented
            if apply is not None:
                apply(y, y)
            return y
        fixed = (*head, *map(plain, arrays), *middle, y, tables)

        def some(part: int) -> None:
            memory = room()
            for piece in range(pieces * part // f.parts, pieces * (part + 1) // f.parts):
                call(*fixed, f.jobs * piece // pieces, f.jobs * (piece + 1) // pieces, *memory)
                if near and apply is not None:
                    images = y[n * piece // pieces : n * (piece + 1) // pieces]
                    apply(images, images)

        parallel(some, f.parts)
        if not near and apply is not None:
            apply(y, y, serial=False)
        return y

    fast = tiles(axes, n, weights, groups, size, transposed, steady)
    if fast is None:
        return run

    def by_tiles(*arrays: Any) -> Any:
        y = in_tiles(fast, n, [*map(plain, arrays)], ends, bare)
        if y is not None and apply is not None:
            apply(y, y, serial=False)
        return run(*arrays) if y is None else y

    return by_tiles


@whole()
def conv(
    x: np.ndarray, weight: np.ndarray, bias: Any, axes: tuple[Any, ...], groups: int, activation: tuple[Any, ...] | None
) -> Any:
    """Convolve, with bias and activation in the same pass."""
    if not supports(x) or _skips(axes):
        return NotImplemented
    n, dtype, weights = x.shape[0], x.dtype, weight.shape
    call = _bound(n, dtype, weights, axes, groups, activation, bare=bias is None)
    back = functools.cache(lambda: _bound(n, dtype, weights, axes, groups, None, bare=True, transposed=True))
    gradients = functools.cache(lambda: weight_gradients(n, dtype, weights, axes, groups))
    slope = sloping(activation, dtype.itemsize)

    def run(x: np.ndarray, weight: np.ndarray, bias: Any, *_: Any) -> Any:
        result = call(plain(x), plain(weight), None, bias, None)
        if result is NotImplemented:
            return NotImplemented
        y, has_bias = None if slope is None else result, bias is not None  # backward keeps y

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            dy = plain(dy)  # once for all gradients
            if slope is not None:
                above, dy = dy, np.empty(dy.shape, dtype)
                slope(dy, y, above, serial=False)
            return (
                back()(dy, plain(weight), None, None, None) if needs[0] else None,
                gradients()(plain(x), dy) if needs[1] else None,
                channel_sums(dy) if needs[2] and has_bias else None,
            )

        return result, backward

    return run


@binding
def conv_inference(
    x: np.ndarray, weight: np.ndarray, bias: Any, norm: Any, residual: Any, activation: Any, axes: Any, groups: int
) -> Any:
    """Convolve, and apply what follows in the same pass."""
    if not supports(x):
        return NotImplemented
    dtype, bare = x.dtype, bias is None and norm is None and residual is None
    call = _bound(x.shape[0], dtype, weight.shape, axes, groups, activation, bare, steady=True)

    def run(x: Any, weight: Any, bias: Any, norm: Any, residual: Any, *_: Any) -> Any:
        scale, shift = (None, bias) if norm is None else folded(bias, norm, dtype)
        return call(x, weight, scale, shift, residual)

    return run


def _bind_transposed(x: np.ndarray, weight: np.ndarray, bias: Any, axes: tuple[Any, ...], groups: int) -> Any:
    """Bind `conv_transpose` where nothing is kept."""
    if not supports(x) or _skips(axes):
        return NotImplemented
    call = _bound(x.shape[0], x.dtype, weight.shape, axes, groups, None, bare=bias is None, transposed=True)
    return lambda x, weight, bias, *_: call(x, weight, None, bias, None)


@whole(_bind_transposed)
def conv_transpose(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int
) -> Any:
    """Spread x over the kernels: this is the input gradient of the convolution with these axes."""
    if not supports(x) or _skips(axes):
        return NotImplemented
    n, dtype, weights = x.shape[0], x.dtype, weight.shape
    call = _bound(n, dtype, weights, axes, groups, None, bare=bias is None, transposed=True)
    back = functools.cache(lambda: _bound(n, dtype, weights, axes, groups, None, bare=True))
    gradients = functools.cache(lambda: weight_gradients(n, dtype, weights, axes, groups))

    def run(x: np.ndarray, weight: np.ndarray, bias: Any, *_: Any) -> Any:
        result, has_bias = call(plain(x), plain(weight), None, bias, None), bias is not None
        if result is NotImplemented:
            return NotImplemented

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            dy = plain(dy)
            dx = back()(dy, plain(weight), None, None, None) if needs[0] else None
            dweight = gradients()(dy, plain(x)) if needs[1] else None
            return dx, dweight, channel_sums(dy) if needs[2] and has_bias else None

        return result, backward

    return run

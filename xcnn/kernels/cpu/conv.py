"""Convolution on the CPU without columns: products of the weights with shifted planes, and what follows in one pass.

A few images at a time are laid out, multiplied strip by strip and written while the strip is in the nearest cache;
there, bias, batch norm, residual and activation are applied (`_convolve.py`). The input gradient is done in the same
way, with the weights read where they lie, and is also the transposed convolution. The work is distributed over threads.

Lines that are laid out have zeros between them, and an infinite weight times 0 is NaN, as with im2col.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._convolve import convolve, fold
from xcnn.kernels.cpu._layout import skips
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import cleared, scratch
from xcnn.kernels.cpu._share import plain, supports
from xcnn.kernels.cpu._stacks import plan
from xcnn.kernels.cpu._sums import channel_sums
from xcnn.kernels.cpu.elementwise import clamp, gradient, in_place
from xcnn.kernels.cpu.weight_gradients import weight_gradients
from xcnn.threads import parallel

__all__ = ["conv", "conv_inference", "conv_transpose"]

_UNLIMITED = -np.inf, np.inf


@functools.cache
def _calls(itemsize: int) -> tuple[int, ...]:
    return tuple(function.address(itemsize) for function in (multiply, every, affine))


def _convolution(
    x: np.ndarray,
    weight: np.ndarray,
    axes: tuple[Any, ...],
    groups: int,
    scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    activation: tuple[Any, ...] | None = None,
    transposed: bool = False,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return `activation(convolution * scale + shift + residual)`; scale and shift are of output channels.

    If it is transposed, it is the input gradient of the convolution with these axes, and has no activation. Where the
    mask is 0, x counts as 0.
    """
    n, dtype, size = x.shape[0], x.dtype, x.itemsize
    limits = clamp(activation)
    arrays = [plain(a) for a in (x, mask, weight, scale, shift, residual)]
    ends = limits or _UNLIMITED
    if depthwise.pays(weight.shape, groups, size):
        sizes = [axis.size if transposed else axis.out for axis in axes]
        y = np.empty((n, groups if transposed else weight.shape[0], *sizes), dtype)
        depthwise.convolve(y, arrays, ends, axes, weight.shape[0], groups, transposed)
        if limits is None:
            in_place(activation, y, serial=False)
        return y
    f = plan(axes, n, weight.shape, groups, size, transposed, mask is not None)
    y = np.empty((n, *f.shape), dtype)
    bare = scale is None and shift is None and residual is None and (activation is None or limits is None)
    fixed = (*_calls(size), *arrays, *ends, bare, y, f.tables)
    near = limits is None and f.pieces >= f.parts  # a piece is some images, and still in the cache after that
    pieces, run = f.pieces if near else f.parts, convolve(size)

    def some(part: int) -> None:
        planes = cleared(f.number, "planes", f.planes, dtype) if f.keeps else scratch(-1, "band", f.planes, dtype)
        sums = scratch(-1, "sums", f.sums, dtype)
        for piece in range(pieces * part // f.parts, pieces * (part + 1) // f.parts):
            run(*fixed, f.jobs * piece // pieces, f.jobs * (piece + 1) // pieces, planes, sums)
            if near:
                in_place(activation, y[n * piece // pieces : n * (piece + 1) // pieces])

    parallel(some, f.parts)
    if not near and limits is None:
        in_place(activation, y, serial=False)
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
    """Convolve, with bias and activation in the same pass."""
    if not supports(x) or skips(axes):
        return NotImplemented
    has_bias = bias is not None
    result = _convolution(x, weight, axes, groups, shift=bias, activation=activation)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        mask, dy = y, plain(dy)  # once for all gradients
        if y is not None and activation != ("relu",):
            above, dy, mask = dy, np.empty(y.shape, y.dtype), None
            gradient(activation, y, above, dy, serial=False)
        return (
            _convolution(dy, weight, axes, groups, transposed=True, mask=mask) if needs[0] else None,
            weight_gradients(x, dy, mask, weight, axes, groups) if needs[1] else None,
            channel_sums(dy, mask) if needs[2] and has_bias else None,
        )

    return result, backward


@kernel(np)
def conv_inference(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    norm: tuple[Any, ...] | None,
    residual: np.ndarray | None,
    activation: tuple[Any, ...] | None,
    axes: tuple[Any, ...],
    groups: int,
) -> Any:
    """Convolve, and apply what follows in the same pass."""
    if not supports(x):
        return NotImplemented
    scale, shift = None, bias
    if norm is not None:
        scale, shift = np.empty((2, weight.shape[0]), x.dtype)
        fold(x.itemsize)(*map(plain, (bias, *norm[:4])), norm[4], scale, shift, scale.size)
    return _convolution(x, weight, axes, groups, scale, shift, residual, activation)


@kernel(np)
def conv_transpose(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int
) -> Any:
    """Spread x over the kernels: this is the input gradient of the convolution with these axes."""
    if not supports(x) or skips(axes):
        return NotImplemented
    has_bias = bias is not None

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dy = plain(dy)
        dx = _convolution(dy, weight, axes, groups) if needs[0] else None
        dweight = weight_gradients(dy, x, None, weight, axes, groups) if needs[1] else None
        dbias = channel_sums(dy) if needs[2] and has_bias else None
        return dx, dweight, dbias

    return _convolution(x, weight, axes, groups, shift=bias, transposed=True), backward

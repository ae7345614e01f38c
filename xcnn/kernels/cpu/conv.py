"""Convolution on the CPU without columns: products of the weights with shifted planes, and what follows in one pass.

A few images at a time are laid out (`_stacks.py`), multiplied strip by strip (`_product.py`) and written while the
strip is in the nearest cache; there, bias, batch norm, residual and activation are applied (`_forward.py`). The work is
distributed over threads. `conv_gradients.py` has the gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._depthwise_forward import depthwise, depthwise_pays, tables
from xcnn.kernels.cpu._forward import convolve, fold, lay
from xcnn.kernels.cpu._layout import skips
from xcnn.kernels.cpu._moves import affine, every, lanes_product
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import flat, share, supports
from xcnn.kernels.cpu._stacks import stacks
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu.conv_gradients import conv_gradients
from xcnn.kernels.cpu.elementwise import clamp, gradient, in_place
from xcnn.threads import parallel, parts

__all__ = ["conv", "conv_inference", "convolution"]

_UNLIMITED = -np.inf, np.inf
_ONE, _ZERO = ({size: np.full(1, value, f"f{size}") for size in (4, 8)} for value in (1, 0))


@functools.cache
def _calls(itemsize: int) -> np.ndarray:
    return np.array([function.address(itemsize) for function in (lay, every, multiply, affine)], np.int64)


@functools.cache
def _lane_calls(itemsize: int) -> tuple[int, ...]:
    return tuple(function.address(itemsize) for function in (affine, transpose, lanes_product))


def convolution(
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    residual: np.ndarray | None,
    activation: tuple[Any, ...] | None,
    axes: tuple[Any, ...],
    groups: int,
) -> np.ndarray:
    """Return `activation(convolution * scale + shift + residual)`; scale and shift are of output channels."""
    n, dtype, size = x.shape[0], x.dtype, x.itemsize
    limits = clamp(activation)
    ends = _UNLIMITED if limits is None else limits
    y = np.empty((n, weight.shape[0], *[axis.out for axis in axes]), dtype)
    arrays = (
        flat(x, size),
        flat(weight, size),
        _ONE[size] if scale is None else scale,
        _ZERO[size] if shift is None else flat(shift, size),
        flat(residual, size),
    )
    function: Any
    fixed: tuple[Any, ...]
    if depthwise_pays(weight.shape, groups, size):
        lanes = tables(axes, weight.shape, groups, size)
        jobs, owner, room, microseconds = n * lanes.jobs, lanes.number, lanes.scratch, n * lanes.microseconds
        function, fixed, pieces = depthwise, (*_lane_calls(size), *arrays, *ends, y.reshape(-1), *lanes[:5], n), 1
    else:
        layout, jobs, room, microseconds, pieces = stacks(axes, n, weight.shape, groups, size)
        function, owner, fixed = convolve, -1, (_calls(size), *arrays, *ends, y.reshape(-1), layout)
    count = parts(jobs, microseconds)
    near = limits is None and pieces >= count  # a piece is some images, and still in the cache after that
    pieces = pieces if near else count

    def some(part: int) -> None:
        memory = scratch(owner, "planes", room, dtype)
        for piece in range(pieces * part // count, pieces * (part + 1) // count):
            function(*fixed, jobs * piece // pieces, jobs * (piece + 1) // pieces, memory)
            if near:
                in_place(activation, y[n * piece // pieces : n * (piece + 1) // pieces])

    parallel(some, count)
    if limits is None and not near:
        numbers = y.reshape(-1)
        share(lambda begin, end: in_place(activation, numbers[begin:end]), 4 * y.size, n=y.size)
    return y


def _masked(activation: tuple[Any, ...], y: np.ndarray, dy: np.ndarray, dx: np.ndarray, begin: int, end: int) -> None:
    gradient(activation, y[begin:end], dy[begin:end], dx[begin:end])


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
    result = convolution(x, weight, None, bias, None, activation, axes, groups)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        mask = y
        if y is not None and activation != ("relu",):
            masked, mask = np.empty(y.shape, y.dtype), None
            arrays = (a.reshape(-1) for a in (y, np.ascontiguousarray(dy), masked))
            share(_masked, 4 * y.size, activation, *arrays, n=y.size)
            dy = masked
        return conv_gradients(x, dy, mask, weight, axes, groups, (needs[0], needs[1], needs[2] and has_bias))

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
        fold(*(flat(a, x.itemsize) for a in (bias, *norm[:4])), norm[4], scale, shift)
    return convolution(x, weight, scale, shift, residual, activation, axes, groups)

"""Dropout with a mask of bytes. The numbers of a large mask are drawn in several threads, each from its own place."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import contiguous, share, supports
from xcnn.threads import parallel

__all__ = ["dropout"]

_PART = 1 << 16
"""Numbers that a thread draws at once; an even number."""

_BLOCK = 1 << 14
"""Numbers that are drawn before they are used, so that they are still in the cache."""

_local = threading.local()


@compiled
def _drop(numbers, p, scale, x, mask, y, first):
    zero = y.dtype.type(0)
    x, mask, y = x[first : first + numbers.size], mask[first : first + numbers.size], y[first : first + numbers.size]
    for i in range(numbers.size):
        mask[i] = numbers[i] >= p
        y[i] = x[i] * (scale if numbers[i] >= p else zero)


@compiled
def _drop_gradient(dy, mask, scale, dx, begin, end):
    zero = dx.dtype.type(0)
    dy, mask, dx = dy[begin:end], mask[begin:end], dx[begin:end]
    for i in range(dy.size):
        dx[i] = dy[i] * (scale if mask[i] else zero)


def _draw(generator: np.random.Generator, begin: int, end: int, *arguments: Any) -> None:
    """Drop the elements begin .. end - 1 according to the next numbers of a generator."""
    numbers = np.empty(min(end - begin, _BLOCK), np.float32)
    for first in range(begin, end, _BLOCK):
        block = numbers[: end - first]
        generator.random(out=block, dtype=np.float32)
        _drop(block, *arguments, first)


def _skip(bits: Any, count: int) -> None:
    """Advance a PCG64 by `count` float32 numbers: each is half of its next 64 bits, of which one may be left over."""
    draws, odd = divmod(count - bits.state["has_uint32"], 2)
    bits.advance(draws)
    if odd:
        last = int(bits.random_raw())
        bits.state = {**bits.state, "has_uint32": 1, "uinteger": last >> 32}


@kernel(np)
def dropout(x: np.ndarray, p: float, generator: np.random.Generator) -> Any:
    """Drop the elements for which the next numbers of the generator are below p."""
    bits: Any = generator.bit_generator
    if not supports(x) or type(bits) is not np.random.PCG64:
        return NotImplemented
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    y, mask = np.empty(x.shape, x.dtype), np.empty(x.shape, np.uint8)
    factor = x.dtype.type(scale)
    arguments = np.float32(p), factor, contiguous(x).reshape(-1), mask.reshape(-1), y.reshape(-1)
    state = bits.state
    shift = state["has_uint32"]  # so that each further part begins with both halves of 64 bits

    def draw(part: int) -> None:
        own = _local.__dict__.setdefault("generator", np.random.Generator(np.random.PCG64(0)))
        begin = part * _PART + shift if part else 0
        own.bit_generator.state = state
        if part:
            own.bit_generator.advance(part * _PART // 2)
        _draw(own, begin, min((part + 1) * _PART + shift, x.size), *arguments)

    if x.size <= _PART + shift:
        _draw(generator, 0, x.size, *arguments)
    else:
        parallel(draw, -(-(x.size - shift) // _PART))
        _skip(bits, x.size)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = np.empty(dy.shape, dy.dtype)
        arrays = contiguous(dy).reshape(-1), mask.reshape(-1), dy.dtype.type(scale), dx.reshape(-1)
        share(_drop_gradient, 2 * dx.size, *arrays)
        return (dx,)

    return y, backward

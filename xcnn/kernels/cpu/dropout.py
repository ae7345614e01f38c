"""Dropout with a mask of bytes. The numbers of a large mask are drawn in several threads, each from its own place."""

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._share import share, supports
from xcnn.threads import parallel

__all__ = ["dropout"]

_PART = 1 << 16
"""Numbers that a thread draws at once; an even number."""

_BLOCK = 1 << 14
"""Numbers that are drawn before they are used, so that they are still in the cache."""

_VECTORS = 4
"""Vectors per iteration."""

_local = threading.local()


@native("Ufxfuxnn")
def _drop(emit, numbers, p, x, scale, mask, y, first, last):
    """Set y to x times `scale`, or times 0 where the mask is 0.

    If there are numbers, float32 from `first` on, the mask is first set to whether they are at least p.
    """
    builder, single, bytes_ = emit.builder, ir.FloatType(), ir.VectorType(ir.IntType(8), emit.lanes)
    drawn, given = builder.bitcast(numbers, single.as_pointer()), emit.exists(numbers)
    least, factor, zero = emit.spread(builder.fptrunc(p, single)), emit.spread(emit.number(scale)), emit.constant(0.0)

    def every(draws: bool, places: Sequence[Any], exist: Any, _: Any) -> Sequence[Any]:
        for place in places:
            if draws:
                stays = builder.fcmp_ordered(">=", emit.read(drawn, builder.sub(place, first), exist), least)
                emit.write(builder.zext(stays, bytes_), mask, place, exist)
            else:
                stays = builder.icmp_unsigned("!=", emit.read(mask, place, exist), ir.Constant(bytes_, None))
            by = builder.select(stays, factor, zero)
            emit.write(builder.fmul(emit.read(x, place, exist), by), y, place, exist)
        return []

    with builder.if_else(given) as (forward, backward):
        for draws, way in ((True, forward), (False, backward)):
            with way:
                emit.span(first, last, [], functools.partial(every, draws), _VECTORS)


def _draw(generator: np.random.Generator, begin: int, end: int, p: float, *arguments: Any) -> None:
    """Drop the elements begin .. end - 1 according to the next numbers of a generator."""
    numbers, drop = np.empty(min(end - begin, _BLOCK), np.float32), _drop(arguments[0].itemsize)
    for first in range(begin, end, _BLOCK):
        block = numbers[: end - first]
        generator.random(out=block, dtype=np.float32)
        drop(block, p, *arguments, first, first + block.size)


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
    arguments = p, np.ascontiguousarray(x), scale, mask, y
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
        share(_drop(dx.itemsize), 2 * dx.size, None, p, np.ascontiguousarray(dy), scale, mask, dx, n=dx.size)
        return (dx,)

    return y, backward

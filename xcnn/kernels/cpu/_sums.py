"""Sums of many terms, in blocks, so that rounding errors hardly grow with their number.

The error of a sum that is added term by term is up to K / 2 eps times the magnitudes of its K terms, and close to that
if the terms are alike. Sums of about sqrt(K) blocks of about sqrt(K) terms stay below sqrt(K) eps.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu._functions import Functions
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._share import share
from xcnn.kernels.cpu._vectors import BYTES, DOUBLE, INT, blocks, counted

__all__ = ["BLOCK", "channel_sums", "not_finite"]

BLOCK = 4096
"""Terms of a block if they are adjacent and added as vectors, whose lanes are separate sums."""

_VECTORS = 4
"""Vectors that are added at once, each to a sum of its own."""


@native("n:xn")
def not_finite(emit, x, n):
    """Return whether a number of x is infinite or NaN: 0 times it is not 0."""

    def some(places: Any, mask: Any, sums: Any) -> Sequence[Any]:
        terms = [emit.fused(emit.read(x, place, mask), zero, total) for place, total in zip(places, sums, strict=False)]
        return [*terms, *sums[len(terms) :]]

    builder, zero = emit.builder, emit.constant(0.0)
    total = emit.total(functools.reduce(builder.fadd, emit.span(INT(0), n, [zero] * _VECTORS, some, _VECTORS)))
    builder.ret(builder.zext(builder.fcmp_unordered("!=", total, emit.vector.element(0.0)), INT))


@functools.cache
def _function(itemsize: int) -> Callable[..., None]:
    """Compile `(out, dy, n, o, pixels, images, begin, end)` for channels from `begin` to `end`.

    So many `images`, or BLOCK pixels, make a block; sums of blocks are float64.
    """

    def write(emit: Functions, *arguments: Any) -> None:
        (out, dy, n, o, pixels, images, begin, end), zero, one = arguments, INT(0), INT(1)
        builder = emit.builder
        zeros = [emit.constant(0.0)] * _VECTORS

        def channel(c: Any, _: Any) -> Sequence[Any]:
            def block(i: Any, last: Any, p: Any, end: Any, totals: Any) -> Sequence[Any]:
                def row(image: Any, sums: Any) -> Sequence[Any]:
                    at = builder.mul(builder.add(builder.mul(image, o), c), pixels)
                    start = builder.gep(dy, [at])

                    def some(places: Any, mask: Any, sums: Any) -> Sequence[Any]:
                        terms = [emit.read(start, place, mask) for place in places]
                        return [*map(builder.fadd, sums, terms), *sums[len(terms) :]]

                    return emit.span(p, end, sums, some, _VECTORS)

                sums = counted(builder, i, last, one, zeros, row)
                part = emit.total(functools.reduce(builder.fadd, sums))
                return [builder.fadd(*totals, part if itemsize == 8 else builder.fpext(part, DOUBLE))]

            def several(i: Any, last: Any, totals: Any) -> Sequence[Any]:
                return blocks(builder, zero, pixels, INT(BLOCK), totals, lambda *p: block(i, last, *p))

            (total,) = blocks(builder, zero, n, images, [DOUBLE(0.0)], several)
            builder.store(emit.number(total), builder.gep(out, [c]))
            return []

        counted(builder, begin, end, one, [], channel)

    function: Callable[..., None] = native("xxnnnnnn")(write)(itemsize)
    return function


def channel_sums(dy: np.ndarray) -> np.ndarray:
    """Return the sums of maps (n, o, ...) over all axes but axis 1."""
    dy = np.ascontiguousarray(dy)
    n, o, pixels, itemsize = *dy.shape[:2], math.prod(dy.shape[2:]), dy.itemsize
    out, images = np.empty(o, dy.dtype), max(1, min(math.isqrt(n), 64 * BYTES // (pixels * itemsize)))
    share(_function(itemsize), dy.size, out, dy, n, o, pixels, images, n=o)
    return out

"""Softmax and its logarithm along any axis, in passes over examples that are in the first cache.

With x as (examples, n, pixels), an example of one pixel is a row, and vectors lie along it. Otherwise vectors lie along
the pixels, and some of them are followed through the n numbers of an example. Sums are float64.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu._functions import Functions
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._share import share, supports, whole
from xcnn.kernels.cpu._vectors import INT, blocks, counted

__all__ = ["Axis", "examples", "log_softmax", "shared", "soften", "softmax"]

_LEAST = 512
"""Numbers that are worth more than NumPy's functions, which are called at once."""

_TERMS = 256
"""Numbers of a lane that are added one after another; longer sums are sums of such sums (see `_sums.py`)."""

_AT_ONCE = 4
"""Functions of pixels that are followed together: lines of the cache that lie side by side come faster."""

_COST = 12
"""The time of a number, in that of one which is only read."""


class Axis:
    """Emits passes over the numbers along the axis, at one pixel, or at some vectors of pixels.

    Parameters
    ----------
    emit : it emits vectors.
    n, pixels : sizes of the axis, and of those behind it.
    places : the first pixel of each vector; empty if there is only one pixel.
    mask : the pixels that exist; None for all.
    """

    def __init__(self, emit: Functions, n: Any, pixels: Any, places: Sequence[Any] = (), mask: Any = None) -> None:
        self.emit, self.n, self.pixels, self.places, self.mask = emit, n, pixels, places, mask

    def each(self, values: list[Any], body: Callable[..., Any], begin: Any = None, end: Any = None) -> list[Any]:
        """Write a pass with a value per vector: `body(k, index, mask, value)` returns the one for the next index."""
        begin, end = begin or INT(0), end or self.n
        builder, emit = self.emit.builder, self.emit
        if self.places:

            def several(i: Any, values: list[Any]) -> list[Any]:
                line = builder.mul(i, self.pixels)
                at = [builder.add(line, place) for place in self.places]
                return [
                    body(k, index, self.mask, value) for k, (index, value) in enumerate(zip(at, values, strict=True))
                ]

            return counted(builder, begin, end, INT(1), values, several)
        return emit.span(begin, end, values, lambda places, mask, values: [body(0, *places, mask, *values)])

    def largest(self, pointer: Any) -> list[Any]:
        """Return the largest number of each vector, in all lanes if there is one pixel; NaN propagates."""
        emit, start = self.emit, self.emit.constant(-math.inf)

        def body(_: int, index: Any, mask: Any, value: Any) -> Any:
            x = emit.read(pointer, index, mask)
            return emit.maximum(x if mask is None else emit.where(mask, x, start), value)

        found = self.each([start] * max(1, len(self.places)), body)
        return found if self.places else [emit.folded(found[0], emit.maximum)]

    def total(self, term: Callable[..., Any]) -> list[Any]:
        """Return the sums of `term(k, index, mask)`, in all lanes if there is one pixel."""
        emit, builder, zeros = self.emit, self.emit.builder, [self.emit.zeros()] * max(1, len(self.places))
        terms = INT(_TERMS if self.places else _TERMS * emit.lanes)

        def body(k: int, index: Any, mask: Any, value: Any) -> Any:
            return builder.fadd(value, emit.widened(term(k, index, mask), mask))

        def block(begin: Any, end: Any, sums: Sequence[Any]) -> list[Any]:
            return [*map(builder.fadd, sums, self.each(zeros, body, begin, end))]

        found = blocks(builder, INT(0), self.n, terms, zeros, block)
        if not self.places:
            return [emit.spread(emit.number(emit.total(found[0])))]
        return [builder.fptrunc(wide, emit.vector) for wide in found] if emit.itemsize == 4 else found

    def set(self, pointer: Any, value: Callable[..., Any]) -> None:
        """Store `value(k, index, mask)` everywhere."""
        if self.places:

            def body(k: int, index: Any, mask: Any, carried: Any) -> Any:
                self.emit.write(value(k, index, mask), pointer, index, mask)
                return carried

            self.each([self.emit.constant(0.0)] * len(self.places), body)
            return

        def some(places: Sequence[Any], mask: Any, _: Any) -> list[Any]:
            for place in places:
                self.emit.write(value(0, place, mask), pointer, place, mask)
            return []

        self.emit.span(INT(0), self.n, [], some, 2)


def soften(axis: Axis, y: Any, x: Any, _: Any) -> tuple[Any, Any]:
    """Write the softmax of x to y; return what is subtracted from x, and the sum of its exponentials."""
    emit, largest = axis.emit, axis.largest(x)

    def term(k: int, index: Any, mask: Any) -> Any:
        e = emit.exp(emit.subtract(emit.read(x, index, mask), largest[k]))
        emit.write(e, y, index, mask)
        return e

    total = axis.total(term)
    axis.set(y, lambda k, index, mask: emit.divide(emit.read(y, index, mask), total[k]))
    return largest, total


def _log_softmax(axis: Axis, y: Any, x: Any, _: Any) -> None:
    emit, largest = axis.emit, axis.largest(x)

    def below(k: int, index: Any, mask: Any) -> Any:
        return emit.subtract(emit.read(x, index, mask), largest[k])

    logarithm = [emit.log(one) for one in axis.total(lambda *place: emit.exp(below(*place)))]
    axis.set(y, lambda k, index, mask: emit.subtract(below(k, index, mask), logarithm[k]))


def _softmax_gradient(axis: Axis, dx: Any, y: Any, dy: Any) -> None:
    emit = axis.emit
    total = axis.total(lambda _, index, mask: emit.multiply(emit.read(y, index, mask), emit.read(dy, index, mask)))

    def value(k: int, index: Any, mask: Any) -> Any:
        return emit.multiply(emit.read(y, index, mask), emit.subtract(emit.read(dy, index, mask), total[k]))

    axis.set(dx, value)


def _log_softmax_gradient(axis: Axis, dx: Any, y: Any, dy: Any) -> None:
    emit = axis.emit
    total = axis.total(lambda _, index, mask: emit.read(dy, index, mask))

    def value(k: int, index: Any, mask: Any) -> Any:
        part = emit.multiply(emit.exp(emit.read(y, index, mask)), total[k])
        return emit.subtract(emit.read(dy, index, mask), part)

    axis.set(dx, value)


def examples(
    emit: Functions, rows: bool, sizes: Sequence[Any], values: Sequence[Any], body: Callable[..., Sequence[Any]]
) -> Sequence[Any]:
    """Write the loops over some examples and their pixels; `sizes` are n, pixels, and the ends of both ranges.

    `body(axis, first, begin, values)` is given the index of the first pixel of the example, and of its first number.
    """
    (n, pixels, first, last, begin, end), builder = sizes, emit.builder

    def example(i: Any, values: Sequence[Any]) -> Sequence[Any]:
        start = builder.mul(i, pixels)

        def some(places: Sequence[Any], mask: Any, values: Sequence[Any]) -> Sequence[Any]:
            return body(Axis(emit, n, pixels, places, mask), start, builder.mul(start, n), values)

        return some((), None, values) if rows else emit.span(begin, end, values, some, _AT_ONCE)

    return counted(builder, first, last, INT(1), values, example)


@functools.cache
def _function(passes: Callable[..., Any], itemsize: int, rows: bool) -> Callable[..., None]:
    """Compile `(y, a, b, n, pixels, first, last, begin, end)`, for some examples and some of their pixels."""

    def write(emit: Functions, *arguments: Any) -> None:
        def group(axis: Axis, _start: Any, place: Any, _values: Any) -> Sequence[Any]:
            passes(axis, *(emit.builder.gep(pointer, [place]) for pointer in arguments[:3]))
            return []

        examples(emit, rows, arguments[3:], [], group)

    function: Callable[..., None] = native("xxxnnnnnn")(write)(itemsize)
    return function


def shared(examples: int, pixels: int, itemsize: int) -> tuple[int, Callable[[int, int], tuple[int, ...]]]:
    """Return how many pixels or examples are to be shared out, and the ranges of examples and pixels for some."""
    if pixels * itemsize >= 1 << 12:  # pieces of long lines of pixels
        return pixels, lambda begin, end: (0, examples, begin, end)
    return examples, lambda begin, end: (begin, end, 0, pixels)


def _run(passes: Callable[..., Any], shape: tuple[int, int, int], out: np.ndarray, *arrays: np.ndarray) -> None:
    """Set `out` from one or two C-contiguous arrays; examples, or their pixels, are shared out."""
    examples, n, pixels = shape
    call, places = _function(passes, out.itemsize, pixels == 1), (out, arrays[0], arrays[-1])
    count, ends = shared(examples, pixels, out.itemsize)
    share(lambda *some: call(*places, n, pixels, *ends(*some)), _COST * out.size, n=count)


def _made(x: np.ndarray, dim: int, forward: Callable[..., Any], gradient: Callable[..., Any]) -> Any:
    """Bind y and its backward pass."""
    if not supports(x) or x.size < _LEAST:
        return NotImplemented
    sizes, dtype = x.shape, x.dtype
    shape = math.prod(sizes[:dim]), sizes[dim], math.prod(sizes[dim + 1 :])

    def run(x: np.ndarray, *_: Any) -> Any:
        y = np.empty(sizes, dtype)
        _run(forward, shape, y, np.ascontiguousarray(x))

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            if not needs[0]:
                return (None,)
            dx = np.empty(sizes, dtype)
            _run(gradient, shape, dx, y, np.ascontiguousarray(dy))
            return (dx,)

        return y, backward

    return run


@whole()
def softmax(x: np.ndarray, dim: int) -> Any:
    """Return the softmax along an axis."""
    return _made(x, dim, soften, _softmax_gradient)


@whole()
def log_softmax(x: np.ndarray, dim: int) -> Any:
    """Return the logarithm of the softmax along an axis."""
    return _made(x, dim, _log_softmax, _log_softmax_gradient)

"""Products of matrices, in blocks that stay in the cache: the vectors of `_simd.strip` are rows of packed panels.

    c = a @ b    a (m, k), b (k, n), c (m, n)

The numbers of a are read where they are, whatever its strides. Those of b are read as vectors: some of its columns at a
time are first copied, or transposed, to panels as wide as a strip, so that neither edges nor strides matter. The
products of a few rows with a panel go to a tile in the nearest cache, and from there to c.

Indices count elements; bounds are not checked.
"""

import threading
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import flat
from xcnn.kernels.cpu._simd import _INT, BYTES, STRIP, Emitter
from xcnn.threads import parallel, parts

__all__ = ["ONE", "After", "finish", "matrix_product"]

_FLOPS_PER_MICROSECOND, _NUMBERS_PER_MICROSECOND = 160_000, 4000
"""Speed of a thread: of its arithmetic, and of what it reads and writes."""

_TERMS = 256
"""Products that are added one after another; longer sums are sums of such sums (see `_sums.py`)."""

_ROWS = 8
"""Rows of a tile."""

_ROOM = 524288
"""Bytes of the panels that are packed at once."""

_AHEAD = 16
"""Rows of b that are read ahead while one is packed: they are far apart, so that processors do not foresee them."""

_FEW = 4
"""With at most this many rows of a, packing b would take longer than multiplying it."""

_LEAST_ROWS = 256
"""Rows of a part: each part packs b."""


@intrinsic
def _pack(
    _: Any, b: Any, b0: Any, row: Any, column: Any, rows: Any, columns: Any, panel: Any, p0: Any, width: Any
) -> Any:
    """Copy a part of b, one of whose steps is 1, to rows of a panel, `width` apart; may write whole vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b_, b0_, row_, column_, rows_, columns_, panel_, p0_, width_ = arguments
        emit, zero = Emitter(context, builder, b), _INT(0)
        source, target, square = emit.pointer(b, b_, b0_), emit.pointer(panel, panel_, p0_), _INT(emit.lanes)
        with builder.if_else(builder.icmp_signed("==", column_, _INT(1))) as (as_it_is, transposed):
            with as_it_is, cgutils.for_range(builder, rows_) as loop:
                begin, end = emit.at(source, (loop.index, row_)), emit.at(target, (loop.index, width_))
                later = emit.at(begin, (row_, 1), scale=_AHEAD)
                for j, lanes in emit.pieces(columns_):
                    emit.prefetch(builder.gep(later, [j]))
                    emit.store(emit.load(builder.gep(begin, [j]), lanes), builder.gep(end, [j]))
            with transposed:
                # In squares; the last one begins before the end of the others, if there are not too few rows for one.
                large = builder.select(builder.icmp_signed(">=", rows_, square), rows_, zero)
                small = builder.sub(rows_, large)
                with cgutils.for_range_slice(builder, zero, columns_, square) as (j, _):
                    last, line = builder.sub(columns_, _INT(1)), builder.gep(target, [j])
                    lines = [emit.smaller(builder.add(j, _INT(i)), last) for i in range(emit.lanes)]
                    begins = [emit.at(source, (one, column_)) for one in lines]
                    with cgutils.for_range_slice(builder, zero, large, square) as (i, _):
                        at = emit.smaller(i, builder.sub(rows_, square))
                        for begin in begins:
                            emit.prefetch(builder.gep(emit.at(begin, (square, column_)), [at]))
                        turned = emit.transpose([emit.load(builder.gep(begin, [at])) for begin in begins])
                        for k, vector in enumerate(turned):
                            emit.store(vector, emit.at(line, (builder.add(at, _INT(k)), width_)))
                    with cgutils.for_range_slice(builder, zero, small, _INT(1)) as (i, _):
                        for k, begin in enumerate(begins):
                            number = builder.load(builder.gep(begin, [i]))
                            builder.store(number, builder.gep(emit.at(line, (i, width_)), [_INT(k)]))
        return context.get_dummy_value()

    n = types.intp
    return types.void(b, n, n, n, n, n, panel, n, n), generate


@intrinsic
def finish(
    _: Any,
    source: Any,
    s0: Any,
    target: Any,
    t0: Any,
    length: Any,
    adds: Any,
    ends: Any,
    scale: Any,
    shift: Any,
    first: Any,
    residual: Any,
    low: Any,
    high: Any,
) -> Any:
    """Set `length` numbers of the target, or add to them if `adds`; if `ends`, apply what follows (see `After`)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_, s0_, target_, t0_, length_, adds_, ends_, scale_, shift_, first_, residual_, *bounds = arguments
        emit = Emitter(context, builder, source)
        begin, end = emit.pointer(source, source_, s0_), emit.pointer(target, target_, t0_)
        operands = [
            (operation, emit.pointer(kind, array, at), emit.size(kind, array))
            for operation, kind, array, at in (
                (builder.fmul, scale, scale_, first_),
                (builder.fadd, shift, shift_, first_),
                (builder.fadd, residual, residual_, t0_),
            )
        ]
        limits = [cgutils.alloca_once_value(builder, emit.number(bound)) for bound in bounds]
        for j, lanes in emit.pieces(length_):
            at = builder.gep(end, [j])
            total = cgutils.alloca_once_value(builder, emit.load(builder.gep(begin, [j]), lanes))
            with builder.if_then(adds_):
                builder.store(builder.fadd(emit.load(at, lanes), builder.load(total)), total)
            with builder.if_then(ends_):
                for operation, operand, size in operands:
                    with builder.if_then(builder.icmp_signed(">", size, _INT(0))):
                        factor = emit.load(builder.gep(operand, [j]), lanes)
                        builder.store(operation(builder.load(total), factor), total)
                for sign, limit in zip("<>", limits, strict=True):
                    bound, value = emit.broadcast(limit, lanes), builder.load(total)
                    builder.store(builder.select(builder.fcmp_ordered(sign, value, bound), bound, value), total)
            emit.store(builder.load(total), at)
        return context.get_dummy_value()

    n, yes, number = types.intp, types.boolean, types.float64
    return types.void(source, n, target, n, n, yes, yes, scale, shift, n, residual, number, number), generate


@compiled
def _product(
    product, a, a_row, a_column, b, b_row, b_column, c, c_row, starts, m, n, k, direct, panels, tile, index,
    scale, shift, residual, low, high,
):  # fmt: skip
    """Set each c to a @ b and what follows; the matrices begin at `starts` (products, 3)."""
    lanes = BYTES // c.itemsize
    width = min(STRIP * lanes, (n + lanes - 1) // lanes * lanes)
    for p in range(min(k, _TERMS)):
        index[p] = p * a_column
        index[_TERMS + p] = p * (b_row if direct else width)
    for s in range(starts.shape[0]):
        a0, b0, c0 = starts[s, 0], starts[s, 1], starts[s, 2]
        for term in range(0, k, _TERMS):
            count = min(k - term, _TERMS)
            offsets, shifts = index[:count], index[_TERMS : _TERMS + count]
            many = n if direct else max(1, panels.size // (count * width)) * width
            for left in range(0, n, many):
                right = min(n, left + many)
                some = 1 if b_column == 1 else count  # a whole row of b, which is adjacent, or all rows of a panel
                for p in range(0, 0 if direct else count, some):
                    for j in range(left, right, width):
                        at, columns = b0 + (term + p) * b_row + j * b_column, min(width, right - j)
                        _pack(b, at, b_row, b_column, some, columns, panels, (j - left) * count + p * width, width)
                for r in range(0, m, _ROWS):
                    rows = min(_ROWS, m - r)
                    for j in range(left, right, width):
                        columns = min(width, right - j)
                        source, at = (b, b0 + term * b_row + j) if direct else (panels, (j - left) * count)
                        multiply(
                            product, source, at, shifts, a, a0 + r * a_row + term * a_column, a_row, offsets, count,
                            tile, 0, width, rows, (columns + lanes - 1) // lanes * lanes,
                        )  # fmt: skip
                        for p in range(rows):
                            finish(
                                tile, p * width, c, c0 + (r + p) * c_row + j, columns, term > 0, term + count == k,
                                scale, shift, j, residual, low, high,
                            )  # fmt: skip


ONE = np.zeros((1, 3), np.int64)
"""The starts of one product."""

_NONE = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, ("float32", "float64"))}
_INDEX = np.dtype(np.int64)


class After(NamedTuple):
    """What follows a product: it is multiplied by a scale, a shift and a residual are added, and it is limited.

    Attributes
    ----------
    scale, shift : one number per column of the result, or None.
    residual : of the shape of the result, or None.
    interval : the least and the largest number of the result; NaN stays. None is the same as infinite ends.
    """

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    residual: np.ndarray | None = None
    interval: tuple[float, float] | None = None

    def arguments(self, dtype: Any) -> tuple[Any, ...]:
        """Return the arguments of compiled functions."""
        none = _NONE[dtype]
        scale, shift, residual = (
            none if array is None else flat(array, dtype.itemsize) for array in self[:3]
        )  # fmt: skip
        return scale, shift, residual, *(self.interval or (-np.inf, np.inf))


_NOTHING = After()
_NO_ARGUMENTS = {dtype: _NOTHING.arguments(dtype) for dtype in _NONE}


class _Rooms(threading.local):
    """The scratch of a thread by dtype: panels, a tile, and offsets."""

    def __init__(self) -> None:
        self.rooms: dict[Any, tuple[np.ndarray, ...]] = {}

    def get(self, dtype: Any) -> tuple[np.ndarray, ...]:
        rooms = self.rooms.get(dtype)
        if rooms is None:
            numbers, tile = _ROOM // dtype.itemsize, _ROWS * STRIP * BYTES // dtype.itemsize
            rooms = self.rooms[dtype] = (
                scratch(0, "panels", numbers, dtype), scratch(0, "tile", tile, dtype),
                scratch(0, "at", 2 * _TERMS, _INDEX),
            )  # fmt: skip
        return rooms


_ROOMS = _Rooms()


def matrix_product(
    a: np.ndarray,
    a_steps: tuple[int, int],
    b: np.ndarray,
    b_steps: tuple[int, int],
    c: np.ndarray,
    sizes: tuple[int, int, int],
    starts: np.ndarray = ONE,
    after: After = _NOTHING,
) -> None:
    """Set c to a @ b and apply what follows.

    Parameters
    ----------
    a, b : arrays that hold a (m, k) and b (k, n).
    a_steps, b_steps : how far apart rows and columns are once the arrays are contiguous; one of the steps of b is 1.
    c : a contiguous array that holds c (m, n).
    sizes : (m, n, k).
    starts : the first entries (products, 3) of the matrices of several products.
    """
    (a_row, a_column), (b_row, b_column), (m, n, k) = a_steps, b_steps, sizes
    a, b, c = flat(a, c.itemsize), flat(b, c.itemsize), c.reshape(-1)
    dtype, products, lanes, address = c.dtype, len(starts), BYTES // c.itemsize, multiply.address(c.itemsize)
    operands = _NO_ARGUMENTS[dtype] if after is _NOTHING else after.arguments(dtype)
    direct = m <= _FEW and b_column == 1 and n % lanes == 0

    def some(starts: np.ndarray, m: int, columns: int, operands: tuple[Any, ...]) -> None:
        _product(
            address, a, a_row, a_column, b, b_row, b_column, c, n, starts, m, columns, k, direct, *_ROOMS.get(dtype),
            *operands,
        )  # fmt: skip

    rows, columns = m // _LEAST_ROWS, n // (3 * lanes)
    microseconds = 2 * m * n * k / _FLOPS_PER_MICROSECOND + (m * k + k * n + m * n) / _NUMBERS_PER_MICROSECOND
    count = parts(products if products > 1 else max(rows, columns), products * microseconds)

    def part(number: int) -> None:
        if products > 1:
            some(starts[products * number // count : products * (number + 1) // count], m, n, operands)
        elif rows >= columns:
            first, end = (m * at // count for at in (number, number + 1))
            some(starts + np.array((first * a_row, 0, first * n)), end - first, n, operands)
        else:
            unit = 3 * lanes
            first, end = (min(n, -(-n // unit) * at // count * unit) for at in (number, number + 1))
            scale, shift, *others = operands
            some(
                starts + np.array((0, first * b_column, first)), m, end - first, (scale[first:], shift[first:], *others)
            )

    if count == 1:
        some(starts, m, n, operands)
    else:
        parallel(part, count)

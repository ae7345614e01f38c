"""The product of a matrix and shifted vectors: strip by strip of pixels, all rows of each.

    y[y0 + i * step + j] = sum over k of w[w0 + i * row + offsets[k]] * x[x0 + shifts[k] + j]    i < rows, j < length

The matrix lies anywhere: its rows are `row` apart, and column k is at `offsets[k]`. So a convolution reads its weights,
or their transpose, where they are. If `row` is negative, row i begins at `offsets[i - row]`, so rows lie anywhere, too.
Vector k is x from `shifts[k]` on, a plane of pixels or a row of another matrix: a convolution needs no columns, as
NumPy's BLAS would, because the windows of a tap are the plane itself, shifted.

A strip is divided into blocks of rows and vectors whose sums fit in registers. Indices count elements; bounds are not
checked: the callers lay out their planes accordingly.
"""

from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import BYTES, INT, counted

__all__ = ["CYCLES_PER_MICROSECOND", "FLOPS_PER_MICROSECOND", "STRIP", "TERMS", "multiply", "product_cycles"]

# AVX-512 has 32 registers, all others are assumed to have 16. Each sum takes one, the factors take the rest.
STRIP = 6 if BYTES == 64 else 4
"""Vectors of a strip; the last one may have one more, as one alone takes longer."""

_BLOCKS = ((8, (3, 2, 1)), (4, (3, 2, 1)), (2, (6,))) if BYTES == 64 else ((6, (2, 1)), (4, (2, 1)), (2, (4,)))
"""Rows of the blocks of a strip, and how many vectors they have, largest first."""

TERMS = 512
"""Products that are added one after another, lane by lane; longer sums are sums of such sums (see `_sums.py`)."""


CYCLES_PER_MICROSECOND, FLOPS_PER_MICROSECOND = 4000, 80_000
"""Those of a thread, as `parts` counts work; so few flops that any processor does them."""


def product_cycles(vectors: int) -> float:
    """Return about how long two rows of one term take with so many vectors; one alone takes longer."""
    return vectors + 0.3 * -(-vectors // STRIP) + 0.4 * (vectors == 1)


@native("xnixnninxnnnn")
def multiply(emit, x, x0, shifts, w, w0, row, offsets, count, y, y0, step, rows, length):
    """Set y as above, for k < `count`. If `length` is less than a vector, whole ones are read and written.

    Some rows and pixels may be computed twice, with the same result.
    """
    builder, lanes = emit.builder, emit.lanes
    x0, w0, row, count, y0, step, rows, length = (
        Integer(builder, value) for value in (x0, w0, row, count, y0, step, rows, length)
    )
    shifts, offsets, zero = Integers(builder, shifts), Integers(builder, offsets), Integer(builder, 0)
    nothing, weights = ir.Constant(emit.vector, None), w0.of(w)
    with builder.goto_entry_block():
        same = builder.alloca(INT)
        builder.store(INT(0), same)
    listed, apart = row.holds("<", 0), row.most(0)
    # At least one run, so that y is 0 if there are no terms.
    runs = (count.most(1) + (TERMS - 1)) // TERMS

    def line(r: Integer) -> Any:
        place = Integers(builder, builder.select(listed, (r - row).of(offsets.pointer), same))[0]
        return (place + r * apart).of(weights)

    def block(r: Integer, size: int, at: Integer, width: int) -> None:
        numbers = [(r + i).least(rows - 1) for i in range(size)]
        lines = [line(number) for number in numbers]
        at = at.least(length - width * lanes).most(0)  # to fill its vectors, the last block begins in the one before
        begins, first = (x0 + at).of(x), (y0 + at).of(y)
        places = [(i * step + j * lanes).of(first) for i in numbers for j in range(width)]

        def term(k: Any, sums: list[Any]) -> list[Any]:
            pixels, column = shifts[Integer(builder, k)].of(begins), offsets[Integer(builder, k)]
            values = [emit.read(pixels, INT(j * lanes)) for j in range(width)]
            totals = []
            for i, one in enumerate(lines):
                weight = emit.broadcast(column.of(one))
                totals += [emit.fused(weight, values[j], sums[i * width + j]) for j in range(width)]
                emit.barrier()  # otherwise all weights are loaded first, and sums lose their registers
            return totals

        with zero.up_to(runs) as run:
            begin, later = run * TERMS, run.holds(">", 0)
            end = (begin + TERMS).least(count)
            totals = counted(builder, begin.value, end.value, INT(1), [nothing] * len(places), term)
            with builder.if_else(later) as (added, alone):  # memory that is only written need not be waited for
                with added:  # all are read first, as rows may occur twice
                    before = [emit.load(place) for place in places]
                    for place, old, total in zip(places, before, totals, strict=True):
                        emit.store(builder.fadd(old, total), place)
                with alone:
                    for place, total in zip(places, totals, strict=True):
                        emit.store(total, place)

    most = (length // lanes).least(STRIP).most(1)

    def blocks(r: Integer, size: int, at: Integer, vectors: Integer, widths: tuple[int, ...]) -> None:
        v = zero
        for width in widths:
            end = v + (vectors - v) // width * width
            if width == 3:  # two and two are faster than three and one
                end = (end - 3).if_(builder.and_(end.holds(">", 0), (end + 1).holds("==", vectors)), end)
            end = v.if_(most.holds("<", width), end)
            with v.up_to(end, width) as first:
                block(r, size, at + first * lanes, width)
            v = end

    # A last strip of one vector joins the one before.
    with zero.up_to((length - lanes).most(1).least(length), most * lanes) as at:
        vectors = (length - at + (lanes - 1)) // lanes
        vectors = vectors.if_(vectors.holds("==", most + 1), vectors.least(most))
        # The last block of several rows may begin before the end of those before it.
        (many, _), (some, _), (few, (wide,)) = _BLOCKS
        whole = ((rows + (many - 1 - some)) // many * many).if_(rows.holds(">=", many), 0)
        is_few = builder.and_(rows.holds("<=", few), builder.and_(vectors.holds("==", wide), most.holds(">=", wide)))
        ends = whole, zero.if_(is_few, rows), rows
        for start, end, (size, widths) in zip((zero, *ends[:2]), ends, _BLOCKS, strict=True):
            with start.up_to(end, size) as r:
                blocks(r.least((rows - size).most(0)), size, at, vectors, widths)

"""Transpose matrices whose rows and columns lie at given places, so that vectors run along another axis."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import by_address
from xcnn.kernels.cpu._simd import BYTES, Emitter
from xcnn.kernels.cpu._vectors import INT

__all__ = ["transpose"]


@intrinsic
def _square(_: Any, x: Any, x0: Any, rows: Any, i: Any, y: Any, y0: Any, columns: Any, j: Any) -> Any:
    """Transpose a square of as many numbers as a vector has: `y[y0 + columns[j + b] + a] = x[x0 + rows[i + a] + b]`.

    With AVX-512, there may be fewer rows or columns than that.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, rows_, i_, y_, y0_, columns_, j_ = arguments
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        half, n = emit.lanes // 2, emit.lanes
        (many, many_columns) = (emit.size(*pair) for pair in ((rows, rows_), (columns, columns_)))
        written, read = (emit.first(count) if BYTES == 64 else None for count in (many, many_columns))

        def places(array: Any, value: Any, first: Any, size: Any) -> list[Any]:
            pointer, last = emit.pointer(array, value), builder.sub(size, INT(1))
            return [
                builder.load(emit.at(pointer, (emit.smaller(builder.add(first, INT(k)), last), 1))) for k in range(n)
            ]

        def interleave(a: Any, b: Any, first: int) -> Any:
            return emit.shuffle(a, b, [first + k // 2 + n * (k % 2) for k in range(n)])

        vectors = [emit.read(source, place, read) for place in places(rows, rows_, i_, many)]
        for _ in range(n.bit_length() - 1):  # each time, the number of a vector moves into the numbers of its lanes
            pairs = [(vectors[k], vectors[k + half]) for k in range(half)]
            vectors = [interleave(a, b, first) for a, b in pairs for first in (0, half)]
        # Backwards, so that the vectors of columns that do not exist are replaced by the last one.
        for place, vector in reversed([*zip(places(columns, columns_, j_, many_columns), vectors, strict=True)]):
            emit.write(vector, target, place, written)
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, rows, n, y, n, columns, n), generate


@by_address("xnixni")
def transpose(x, x0, rows, y, y0, columns):
    """Set `y[y0 + columns[b] + a]` to `x[x0 + rows[a] + b]` for all rows a and columns b."""
    lanes = BYTES // x.itemsize
    if BYTES == 64 or (rows.size >= lanes and columns.size >= lanes):  # the last squares may overlap those before
        for a in range(0, rows.size, lanes):
            i = max(0, min(a, rows.size - lanes))
            for b in range(0, columns.size, lanes):
                j = max(0, min(b, columns.size - lanes))
                _square(x, x0 + j, rows, i, y, y0 + i, columns, j)
    else:
        for i in range(rows.size):
            for j in range(columns.size):
                y[y0 + columns[j] + i] = x[x0 + rows[i] + j]

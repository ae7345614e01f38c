"""Transpose matrices whose rows and columns lie at given places, so that vectors run along another axis."""

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import BYTES, INT

__all__ = ["transpose"]


@native("xninxninnn")
def transpose(emit, x, x0, rows, many_rows, y, y0, columns, many_columns, x_ahead, y_ahead):
    """Set `y[y0 + columns[b] + a]` to `x[x0 + rows[a] + b]` for all rows a and columns b.

    Meanwhile fetch from memory what is so many numbers ahead in x and in y, unless 0: stores wait for it, too.
    """
    builder, lanes = emit.builder, emit.lanes
    x0, y0, zero = Integer(builder, x0), Integer(builder, y0), Integer(builder, 0)
    rows, columns = Integers(builder, rows, many_rows), Integers(builder, columns, many_columns)

    def filled(places: Integers) -> Integers:
        """Return as many places as a vector has numbers, or more; the last one may be repeated."""
        with builder.goto_entry_block():
            copy = builder.alloca(INT, size=lanes)
        few = places.size.holds("<", lanes)
        with builder.if_then(few), zero.up_to(lanes) as k:
            builder.store(places[k.least(places.size - 1)].value, k.of(copy))
        return Integers(builder, builder.select(few, copy, places.pointer))

    def squares() -> None:
        """Transpose as many rows and columns as a vector has numbers; with AVX-512, there may be fewer.

        The last squares may overlap those before.
        """
        written, read = (emit.first(places.size.value) if BYTES == 64 else None for places in (rows, columns))
        all_begins, all_ends = filled(rows), filled(columns)
        with zero.up_to(rows.size, lanes) as a:
            i = a.least(rows.size - lanes).most(0)
            begins = [all_begins[i + k] for k in range(lanes)]
            with zero.up_to(columns.size, lanes) as b:
                j = b.least(columns.size - lanes).most(0)
                ends = [all_ends[j + k] for k in range(lanes)]
                for pointer, places, ahead in (((x0 + j).of(x), begins, x_ahead), ((y0 + i).of(y), ends, y_ahead)):
                    with builder.if_then(Integer(builder, ahead).holds("!=", 0)):
                        for place in places:
                            emit.prefetch((place + ahead).of(pointer))
                vectors = emit.transpose([emit.read((x0 + j).of(x), place.value, read) for place in begins])
                # Backwards, so that the vectors of columns that do not exist are replaced by the last one.
                for place, vector in reversed([*zip(ends, vectors, strict=True)]):
                    emit.write(vector, (y0 + i).of(y), place.value, written)

    if BYTES == 64:
        squares()
        return
    enough = [places.size.holds(">=", lanes) for places in (rows, columns)]
    with builder.if_else(builder.and_(*enough)) as (large, small):
        with large:
            squares()
        with small, zero.up_to(rows.size) as i, zero.up_to(columns.size) as j:
            builder.store(builder.load((x0 + rows[i] + j).of(x)), (y0 + columns[j] + i).of(y))

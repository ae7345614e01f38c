"""Read tables that `_grids.pack` wrote."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["array", "cut", "view"]

_INT = ir.IntType(64)


def view(context: Any, builder: Any, kind: Any, tables: Any, i: Any) -> Any:
    """Write code that reads array i of tables, whose type is `kind`."""
    make = context.make_array(kind)
    data, found = make(context, builder, tables).data, make(context, builder)
    place = builder.gep(data, [builder.add(builder.load(data), i)])
    begin, end = (builder.load(builder.gep(place, [_INT(k)])) for k in (1, 2))
    count = builder.sub(end, begin)
    populate_array(found, builder.gep(data, [begin]), [count], [_INT(8)], _INT(8), None)
    return found._getvalue()


@intrinsic
def array(_: Any, tables: Any, i: Any) -> Any:
    """Return array i."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return view(context, builder, tables, *arguments)

    return tables(tables, types.intp), generate


@intrinsic
def cut(_: Any, x: Any, begin: Any, end: Any) -> Any:
    """Return `x[begin:end]`, a flat array, without looking at the bounds; this compiles faster than a slice."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        make, size = context.make_array(x), _INT(x.dtype.bitwidth // 8)
        data, found = make(context, builder, arguments[0]).data, make(context, builder)
        count = builder.sub(arguments[2], arguments[1])
        populate_array(found, builder.gep(data, [arguments[1]]), [count], [size], size, None)
        return found._getvalue()

    return x(x, types.intp, types.intp), generate

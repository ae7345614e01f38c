"""Read tables that `_grids.pack` wrote."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["array", "view"]

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

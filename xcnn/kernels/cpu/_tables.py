"""Read tables that `_grids.pack` wrote."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["array"]

_INT = ir.IntType(64)


@intrinsic
def array(_: Any, tables: Any, i: Any) -> Any:
    """Return array i."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        make = context.make_array(tables)
        data, view = make(context, builder, arguments[0]).data, make(context, builder)
        place = builder.gep(data, [builder.add(builder.load(data), arguments[1])])
        begin, end = (builder.load(builder.gep(place, [_INT(k)])) for k in (1, 2))
        count = builder.sub(end, begin)
        populate_array(view, builder.gep(data, [begin]), [count], [_INT(8)], _INT(8), None)
        return view._getvalue()

    return tables(tables, types.intp), generate

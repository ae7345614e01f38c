"""Read tables that `_grids.pack` wrote."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["array", "cut"]

_INT = ir.IntType(64)


def _view(context: Any, builder: Any, kind: Any, data: Any, begin: Any, end: Any) -> Any:
    view, size = context.make_array(kind)(context, builder), _INT(kind.dtype.bitwidth // 8)
    populate_array(view, builder.gep(data, [begin]), [builder.sub(end, begin)], [size], size, None)
    return view._getvalue()


@intrinsic
def array(_: Any, tables: Any, i: Any) -> Any:
    """Return array i."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(tables)(context, builder, arguments[0]).data
        place = builder.gep(data, [builder.add(builder.load(data), arguments[1])])
        begin, end = (builder.load(builder.gep(place, [_INT(k)])) for k in (1, 2))
        return _view(context, builder, tables, data, begin, end)

    return tables(tables, types.intp), generate


@intrinsic
def cut(_: Any, x: Any, begin: Any, end: Any) -> Any:
    """Return `x[begin:end]`, a flat array, without looking at the bounds; this compiles faster than a slice."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(x)(context, builder, arguments[0]).data
        return _view(context, builder, x, data, arguments[1], arguments[2])

    return x(x, types.intp, types.intp), generate

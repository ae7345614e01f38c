"""The largest number of each row, and where it is."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import INT, LANE

__all__ = ["largest", "largest_gradient"]


def _indices(emit: Any, place: Any) -> Any:
    """Return the indices of a vector that begins at one."""
    return emit.builder.add(emit.spread(emit.builder.trunc(place, LANE)), emit.lane_list(range(emit.lanes)))


@native("xxinnn")
def largest(emit, x, y, winners, count, begin, end):
    """Set y to the maxima of rows of x, or NaN, and `winners` to the index of the first one, or of the first NaN."""
    builder, lowest = emit.builder, ir.Constant(emit.vector, [float("-inf")] * emit.lanes)
    nowhere = emit.lane_list([0] * emit.lanes)
    with Integer(builder, begin).up_to(end) as r:
        row = (r * count).of(x)

        def some(places: Sequence[Any], exist: Any, found: Sequence[Any]) -> Sequence[Any]:
            new, own = emit.read(row, places[0], exist), builder.fcmp_ordered("ord", found[0], found[0])
            new = new if exist is None else builder.select(exist, new, lowest)
            taken = builder.and_(builder.fcmp_unordered(">", new, found[0]), own)  # NaN stays
            return [builder.select(taken, *pair) for pair in zip((new, _indices(emit, places[0])), found, strict=True)]

        value, place = emit.span(INT(0), count, [lowest, nowhere], some)
        best = emit.folded(value, emit.maximum)
        here = builder.or_(builder.fcmp_ordered("==", value, best), builder.fcmp_unordered("uno", value, value))
        place = builder.select(here, place, emit.lane_list([2**31 - 1] * emit.lanes))
        place = emit.folded(place, lambda a, b: builder.select(builder.icmp_signed("<", a, b), a, b))
        builder.store(builder.extract_element(best, LANE(0)), r.of(y))
        builder.store(builder.zext(builder.extract_element(place, LANE(0)), INT), r.of(winners))


@native("xixnnn")
def largest_gradient(emit, dy, winners, dx, count, begin, end):
    """Set rows of dx to the number of dy at the index of `winners`, and 0 elsewhere."""
    builder, nothing = emit.builder, ir.Constant(emit.vector, None)
    with Integer(builder, begin).up_to(end) as r:
        value, row = emit.broadcast(r.of(dy)), (r * count).of(dx)
        winner = emit.spread(builder.trunc(builder.load(r.of(winners)), LANE))

        def some(places: Sequence[Any], exist: Any, _: Any) -> Sequence[Any]:
            here = builder.icmp_signed("==", _indices(emit, places[0]), winner)
            emit.write(builder.select(here, value, nothing), row, places[0], exist)
            return ()

        emit.span(INT(0), count, (), some)

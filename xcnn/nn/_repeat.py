"""Calls of layers that are checked once: afterwards, only the body is called again, with the arrays of the moment.

A call of an op can be repeated as that of its body if it called one body, with its own arrays, and returned what that
returned; and if the op says that shapes and options decide what it does (`apart`, see `ops.op`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xcnn._array import is_array, namespace_of
from xcnn._dispatch import Call, tracing
from xcnn.nn._calls import repeats
from xcnn.nn._layer import Layer
from xcnn.nn._plan import Fused, Held, Joined
from xcnn.ops._op import Backward
from xcnn.parameter import Buffer, Parameter

__all__ = ["Repeated", "Repetition", "first", "known_steps", "like", "repetition"]

_ALL = (True,)

_MOST = 16
"""The number of shapes for which a graph keeps what it has prepared."""


class Repetition(NamedTuple):
    """Where the arrays of a body's call come from.

    Attributes
    ----------
    template : the arguments, None in the place of arrays.
    arrays : places among the arguments, and among the arrays that the layer was given.
    slots : places among the arguments, and the parameter or buffer.
    """

    template: list[Any]
    arrays: list[tuple[int, int]]
    slots: list[tuple[int, Parameter | Buffer]]


def repetition(made: Sequence[Call], result: Any, given: Sequence[Any], module: Any) -> Repetition | None:
    """Return how the only call of a body in `made` can be repeated, if `result` is what it returned; otherwise None."""
    if len(made) != 1:
        return None
    (call,) = made
    if (call.result[0] if isinstance(call.result, tuple) else call.result) is not result:
        return None
    owned = {slot for slot in vars(module).values() if isinstance(slot, Parameter | Buffer)}
    found = Repetition(list(call.arguments), [], [])
    for i, argument in enumerate(call.arguments):
        if isinstance(argument, tuple | list) and any(map(is_array, argument)):
            return None
        if not is_array(argument):
            continue
        found.template[i] = None
        places = [k for k, array in enumerate(given) if array is argument]
        slots = [slot for slot in owned if slot.data is argument]
        if len(places) + len(slots) != 1:  # another array, or one that cannot be told apart from a second
            return None
        found.arrays.extend((i, k) for k in places)
        found.slots.extend((i, slot) for slot in slots)
    return found


def like(y: Any) -> Any:
    """Return what calls that follow depend on: type, shape and dtype of an array, or of those of a tuple."""
    if isinstance(y, tuple):
        return tuple(like(one) for one in y)
    return type(y), getattr(y, "shape", None), getattr(y, "dtype", None)


class Repeated:
    """A layer, or one with what follows, whose op has been checked: `forward` calls its body."""

    __slots__ = (
        "arrays", "body", "layer", "outer", "residual", "slots", "stores", "template", "train", "values", "xp",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        found: Repetition,
        layer: Layer,
        slots: Any,
        xp: Any,
        residual: bool,
        outer: bool,
        stores: bool,
        train: bool,
    ) -> None:
        self.body, self.template, self.values, self.arrays = call.body, found.template, found.arrays, found.slots
        self.layer, self.xp, self.residual, self.outer = layer, xp, residual, outer
        self.slots, self.stores, self.train = slots, stores, train

    def forward(self, x: Any) -> tuple[Any, Callable[..., Any]]:
        given, arguments = x if self.residual else (x,), self.template.copy()
        for i, place in self.values:
            arguments[i] = given[place]
        for i, slot in self.arrays:
            arguments[i] = slot.data
        y, backward, *results = self.body(self.xp, *arguments)
        if self.stores:
            self.layer._store(results, self.train)
        if self.outer:  # somebody else gives dy
            backward = Backward(self.layer._op.__name__, y, len(self.slots) + 1, backward)
        if self.slots:
            return y, self.layer._backward(backward, self.slots, self.residual)
        return y, lambda dy, need_dx: backward(dy, _ALL)[0] if need_dx else None


def first(
    joined: Joined, name: str, module: Any, value: Any, train: bool
) -> tuple[Any, Callable[..., Any], Repeated | tuple[Any, ...] | None]:
    """Run a step; return its result, its backward pass and what is known of the step from now on.

    That is a `Repeated`, None for a layer of xcnn, whose result follows from shapes, or what `like` returns.
    """
    fused = isinstance(module, Fused)
    layer = module.head.module if fused else module
    given: tuple[Any, ...] = value if fused and module.residual is not None else (value,)
    fixed = repeats(layer)
    if not fixed and not isinstance(module, Held):
        y, backward = module.forward(value, train)
        return y, backward, like(y)
    plain = fixed and isinstance(layer, Layer) and layer._steady()
    if not plain or not all(map(is_array, given)) or any(one.shape != given[0].shape for one in given):
        y, backward = module.forward(value, train)
        return y, backward, None
    options: dict[str, Any] = {"activation": module.applied} if fused and module.applied is not None else {}
    options |= layer._given(given[0], train)
    residual = given[1] if len(given) > 1 else None
    with tracing() as made:
        y, op_backward, slots = layer._called(given[0], residual, options)
    y, *results = y if (stores := isinstance(y, tuple)) else (y,)
    known, end = repetition(made, y, given, layer), getattr(op_backward, "_function", None)
    if stores:
        layer._store(results, train)
    step = None
    if known is not None and isinstance(made[0].result, tuple) and made[0].result[1] is end:
        outer = name in joined.outer
        step = Repeated(made[0], known, layer, slots, namespace_of(y), residual is not None, outer, stores, train)
    return y, layer._backward(op_backward, slots, residual is not None), step


def known_steps(joined: Joined, x: Any, train: bool) -> dict[str, Any]:
    """Return what is known of the steps of a graph for x, to which the first run adds."""
    if not all(map(is_array, x if isinstance(x, tuple) else (x,))):
        return {}
    key = "training", like(x), train
    found: dict[str, Any] | None = joined.programs.get(key)
    if found is None:
        if len(joined.programs) >= _MOST:
            joined.programs.clear()
        found = joined.programs[key] = {}
    return found

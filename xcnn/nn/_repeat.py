"""Calls of layers that are checked once: afterwards, only the body is called again, with the arrays of the moment.

A call of an op can be repeated as that of its body if it called one body, with its own arrays, and returned what that
returned; and if the op says that shapes and options decide what it does (`apart`, see `ops.op`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from xcnn._array import is_array, namespace_of
from xcnn._dispatch import Call, tracing
from xcnn.nn._calls import calls
from xcnn.nn._layer import Layer, LayerBackward, Wanted
from xcnn.nn._plan import Fused, Held, Joined, like
from xcnn.ops._op import OPS, Backward
from xcnn.parameter import Buffer, Parameter

__all__ = ["Repeated", "Repetition", "first", "known_steps", "repetition"]

_MOST = 16
"""The number of shapes for which a graph keeps what it has prepared."""


class Repetition:
    """A call of a body whose arrays are found anew each time.

    Attributes
    ----------
    body, xp, template : what is called, and its arguments, None in the place of arrays.
    arrays : places among the arguments, and among the values.
    slots : places among the arguments, and the parameter or buffer.
    """

    __slots__ = ("arrays", "body", "slots", "template", "xp")

    def __init__(self, call: Call, xp: Any) -> None:
        self.body, self.xp, self.template = call.body, xp, list(call.arguments)
        self.arrays: list[tuple[int, int]] = []
        self.slots: list[tuple[int, Parameter | Buffer]] = []

    def __call__(self, values: Sequence[Any]) -> Any:
        """Call the body with arrays among these values."""
        arguments = self.template.copy()
        for i, place in self.arrays:
            arguments[i] = values[place]
        for i, slot in self.slots:
            arguments[i] = slot.data
        return self.body(self.xp, *arguments)


def repetition(
    made: Sequence[Call], result: Any, given: Sequence[Any], module: Any, places: Sequence[int] | None = None
) -> Repetition | None:
    """Return how the only call of a body in `made` is repeated, if `result` is what it returned; otherwise None.

    `places` are those of the `given` arrays among the values, by default their order.
    """
    if len(made) != 1:
        return None
    (call,) = made
    if (call.result[0] if isinstance(call.result, tuple) else call.result) is not result:
        return None
    owned = {slot for slot in vars(module).values() if isinstance(slot, Parameter | Buffer)}
    found, at = Repetition(call, namespace_of(result)), range(len(given)) if places is None else places
    for i, argument in enumerate(call.arguments):
        if isinstance(argument, tuple | list) and any(map(is_array, argument)):
            return None
        if not is_array(argument):
            continue
        found.template[i] = None
        sources = [place for place, array in zip(at, given, strict=True) if array is argument]
        slots = [slot for slot in owned if slot.data is argument]
        if len(sources) + len(slots) != 1:  # another array, or one that cannot be told apart from a second
            return None
        found.arrays.extend((i, place) for place in sources)
        found.slots.extend((i, slot) for slot in slots)
    return found


class Repeated(Wanted):
    """A module, or one with what follows, whose op has been checked: `forward` calls its body.

    Attributes
    ----------
    call : the repetition.
    stores : None if the op has one result, else whether the layer trains with the others.
    """

    __slots__ = ("call", "stores")
    call: Repetition
    stores: bool | None

    def forward(self, value: Any) -> tuple[Any, LayerBackward]:
        y, function, *results = self.call((value,) if self.returned is None else value)
        if self.stores is not None:
            self.module._store(results, self.stores)  # type: ignore[attr-defined]
        return y, LayerBackward(self, function)


def first(
    joined: Joined, name: str, module: Any, value: Any, several: bool, train: bool
) -> tuple[Any, Callable[..., Any], Repeated | tuple[Any, ...] | None]:
    """Run a step; return its result, its backward pass and what is known of the step from now on.

    That is a `Repeated`, None for a layer of xcnn, whose result follows from shapes, or what `like` returns.
    """
    given: tuple[Any, ...] = value if several else (value,)
    fused = isinstance(module, Fused)
    layer = module.head.module if fused else module
    found = calls(layer)
    if found is None or OPS[found[0]].apart is False:
        y, backward = module.forward(value, train)
        return y, backward, None if isinstance(module, Held) else like(y)
    op, own = OPS[found[0]], isinstance(layer, Layer)
    options: dict[str, Any] = {"activation": module.applied} if fused and module.applied is not None else {}
    if own:
        plain = layer._steady(given[0]) and all(is_array(one) and one.shape == given[0].shape for one in given)
    else:
        fits = several if op.variadic else len(given) == len(op.arrays)
        plain = fits and "training" not in found[1] and all(map(is_array, given))
    if not plain:
        y, backward = module.forward(value, train)
        return y, backward, None
    slots: Sequence[Any]
    returned: Sequence[int] | None = None
    with tracing() as made:
        if own:
            residual = given[1] if several else None
            y, backward, slots = layer._called(given[0], residual, options | layer._given(given[0], train))
            returned = (0, 1 + layer._slots.index("residual")) if several else None
        else:
            y, backward = op.function(*([given] if op.variadic else given), **found[1], **options)
            slots, returned = given[1:], range(len(given)) if several else None
    y, *results = y if (stores := type(y) is tuple) else (y,)
    call = repetition(made, y, given, layer)
    if stores:
        layer._store(results, train)
    outer = Backward(op.name, y, len(slots) + 1, None) if name in joined.outer else None
    body_backward = made[0].result[1] if call is not None and isinstance(made[0].result, tuple) else None
    known = body_backward is not None and body_backward is getattr(backward, "_function", None)
    step = Repeated(layer, slots, returned, outer)
    if known:
        step.call, step.stores = call, train if stores else None  # type: ignore[assignment]
    return y, LayerBackward(step, backward), step if known else None


def known_steps(joined: Joined, x: Any, train: bool) -> dict[str, Any]:
    """Return what is known of the steps of a graph for x, to which the first run adds."""
    key = "training", like(x), train
    found: dict[str, Any] | None = joined.programs.get(key)
    if found is None:
        if not all(map(is_array, x if isinstance(x, tuple) else (x,))):
            return {}
        if len(joined.programs) >= _MOST:
            joined.programs.clear()
        found = joined.programs[key] = {}
    return found

"""Training of a graph: a program for each shape, made while the graph runs for the first time.

An op is checked in the first run only. Afterwards its body is called, or its kernel, which is then bound to the shapes,
with the arrays of the moment. That is possible if the op called one body, with its own arrays, and returned what that
returned; and if it says that shapes and options decide what it does (`apart`, see `ops.op`). Other layers are called as
they are.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from xcnn._array import is_array, namespace_of
from xcnn._dispatch import Call, body, bound, tracing, trusted
from xcnn.errors import UsageError, XcnnError
from xcnn.nn._calls import calls
from xcnn.nn._forward import locate
from xcnn.nn._layer import Layer, LayerBackward, Wanted
from xcnn.nn._plan import OFTEN, Fused, Held, Joined, Plan, like, names, recorded
from xcnn.ops._op import OPS, Backward
from xcnn.parameter import Buffer, Parameter

__all__ = ["Repetition", "added", "at", "repetition", "trained"]


_SMALL = 1 << 20
"""The most bytes of all results and parameters if calls are recorded: beside more work, Python takes little time."""

_SHARE = 0.75
"""The most time that a record may take beside its steps, so that to compute the forward pass twice takes less."""


class Repetition(NamedTuple):
    """A call of a body whose arrays are found anew each time.

    Attributes
    ----------
    body, arguments : what is called, and its arguments, None in the place of arrays.
    arrays : places among the arguments, and among the values.
    slots : places among the arguments, and the parameter or buffer.
    """

    body: Callable[..., Any]
    arguments: list[Any]
    arrays: dict[int, int]
    slots: dict[int, Parameter | Buffer]


def repetition(
    made: Sequence[Call], result: Any, given: Sequence[Any], module: Any, places: Sequence[int]
) -> Repetition | None:
    """Return how the only call of a body in `made` is repeated, if `result` is what it returned; otherwise None.

    `places` are those of the `given` arrays among the values.
    """
    if len(made) != 1:
        return None
    (call,) = made
    if (call.result[0] if isinstance(call.result, tuple) else call.result) is not result:
        return None
    owned = {slot for slot in vars(module).values() if isinstance(slot, Parameter | Buffer)}
    found = Repetition(call.body, list(call.arguments), {}, {})
    for i, argument in enumerate(call.arguments):
        if isinstance(argument, tuple | list) and any(map(is_array, argument)):
            return None
        if not is_array(argument):
            continue
        found.arguments[i] = None
        sources = [place for place, array in zip(places, given, strict=True) if array is argument]
        slots = [slot for slot in owned if slot.data is argument]
        if len(sources) + len(slots) != 1:  # another array, or one that cannot be told apart from a second
            return None
        found.arrays.update((i, place) for place in sources)
        found.slots.update((i, slot) for slot in slots)
    return found


def at(places: Sequence[int]) -> Callable[[Sequence[Any]], Any]:
    """Return a function that returns a sequence of the values at some places."""
    if len(places) == 1:
        return operator.itemgetter(slice(places[0], places[0] + 1 or None))
    return operator.itemgetter(*places) if places else lambda values: ()


class _Step(NamedTuple):
    """A step of a program.

    Attributes
    ----------
    call : returns y and a backward pass, that of a body or a `_Module`; or NotImplemented.
    whole : returns them if `call` does not.
    arguments : returns those of both calls, of all values.
    done : the places of values that are not needed any more.
    wanted : what the backward pass of a body is asked for.
    """

    call: Callable[..., Any]
    whole: Callable[..., Any]
    arguments: Callable[[Sequence[Any]], Any]
    done: tuple[int, ...]
    wanted: Wanted | None = None


class _Module:
    """The backward pass of a module, among those of bodies."""

    __slots__ = ("backward",)

    def __init__(self, backward: Callable[[Any, bool], Any]) -> None:
        self.backward = backward


class _Changed(_Module):
    """That of a module which has returned another shape than before for the same shapes: what follows is unknown."""

    __slots__ = ()


def trained(plan: Plan, inputs: Sequence[Any], train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
    """Return the output of a graph, and its backward pass."""
    joined, held = plan.current()
    key = "training", train, *map(like, inputs)
    found = joined.programs.get(key)
    if found is None:
        found = _Training(joined, train)
        if not all(map(is_array, inputs)):
            return found(inputs, held, singly=True)
        result = found(inputs, held)
        if found.complete:
            joined.keep(key, found)
        return result
    return found(inputs, held)  # type: ignore[no-any-return]


class _Training:
    """The steps of a graph in training for arrays of one shape, which the first run makes.

    The values of a run are the arrays of the slots of `Joined`, the inputs, the results of the steps, and constants.
    It is complete when a run has made all steps, which it does not if a module changes the layers after it.
    """

    def __init__(self, joined: Joined, train: bool) -> None:
        self.joined, self.train, self.complete = joined, train, False
        self.first = len(joined.slots) + len(names(joined.inputs))
        known = [*names(joined.inputs), *[name for name, *_ in joined.training]]
        self.place = {name: place for place, name in enumerate(known, len(joined.slots))}
        self.empty: list[Any] = [None] * len(joined.training)
        self.outputs = self.places(joined.output)
        self.steps = [
            _Step(first := functools.partial(self.begin, k), first, at(self.places(inputs)), self.places([*done]))
            for k, (_, _, inputs, done, _) in enumerate(joined.training)
        ]
        self.route: tuple[Any, list[Any]] = None, []
        self.recordable = isinstance(joined.inputs, str) and isinstance(joined.output, str)
        self.record: Any = None
        self.runs, self.nbytes = 0, 0

    def places(self, inputs: str | Sequence[str]) -> tuple[int, ...]:
        """Return the places of values by their names."""
        return tuple([self.place[name] for name in names(inputs)])

    def __call__(
        self, inputs: Sequence[Any], held: Sequence[Any], singly: bool = False
    ) -> tuple[Any, Callable[[Any, bool], Any]]:
        """Return the output and the backward pass; after many calls, compiled calls are recorded and repeated."""
        updates = [parameter.updates for parameter in self.joined.parameters]
        self.runs += 1
        if self.runs == OFTEN and self.recordable:
            self.note_calls(inputs[0], held)
        found = self.record
        if found is not None and (y := found[0](inputs[0], held)) is not NotImplemented:
            return y, functools.partial(self.again, found, inputs, held, updates)
        y, backs = self.run(inputs, held, singly)
        return y, functools.partial(self.backward, backs, updates)

    def note_calls(self, x: Any, held: Sequence[Any]) -> None:
        """Record the calls of a forward pass, and those of a forward and a backward pass on the last route.

        So a backward pass computes the forward pass once more, but keeps nothing of it in between.
        """
        updates, last = [parameter.updates for parameter in self.joined.parameters], self.route[1]
        parameters: list[Parameter] = []
        small = self.nbytes + sum([getattr(array, "nbytes", _SMALL) for array in held]) <= _SMALL
        if not small or not last or last != (route := self.needed(self.joined.route(False))):
            return

        def forward(x: Any, held: Sequence[Any]) -> Any:
            return self.run((x,), held)[0]

        def both(dy: Any, given: Sequence[Any]) -> tuple[Any, ...]:
            made: list[tuple[Parameter, Any]] = []
            _, backs = self.run(given[:1], given[1:])
            self.backward(backs, updates, dy, False, lambda *one: made.append(one))
            parameters[:] = [parameter for parameter, _ in made]
            return tuple([grad for _, grad in made])

        xp, y = namespace_of(x), forward(x, held)
        if (first := recorded(xp, forward, x, [*held], _SHARE)) is not None:
            second = recorded(xp, both, y, [x, *held], _SHARE)
            if second is not None:
                self.record = first, second, parameters, route, like(y)
                self.joined.keep_record(self)

    def again(
        self, found: Any, inputs: Sequence[Any], held: Sequence[Any], updates: list[int], dy: Any, need_dx: bool
    ) -> Any:
        """Do what `backward` does, after a forward pass that a record has repeated."""
        joined, (_, both, parameters, route, kind) = self.joined, found
        if need_dx or self.needed(joined.route(need_dx)) != route:
            self.record = None  # to repeat the forward pass only was of no use, and may be of none again
        elif updates == [parameter.updates for parameter in joined.parameters] and like(dy) == kind:
            grads = both(dy, [*inputs, *held])
            if grads is not NotImplemented:
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.accumulate(grad)
                return None
        return self.backward(self.run(inputs, held)[1], updates, dy, need_dx)

    def run(self, inputs: Sequence[Any], held: Sequence[Any], singly: bool = False) -> tuple[Any, list[Any]]:
        """Run the steps, each module by itself if `singly`; return the output and the backward passes."""
        place, values, backs = self.first, [*held, *inputs, *self.empty], list[Any]()
        try:
            for place, (call, whole, arguments, done, _) in enumerate(self.steps, self.first):
                if singly:
                    k = place - self.first
                    both = self.module(k, None, *at(self.places(self.joined.training[k][2]))(values))
                else:
                    both = call(*arguments(values))
                    if both is NotImplemented:
                        both = whole(*arguments(values))
                values[place], back = both
                backs.append(back)
                for one in done:
                    values[one] = None
                if isinstance(back, _Module):  # unknown code may have replaced what other steps read
                    now = self.joined.arrays()
                    values[: len(held)] = now or held
                    singly = singly or now is None or type(back) is _Changed
        except XcnnError as error:
            for name, module in self.joined.training[place - self.first][4]:
                locate(error, name, module)
            raise
        self.complete |= not singly
        y = values[self.outputs[0]] if isinstance(self.joined.output, str) else tuple([values[k] for k in self.outputs])
        return y, backs

    def module(self, k: int, result: Any, *given: Any) -> tuple[Any, _Module]:
        """Call the module of a step; `result` is what `like` should return of the result, or None."""
        _, module, inputs, *_ = self.joined.training[k]
        y, back = module.forward(given[0] if isinstance(inputs, str) else given, self.train)
        return y, (_Module if result is None or result == like(y) else _Changed)(back)

    def begin(self, k: int, *given: Any) -> tuple[Any, Any]:
        """Run a step for the first time, and replace it by what is known of it."""
        node, module, inputs, *_ = self.joined.training[k]
        several = not isinstance(inputs, str)
        layer, applied = (module.head.module, module.applied) if isinstance(module, Fused) else (module, None)
        found, own = calls(layer), isinstance(layer, Layer)
        name, given_options = ("", {}) if found is None else found
        op = OPS.get(name)
        if op is None or op.apart is False:
            y, back = self.module(k, None, *given)
            return self.called(k, None if isinstance(module, Held) else like(y), y, back)
        if own:
            plain = layer._steady(given[0]) and all(is_array(a) and a.shape == given[0].shape for a in given)
        else:
            fits = several if op.variadic else len(given) == len(op.arrays)
            plain = fits and "training" not in given_options and all(map(is_array, given))
        if not plain:
            return self.called(k, None, *self.module(k, None, *given))
        options: dict[str, Any] = {} if applied is None else {"activation": applied}
        slots: Sequence[Any]
        returned: Sequence[int] | None = None
        with tracing() as made:
            if own:
                residual = given[1] if several else None
                y, backward, slots = layer._called(given[0], residual, options | layer._given(given[0], self.train))
                returned = (0, 1 + layer._slots.index("residual")) if several else None
            else:
                y, backward = op.function(*([given] if op.variadic else given), **given_options, **options)
                slots, returned = given[1:], range(len(given)) if several else None
        y, *results = y if (stores := type(y) is tuple) else (y,)
        outer = Backward(op.name, y, len(slots) + 1, None) if node in self.joined.outer else None
        wanted = Wanted(layer, slots, returned, outer)
        repeated = repetition(made, y, given, layer, self.places(inputs))
        passed = made[0].result[1] if repeated is not None and isinstance(made[0].result, tuple) else backward
        if repeated is not None and passed is getattr(backward, "_function", None):
            self.steps[k] = self.repeated(self.steps[k], repeated, made[0], layer if stores else None, wanted)
        else:
            y, backward = self.called(k, None, y, _Module(LayerBackward(wanted, backward)))
        if stores:
            layer._store(results, self.train)
        return y, backward

    def called(self, k: int, result: Any, y: Any, backward: _Module) -> tuple[Any, _Module]:
        """Let a step call its module from now on; return y and backward."""
        call, self.recordable = functools.partial(self.module, k, result), False
        self.steps[k] = self.steps[k]._replace(call=call, whole=call)
        return y, backward

    def repeated(self, step: _Step, call: Repetition, made: Call, layer: Any, wanted: Wanted) -> _Step:
        """Return a step that repeats the call of a body, whose further results the layer stores unless it is None."""
        slots, arguments, several = self.joined.slots, made.arguments, len(made.result) > 2
        places = call.arrays | {i: slots.index(slot) for i, slot in call.slots.items()}
        for i, constant in enumerate(call.arguments):
            if i not in places:
                places[i] = self.first + len(self.empty)
                self.empty.append(constant)
        xp = namespace_of(made.result[0])
        buffers = [(i, slot) for i, slot in call.slots.items() if isinstance(slot, Buffer)]
        draws = any(isinstance(argument, np.random.Generator) for argument in arguments)
        self.recordable &= not several and not buffers and not draws and trusted(call.body, xp)
        self.nbytes += getattr(made.result[0], "nbytes", 0)
        whole: Callable[..., Any] = functools.partial(call.body, xp)
        run = bound(call.body, xp, arguments, whole=True) or whole
        if several:
            run, whole = (functools.partial(_stored, one, layer, self.train) for one in (run, whole))
        taken = at([places[i] for i in range(len(arguments))])
        if buffers:
            taken = functools.partial(_moving, taken, buffers)
        return step._replace(call=run, whole=whole, arguments=taken, wanted=wanted)

    def backward(
        self, backs: list[Any], updates: list[int], dy: Any, need_dx: bool, add: Callable[..., Any] | None = None
    ) -> Any:
        """Add to the gradients of parameters, or call `add(parameter, gradient)`; return that of inputs, or None."""
        joined = self.joined
        route = self.needed(joined.route(need_dx))
        if updates != [parameter.updates for parameter in joined.parameters]:
            _refuse(dict(zip(joined.parameters, updates, strict=True)), [(backs[one[0]], one[2]) for one in route])
        todo = [backs[one[0]] for one in route]
        backs.clear()
        one = isinstance(joined.output, str)
        grads: dict[int, Any] = {}
        for place, grad in zip(self.outputs, (dy,) if one else dy or (), strict=False):
            _accumulate(grads, place, grad)
        del dy
        for _, place, wanted, needs, parameters, sources, several in reversed(route):
            function, dy = todo.pop(), grads.pop(place, None)
            if dy is None:
                continue
            if isinstance(function, _Module):
                found = function.backward(dy, len(sources) > 0)
                found = (found,) if not several else found or ()
                for _, i, source in sources:
                    if i < len(found):
                        _accumulate(grads, source, found[i])
            else:
                found = function(dy if wanted.outer is None else wanted.outer.checked(dy), needs)
                for i, parameter in parameters:
                    if found[i] is not None:
                        parameter.accumulate(found[i]) if add is None else add(parameter, found[i])
                for i, _, source in sources:
                    _accumulate(grads, source, found[i])
            found = None  # it may be a part of a sum, and not be needed any more
        if not need_dx:
            return None
        taken = [grads.get(place) for place in self.places(joined.inputs)]
        return taken[0] if isinstance(joined.inputs, str) else tuple(taken)

    def needed(self, route: list[Any]) -> list[tuple[Any, ...]]:
        """Return the steps of a route of `Joined` with what they are asked for."""
        if self.route[0] is not route:
            found = []
            for k, _, inputs, wants in route:
                wanted, several = self.steps[k].wanted, not isinstance(inputs, str)
                which = range(len(names(inputs))) if wanted is None else wanted.returned or (0,)
                sources = [
                    (i, j, self.place[name])
                    for j, (i, name) in enumerate(zip(which, names(inputs), strict=True))
                    if name in wants
                ]
                parameters = [(i, one) for i, one in (wanted.parameters if wanted else ()) if one.trainable]
                asked = {i for i, *_ in (*sources, *parameters)}
                needs = tuple([i in asked for i in range(len(wanted.needs))]) if wanted else ()
                found.append((k, self.first + k, wanted, needs, parameters, sources, several))
            self.route = route, found
        return self.route[1]


def _moving(
    taken: Callable[[Sequence[Any]], Any], buffers: Sequence[tuple[int, Buffer]], values: Sequence[Any]
) -> list[Any]:
    """Return arguments with the buffers of the moment, as a layer that is used twice has moved them before."""
    arguments = [*taken(values)]
    for i, buffer in buffers:
        arguments[i] = buffer.data
    return arguments


def _stored(run: Callable[..., Any], layer: Any, train: bool, *arguments: Any) -> Any:
    """Call a body of more than two results, which the layer stores unless it is None."""
    found = run(*arguments)
    if found is NotImplemented:
        return found
    y, backward, *results = found
    if layer is not None:
        layer._store(results, train)
    return y, backward


def _refuse(updates: dict[Parameter, int], route: Sequence[tuple[Any, Wanted | None]]) -> None:
    """Raise an error if parameters have been updated since the forward pass of their layers."""
    for back, wanted in reversed(route):
        for _, parameter in wanted.parameters if wanted is not None and not isinstance(back, _Module) else ():
            if parameter.updates != updates[parameter]:
                changed = "an optimizer has changed the parameters since forward; call backward first"
                raise UsageError(f"{type(wanted.module).__name__}: {changed}")


@body
def added(xp: ModuleType, x: Any, other: Any) -> Any:
    """Return the sum of two gradients."""
    return x + other


def _accumulate(grads: dict[int, Any], place: int, grad: Any) -> None:
    """Add a gradient to that of a value; those of a node with several results are tuples."""
    before = grads.get(place)
    if before is None:
        grads[place] = grad
    elif isinstance(grad, tuple):
        grads[place] = tuple(p if q is None else q if p is None else p + q for p, q in zip(before, grad, strict=True))
    elif grad is not None:
        grads[place] = added(namespace_of(grad), before, grad)

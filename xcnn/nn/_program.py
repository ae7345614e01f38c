"""Programs: the calls of a graph for arrays of one shape, prepared while it runs on them for the first time.

All checks of the ops are made then. Afterwards each step is one call of a body with the current arrays of the
parameters: nothing that is computed from weights is kept, so none can be stale.

Convolutions and linear layers, with the batch norm, addition and activation after them, are one call of
`conv_inference` or `linear_inference`. Any other layer is the call of its body if that can be repeated (`_repeat.py`);
all others are called as they are.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from xcnn._array import Array, is_array, namespace_of, zeros
from xcnn._dispatch import bound, tracing, trusted
from xcnn.nn._calls import calls
from xcnn.nn._plan import CONVS, Flat, Fused, Held, Joined, alone, like, names
from xcnn.nn._repeat import at, repetition
from xcnn.ops._op import OPS
from xcnn.ops.conv import conv_inference
from xcnn.ops.linear import linear_inference
from xcnn.ops.norm import norm_inference

__all__ = ["Changed", "Cost", "Program", "prepared"]

Values = list[Any]
Run = Callable[..., Any]
Step = tuple[Run, Run, Callable[[Values], Any], int, tuple[int, ...]]


class _Unknown(Exception):
    """A step cannot be prepared in this way."""


class Changed(Exception):
    """A module returned an array of another shape than before, for the same shapes, or replaced a known parameter."""


class Cost(NamedTuple):
    """What a step reads, writes and computes for one image, and the bytes of its weights; `pixels` of a result."""

    nbytes: int
    flops: int
    pixels: int
    weights: int


class Program:
    """The calls of a graph for arrays of one shape.

    Attributes
    ----------
    steps : calls, each with one that makes it if the first returns NotImplemented; the places of arguments among the
        values, and that of the result; and the places of values that are not needed any more.
    values : the inputs, the results, and constants; the arrays of the slots of `Joined` follow.
    inputs : the number of inputs, None for one that is no tuple.
    apart : whether each image is computed by itself, as far as is known.
    costs : those of the steps.
    recordable : whether all steps are bound calls of this package's bodies, so that they do nothing else.
    nbytes : the bytes of all results.
    runs, record : how often it has run, and what repeats its compiled calls; see `_inference.py`.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.values: Values = []
        self.inputs: int | None = None
        self.outputs: tuple[int, ...] = ()
        self.several = False
        self.apart = True
        self.costs: list[Cost] = []
        self.recordable, self.nbytes, self.runs = True, 0, 0
        self.record: Run | None = None

    def __call__(self, x: Any, held: Sequence[Any]) -> Any:
        values = [*self.values, *held]
        if self.inputs is None:
            values[0] = x
        else:
            values[: self.inputs] = x
        for fast, whole, arguments, place, done in self.steps:
            y = fast(*arguments(values))
            values[place] = whole(*arguments(values)) if y is NotImplemented else y
            for one in done:
                values[one] = None
        return tuple(values[one] for one in self.outputs) if self.several else values[self.outputs[0]]


def prepared(joined: Joined, x: Any, held: Sequence[Any]) -> tuple[Program, Any]:
    """Make the program for the shape of x while running it with the arrays of slots; return it and the output."""
    maker = _Maker(joined, x, held)
    for name, module, inputs, done, _ in joined.inference:
        maker.step(name, module, inputs)
        maker.release(done)
    return maker.finished()


class _Maker:
    """Makes a program by running its steps one after the other; the places of slots are negative."""

    def __init__(self, joined: Joined, x: Any, held: Sequence[Any]) -> None:
        self.joined, self.program, self.held = joined, Program(), held
        several = not isinstance(joined.inputs, str)
        self.values: Values = [*x] if several else [x]
        x = self.values[0]
        self.xp, self.n = namespace_of(x), x.shape[0] if x.shape else 0
        self.place = {name: i for i, name in enumerate(names(joined.inputs))}
        self.batched = {*self.place.values()}
        self.slots = {slot: i - len(held) for i, slot in enumerate(joined.slots)}
        self.program.values = [None] * len(self.values)
        self.program.inputs = len(self.batched) if several else None
        self.program.recordable = not several
        self.program.apart = joined.apart and len(x.shape) > 1

    def at(self, place: int) -> Any:
        return self.held[place] if place < 0 else self.values[place]

    def get(self, name: str) -> Any:
        return self.at(self.place[name])

    def constant(self, value: Any) -> int:
        """Return the place of a value that is always the same."""
        self.values.append(value)
        self.program.values.append(value)
        return len(self.values) - 1

    def call(self, places: Sequence[int], whole: Run, fast: Run | None = None, result: Any = NotImplemented) -> int:
        """Append a call, and make it unless the result is known; return the place of the result."""
        given, place = [*map(self.at, places)], self.constant(None)
        if result is NotImplemented and fast is not None:
            result = fast(*given)
        self.values[place] = whole(*given) if result is NotImplemented else result
        self.program.recordable &= fast is not None
        self.program.nbytes += getattr(self.values[place], "nbytes", 0)
        self.program.steps.append((fast or whole, whole, at(places), place, ()))
        return place

    def body(self, called: Run, places: Sequence[int], result: Any = NotImplemented, several: bool = False) -> int:
        """Append a call of a body, of whose results the first is meant if there are several."""
        xp = self.xp

        def whole(*arguments: Any) -> Any:
            found = called(xp, *arguments)
            return found[0] if several else found

        self.program.recordable &= trusted(called, xp)
        return self.call(places, whole, bound(called, xp, [*map(self.at, places)]), result)

    def put(self, name: str, place: int, inputs: Sequence[str]) -> None:
        """Name the result of a step."""
        self.place[name], result = place, self.at(place)
        sources = [self.place[one] for one in inputs]
        if not self.batched.isdisjoint(sources):
            self.batched.add(place)
            self.program.apart &= is_array(result) and len(result.shape) > 0 and result.shape[0] == self.n

    def release(self, done: set[str]) -> None:
        """Let go of results that are not needed after the last step."""
        places = tuple(place for one in done if (place := self.place[one]) >= 0)
        if places:
            *step, before = self.program.steps[-1]
            self.program.steps[-1] = cast(Step, (*step, (*before, *places)))
        for one in places:
            self.values[one] = None

    def finished(self) -> tuple[Program, Any]:
        program, output = self.program, self.joined.result
        program.several = not isinstance(output, str)
        program.outputs = tuple(self.place[name] for name in names(output))
        program.apart &= self.batched.issuperset(program.outputs)
        results = tuple(map(self.at, program.outputs))
        return program, results if program.several else results[0]

    def step(self, name: str, module: Any, inputs: str | Sequence[str]) -> None:
        if isinstance(module, Held):
            self.place[name] = self.slots[module.slot]
            return
        try:
            if isinstance(module, Fused) and alone(module.head.module):
                place, cost = self.joint(module)
            else:
                place = self.single(module, inputs)
                arrays = [self.get(one) for one in names(inputs)] + [self.at(place)]
                nbytes = sum(a.nbytes for a in arrays if isinstance(a, np.ndarray)) // max(1, self.n)
                cost = Cost(nbytes, 0, 1, 0)
        except _Unknown:
            self.parts(module)
            return
        self.put(name, place, names(inputs))
        self.program.costs.append(cost)

    def parts(self, fused: Fused) -> None:
        """Append the nodes of a fused one by one, or all before the addition as one."""
        members: list[Flat] = [one for one in (fused.head, fused.norm, fused.add, fused.activation) if one is not None]
        if fused.add is not None:
            before = fused.norm or fused.head
            self.step(before.name, Fused(fused.head, fused.norm), fused.head.inputs)
            members = members[members.index(fused.add) :]
        for one in members:
            self.step(one.name, one.module, one.inputs)
            if one is not fused.head:
                self.release({*names(one.inputs)} - {*names(fused.head.inputs), fused.residual})

    def joint(self, fused: Fused) -> tuple[int, Cost]:
        """Append a call of the body for inference of a convolution, linear layer or batch norm and what follows."""
        head, x = fused.head.module, self.get(str(fused.head.inputs))
        found = calls(head)
        if found is None or not is_array(x) or namespace_of(x) is not self.xp:
            raise _Unknown
        op, options = found
        made = self.checked(head, x)
        weight: Any = getattr(head, "weight", None)
        bias, pixels = getattr(head, "bias", None), 1
        rest: tuple[Any, ...] = ()
        if op == "batch_norm":
            shape = x.shape
        elif op == "linear" and x.ndim > 1 and (x.ndim == 2 or fused.norm is None):
            shape = (*x.shape[:-1], weight.data.shape[0])
            pixels = math.prod(x.shape[1:-1])
        elif op in CONVS and made[0] is x:
            rest = made[3], made[4]
            outs = tuple(axis.out for axis in made[3])
            shape, pixels = (x.shape[0], weight.data.shape[0], *outs), math.prod(outs)
        else:
            raise _Unknown
        if fused.norm is not None:
            self.checked(fused.norm.module, self.xp.broadcast_to(zeros(self.xp, (), x), shape))
        place, other = self.place[str(fused.head.inputs)], None
        if fused.residual is not None:
            residual, other = self.get(fused.residual), self.place[fused.residual]
            same = is_array(residual) and namespace_of(residual) is self.xp and residual.dtype == x.dtype
            if not same or residual.shape != shape:
                raise _Unknown
        self.program.apart &= place in self.batched and (other is None or other in self.batched)
        self.program.apart &= OPS[op].is_apart(x.shape, options)
        applied = fused.applied
        size = 0 if op == "batch_norm" else math.prod(weight.data.shape)
        flops = 2 * pixels * size
        each = math.prod(x.shape[1:]) + math.prod(shape[1:]) * (1 if other is None else 2)
        cost = Cost(each * _itemsize(x), flops, pixels, size * _itemsize(x))
        after = (self.constant(None) if other is None else other), self.constant(applied)
        if op == "batch_norm":
            return self.body(norm_inference, (place, self.statistics(head), *after)), cost
        norm = self.constant(None) if fused.norm is None else self.statistics(fused.norm.module)
        body: Any = linear_inference if op == "linear" else conv_inference
        places = place, self.slot(weight), self.slot(bias), norm, *after, *map(self.constant, rest)
        return self.body(body, places), cost

    def slot(self, slot: Any) -> int:
        """Return the place of the array of a parameter or buffer, or of None."""
        return self.constant(None) if slot is None else self.slots[slot]

    def statistics(self, norm: Any) -> int:
        """Append a step that makes a tuple of the arrays of a batch norm, as the bodies for inference take them."""
        arrays = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return self.call([*map(self.slot, arrays), self.constant(float(norm.eps))], _together, _together)

    def checked(self, module: Any, x: Array) -> tuple[Any, ...]:
        """Make the checks of a layer for x without running it; return the arguments of the body that it would call."""
        with tracing(stop=True) as made:
            module.forward(x, False)
        if not made:
            raise _Unknown
        return made[0].arguments

    def single(self, module: Any, inputs: str | Sequence[str]) -> int:
        """Append a module, with what its op takes of those after it: a call that repeats it."""
        fused = module if isinstance(module, Fused) else None
        head, several = module if fused is None else fused.head.module, not isinstance(inputs, str)
        places = [self.place[one] for one in names(inputs)]
        given = [*map(self.at, places)]
        value = tuple(given) if several else given[0]

        def run(*values: Any) -> Any:
            return module(values if several else values[0])

        found = calls(head)
        if found is None or OPS[found[0]].apart is False or not all(map(is_array, given)):
            if fused is not None:
                raise _Unknown
            self.program.apart = False
            expected: Any = None
            slots = self.joined.slots

            def checked(*values: Any) -> Any:
                before = [slot.data for slot in slots]
                y = run(*values)
                replaced = not all(slot.data is data for slot, data in zip(slots, before, strict=True))
                if replaced or (expected is not None and like(y) != expected):
                    raise Changed
                return y

            place = self.call(places, checked)
            expected = like(self.at(place))
            return place
        more: dict[str, Any] = {}
        if fused is not None and fused.residual is not None:
            value, more = given[0], {"residual": given[1]}
            if given[0].shape != given[1].shape:
                raise _Unknown
        with tracing() as made:
            result = (head.forward if fused is None else head._forward)(value, False, **more)[0]
        repeated = repetition(made, result, given, head, places)
        if fused is not None and repeated is None:
            raise _Unknown
        if not self.batched.isdisjoint(places):
            self.program.apart &= self.aligned(*found, places)
        if repeated is None:
            return self.call(places, run, None, result)
        if fused is not None and fused.activation is not None:  # the body takes any, as nothing is kept
            arguments = [*inspect.signature(repeated.body).parameters][1:]
            repeated.arguments[arguments.index("activation")] = fused.applied
            result = NotImplemented
        sources = repeated.arrays | {i: self.slots[slot] for i, slot in repeated.slots.items()}
        arguments_at = [sources[i] if i in sources else self.constant(one) for i, one in enumerate(repeated.arguments)]
        return self.body(repeated.body, arguments_at, result, isinstance(made[0].result, tuple))

    def aligned(self, op: str, options: dict[str, Any], places: Sequence[int]) -> bool:
        """Return whether the arrays at places are cut at the same images, or are the same for all images."""
        shapes = [self.at(place).shape for place in places if place in self.batched]
        fixed = [self.at(place).shape for place in places if place not in self.batched]
        same = all(len(shape) == len(shapes[0]) and shape[:1] == (self.n,) for shape in shapes)
        fits = all(len(shape) < len(shapes[0]) or shape[:1] == (1,) for shape in fixed)
        return same and fits and (not fixed or not OPS[op].variadic) and OPS[op].is_apart(shapes[0], options)


def _together(*values: Any) -> tuple[Any, ...]:
    return values


def _itemsize(x: Array) -> int:
    return int(getattr(getattr(x, "dtype", None), "itemsize", 4))

"""The steps that a graph runs: its nodes and those of the graphs inside it, of which some are joined into one call.

What is joined is read off the ops. An op with the option `activation` takes the activation after it, if the slope of
that is a function of its result; an op with the array argument `residual` takes the addition after it. In inference,
where no op needs to keep anything, convolutions and linear layers also take the batch norm after them, the addition
after that, and any activation: see `_inference.py`.
"""

import operator
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from xcnn._dispatch import body, version
from xcnn.nn._calls import activation, calls, options_after, repeats
from xcnn.nn._layer import Layer
from xcnn.nn._module import Module
from xcnn.ops._formula import FORMULAS, Activation
from xcnn.ops._op import OPS
from xcnn.parameter import Buffer, Parameter, change

__all__ = ["CONVS", "LITTLE", "OFTEN", "Flat", "Fused", "Held", "Joined", "Node", "Plan", "Step"]
__all__ += ["alone", "like", "names", "recorded"]

Node = tuple[str, Module | Parameter | Buffer, str | Sequence[str]]
"""Name, module, and inputs: one name for one array, a sequence of names for a tuple of arrays."""

_MOST_PROGRAMS = 64
"""The number of shapes for which a graph keeps what it has prepared."""

_MOST_RECORDED = 16
"""The number of records that a graph keeps, as each of them has memory of its own."""

OFTEN, LITTLE = 30, 4 << 20
"""The runs of a program after which its calls are recorded, if all results have no more than so many bytes: beside more
work, the Python between the calls takes little time, and recording would take much memory."""

CONVS = ("conv1d", "conv2d", "conv3d")
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "stochastic_depth")


class Held:
    """A parameter or buffer in the place of a module: its array is the node's result."""

    def __init__(self, slot: Parameter | Buffer) -> None:
        self.slot = slot

    def forward(self, x: Any, train: bool) -> tuple[Any, Callable[..., Any]]:
        """Return the array, and a backward pass that adds to the parameter's gradient."""
        return self.slot.data, self._accumulate

    def _accumulate(self, dy: Any, need_dx: bool) -> None:
        if isinstance(self.slot, Parameter):
            self.slot.accumulate(dy)

    def __call__(self, x: Any) -> Any:
        """Return the array."""
        return self.slot.data

    def _trains(self) -> bool:
        return isinstance(self.slot, Parameter) and self.slot.trainable


class Flat(NamedTuple):
    """A node of a graph or of a graph inside it.

    Attributes
    ----------
    name : its name in the outermost graph, such as `body..0`, which cannot be that of an input or of another node.
    module, inputs : as in `Node`, with the names of the outermost graph.
    path : the names and modules from the innermost to the outermost graph, for errors.
    """

    name: str
    module: Any
    inputs: str | Sequence[str]
    path: tuple[tuple[str, Any], ...]


@dataclass(slots=True)
class Fused:
    """A node and those after it that its op takes: a batch norm (in inference), an addition and an activation.

    Attributes
    ----------
    residual : the name of what is added.
    applied : the activation as ops take it.
    """

    head: Flat
    norm: Flat | None = None
    add: Flat | None = None
    activation: Flat | None = None
    residual: str | None = None
    applied: Activation = None

    def forward(self, x: Any, train: bool) -> tuple[Any, Callable[..., Any]]:
        """Return the result of the last node, and one backward pass for all.

        With a residual, x is a pair of the input of the head and the residual, and so are the gradients.
        """
        more: dict[str, Any] = {}
        if self.add is not None:
            x, residual = x
            if getattr(residual, "shape", None) != getattr(x, "shape", ()):
                return self._singly(x, residual, train)
            more["residual"] = residual
        if self.applied is not None:
            more["activation"] = self.applied
        result: tuple[Any, Callable[..., Any]] = self.head.module._forward(x, train, **more)
        return result

    def _singly(self, x: Any, residual: Any, train: bool) -> tuple[Any, Callable[..., Any]]:
        """Run the nodes one after the other, for a residual that broadcasts."""
        assert self.add is not None
        y, back = self.head.module.forward(x, train)
        first = self.add.inputs[0] != self.residual
        y, back_add = self.add.module.forward((y, residual) if first else (residual, y), train)
        y, back_last = (y, None) if self.activation is None else self.activation.module.forward(y, train)

        def backward(dy: Any, need_dx: bool) -> Any:
            pair = back_add(dy if back_last is None else back_last(dy))
            dy, dresidual = pair if first else reversed(pair)
            return back(dy, need_dx), dresidual

        return y, backward

    def _trains(self) -> bool:
        return bool(self.head.module._trains())


Step = tuple[str, Any, str | Sequence[str], set[str], tuple[tuple[str, Any], ...]]
"""Name, what runs (a module, `Held` or `Fused`), inputs, names that are no longer needed after it, and path."""


class Plan:
    """The nodes of a graph that lead to its output.

    Attributes
    ----------
    nodes : all nodes.
    output : the name of the node whose result is the graph's, or a sequence of names.
    inputs : the name of the graph's input, or a sequence of names.
    singly : the steps of these nodes alone, none joined.
    """

    def __init__(self, nodes: Sequence[Node], output: str | Sequence[str], inputs: str | Sequence[str] = "x") -> None:
        self.nodes, self.output, self.inputs = nodes, output, inputs
        for _, module, _ in nodes:
            if isinstance(module, Module):
                module.modules()  # raises an error if a module contains itself
        flat = [
            Flat(name, one if isinstance(one, Module) else Held(one), sources, ((name, one),))
            for name, one, sources in nodes
        ]
        self.singly = _steps([(node.name, node.module, node.inputs, node.path) for node in flat], output)
        run = {name for name, *_ in self.singly}
        self.needed = [node for node in flat if node.name in run]
        self._joined: Joined | None = None

    def joined(self) -> "Joined":
        """Return the nodes of this graph and of those inside it, joined as the layers are now."""
        return self.current()[0]

    def current(self, sure: bool = True) -> tuple["Joined", list[Any]]:
        """Return the joined nodes and the arrays of their slots; if not `sure`, one may have been reshaped in place."""
        found = self._joined
        arrays = None if found is None else found.arrays(sure)
        if found is None or arrays is None:
            found = self._joined = Joined(self)
            arrays = found.held
        return found, arrays

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_joined": None}


class Joined:
    """The nodes of a graph and of the graphs inside it, in the steps of training and of inference.

    They hold as long as no layer of xcnn gets another attribute: an option, a parameter, a `forward` of its own.

    Attributes
    ----------
    inputs, output : as in `Plan`, with the names of all these nodes.
    training, inference : the steps.
    result : the output of inference, which leaves out dropout.
    apart : whether the ops of all nodes may compute the examples of a batch apart.
    slots, held : the parameters and buffers of layers that are known, and their arrays.
    outer : the names of results whose gradients come from outside: from the caller, or a module of unknown code or op.
    parameters : the parameters among these.
    programs : what `_inference.py` and `_repeat.py` keep for each shape.
    """

    def __init__(self, plan: Plan) -> None:
        modules: list[Module] = []
        nodes, names_of_output = _flatten(plan, modules)
        self.inputs, self.output = plan.inputs, names_of_output
        self.nodes = nodes
        self.training: list[Step] = _steps(_join(nodes, names(self.output), inference=False), self.output)
        kept, self.result = _without_dropout(nodes, self.output)
        self.inference: list[Step] = _steps(_join(kept, names(self.result), inference=True), self.result)
        opaque = [node.inputs for node in nodes if not isinstance(node.module, Held) and not repeats(node.module)]
        self.outer = {*names(self.output), *(name for inputs in opaque for name in names(inputs))}
        self.apart = not opaque
        self.programs: dict[Any, Any] = {}
        layers = [node.module for node in nodes if calls(node.module, watched=True) is not None]
        known = [*modules, *layers]
        copies = [one for module in known for one in _copies(vars(module))]
        self._now, self._then = [now for now, _ in copies], [then for _, then in copies]
        self._version = version()
        values = [value for module in known for value in vars(module).values()]
        held = [value for value in values if isinstance(value, Parameter | Buffer)]
        held += [node.module.slot for node in nodes if isinstance(node.module, Held)]
        self.slots = [*dict.fromkeys(held)]
        self._plain = all(type(slot).data is Parameter.data for slot in self.slots)  # others may compute their arrays
        self._change, self.held = change() if self._plain else None, [slot.data for slot in self.slots]
        self._kinds = [*map(like, self.held)]
        self._shapes = [shape for _, shape, _ in self._kinds]
        self._buffers = [slot for slot in self.slots if isinstance(slot, Buffer)]
        self._trained = [buffer.trainable for buffer in self._buffers]
        self.parameters = [slot for slot in held if isinstance(slot, Parameter)]
        below = {id(slot) for slot in self.parameters}
        plain = {id(one) for one in layers if below.issuperset(map(id, one.parameters()))}
        self._others = [one.module for one in nodes if isinstance(one.module, Module) and id(one.module) not in plain]
        self._routes: dict[Any, list[Any]] = {}
        self._recorded: deque[Any] = deque()

    def arrays(self, sure: bool = True) -> list[Any] | None:
        """Return the arrays of the slots, the same list if they are the same.

        Return None if one has another shape or dtype, or a layer other attributes; see `current` for `sure`.
        """
        try:
            if self._now != self._then or version() != self._version:
                return None
            latest = change()
            if latest is not self._change:
                found = [slot.data for slot in self.slots]
                if not all(map(operator.is_, found, self.held)):
                    if [*map(like, found)] != self._kinds:
                        return None
                    self.held = found
                if [buffer.trainable for buffer in self._buffers] != self._trained:
                    return None
                self._change = latest if self._plain else None
        except Exception:  # such as a comparison of arrays
            return None
        return None if sure and self.reshaped() else self.held

    def keep(self, key: Any, program: Any) -> None:
        """Keep a program for a shape, and forget the oldest one if there are many."""
        if len(self.programs) >= _MOST_PROGRAMS:
            oldest, *_ = self.programs
            self.programs.pop(oldest, None)
        self.programs[key] = program

    def keep_record(self, program: Any) -> None:
        """Note that a program has got a record, and drop the oldest one if there are many."""
        self._recorded.append(program)
        if len(self._recorded) > _MOST_RECORDED:
            self._recorded.popleft().record = None

    def reshaped(self) -> bool:
        """Return whether an array has got another shape in place, as NumPy allows."""
        return [array.shape for array in self.held] != self._shapes

    def route(self, need_dx: bool) -> list[tuple[int, str, Any, Sequence[str]]]:
        """Return what a backward pass calls: number, name and inputs of steps, and the inputs that need gradients.

        These lead to a parameter that is trained now, or to x if `need_dx`. Each backward pass asks anew, as parameters
        may be frozen at any time.
        """
        key = need_dx, *[one.trainable for one in self.parameters], *[one._trains() for one in self._others]
        found = self._routes.get(key)
        if found is None:
            wanted, found = set(names(self.inputs)) if need_dx else set(), []
            for k, (name, module, inputs, *_) in enumerate(self.training):
                places = [one for one in names(inputs) if one in wanted]
                if places or module._trains():
                    wanted.add(name)
                    found.append((k, name, inputs, places))
            self._routes = {key: found}
        return found


@body
def recorded(xp: ModuleType, run: Callable[..., Any], x: Any, held: list[Any], share: float) -> Any:
    """Return a function of x and a list of arrays that does what `run` does for arrays of the same shapes, or None.

    It takes less than a share of the time. It returns NotImplemented if it cannot do that. Kernels may record what
    `run` calls.
    """
    return None


def like(y: Any) -> Any:
    """Return what calls that follow depend on: type, shape and dtype of an array, or of those of a tuple."""
    if isinstance(y, tuple):
        return tuple(like(one) for one in y)
    return type(y), getattr(y, "shape", None), getattr(y, "dtype", None)


def _copies(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a dict or list and those inside it, each with a copy, by which changes are seen."""
    yield values, values.copy()
    for value in values.values() if isinstance(values, dict) else values:
        if type(value) in (dict, list):
            yield from _copies(value)


def names(inputs: str | Sequence[str]) -> Sequence[str]:
    """Return the names among a node's inputs."""
    return (inputs,) if isinstance(inputs, str) else inputs


def _flatten(plan: Plan, modules: list[Module]) -> tuple[list[Flat], str | Sequence[str]]:
    """Return the nodes of a graph and of the graphs inside it, and the output; add these graphs to `modules`."""
    nodes: list[Flat] = []
    place = {name: name for name in names(plan.inputs)}  # where the result of a node is
    for node in plan.needed:
        sources: Any = place[node.inputs] if isinstance(node.inputs, str) else tuple(place[n] for n in node.inputs)
        inner = node.module._inner() if isinstance(node.module, Module) else None
        fits = (
            inner is not None
            and type(sources) is type(inner.inputs)
            and len(names(sources)) == len(names(inner.inputs))
        )
        if inner is None or not fits or not isinstance(inner.output, str):
            nodes.append(node._replace(inputs=sources))
            place[node.name] = node.name
            continue
        modules.append(node.module)
        below, output = _flatten(inner, modules)
        renamed = {flat.name: f"{node.name}..{flat.name}" for flat in below}
        renamed |= dict(zip(names(inner.inputs), names(sources), strict=True))
        for flat in below:
            given: Any = (
                renamed[flat.inputs] if isinstance(flat.inputs, str) else tuple(renamed[n] for n in flat.inputs)
            )
            nodes.append(Flat(renamed[flat.name], flat.module, given, (*flat.path, *node.path)))
        place[node.name] = renamed[str(output)]
    output = plan.output
    return nodes, place[output] if isinstance(output, str) else tuple(place[name] for name in output)


def _without_dropout(nodes: Sequence[Flat], output: Any) -> tuple[list[Flat], Any]:
    """Return the nodes of inference, in which dropout returns its input, and the output."""
    kept: list[Flat] = []
    place: dict[str, str] = {}
    for node in nodes:
        given: Any = node.inputs
        given = place.get(given, given) if isinstance(given, str) else tuple(place.get(one, one) for one in given)
        found = calls(node.module)
        if found is not None and found[0] in _DROPOUTS and not found[1]["training"] and isinstance(given, str):
            place[node.name] = given
        else:
            kept.append(node._replace(inputs=given))
    return kept, place.get(output, output) if isinstance(output, str) else tuple(place.get(n, n) for n in output)


def _steps(nodes: Sequence[tuple[Any, ...]], output: str | Sequence[str]) -> list[Step]:
    """Return the nodes that lead to the output, with the names that are no longer needed after each."""
    steps: list[Step] = []
    needed = set(names(output))
    for name, module, inputs, path in reversed(nodes):
        if name in needed:
            steps.append((name, module, inputs, set(names(inputs)) - needed, path))
            needed.update(names(inputs))
    return steps[::-1]


def _join(nodes: Sequence[Flat], outputs: Sequence[str], inference: bool) -> list[tuple[Any, ...]]:
    """Join nodes with those after them that their ops take; what is joined has the name and place of the last."""
    uses = Counter(name for node in nodes for name in names(node.inputs)) + Counter(outputs)
    after = {name: node for node in nodes for name in names(node.inputs) if uses[name] == 1}
    times = Counter(id(node.module) for node in nodes)
    joined: dict[str, Fused] = {}
    gone: set[str] = set()
    for node in nodes:
        if node.name in gone:
            continue
        waits = inference or times[id(node.module)] == 1  # otherwise its running statistics need the order of calls
        fused, last = _fused(node, after, inference, waits)
        if fused is not None:
            joined[last] = fused
            for part in filter(None, (fused.head, fused.norm, fused.add, fused.activation)):
                gone.add(part.name)
                for name in names(part.inputs):
                    after.pop(name, None)
    steps: list[tuple[Any, ...]] = []
    for node in nodes:
        if node.name in joined:
            one = joined[node.name]
            inputs = one.head.inputs if one.residual is None else (one.head.inputs, one.residual)
            steps.append((node.name, one, inputs, one.head.path))
        elif node.name not in gone:
            steps.append((node.name, node.module, node.inputs, node.path))
    return steps


def alone(module: Any) -> bool:
    """Return whether inference has a body of its own for a layer: a convolution, a linear layer or a batch norm."""
    found = calls(module) if isinstance(module, Layer) else None
    if found is None or found[1].get("activation") is not None:
        return False
    return found[0] in (*CONVS, "linear") or _normalises(module)


def _normalises(module: Any) -> bool:
    """Return whether a layer is a batch norm by running statistics."""
    found = calls(module) if isinstance(module, Layer) else None
    return found is not None and found[0] == "batch_norm" and not found[1]["training"] and not found[1]["activation"]


def _fused(head: Flat, after: Mapping[str, Flat], inference: bool, waits: bool) -> tuple[Fused | None, str]:
    """Return a node with what its op takes of the nodes after it, or None, and the name of the last.

    With a residual, it runs after the nodes that lead to that, which it can only if it `waits`.
    """
    found = calls(head.module)
    if found is None or found[1].get("activation") is not None or getattr(head.module, "residual", None) is not None:
        return None, head.name
    one = isinstance(head.inputs, str)
    takes = options_after(OPS[found[0]].function) if hasattr(head.module, "_forward") else frozenset()
    if any_activation := inference and alone(head.module) and one:
        takes = frozenset({"activation", "residual"} | ({"norm"} if not _normalises(head.module) else set()))
    fused, name = Fused(head), head.name
    node = after.get(name)
    if node is not None and "norm" in takes and isinstance(node.inputs, str) and _normalises(node.module):
        fused.norm, name = node, node.name
        node = after.get(name)
    sources = () if node is None or isinstance(node.inputs, str) else node.inputs
    if node is not None and "residual" in takes and one and waits and len(sources) == 2:
        added = calls(node.module)
        if added is not None and added[0] == "add" and not added[1]:
            fused.add, fused.residual = node, sources[0] if sources[1] == name else sources[1]
            name = node.name
            node = after.get(name)
    if node is not None and "activation" in takes and isinstance(node.inputs, str) and (one or len(head.inputs) == 2):
        applied = activation(node.module)
        if applied is not None and (inference or FORMULAS[applied[0]].keeps == "y"):
            fused.activation, fused.applied, name = node, applied, node.name
    return (fused if any_activation or name != head.name else None), name

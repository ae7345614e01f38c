"""A network cut into the parts that run as one call, and the time of each part alone, on the input that it has there.

In training, a layer takes the activation after it, and a norm also takes the addition before that. In inference, a
convolution or linear layer also takes the batch norm after it. So each part is what an implementation can run as one,
and the same parts are timed in every library that can run a part alone.
"""

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.compare.case import Case
from xcnn.compare.contestants import Contestant, Passes, Step
from xcnn.compare.meter import meter
from xcnn.compare.op import called
from xcnn.errors import UsageError
from xcnn.models import sketch
from xcnn.nn._plan import names
from xcnn.ops._formula import FORMULAS, activation_of
from xcnn.ops._op import OPS
from xcnn.parameter import Buffer, Parameter

__all__ = ["REPEATS", "Part", "costs", "parts"]

REPEATS = 3
"""The smallest number of timed calls of a part."""

_NORM, _ADD, _ACTIVATION = 1, 2, 3
"""The order in which a part takes layers."""


@dataclass
class Part:
    """Layers that run as one call.

    Attributes
    ----------
    names : dotted names of the layers, also those of the values that they compute.
    layers : the layers.
    sources : the names of the inputs of each layer.
    taken : the kind of the last layer in it.
    """

    names: list[str]
    layers: list[nn.Module]
    sources: list[str | tuple[str, ...]]
    taken: int = 0

    @property
    def inputs(self) -> list[str]:
        """The names of the values from outside."""
        every = (name for one in self.sources for name in names(one))
        return list(dict.fromkeys(name for name in every if name not in self.names))

    def module(self, held: dict[str, Parameter | Buffer]) -> tuple[nn.Module, bool]:
        """Return the part as a module of its inputs without those in `held`, parameters by name.

        Also return whether it takes one array, not a tuple.
        """
        inputs = [name for name in self.inputs if name not in held] or ["x"]  # which is not used
        if len(self.layers) == 1 and len(inputs) == len(self.inputs):
            return self.layers[0], isinstance(self.sources[0], str)
        place = {name: f"input {i}" for i, name in enumerate(inputs)}
        nodes: list[Any] = [(name, held[name], ()) for name in self.inputs if name in held]
        for name, layer, sources in zip(self.names, self.layers, self.sources, strict=True):
            given = tuple(place.get(one, one) for one in names(sources))
            nodes.append((name, layer, given[0] if isinstance(sources, str) else given))
        ways = tuple(place.values())
        return nn.Graph(nodes, inputs=ways[0] if len(ways) == 1 else ways), len(ways) == 1


def parts(network: nn.Module, train: bool) -> tuple[list[Part], dict[str, Parameter | Buffer]]:
    """Return the parts of a network in the order in which they run, and its parameters that are nodes, by name.

    The input of the network has the name `"x"`, and any other value that of its layer.
    """
    held: dict[str, Parameter | Buffer] = {}
    nodes: list[tuple[str, nn.Module, Any]] = []
    output = _flat(network, "", "x", nodes, held)
    uses = Counter(name for _, _, sources in nodes for name in names(sources)) + Counter(names(output))
    found: list[Part] = []
    last: dict[str, Part] = {}
    for name, layer, sources in nodes:
        kind, given = _kind(layer), names(sources)
        takers = [last[one] for one in given if one in last and uses[one] == 1]
        takers = [part for part in takers if _takes(part, kind, layer, train)]
        if takers:
            part = max(takers, key=found.index)
            found.remove(part)
            part.names.append(name)
            part.layers.append(layer)
            part.sources.append(sources)
            part.taken = kind
        else:
            part = Part([name], [layer], [sources])
        found.append(part)
        last[name] = part
    return found, held


def _flat(module: Any, name: str, source: Any, nodes: list[Any], held: dict[str, Any]) -> Any:
    """Append the layers of a module, and return the name of its result."""
    if isinstance(module, Parameter | Buffer):
        held[name] = module
        return name
    plan = module._plan if isinstance(module, nn.Graph) and type(module).forward is nn.Graph.forward else None
    if plan is None or not all(isinstance(one, str) for one in (plan.inputs, plan.output, source)):
        nodes.append((name, module, source))
        return name
    needed = {str(plan.output)}
    for node, _, inputs in reversed(plan.nodes):
        needed.update(names(inputs) if node in needed else ())
    values = {plan.inputs: source}
    for node, one, inputs in plan.nodes:
        if node in needed:
            given = values[inputs] if isinstance(inputs, str) else tuple(values[i] for i in inputs)
            values[node] = _flat(one, f"{name}.{node}" if name else node, given, nodes, held)
    return values[plan.output]


def _kind(layer: nn.Module) -> int:
    op, _, options = called(layer) or ("", {}, {})
    if op in FORMULAS and not isinstance(layer, nn.Apply):
        return _ACTIVATION if activation_of(op, options) is not None else 0
    return {"batch_norm": _NORM, "add": _ADD}.get(op, 0)


def _takes(part: Part, kind: int, layer: nn.Module, train: bool) -> bool:
    """Return whether a part takes a layer after its last one."""
    op, _, _ = called(part.layers[0]) or ("", {}, {})
    if not part.taken < kind or not op:
        return False
    if not train and (op == "linear" or op in ("conv1d", "conv2d", "conv3d")):
        return True
    if kind == _NORM:
        return False
    known = {"residual": _ADD, "activation": _ACTIVATION}
    if kind not in {known.get(name, 0) for name in inspect.signature(OPS[op].function).parameters}:
        return False
    formula = (called(layer) or ("", {}, {}))[0]
    return kind == _ADD or not train or FORMULAS[formula].keeps == "y"


def costs(case: Case, contestant: Contestant, step: Step, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the time of each part in a library, in this process, measured for about `seconds` in all.

    Each is a dict with `name`, `what`, `shape` of the first input, `flops`, and the least seconds `forward` and
    `backward`, which are None where the library cannot run the part alone. Then come the update of the weights, if the
    case trains, and the whole step.
    """
    network, flops, train = case.network(), case.flops(), case.mode == "train"
    found, held = parts(network, train)
    x, _ = case.arrays()
    values, trained, rng = {"x": x}, {name for name, one in held.items() if _trains(one)}, np.random.default_rng(1)
    uses = Counter(name for part in found for name in part.inputs)
    settle, every = meter(contestant.device).settle, list[Passes]()
    for part in found:
        inputs = [name for name in part.inputs if name not in held] or ["x"]
        first = values[inputs[0]]
        module, single = part.module(held)
        given = first if single else tuple(values[name] for name in inputs)
        wanted = [name in trained for name in inputs]
        y = module.forward(given, train)[0]
        forward: float | None = None
        backward: float | None = None
        try:
            passes = contestant.alone(case, module, given, wanted)
            dy = rng.standard_normal(y.shape, np.float32) if train and isinstance(y, np.ndarray) else None
            forward, backward = _timed(passes, dy, seconds / (len(found) + 1), settle)
            every.append(passes)
        except UsageError:  # which the library's module raises for what it cannot build
            pass
        for name in part.inputs:
            uses[name] -= 1
            if not uses[name] and name != "x":
                values.pop(name, None)
        values[part.names[-1]] = y
        if any(wanted) or any(map(_trains, module.parameters())):
            trained.add(part.names[-1])
        yield {
            "name": part.names[0],
            "what": " + ".join(map(sketch, part.layers)),
            "shape": first.shape[1:],
            "flops": sum(flops.get(name, 0) for name in part.names),
            "forward": forward,
            "backward": backward,
        }
    last: dict[str, Any] = {"name": "", "shape": (), "flops": 0, "forward": None}
    if train:
        update = contestant.updating(case, every)
        yield last | {"what": "update", "backward": min(_clocked(update, settle)[0] for _ in range(REPEATS + 1))}
    times, end = [_clocked(step, settle)[0]], time.perf_counter() + seconds / 4
    while len(times) < REPEATS or time.perf_counter() < end:
        times.append(_clocked(step, settle)[0])
    yield last | {"what": "whole step", "forward": min(times), "backward": None}


def _trains(slot: Parameter | Buffer) -> bool:
    return isinstance(slot, Parameter) and slot.trainable


def _timed(passes: Passes, dy: Any, seconds: float, settle: Callable[[], None]) -> tuple[float, float | None]:
    """Return the least seconds of the two passes, which others disturb least; the first call is cold."""
    forward, backward = list[float](), list[float]()
    dy, end = None if dy is None else passes.place(dy), time.perf_counter() + seconds
    while len(forward) <= REPEATS or time.perf_counter() < end:
        passes.clear()
        took, y = _clocked(passes.forward, settle)
        forward.append(took)
        if dy is not None:
            backward.append(_clocked(lambda: passes.backward(y, dy), settle)[0])  # noqa: B023
        del y
    return min(forward[1:]), min(backward[1:]) if backward else None


def _clocked(function: Callable[[], Any], settle: Callable[[], None]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    settle()
    return time.perf_counter() - start, result

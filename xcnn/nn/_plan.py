"""The steps that a graph runs. A layer and the ReLU after it are one step if the layer's op can apply the ReLU.

An op can do so if it has the option `activation`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from xcnn.nn._layer import Layer
from xcnn.nn._module import Module
from xcnn.nn.activation import ReLU
from xcnn.parameter import Buffer, Parameter

__all__ = ["Fused", "Held", "Node", "Plan", "Step", "names"]

Node = tuple[str, Module | Parameter | Buffer, str | Sequence[str]]
"""Name, module, and inputs: one name for one array, a sequence of names for a tuple of arrays."""

Step = tuple[str, "Module | Fused | Held", str | Sequence[str], set[str]]
"""A node to run, with the names that are no longer needed after it."""

_Runs = tuple[str, "Module | Held", str | Sequence[str]]


class Fused:
    """A layer and the ReLU after it, run as one.

    Parameters
    ----------
    name : the name of the layer's node.
    layer, relu : the two modules.
    """

    def __init__(self, name: str, layer: Layer, relu: ReLU) -> None:
        self.name, self.layer, self.relu = name, layer, relu

    def forward(self, x: Any, train: bool) -> tuple[Any, Callable[..., Any]]:
        """Return the ReLU of the layer's output, and one backward pass for both."""
        return self.layer.call_op(x, activation="relu")

    def __call__(self, x: Any) -> Any:
        """Return the output in inference mode."""
        return self.forward(x, train=False)[0]

    def watched(self) -> bool:
        """Return whether the `forward` of one of the two is replaced, as by `observing`."""
        return "forward" in vars(self.layer) or "forward" in vars(self.relu)


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


class Plan:
    """The steps of a graph: the nodes that lead to its output.

    Attributes
    ----------
    nodes : all nodes.
    output : the name of the node whose result is the graph's, or a sequence of names.
    inputs : the name of the graph's input, or a sequence of names.
    """

    def __init__(self, nodes: Sequence[Node], output: str | Sequence[str], inputs: str | Sequence[str] = "x") -> None:
        self.nodes, self.output, self.inputs = nodes, output, inputs
        for _, module, _ in nodes:
            if isinstance(module, Module):
                module.modules()  # raises an error if a module contains itself
        runs = [(name, one if isinstance(one, Module) else Held(one), sources) for name, one, sources in nodes]
        self._singly = _steps(runs, output)
        run = {name for name, *_ in self._singly}
        self._needed = [node for node in runs if node[0] in run]
        self._jointly = _steps(_fuse(self._needed, names(output)), output)
        self._fused = [module for _, module, _, _ in self._jointly if isinstance(module, Fused)]

    def steps(self) -> list[Step]:
        """Return the steps to run: layers are joined with their ReLUs unless one of them is watched."""
        return self._singly if any(fused.watched() for fused in self._fused) else self._jointly

    def wanted(self, need_dx: bool) -> set[str]:
        """Return the names whose gradients lead to a parameter that is trained now, or to x if `need_dx`.

        Each backward pass asks anew, as parameters may be frozen at any time. A module is asked only if nothing before
        it is trained, which is usually the first one with parameters.
        """
        wanted = set(names(self.inputs)) if need_dx else set()
        for name, module, inputs in self._needed:
            follows = inputs in wanted if isinstance(inputs, str) else not wanted.isdisjoint(inputs)
            if follows or module._trains():
                wanted.add(name)
        return wanted


def names(inputs: str | Sequence[str]) -> Sequence[str]:
    """Return the names among a node's inputs."""
    return (inputs,) if isinstance(inputs, str) else inputs


def _steps(nodes: Sequence[tuple[str, Any, str | Sequence[str]]], output: str | Sequence[str]) -> list[Step]:
    """Return the nodes that lead to the output, with the names that are no longer needed after each."""
    steps = []
    needed = set(names(output))
    for name, module, inputs in reversed(nodes):
        if name in needed:
            steps.append((name, module, inputs, set(names(inputs)) - needed))
            needed.update(names(inputs))
    return steps[::-1]


def _fuse(nodes: Sequence[_Runs], outputs: Sequence[str]) -> list[tuple[str, Any, str | Sequence[str]]]:
    """Join the nodes of layers with those of their ReLUs: the pair has the name of the ReLU and the layer's inputs."""
    uses = Counter(name for _, _, inputs in nodes for name in names(inputs)) + Counter(outputs)
    relus = {
        inputs: (name, module)
        for name, module, inputs in nodes
        if type(module) is ReLU and isinstance(inputs, str) and uses[inputs] == 1
    }
    fused: list[tuple[str, Any, str | Sequence[str]]] = []
    gone = set()
    for name, module, inputs in nodes:
        if name in relus and isinstance(module, Layer) and _takes_relu(module):
            result, relu = relus[name]
            fused.append((result, Fused(name, module, relu), inputs))
            gone.add(result)
        elif name not in gone:
            fused.append((name, module, inputs))
    return fused


def _takes_relu(layer: Layer) -> bool:
    """Return whether a layer's op can apply ReLU. A subclass with its own `forward` is not joined."""
    return type(layer).forward is Layer.forward and "activation" in layer._options and layer.activation is None

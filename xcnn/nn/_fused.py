"""What a graph runs as one call: a layer whose op can apply ReLU, with the ReLU that alone takes its result.

To let another layer take part, give its op the option `activation`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from xcnn.nn._layer import Layer
from xcnn.nn._module import Module
from xcnn.nn.activation import ReLU

__all__ = ["Fused", "fuse"]

Node = tuple[str, Module, str | Sequence[str]]


class Fused(Module):
    """A layer and the ReLU behind it, in place of both; it stands in a graph's steps and is nobody's child.

    Parameters
    ----------
    name : of the layer's node.
    layer, relu : the two modules.
    """

    def __init__(self, name: str, layer: Layer, relu: ReLU) -> None:
        self.name, self.layer, self.relu = name, layer, relu

    def _forward(self, x: Any, train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
        return self.layer._call(x, activation="relu")

    def watched(self) -> bool:
        """Say whether someone watches one of the two by itself: a method of its own shadows the class's."""
        return any(name in vars(one) for one in (self.layer, self.relu) for name in ("forward", "_forward"))


def fuse(nodes: Sequence[Node]) -> list[Node]:
    """Join the nodes of layers with those of their ReLUs: the pair has the name of the ReLU and the layer's inputs."""
    uses = Counter(name for _, _, inputs in nodes for name in ((inputs,) if isinstance(inputs, str) else inputs))
    relus = {
        inputs: (name, module)
        for name, module, inputs in nodes
        if type(module) is ReLU and isinstance(inputs, str) and uses[inputs] == 1
    }
    fused: list[Node] = []
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
    """Say whether a layer's op can apply ReLU; a subclass that runs in a way of its own is left alone."""
    plain = type(layer)._forward is Layer._forward and type(layer).forward is Module.forward
    return plain and "activation" in layer._options and layer.activation is None

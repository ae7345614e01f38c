"""Groups of nodes that exporters write for one layer: an operator may not exist in the version that they write.

A pattern ends with one operator, and looks back at the nodes before it. Those that nothing else needs do not run.
"""

import math

import numpy as np

from xcnn import nn
from xcnn.onnx.call import Call, Network

__all__ = ["normalisation", "product"]

_GATES: dict[type[nn.Module], type[nn.Module]] = {nn.Sigmoid: nn.SiLU, nn.Hardsigmoid: nn.Hardswish}
"""Layers that are x times another layer of x."""


def product(network: Network, first: str, second: str) -> tuple[nn.Module, str] | None:
    """Return the layer, and the node of its input, that a product of two nodes is; None if it is only a product."""
    for x, gate in ((first, second), (second, first)):
        module, inputs = network.nodes.get(gate, (None, ()))
        if inputs == x and type(module) in _GATES:
            return _GATES[type(module)](), x
        inner, source = network.nodes.get(str(inputs), (None, ()))
        if type(module) is nn.Tanh and type(inner) is nn.Softplus and source == x:
            return nn.Mish(), x
    return _gelu(network, [*_factors(network, first), *_factors(network, second)])


def _factors(network: Network, node: str) -> tuple[str, ...]:
    """Return the nodes whose product a node is, or the node."""
    module, inputs = network.nodes.get(node, (None, ()))
    return inputs if type(module) is nn.Multiply and isinstance(inputs, tuple) else (node,)


def _gelu(network: Network, factors: list[str]) -> tuple[nn.Module, str] | None:
    """Recognise `x * 0.5 * (1 + erf(x / sqrt(2)))`, in any order."""
    halves = [node for node in factors if _number(network, node) == 0.5]
    if len(factors) != 3 or len(halves) != 1:
        return None
    others = [node for node in factors if node != halves[0]]
    for x, gate in (others, others[::-1]):
        for one, erf in _pairs(network, gate, nn.Add, ""):
            module, scaled = network.nodes.get(erf, (None, ()))
            if _number(network, one) != 1 or _op(module) != "erf" or not isinstance(scaled, str):
                continue
            for op, factor in ((nn.Multiply, math.sqrt(0.5)), (nn.Apply, math.sqrt(2))):
                for number, inner in _pairs(network, scaled, op, "divide"):
                    if inner == x and math.isclose(_number(network, number), factor, rel_tol=1e-6):
                        return nn.GELU(), x
    return None


def _op(module: object) -> str:
    return module.op if isinstance(module, nn.Apply) else ""


def _pairs(network: Network, node: str, kind: type[nn.Module], op: str) -> list[tuple[str, str]]:
    """Return the two inputs of a node of this kind in both orders, or nothing for another node."""
    module, inputs = network.nodes.get(node, (None, ()))
    if type(module) is not kind or (kind is nn.Apply and _op(module) != op) or not isinstance(inputs, tuple):
        return []
    first, second, *_ = inputs
    return [(second, first)] if kind is nn.Apply else [(first, second), (second, first)]


def _number(network: Network, node: str) -> float:
    """Return the number that a node gives, or NaN."""
    slot = network.nodes.get(node, (None, ()))[0]
    return float(np.reshape(slot.data, ())) if isinstance(slot, nn.Buffer) and slot.data.size == 1 else math.nan


def normalisation(call: Call) -> tuple[nn.Module, str] | None:
    """Return `nn.Normalize` and the node of its input, if a division is that of `(x - mean) / std` per channel."""
    module, inputs = call.network.nodes.get(call.input(0), (None, ()))
    if _op(module) != "subtract" or call.constant(1) is None or not isinstance(inputs, tuple):
        return None
    slots = [call.network.nodes.get(node, (None, ()))[0] for node in (inputs[1], call.input(1))]
    shape = (-1, *(1,) * (call.rank() - 2))
    numbers = []
    for slot in slots:
        if not isinstance(slot, nn.Buffer) or slot.data.shape[-len(shape) :] != np.reshape(slot.data, shape).shape:
            return None
        numbers.append(tuple(float(str(number)) for number in np.ravel(slot.data)))
    mean, std = numbers
    return (nn.Normalize(mean, std), inputs[0]) if len(mean) == len(std) and min(std) > 0 else None

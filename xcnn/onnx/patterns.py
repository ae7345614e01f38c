"""Groups of nodes that exporters write for one layer: an operator may not exist in the version that they write.

A pattern ends with one operator, and looks back at the nodes before it. Those that nothing else needs do not run.
"""

import math

import numpy as np

from xcnn import nn
from xcnn.onnx.call import Call, Network, Operand

__all__ = ["normalisation", "product"]

_GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.SiLU, "hardsigmoid": nn.Hardswish}
"""Layers that are x times another layer of x."""


def product(network: Network, first: Operand, second: Operand) -> tuple[nn.Module, str] | None:
    """Return the layer, and the node of its input, that a product is; None if it is only a product."""
    for x, gate in ((first, second), (second, first)):
        op, operands = _made(network, gate)
        if operands == (x,) and op in _GATES:
            return _GATES[op](), str(x)
        inner = _made(network, operands[0]) if op == "tanh" else ("", ())
        if inner == ("softplus", (x,)):
            return nn.Mish(), str(x)
    return _gelu(network, [*_factors(network, first), *_factors(network, second)])


def _made(network: Network, node: Operand) -> tuple[str, tuple[Operand, ...]]:
    """Return the op that a node applies, and to what: other nodes, and a number if it has one."""
    module, inputs = (None, ()) if isinstance(node, float) else network.nodes.get(node, (None, ()))
    inputs = (inputs,) if isinstance(inputs, str) else inputs
    match module:
        case nn.Apply():
            return module.op, (*inputs, *(value for name, value in module.given.items() if name == "other"))
        case nn.Add() | nn.Multiply() | nn.Sigmoid() | nn.Hardsigmoid() | nn.Tanh() | nn.Softplus():
            return type(module).__name__.lower(), inputs
    return "", ()


def _factors(network: Network, node: Operand) -> tuple[Operand, ...]:
    """Return the operands whose product a node is, or the node."""
    op, operands = _made(network, node)
    return operands if op == "multiply" else (node,)


def _gelu(network: Network, factors: list[Operand]) -> tuple[nn.Module, str] | None:
    """Recognise `x * 0.5 * (1 + erf(x / sqrt(2)))`, in any order."""
    if len(factors) != 3 or factors.count(0.5) != 1:
        return None
    others = [factor for factor in factors if factor != 0.5]
    for x, gate in (others, others[::-1]):
        op, operands = _made(network, _operand(network, gate, "add", 1.0))
        for inner, factor in (("multiply", math.sqrt(0.5)), ("divide", math.sqrt(2))):
            if op == "erf" and _operand(network, operands[0], inner, factor) == x:
                return nn.GELU(), str(x)
    return None


def _operand(network: Network, node: Operand, op: str, number: float) -> Operand:
    """Return x if a node applies an op to x and a number, else NaN."""
    made, (x, *others) = _made(network, node) if _made(network, node)[1] else ("", (math.nan,))
    close = len(others) == 1 and isinstance(others[0], float) and math.isclose(others[0], number, rel_tol=1e-6)
    return x if made == op and close else math.nan


def normalisation(call: Call, x: Operand, std: Operand) -> tuple[nn.Module, str] | None:
    """Return `nn.Normalize` and the node of its input, if a division is that of `(x - mean) / std` per channel."""
    op, operands = _made(call.network, x)
    channels = call.shape()[1] if call.rank() > 1 else None
    if op != "subtract" or channels is None:
        return None
    numbers = [_channels(call.network, one, (channels, *(1,) * (call.rank() - 2))) for one in (operands[1], std)]
    mean, std_ = numbers
    return (nn.Normalize(mean, std_), str(operands[0])) if mean and std_ and min(std_) > 0 else None


def _channels(network: Network, node: Operand, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Return the numbers of a constant of this shape, or of one number, or () for another value."""
    slot = node if isinstance(node, float) else network.nodes.get(node, (None, ()))[0]
    array = np.asarray(slot if isinstance(slot, float) else slot.data if isinstance(slot, nn.Buffer) else ())
    if array.size != shape[0] or (array.size > 1 and array.shape[-len(shape) :] != shape):
        return ()
    return tuple(float(str(np.float32(number))) for number in array.ravel())

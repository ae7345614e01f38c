"""What the operators of ONNX are in terms of layers: the table `OPERATORS`.

Each row is a function of a `Call`, one node of the file, that adds nodes to the graph and returns the name of the one
with the result, or a list of names if there are several results. `operator` adds a row:

    @operator("Elu")
    def elu(call):
        return call.add(nn.ELU(call.option("alpha")))

Layers with weights or windows are in `operators_layers.py`, what only rearranges numbers in `operators_shapes.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from xcnn import nn
from xcnn.nn._weighted import undrawn
from xcnn.onnx.call import Call, Operand, Unsupported
from xcnn.onnx.limits import FLOATS
from xcnn.onnx.patterns import normalisation, product

__all__ = ["OPERATORS", "axes_of", "exact", "is_vector", "of_rank", "operator"]

_TINY = 2.0**-126
"""The smallest normal number of float32."""

Reader = Callable[[Call], str | list[str]]

OPERATORS: dict[str, Reader] = {}
"""How each operator is read, by its name."""


def operator(*names: str) -> Callable[[Reader], Reader]:
    """Decorate a function so that it reads the operators of these names."""

    def register(function: Reader) -> Reader:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


# Helpers


def exact(number: float) -> float:
    """Return the shortest number that is this one in float32, in which attributes are stored: 1e-05 for 9.99999e-06."""
    return float(str(np.float32(number)))


def of_rank(kinds: Sequence[Any], rank: int) -> Any:
    """Return the layer for a number of spatial axes."""
    if not 1 <= rank <= len(kinds):
        raise Unsupported(f"it has {rank} spatial axes; 1 to {len(kinds)} are supported")
    return kinds[rank - 1]


def is_vector(array: np.ndarray, size: int) -> bool:
    """Return whether an array stands for one number, or for a row of this size."""
    return array.dtype.kind == "f" and (array.size == 1 or (array.size == size and array.shape[-1] == size))


# Arithmetic


def _pair(call: Call) -> tuple[Operand, Operand]:
    """Return the two operands of a node that broadcasts, also by the rules before version 7."""
    first, second = call.operands()
    if isinstance(second, str) and call.opset < 7 and call.option("broadcast") and call.option("axis") is not None:
        behind = call.rank(0) - call.axis(call.option("axis"), call.rank(0)) - call.rank(1)
        if behind > 0:
            shape = tuple(-1 if size is None else size for size in call.shape(1)) + (1,) * behind
            second = call.add(nn.Apply("reshape", shape=shape), second, suffix="other")
    return first, second


@operator("Add")
def _add(call: Call) -> str:
    for i in (0, 1):
        made, other = call.made(i, nn.Linear), call.constant(1 - i)
        if made is None or other is None or made[0].bias is not None or other.ndim > call.rank(i):
            continue
        if other.size == made[0].out_features and is_vector(other, other.size):
            bias = call.weight(1 - i).arranged("row" if other.ndim > 1 else "", np.ravel)
            with undrawn():
                layer = nn.Linear(made[0].in_features, made[0].out_features)
            layer.weight = made[0].weight
            return call.instead(i, layer, bias=bias)
    return call.pair("add", *_pair(call))


@operator("Mul")
def _mul(call: Call) -> str:
    pair = _pair(call)
    layer = product(call.network, *pair)
    return call.pair("multiply", *pair) if layer is None else call.add(*layer)


@operator("Sub")
def _sub(call: Call) -> str:
    return call.pair("subtract", *_pair(call))


@operator("Div")
def _div(call: Call) -> str:
    pair = _pair(call)
    layer = normalisation(call, *pair)
    return call.pair("divide", *pair) if layer is None else call.add(*layer)


@operator("Pow")
def _pow(call: Call) -> str:
    exponent = call.scalar(1)
    if exponent is None:
        raise Unsupported("its exponent must be a constant of one number")
    return call.add(nn.Apply("power", exponent=exponent))


@operator("Sum", "Mean", "Max", "Min")
def _several(call: Call) -> str:
    y: Operand
    y, *others = call.operands()
    op = {"Max": "maximum", "Min": "minimum"}.get(call.op, "add")
    for i, other in enumerate(others, 1):
        y = call.pair(op, y, other, "" if i == len(others) and call.op != "Mean" else str(i))
    if call.op == "Mean" and others:
        return call.pair("multiply", y, 1 / len(call))
    return y if isinstance(y, str) else call.input()


# Functions of one array

_ONE: dict[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "HardSwish": nn.Hardswish,
    "Mish": nn.Mish,
    "Softsign": nn.Softsign,
    "Exp": lambda: nn.Apply("exp"),
    "Log": lambda: nn.Apply("log"),
    "Sqrt": lambda: nn.Apply("sqrt"),
    "Abs": lambda: nn.Apply("abs"),
    "Neg": lambda: nn.Apply("negative"),
    "Erf": lambda: nn.Apply("erf"),
    "Reciprocal": lambda: nn.Apply("power", exponent=-1.0),
}
"""Operators of one array that have no options."""


@operator(*_ONE)
def _one(call: Call) -> str:
    return call.add(_ONE[call.op]())


@operator("LeakyRelu")
def _leaky_relu(call: Call) -> str:
    return call.add(nn.LeakyReLU(exact(call.option("alpha"))))


@operator("PRelu")
def _prelu(call: Call) -> str:
    slope = call.weight(1)
    size, behind = slope.array.size, call.rank() - 2
    per_channel = (size, *(1,) * behind) if call.opset >= 7 else (size,)
    if size > 1 and slope.array.shape[-len(per_channel) :] != per_channel:
        low = call.pair("minimum", call.input(), 0.0, "low")
        low = call.pair("multiply", low, call.input(1), "scaled")
        return call.pair("add", call.add(nn.ReLU(), suffix="high"), low)
    with undrawn():
        made = nn.PReLU(size)
    return call.weighted(made, weight=slope.arranged("row", np.ravel))


@operator("Elu")
def _elu(call: Call) -> str:
    return call.add(nn.ELU(exact(call.option("alpha"))))


@operator("Celu")
def _celu(call: Call) -> str:
    return call.add(nn.CELU(exact(call.option("alpha"))))


@operator("Selu")
def _selu(call: Call) -> str:
    alpha, factor = call.option("alpha"), call.option("gamma")
    if math.isclose(alpha, 1.6732632, rel_tol=1e-6) and math.isclose(factor, 1.050701, rel_tol=1e-6):
        return call.add(nn.SELU())
    return call.pair("multiply", call.add(nn.ELU(exact(alpha)), suffix="elu"), float(factor))


@operator("HardSigmoid")
def _hardsigmoid(call: Call) -> str:
    alpha, beta = call.option("alpha"), call.option("beta")
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call.add(nn.Hardsigmoid())
    return call.add(nn.Apply("hardsigmoid", alpha=exact(alpha), beta=exact(beta)))


@operator("Clip")
def _clip(call: Call) -> str:
    low, high = call.option("min"), call.option("max")
    low = None if low is None or low <= -3e38 else float(low)  # the lowest float32 was the default once
    high = None if high is None or high >= 3e38 else float(high)
    if low is None and high is None:
        return call.input()
    if low is not None and high is not None and low >= high:
        return call.pair("minimum", call.pair("maximum", call.input(), low, "low"), high)
    if low is not None and high is not None:
        return call.add(nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high))
    if low == 0:
        return call.add(nn.ReLU())
    if high is not None:
        return call.pair("minimum", call.input(), high)
    return call.pair("maximum", call.input(), low or 0.0)


@operator("Gelu")
def _gelu(call: Call) -> str:
    return call.add(nn.GELU(call.option("approximate")))


@operator("Swish")
def _swish(call: Call) -> str:
    if call.option("alpha") != 1:
        raise Unsupported("its alpha must be 1")
    return call.add(nn.SiLU())


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call) -> str:
    kind = nn.Softmax if call.op == "Softmax" else nn.LogSoftmax
    axis = call.axis(call.option("axis"))
    if call.opset >= 13 or axis == call.rank() - 1:
        return call.add(kind(axis))
    if all(size == 1 for size in call.shape()[axis + 1 :]):
        return call.add(kind(axis))
    # Before version 13 the sums are over all axes from this one.
    sizes = call.shape()[axis:]
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        raise Unsupported("it adds along axes whose sizes the file leaves open")
    return call.chain(nn.Flatten(axis), kind(axis), nn.Unflatten(axis, known))


@operator("Dropout")
def _dropout(call: Call) -> str:
    return call.add(nn.Dropout(exact(call.option("ratio", 0.5))))


@operator("Identity")
def _identity(call: Call) -> str:
    return call.input()


@operator("Cast", "CastLike")
def _cast(call: Call) -> str:
    kinds = (call.network.first[call.node.output[0]].kind, call.network.first[call.node.input[0]].kind)
    if not {*kinds} <= {*FLOATS}:
        names = [TensorProto.DataType.Name(kind) for kind in kinds]
        raise Unsupported(f"it makes {names[0]} of {names[1]}, and only floating-point numbers are computed with")
    if TensorProto.DOUBLE in kinds and kinds[0] != kinds[1]:
        raise Unsupported("it changes between float32 and float64; networks have one dtype")
    return call.input()


# Sums along axes


def axes_of(call: Call) -> tuple[int, ...] | None:
    """Return the axes along which an operator adds, in order; None for all."""
    axes = call.option("axes")
    return tuple(sorted(call.axis(axis) for axis in axes)) if axes else None


_REDUCED: dict[str, tuple[tuple[str, dict[str, Any] | None], ...]] = {
    "ReduceMean": (("mean", None),),
    "ReduceSum": (("sum", None),),
    "ReduceL1": (("abs", {}), ("sum", None)),
    "ReduceL2": (("power", {"exponent": 2.0}), ("sum", None), ("sqrt", {})),
    "ReduceSumSquare": (("power", {"exponent": 2.0}), ("sum", None)),
    "ReduceLogSum": (("sum", None), ("log", {})),
    "ReduceLogSumExp": (("exp", {}), ("sum", None), ("log", {})),
}
"""Operators that add along axes, as ops one after the other with their options; None for those that add."""


@operator(*_REDUCED)
def _reduce(call: Call) -> str:
    axes, keep = axes_of(call), bool(call.option("keepdims"))
    if call.op == "ReduceMean" and axes == tuple(range(2, call.rank())) and not keep:
        return call.add(nn.GlobalAvgPool())
    noop = axes is None and call.option("noop_with_empty_axes", 0)
    along = {"dim": axes, "keepdim": keep}
    steps = [
        nn.Apply(op, **(along if more is None else more))
        for op, more in _REDUCED[call.op]
        if not (noop and more is None)
    ]
    return call.chain(*steps) if steps else call.input()


@operator("LpNormalization")
def _lp_norm(call: Call) -> str:
    axis, p = call.axis(call.option("axis")), call.option("p")
    steps = _REDUCED["ReduceL1" if p == 1 else "ReduceL2"]
    node = call.input()
    for op, more in steps:
        options = {"dim": axis, "keepdim": True} if more is None else more
        node = call.add(nn.Apply(op, **options), node, suffix=op)
    node = call.pair("maximum", node, _TINY, "limited")  # so that 0 / 0 is 0
    return call.pair("divide", call.input(), node)

"""The exporters of the ops: each has the arguments of its op, with names of values in place of arrays.

Options that only training uses, such as `momentum`, are not used here. What depends on the size of a map, such as the
padding `"same"`, is computed for the size that the network is exported for.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.nn._plan import Held
from xcnn.onnx.builder import EXPORTS, MODULES, Builder, exports
from xcnn.ops._op import OPS

__all__ = ["reduced", "sliced"]

_END = 2**63 - 1


def _spread(g: Builder, x: str, name: str) -> str:
    """Return a value per channel in the shape that broadcasts with x (n, c, ...)."""
    return g.view(name, (*g.shape(name), *(1,) * (len(g.shape(x)) - 2)))


# Of one array, or of several that broadcast.

_SAME = {
    "abs": "Abs", "add": "Add", "divide": "Div", "erf": "Erf", "exp": "Exp", "hardswish": "HardSwish", "log": "Log",
    "matmul": "MatMul", "maximum": "Max", "minimum": "Min", "multiply": "Mul", "negative": "Neg", "relu": "Relu",
    "sigmoid": "Sigmoid", "softsign": "Softsign", "sqrt": "Sqrt", "subtract": "Sub", "tanh": "Tanh", "selu": "Selu",
}  # fmt: skip
"""The ops that are one operator without attributes."""

for _name, _type in _SAME.items():
    EXPORTS[_name] = lambda g, *arrays, _type=_type: g.node(_type, arrays)


@exports("power")
def _power(g: Builder, x: str, exponent: Any) -> str:
    return g.node("Pow", [x, exponent if isinstance(exponent, str) else float(exponent)])


@exports("leaky_relu")
def _leaky_relu(g: Builder, x: str, negative_slope: float = 0.01) -> str:
    return g.node("LeakyRelu", [x], alpha=float(negative_slope))


@exports("prelu")
def _prelu(g: Builder, x: str, weight: str) -> str:
    return g.node("PRelu", [x, weight if g.shape(weight) == (1,) else _spread(g, x, weight)])


@exports("relu6")
def _relu6(g: Builder, x: str) -> str:
    return g.node("Clip", [x, 0.0, 6.0])


@exports("hardtanh")
def _hardtanh(g: Builder, x: str, min_val: float = -1.0, max_val: float = 1.0) -> str:
    return g.node("Clip", [x, float(min_val), float(max_val)])


@exports("hardsigmoid")
def _hardsigmoid(g: Builder, x: str, alpha: float = 1 / 6, beta: float = 0.5) -> str:
    return g.node("HardSigmoid", [x], alpha=float(alpha), beta=float(beta))


@exports("elu")
def _elu(g: Builder, x: str, alpha: float = 1.0) -> str:
    return g.node("Elu", [x], alpha=float(alpha))


@exports("celu")
def _celu(g: Builder, x: str, alpha: float = 1.0) -> str:
    return g.node("Celu", [x], alpha=float(alpha))


@exports("softplus")
def _softplus(g: Builder, x: str, beta: float = 1.0, threshold: float = 20.0) -> str:
    z = x if beta == 1 else g.node("Mul", [x, float(beta)])
    y = g.node("Softplus", [z])
    y = y if beta == 1 else g.node("Div", [y, float(beta)])
    if threshold >= 18:  # beyond, both are the same in float32
        return y
    return g.node("Where", [g.node("Greater", [z, float(threshold)]), x, y])


@exports("silu")
def _silu(g: Builder, x: str) -> str:
    return g.node("Mul", [x, g.node("Sigmoid", [x])])


@exports("mish")
def _mish(g: Builder, x: str) -> str:
    if g.opset >= 18:
        return g.node("Mish", [x])
    return g.node("Mul", [x, g.node("Tanh", [g.node("Softplus", [x])])])


@exports("gelu")
def _gelu(g: Builder, x: str, approximate: str = "none") -> str:
    if g.opset >= 20:
        return g.node("Gelu", [x], approximate=approximate)
    if approximate == "none":
        gate = g.node("Erf", [g.node("Mul", [x, math.sqrt(0.5)])])
    else:
        cube = g.node("Mul", [g.node("Mul", [g.node("Mul", [x, x]), x]), 0.044715])
        gate = g.node("Tanh", [g.node("Mul", [g.node("Add", [x, cube]), math.sqrt(2 / math.pi)])])
    return g.node("Mul", [g.node("Mul", [x, 0.5]), g.node("Add", [gate, 1.0])])


@exports("softmax")
def _softmax(g: Builder, x: str, dim: int = -1) -> str:
    return g.node("Softmax", [x], axis=dim)


@exports("log_softmax")
def _log_softmax(g: Builder, x: str, dim: int = -1) -> str:
    return g.node("LogSoftmax", [x], axis=dim)


@exports("dropout dropout1d dropout2d dropout3d stochastic_depth")
def _nothing(g: Builder, x: str, **_: Any) -> str:
    return x


# Linear maps and shapes.


@exports("linear")
def _linear(g: Builder, x: str, weight: str, bias: str | None = None) -> str:
    shape, (o, i) = g.shape(x), g.shape(weight)
    if len(shape) == 2:
        return g.node("Gemm", [x, weight, bias], transB=1)
    rows = g.node("Reshape", [x, np.asarray([-1, i])])
    return g.node("Reshape", [g.node("Gemm", [rows, weight, bias], transB=1), np.asarray([-1, *shape[1:-1], o])])


@exports("flatten")
def _flatten(g: Builder, x: str, start_dim: int = 1, end_dim: int = -1) -> str:
    shape = g.shape(x)
    first, last = start_dim % len(shape), end_dim % len(shape)
    if (first, last) == (1, len(shape) - 1):
        return g.node("Flatten", [x], axis=1)
    return g.node("Reshape", [x, np.asarray([*(0,) * first, -1, *shape[last + 1 :]])])


@exports("unflatten")
def _unflatten(g: Builder, x: str, dim: int, unflattened_size: Sequence[int]) -> str:
    shape = g.shape(x)
    dim %= len(shape)
    return g.node("Reshape", [x, np.asarray([*(0,) * dim, *unflattened_size, *shape[dim + 1 :]])])


@exports("reshape")
def _reshape(g: Builder, x: str, shape: Sequence[int]) -> str:
    return g.node("Reshape", [x, np.asarray(shape)], allowzero=1 if 0 in shape else None)


@exports("permute")
def _permute(g: Builder, x: str, dims: Sequence[int]) -> str:
    return g.node("Transpose", [x], perm=[dim % len(dims) for dim in dims])


@exports("slice")
def sliced(g: Builder, x: str, dim: int, start: int | None = None, stop: int | None = None, step: int = 1) -> str:
    """Return a slice along an axis, which may be the batch."""
    start = (0 if step > 0 else _END) if start is None else start
    stop = (_END if step > 0 else -_END - 1) if stop is None else stop
    return g.node("Slice", [x, *(np.asarray([value], np.int64) for value in (start, stop, dim, step))])


@exports("concat")
def _concat(g: Builder, *xs: str, dim: int = 0) -> str:
    return g.node("Concat", xs, axis=dim)


@exports("channel_shuffle")
def _channel_shuffle(g: Builder, x: str, groups: int) -> str:
    _, c, *sizes = g.shape(x)
    split = g.node("Reshape", [x, np.asarray([0, groups, c // groups, *sizes])])
    turned = g.node("Transpose", [split], perm=[0, 2, 1, *range(3, 3 + len(sizes))])
    return g.node("Reshape", [turned, np.asarray([0, c, *sizes])])


# Reductions.


def reduced(g: Builder, type: str, x: str, dim: Any, keepdim: bool) -> str:
    """Return a reduction over one or more axes, all if `dim` is None; newer opsets take the axes as an input."""
    axes = None if dim is None else [dim] if isinstance(dim, int) else list(dim)
    if g.opset < 18 and type != "ReduceSum":
        return g.node(type, [x], axes=axes, keepdims=int(keepdim))
    return g.node(type, [x, None if axes is None else np.asarray(axes)], keepdims=int(keepdim))


@exports("mean")
def _mean(g: Builder, x: str, dim: Any = None, keepdim: bool = False) -> str:
    return reduced(g, "ReduceMean", x, dim, keepdim)


@exports("sum")
def _sum(g: Builder, x: str, dim: Any = None, keepdim: bool = False) -> str:
    return reduced(g, "ReduceSum", x, dim, keepdim)


# Norms.


def _affine(g: Builder, x: str, y: str, weight: str | None, bias: str | None) -> str:
    y = y if weight is None else g.node("Mul", [y, _spread(g, x, weight)])
    return y if bias is None else g.node("Add", [y, _spread(g, x, bias)])


@exports("batch_norm")
def _batch_norm(
    g: Builder,
    x: str,
    running_mean: str | None = None,
    running_var: str | None = None,
    weight: str | None = None,
    bias: str | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> str:
    shape = g.shape(x)
    if running_mean is not None:
        scale, shift = weight or np.ones(shape[1], np.float32), bias or np.zeros(shape[1], np.float32)
        return g.node("BatchNormalization", [x, scale, shift, running_mean, running_var], epsilon=float(eps))
    axes = [0, *range(2, len(shape))]
    centred = g.node("Sub", [x, reduced(g, "ReduceMean", x, axes, keepdim=True)])
    var = reduced(g, "ReduceMean", g.node("Mul", [centred, centred]), axes, keepdim=True)
    y = g.node("Div", [centred, g.node("Sqrt", [g.node("Add", [var, float(eps)])])])
    return _affine(g, x, y, weight, bias)


@exports("instance_norm")
def _instance_norm(
    g: Builder,
    x: str,
    running_mean: str | None = None,
    running_var: str | None = None,
    weight: str | None = None,
    bias: str | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> str:
    if running_mean is not None:
        return _batch_norm(g, x, running_mean, running_var, weight, bias, eps)
    c = g.shape(x)[1]
    scale, shift = weight or np.ones(c, np.float32), bias or np.zeros(c, np.float32)
    return g.node("InstanceNormalization", [x, scale, shift], epsilon=float(eps))


@exports("group_norm")
def _group_norm(
    g: Builder, x: str, weight: str | None = None, bias: str | None = None, num_groups: int = 1, eps: float = 1e-5
) -> str:
    rows = g.node("Reshape", [x, np.asarray([0, num_groups, -1])])
    one, zero = np.ones(num_groups, np.float32), np.zeros(num_groups, np.float32)
    y = g.node("InstanceNormalization", [rows, one, zero], epsilon=float(eps))
    return _affine(g, x, g.node("Reshape", [y, np.asarray([0, *g.shape(x)[1:]])]), weight, bias)


@exports("layer_norm")
def _layer_norm(
    g: Builder,
    x: str,
    weight: str | None = None,
    bias: str | None = None,
    normalized_shape: Any = (),
    eps: float = 1e-5,
) -> str:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    scale = weight or np.ones(shape, np.float32)
    return g.node("LayerNormalization", [x, scale, bias], axis=-len(shape), epsilon=float(eps))


@exports("local_response_norm")
def _local_response_norm(g: Builder, x: str, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> str:
    _, c, *sizes = shape = g.shape(x)
    if size % 2 and len(shape) == 4:
        return g.node("LRN", [x], size=size, alpha=float(alpha), beta=float(beta), bias=float(k))
    rows = g.node("Reshape", [g.node("Mul", [x, x]), np.asarray([0, 1, c, math.prod(sizes)])])
    around = g.node("Pad", [rows, np.asarray([0, 0, size // 2, 0, 0, 0, (size - 1) // 2, 0])])
    means = g.node("AveragePool", [around], kernel_shape=[size, 1])
    base = g.node(
        "Add", [g.node("Mul", [g.node("Reshape", [means, np.asarray([0, c, *sizes])]), float(alpha)]), float(k)]
    )
    return g.node("Div", [x, g.node("Pow", [base, float(beta)])])


# Modules that are not layers of one op.


def _graph(g: Builder, graph: nn.Graph, *inputs: str) -> Any:
    plan = graph._plan
    whole = inputs[0] if len(inputs) == 1 else inputs  # one input may be a tuple
    values: dict[str, Any] = (
        {plan.inputs: whole} if isinstance(plan.inputs, str) else dict(zip(plan.inputs, inputs, strict=True))
    )
    for name, module, sources, *_ in plan.singly:
        if isinstance(module, nn.Module):
            given = values[sources] if isinstance(sources, str) else tuple(values[source] for source in sources)
            values[name] = g.call(module, *((given,) if isinstance(given, str) else given))
        elif isinstance(module, Held):
            values[name] = g.slot(module.slot)
    return values[plan.output] if isinstance(plan.output, str) else tuple(values[name] for name in plan.output)


def _pairwise(g: Builder, module: Any, first: str, *others: str) -> str:
    return functools.reduce(lambda y, other: str(g.op(type(module)._op.__name__, y, other)), others, first)


def _normalize(g: Builder, module: Any, x: str) -> str:
    shape = (-1, *(1,) * (len(g.shape(x)) - 2))
    mean, std = (np.reshape(np.asarray(values, np.float32), shape) for values in (module.mean, module.std))
    return g.node("Div", [g.node("Sub", [x, mean]), std])


def _apply(g: Builder, module: Any, *xs: str) -> Any:
    options = dict(module.given)
    numbers = [np.float32(options.pop(name)) for name in OPS[module.op].arrays if name in options]
    return g.op(module.op, *xs, *numbers, **options)


MODULES.update(
    {
        nn.Graph.forward: _graph,
        nn.Add.forward: _pairwise,
        nn.Apply.forward: _apply,
        nn.Concat.forward: lambda g, module, *xs: g.op("concat", *xs, dim=module.dim),
        nn.Identity.forward: lambda g, module, x: x,
        nn.Normalize.forward: _normalize,
    }
)

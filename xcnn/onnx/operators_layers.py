"""ONNX's operators that are layers with weights, windows or statistics: rows of the table `operators.OPERATORS`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.nn._weighted import undrawn
from xcnn.onnx.call import Call, Unsupported, Weight
from xcnn.onnx.operators import exact, is_vector, of_rank, operator

__all__: list[str] = []

# Layers with windows


def _numbers(call: Call, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
    """Return an option that has one integer per spatial axis."""
    numbers = call.option(name) or [default] * rank
    if len(numbers) != rank:
        raise Unsupported(f"its {name} must be {rank} numbers, got {numbers}")
    return tuple(numbers)


def _tidy(pads: Sequence[tuple[int, int]]) -> Any:
    """Return padding as one integer, or one per axis, if that says it."""
    if all(before == after for before, after in pads):
        sides = tuple(before for before, _ in pads)
        return sides[0] if len({*sides}) == 1 else sides
    return tuple(pads)


def _padding(call: Call, rank: int, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """Return the padding of a convolution or pool as our layers take it."""
    how = call.option("auto_pad", "NOTSET")
    if how == "VALID":
        return 0
    if how == "SAME_UPPER":
        return "same"
    if how == "SAME_LOWER":
        pads = []
        for size, k, s, d in zip(call.shape()[2:], kernel, stride, dilation, strict=True):
            if size is None:
                raise Unsupported("its padding depends on sizes that the file leaves open")
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            pads.append((total - total // 2, total // 2))
        return _tidy(pads)
    sides = _numbers(call, "pads", 2 * rank, 0)
    return _tidy(list(zip(sides[:rank], sides[rank:], strict=True)))


@operator("Conv")
def _conv(call: Call) -> str:
    weight, bias = call.weight(1), call.weight(2, 1) if call.has(2) else None
    rank, groups = weight.array.ndim - 2, call.option("group")
    layer = of_rank((nn.Conv1d, nn.Conv2d, nn.Conv3d), rank)
    out, part, *kernel = weight.array.shape
    stride, dilation = _numbers(call, "strides", rank), _numbers(call, "dilations", rank)
    padding = _padding(call, rank, kernel, stride, dilation)
    with undrawn():
        made = layer(part * groups, out, tuple(kernel), stride, padding, dilation, groups, bias is not None)
    return call.weighted(made, weight=weight, bias=bias)


@operator("ConvTranspose")
def _conv_transpose(call: Call) -> str:
    weight, bias = call.weight(1), call.weight(2, 1) if call.has(2) else None
    rank, groups = weight.array.ndim - 2, call.option("group")
    layer = of_rank((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), rank)
    channels, part, *kernel = weight.array.shape
    stride, dilation = _numbers(call, "strides", rank), _numbers(call, "dilations", rank)
    extra = _numbers(call, "output_padding", rank, 0)
    how, wanted = call.option("auto_pad", "NOTSET"), call.option("output_shape")
    if wanted or how.startswith("SAME"):
        pads = []
        for i, size in enumerate(call.shape()[2:]):
            if size is None:
                raise Unsupported("its padding depends on sizes that the file leaves open")
            out = wanted[i - rank] if wanted else size * stride[i]
            total = stride[i] * (size - 1) + extra[i] + dilation[i] * (kernel[i] - 1) + 1 - out
            half = total // 2 if how == "SAME_UPPER" else total - total // 2
            pads.append((half, total - half))
    else:
        sides = _numbers(call, "pads", 2 * rank, 0)
        pads = list(zip(sides[:rank], sides[rank:], strict=True))
    with undrawn():
        made = layer(
            channels, part * groups, tuple(kernel), stride, _tidy(pads), extra, groups, bias is not None, dilation
        )
    return call.weighted(made, weight=weight, bias=bias)


@operator("MaxPool", "AveragePool")
def _pool(call: Call) -> str:
    kernel = tuple(call.option("kernel_shape") or ())
    rank = len(kernel)
    largest = call.op == "MaxPool"
    average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    layer = of_rank((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d) if largest else average, rank)
    stride, dilation = _numbers(call, "strides", rank), _numbers(call, "dilations", rank)
    padding = _padding(call, rank, kernel, stride, dilation)
    options = {} if largest else {"count_include_pad": bool(call.option("count_include_pad", 0))}
    up = bool(call.option("ceil_mode", 0))
    return call.add(layer(kernel, stride, padding, dilation=dilation, ceil_mode=up, **options))


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> str:
    average = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    largest = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    return call.add(of_rank(largest if call.op == "GlobalMaxPool" else average, call.rank() - 2)(1))


# Normalisations


@operator("BatchNormalization")
def _batch_norm(call: Call) -> str:
    weight, bias, mean, var = (call.weight(i, 1) for i in (1, 2, 3, 4))
    if call.option("spatial", 1) != 1:
        raise Unsupported("it normalises each pixel by its own statistics (spatial=0)")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if call.rank() not in kinds:
        raise Unsupported(f"its input has {call.rank()} axes; 2 to 5 are supported")
    momentum = round(1 - exact(call.option("momentum")), 7)  # 0.1 for 0.9
    with undrawn():
        made = kinds[call.rank()](weight.array.size, exact(call.option("epsilon")), momentum)
    made.num_batches_tracked = nn.Buffer(np.zeros((), np.int64))
    return call.weighted(made, weight=weight, bias=bias, running_mean=mean, running_var=var)


@operator("InstanceNormalization")
def _instance_norm(call: Call) -> str:
    weight, bias = call.weight(1, 1), call.weight(2, 1)
    layer = of_rank((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), call.rank() - 2)
    with undrawn():
        made = layer(weight.array.size, exact(call.option("epsilon")), affine=True)
    return call.weighted(made, weight=weight, bias=bias)


@operator("LayerNormalization")
def _layer_norm(call: Call) -> list[str]:
    weight, bias = call.weight(1), call.weight(2) if call.has(2) else None
    axis = call.axis(call.option("axis"))
    if call.shape()[axis:] != weight.array.shape:
        raise Unsupported(f"its scale must have the shape {call.shape()[axis:]}, got {weight.array.shape}")
    with undrawn():
        made = nn.LayerNorm(weight.array.shape, exact(call.option("epsilon")), bias=bias is not None)
    results = [call.weighted(made, weight=weight, bias=bias)]
    if call.used(1) or call.used(2):
        average = nn.Apply("mean", dim=tuple(range(axis, call.rank())), keepdim=True)
        mean = call.add(average, suffix="mean")
        centred = call.pair("subtract", call.input(), mean, "centred")
        square = call.add(nn.Apply("power", exponent=2.0), centred, suffix="square")
        var = call.pair("add", call.add(average, square, suffix="var"), exact(call.option("epsilon")), "moved")
        results += [mean, call.add(nn.Apply("power", exponent=-0.5), var, suffix="inverse")]
    return results


@operator("GroupNormalization")
def _group_norm(call: Call) -> str:
    weight, bias, groups = call.weight(1, 1), call.weight(2, 1), call.option("num_groups")
    if call.opset < 21:  # one number per group
        (_, channels, *_) = call.shape()
        if channels is None or weight.array.size != groups or bias.array.size != groups or channels % groups:
            raise Unsupported("its scale and bias must have one number per group")
        call.network.budget.take((channels,), 16)
        repeats = channels // groups
        weight = weight.arranged("repeated", lambda array: np.repeat(array, repeats))
        bias = bias.arranged("repeated", lambda array: np.repeat(array, repeats))
    with undrawn():
        made = nn.GroupNorm(groups, weight.array.size, exact(call.option("epsilon")))
    return call.weighted(made, weight=weight, bias=bias)


@operator("LRN")
def _lrn(call: Call) -> str:
    size = call.option("size")
    if size % 2 == 0:
        raise Unsupported(f"its size must be odd, got {size}")  # of an even window the longer side is another
    alpha, beta, k = (exact(call.option(name)) for name in ("alpha", "beta", "bias"))
    return call.add(nn.LocalResponseNorm(size, alpha, beta, k))


# Products


@operator("Gemm")
def _gemm(call: Call) -> str:
    across, transposed = call.option("transA"), call.option("transB")
    alpha, beta = call.option("alpha"), call.option("beta")
    weight, added = call.constant(1), call.constant(2)
    outputs = 0 if weight is None or weight.ndim != 2 else weight.shape[0 if transposed else 1]
    vector = not call.has(2) or (added is not None and is_vector(added, outputs))
    if outputs and vector and not across:
        matrix = _scaled(call.weight(1), alpha)
        bias = _scaled(call.weight(2), beta) if call.has(2) else None
        if bias is not None and bias.array.shape != (outputs,):
            bias = bias.arranged("row", lambda array: np.broadcast_to(np.reshape(array, -1), (outputs,)))
        return _linear(call, matrix if transposed else matrix.arranged("T", np.transpose), bias)
    first, second = call.input(0), call.input(1)
    turn = nn.Apply("permute", dims=(1, 0))
    first = call.add(turn, first, suffix="first") if across else first
    second = call.add(turn, second, suffix="second") if transposed else second
    node = call.add(nn.Apply("matmul"), first, second, suffix="product")
    if alpha != 1:
        node = call.pair("multiply", node, float(alpha), "scaled")
    if not call.has(2):
        return call.add(nn.Identity(), node)
    third = call.input(2)
    if beta != 1:
        third = call.pair("multiply", third, float(beta), "third")
    return call.add(nn.Add(), node, third)


def _scaled(weight: Weight, factor: float) -> Weight:
    return weight if factor == 1 else weight.arranged(f"* {factor}", lambda array: array * array.dtype.type(factor))


def _linear(call: Call, weight: Weight, bias: Weight | None) -> str:
    with undrawn():
        made = nn.Linear(weight.array.shape[1], weight.array.shape[0], bias is not None)
    return call.weighted(made, weight=weight, bias=bias)


@operator("MatMul")
def _matmul(call: Call) -> str:
    right = call.constant(1)
    if right is not None and right.ndim == 2 and call.constant(0) is None:
        return _linear(call, call.weight(1).arranged("T", np.transpose), None)
    return call.add(nn.Apply("matmul"), call.input(0), call.input(1))

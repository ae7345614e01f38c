"""Every op as a plain float64 loop over its definition, which the ops are tested against.

A function has the name and the arguments of its op, and returns y (or all results if there are several). It shares no
code or method with the op: a Python loop computes each output element, compares indices with bounds instead of padding,
and does nothing vectorised. Gradients are tested against differences of these functions.
"""

import functools
import math
from builtins import abs as _abs  # two ops have these names
from builtins import sum as _sum
from collections.abc import Callable
from typing import Any

import numpy as np
from reference_windows import *  # noqa: F403

# --- activations ----------------------------------------------------------------------------------------------------


def _each(function: Callable[[float], float], x: Any) -> np.ndarray:
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        y[index] = function(float(x[index]))
    return y


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v))


def relu(x: Any) -> np.ndarray:
    return _each(lambda v: v if v > 0 else 0.0, x)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> np.ndarray:
    return _each(lambda v: v if v > 0 else negative_slope * v, x)


def prelu(x: Any, weight: Any) -> np.ndarray:
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        slope = weight[index[1] if len(weight) > 1 else 0]
        y[index] = x[index] if x[index] > 0 else slope * x[index]
    return y


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> np.ndarray:
    return _each(lambda v: min_val if v < min_val else max_val if v > max_val else v, x)


def relu6(x: Any) -> np.ndarray:
    return _each(lambda v: 0.0 if v < 0 else 6.0 if v > 6 else v, x)


def _hard_gate(v: float, alpha: float = 1 / 6, beta: float = 0.5) -> float:
    return min(max(alpha * v + beta, 0.0), 1.0)


def hardsigmoid(x: Any, alpha: float = 1 / 6, beta: float = 0.5) -> np.ndarray:
    return _each(lambda v: _hard_gate(v, alpha, beta), x)


def hardswish(x: Any) -> np.ndarray:
    return _each(lambda v: v * _hard_gate(v), x)


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> np.ndarray:
    return _each(lambda v: v if beta * v > threshold else -_log_sigmoid(-beta * v) / beta, x)


def mish(x: Any) -> np.ndarray:
    return _each(lambda v: v * math.tanh(-_log_sigmoid(-v)), x)


def elu(x: Any, alpha: float = 1.0) -> np.ndarray:
    return _each(lambda v: v if v > 0 else alpha * (math.exp(v) - 1), x)


def celu(x: Any, alpha: float = 1.0) -> np.ndarray:
    return _each(lambda v: v if v > 0 else alpha * (math.exp(v / alpha) - 1), x)


def selu(x: Any) -> np.ndarray:
    return _each(lambda v: 1.0507009873554805 * (v if v > 0 else 1.6732632423543773 * (math.exp(v) - 1)), x)


def gelu(x: Any, approximate: str = "none") -> np.ndarray:
    if approximate == "tanh":
        return _each(lambda v: v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))), x)
    return _each(lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2, x)


def silu(x: Any) -> np.ndarray:
    return _each(lambda v: v * _sigmoid(v), x)


def sigmoid(x: Any) -> np.ndarray:
    return _each(_sigmoid, x)


def tanh(x: Any) -> np.ndarray:
    return _each(math.tanh, x)


abs, erf, exp, log, negative, softsign, sqrt = (
    functools.partial(_each, function)
    for function in (
        lambda v: -v if v < 0 else v, math.erf, math.exp, math.log, lambda v: -v,
        lambda v: v / (1 + v) if v > 0 else v / (1 - v), math.sqrt,
    )
)  # fmt: skip


def power(x: Any, exponent: float) -> np.ndarray:
    return _each(lambda v: math.pow(v, exponent), x)


def _line(x: Any, index: tuple[int, ...], dim: int) -> list[float]:
    """Return the elements of x along `dim` through one index."""
    if x.ndim == 0:
        return [float(x)]
    dim %= x.ndim
    return [float(x[(*index[:dim], i, *index[dim + 1 :])]) for i in range(x.shape[dim])]


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(_sum(math.exp(v - top) for v in values))


def log_softmax(x: Any, dim: int = -1) -> np.ndarray:
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        y[index] = x[index] - _log_sum_exp(_line(x, index, dim))
    return y


def softmax(x: Any, dim: int = -1) -> np.ndarray:
    return _each(math.exp, log_softmax(x, dim))


# --- linear, shapes, dropout ----------------------------------------------------------------------------------------


def linear(x: Any, weight: Any, bias: Any = None, activation: Any = None) -> np.ndarray:
    y = np.zeros((*x.shape[:-1], weight.shape[0]))
    for index in np.ndindex(*y.shape):
        y[index] = 0.0 if bias is None else bias[index[-1]]
        for i in range(x.shape[-1]):
            y[index] += x[(*index[:-1], i)] * weight[index[-1], i]
    return activated(y, activation)


def activated(y: np.ndarray, activation: Any) -> np.ndarray:
    """Apply an activation: None, the name of one of these functions, or a tuple of its name and parameters."""
    name, *parameters = activation if isinstance(activation, tuple) else (activation,)
    return y if name is None else globals()[name](y, *parameters)


def matmul(x: Any, other: Any) -> np.ndarray:
    """Put a vector's missing axis in, and take it out of the result."""
    row, column = x.ndim == 1, other.ndim == 1
    x, other = x[None] if row else x, other[:, None] if column else other
    y = np.zeros((*np.broadcast_shapes(x.shape[:-2], other.shape[:-2]), x.shape[-2], other.shape[-1]))
    for *lead, i, j in np.ndindex(*y.shape):
        for k in range(x.shape[-1]):
            y[(*lead, i, j)] += _repeated(x, (*lead, i, k)) * _repeated(other, (*lead, k, j))
    return y[..., 0, :] if row and not column else y[..., 0] if column and not row else y[..., 0, 0] if row else y


def flatten(x: Any, start_dim: int = 1, end_dim: int = -1) -> np.ndarray:
    start, end = start_dim % x.ndim, end_dim % x.ndim
    y = np.zeros((*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))
    for index in np.ndindex(*x.shape):
        position = 0
        for i, size in zip(index[start : end + 1], x.shape[start : end + 1], strict=True):
            position = position * size + i
        y[(*index[:start], position, *index[end + 1 :])] = x[index]
    return y


def unflatten(x: Any, dim: int, unflattened_size: Any) -> np.ndarray:
    dim %= x.ndim
    y, rank = np.zeros((*x.shape[:dim], *unflattened_size, *x.shape[dim + 1 :])), len(unflattened_size)
    for index in np.ndindex(*y.shape):
        position = 0
        for i, size in zip(index[dim : dim + rank], unflattened_size, strict=True):
            position = position * size + i
        y[index] = x[(*index[:dim], position, *index[dim + rank :])]
    return y


def permute(x: Any, dims: Any) -> np.ndarray:
    y = np.zeros([x.shape[dim] for dim in dims])
    for index in np.ndindex(*y.shape):
        place = [0] * x.ndim
        for i, dim in zip(index, dims, strict=True):
            place[dim] = i
        y[index] = x[tuple(place)]
    return y


def reshape(x: Any, shape: Any) -> np.ndarray:
    """Write the numbers one by one, with the last axis running fastest."""
    rest = math.prod(size for size in shape if size != -1)
    y = np.zeros([math.prod(x.shape) // rest if size == -1 else size for size in shape])
    for place, index in zip(np.ndindex(*y.shape), np.ndindex(*x.shape), strict=True):
        y[place] = x[index]
    return y


def slice(x: Any, dim: int, start: Any = None, stop: Any = None, step: int = 1) -> np.ndarray:
    """Walk from one end to the other, and take what lies between the bounds, every `step` steps from the first."""
    dim, size = dim % x.ndim, x.shape[dim]
    start, stop = (None if end is None else end + size if end < 0 else end for end in (start, stop))
    way = range(size) if step > 0 else range(size - 1, -1, -1)
    after = [i for i in way if start is None or (i >= start if step > 0 else i <= start)]
    taken = [i for i in after if stop is None or (i < stop if step > 0 else i > stop)]
    taken = [i for i in taken if (i - after[0]) % _abs(step) == 0]
    y = np.zeros((*x.shape[:dim], len(taken), *x.shape[dim + 1 :]))
    for index in np.ndindex(*y.shape):
        y[index] = x[(*index[:dim], taken[index[dim]], *index[dim + 1 :])]
    return y


def sum(x: Any, dim: Any = None, keepdim: bool = False) -> np.ndarray:
    dims = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
    dims = {one % x.ndim for one in dims} if x.ndim else set()
    y = np.zeros([1 if one in dims else size for one, size in enumerate(x.shape)])
    for index in np.ndindex(*x.shape):
        y[tuple(0 if one in dims else i for one, i in enumerate(index))] += x[index]
    return y if keepdim else y.reshape([size for one, size in enumerate(x.shape) if one not in dims])


def mean(x: Any, dim: Any = None, keepdim: bool = False) -> np.ndarray:
    """Divide the sum of x by the sum of as many ones."""
    count = sum(np.ones(x.shape), dim, keepdim)
    return _pairwise(lambda total, n: total / n if n else math.nan, sum(x, dim, keepdim), count)


def _repeated(array: Any, index: tuple[int, ...]) -> float:
    """Return the element that broadcasting puts at an index: axes are aligned at the last, axes of length 1 repeat."""
    own = index[len(index) - array.ndim :]
    return float(array[tuple(0 if size == 1 else i for i, size in zip(own, array.shape, strict=True))])


def _pairwise(function: Callable[[float, float], float], x: Any, other: Any) -> np.ndarray:
    y = np.zeros(np.broadcast_shapes(x.shape, np.shape(other)))
    for index in np.ndindex(*y.shape):
        y[index] = function(_repeated(x, index), _repeated(other, index) if np.ndim(other) else float(other))
    return y


def add(x: Any, other: Any, activation: Any = None) -> np.ndarray:
    total = _pairwise(lambda a, b: a + b, x, other)
    name, *parameters = (activation,) if isinstance(activation, str) else activation or (None,)
    return total if name is None else globals()[name](total, *parameters)


subtract, multiply, divide, maximum, minimum = (
    functools.partial(_pairwise, function)
    for function in (lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b, max, min)
)


def concat(xs: Any, dim: int = 0) -> np.ndarray:
    shape = list(xs[0].shape)
    shape[dim] = _sum(x.shape[dim] for x in xs)
    y, first = np.zeros(shape), 0
    for x in xs:
        for index in np.ndindex(*x.shape):
            target = list(index)
            target[dim] += first
            y[tuple(target)] = x[index]
        first += x.shape[dim]
    return y


def dropout(x: Any, p: float = 0.5, training: bool = True, *, rng: Any) -> np.ndarray:
    """Draw the numbers one by one, in float32 and in row-major order."""
    if not training or p == 0:
        return np.array(x)
    generator = np.random.default_rng(rng)
    return _each(lambda v: v / (1 - p) if generator.random(dtype=np.float32) >= p else 0.0, x)


def _dropout_maps(rank: int, x: Any, p: float = 0.5, training: bool = True, *, rng: Any) -> np.ndarray:
    """Draw one number per map."""
    if not training or p == 0:
        return np.array(x)
    generator, y = np.random.default_rng(rng), np.zeros(x.shape)
    for lead in np.ndindex(*x.shape[:-rank]):
        kept = generator.random(dtype=np.float32) >= p
        for pixel in np.ndindex(*x.shape[-rank:]):
            y[lead + pixel] = x[lead + pixel] / (1 - p) if kept else 0.0
    return y


def stochastic_depth(x: Any, p: float, training: bool = True, *, rng: Any) -> np.ndarray:
    """Draw one number per example."""
    if not training or p == 0:
        return np.array(x)
    generator, y = np.random.default_rng(rng), np.zeros(x.shape)
    for i in range(x.shape[0]):
        kept = generator.random(dtype=np.float32) >= p
        for place in np.ndindex(*x.shape[1:]):
            y[(i, *place)] = x[(i, *place)] / (1 - p) if kept else 0.0
    return y


dropout1d, dropout2d, dropout3d = (functools.partial(_dropout_maps, rank) for rank in (1, 2, 3))

# --- normalisation --------------------------------------------------------------------------------------------------


def _moments(values: list[float]) -> tuple[float, float]:
    mean = _sum(values) / len(values)
    return mean, _sum((v - mean) ** 2 for v in values) / len(values)


def _scaled(value: float, weight: Any, bias: Any, at: Any) -> float:
    return value * (1.0 if weight is None else float(weight[at])) + (0.0 if bias is None else float(bias[at]))


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Any = None,
    activation: Any = None,
) -> tuple[Any, ...]:
    y = np.zeros(x.shape)
    means = None if running_mean is None else np.array(running_mean, dtype=float)
    variances = None if running_var is None else np.array(running_var, dtype=float)
    for channel in range(x.shape[1]):
        places = [index for index in np.ndindex(*x.shape) if index[1] == channel]
        if not places:
            continue
        if training or running_mean is None:
            mean, variance = _moments([float(x[index]) for index in places])
            if means is not None:
                unbiased = variance * len(places) / (len(places) - 1)
                means[channel] = (1 - momentum) * means[channel] + momentum * mean
                variances[channel] = (1 - momentum) * variances[channel] + momentum * unbiased
        else:
            mean, variance = float(running_mean[channel]), float(running_var[channel])
        for index in places:
            y[index] = _scaled((x[index] - mean) / math.sqrt(variance + eps), weight, bias, channel)
    return _finished(y, residual, activation), means, variances


def _finished(y: np.ndarray, residual: Any, activation: Any) -> np.ndarray:
    for index in np.ndindex(*y.shape):
        value = float(y[index]) + (0.0 if residual is None else float(residual[index]))
        y[index] = max(value, 0.0) if activation == "relu" else value
    return y


def _normalized(x: Any, weight: Any, bias: Any, eps: float, cell: Any, at: Any) -> np.ndarray:
    """Normalise over the elements that share `cell(index)`; weight and bias belong to `at(index)`."""
    y, cells = np.zeros(x.shape), {}
    for index in np.ndindex(*x.shape):
        cells.setdefault(cell(index), []).append(index)
    for places in cells.values():
        mean, variance = _moments([float(x[index]) for index in places])
        for index in places:
            y[index] = _scaled((x[index] - mean) / math.sqrt(variance + eps), weight, bias, at(index))
    return y


def layer_norm(
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    residual: Any = None,
    activation: Any = None,
) -> np.ndarray:
    lead = x.ndim - np.size(normalized_shape)
    y = _normalized(x, weight, bias, eps, lambda index: index[:lead], lambda index: index[lead:])
    return _finished(y, residual, activation)


def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    residual: Any = None,
    activation: Any = None,
) -> np.ndarray:
    size = x.shape[1] // num_groups
    y = _normalized(x, weight, bias, eps, lambda index: (index[0], index[1] // size), lambda index: index[1])
    return _finished(y, residual, activation)


def instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Any = None,
    activation: Any = None,
) -> tuple[Any, ...]:
    """Normalise each image as a batch of one; the new running statistics are the means of theirs."""
    parts = [
        batch_norm(one[None], running_mean, running_var, weight, bias, use_input_stats, momentum, eps) for one in x
    ]
    if not parts:
        return np.zeros(x.shape), running_mean, running_var
    images, means, variances = zip(*parts, strict=True)
    y = _finished(np.concatenate(images), residual, activation)
    if running_mean is None:
        return y, None, None
    return y, _sum(means) / len(means), _sum(variances) / len(variances)


def local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> np.ndarray:
    y = np.zeros(x.shape)
    for image, channel, *pixel in np.ndindex(*x.shape):
        near = range(channel - size // 2, channel + (size - 1) // 2 + 1)
        squares = _sum(x[(image, other, *pixel)] ** 2 for other in near if 0 <= other < x.shape[1])
        y[(image, channel, *pixel)] = x[(image, channel, *pixel)] / (k + alpha * squares / size) ** beta
    return y


# --- losses ---------------------------------------------------------------------------------------------------------


def _reduced(losses: np.ndarray, reduction: str, count: float) -> np.ndarray:
    if reduction == "none":
        return losses
    total = _sum(float(losses[index]) for index in np.ndindex(*losses.shape))
    return np.asarray(total if reduction == "sum" else total / count if count else math.nan)


def _classified(
    logp: Any, target: Any, weight: Any, ignore_index: int, reduction: str, label_smoothing: float
) -> np.ndarray:
    """Return `-sum over classes of target * weight * logp` for each row, with labels as probabilities."""
    axis = min(1, logp.ndim - 1)
    classes = logp.shape[axis]
    losses, count = np.zeros(logp.shape[:axis] + logp.shape[axis + 1 :]), 0.0
    for row in np.ndindex(*losses.shape):
        label = int(target[row]) if target.shape != logp.shape else None
        if label == ignore_index:
            continue
        count += 1.0 if label is None or weight is None else float(weight[label])
        for k in range(classes):
            place = (*row[:axis], k, *row[axis:])
            asked = float(target[place]) if label is None else float(k == label)
            asked = asked * (1 - label_smoothing) + label_smoothing / classes
            if asked:
                losses[row] -= asked * (1.0 if weight is None else float(weight[k])) * logp[place]
    return _reduced(losses, reduction, count)


def cross_entropy(
    x: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> np.ndarray:
    logp = log_softmax(x, dim=min(1, x.ndim - 1))
    return _classified(logp, target, weight, ignore_index, reduction, label_smoothing)


def nll_loss(x: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> np.ndarray:
    return _classified(x, target, weight, ignore_index, reduction, 0.0)


def _compared(x: Any, target: Any, reduction: str, loss: Callable[[float, float], float]) -> np.ndarray:
    losses = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        losses[index] = loss(float(x[index]), float(target[index]))
    return _reduced(losses, reduction, losses.size)


def mse_loss(x: Any, target: Any, reduction: str = "mean") -> np.ndarray:
    return _compared(x, target, reduction, lambda a, b: (a - b) ** 2)


def l1_loss(x: Any, target: Any, reduction: str = "mean") -> np.ndarray:
    return _compared(x, target, reduction, lambda a, b: _abs(a - b))


def huber_loss(x: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> np.ndarray:
    def loss(a: float, b: float) -> float:
        d = _abs(a - b)
        return d**2 / 2 if d <= delta else delta * (d - delta / 2)

    return _compared(x, target, reduction, loss)


def binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> np.ndarray:
    def factor(array: Any, index: tuple[int, ...]) -> float:
        return 1.0 if array is None else _repeated(array, index)

    losses = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        yes, no = -_log_sigmoid(float(x[index])), -_log_sigmoid(-float(x[index]))
        cost = target[index] * yes * factor(pos_weight, index) + (1 - target[index]) * no
        losses[index] = cost * factor(weight, index)
    return _reduced(losses, reduction, losses.size)


def _log_sigmoid(v: float) -> float:
    return -math.log1p(math.exp(-v)) if v > 0 else v - math.log1p(math.exp(v))

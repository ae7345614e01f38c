"""Normalisations: batch, layer, group and instance norm, which differ in the axes that they average over.

All four are `y = (x - mean) / sqrt(var + eps) * weight + bias`. `_norm` is this formula with its gradient, on
a view of x whose axes are whole groups; an op says what view that is. Backward keeps x, and one mean and rstd per
group, not the normalised x, which it makes again: x is the result of the layer before and mostly alive anyway.

Sizes: n images, c channels, g groups.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._check import integers
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, positive, sample
from xcnn.ops._options import Integers

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm"]


@dataclass(frozen=True, slots=True)
class _View:
    """How an op sees x: `shape`, the `axes` to average over, and the shape that weight and bias take beside it."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    weight: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers per mean."""
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def shared(self) -> tuple[int, ...]:
        """Axes along which all numbers have the same weight."""
        return tuple(axis for axis, size in enumerate(self.weight) if size == 1)


@body
def _norm(
    xp: ModuleType,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    view: _View,
    given: tuple[Array, Array] | None = None,
) -> tuple[Array, Callable[[Array, Sequence[bool]], Gradients], Array, Array]:
    """Normalise x by its own mean and variance, or by given constants; return y, backward, mean and variance."""
    count, constant, shape = view.count or 1, given is not None, x.shape
    bias_shape = None if bias is None else bias.shape
    y = xp.reshape(x, view.shape)
    if given is None:
        mean = sum_over(xp, y, view.axes, keepdims=True) / count
        y = y - mean
        var = sum_over(xp, y * y, view.axes, keepdims=True) / count  # two passes: E[x^2] - E[x]^2 would lose digits
    else:
        mean, var = (xp.reshape(array, view.weight) for array in given)
        y = y - mean
    rstd = 1.0 / xp.sqrt(var + eps)
    y *= rstd if weight is None else rstd * xp.reshape(weight, view.weight)
    if bias is not None:
        y += xp.reshape(bias, view.weight)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        """Map dy to (dx, dweight, dbias).

        With xhat = (x - mean) * rstd and d = dy * weight, `dx = rstd * (d - mean(d) - xhat * mean(d * xhat))`, or
        rstd * d for constants. The sums that dweight, dbias and these means have in common are taken first.
        """
        dx = dweight = dbias = None
        dy = xp.reshape(dy, view.shape)
        common = tuple(axis for axis in view.axes if axis in view.shared)
        statistics = needs[0] and not constant
        if statistics or (needs[2] and bias_shape is not None):
            sums = sum_over(xp, dy, common, keepdims=True)
            if needs[2] and bias_shape is not None:
                dbias = xp.reshape(sum_over(xp, sums, view.shared), bias_shape)
        if statistics or (needs[1] and weight is not None):
            centred = xp.reshape(x, view.shape) - mean
            products = sum_over(xp, dy * centred, common, keepdims=True) * rstd
            if needs[1] and weight is not None:
                dweight = xp.reshape(sum_over(xp, products, view.shared), weight.shape)
        if needs[0]:
            factor = 1.0 if weight is None else xp.reshape(weight, view.weight)
            dx = dy * (rstd * factor)
            if statistics:
                centred *= sum_over(xp, products * factor, view.axes, keepdims=True) * (rstd * rstd / count)
                centred += sum_over(xp, sums * factor, view.axes, keepdims=True) * (rstd / count)
                dx -= centred
            dx = xp.reshape(dx, shape)
        return dx, dweight, dbias

    return xp.reshape(y, shape), backward, mean, var


@body
def _running_statistics(
    xp: ModuleType, running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, unbias: float
) -> tuple[Array, Array]:
    """Give the running statistics (c,) after a batch with these; `unbias` makes its variance divide by N - 1."""
    keep = 1.0 - momentum
    return keep * running_mean + momentum * mean, keep * running_var + momentum * (var * unbias)


def _check(name: str, shape: tuple[int, ...], **parameters: Array | None) -> None:
    for parameter, array in parameters.items():
        if array is not None and array.shape != shape:
            raise ShapeError(f"{name}: {parameter} must have shape {shape}, got {tuple(array.shape)}")


def _check_channels(name: str, x: Array, rank: int = 2) -> None:
    if x.ndim < rank:
        axes = "(n, c, *sizes)" if rank == 2 else "(n, c, *sizes) with at least one size"
        raise ShapeError(f"{name}: x must be {axes}, got {tuple(x.shape)}")


_IMAGES = {"x": (3, 2, 4), "running_mean": (2,), "running_var": positive(2), "weight": (2,), "bias": (2,)}
_BARE = {"x": (4, 3), "running_mean": None, "running_var": None, "weight": None, "bias": None}


@op(
    "x running_mean running_var weight bias",
    saves="x mean rstd weight",
    constants="running_mean running_var",
    samples=[
        sample(_IMAGES, training=True),
        sample(_IMAGES, training=False),
        sample({**_IMAGES, "x": (3, 2)}, training=True, momentum=0.3, eps=0.1),
        sample(_BARE, training=True),
    ],
)
def batch_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[tuple[Array, Array | None, Array | None], Callable[..., Gradients]]:
    """Give each channel mean 0 and variance 1, over the batch in training and by the running statistics otherwise.

    Parameters
    ----------
    x : (n, c) or (n, c, *sizes), floating point.
    running_mean, running_var : (c,), both or, in training only, neither. They are not changed, unlike in PyTorch.
    weight, bias : (c,), applied after the normalisation, or None.
    training : use the statistics of this batch.
    momentum : share of this batch in the new running statistics.
    eps : added to the variance, for channels that are nearly constant.

    Returns
    -------
    (y, running_mean, running_var) : y of the shape of x, and the new running statistics (None where there were none).
        The variance divides by N, the running variance by N - 1, as in PyTorch.
    backward : dy -> (dx, None, None, dweight, dbias). It keeps x, weight, and mean and rstd of each channel.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other, the statistics are missing, or a channel has one number in training.

    Notes
    -----
    S. Ioffe and C. Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """
    name = "batch_norm"
    xp = namespace(name, x=x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    _check_channels(name, x)
    n, c = x.shape[0], x.shape[1]
    _check(name, (c,), running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    view = _View((n, c, math.prod(x.shape[2:])), (0, 2), (1, c, 1))
    given = None
    if running_mean is not None and running_var is not None:
        given = None if training else (running_mean, running_var)
    elif not training or running_mean is not running_var:
        raise UsageError("batch_norm: running_mean and running_var are needed, both of them; in training also neither")
    if training and view.count == 1:
        raise ShapeError(f"batch_norm: training needs more than one number per channel, got x {tuple(x.shape)}")
    y, gradients, mean, var = _norm(xp, x, weight, bias, eps, view, given)
    if training and running_mean is not None and running_var is not None and view.count:
        batch = xp.reshape(mean, (c,)), xp.reshape(var, (c,))
        unbias = view.count / (view.count - 1)
        running_mean, running_var = _running_statistics(xp, running_mean, running_var, *batch, momentum, unbias)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias = gradients(dy, (needs[0], needs[3], needs[4]))
        return dx, None, None, dweight, dbias

    return (y, running_mean, running_var), backward


@op(
    "x weight bias",
    saves="x mean rstd weight",
    samples=[
        sample({"x": (3, 4), "weight": (4,), "bias": (4,)}, normalized_shape=4),
        sample({"x": (2, 3, 4), "weight": (3, 4), "bias": None}, normalized_shape=(3, 4), eps=0.1),
        sample({"x": (2, 3, 4), "weight": None, "bias": None}, normalized_shape=(4,)),
    ],
)
def layer_norm(
    x: Array,
    normalized_shape: Integers,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> Result:
    """Give the trailing axes together mean 0 and variance 1.

    Parameters
    ----------
    x : (..., *normalized_shape), floating point.
    normalized_shape : the sizes of the trailing axes; an integer for one of them.
    weight, bias : normalized_shape, applied after the normalisation, or None.
    eps : added to the variance.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias). It keeps x, weight, and one mean and rstd per leading position.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other, or normalized_shape holds no integers.

    Notes
    -----
    J. L. Ba, J. R. Kiros and G. E. Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """
    xp = namespace("layer_norm", x=x, weight=weight, bias=bias)
    rank = len(normalized_shape) if isinstance(normalized_shape, Sequence) else 1
    trailing = integers("layer_norm", "normalized_shape", normalized_shape, rank, 0)
    lead = x.ndim - len(trailing)
    if not trailing or lead < 0 or x.shape[lead:] != trailing:
        raise ShapeError(f"layer_norm: x must end in normalized_shape {trailing}, got {tuple(x.shape)}")
    _check("layer_norm", trailing, weight=weight, bias=bias)
    features = math.prod(trailing)
    view = _View((math.prod(x.shape[:lead]), features), (1,), (1, features))
    y, backward, _, _ = _norm(xp, x, weight, bias, eps, view)
    return y, backward


def _group_norm(xp: ModuleType, x: Array, g: int, weight: Array | None, bias: Array | None, eps: float) -> Result:
    n, c = x.shape[0], x.shape[1]
    view = _View((n, g, c // g, math.prod(x.shape[2:])), (2, 3), (1, g, c // g, 1))
    y, backward, _, _ = _norm(xp, x, weight, bias, eps, view)
    return y, backward


_PARAMETERS = {"weight": (4,), "bias": (4,)}


@op(
    "x weight bias",
    saves="x mean rstd weight",
    samples=[
        sample({"x": (2, 4, 3), **_PARAMETERS}, num_groups=2),
        sample({"x": (2, 4), "weight": (4,), "bias": None}, num_groups=1, eps=0.1),
        sample({"x": (2, 4, 2, 2), "weight": None, "bias": None}, num_groups=4),
    ],
)
def group_norm(
    x: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Result:
    """Give each group of channels of each image mean 0 and variance 1.

    Parameters
    ----------
    x : (n, c) or (n, c, *sizes), floating point.
    num_groups : how many groups the channels are split into; a divisor of c.
    weight, bias : (c,), applied after the normalisation, or None.
    eps : added to the variance.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias). It keeps x, weight, and one mean and rstd per image and group.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other or the groups.

    Notes
    -----
    Y. Wu and K. He, Group normalization, 2018, arXiv:1803.08494.
    """
    xp = namespace("group_norm", x=x, weight=weight, bias=bias)
    _check_channels("group_norm", x)
    c = x.shape[1]
    (num_groups,) = integers("group_norm", "num_groups", num_groups, 1)
    if c % num_groups:
        raise UsageError(f"group_norm: num_groups must divide the {c} channels of x, got {num_groups!r}")
    _check("group_norm", (c,), weight=weight, bias=bias)
    return _group_norm(xp, x, num_groups, weight, bias, eps)


@op(
    "x weight bias",
    saves="x mean rstd weight",
    samples=[
        sample({"x": (2, 4, 3), **_PARAMETERS}),
        sample({"x": (2, 3, 2, 2), "weight": None, "bias": None}, eps=0.1),
    ],
)
def instance_norm(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> Result:
    """Give each channel of each image mean 0 and variance 1: `group_norm` with a group per channel.

    The order of arguments is not PyTorch's, which has running statistics before `weight`: pass them by name.

    Parameters
    ----------
    x : (n, c, *sizes) with at least one size, floating point.
    weight, bias : (c,), applied after the normalisation, or None.
    eps : added to the variance.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias). It keeps x, weight, and one mean and rstd per image and channel.

    Raises
    ------
    ShapeError, DtypeError
        Where the arrays do not fit each other, or a channel has a single number.

    Notes
    -----
    D. Ulyanov, A. Vedaldi and V. Lempitsky, Instance normalization, 2016, arXiv:1607.08022. Unlike PyTorch's, it has
    no running statistics: an image is always normalised by its own.
    """
    xp = namespace("instance_norm", x=x, weight=weight, bias=bias)
    _check_channels("instance_norm", x, rank=3)
    if math.prod(x.shape[2:]) == 1:
        raise ShapeError(f"instance_norm: x needs more than one number per channel, got {tuple(x.shape)}")
    _check("instance_norm", (x.shape[1],), weight=weight, bias=bias)
    return _group_norm(xp, x, x.shape[1], weight, bias, eps)

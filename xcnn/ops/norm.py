"""Normalisations: batch, layer, group and instance norm, which differ in the axes they average over.

All four are `y = (x - mean) / sqrt(var + eps) * weight + bias`. `_norm` is this formula with its gradient, on a view of
x in which groups have separate axes; each op chooses the view. Backward keeps x, and one mean and rstd per group. It
computes the normalised x again, because x is the result of the previous layer, which usually keeps it anyway.

Sizes: n images, c channels, g groups.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from xcnn._array import Array, namespace, sum_over
from xcnn._check import check_shape, flag, integer, integers, number
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, positive, sample
from xcnn.ops._options import Integers

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm"]


@dataclass(slots=True)
class _View:
    """How an op views x: its `shape`, the `axes` to average over, and the shape of `weight` and bias that fits it."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    weight: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements per mean."""
        return math.prod(self.shape[axis] for axis in self.axes)


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
    """Normalise x by its own mean and variance, or by given ones; return y, backward, mean and variance."""
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
        # With xhat = (x - mean) * rstd and d = dy * weight, `dx = rstd * (d - mean(d) - xhat * mean(d * xhat))`, or
        # `rstd * d` if the mean and variance are given. The sums that dweight, dbias and these means share come first.
        dx = dweight = dbias = None
        dy = xp.reshape(dy, view.shape)
        shared = tuple(axis for axis, size in enumerate(view.weight) if size == 1)  # axes with one weight for all
        common = tuple(axis for axis in view.axes if axis in shared)
        statistics = needs[0] and not constant
        if statistics or (needs[2] and bias_shape is not None):
            sums = sum_over(xp, dy, common, keepdims=True)
            if needs[2] and bias_shape is not None:
                dbias = xp.reshape(sum_over(xp, sums, shared), bias_shape)
        if statistics or (needs[1] and weight is not None):
            centred = xp.reshape(x, view.shape) - mean
            products = sum_over(xp, dy * centred, common, keepdims=True) * rstd
            if needs[1] and weight is not None:
                dweight = xp.reshape(sum_over(xp, products, shared), weight.shape)
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
    """Return the running statistics (c,) after a batch with this mean and variance; `unbias` is N / (N - 1)."""
    keep = 1.0 - momentum
    return keep * running_mean + momentum * mean, keep * running_var + momentum * (var * unbias)


Normalised = tuple[tuple[Array, Array | None, Array | None], Callable[..., Gradients]]
"""(y, running mean, running variance), backward."""


def _check_channels(name: str, x: Array, sizes: str = "") -> None:
    if x.ndim < (3 if sizes else 2):
        raise ShapeError(f"{name}: x must be (n, c, *sizes){sizes}, got {tuple(x.shape)}")


def _groups(x: Array, g: int) -> _View:
    """Return the view of x (n, c, *sizes) as g groups of channels per image; g is 0 only if c is."""
    n, size = x.shape[0], x.shape[1] // max(g, 1)
    return _View((n, g, size, math.prod(x.shape[2:])), (2, 3), (1, g, size, 1))


def _channel_norm(
    name: str,
    own: str,
    by_own: bool,
    per_image: bool,
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None,
    bias: Array | None,
    momentum: float,
    eps: float,
) -> Normalised:
    """Normalise channels by their own statistics, over the batch or per image, or by the running ones.

    `own` is the name of the option that selects their own statistics, `by_own` its value.
    """
    arrays = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    xp = namespace(name, optional=arrays, x=x, **arrays)
    _check_channels(name, x, " with at least one size" if per_image else "")
    n, c = x.shape[0], x.shape[1]
    check_shape(name, (c,), "one per channel", **arrays)
    flag(name, own, by_own)
    eps, momentum = number(name, "eps", eps, "[0, inf)"), number(name, "momentum", momentum, "[0, 1]")
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    if running is None and (not by_own or running_mean is not running_var):
        raise UsageError(f"{name}: running_mean and running_var must both be arrays or, if {own} is True, both be None")
    per_group = by_own and per_image
    view = _groups(x, c) if per_group else _View((n, c, math.prod(x.shape[2:])), (0, 2), (1, c, 1))
    count = view.count
    if by_own and count == 1:
        fix = "" if per_image else "; for a last batch of one example, see drop_last of data.Loader"
        raise ShapeError(f"{name}: x needs more than one element per mean if {own} is True, got {tuple(x.shape)}{fix}")
    y, gradients, mean, var = _norm(xp, x, weight, bias, eps, view, None if by_own else running)
    if by_own and running is not None and n and count:
        mean, var = (xp.mean(xp.reshape(a, (n, c)), axis=0) if per_group else xp.reshape(a, (c,)) for a in (mean, var))
        running_mean, running_var = _running_statistics(xp, *running, mean, var, momentum, count / (count - 1))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias = gradients(dy, (needs[0], needs[3], needs[4]))
        return dx, None, None, dweight, dbias

    return (y, running_mean, running_var), backward


_RUNNING = {"running_mean": (2,), "running_var": positive(2)}
_IMAGES = {"x": (3, 2, 4), **_RUNNING, "weight": (2,), "bias": (2,)}
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
) -> Normalised:
    """Normalise each channel to mean 0 and variance 1 over the batch, or by the running statistics.

    Parameters
    ----------
    x : floating-point array (n, c) or (n, c, *sizes).
    running_mean, running_var : (c,); in training, both may be None. They are not changed, unlike in PyTorch.
    weight, bias : scale and shift after the normalisation, (c,) or None.
    training : whether to use the statistics of this batch.
    momentum : share of this batch in the new running statistics, from 0 to 1.
    eps : added to the variance; at least 0.

    Returns
    -------
    (y, running_mean, running_var) : y of the shape of x, and the new running statistics (None if there were none). The
        variance divides by N, the running variance by N - 1, as in PyTorch.
    backward : dy -> (dx, None, None, dweight, dbias). It keeps x, weight, and mean and rstd of each channel.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other, an option is out of range, the running statistics are missing, or a
        channel has a single element in training.

    Notes
    -----
    S. Ioffe and C. Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """
    arrays = x, running_mean, running_var, weight, bias
    return _channel_norm("batch_norm", "training", training, False, *arrays, momentum, eps)


@op(
    "x running_mean running_var weight bias",
    saves="x mean rstd weight",
    constants="running_mean running_var",
    samples=[
        sample({**_IMAGES, "running_mean": None, "running_var": None}),
        sample({**_BARE, "x": (2, 3, 2, 2)}, eps=0.1),
        sample(_IMAGES, momentum=0.3),
        sample(_IMAGES, use_input_stats=False),
    ],
)
def instance_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Normalised:
    """Normalise each channel of each image to mean 0 and variance 1, or each channel by the running statistics.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes) with at least one size.
    running_mean, running_var, weight, bias, momentum, eps : as in `batch_norm`. The running statistics are updated with
        the mean over the images.
    use_input_stats : whether to use the statistics of each image, as in training.

    Returns
    -------
    (y, running_mean, running_var) : as in `batch_norm`.
    backward : dy -> (dx, None, None, dweight, dbias). It keeps x, weight, and one mean and rstd per image and channel.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As in `batch_norm`; also if an image has a single element per channel.

    Notes
    -----
    D. Ulyanov, A. Vedaldi and V. Lempitsky, Instance normalization, 2016, arXiv:1607.08022.
    """
    arrays = x, running_mean, running_var, weight, bias
    return _channel_norm("instance_norm", "use_input_stats", use_input_stats, True, *arrays, momentum, eps)


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
    """Normalise the trailing axes together to mean 0 and variance 1.

    Parameters
    ----------
    x : floating-point array (..., *normalized_shape).
    normalized_shape : the sizes of the trailing axes; an integer for one axis.
    weight, bias : scale and shift after the normalisation, of shape normalized_shape, or None.
    eps : added to the variance; at least 0.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias). It keeps x, weight, and one mean and rstd per leading position.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other, or an option is out of range.

    Notes
    -----
    J. L. Ba, J. R. Kiros and G. E. Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """
    name = "layer_norm"
    xp = namespace(name, optional=("weight", "bias"), x=x, weight=weight, bias=bias)
    rank = len(normalized_shape) if isinstance(normalized_shape, Sequence) else 1
    trailing = integers(name, "normalized_shape", normalized_shape, rank, 0)
    eps = number(name, "eps", eps, "[0, inf)")
    lead = x.ndim - len(trailing)
    if not trailing or lead < 0 or x.shape[lead:] != trailing:
        raise ShapeError(f"{name}: x must end in normalized_shape {trailing}, got {tuple(x.shape)}")
    check_shape(name, trailing, "which is normalized_shape", weight=weight, bias=bias)
    features = math.prod(trailing)
    view = _View((math.prod(x.shape[:lead]), features), (1,), (1, features))
    return _norm(xp, x, weight, bias, eps, view)[:2]


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
    """Normalise each group of channels of each image to mean 0 and variance 1.

    Parameters
    ----------
    x : floating-point array (n, c) or (n, c, *sizes).
    num_groups : number of groups that the channels are split into; it divides c.
    weight, bias : scale and shift after the normalisation, (c,) or None.
    eps : added to the variance; at least 0.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias). It keeps x, weight, and one mean and rstd per image and group.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other or the groups, or an option is out of range.

    Notes
    -----
    Y. Wu and K. He, Group normalization, 2018, arXiv:1803.08494.
    """
    name = "group_norm"
    xp = namespace(name, optional=("weight", "bias"), x=x, weight=weight, bias=bias)
    _check_channels(name, x)
    c, num_groups = x.shape[1], integer(name, "num_groups", num_groups)
    if c % num_groups:
        raise UsageError(f"{name}: num_groups must divide the {c} channels of x, got {num_groups}")
    check_shape(name, (c,), "one per channel", weight=weight, bias=bias)
    eps = number(name, "eps", eps, "[0, inf)")
    return _norm(xp, x, weight, bias, eps, _groups(x, num_groups))[:2]

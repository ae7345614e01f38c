"""Normalisations: batch, layer, group and instance norm, which differ in the axes they average over.

All four are `y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)`, on a view of x in which groups
have separate axes; each op chooses the view. Backward keeps x, and one mean and rstd per group. It computes the
normalised x again, because x is the result of the previous layer, which usually keeps it anyway. With an activation it
keeps y too, which the next layer keeps anyway.

Sizes: n images, c channels, g groups.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace
from xcnn._check import check_shape, flag, integer, integers, number
from xcnn._dispatch import binds, body, bound
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._formula import Activation, apply
from xcnn.ops._normalise import View, norm
from xcnn.ops._op import Gradients, Result, op, positive, sample
from xcnn.ops._options import Integers
from xcnn.ops._options import activation as checked
from xcnn.ops._parts import Gather, gathering, norm_of_parts

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "norm_inference"]


@body
def norm_inference(
    xp: ModuleType,
    x: Array,
    norm: tuple[Array, Array, Array | None, Array | None, float],
    residual: Array | None = None,
    activation: Activation = None,
) -> Array:
    """Return `activation((x - mean) / sqrt(var + eps) * weight + bias + residual)` of x (n, c, *sizes).

    `norm` is (mean, var, weight, bias, eps), of which weight and bias may be None; the arrays have shape (c,).
    """
    mean, var, weight, bias, eps = norm
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    rstd = 1.0 / xp.sqrt(var + eps)
    y = x - xp.reshape(mean, per_channel)
    y *= xp.reshape(rstd if weight is None else rstd * weight, per_channel)
    if bias is not None:
        y += xp.reshape(bias, per_channel)
    if residual is not None:
        y += residual
    return apply(xp, y, activation)


@body
def _running_statistics(
    xp: ModuleType, running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, unbias: float
) -> tuple[Array, Array]:
    """Return the running statistics (c,) after a batch with this mean and variance; `unbias` is N / (N - 1)."""
    keep = 1.0 - momentum
    return keep * running_mean + momentum * mean, keep * running_var + momentum * (var * unbias)


@body
def _tracked(
    xp: ModuleType,
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    view: View,
    momentum: float | None,
    residual: Array | None,
    activation: Activation,
) -> tuple[Array, Callable[[Array, Sequence[bool]], Gradients], Array | None, Array | None]:
    """Return y, backward, and the running statistics, which move unless x is normalised by them: `momentum` is None."""
    if momentum is not None and (gather := _gather(view, momentum)) is not None:
        y, gradients, mean, var = norm_of_parts(xp, x, weight, bias, eps, view, gather, residual, activation)
        if running_mean is not None:
            running_mean, running_var = _running_statistics(xp, running_mean, running_var, mean, var, momentum, 1.0)
        return y, _of_all(gradients), running_mean, running_var
    given = (running_mean, running_var) if momentum is None else None
    y, gradients, mean, var = norm(xp, x, weight, bias, eps, view, given, residual, activation)
    if momentum is not None and running_mean is not None and x.shape[0] and view.count:
        running = _batch(xp, mean, var, x.shape[1], view)
        moved = running_mean, running_var, *running, momentum, view.count / (view.count - 1)
        running_mean, running_var = _running_statistics(xp, *moved)
    return y, _of_all(gradients), running_mean, running_var


def _gather(view: View, momentum: float | None) -> Gather | None:
    """Return how to get the numbers of all parts of a batch if this is the batch norm of one in training, or None."""
    return gathering() if momentum is not None and view.axes == (0, 2) else None


def _batch(xp: ModuleType, mean: Array, var: Array, c: int, view: View) -> tuple[Array, Array]:
    """Return the statistics (c,) of a batch."""
    if view.axes == (0, 2):
        return xp.reshape(mean, (c,)), xp.reshape(var, (c,))
    mean, var = (xp.mean(xp.reshape(one, (-1, c)), axis=0) for one in (mean, var))  # one per image
    return mean, var


def _of_all(gradients: Callable[..., Gradients]) -> Callable[[Array, Sequence[bool]], Gradients]:
    """Return the backward pass that has no gradients of the running statistics either."""

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias, dresidual = gradients(dy, (needs[0], *needs[3:]))
        return dx, None, None, dweight, dbias, dresidual

    return backward


@binds(_tracked, whole=True)
def _bind_whole(
    xp: ModuleType, x: Array, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float, view: View,
    momentum: float | None, residual: Any, activation: Activation,
) -> Any:  # fmt: skip
    """Bind both bodies that are called."""
    given = (running_mean, running_var) if momentum is None else None
    run = bound(norm, xp, (x, weight, bias, eps, view, given, residual, activation), whole=True)
    if run is None or not (x.shape[0] and view.count):
        return NotImplemented
    c, move, unbias = x.shape[1], None, 1.0
    if momentum is not None and running_mean is not None:
        unbias = view.count / max(view.count - 1, 1)  # a part may have one element
        arrays = running_mean, running_var, running_mean, running_var  # of the shapes and dtypes of those of the batch
        move = bound(_running_statistics, xp, (*arrays, momentum, unbias), whole=True)
        move = move or functools.partial(_running_statistics, xp)

    def call(x: Array, running_mean: Any, running_var: Any, weight: Any, bias: Any, *after: Any) -> Any:
        if _gather(view, momentum) is not None:
            return _tracked(xp, x, running_mean, running_var, weight, bias, *after)
        given = (running_mean, running_var) if momentum is None else None
        y, gradients, mean, var = run(x, weight, bias, eps, view, given, after[3], activation)
        if move is not None:
            mean, var = _batch(xp, mean, var, c, view)
            running_mean, running_var = move(running_mean, running_var, mean, var, momentum, unbias)
        return y, _of_all(gradients), running_mean, running_var

    return call


@binds(_tracked)
def _bind(
    xp: ModuleType, x: Array, _mean: Any, _var: Any, weight: Any, bias: Any, eps: float, view: View, *after: Any
) -> Any:
    """Bind normalisation by own statistics, which do not move: only y is returned."""
    momentum, residual, activation = after
    run = None if momentum is None else bound(norm, xp, (x, weight, bias, eps, view, None, residual, activation))
    if run is None:
        return NotImplemented

    def call(x: Array, _mean: Any, _var: Any, weight: Any, bias: Any, *after: Any) -> Any:
        return run(x, weight, bias, eps, view, None, after[3], activation)

    return call


Normalised = tuple[tuple[Array, Array | None, Array | None], Callable[..., Gradients]]
"""(y, running mean, running variance), backward."""


def _check_channels(name: str, x: Array, sizes: str = "") -> None:
    if x.ndim < (3 if sizes else 2):
        raise ShapeError(f"{name}: x must be (n, c, *sizes){sizes}, got {tuple(x.shape)}")


def _groups(x: Array, g: int) -> View:
    """Return the view of x (n, c, *sizes) as g groups of channels per image; g is 0 only if c is."""
    n, size = x.shape[0], x.shape[1] // max(g, 1)
    return View((n, g, size, math.prod(x.shape[2:])), (2, 3), (1, g, size, 1))


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
    residual: Array | None,
    activation: str | tuple[Any, ...] | None,
) -> Normalised:
    """Normalise channels by their own statistics, over the batch or per image, or by the running ones.

    `own` is the name of the option that selects their own statistics, `by_own` its value.
    """
    arrays = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    xp = namespace(name, optional=(*arrays, "residual"), x=x, **arrays, residual=residual)
    _check_channels(name, x, " with at least one size" if per_image else "")
    n, c = x.shape[0], x.shape[1]
    check_shape(name, (c,), "one per channel", **arrays)
    check_shape(name, x.shape, "that of x", residual=residual)
    flag(name, own, by_own)
    eps, momentum = number(name, "eps", eps, "[0, inf)"), number(name, "momentum", momentum, "[0, 1]")
    if (running_mean is None or running_var is None) and (not by_own or running_mean is not running_var):
        raise UsageError(f"{name}: running_mean and running_var must both be arrays or, if {own} is True, both be None")
    view = _groups(x, c) if by_own and per_image else View((n, c, math.prod(x.shape[2:])), (0, 2), (1, c, 1))
    if by_own and view.count == 1 and _gather(view, momentum) is None:
        fix = "" if per_image else "; for a last batch of one example, see drop_last of data.Loader"
        raise ShapeError(f"{name}: x needs more than one element per mean if {own} is True, got {tuple(x.shape)}{fix}")
    after = residual, checked(name, activation)
    y, backward, *running = _tracked(
        xp, x, running_mean, running_var, weight, bias, eps, view, momentum if by_own else None, *after
    )
    return (y, *running), backward


_RUNNING = {"running_mean": (2,), "running_var": positive(2)}
_IMAGES = {"x": (3, 2, 4), **_RUNNING, "weight": (2,), "bias": (2,)}
_BARE = {"x": (4, 3), "running_mean": None, "running_var": None, "weight": None, "bias": None}


@op(
    "x running_mean running_var weight bias residual",
    saves="x mean rstd weight y?",
    constants="running_mean running_var",
    samples=[
        sample(_IMAGES, training=True),
        sample(_IMAGES, training=False),
        sample({**_IMAGES, "x": (3, 2)}, training=True, momentum=0.3, eps=0.1),
        sample({**_BARE, "residual": (4, 3)}, training=True),
        sample({**_IMAGES, "residual": (3, 2, 4)}, training=True, activation="relu"),
    ],
    apart=lambda shape, options: not options["training"],
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
    residual: Array | None = None,
    activation: str | tuple[Any, ...] | None = None,
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
    residual : an array of the shape of x that is added to the normalised x, or None.
    activation : None, or an activation to apply last, by name or as a tuple of its name and parameters: one whose slope
        is a function of y, such as `"relu"`.

    Returns
    -------
    (y, running_mean, running_var) : y of the shape of x, and the new running statistics (None if there were none). The
        variance divides by N, the running variance by N - 1, as in PyTorch.
    backward : dy -> (dx, None, None, dweight, dbias, dresidual). It keeps x, weight, mean and rstd of each channel,
        and y if there is an activation.

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
    return _channel_norm("batch_norm", "training", training, False, *arrays, momentum, eps, residual, activation)


@op(
    "x running_mean running_var weight bias residual",
    saves="x mean rstd weight y?",
    constants="running_mean running_var",
    samples=[
        sample({**_IMAGES, "running_mean": None, "running_var": None}),
        sample({**_BARE, "x": (2, 3, 2, 2)}, eps=0.1),
        sample(_IMAGES, momentum=0.3),
        sample({**_IMAGES, "residual": (3, 2, 4)}, use_input_stats=False, activation="relu"),
    ],
    apart=True,
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
    residual: Array | None = None,
    activation: str | tuple[Any, ...] | None = None,
) -> Normalised:
    """Normalise each channel of each image to mean 0 and variance 1, or each channel by the running statistics.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes) with at least one size.
    running_mean, running_var, weight, bias, momentum, eps : as in `batch_norm`. The running statistics are updated with
        the mean over the images.
    use_input_stats : whether to use the statistics of each image, as in training.
    residual, activation : as in `batch_norm`.

    Returns
    -------
    (y, running_mean, running_var) : as in `batch_norm`.
    backward : dy -> (dx, None, None, dweight, dbias, dresidual). It keeps x, weight, one mean and rstd per image and
        channel, and y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As in `batch_norm`; also if an image has a single element per channel.

    Notes
    -----
    D. Ulyanov, A. Vedaldi and V. Lempitsky, Instance normalization, 2016, arXiv:1607.08022.
    """
    arrays = x, running_mean, running_var, weight, bias
    return _channel_norm(
        "instance_norm", "use_input_stats", use_input_stats, True, *arrays, momentum, eps, residual, activation
    )


def _normalises_examples(shape: tuple[int, ...], options: dict[str, Any]) -> bool:
    size = options["normalized_shape"]
    return len(shape) > (len(size) if isinstance(size, Sequence) else 1)


@op(
    "x weight bias residual",
    saves="x mean rstd weight y?",
    samples=[
        sample({"x": (3, 4), "weight": (4,), "bias": (4,)}, normalized_shape=4),
        sample(
            {"x": (2, 3, 4), "weight": (3, 4), "bias": None, "residual": (2, 3, 4)}, normalized_shape=(3, 4), eps=0.1
        ),
        sample({"x": (2, 3, 4), "weight": None, "bias": None}, normalized_shape=(4,), activation="relu"),
    ],
    apart=_normalises_examples,
)
def layer_norm(
    x: Array,
    normalized_shape: Integers,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    activation: str | tuple[Any, ...] | None = None,
) -> Result:
    """Normalise the trailing axes together to mean 0 and variance 1.

    Parameters
    ----------
    x : floating-point array (..., *normalized_shape).
    normalized_shape : the sizes of the trailing axes; an integer for one axis.
    weight, bias : scale and shift after the normalisation, of shape normalized_shape, or None.
    eps : added to the variance; at least 0.
    residual, activation : as in `batch_norm`.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias, dresidual). It keeps x, weight, one mean and rstd per leading position, and
        y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other, or an option is out of range.

    Notes
    -----
    J. L. Ba, J. R. Kiros and G. E. Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """
    name = "layer_norm"
    xp = namespace(name, optional=("weight", "bias", "residual"), x=x, weight=weight, bias=bias, residual=residual)
    rank = len(normalized_shape) if isinstance(normalized_shape, Sequence) else 1
    trailing = integers(name, "normalized_shape", normalized_shape, rank, 0)
    eps = number(name, "eps", eps, "[0, inf)")
    lead = x.ndim - len(trailing)
    if not trailing or lead < 0 or x.shape[lead:] != trailing:
        raise ShapeError(f"{name}: x must end in normalized_shape {trailing}, got {tuple(x.shape)}")
    check_shape(name, trailing, "which is normalized_shape", weight=weight, bias=bias)
    check_shape(name, x.shape, "that of x", residual=residual)
    features = math.prod(trailing)
    view = View((math.prod(x.shape[:lead]), features), (1,), (1, features))
    return norm(xp, x, weight, bias, eps, view, None, residual, checked(name, activation))[:2]


_PARAMETERS = {"weight": (4,), "bias": (4,)}


@op(
    "x weight bias residual",
    saves="x mean rstd weight y?",
    samples=[
        sample({"x": (2, 4, 3), **_PARAMETERS, "residual": (2, 4, 3)}, num_groups=2, activation="relu"),
        sample({"x": (2, 4), "weight": (4,), "bias": None}, num_groups=1, eps=0.1),
        sample({"x": (2, 4, 2, 2), "weight": None, "bias": None}, num_groups=4),
    ],
    apart=True,
)
def group_norm(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    activation: str | tuple[Any, ...] | None = None,
) -> Result:
    """Normalise each group of channels of each image to mean 0 and variance 1.

    Parameters
    ----------
    x : floating-point array (n, c) or (n, c, *sizes).
    num_groups : number of groups that the channels are split into; it divides c.
    weight, bias : scale and shift after the normalisation, (c,) or None.
    eps : added to the variance; at least 0.
    residual, activation : as in `batch_norm`.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight, dbias, dresidual). It keeps x, weight, one mean and rstd per image and group, and
        y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other or the groups, or an option is out of range.

    Notes
    -----
    Y. Wu and K. He, Group normalization, 2018, arXiv:1803.08494.
    """
    name = "group_norm"
    xp = namespace(name, optional=("weight", "bias", "residual"), x=x, weight=weight, bias=bias, residual=residual)
    _check_channels(name, x)
    c, num_groups = x.shape[1], integer(name, "num_groups", num_groups)
    if c % num_groups:
        raise UsageError(f"{name}: num_groups must divide the {c} channels of x, got {num_groups}")
    check_shape(name, (c,), "one per channel", weight=weight, bias=bias)
    check_shape(name, x.shape, "that of x", residual=residual)
    eps = number(name, "eps", eps, "[0, inf)")
    return norm(xp, x, weight, bias, eps, _groups(x, num_groups), None, residual, checked(name, activation))[:2]

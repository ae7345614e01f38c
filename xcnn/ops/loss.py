"""Losses that compare two arrays element by element: squared, absolute, Huber, and binary cross entropy."""

import math
from collections.abc import Sequence

from xcnn._array import Array, namespace
from xcnn._check import check_shape, choice, number
from xcnn.devices import on_host
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._broadcast import broadcast_shape
from xcnn.ops._formula import logistic
from xcnn.ops._op import Gradients, Result, op, positive, probabilities, sample
from xcnn.ops._reduction import REDUCTIONS, reduce, size, spread

__all__ = ["binary_cross_entropy_with_logits", "huber_loss", "l1_loss", "mse_loss"]


_PAIR = {"x": (3, 4), "target": (3, 4)}
_PAIRS = [sample(_PAIR), sample(_PAIR, reduction="sum"), sample(_PAIR, reduction="none")]


def _check_pair(name: str, x: Array, target: Array, reduction: str) -> None:
    choice(name, "reduction", reduction, REDUCTIONS)
    check_shape(name, x.shape, "that of x", target=target)


@op("x target", saves="difference", samples=_PAIRS)
def mse_loss(x: Array, target: Array, reduction: str = "mean") -> Result:
    """Return the squared error `(x - target)**2`.

    Parameters
    ----------
    x, target : floating-point arrays of one shape and dtype. (PyTorch broadcasts.)
    reduction : `'mean'` over all elements, `'sum'` or `'none'`.

    Returns
    -------
    y : 0-d, or the shape of x for `'none'`. The mean of an empty array is NaN.
    backward : dy -> (dx, dtarget). It keeps x - target.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays differ in shape or dtype, or the reduction is unknown.
    """
    xp = namespace("mse_loss", x=x, target=target)
    _check_pair("mse_loss", x, target, reduction)
    difference = x - target
    y = reduce(xp, difference * difference, reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = difference * spread(2.0 * dy, reduction, size(difference))
        return dx if needs[0] else None, -dx if needs[1] else None

    return y, backward


@op("x target", saves="difference", samples=_PAIRS)
def l1_loss(x: Array, target: Array, reduction: str = "mean") -> Result:
    """Return the absolute error `|x - target|`, with slope 0 where x and target are equal.

    Arguments, shapes and errors are those of `mse_loss`. Backward keeps x - target.
    """
    xp = namespace("l1_loss", x=x, target=target)
    _check_pair("l1_loss", x, target, reduction)
    difference = x - target
    y = reduce(xp, xp.abs(difference), reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = xp.sign(difference) * spread(dy, reduction, size(difference))
        return dx if needs[0] else None, -dx if needs[1] else None

    return y, backward


@op("x target", saves="difference", samples=[*_PAIRS, sample(_PAIR, delta=0.3)])
def huber_loss(x: Array, target: Array, reduction: str = "mean", delta: float = 1.0) -> Result:
    """Return the Huber loss: half the squared error up to an error of delta, and linear with slope delta beyond.

    `y = d**2 / 2` for `d = |x - target| <= delta`, otherwise `delta * (d - delta / 2)`. PyTorch's `smooth_l1_loss` is
    this divided by delta, its `beta`.

    Arguments, shapes and errors are those of `mse_loss`, and delta is a number above 0. Backward keeps x - target.

    References
    ----------
    P. J. Huber, Robust estimation of a location parameter, 1964.
    """
    delta = number("huber_loss", "delta", delta, "(0, inf)")
    xp = namespace("huber_loss", x=x, target=target)
    _check_pair("huber_loss", x, target, reduction)
    difference = x - target
    distance = xp.abs(difference)
    near = xp.minimum(distance, delta)
    y = reduce(xp, near * (distance - 0.5 * near), reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        slope = xp.maximum(xp.minimum(difference, delta), -delta)
        dx = slope * spread(dy, reduction, size(difference))
        return dx if needs[0] else None, -dx if needs[1] else None

    return y, backward


_LOGITS = {"x": (3, 4), "target": probabilities(3, 4), "weight": None, "pos_weight": None}


@op(
    "x target weight pos_weight",
    saves="x target weight pos_weight",
    constants="weight pos_weight",
    samples=[
        sample(_LOGITS),
        sample({**_LOGITS, "weight": positive(3, 1), "pos_weight": positive(4)}),
        sample({**_LOGITS, "pos_weight": positive(4)}, reduction="none"),
    ],
)
def binary_cross_entropy_with_logits(
    x: Array,
    target: Array,
    weight: Array | None = None,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Result:
    """Return the binary cross entropy between logits and targets.

    `y = -weight * (pos_weight * target * log(s) + (1 - target) * log(1 - s))` with `s = sigmoid(x)`.

    Parameters
    ----------
    x : logits, a floating-point array of any shape.
    target : probabilities from 0 to 1, of the shape and dtype of x.
    weight : a factor of each loss that broadcasts to x, or None. It has no gradient.
    reduction : `'mean'` over all elements, `'sum'` or `'none'`.
    pos_weight : a factor of the positive term that broadcasts to x, or None. It has no gradient.

    Returns
    -------
    y : 0-d, or the shape of x for `'none'`. The mean of an empty array is NaN.
    backward : dy -> (dx, dtarget, None, None). It keeps its arguments.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other, the reduction is unknown, or a target in an array on the host is out of
        range. On other devices, where the check would cost a synchronisation, the loss of such a target is NaN.
    """
    name = "binary_cross_entropy_with_logits"
    factors = {"weight": weight, "pos_weight": pos_weight}
    xp = namespace(name, optional=factors, x=x, target=target, **factors)
    _check_pair(name, x, target, reduction)
    for option, factor in factors.items():
        if factor is not None and broadcast_shape(factor.shape, x.shape) != x.shape:
            raise ShapeError(f"{name}: {option} must broadcast to x {tuple(x.shape)}, got {tuple(factor.shape)}")

    def weigh(array: Array, factor: Array | None) -> Array:
        return array if factor is None else array * factor

    def costs() -> tuple[Array, Array]:
        """Return -log(s) and -log(1 - s), computed without overflow."""
        tail = xp.log1p(xp.exp(-xp.abs(x)))
        return weigh(xp.maximum(-x, 0.0) + tail, pos_weight), xp.maximum(x, 0.0) + tail

    wrong = (target < 0.0) | (target > 1.0)
    if on_host(target) and (outside := target[wrong & xp.isfinite(target)]).size:
        fix = "divide masks of 0 and 255 by 255, and use mse_loss for regression"
        raise UsageError(f"{name}: target holds {outside[0]}, expected probabilities from 0 to 1; {fix}")
    yes, no = costs()
    losses = weigh(target * yes + (1.0 - target) * no, weight)
    y = reduce(xp, losses if on_host(target) else xp.where(wrong, math.nan, losses), reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dlosses = weigh(spread(dy, reduction, size(x)), weight)
        dx = dtarget = None
        if needs[0]:
            weighted = weigh(target, pos_weight)
            dx = (logistic(xp, x) * (1.0 - target + weighted) - weighted) * dlosses
        if needs[1]:
            yes, no = costs()
            dtarget = (yes - no) * dlosses
        return dx, dtarget, None, None

    return y, backward

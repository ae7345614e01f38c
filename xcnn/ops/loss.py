"""The losses that compare two arrays element by element: squared, absolute, and binary cross entropy."""

from collections.abc import Sequence

from xcnn._array import Array, namespace
from xcnn.errors import ShapeError
from xcnn.ops._op import Gradients, Result, op, positive, probabilities, sample
from xcnn.ops._reduction import check_reduction, reduce, size, spread
from xcnn.ops.activation import logistic

__all__ = ["binary_cross_entropy_with_logits", "l1_loss", "mse_loss"]


_PAIR = {"x": (3, 4), "target": (3, 4)}
_PAIRS = [sample(_PAIR), sample(_PAIR, reduction="sum"), sample(_PAIR, reduction="none")]


def _check(name: str, x: Array, target: Array, reduction: str) -> None:
    check_reduction(reduction)
    if x.shape != target.shape:
        raise ShapeError(f"{name}: target must have the shape of x {tuple(x.shape)}, got {tuple(target.shape)}")


@op("x target", saves="difference", samples=_PAIRS)
def mse_loss(x: Array, target: Array, reduction: str = "mean") -> Result:
    """Square the differences: `(x - target)**2`.

    Parameters
    ----------
    x, target : the same shape and dtype, floating point (nothing is broadcast, unlike in PyTorch).
    reduction : `'mean'` over all elements, `'sum'` or `'none'`.

    Returns
    -------
    y : 0-d, or the shape of x for `'none'`. The mean of no elements is NaN.
    backward : dy -> (dx, dtarget). It keeps x - target.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays differ, or for an unknown reduction.
    """
    xp = namespace("mse_loss", x=x, target=target)
    _check("mse_loss", x, target, reduction)
    difference = x - target
    y = reduce(xp, difference * difference, reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = difference * spread(2.0 * dy, reduction, size(difference))
        return dx if needs[0] else None, -dx if needs[1] else None

    return y, backward


@op("x target", saves="difference", samples=_PAIRS)
def l1_loss(x: Array, target: Array, reduction: str = "mean") -> Result:
    """Take the size of the differences: `|x - target|`.

    Parameters
    ----------
    x, target : the same shape and dtype, floating point (nothing is broadcast, unlike in PyTorch).
    reduction : `'mean'` over all elements, `'sum'` or `'none'`.

    Returns
    -------
    y : 0-d, or the shape of x for `'none'`. The mean of no elements is NaN.
    backward : dy -> (dx, dtarget), with slope 0 where the two are equal. It keeps x - target.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays differ, or for an unknown reduction.
    """
    xp = namespace("l1_loss", x=x, target=target)
    _check("l1_loss", x, target, reduction)
    difference = x - target
    y = reduce(xp, xp.abs(difference), reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = xp.sign(difference) * spread(dy, reduction, size(difference))
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
    """Compare logits of yes-or-no questions with the answers.

    `y = -weight * (pos_weight * target * log(s) + (1 - target) * log(1 - s))` with `s = sigmoid(x)`.

    Parameters
    ----------
    x : any shape, logits, floating point.
    target : the shape and dtype of x, 0 .. 1.
    weight : a factor of each loss, broadcasting to x, or None. It is constant: it gets no gradient.
    reduction : `'mean'` over all elements, `'sum'` or `'none'`.
    pos_weight : a factor of the losses of yes, broadcasting to x, or None. It is constant too.

    Returns
    -------
    y : 0-d, or the shape of x for `'none'`. The mean of no elements is NaN.
    backward : dy -> (dx, dtarget, None, None). It keeps its arguments.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other, or for an unknown reduction.
    """
    name = "binary_cross_entropy_with_logits"
    xp = namespace(name, x=x, target=target, weight=weight, pos_weight=pos_weight)
    _check(name, x, target, reduction)
    for option, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None and not _broadcasts(factor.shape, x.shape):
            raise ShapeError(f"{name}: {option} must broadcast to x {tuple(x.shape)}, got {tuple(factor.shape)}")

    def weigh(array: Array, factor: Array | None) -> Array:
        return array if factor is None else array * factor

    def costs() -> tuple[Array, Array]:
        """Give the losses of yes and no, -log(s) and -log(1 - s); no intermediate overflows."""
        tail = xp.log1p(xp.exp(-xp.abs(x)))
        return weigh(xp.maximum(-x, 0.0) + tail, pos_weight), xp.maximum(x, 0.0) + tail

    yes, no = costs()
    y = reduce(xp, weigh(target * yes + (1.0 - target) * no, weight), reduction, size(x))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dlosses = weigh(spread(dy, reduction, size(x)), weight)
        dx = dtarget = None
        if needs[0]:
            asked = weigh(target, pos_weight)
            dx = (logistic(xp, x) * (1.0 - target + asked) - asked) * dlosses
        if needs[1]:
            yes, no = costs()
            dtarget = (yes - no) * dlosses
        return dx, dtarget, None, None

    return y, backward


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))

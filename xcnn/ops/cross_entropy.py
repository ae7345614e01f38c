"""Losses of classification: cross entropy from logits, and negative log likelihood from log-probabilities.

Both are `loss = -sum over classes of q * log(p)` for each row, where q is the target distribution times the class
weights: one at the labelled class, perhaps smoothed, and zero in an ignored row. Labels become one-hot by comparison,
because the array API has no scatter.

Sizes: n rows, c classes. The class axis is axis 1, or axis 0 of a single row without a batch.
"""

import math
from collections.abc import Sequence
from types import ModuleType

import array_api_compat

from xcnn._array import Array, full, is_array, is_kind, namespace, namespace_of
from xcnn._check import check_shape, choice, integer, number
from xcnn._dispatch import body
from xcnn.devices import on_host
from xcnn.errors import DtypeError, ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, labels, op, positive, probabilities, sample
from xcnn.ops._reduction import REDUCTIONS, reduce, spread
from xcnn.ops.softmax import log_probabilities

__all__ = ["cross_entropy", "nll_loss"]


def _holds_labels(
    name: str, xp: ModuleType, x: Array, target: Array, weight: Array | None, ignore_index: int, reduction: str
) -> bool:
    """Check the arguments, except for the range of labels; return whether the target holds labels."""
    choice(name, "reduction", reduction, REDUCTIONS)
    integer(name, "ignore_index", ignore_index, -(2**31), 2**31 - 1)
    shape = x.shape
    axis = min(1, len(shape) - 1)
    if axis < 0 or shape[axis] == 0:
        raise ShapeError(f"{name}: x must be (n, classes, ...) or (classes,), got {tuple(shape)}")
    rows = shape[:axis] + shape[axis + 1 :]
    check_shape(name, (shape[axis],), "one per class", weight=weight)
    if type(target) is not type(x) and (not is_array(target) or namespace_of(target) is not xp):
        raise DtypeError(f"{name}: target must be a {xp.__name__} array like x, got {type(target).__name__}")
    soft = name == "cross_entropy"
    if soft and target.shape == shape and target.dtype == x.dtype:
        if ignore_index >= 0:
            raise UsageError(f"{name}: ignore_index {ignore_index} needs class indices, target holds probabilities")
        return False
    integral = is_kind(xp, target.dtype, "integral")
    if not integral or target.shape != rows:
        expected = f"integer class indices of shape {tuple(rows)}"
        expected += f", or {x.dtype} probabilities of shape {tuple(shape)}" if soft else ""
        came = f"{target.dtype} of shape {tuple(target.shape)}"
        raise (ShapeError if integral else DtypeError)(f"{name}: target must hold {expected}, got {came}")
    return True


def _check_range(name: str, c: int, target: Array, ignore_index: int) -> None:
    """Check that labels are class indices, if they are on the host; elsewhere it would cost a synchronisation."""
    if not on_host(target):
        return
    out = (target < 0) | (target >= c)
    if out.any() and (bad := target[out & (target != ignore_index)]).size:
        known = f"class indices 0 .. {c - 1} (or ignore_index {ignore_index})"
        raise UsageError(f"{name}: target holds {bad[0]}, expected {known}")


def _distribution_of_labels(
    xp: ModuleType, x: Array, target: Array, weight: Array | None, ignore_index: int, smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Return q, of the shape of x, and the total weight of the labels (0-d), by which the mean divides."""
    axis, trailing, dtype = min(1, x.ndim - 1), (1,) * (x.ndim - 2), x.dtype
    c, rows = x.shape[axis], (*target.shape[:axis], 1, *target.shape[axis:])
    wide = target.dtype in (xp.int32, xp.int64)  # a smaller dtype might not hold c or ignore_index
    t = xp.reshape(target if wide else xp.astype(target, xp.int32), rows)
    counted = t != ignore_index
    counts = xp.astype(counted, dtype)
    classes = xp.reshape(xp.arange(c, dtype=t.dtype, device=array_api_compat.device(t)), (c, *trailing))
    q = xp.astype(t == classes, dtype) * counts
    if weight is not None:
        counts = counts * xp.reshape(weight, (c, *trailing))
        q = q * counts
    if not on_host(target):  # the range is not checked: a label out of range makes its row NaN
        # Not by a product, as compilers may replace 0 * NaN by 0.
        q = xp.where(counted & ((t < 0) | (t >= c)), math.nan, q)
    total = xp.sum(q)
    return q * (1.0 - smoothing) + counts * (smoothing / c) if smoothing else q, total


def _distribution_of_probabilities(
    xp: ModuleType, target: Array, weight: Array | None, smoothing: float
) -> tuple[Array, Array]:
    """Return q, and the number of rows (0-d)."""
    c, trailing = target.shape[min(1, target.ndim - 1)], (1,) * (target.ndim - 2)
    q = target * (1.0 - smoothing) + smoothing / c if smoothing else target
    q = q if weight is None else q * xp.reshape(weight, (c, *trailing))
    return q, full(xp, (), math.prod(target.shape) // c, target)


def _losses(xp: ModuleType, q: Array, logp: Array, total: Array, reduction: str) -> Array:
    """Return the reduced `-sum(q log p)` of each row. A class with log p = -inf adds nothing where q is 0."""
    parts = -q * xp.where(q == 0.0, 0.0, logp)
    if reduction == "none":
        return xp.sum(parts, axis=min(1, q.ndim - 1))
    return reduce(xp, parts, reduction, xp.where(total == 0.0, math.nan, total))


def _dlosses(xp: ModuleType, dy: Array, total: Array, reduction: str, axis: int) -> Array:
    """Return the gradient of each row's loss, which broadcasts to x."""
    dy = xp.expand_dims(dy, axis=axis) if reduction == "none" else dy
    return spread(dy, reduction, xp.where(total == 0.0, 1.0, total))  # if the total is 0, so is q


_TARGETS = [
    sample({"x": (4, 3), "target": labels(4, high=3), "weight": None}),
    sample({"x": (4, 3, 2), "target": labels(4, 2, high=3), "weight": positive(3)}, ignore_index=1),
    sample({"x": (4, 3), "target": labels(4, high=3), "weight": positive(3)}, reduction="none"),
    sample({"x": (3,), "target": labels(high=3), "weight": None}, reduction="sum"),
]


@body
def _cross_entropy(
    xp: ModuleType,
    x: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    by_labels: bool,
) -> Result:
    axis = min(1, x.ndim - 1)
    if by_labels:
        _check_range("cross_entropy", x.shape[axis], target, ignore_index)
        q, total = _distribution_of_labels(xp, x, target, weight, ignore_index, smoothing)
    else:
        q, total = _distribution_of_probabilities(xp, target, weight, smoothing)
    logp = log_probabilities(xp, x, axis)
    y = _losses(xp, q, logp, total, reduction)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dlosses = _dlosses(xp, dy, total, reduction, axis)
        dx = dtarget = None
        if needs[0]:
            dx = xp.exp(logp)
            dx *= xp.sum(q, axis=axis, keepdims=True)
            dx -= q
            dx *= dlosses
        if needs[1] and not by_labels:
            dtarget = logp * (dlosses * (smoothing - 1.0))
            dtarget = dtarget if weight is None else dtarget * xp.reshape(weight, (-1, *(1,) * (logp.ndim - 2)))
        return dx, dtarget, None

    return y, backward


@op(
    "x target weight",
    saves="logp? q? total? p? target? weight",
    constants="weight",
    samples=[
        *_TARGETS,
        sample({"x": (4, 3), "target": labels(4, high=3), "weight": positive(3)}, label_smoothing=0.2, ignore_index=0),
        sample({"x": (4, 3), "target": probabilities(4, 3), "weight": None}),
        sample({"x": (4, 3, 2), "target": probabilities(4, 3, 2), "weight": positive(3)}, label_smoothing=0.2),
    ],
)
def cross_entropy(
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Result:
    """Return the cross entropy between logits and targets.

    It is `-log softmax(x)[label]` for labels, and `-sum over classes of target * log softmax(x)` for probabilities.

    Parameters
    ----------
    x : logits, a floating-point array (n, c), (n, c, ...), or (c,) for one row.
    target : integer class indices, of the shape of x without its class axis; or probabilities, of the shape and dtype
        of x.
    weight : a factor per class (c,), of the dtype of x, or None.
    ignore_index : the label of rows that do not count; not for probabilities.
    reduction : `'mean'` over rows (weighted by the `weight` of each label), `'sum'` or `'none'`.
    label_smoothing : the share of the target, from 0 to 1, that is spread evenly over the classes.

    Returns
    -------
    y : 0-d, or the shape of x without its class axis for `'none'`. The mean of no rows is NaN.
    backward : dy -> (dx, dtarget, None), dtarget None for class indices. It keeps log softmax(x), the target
        distribution (of the shape of x) and weight; or, in compiled code, softmax(x) and target.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit each other.
    UsageError
        If an option is out of range, or a label in an array on the host is. On other devices, where the check would
        cost a synchronisation, the loss and the gradient of such a row are NaN.

    Notes
    -----
    C. Szegedy et al., Rethinking the Inception architecture for computer vision, 2016, section 7 (label smoothing).
    """
    name = "cross_entropy"
    xp = namespace(name, optional=("weight",), x=x, weight=weight)
    smoothing = number(name, "label_smoothing", label_smoothing, "[0, 1]")
    by_labels = _holds_labels(name, xp, x, target, weight, ignore_index, reduction)
    return _cross_entropy(xp, x, target, weight, ignore_index, reduction, smoothing, by_labels)


@op("x target weight", saves="q total", constants="weight", samples=_TARGETS)
def nll_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Result:
    """Return the negative log likelihood `-x[label]`. After `log_softmax` it is the cross entropy.

    Parameters
    ----------
    x : log-probabilities, a floating-point array (n, c), (n, c, ...), or (c,) for one row.
    target : integer class indices, of the shape of x without its class axis.
    weight, ignore_index, reduction : as in `cross_entropy`.

    Returns
    -------
    y : 0-d, or the shape of x without its class axis for `'none'`. The mean of no rows is NaN.
    backward : dy -> (dx, None, None). It keeps the target distribution, of the shape of x.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As in `cross_entropy`.
    """
    xp = namespace("nll_loss", optional=("weight",), x=x, weight=weight)
    _holds_labels("nll_loss", xp, x, target, weight, ignore_index, reduction)
    axis = min(1, x.ndim - 1)
    _check_range("nll_loss", x.shape[axis], target, ignore_index)
    q, total = _distribution_of_labels(xp, x, target, weight, ignore_index)
    y = _losses(xp, q, x, total, reduction)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return None, None, None
        return -q * _dlosses(xp, dy, total, reduction, axis), None, None

    return y, backward

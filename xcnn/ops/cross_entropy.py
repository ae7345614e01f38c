"""The losses of classification: cross entropy from logits, and negative log likelihood from log-probabilities.

Both are `loss = -sum over classes of q * log(p)` for each row. q holds what the target asks for, times the class
weights: a one at the labelled class, perhaps smoothed; nothing in an ignored row. Labels become one-hot by comparison,
because the array API has no scatter.

Sizes: n rows, c classes. The class axis is axis 1, or axis 0 of a single row without a batch.
"""

import math
from collections.abc import Sequence
from types import ModuleType

import array_api_compat

from xcnn._array import Array, full, is_array, is_kind, namespace, namespace_of
from xcnn._dispatch import body
from xcnn.devices import on_host
from xcnn.errors import DtypeError, ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, labels, op, positive, probabilities, sample
from xcnn.ops._reduction import check_reduction, reduce, spread
from xcnn.ops.softmax import log_probabilities

__all__ = ["cross_entropy", "nll_loss"]


def _check(name: str, xp: ModuleType, x: Array, target: Array, weight: Array | None, ignore_index: int) -> bool:
    """Check what the losses share but for the range of labels, and say whether the target holds such."""
    axis = min(1, x.ndim - 1)
    if axis < 0 or x.shape[axis] == 0:
        raise ShapeError(f"{name}: x must be (n, classes, ...) or (classes,), got {tuple(x.shape)}")
    c, rows = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
    if weight is not None and weight.shape != (c,):
        raise ShapeError(f"{name}: weight must have shape ({c},), one per class, got {tuple(weight.shape)}")
    if not is_array(target) or namespace_of(target) is not xp:
        raise DtypeError(f"{name}: target must be a {xp.__name__} array like x, got {type(target).__name__}")
    soft = name == "cross_entropy"
    if soft and target.shape == x.shape and target.dtype == x.dtype:
        if ignore_index >= 0:
            raise UsageError(f"{name}: ignore_index {ignore_index} needs class indices, target holds probabilities")
        return False
    integral = is_kind(xp, target.dtype, "integral")
    if not integral or target.shape != rows:
        expected = f"integer class indices of shape {tuple(rows)}"
        expected += f", or {x.dtype} probabilities of shape {tuple(x.shape)}" if soft else ""
        came = f"{target.dtype} of shape {tuple(target.shape)}"
        raise (ShapeError if integral else DtypeError)(f"{name}: target must hold {expected}, got {came}")
    return True


def _check_range(name: str, c: int, target: Array, ignore_index: int) -> None:
    """Check that labels are class indices, where looking costs no synchronisation with a device."""
    if not on_host(target):
        return
    out = (target < 0) | (target >= c)
    if out.any() and (bad := target[out & (target != ignore_index)]).size:
        known = f"class indices 0 .. {c - 1} (or ignore_index {ignore_index})"
        raise UsageError(f"{name}: target holds {bad[0]}, expected {known}")


def _asked_by_labels(
    xp: ModuleType, x: Array, target: Array, weight: Array | None, ignore_index: int, smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Give q, of the shape of x, and the total weight of the labels (0-d), which the mean divides by."""
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
    if not on_host(
        target
    ):  # nobody looked: a label out of range makes its row NaN (set, as compilers take 0 * NaN for 0)
        q = xp.where(counted & ((t < 0) | (t >= c)), math.nan, q)
    total = xp.sum(q)
    return q * (1.0 - smoothing) + counts * (smoothing / c) if smoothing else q, total


def _asked_by_probabilities(
    xp: ModuleType, target: Array, weight: Array | None, smoothing: float
) -> tuple[Array, Array]:
    """Give q, and the number of rows (0-d)."""
    c, trailing = target.shape[min(1, target.ndim - 1)], (1,) * (target.ndim - 2)
    q = target * (1.0 - smoothing) + smoothing / c if smoothing else target
    q = q if weight is None else q * xp.reshape(weight, (c, *trailing))
    return q, full(xp, (), math.prod(target.shape) // c, target)


def _losses(xp: ModuleType, q: Array, logp: Array, total: Array, reduction: str) -> Array:
    """Reduce `-sum(q log p)` of each row. An impossible class (log p = -inf) costs nothing where q is 0."""
    parts = -q * xp.where(q == 0.0, 0.0, logp)
    if reduction == "none":
        return xp.sum(parts, axis=min(1, q.ndim - 1))
    return reduce(xp, parts, reduction, xp.where(total == 0.0, math.nan, total))


def _dlosses(xp: ModuleType, dy: Array, total: Array, reduction: str, axis: int) -> Array:
    """Give the gradient of each row's loss, broadcasting to x; q is 0 anyway where the total is."""
    dy = xp.expand_dims(dy, axis=axis) if reduction == "none" else dy
    return spread(dy, reduction, xp.where(total == 0.0, 1.0, total))


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
        q, total = _asked_by_labels(xp, x, target, weight, ignore_index, smoothing)
    else:
        q, total = _asked_by_probabilities(xp, target, weight, smoothing)
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
    """Compare logits with labels: `-log softmax(x)[label]`, or `-sum over classes of target * log softmax(x)`.

    Parameters
    ----------
    x : (n, c), (n, c, ...) or (c,) for one row: logits, floating point.
    target : integer class indices of the shape of x without its class axis; or probabilities, of x's shape and dtype.
    weight : (c,), a factor per class, the dtype of x, or None.
    ignore_index : a label whose rows do not count; not for probabilities.
    reduction : `'mean'` over rows (weighted by `weight` of each label), `'sum'` or `'none'`.
    label_smoothing : between 0 and 1, the share of the target that is spread evenly over the classes.

    Returns
    -------
    y : 0-d, or the shape of x without its class axis for `'none'`. The mean of no rows is NaN.
    backward : dy -> (dx, dtarget, None), dtarget None for class indices. It keeps
        log softmax(x), what the target asks for (of x's shape) and weight; or, in compiled code, softmax(x) and target.

    Raises
    ------
    ShapeError, DtypeError
        Where the arrays do not fit each other.
    UsageError
        For an option out of range, or a label out of range in an array on the host. On other devices, where looking
        would cost a synchronisation, such a row's loss and gradient are NaN.

    Notes
    -----
    C. Szegedy et al., Rethinking the Inception architecture for computer vision, 2016, section 7 (label smoothing).
    """
    xp = namespace("cross_entropy", x=x, weight=weight)
    check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise UsageError(f"cross_entropy: label_smoothing must be between 0 and 1, got {label_smoothing!r}")
    by_labels = _check("cross_entropy", xp, x, target, weight, ignore_index)
    return _cross_entropy(xp, x, target, weight, ignore_index, reduction, label_smoothing, by_labels)


@op("x target weight", saves="q total", constants="weight", samples=_TARGETS)
def nll_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Result:
    """Compare log-probabilities with labels: `-x[label]`. After `log_softmax` this is `cross_entropy` in two steps.

    Parameters
    ----------
    x : (n, c), (n, c, ...) or (c,) for one row: log-probabilities, floating point.
    target : integer class indices of the shape of x without its class axis.
    weight, ignore_index, reduction : as in `cross_entropy`.

    Returns
    -------
    y : 0-d, or the shape of x without its class axis for `'none'`. The mean of no rows is NaN.
    backward : dy -> (dx, None, None). It keeps what the target asks for, of x's shape.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As in `cross_entropy`.
    """
    xp = namespace("nll_loss", x=x, weight=weight)
    check_reduction(reduction)
    _check("nll_loss", xp, x, target, weight, ignore_index)
    axis = min(1, x.ndim - 1)
    _check_range("nll_loss", x.shape[axis], target, ignore_index)
    q, total = _asked_by_labels(xp, x, target, weight, ignore_index)
    y = _losses(xp, q, x, total, reduction)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return None, None, None
        return -q * _dlosses(xp, dy, total, reduction, axis), None, None

    return y, backward

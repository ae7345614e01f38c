"""How losses turn one number per element or row into the number that is trained on: 'mean', 'sum' or 'none'."""

import math
from types import ModuleType

from xcnn._array import Array
from xcnn.errors import unknown

__all__ = ["check_reduction", "reduce", "size", "spread"]


def check_reduction(reduction: str) -> None:
    """Refuse a name that is no reduction."""
    if reduction not in ("mean", "none", "sum"):
        raise unknown("reduction", reduction, ("mean", "none", "sum"))


def reduce(xp: ModuleType, losses: Array, reduction: str, count: Array | float) -> Array:
    """Give the sum of the losses, or that divided by `count` for the mean (both 0-d), or the losses themselves."""
    if reduction == "none":
        return losses
    return xp.sum(losses) / count if reduction == "mean" else xp.sum(losses)


def spread(dy: Array, reduction: str, count: Array | float) -> Array:
    """Give the gradient of each loss from that of their reduction: an array that broadcasts to the losses."""
    return dy / count if reduction == "mean" else dy


def size(x: Array) -> float:
    """Give the number of elements to take a mean over; NaN for none, whose mean is NaN."""
    return math.prod(x.shape) or math.nan

"""Reductions of losses: from one loss per element or row to the number that is minimised."""

import math
from types import ModuleType

from xcnn._array import Array

__all__ = ["REDUCTIONS", "reduce", "size", "spread"]

REDUCTIONS = ("mean", "sum", "none")


def reduce(xp: ModuleType, losses: Array, reduction: str, count: Array | float) -> Array:
    """Return the sum of the losses (0-d), the sum divided by `count` for the mean, or the losses themselves."""
    if reduction == "none":
        return losses
    return xp.sum(losses) / count if reduction == "mean" else xp.sum(losses)


def spread(dy: Array, reduction: str, count: Array | float) -> Array:
    """Return the gradient of each loss from that of their reduction: an array that broadcasts to the losses."""
    return dy / count if reduction == "mean" else dy


def size(x: Array) -> float:
    """Return the number of elements that a mean divides by; NaN for an empty array, whose mean is NaN."""
    return math.prod(x.shape) or math.nan

"""Elementwise functions of two arrays as data, and the one body that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from xcnn._array import Array
from xcnn._dispatch import body
from xcnn.ops._broadcast import sum_to
from xcnn.ops._formula import Activation, apply, times_slope
from xcnn.ops._op import Gradients, Result

__all__ = ["Pair", "pair"]


@dataclass(frozen=True, eq=False)
class Pair:
    """An elementwise function of two arrays, written in the array API.

    Attributes
    ----------
    forward : a function `(xp, x, other)` that returns y.
    of_x, of_other : functions `(xp, dy, x, other, y)` that return the gradients, as if nothing was broadcast.
    keeps : the names of the arrays that they use.
    keeps_with_number : the names of the arrays that `of_x` uses if `other` is a number.
    """

    forward: Callable[..., Array]
    of_x: Callable[..., Array]
    of_other: Callable[..., Array]
    keeps: tuple[str, ...] = ()
    keeps_with_number: tuple[str, ...] = ()


@body
def pair(xp: ModuleType, x: Array, other: Array, rule: Pair, activation: Activation) -> Result:
    """Apply a rule to two arrays, or to an array and a float, then an activation."""
    number = type(other) is float  # a NumPy number is an array
    shape, other_shape = x.shape, None if number else other.shape
    result = apply(xp, rule.forward(xp, x, other), activation)
    keeps = rule.keeps_with_number if number else rule.keeps
    x, other = x if "x" in keeps else None, other if number or "other" in keeps else None
    y = result if activation is not None or "y" in keeps else None

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = dother = None
        if any(needs):
            dy = times_slope(xp, dy, y, activation)
        if needs[0]:
            dx = sum_to(xp, rule.of_x(xp, dy, x, other, y), shape)
        if needs[1] and other_shape is not None:
            dother = sum_to(xp, rule.of_other(xp, dy, x, other, y), other_shape)
        return dx, dother

    return result, backward

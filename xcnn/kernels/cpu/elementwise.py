"""Formulas as compiled loops: one pass for y and one for the gradient, whatever the formula.

Other kernels apply an activation to a piece of memory that is still in the cache (`applying`), or, if all it does is to
limit numbers to an interval, where they write them (`clamp`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import FORMULAS, Formula
from xcnn.kernels.cpu._loops import EACH, traced
from xcnn.kernels.cpu._native import HERE
from xcnn.kernels.cpu._share import share, supports, whole
from xcnn.kernels.cpu._trace import Namespace

__all__ = ["applying", "clamp", "elementwise", "sloping", "split"]


_FEW = 400_000
"""The cost of what `share` would not split."""


def _forward(xp: Any, formula: Formula, x: Any, *parameters: Any) -> list[Any]:
    return [formula.forward(xp, x, *parameters)]


def _gradient(xp: Any, formula: Formula, kept: Any, dy: Any, *parameters: Any) -> list[Any]:
    slope = formula.slope(xp, kept, *parameters)
    return [xp.where(slope, dy, 0.0) if slope.dtype == xp.bool else dy * slope]


def split(activation: tuple[Any, ...]) -> tuple[Formula, tuple[Any, ...], list[float]]:
    """Return the formula, the parameters with None for numbers, and the numbers."""
    name, *parameters = activation
    numbers = [p for p in parameters if type(p) is float or type(p) is int]
    return FORMULAS[name], tuple(None if type(p) is float or type(p) is int else p for p in parameters), numbers


@functools.lru_cache(256, typed=True)
def _loop(function: Any, formula: Formula, count: int, itemsize: int, *activation: Any) -> tuple[Any, list[float]]:
    """Return the loop of a function of a formula and arrays, or None, and the numbers that it takes."""
    _, choices, numbers = split(activation)
    return traced(function, formula, (EACH,), (True,) * count, choices, itemsize), numbers


def applying(
    activation: tuple[Any, ...], itemsize: int, function: Callable[..., Any] = _forward, count: int = 1
) -> Callable[..., None]:
    """Return a function `(out, *arrays, serial=True)` for C-contiguous arrays of one shape, which may be the same.

    It sets `out` to an activation of an array of numbers of some bytes, or to another function of its formula and of
    some arrays, on this thread or, if not serial, several.
    """
    formula = FORMULAS[activation[0]]
    loop, numbers = _loop(function, formula, count, itemsize, *activation)

    def run(*arrays: np.ndarray, serial: bool = True) -> None:
        out, n = arrays[0], arrays[0].size
        if loop is None:
            HERE.in_python = True
            (out[...],) = function(np, formula, *arrays[1:], *activation[1:])
            return
        cost = n * (1 + count + loop.cost)
        if serial or cost < _FEW:
            loop.call(*arrays, n, *numbers)
            return
        rows = [array.reshape(-1) for array in arrays]

        def part(begin: int, end: int) -> None:
            loop.call(*[row[begin:end] for row in rows], end - begin, *numbers)

        share(part, cost, n=n)

    return run


def sloping(activation: tuple[Any, ...] | None, itemsize: int) -> Callable[..., None] | None:
    """Return a function `(dx, kept, dy, serial=True)` that sets dx to `dy * slope(kept)`; None if there is none."""
    return None if activation is None else applying(activation, itemsize, _gradient, 2)


def clamp(activation: tuple[Any, ...] | None) -> tuple[float, float] | None:
    """Return the interval to which an activation limits numbers, if it does nothing else; infinite ends for None.

    NaN propagates, so the kernel writes `low if x < low else high if x > high else x`.
    """
    if activation is None:
        return -math.inf, math.inf
    return _interval(FORMULAS[activation[0]], activation[1:])


@functools.lru_cache(256)
def _interval(formula: Formula, parameters: tuple[Any, ...]) -> tuple[float, float] | None:
    xp, low, high = Namespace(), -math.inf, math.inf
    try:
        step = xp.steps[formula.forward(xp, xp.array(0), *parameters).number]
    except Exception:  # it is not a list of steps
        return None
    while step[0] != "array":
        constants = [float(xp.steps[i][1]) for i in step[1:] if xp.steps[i][0] == "constant"]
        if step[0] not in ("maximum", "minimum") or len(constants) != 1:
            return None
        if step[0] == "maximum":
            low = max(low, constants[0])
        else:
            high = min(high, constants[0])
        step = next(xp.steps[i] for i in step[1:] if xp.steps[i][0] != "constant")
    return (low, high) if low <= high else None


def _bind(x: np.ndarray, activation: tuple[Any, ...]) -> Any:
    """Bind `elementwise`."""
    if not supports(x) or _loop(_forward, FORMULAS[activation[0]], 1, x.itemsize, *activation)[0] is None:
        return NotImplemented
    shape, dtype, apply = x.shape, x.dtype, applying(activation, x.itemsize)

    def run(x: np.ndarray, *_: Any) -> np.ndarray:
        y = np.empty(shape, dtype)
        apply(y, np.ascontiguousarray(x), serial=False)
        return y

    return run


@whole(_bind)
def elementwise(x: np.ndarray, activation: tuple[Any, ...]) -> Any:
    """Apply a formula to an array."""
    run = _bind(x, activation)
    if run is NotImplemented:
        return NotImplemented
    keeps_x, slope = FORMULAS[activation[0]].keeps == "x", applying(activation, x.itemsize, _gradient, 2)

    def both(x: np.ndarray, _: Any) -> Any:
        result = run(x)
        x, y = (x, None) if keeps_x else (None, result)  # type: ignore[assignment]  # backward keeps one of them

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            if not needs[0]:
                return (None,)
            dx, kept = np.empty(dy.shape, dy.dtype), x if y is None else y
            slope(dx, np.ascontiguousarray(kept), np.ascontiguousarray(dy), serial=False)
            return (dx,)

        return result, backward

    return both

"""Formulas as compiled loops: one pass for y and one for the gradient, whatever the formula.

Other kernels apply an activation to a piece of memory that is still in the cache (`in_place`), or, if all it does is to
limit numbers to an interval, where they write them (`clamp`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import FORMULAS, Formula, kernel
from xcnn.kernels.cpu._loops import EACH, traced
from xcnn.kernels.cpu._native import address
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._trace import Namespace

__all__ = ["clamp", "elementwise", "gradient", "in_place", "split"]


_FEW = 10_000
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


def _run(
    function: Callable[..., Any],
    activation: tuple[Any, ...],
    out: np.ndarray,
    *arrays: np.ndarray,
    serial: bool = False,
    compiled: bool = False,
) -> bool:
    """Set `out` to a function of a formula and C-contiguous arrays of its shape, which may be `out` itself.

    If the function must be `compiled` and cannot, return False instead.
    """
    size, n, formula = out.itemsize, out.size, FORMULAS[activation[0]]
    loop, numbers = _loop(function, formula, len(arrays), size, *activation)
    if loop is None:
        if not compiled:
            (out[...],) = function(np, formula, *arrays, *activation[1:])
        return not compiled
    starts = [address(out), *map(address, arrays)]
    cost = n * (len(starts) + loop.cost)
    if serial or cost < _FEW:
        loop.call(*starts, n, *numbers)
        return True

    def part(begin: int, end: int) -> None:
        loop.call(*[start + begin * size for start in starts], end - begin, *numbers)

    share(part, cost, n=n)
    return True


def in_place(activation: tuple[Any, ...] | None, array: np.ndarray, serial: bool = True) -> None:
    """Apply an activation to a C-contiguous array of float32 or float64, on this thread or, if not serial, several."""
    if activation is not None and array.size:
        _run(_forward, activation, array, array, serial=serial)


def gradient(
    activation: tuple[Any, ...] | None, kept: np.ndarray, dy: np.ndarray, dx: np.ndarray, serial: bool = True
) -> None:
    """Set dx, which may be dy, to `dy * slope(kept)`; all are C-contiguous and alike. Threads as in `in_place`."""
    if activation is None:
        if dx is not dy:
            dx[...] = dy
    elif dy.size:
        _run(_gradient, activation, dx, kept, dy, serial=serial)


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


@kernel(np)
def elementwise(x: np.ndarray, activation: tuple[Any, ...]) -> Any:
    """Apply a formula to an array."""
    if not supports(x):
        return NotImplemented
    result = np.empty(x.shape, x.dtype)
    if not _run(_forward, activation, result, np.ascontiguousarray(x), compiled=True):
        return NotImplemented
    keeps_x = FORMULAS[activation[0]].keeps == "x"
    x, y = (x, None) if keeps_x else (None, result)  # type: ignore[assignment]  # backward keeps one of them

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx, kept = np.empty(dy.shape, dy.dtype), x if y is None else y
        gradient(activation, np.ascontiguousarray(kept), np.ascontiguousarray(dy), dx, serial=False)
        return (dx,)

    return result, backward

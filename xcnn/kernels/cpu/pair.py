"""Arithmetic of two arrays, or of an array and a number, in one pass for y and one for both gradients.

Their shapes may broadcast, as those of maps and a gate (n, c, 1, 1) do. Sums along axes that were broadcast are made
where the gradient is computed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu._rows import prepared
from xcnn.kernels.cpu._share import supports, whole
from xcnn.kernels.cpu._trace import Namespace
from xcnn.kernels.cpu.elementwise import sloping, split

__all__ = ["pair"]

_NO_ACTIVATION: Any = (None, (), [])


def _forward(xp: Any, key: Any, x: Any, other: Any, *parameters: Any) -> list[Any]:
    rule, after = key
    y = rule.forward(xp, x, other)
    return [y if after is None else after.forward(xp, y, *parameters)]


def _gradients(xp: Any, key: Any, *values: Any) -> list[Any]:
    functions, names = key
    given = dict(zip(names, values, strict=True))
    return [of(xp, *(given.get(name) for name in ("dy", "x", "other", "y"))) for of in functions]


@functools.cache
def _passes_on(of: Callable[..., Any]) -> bool:
    """Return whether a gradient is dy itself."""
    xp = Namespace()
    dy, *others = map(xp.array, range(4))
    return bool(of(xp, dy, *others).number == dy.number)


def _bind(x: Any, other: Any, rule: Any, activation: tuple[Any, ...] | None) -> Any:
    """Bind `pair`."""
    number = type(other) is float
    if not supports(x) or not (number or supports(other)):
        return NotImplemented
    after, choices, numbers = _NO_ACTIVATION if activation is None else split(activation)
    arrays, numbers = ((x,), [other, *numbers]) if number else ((x, other), numbers)
    shapes = tuple([a.shape for a in arrays])
    shape = x.shape if number or x.shape == other.shape else np.broadcast(x, other).shape
    ready = prepared(_forward, (rule, after), (None,) * number + choices, x.itemsize, shape, (shape,), shapes)
    if ready is None:
        return NotImplemented
    dtype = x.dtype

    def run(x: np.ndarray, other: Any, *_: Any) -> np.ndarray:
        y = np.empty(shape, dtype)
        x = np.ascontiguousarray(x)
        ready((y,), (x,) if number else (x, np.ascontiguousarray(other)), numbers)
        return y

    return run


@whole(_bind)
def pair(x: Any, other: Any, rule: Any, activation: tuple[Any, ...] | None) -> Any:
    """Apply a rule to two arrays, or to an array and a float, then an activation."""
    call = _bind(x, other, rule, activation)
    if call is NotImplemented:
        return NotImplemented
    number, dtype, slope = type(other) is float, x.dtype, sloping(activation, x.itemsize)
    shapes = (x.shape,) if number else (x.shape, other.shape)
    shape = x.shape if number else np.broadcast_shapes(*shapes)
    keeps = rule.keeps_with_number if number else rule.keeps
    keeps_x, keeps_other = "x" in keeps, "other" in keeps or number
    keeps_y, rules = slope is not None or "y" in keeps, [*zip(shapes, (rule.of_x, rule.of_other), strict=False)]

    def run(x: Any, other: Any, *_: Any) -> Any:
        result = call(x, other)
        y = result if keeps_y else None
        x, other = x if keeps_x else None, other if keeps_other else None

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            if slope is not None and any(needs):
                above, dy = np.ascontiguousarray(dy), np.empty(shape, dtype)
                slope(dy, y, above, serial=False)
            gradients: list[Any] = [None, None]
            missing: list[tuple[Any, np.ndarray]] = []
            for k, (one, of) in enumerate(rules):
                if needs[k] and one == shape and _passes_on(of):
                    gradients[k] = dy
                elif needs[k]:
                    gradients[k] = np.empty(one, dtype)
                    missing.append((of, gradients[k]))
            if missing:
                named = {"dy": dy, "x": x, "other": None if number else other, "y": y}
                kept = {name: np.ascontiguousarray(a) for name, a in named.items() if a is not None}
                _set(missing, kept, [other] if number else [])
            return tuple(gradients)

        return result, backward

    return run


def _set(missing: list[tuple[Any, np.ndarray]], kept: dict[str, np.ndarray], numbers: list[float]) -> None:
    """Set gradients, given with their functions, in one pass if that is possible."""
    functions, outs = zip(*missing, strict=True)
    arrays = list(kept.values())
    key = functions, (*kept, "other") if numbers else (*kept,)
    of_outs, of_arrays = (tuple([a.shape for a in several]) for several in (outs, arrays))
    ready = prepared(_gradients, key, (None,) * len(numbers), arrays[0].itemsize, arrays[0].shape, of_outs, of_arrays)
    if ready is None:
        for one in missing:
            _set([one], kept, numbers)
        return
    ready(outs, arrays, numbers)

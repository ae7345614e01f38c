"""Check the numbers that users hand to optimizers and schedules: one sentence for each that makes no sense."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from xcnn.errors import UsageError, unknown
from xcnn.parameter import Parameter

__all__ = ["choice", "flag", "number", "parameters"]


def number(caller: str, name: str, value: Any, interval: str) -> float:
    """Return `value` as a float if it is a number in `interval`, written as in mathematics.

    >>> number("SGD", "momentum", 0.9, "[0, 1)")
    0.9
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    if not isinstance(value, bool) and isinstance(value, Real):
        try:
            x = float(value)
        except OverflowError:  # an integer of hundreds of digits
            x = math.inf
        above = x >= low if interval[0] == "[" else x > low
        below = x <= high if interval[-1] == "]" else x < high
        if above and below and math.isfinite(x):
            return x
    raise UsageError(f"{caller}: {name} must be a number in {interval}, got {value!r}")


def flag(caller: str, name: str, value: Any) -> bool:
    """Return `value` if it is True or False."""
    if isinstance(value, bool):
        return value
    raise UsageError(f"{caller}: {name} must be True or False, got {value!r}")


def choice(caller: str, name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise unknown(f"{caller} {name}", value, choices)
    return value


def parameters(caller: str, values: Any) -> list[Parameter]:
    """Return one Parameter or an iterable of them as a list, which must not be empty."""
    if isinstance(values, Parameter):
        return [values]
    if not isinstance(values, Iterable) or isinstance(values, dict | str):
        raise UsageError(f"{caller}: expected parameters, got {type(values).__name__}; pass model.parameters()")
    found = list(values)
    for value in found:
        if not isinstance(value, Parameter):
            raise UsageError(f"{caller}: expected parameters, one is a {type(value).__name__}; pass model.parameters()")
    if not found:
        raise UsageError(f"{caller}: there are no parameters; is a generator used up, or has the model none?")
    return found

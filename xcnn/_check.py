"""Checks of arguments, for the whole package: each returns the value that it was given, or raises one sentence.

`caller` is the public function or class, `name` its argument.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from xcnn.errors import UsageError, unknown

__all__ = ["choice", "flag", "integer", "integers", "is_integer", "number"]


def is_integer(value: Any) -> bool:
    """Say whether a value is an integer, of Python or NumPy. A bool is none, nor is an array."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def integer(caller: str, name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """Return `value` as an int if it is an integer from `minimum` to `maximum`."""
    if is_integer(value) and value >= minimum and (maximum is None or value <= maximum):
        return int(value)
    wanted = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise UsageError(f"{caller}: {name} must be an integer {wanted}, got {value!r}")


def integers(caller: str, name: str, value: int | Sequence[int], rank: int, minimum: int = 1) -> tuple[int, ...]:
    """Give one integer per axis from an integer or a sequence of `rank` of them."""
    # Nearly always one of these two; what follows costs microseconds.
    if type(value) is int and value >= minimum:
        return (value,) * rank
    if type(value) is tuple and len(value) == rank and {*map(type, value)} == {int} and min(value) >= minimum:
        return value
    entries: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(entries) != rank:
        raise UsageError(f"{caller}: {name} takes an integer or {rank} of them, got {value!r}")
    if not all(is_integer(entry) and entry >= minimum for entry in entries):
        raise UsageError(f"{caller}: {name} takes integers of at least {minimum}, got {value!r}")
    return entries


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

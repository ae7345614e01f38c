"""Checks of arguments, for the whole package. Each returns the checked value or raises an error.

`caller` is the name of the public function or class, `name` that of its argument.
"""

import difflib
import fnmatch
import functools
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from xcnn.errors import ShapeError, UsageError, unknown

__all__ = [
    "axis",
    "check_shape",
    "choice",
    "flag",
    "generator",
    "integer",
    "integers",
    "interval",
    "is_integer",
    "matching",
    "number",
    "numbers",
    "path",
    "shown",
]

_MOST_LETTERS, _MOST_NUMBERS = 200, 8
"""Of a value in an error."""

_LARGEST = 2**31 - 1
"""The largest size or stride; with larger ones the arithmetic of array libraries overflows."""


def shown(value: Any) -> str:
    """Return a value as errors show it: an array of more than a few numbers by its shape, and the begin of long texts.

    >>> shown(np.zeros((300, 2))), shown(3)
    ('an array of shape (300, 2)', '3')
    """
    if hasattr(value, "shape") and hasattr(value, "dtype") and math.prod(value.shape) > _MOST_NUMBERS:
        return f"an array of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def is_integer(value: Any) -> bool:
    """Return whether a value is a Python or NumPy integer, but not a bool or an array."""
    # The first test is much faster than that of an abstract class.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def integer(caller: str, name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """Return `value` as an int if it is an integer from `minimum` to `maximum`."""
    if is_integer(value) and value >= minimum and (maximum is None or value <= maximum):
        return int(value)
    wanted = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise UsageError(f"{caller}: {name} must be an integer {wanted}, got {shown(value)}")


def integers(caller: str, name: str, value: int | Sequence[int], rank: int, minimum: int = 1) -> tuple[int, ...]:
    """Return one integer per axis from an integer or a sequence of `rank` of them."""
    # Fast paths for the usual cases; the other checks take microseconds.
    if type(value) is int and minimum <= value <= _LARGEST:
        return (value,) * rank
    if (
        type(value) is tuple
        and len(value) == rank
        and {*map(type, value)} == {int}
        and minimum <= min(value)
        and max(value) <= _LARGEST
    ):
        return value
    entries: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(entries) != rank:
        raise UsageError(f"{caller}: {name} takes an integer or {rank} of them, got {shown(value)}")
    if not all(is_integer(entry) and entry >= minimum for entry in entries):
        raise UsageError(f"{caller}: {name} takes integers of at least {minimum}, got {shown(value)}")
    if any(entry > _LARGEST for entry in entries):
        raise UsageError(f"{caller}: {name} takes integers of at most {_LARGEST}, got {shown(value)}")
    return tuple(map(int, entries))


@functools.cache
def _ends(interval: str) -> tuple[float, bool, float, bool]:
    """Return the ends of an interval, each followed by whether it is included."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    return low, interval[0] == "[", high, interval[-1] == "]"


def number(caller: str, name: str, value: Any, interval: str) -> float:
    """Return `value` as a float if it is a number in an interval, written as in mathematics.

    >>> number("SGD", "momentum", 0.9, "[0, 1)")
    0.9
    """
    low, from_low, high, to_high = _ends(interval)
    if not isinstance(value, bool) and (type(value) is float or isinstance(value, Real)):
        try:
            x = float(value)
        except OverflowError:  # an integer of hundreds of digits
            x = np.nan
        if (x >= low if from_low else x > low) and (x <= high if to_high else x < high):
            return x
    raise UsageError(f"{caller}: {name} must be a number in {interval}, got {shown(value)}")


def interval(caller: str, name: str, value: Any, within: str) -> tuple[float, float]:
    """Return `value` as a pair (low, high) of numbers in an interval, with low <= high."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UsageError(f"{caller}: {name} must be two numbers (low, high), got {shown(value)}")
    low, high = (number(caller, name, end, within) for end in value)
    if low > high:
        raise UsageError(f"{caller}: {name} must be two numbers (low, high), low first, got {shown(value)}")
    return low, high


def numbers(caller: str, name: str, value: Any, interval: str) -> tuple[float, ...]:
    """Return a number, or a list, tuple or 1-d array of them, as a tuple of floats in an interval, at least one."""
    entries = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    if not isinstance(entries, list | tuple):
        return (number(caller, name, value, interval),)
    if not entries:
        raise UsageError(f"{caller}: {name} must be at least one number in {interval}, got {shown(value)}")
    return tuple(number(caller, f"{name}[{i}]", entry, interval) for i, entry in enumerate(entries))


def flag(caller: str, name: str, value: Any) -> bool:
    """Return `value` as a bool if it is a Python or NumPy bool."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UsageError(f"{caller}: {name} must be True or False, got {shown(value)}")


def generator(caller: str, name: str, value: Any) -> np.random.Generator:
    """Return `value` if it is a random generator, or a new generator if it is a seed."""
    if isinstance(value, np.random.Generator) or (is_integer(value) and value >= 0):
        return np.random.default_rng(value)
    raise UsageError(f"{caller}: {name} must be a numpy.random.Generator or a seed of at least 0, got {shown(value)}")


def path(caller: str, name: str, value: Any) -> Path:
    """Return `value` as a Path if it is a string or a path."""
    if isinstance(value, str | os.PathLike):
        return Path(value)
    raise UsageError(f"{caller}: {name} must be a path, got {shown(value)}")


def choice(caller: str, name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise unknown(f"{caller} {name}".strip(), value, choices)
    return value


def matching(caller: str, kind: str, pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that match a pattern, in which `*` stands for any characters, or lie inside a module that does.

    At least one must.
    """
    inside = f"{pattern}.*"
    matched = [name for name in names if any(fnmatch.fnmatchcase(name, one) for one in (pattern, inside))]
    if not matched:
        near = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0))
        raise UsageError(f"{caller}: no {kind} matches {pattern!r}; the names most like it are {near or '-'}")
    return matched


def axis(caller: str, name: str, value: Any, sizes: tuple[int, ...], of: str = "x") -> int:
    """Return `value`, an axis of an array with these sizes, as an index from 0; `of` names the array in errors."""
    if not is_integer(value) or not -len(sizes) <= value < len(sizes):
        raise UsageError(f"{caller}: {name} must be an axis of {of} {tuple(sizes)}, got {shown(value)}")
    return int(value) % len(sizes)


def check_shape(caller: str, wanted: tuple[int, ...], meaning: str, **arrays: Any) -> None:
    """Check that all arrays that are not None have the shape `wanted`, which `meaning` explains."""
    for name, array in arrays.items():
        if array is not None and array.shape != wanted:
            raise ShapeError(f"{caller}: {name} must have shape {tuple(wanted)}, {meaning}, got {tuple(array.shape)}")

"""Options: what counts as an integer or an activation, and the sentences about what does not.

Layers and optimizers use them too.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from xcnn.errors import UsageError

__all__ = ["Integers", "integer", "integers", "is_integer", "is_relu"]

Integers = int | Sequence[int]


def is_integer(value: Any) -> bool:
    """Say whether a value is an integer, of Python or NumPy. A bool is none, nor is an array."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def integer(caller: str, name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int if it is an integer of at least `minimum`."""
    if not is_integer(value) or value < minimum:
        raise UsageError(f"{caller}: {name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def integers(caller: str, name: str, value: Integers, rank: int, minimum: int = 1) -> tuple[int, ...]:
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


def is_relu(caller: str, activation: str | None) -> bool:
    """Say whether an op is to apply ReLU to its result: the only activation that needs nothing but the result."""
    if activation not in (None, "relu"):
        raise UsageError(f"{caller}: activation must be None or 'relu', got {activation!r}")
    return activation == "relu"

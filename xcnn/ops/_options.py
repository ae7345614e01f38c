"""Options that several ops share."""

from collections.abc import Sequence

from xcnn.errors import UsageError

__all__ = ["Integers", "is_relu"]

Integers = int | Sequence[int]


def is_relu(caller: str, activation: str | None) -> bool:
    """Say whether an op is to apply ReLU to its result: the only activation that needs nothing but the result."""
    if activation not in (None, "relu"):
        raise UsageError(f"{caller}: activation must be None or 'relu', got {activation!r}")
    return activation == "relu"

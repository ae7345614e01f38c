"""Options that several ops share."""

from collections.abc import Sequence

from xcnn.errors import UsageError

__all__ = ["Integers", "is_relu"]

Integers = int | Sequence[int]


def is_relu(caller: str, activation: str | None) -> bool:
    """Return whether an op applies ReLU to its result, the only activation whose gradient needs the result alone."""
    if activation is None:
        return False
    if isinstance(activation, str) and activation == "relu":
        return True
    raise UsageError(f"{caller}: activation must be None or 'relu', got {activation!r}")

"""Options that several ops share."""

from collections.abc import Sequence

from xcnn.errors import UsageError

__all__ = ["Integers", "is_relu"]

Integers = int | Sequence[int]


def is_relu(caller: str, activation: str | None) -> bool:
    """Return whether an activation is ReLU; raise an error if it is neither ReLU nor None."""
    if activation is None:
        return False
    if isinstance(activation, str) and activation == "relu":
        return True
    raise UsageError(f"{caller}: activation must be None or 'relu', got {activation!r}")

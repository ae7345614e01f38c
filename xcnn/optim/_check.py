"""The parameters that users hand to optimizers and to gradient clipping."""

from collections.abc import Iterable
from typing import Any

from xcnn.errors import UsageError
from xcnn.parameter import Parameter

__all__ = ["parameters"]


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

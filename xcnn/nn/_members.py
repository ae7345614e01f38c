"""What the attributes of a module hold, also in lists, tuples and dicts: parameters, buffers, generators, modules."""

from collections.abc import Iterable
from typing import Any

from xcnn.errors import UsageError

__all__ = ["members"]

_PLAIN = {int, float, bool, str, type(None)}
_COLLECTIONS = (list, tuple, dict)


def members(
    entries: Iterable[tuple[Any, Any]], kinds: type | tuple[type, ...], prefix: str = "", above: tuple[int, ...] = ()
) -> list[tuple[str, Any]]:
    """Return the values of some types with their names, including those in lists, tuples and dicts.

    `above` holds the ids of the enclosing collections.
    """
    found = []
    for key, value in entries:
        if type(value) in _PLAIN:  # most attributes; a fast path, as each training step walks through the network
            continue
        if isinstance(value, kinds):
            found.append((f"{prefix}{key}", value))
        elif isinstance(value, _COLLECTIONS):
            keys, values = (value, value.values()) if isinstance(value, dict) else (range(len(value)), value)
            if _PLAIN.issuperset(map(type, values)):  # such as a kernel size
                continue
            if id(value) in above:
                raise UsageError(f"{prefix}{key}: a {type(value).__name__} among a module's attributes contains itself")
            found += members(zip(keys, values, strict=True), kinds, f"{prefix}{key}.", (*above, id(value)))
    return found

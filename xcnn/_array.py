"""Functions for arrays of any library: namespaces, creation, accurate sums, and writing to slices.

They test what an array supports, never which library it is from.
"""

import contextlib
import math
from collections.abc import Container
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from xcnn.errors import DtypeError

__all__ = [
    "Array",
    "add_slice",
    "empty",
    "full",
    "is_array",
    "is_kind",
    "namespace",
    "namespace_of",
    "on_device",
    "set_slice",
    "sum_over",
    "zeros",
]

Array = Any
"""An array of any array-API library. Docstrings state shapes and dtypes, which types cannot express."""

is_array = array_api_compat.is_array_api_obj

# Caches: `array_namespace` and `isdtype` take microseconds.
_NAMESPACES: dict[type, ModuleType] = {}
_KINDS: dict[tuple[ModuleType, Any, str], bool] = {}

_ANYWHERE = contextlib.nullcontext()

_FEW = 128
"""The largest number of terms to add sequentially; longer sums lose accuracy."""


def namespace_of(array: Array) -> ModuleType:
    """Return the array-API namespace of one array."""
    try:
        return _NAMESPACES[type(array)]
    except KeyError:
        # NumPy implements the standard; the wrapper of array_api_compat would import all of NumPy, f2py included.
        own = isinstance(array, np.ndarray | np.generic)
        xp: ModuleType = np if own else array_api_compat.array_namespace(array)
        _NAMESPACES[type(array)] = xp
        return xp


def namespace(op: str, *, optional: Container[str] = (), **arrays: Array | None) -> ModuleType:
    """Return the namespace of `arrays`, after checking that they share one library and one floating-point dtype.

    The message of a DtypeError begins with `op` and names the wrong argument. Arguments in `optional` may be None.
    """
    xp: ModuleType | None = None
    first, dtype = "", None
    for name, array in arrays.items():
        if array is None:
            if name not in optional:
                raise DtypeError(f"{op}: {name} must be an array, got None")
            continue
        try:
            this = namespace_of(array)
        except TypeError:
            raise DtypeError(f"{op}: {name} must be an array, got {type(array).__name__}") from None
        if xp is None:
            xp, first, dtype = this, name, array.dtype
            if not is_kind(xp, dtype, "real floating"):
                scaled = ", as by xcnn.data.to_float, which divides by 255" if dtype == xp.uint8 else ""
                raise DtypeError(f"{op}: {name} must be a floating-point array, got {dtype}; convert it first{scaled}")
        elif this is not xp:
            raise DtypeError(
                f"{op}: {name} is a {this.__name__} array, {first} a {xp.__name__} array; move one of them"
            )
        elif array.dtype != dtype:
            raise DtypeError(f"{op}: {name} is {array.dtype}, {first} is {dtype}; convert one")
    assert xp is not None, "every op has at least one array"
    return xp


def is_kind(xp: ModuleType, dtype: Any, kind: str) -> bool:
    """Return whether a dtype is of a kind such as `"integral"`: the standard's `isdtype`, cached."""
    try:
        return _KINDS[xp, dtype, kind]
    except KeyError:
        answer = _KINDS[xp, dtype, kind] = bool(xp.isdtype(dtype, kind))
        return answer


def on_device(where: Any) -> contextlib.AbstractContextManager[object]:
    """Return a context manager in which an array library creates arrays on its device `where`.

    CuPy's creation functions ignore `device=` and use the current device of the thread, which the context changes.
    Other libraries need no context. CuPy's device, which has `use`, is copied: the original stores the previous
    device, and threads share it.
    """
    return type(where)(where) if hasattr(where, "use") else _ANYWHERE


def full(xp: ModuleType, shape: tuple[int, ...], value: float, like: Array) -> Array:
    """Return a new array filled with one value, with the dtype and on the device of `like`."""
    where = array_api_compat.device(like)
    with on_device(where):
        return xp.full(shape, value, dtype=like.dtype, device=where)


def zeros(xp: ModuleType, shape: tuple[int, ...], like: Array) -> Array:
    """Return a new array of zeros, with the dtype and on the device of `like`."""
    where = array_api_compat.device(like)
    with on_device(where):
        return xp.zeros(shape, dtype=like.dtype, device=where)


def empty(xp: ModuleType, shape: tuple[int, ...], like: Array) -> Array:
    """Return a new array whose numbers are not set, with the dtype and on the device of `like`."""
    where = array_api_compat.device(like)
    with on_device(where):
        return xp.empty(shape, dtype=like.dtype, device=where)


def set_slice(array: Array, index: Any, value: Array) -> Array:
    """Set a slice to `value` and return the array, or a new array if those of its library are immutable."""
    if hasattr(array, "at"):  # immutable arrays have this instead of assignment
        return array.at[index].set(value)
    array[index] = value
    return array


def add_slice(array: Array, index: Any, value: Array) -> Array:
    """Add `value` to a slice and return the array, or a new array if those of its library are immutable."""
    if hasattr(array, "at"):
        return array.at[index].add(value)
    array[index] += value
    return array


def sum_over(xp: ModuleType, array: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """Return the sum over some axes, in increasing order, with an error that hardly grows with their length.

    Libraries sum accurately along the last axis, but NumPy adds one number after another along the others: the sum of a
    million equal float32 numbers is off by 1 %. A long axis is split into about sqrt(n) blocks of sqrt(n) numbers.
    """
    last = array.ndim - 1
    if all(array.shape[axis] <= _FEW for axis in axes if axis != last):
        return xp.sum(array, axis=axes, keepdims=keepdims)
    for axis in reversed(axes):
        shape, before = array.shape, (slice(None),) * axis
        n = shape[axis]
        if n <= _FEW or axis == last:
            array = xp.sum(array, axis=axis, keepdims=keepdims)
            continue
        block = math.isqrt(n)
        whole = n - n % block
        blocks = xp.reshape(array[(*before, slice(whole), ...)], (*shape[:axis], -1, block, *shape[axis + 1 :]))
        rest = xp.sum(array[(*before, slice(whole, n), ...)], axis=axis, keepdims=keepdims)
        array = xp.sum(xp.sum(blocks, axis=axis + 1), axis=axis, keepdims=keepdims) + rest
    return array

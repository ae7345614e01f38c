"""Optimizer steps, and a check of the gradients, of many parameters in one launch, which takes a table of arrays."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import TYPES, launch
from xcnn.kernels.cuda._library import address, namespace
from xcnn.kernels.cuda._maps import contiguous

__all__ = ["adam", "rmsprop", "sgd", "totals"]

_MOST = 32
"""Parameters in a table: as many as `Slots` in optim.cu has."""

_ARRAYS = ("grad", "data", "first", "second", "third")
_SLOTS = np.dtype([*((name, "u8", _MOST) for name in ("data", "grad", "first", "second", "third")),
                   ("end", "i8", _MOST), ("count", "i8")])  # fmt: skip


def _run(name: str, lists: Sequence[list[Any] | None], *numbers: Any) -> None:
    """Run a kernel for a table of up to 32 parameters.

    Parameters
    ----------
    lists : contiguous arrays of each parameter, in the order of `_ARRAYS`; None if there are none.
    numbers : the kernel's arguments after the table.
    """
    gradients = lists[0]
    assert gradients, "a table has a parameter, and each a gradient"
    slots, sizes = np.zeros((), _SLOTS), [a.size for a in gradients]
    for field, arrays in zip(_ARRAYS, lists, strict=False):  # most rules keep fewer
        if arrays is not None:
            slots[field][: len(arrays)] = [address(a) for a in arrays]
    slots["end"][: len(sizes)], slots["count"] = np.cumsum(sizes), len(sizes)
    launch(name, sum(sizes), slots, *numbers, dtype=gradients[0].dtype)


def _tables(*lists: list[Any] | None) -> Iterator[tuple[slice, list[list[Any] | None]]]:
    """Cut lists of arrays, each in C order, into those of successive tables, and yield the slice of each table."""
    plain = [None if arrays is None else [contiguous(a) for a in arrays] for arrays in lists]
    for first in range(0, len(plain[0] or ()), _MOST):
        chosen = slice(first, first + _MOST)
        yield chosen, [None if arrays is None else arrays[chosen] for arrays in plain]


def _updated(name: str, numbers: tuple[Any, ...], *lists: list[Any] | None) -> Iterator[Any]:
    """Run a kernel for all parameters and yield the arrays of each, except the gradient.

    The parameters of a table are updated together, when the first of them is asked for.

    Parameters
    ----------
    numbers : the kernel's arguments after the table.
    lists : for each parameter gradient, data and state, in the kernel's order; None for no state.
    """
    for _, table in _tables(*lists):
        _run(name, table, *numbers)
        yield from zip(*(repeat(None) if arrays is None else arrays for arrays in table[1:]), strict=False)


@kernel(namespace)
def totals(arrays: Sequence[Any], dtype: Any) -> Any:
    """Return NaN for each array with an element that is not finite, else 0."""
    if not _takes(arrays) or any(a.dtype != dtype for a in arrays):
        return NotImplemented
    found = namespace.zeros(len(arrays), dtype=dtype)
    for chosen, table in _tables(list(arrays)):
        _run("look", table, found[chosen])
    return found


def _takes(data: Sequence[Any]) -> bool:
    return data[0].dtype.name in TYPES


@kernel(namespace)
def sgd(
    data: list[Any],
    grads: list[Any],
    velocities: list[Any] | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> Any:
    """Update data and velocities, which start as the first gradients."""
    if not _takes(data):
        return NotImplemented
    gain = 1.0 if velocities is None else 1 - dampening
    if momentum and velocities is None:
        velocities = [namespace.zeros_like(w) for w in data]
    return _updated("sgd", (lr, weight_decay, momentum, gain, nesterov), grads, data, velocities if momentum else None)


@kernel(namespace)
def adam(
    data: list[Any],
    grads: list[Any],
    means: list[Any],
    squares: list[Any],
    lr: float,
    rate: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Any:
    """Update data, means and squares."""
    if not _takes(data):
        return NotImplemented
    decays = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    numbers = rate, *decays, 1 - beta1, beta2, 1 - beta2, root, eps
    return _updated("adam", numbers, grads, data, means, squares)


@kernel(namespace)
def rmsprop(
    data: list[Any],
    grads: list[Any],
    squares: list[Any],
    means: list[Any] | None,
    velocities: list[Any] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> Any:
    """Update data and the squares, means and velocities that exist."""
    if not _takes(data):
        return NotImplemented
    numbers = lr, alpha, 1 - alpha, eps, weight_decay, momentum
    return _updated("rmsprop", numbers, grads, data, squares, means, velocities)

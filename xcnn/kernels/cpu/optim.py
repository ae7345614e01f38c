"""Optimizer steps in one pass over memory, in place: loops made from the rules' portable code, whose bits they have."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import BODIES, kernel
from xcnn.kernels.cpu._loops import EACH, Loop, traced
from xcnn.kernels.cpu._native import address
from xcnn.kernels.cpu._share import share
from xcnn.kernels.cpu._trace import Symbol

__all__ = ["adam", "rmsprop", "sgd"]

_FEW = 10_000
"""Parameters with fewer numbers take only microseconds and are not split."""

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class _Nonzero(Symbol):
    """A number that is given when the loop is run; one that is 0 is known when it is compiled."""

    def __bool__(self) -> bool:
        return True


def _step(xp: Any, key: tuple[str, tuple[bool, ...]], *symbols: Any) -> list[Any]:
    """Return the new data and states of a rule's body for one parameter; the key says which states it has."""
    name, kept = key
    arrays = iter(symbols)
    data, grads, *states = ([next(arrays)] if exists else None for exists in (True, True, *kept))
    options = [_Nonzero(xp, p.kind, p.number) if isinstance(p, Symbol) else p for p in arrays]
    (updated,) = BODIES[name](xp, data, grads, *states, *options)
    return [new for new in updated if new is not None]


def _updated(name: str, data: list[Any], grads: list[Any], states: Sequence[list[Any] | None], *options: Any) -> Any:
    """Return an iterator that updates each parameter in turn and yields its arrays; NotImplemented without a loop."""
    dtype = data[0].dtype
    if dtype not in _DTYPES:
        return NotImplemented
    kept = tuple([state is not None for state in states])
    numbers = [float(option) for option in options if option and type(option) is not bool]
    choices = tuple([option if type(option) is bool else None if option else 0.0 for option in options])
    count = 2 + sum(kept)
    loop = traced(_step, (name, kept), (EACH,) * (count - 1), (True,) * count, choices, dtype.itemsize)
    return NotImplemented if loop is None else _updates(loop, data, grads, states, numbers)


def _updates(
    loop: Loop, data: list[Any], grads: list[Any], states: Sequence[Any], numbers: list[float]
) -> Iterator[Any]:
    kept = [state for state in states if state is not None]
    for arrays in zip(data, grads, *kept, strict=True):
        for a in arrays:
            if type(a) is not np.ndarray or not a.flags.carray:
                arrays = tuple(map(_plain, arrays))
                break
        w, grad, *others = arrays
        if w.size < _FEW:
            loop.call(w, *others, *arrays, w.size, *numbers)
        else:
            first, *rest = map(address, (w, *others))
            places, step = (first, *rest, first, address(grad), *rest), w.itemsize

            def part(begin: int, end: int, places: Sequence[int] = places, step: int = step) -> None:
                loop.call(*(place + begin * step for place in places), end - begin, *numbers)

            share(part, 2 * len(places) * w.size, n=w.size)
        if len(kept) < len(states):
            new = iter(others)
            others = [None if state is None else next(new) for state in states]
        yield w, *others


def _plain(a: Any) -> Any:
    """Return an array itself if it is contiguous and writable, otherwise a copy, also of scalars and memory maps."""
    return a if type(a) is np.ndarray and a.flags.carray else np.array(a, order="C")


@kernel(np)
def sgd(
    data: list[np.ndarray],
    grads: list[np.ndarray],
    velocities: list[np.ndarray] | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> Any:
    """Update data and velocities, which start as the first gradients."""
    if momentum and velocities is None:
        velocities, dampening = [np.zeros(w.shape, w.dtype) for w in data], 0.0
    return _updated("sgd", data, grads, [velocities], lr, momentum, dampening, weight_decay, nesterov)


@kernel(np)
def adam(
    data: list[np.ndarray],
    grads: list[np.ndarray],
    means: list[np.ndarray],
    squares: list[np.ndarray],
    *options: Any,
) -> Any:
    """Update data, means and squares."""
    return _updated("adam", data, grads, [means, squares], *options)


@kernel(np)
def rmsprop(
    data: list[np.ndarray],
    grads: list[np.ndarray],
    squares: list[np.ndarray],
    means: list[np.ndarray] | None,
    velocities: list[np.ndarray] | None,
    *options: float,
) -> Any:
    """Update data and the squares, means and velocities that exist."""
    return _updated("rmsprop", data, grads, [squares, means, velocities], *options)

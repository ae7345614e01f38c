"""Tables of the places of pixels and windows, for kernels that should not depend on rank, stride and dilation."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Padded", "grid", "pack", "padded_grid", "repeat", "steps_of"]


def grid(steps: Sequence[int], begins: Sequence[int], counts: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Return the places of the points of a grid in row-major order, with `steps` between neighbours along each axis."""
    places = np.zeros(1, np.int64)
    for step, begin, count, stride in zip(steps, begins, counts, strides, strict=True):
        places = np.add.outer(places, (begin + np.arange(count) * stride) * step).ravel()
    return places


def steps_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return how many elements the numbers along each axis of an array in C order are apart."""
    return tuple([math.prod(shape[axis + 1 :]) for axis in range(len(shape))])


class Padded(NamedTuple):
    """Places in a padded map: of its pixels, windows and kernel positions, and how many there are in all."""

    pixels: np.ndarray
    windows: np.ndarray
    taps: np.ndarray
    size: int


def padded_grid(axes: tuple[Any, ...]) -> Padded:
    """Return the places in a map with all padding that its windows touch."""
    sizes = [max(a.before + a.size, (a.out - 1) * a.stride + a.extent) for a in axes]
    steps, zeros, ones = steps_of(sizes), [0] * len(axes), [1] * len(axes)
    return Padded(
        grid(steps, [a.before for a in axes], [a.size for a in axes], ones),
        grid(steps, zeros, [a.out for a in axes], [a.stride for a in axes]),
        grid(steps, zeros, [a.kernel for a in axes], [a.dilation for a in axes]),
        math.prod(sizes),
    )


def repeat(step: int, images: int, places: np.ndarray) -> np.ndarray:
    """Return the places of several images, `step` apart."""
    all_places: np.ndarray = np.add.outer(np.arange(images) * step, places)
    return all_places.ravel()


def pack(numbers: Sequence[int], *arrays: np.ndarray) -> np.ndarray:
    """Return numbers and arrays of integers as one array, as each argument of compiled code takes time.

    It holds the number of numbers, the numbers, the places where the arrays begin, and the arrays; `_integers.py`
    reads it.
    """
    begins = np.cumsum([2 + len(numbers) + len(arrays), *(a.size for a in arrays)])
    return np.concatenate([[len(numbers)], numbers, begins, *(a.ravel() for a in arrays)]).astype(np.int64)

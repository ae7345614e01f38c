"""Padding and cropping of trailing axes, with a constant or with pixels of the map.

Each mode is a list of copies per axis: which pixels of x go where in y. Backward runs the list in reverse and adds. A
new mode is a row of `MODES`, which defines where its pixels come from.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from xcnn._array import Array, add_slice, full, namespace, set_slice, zeros
from xcnn._check import choice, is_integer, number
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._window import along, resized

__all__ = ["MODES", "Mode", "pad"]


class Mode(NamedTuple):
    """Where the padding of an axis of `size` pixels comes from."""

    source: Callable[[int, int], int] | None
    """(i, size) -> the pixel to copy to position i, before the first or after the last; None keeps the constant."""
    largest: Callable[[int], float]
    """size -> the widest padding on one side."""


MODES = {
    "constant": Mode(None, lambda size: math.inf),
    "reflect": Mode(lambda i, size: size - 1 - abs(size - 1 - abs(i)), lambda size: max(0, size - 1)),
    "replicate": Mode(lambda i, size: min(max(i, 0), size - 1), lambda size: math.inf if size else 0),
    "circular": Mode(lambda i, size: i % size, lambda size: size),
}


def _copies(size: int, before: int, after: int, mode: Mode) -> list[tuple[slice, slice]]:
    """Return the copies along one axis, as pairs of pixels of x and of y. Cropping comes first."""
    first, kept, left = max(0, -before), size + min(0, before) + min(0, after), max(0, before)
    copies = [(slice(first, first + kept), slice(left, left + kept))]
    if mode.source is not None:
        for i in (*range(-before, 0), *range(kept, kept + after)):
            source = first + mode.source(i, kept)
            copies.append((slice(source, source + 1), slice(left + i, left + i + 1)))
    return copies


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], pad: Sequence[int], name: str, mode: Mode) -> tuple[Any, ...]:
    """Return, per axis that changes, its place from the end, its size in x, that in y, and the copies."""
    if not isinstance(pad, Sequence) or len(pad) % 2 or len(pad) > 2 * len(shape) or not all(map(is_integer, pad)):
        raise UsageError(f"pad: pad takes integers, two for each of at most {len(shape)} axes, got {pad!r}")
    for i, sides in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        place = f"{sides} for axis {-i - 1} of x {shape}"
        kept = shape[-i - 1] + sum(min(0, side) for side in sides)
        if kept < 0:
            raise ShapeError(f"pad: pad crops more pixels than there are, {place}")
        if max(sides) > 2**31 - 1:
            raise UsageError(f"pad: pad takes integers of at most {2**31 - 1}, got {place}")
        largest = mode.largest(kept)
        if max(0, *sides) > largest:
            raise ShapeError(f"pad: mode {name!r} adds at most {largest} to {kept} pixels, got {place}")
    return tuple(
        (-i - 1, shape[-i - 1], shape[-i - 1] + sum(sides), _copies(shape[-i - 1], *sides, mode))
        for i, sides in enumerate(zip(pad[::2], pad[1::2], strict=True))
        if any(sides)
    )


def _inside(xp: ModuleType, x: Array, plan: Any, value: float) -> Array:
    """Return an array of the constant with what is kept of x in its place."""
    shape, source, places = x.shape, x, [slice(0, size) for size in x.shape]
    for dim, _, size, ((kept, place), *_) in plan:
        shape, source, places[dim] = resized(shape, dim, size), source[along(dim, kept)], place
    return set_slice(full(xp, shape, value, x), tuple(places), source)


@body
def _pad(xp: ModuleType, x: Array, plan: tuple[Any, ...], value: float) -> Result:
    """Return x with some axes padded or cropped."""
    y = _inside(xp, x, plan, value)
    for dim, _, _, ((kept, place), *borders) in plan:
        for a, b in borders:  # from y, where the pixels of x are in place, and the borders of the axes before
            start = a.start - kept.start + place.start
            y = set_slice(y, along(dim, b), y[along(dim, slice(start, start + 1))])

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        for dim, size, _, ((kept, place), *borders) in reversed(plan):
            dx = dy[along(dim, place)]
            if borders or kept.stop - kept.start < size:
                dx = set_slice(zeros(xp, resized(dy.shape, dim, size), dy), along(dim, kept), dx)
                for a, b in borders:
                    dx = add_slice(dx, along(dim, a), dy[along(dim, b)])
            dy = dx
        return (dy,)

    return y, backward


@op(
    "x",
    samples=[
        sample({"x": (2, 3, 4, 5)}, pad=(1, 2, 0, 1), value=0.5),
        sample({"x": (2, 3, 4, 5)}, pad=(-1, 2, 1, -2)),
        sample({"x": (2, 3, 4, 5)}, pad=(2, 1, 3, 0), mode="reflect"),
        sample({"x": (2, 3, 4)}, pad=(2, 5), mode="replicate"),
        sample({"x": (3, 2, 4)}, pad=(4, 1, 1, 2), mode="circular"),
    ],
    apart=lambda shape, options: len(options["pad"]) < 2 * len(shape),
)
def pad(x: Array, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Result:
    """Pad or crop the last axes.

    Parameters
    ----------
    x : floating-point array of any shape.
    pad : two integers per axis, the last axis first: `(left, right, top, bottom, ...)`. A negative one crops, before
        anything is added.
    mode : `'constant'` pads with `value`; `'reflect'` with the mirror image about the outermost pixel (fewer pixels
        than the axis has); `'replicate'` with the outermost pixel; `'circular'` with the opposite end (at most as many
        pixels as the axis has).
    value : the constant, which may be infinite.

    Returns
    -------
    y : x with each axis longer by the sum of its two integers; x itself if all of them are 0.
    backward : dy -> (dx,), where each pixel collects the gradients of its copies. It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the mode is unknown, the integers do not pair up with axes, or an axis is too short for them.
    """
    xp = namespace("pad", x=x)
    choice("pad", "mode", mode, MODES)
    value = number("pad", "value", value, "[-inf, inf]")
    known = _plan if type(pad) is tuple and {*map(type, pad)} == {int} else _plan.__wrapped__
    plan = known(tuple(x.shape), pad, mode, MODES[mode])
    if not plan:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    return _pad(xp, x, plan, value)

"""Pools defined by the size of their result: adaptive pooling, and pooling of whole maps."""

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import array_api_compat

from xcnn._array import Array, add_slice, namespace, zeros
from xcnn._check import integers
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, Sample, op, op_of_ranks, sample
from xcnn.ops._window import Axes, Axis, along, map_sizes, resized
from xcnn.ops.pool import avg_pool, max_pool
from xcnn.ops.reduce import reduction

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "adaptive_sizes",
    "global_avg_pool",
    "global_max_pool",
]

Sizes = int | Sequence[int | None] | None


def _windows(size: int, out: int) -> list[slice]:
    """Return `out` windows of nearly the same length along an axis, which overlap if `out` does not divide `size`."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _shrink(xp: ModuleType, x: Array, dim: int, out: int, reduce: Callable[..., Array]) -> Array:
    """Reduce the windows of one axis by a function of the standard, such as `mean`."""
    if x.shape[dim] == out:
        return x
    windows = _windows(x.shape[dim], out)
    return xp.concat([reduce(x[along(dim, window)], axis=dim, keepdims=True) for window in windows], axis=dim)


def _grow(xp: ModuleType, dy: Array, dim: int, size: int, share: Callable[[slice], Any]) -> Array:
    """Distribute each dy over its window by `share(window)`, the factor of each pixel: the transpose of `_shrink`."""
    if dy.shape[dim] == size:
        return dy
    dx = zeros(xp, resized(dy.shape, dim, size), dy)
    for i, window in enumerate(_windows(size, dy.shape[dim])):
        dx = add_slice(dx, along(dim, window), dy[along(dim, slice(i, i + 1))] * share(window))
    return dx


def _first(xp: ModuleType, x: Array, dim: int, window: slice) -> Array:
    """Return 1 for the first maximum of a window along an axis, or its first NaN, and 0 for the others."""
    x = x[along(dim, window)]
    first = xp.argmax(x, axis=dim, keepdims=True)
    places = xp.arange(x.shape[dim], dtype=first.dtype, device=array_api_compat.device(x))
    return xp.astype(xp.reshape(places, (-1, *(1,) * (-dim - 1))) == first, x.dtype)


def adaptive_sizes(name: str, sizes: tuple[int, ...], output_size: Sizes) -> tuple[int, ...]:
    """Return the sizes of the result for maps of these sizes."""
    rank = len(sizes)
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * rank
    if len(wanted) != rank:
        raise UsageError(f"{name}: output_size takes an integer or {rank} of them, got {output_size!r}")
    return integers(name, "output_size", [n if o is None else o for n, o in zip(sizes, wanted, strict=True)], rank)


Plan = tuple[tuple[int, int], ...]
"""Per spatial axis, its size in x and in y."""


def _plan(name: str, x: Array, rank: int, output_size: Sizes) -> Plan:
    sizes = map_sizes(name, x, rank)
    if 0 in sizes:
        raise ShapeError(f"{name}: the maps of x must not be empty, got {tuple(x.shape)}")
    return tuple(zip(sizes, adaptive_sizes(name, sizes, output_size), strict=True))


def _dims(plan: Plan) -> list[tuple[int, int, int]]:
    """Return each spatial axis, counted from the end, the last one first, with its sizes."""
    return [(dim, *sizes) for dim, sizes in zip(range(-1, -len(plan) - 1, -1), plan[::-1], strict=True)]


@functools.lru_cache(maxsize=1024)
def _adjacent(plan: Plan) -> Axes:
    """Return the windows of a pool if they are adjacent and equally long, else none."""
    if any(size % out for size, out in plan):
        return ()
    return tuple(Axis(size, size // out, size // out, 1, 0, 0, out) for size, out in plan)


@body
def _adaptive_avg(xp: ModuleType, x: Array, plan: Plan) -> Result:
    y = x
    for dim, _, out in reversed(_dims(plan)):  # the last axis last: its short sums are the slowest
        y = _shrink(xp, y, dim, out, xp.mean)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        for dim, size, _ in _dims(plan):
            dy = _grow(xp, dy, dim, size, lambda window: 1.0 / (window.stop - window.start))
        return (dy,)

    return y, backward


@body
def _adaptive_max(xp: ModuleType, x: Array, plan: Plan) -> Result:
    def stages() -> list[Array]:
        """Return x, and x with one axis more reduced each; the last axis first gives the first maximum of each row."""
        found = [x]
        for dim, _, out in _dims(plan):
            found.append(_shrink(xp, found[-1], dim, out, xp.max))
        return found

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        for (dim, size, _), before in reversed(list(zip(_dims(plan), stages()[:-1], strict=True))):
            dy = _grow(xp, dy, dim, size, functools.partial(_first, xp, before, dim))
        return (dy,)

    return stages()[-1], backward


def _same(dy: Array, needs: Sequence[bool]) -> Gradients:
    return (dy if needs[0] else None,)


def _adaptive_avg_pool_nd(rank: int, x: Array, output_size: Sizes) -> Result:
    """Average each signal (1d), image (2d) or volume (3d) to a given size.

    Along each axis, output i is the mean of the pixels `floor(i * size / out) .. ceil((i + 1) * size / out) - 1`.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image; no size is 0. The sizes are (w,), (h, w) or
        (d, h, w).
    output_size : an integer, or one per axis; None keeps the size of the axis.

    Returns
    -------
    y : (n, c, *outs), or (c, *outs) for one image; x itself if it has that size.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If x has other axes or empty maps, or output_size is not as above.
    """
    name = f"adaptive_avg_pool{rank}d"
    xp = namespace(name, x=x)
    plan = _plan(name, x, rank, output_size)
    if all(size == out for size, out in plan):
        return x, _same
    axes = _adjacent(plan)
    if axes:
        return avg_pool(xp, x, axes, tuple((axis.kernel,) * axis.out for axis in axes), None)
    return _adaptive_avg(xp, x, plan)


def _adaptive_max_pool_nd(rank: int, x: Array, output_size: Sizes) -> Result:
    """Take the largest pixel of each window of signals (1d), images (2d) or volumes (3d), for a given size of y.

    The windows, and the arguments, are those of `adaptive_avg_pool2d`.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image; no size is 0.
    output_size : an integer, or one per axis; None keeps the size of the axis.

    Returns
    -------
    y : (n, c, *outs), or (c, *outs) for one image; NaN for a window that holds NaN; x itself if it has that size.
    backward : dy -> (dx,). The gradient of a window goes to its first maximum in row-major order. Backward keeps x,
        and y if all windows have one length; in compiled code it keeps an integer per window instead. An infinite dy
        may make the rest of its window NaN.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If x has other axes or empty maps, or output_size is not as above.
    """
    name = f"adaptive_max_pool{rank}d"
    xp = namespace(name, x=x)
    plan = _plan(name, x, rank, output_size)
    if all(size == out for size, out in plan):
        return x, _same
    axes = _adjacent(plan)
    return max_pool(xp, x, axes) if axes else _adaptive_max(xp, x, plan)


def _adaptive_samples(rank: int) -> list[Sample]:
    return [
        sample({"x": (2, 3, *(5, 7, 4)[:rank])}, output_size=(2, 3, None)[:rank]),
        sample({"x": (2, 3, *(3, 4, 5)[:rank])}, output_size=(5, None, 2)[:rank]),
        sample({"x": (3, *(6, 4, 5)[:rank])}, output_size=2),
    ]


def _adaptive_max_samples(rank: int) -> list[Sample]:
    return [sample({"x": (2, 2, *(3, 4, 2)[:rank])}, output_size=(2, 3, None)[:rank])]


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = op_of_ranks(
    _adaptive_avg_pool_nd, "x", "", _adaptive_samples, apart=True
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = op_of_ranks(
    _adaptive_max_pool_nd, "x", "x? y? winners?", _adaptive_max_samples, apart=True
)


def _check_maps(name: str, x: Array) -> None:
    if x.ndim < 3 or 0 in x.shape[2:]:
        raise ShapeError(f"{name}: x must be (n, c, *sizes) with at least one size, and none 0; got {tuple(x.shape)}")


@op("x", samples=[sample({"x": (2, 3, 4, 5)}), sample({"x": (2, 3, 4)})], apart=True)
def global_avg_pool(x: Array) -> Result:
    """Take the mean of each map.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes) with at least one size.

    Returns
    -------
    y : (n, c).
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError
        If x has no spatial axis or an empty one, or is not a floating-point array.
    """
    xp = namespace("global_avg_pool", x=x)
    _check_maps("global_avg_pool", x)
    return reduction(xp, x, tuple(range(2, x.ndim)), False, True)


@body
def _global_max(xp: ModuleType, x: Array) -> Result:
    """Take the largest pixels of maps (n, c, *sizes)."""
    shape, maps = x.shape, xp.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (xp.reshape(_first(xp, maps, -1, slice(None)) * dy[..., None], shape) if needs[0] else None,)

    return xp.max(maps, axis=-1), backward


@op("x", saves="x? winners?", samples=[sample({"x": (2, 3, 4, 5)}), sample({"x": (2, 3, 4)})], apart=True)
def global_max_pool(x: Array) -> Result:
    """Take the largest pixel of each map; NaN for a map that holds NaN.

    Arguments, shapes and errors are those of `global_avg_pool`. The gradient goes to the first maximum of each map; an
    infinite dy may make the rest of its map NaN. Backward keeps x, in compiled code an integer per map instead.
    """
    xp = namespace("global_max_pool", x=x)
    _check_maps("global_max_pool", x)
    return _global_max(xp, x)

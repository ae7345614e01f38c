"""Pools defined by the size of their result: adaptive average pooling, and pooling of whole maps."""

import math
from collections.abc import Sequence
from types import ModuleType

import array_api_compat

from xcnn._array import Array, add_slice, namespace, zeros
from xcnn._check import integers
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, Sample, op, op_of_ranks, sample
from xcnn.ops._window import along, map_sizes, resized

__all__ = ["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "global_avg_pool", "global_max_pool"]

Sizes = int | Sequence[int | None] | None


def _windows(size: int, out: int) -> list[slice]:
    """Return `out` windows of nearly the same length along an axis, which overlap if `out` does not divide `size`."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _shrink(xp: ModuleType, x: Array, dim: int, out: int) -> Array:
    """Average the windows of one axis."""
    if x.shape[dim] == out:
        return x
    means = [xp.mean(x[along(dim, window)], axis=dim, keepdims=True) for window in _windows(x.shape[dim], out)]
    return xp.concat(means, axis=dim)


def _grow(xp: ModuleType, dy: Array, dim: int, size: int) -> Array:
    """Distribute each dy evenly over its window: the transpose of `_shrink`."""
    if dy.shape[dim] == size:
        return dy
    dx = zeros(xp, resized(dy.shape, dim, size), dy)
    for i, window in enumerate(_windows(size, dy.shape[dim])):
        dx = add_slice(dx, along(dim, window), dy[along(dim, slice(i, i + 1))] / (window.stop - window.start))
    return dx


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
    sizes = map_sizes(name, x, rank)
    if 0 in sizes:
        raise ShapeError(f"{name}: the maps of x must not be empty, got {tuple(x.shape)}")
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * rank
    if len(wanted) != rank:
        raise UsageError(f"{name}: output_size takes an integer or {rank} of them, got {output_size!r}")
    outs = integers(name, "output_size", [n if o is None else o for n, o in zip(sizes, wanted, strict=True)], rank)
    y = x
    for i, out in enumerate(outs):
        y = _shrink(xp, y, i - rank, out)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        for i in reversed(range(rank)):
            dy = _grow(xp, dy, i - rank, sizes[i])
        return (dy,)

    return y, backward


def _adaptive_samples(rank: int) -> list[Sample]:
    return [
        sample({"x": (2, 3, *(5, 7, 4)[:rank])}, output_size=(2, 3, None)[:rank]),
        sample({"x": (2, 3, *(3, 4, 5)[:rank])}, output_size=(5, None, 2)[:rank]),
        sample({"x": (3, *(6, 4, 5)[:rank])}, output_size=2),
    ]


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = op_of_ranks(
    _adaptive_avg_pool_nd, "x", "", _adaptive_samples
)


def _flat_maps(name: str, xp: ModuleType, x: Array) -> Array:
    """Return the maps of x as rows (n, c, pixels)."""
    if x.ndim < 3 or 0 in x.shape[2:]:
        raise ShapeError(f"{name}: x must be (n, c, *sizes) with at least one size, and none 0; got {tuple(x.shape)}")
    return xp.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))


@body
def _global_avg_pool(xp: ModuleType, x: Array) -> Result:
    """Take the means of rows (n, c, pixels)."""
    y, shape = xp.mean(x, axis=-1), x.shape

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (zeros(xp, shape, dy) + (dy / shape[2])[..., None] if needs[0] else None,)

    return y, backward


@op("x", samples=[sample({"x": (2, 3, 4, 5)}), sample({"x": (2, 3, 4)})])
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
    y, rows_backward = _global_avg_pool(xp, _flat_maps("global_avg_pool", xp, x))
    shape = x.shape

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        (dx,) = rows_backward(dy, needs)
        return (None if dx is None else xp.reshape(dx, shape),)

    return y, backward


@op("x", saves="x", samples=[sample({"x": (2, 3, 4, 5)}), sample({"x": (2, 3, 4)})])
def global_max_pool(x: Array) -> Result:
    """Take the largest pixel of each map; NaN for a map that holds NaN.

    Arguments, shapes and errors are those of `global_avg_pool`. The gradient goes to the first maximum of each map; an
    infinite dy makes the rest of its map NaN. Backward keeps x.
    """
    xp = namespace("global_max_pool", x=x)
    y = xp.max(_flat_maps("global_max_pool", xp, x), axis=-1)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        flat = _flat_maps("global_max_pool", xp, x)
        first = xp.argmax(flat, axis=-1, keepdims=True)
        hit = xp.arange(flat.shape[-1], dtype=first.dtype, device=array_api_compat.device(x)) == first  # (n, c, pixels)
        return (xp.reshape(xp.astype(hit, dy.dtype) * dy[..., None], x.shape),)

    return y, backward

"""Maps of another size: interpolation, pixels that move between channels and space, and channels between groups.

Interpolation works along one axis at a time, and adds the taps of `_taps.py`.
"""

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import array_api_compat

from xcnn._array import Array, namespace, on_device
from xcnn._check import choice, flag, integer, integers, number
from xcnn._dispatch import binds, body, bound
from xcnn._taps import MODES, Taps, tables
from xcnn.devices import like
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import Integers
from xcnn.ops.shape import permuted

__all__ = ["Factors", "channel_shuffle", "check_target", "interpolate", "pixel_shuffle", "pixel_unshuffle"]

Factors = float | Sequence[float]

_LARGEST = 2**31 - 1


def _mix(xp: ModuleType, x: Array, dim: int, taps: Taps, padded: bool = False) -> Array:
    """Add the taps along axis `dim`, which is counted from the end; taps of weight 0 are none if they are `padded`."""
    where = array_api_compat.device(x)
    with on_device(where):
        indices = xp.asarray(taps[0], device=where)
    weights = like(taps[1], x)
    y = None
    for i, weight in enumerate(taps[1]):
        part = xp.take(x, indices[i, :], axis=x.ndim + dim)
        if (weight != 1.0).any():
            factors = xp.reshape(weights[i, :], (-1, *(1,) * (-dim - 1)))
            if padded and (weight == 0.0).any():  # what is not finite must not reach pixels that are no part of it
                part = xp.where(factors == 0.0, xp.zeros_like(factors), part)
            part = part * factors
        y = part if y is None else y + part
    return y


Plan = tuple[tuple[int, tuple[int, int, float, str, bool]], ...]
"""The axes that change, counted from the end, the first one first, each with the arguments of its `tables`."""


@body
def _interpolate(xp: ModuleType, x: Array, plan: Plan) -> Result:
    y = x
    for dim, axis in reversed(plan):
        y = _mix(xp, y, dim, tables(*axis)[0])

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        for dim, axis in plan:
            dy = _mix(xp, dy, dim, tables(*axis)[1], padded=True)
        return (dy,)

    return y, backward


def check_target(
    caller: str,
    size: Integers | None,
    scale_factor: Factors | None,
    mode: str,
    align_corners: bool | None,
    rank: int | None = None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the sizes and the factors per spatial axis, one of them empty; without `rank`, as many as are given."""
    choice(caller, "mode", mode, MODES)
    if align_corners is not None:
        flag(caller, "align_corners", align_corners)
        if not MODES[mode]:
            raise UsageError(f"{caller}: align_corners is for the linear modes, not for {mode!r}; leave it out")
    if (size is None) == (scale_factor is None):
        raise UsageError(f"{caller}: give either size or scale_factor, got {size!r} and {scale_factor!r}")
    given = size if scale_factor is None else scale_factor
    rank = rank or (max(1, len(given)) if isinstance(given, Sequence) else 1)
    if scale_factor is None:
        return integers(caller, "size", size, rank), ()  # type: ignore[arg-type]
    factors = tuple(scale_factor) if isinstance(scale_factor, Sequence) else (scale_factor,) * rank
    if len(factors) != rank:
        raise UsageError(f"{caller}: scale_factor takes a number or {rank} of them, got {scale_factor!r}")
    return (), tuple(number(caller, "scale_factor", factor, "(0, inf)") for factor in factors)


_PLAIN = {int, float, str, bool, type(None)}
"""Types of options that may be compared with earlier ones."""


@functools.lru_cache(maxsize=256, typed=True)
def _plan(
    shape: tuple[int, ...], size: Integers | None, scale_factor: Factors | None, mode: str, align_corners: bool | None
) -> Plan:
    """Return the axes that change, after checking the options; this takes longer than to resize a small image."""
    rank, sizes = len(shape) - 2, shape[2:]
    outs, factors = check_target("interpolate", size, scale_factor, mode, align_corners, rank)
    if MODES[mode] not in (0, rank):
        raise ShapeError(f"interpolate: mode {mode!r} takes x with {MODES[mode] + 2} axes, got {shape}")
    if factors:
        outs = tuple(math.floor(min(n * factor, 2.0**31)) for n, factor in zip(sizes, factors, strict=True))
        if not all(1 <= out <= _LARGEST for out in outs):
            raise ShapeError(f"interpolate: maps of {tuple(sizes)} cannot be scaled by {scale_factor!r} to {outs}")
    steps = [1 / factor for factor in factors] or [n / out for n, out in zip(sizes, outs, strict=True)]
    axes = list(zip(sizes, outs, steps, strict=True))
    return tuple(
        (dim, (n, out, step, mode, bool(align_corners)))
        for dim, (n, out, step) in enumerate(axes, -rank)
        if n != out or (step != 1.0 and not MODES[mode])  # a factor that keeps the size still moves nearest pixels
    )


@op(
    "x",
    samples=[
        sample({"x": (2, 2, 4)}, scale_factor=1.6),
        sample({"x": (1, 2, 3, 4)}, size=(5, 3), mode="bilinear"),
        sample({"x": (2, 2, 4)}, size=7, mode="linear", align_corners=True),
    ],
    apart=lambda shape, options: len(shape) > 3,
)
def interpolate(
    x: Array,
    size: Integers | None = None,
    scale_factor: Factors | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Result:
    """Resize signals, images or volumes to a size or by a factor.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes) with at least one size, and none 0.
    size : the new sizes, an integer or one per spatial axis; this or `scale_factor`.
    scale_factor : number that multiplies each size, or one per spatial axis; the results are rounded down.
    mode : `'nearest'` and `'nearest-exact'` copy the pixel at `i * step` and at `(i + 0.5) * step`, rounded down, where
        step is 1 / scale_factor, or the old size divided by the new one. (This is computed in float32, as in PyTorch,
        whose `'nearest'` ignores a factor that keeps a size in small images only.)
        `'linear'` for signals, `'bilinear'` for images and `'trilinear'` for volumes mix the two nearest pixels of each
        axis; outside the centres of the outermost pixels, these are repeated.
    align_corners : for the linear modes, True to place the centres of the first and last pixels on the old ones; None
        and False to place the outer edges of these pixels there.

    Returns
    -------
    y : (n, c, *outs); x itself if nothing changes.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If x has other axes than the mode takes, an option is out of range, both or none of size and scale_factor are
        given, or no pixels would be left.

    Examples
    --------
    >>> import numpy as np
    >>> y, backward = interpolate(np.array([[[1.0, 3.0]]]), scale_factor=2, mode="linear")
    >>> y
    array([[[1. , 1.5, 2.5, 3. ]]])
    >>> backward(np.ones_like(y))
    (array([[[2., 2.]]]),)
    """
    xp = namespace("interpolate", x=x)
    rank, sizes = x.ndim - 2, x.shape[2:]
    if rank < 1 or 0 in sizes:
        came = tuple(x.shape)
        raise ShapeError(f"interpolate: x must be (n, c, *sizes) with at least one size, and none 0; got {came}")
    options = size, scale_factor, mode, align_corners
    plan = (_plan if {*map(type, options)} <= _PLAIN else _plan.__wrapped__)(tuple(x.shape), *options)
    if not plan:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    return _interpolate(xp, x, plan)


@body
def _rearranged(
    xp: ModuleType, x: Array, split: tuple[int, ...], order: tuple[int, ...], joined: tuple[int, ...]
) -> Result:
    """Return x with some axes split, all in another order, and some joined."""
    shape, moved = x.shape, tuple(split[i] for i in order)
    back = tuple(order.index(i) for i in range(len(order)))

    def permute(a: Array, order: tuple[int, ...]) -> Array:
        return xp.permute_dims(a, order) if order[-1] == len(order) - 1 else permuted(xp, a, order)[0]

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (xp.reshape(permute(xp.reshape(dy, moved), back), shape) if needs[0] else None,)

    return xp.reshape(permute(xp.reshape(x, split), order), joined), backward


@binds(_rearranged)
def _bind(xp: ModuleType, x: Array, split: tuple[int, ...], order: tuple[int, ...], joined: tuple[int, ...]) -> Any:
    """Bind the copy."""
    reshape = xp.reshape
    permute = bound(permuted, xp, (reshape(x, split), order))
    if permute is None:
        if order[-1] != len(order) - 1:
            return NotImplemented
        permute = xp.permute_dims
    return lambda x, *_: reshape(permute(reshape(x, split), order), joined)


@op("x", samples=[sample({"x": (2, 8, 2, 3)}, upscale_factor=2)], apart=lambda shape, options: len(shape) > 3)
def pixel_shuffle(x: Array, upscale_factor: int) -> Result:
    """Move channels into space: each r x r channels of a pixel become r x r pixels.

    Parameters
    ----------
    x : floating-point array (..., c * r * r, h, w), r the factor.
    upscale_factor : an integer of at least 1.

    Returns
    -------
    y : (..., c, h * r, w * r), with `y[..., c, i, j] = x[..., c * r * r + (i % r) * r + j % r, i // r, j // r]`.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the channels do not divide, or an argument is not as above.

    Notes
    -----
    W. Shi et al., Real-time single image and video super-resolution using an efficient sub-pixel convolutional neural
    network, 2016, arXiv:1609.05158.
    """
    xp = namespace("pixel_shuffle", x=x)
    r = integer("pixel_shuffle", "upscale_factor", upscale_factor, 1, _LARGEST)
    if x.ndim < 3 or x.shape[-3] % (r * r):
        raise ShapeError(f"pixel_shuffle: x must be (..., c * {r * r}, h, w), got {tuple(x.shape)}")
    *lead, channels, h, w = x.shape
    k, c = len(lead), channels // (r * r)
    order = (*range(k + 1), k + 3, k + 1, k + 4, k + 2)
    return _rearranged(xp, x, (*lead, c, r, r, h, w), order, (*lead, c, h * r, w * r))


@op("x", samples=[sample({"x": (2, 2, 4, 6)}, downscale_factor=2)], apart=lambda shape, options: len(shape) > 3)
def pixel_unshuffle(x: Array, downscale_factor: int) -> Result:
    """Move space into channels: the inverse of `pixel_shuffle`, from (..., c, h * r, w * r) to (..., c * r * r, h, w).

    Backward keeps nothing. Errors are those of `pixel_shuffle`; here the sizes must divide.
    """
    xp = namespace("pixel_unshuffle", x=x)
    r = integer("pixel_unshuffle", "downscale_factor", downscale_factor, 1, _LARGEST)
    if x.ndim < 3 or x.shape[-2] % r or x.shape[-1] % r:
        raise ShapeError(f"pixel_unshuffle: x must be (..., c, h * {r}, w * {r}), got {tuple(x.shape)}")
    *lead, c, height, width = x.shape
    k, h, w = len(lead), height // r, width // r
    order = (*range(k + 1), k + 2, k + 4, k + 1, k + 3)
    return _rearranged(xp, x, (*lead, c, h, r, w, r), order, (*lead, c * r * r, h, w))


@op("x", samples=[sample({"x": (2, 6, 2, 3)}, groups=2)], apart=lambda shape, options: len(shape) > 3)
def channel_shuffle(x: Array, groups: int) -> Result:
    """Deal the channels of each group out to all groups, so that a grouped convolution sees those of every group.

    Parameters
    ----------
    x : floating-point array (n, c, ...).
    groups : an integer of at least 1 that divides c.

    Returns
    -------
    y : the shape of x, with `y[:, j * groups + i] = x[:, i * (c // groups) + j]`.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the channels do not divide, or an argument is not as above.

    Notes
    -----
    X. Zhang et al., ShuffleNet: an extremely efficient convolutional neural network for mobile devices, 2018,
    arXiv:1707.01083.
    """
    xp = namespace("channel_shuffle", x=x)
    groups = integer("channel_shuffle", "groups", groups, 1, _LARGEST)
    if x.ndim < 2 or x.shape[1] % groups:
        raise ShapeError(f"channel_shuffle: x must be (n, {groups} * c, ...), got {tuple(x.shape)}")
    n, c, *sizes = x.shape
    split = n, groups, c // groups, *sizes
    return _rearranged(xp, x, split, (0, 2, 1, *range(3, len(split))), (n, c, *sizes))

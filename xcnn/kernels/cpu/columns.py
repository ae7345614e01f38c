"""Convolutions and matrix products in plain NumPy, for use without llvmlite and for what no other kernel handles.

Both are the portable code, with BLAS on one thread. Convolutions are done for a few images at a time: so few that their
columns stay in the second-level cache, where bias and ReLU are applied, too. Images are distributed over threads.

A part is a slice of images that depends on shapes alone; the weight gradients of the parts are summed in order.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import BODIES, kernel
from xcnn.kernels.cpu._blas import one_blas_thread
from xcnn.kernels.cpu.each import each
from xcnn.threads import parts

__all__ = ["conv", "conv_transpose"]

_PIECE_BYTES = 1 << 20
"""Size of the columns that are built and used together."""

_COPIED, _MULTIPLIED = 2_000, 40_000
"""Numbers that a core copies into columns, and that it multiplies and adds, in a microsecond."""


def _held(name: str) -> Callable[..., Any]:
    """Return a kernel that runs a body, and its backward if it has one."""

    def call(*arguments: Any) -> Any:
        with one_blas_thread:
            found = BODIES[name](np, *arguments)
        if not isinstance(found, tuple):
            return found
        result, backward = found

        def held_backward(dy: np.ndarray, needs: Sequence[bool]) -> Any:
            with one_blas_thread:
                return backward(dy, needs)

        return result, held_backward

    call.__name__ = name
    return call


for _name in ("conv", "conv_inference", "conv_transpose", "linear", "matmul"):
    kernel(np)(_held(_name))


def _cuts(n: int, weights: tuple[int, ...], axes: tuple[Any, ...], groups: int, itemsize: int) -> list[list[slice]]:
    """Return the images of each piece, of which the columns fit the cache, for each part."""
    numbers = weights[1] * groups * math.prod(a.kernel * a.out for a in axes)
    images = max(1, _PIECE_BYTES // (numbers * itemsize))
    microseconds = n * (numbers / _COPIED + numbers * weights[0] / groups / _MULTIPLIED)
    count = parts(-(-n // images), microseconds)
    ends = [n * part // count for part in range(count + 1)]
    return [
        [slice(i, min(i + images, end)) for i in range(start, end, images)] for start, end in itertools.pairwise(ends)
    ]


def _each(cuts: list[list[slice]], function: Callable[[int, slice], object]) -> None:
    """Call `function(part, images)` for every piece, the parts in threads."""
    each(lambda part: [function(part, images) for images in cuts[part]], len(cuts))


def _mirrored(weights: tuple[int, ...], axes: tuple[Any, ...], groups: int) -> tuple[Any, ...] | None:
    """Return the windows of dy whose products with the flipped kernels are dx; None if adding columns is faster."""
    before = [a.extent - 1 - a.before for a in axes]
    after = [a.size + a.extent - 1 - a.out - b for a, b in zip(axes, before, strict=True)]
    moved, added = weights[0] * math.prod(a.size for a in axes), weights[1] * groups * math.prod(a.out for a in axes)
    if any(a.stride > 1 for a in axes) or min(before + after) < 0 or moved > added:
        return None
    ends = zip(axes, before, after, strict=True)
    return tuple(a._replace(size=a.out, out=a.size, before=b, after=e) for a, b, e in ends)


def _flipped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return kernels from the outputs of others to their inputs, in reverse order."""
    o, cg, *kernel = weight.shape
    exchanged = weight.reshape(groups, o // groups, cg, -1)[..., ::-1].swapaxes(1, 2)
    return np.ascontiguousarray(exchanged).reshape(groups * cg, o // groups, *kernel)


def _added(sums: Any, others: Any) -> Any:
    """Return arrays plus others, or these if there are none yet; None stays."""
    if sums is None:
        return others
    return [None if a is None else np.add(a, b, out=a) for a, b in zip(sums, others, strict=True)]


def _by_pieces(
    name: str, channels: int, outs: tuple[int, ...], x: np.ndarray, weight: np.ndarray, bias: Any,
    axes: tuple[Any, ...], groups: int, *activation: Any,
) -> Any:  # fmt: skip
    """Return what a body returns, y being (n, channels, *outs); NotImplemented if it is small, or not for ReLU."""
    cuts = _cuts(len(x), weight.shape, axes, groups, x.itemsize) if x.size else []
    if sum(map(len, cuts)) < 2 or activation not in ((), (None,), (("relu",),)):
        return NotImplemented
    result, body, without = np.empty((len(x), channels, *outs), x.dtype), BODIES[name], (None,) * len(activation)
    backwards: dict[int, Callable[..., Any]] = {}
    y = result if any(activation) else None  # backward keeps it

    def forward(_: int, images: slice) -> None:
        part, backwards[images.start] = body(np, x[images], weight, bias, axes, groups, *without)
        result[images] = part if y is None else np.maximum(part, 0, out=part)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx, sums = np.empty(x.shape, x.dtype) if needs[0] else None, [None] * len(cuts)
        mirrored = _mirrored(weight.shape, axes, groups) if needs[0] and name == "conv" else None
        flipped = None if mirrored is None else _flipped(weight, groups)
        some = needs[0] and mirrored is None, *needs[1:]

        def gradients(part: int, images: slice) -> None:
            above = dy[images] if y is None else dy[images] * (y[images] != 0)
            found, *others = backwards[images.start](above, some)
            if mirrored is not None:
                found, _ = body(np, above, flipped, None, mirrored, groups, *without)
            if dx is not None:
                dx[images] = found
            sums[part] = _added(sums[part], others)

        _each(cuts, gradients)
        return dx, *functools.reduce(_added, sums)

    _each(cuts, forward)
    return result, backward


@kernel(np)
def conv(x: np.ndarray, weight: np.ndarray, bias: Any, axes: tuple[Any, ...], groups: int, activation: Any) -> Any:
    """Convolve, and apply bias and ReLU to each piece."""
    outs = tuple(a.out for a in axes)
    return _by_pieces("conv", weight.shape[0], outs, x, weight, bias, axes, groups, activation)


@kernel(np)
def conv_transpose(x: np.ndarray, weight: np.ndarray, bias: Any, axes: tuple[Any, ...], groups: int) -> Any:
    """Convolve with x and y exchanged, or with flipped kernels."""
    mirrored = _mirrored(weight.shape, axes, groups)
    if mirrored is None:
        sizes = tuple(a.size for a in axes)
        return _by_pieces("conv_transpose", weight.shape[1] * groups, sizes, x, weight, bias, axes, groups)
    found = conv(x, _flipped(weight, groups), bias, mirrored, groups, None)
    if found is NotImplemented:
        return NotImplemented
    y, back = found

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx, dweight, dbias = back(dy, needs)
        return dx, None if dweight is None else _flipped(dweight, groups), dbias

    return y, backward

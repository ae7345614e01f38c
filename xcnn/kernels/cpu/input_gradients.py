"""The input gradient of a convolution on the CPU: products of dy with the weights, which are read where they lie.

Work is distributed over threads by images, and by channels if there are few images.

Rows of dy that are laid out have zeros between them, and an infinite weight times 0 is NaN, as with im2col.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._grids import grid, pack, phase_spans, repeat, steps_of
from xcnn.kernels.cpu._input_gradient import BAND, input_gradient
from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._planes import STEP, planes
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import cleared, new_owner, scratch
from xcnn.kernels.cpu._share import flat
from xcnn.kernels.cpu._simd import BYTES
from xcnn.threads import parallel, parts

__all__ = ["input_gradients"]

_STACK_BYTES = 600_000
"""Size of the planes of dy that are multiplied together; they should stay in the second-level cache with the rest."""

Axes = tuple[Any, ...]


class _Layout(NamedTuple):
    """What is counted from shapes.

    Attributes
    ----------
    tables : for `input_gradient`.
    room : size of the planes of dy of one group.
    direct : whether dy can be read, and dx be written, where it lies.
    by_images, by_channels : parts.
    number : unique number of the layout.
    """

    tables: np.ndarray
    room: int
    direct: bool
    by_images: int
    by_channels: int
    number: int


def _flat_axes(axes: Axes) -> Axes:
    """Return the axes of a convolution as one axis if its windows are the single pixels of x."""
    if any(a.kernel > 1 or a.stride > 1 or a.before or a.after or a.out != a.size for a in axes):
        return axes
    pixels = math.prod(a.size for a in axes)
    return (replace(axes[0], size=pixels, out=pixels, dilation=1, grown=0),)


@functools.lru_cache(maxsize=256)
def _layout(axes: Axes, groups: int, cg: int, og: int, n: int, itemsize: int) -> _Layout:
    axes = _flat_axes(axes)
    p, rank = planes(axes), len(axes)
    steps = [int(step) for step in p.axes[3 - rank :, STEP]]
    kernel = [range(axis.kernel) for axis in axes]
    reach = p.dy_start - int(p.dx_shifts.min())
    spans = phase_spans(axes)

    def place(index: Sequence[int]) -> int:
        return sum(i * step for i, step in zip(index, steps, strict=True))

    ends = [place([f + c - 1 for f, c in zip(firsts, counts, strict=True)]) for _, firsts, _, counts in spans]
    first = min((place(firsts) for _, firsts, _, _ in spans), default=0)
    # One image's windows must not reach the pixels of the next one.
    image = max([p.length + reach - first, *(end + 1 for end in ends)])
    lanes = BYTES // itemsize
    # Planes that are read once per row may come from further away.
    most = _STACK_BYTES * (1 if p.x_shifts.size > 1 else 4)
    images = max(1, min(n, BAND // image, most // (og * image * itemsize)))
    outs, sizes = [axis.out for axis in axes], [axis.size for axis in axes]
    direct = images == rank == p.x_shifts.size == axes[0].stride == 1 and image == outs[0] == sizes[0] >= lanes
    if direct:
        room = image  # then dy can be read where it lies
    else:
        room = reach + (images - 1) * image + max([p.length, *(end + 1 for end in ends)]) + lanes
        room = (-(-room // 16) | 1) * 16  # odd, as the cache has few places for numbers a power of 2 apart
    ones = [1] * rank
    laid_from = grid(steps_of(outs)[:-1], [0] * (rank - 1), outs[:-1], ones[:-1])
    laid_to = grid(steps[:-1], [0] * (rank - 1), outs[:-1], ones[:-1]) + reach
    written: list[tuple[Any, Any, Any]] = []
    phases, shifts, offsets = [], [], []
    row = term = 0
    for number, firsts, pixels, counts in spans:
        stride = axes[-1].stride
        cuts = range(0, counts[-1], BAND)
        widths = np.array([min(BAND, counts[-1] - cut) for cut in cuts], np.int64)
        places = grid(steps[:-1], firsts[:-1], counts[:-1], ones[:-1])[:, None] + (firsts[-1] + np.array(cuts))
        strides = [axis.stride for axis in axes]
        to = grid(steps_of(sizes)[:-1], [0] * (rank - 1), counts[:-1], strides[:-1])[:, None]
        to = to + sum(u * step for u, step in zip(pixels, steps_of(sizes), strict=True)) + np.array(cuts) * stride
        count = places.size * images
        written.append(
            (
                repeat(image, images, places.ravel()),
                repeat(groups * cg * math.prod(sizes), images, to.ravel()),
                np.tile(widths, count // widths.size),
            )
        )
        taps = np.flatnonzero(p.dx_phase == number)
        shifts.append((np.arange(og)[:, None] * room + reach + p.dx_shifts[taps] - p.dy_start).ravel())
        offsets.append((np.arange(og)[:, None] * (cg * math.prod(map(len, kernel))) + taps).ravel())
        phases.append((row, count, stride, term, taps.size * og))
        row, term = row + count, term + taps.size * og
    dx_pixels, dy_pixels, all_taps = math.prod(sizes), math.prod(outs), p.x_shifts.size
    tables = pack(
        [groups, cg, og, dy_pixels, dx_pixels, all_taps, images, room, outs[-1]],
        repeat(groups * og * dy_pixels, images, laid_from),
        repeat(image, images, laid_to),
        *(np.concatenate(column) for column in zip(*written, strict=True)),
        np.array(phases),
        np.concatenate(shifts),
        np.concatenate(offsets),
    )
    most_parts = parts(n * cg, 2 * n * groups * cg * og * all_taps * dy_pixels / FLOPS_PER_MICROSECOND)
    by_images = min(most_parts, -(-n // images))
    # Each part lays out dy for itself, which should be little beside the products.
    by_channels = max(1, min(most_parts // by_images, cg // (8 if direct else max(8, 256 // all_taps))))
    # The last vector of a band may reach beyond the last plane.
    return _Layout(tables, og * room + lanes, direct, by_images, by_channels, new_owner())


def input_gradients(
    dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, bias: np.ndarray | None, axes: Axes, groups: int
) -> np.ndarray:
    """Return dx, plus a bias if it is the result of a transposed convolution; dy is masked to where y is not 0."""
    n, og, cg, dtype, size = dy.shape[0], dy.shape[1] // groups, weight.shape[1], dy.dtype, dy.itemsize
    if og == cg == 1 < groups and bias is None:
        return depthwise.input_gradients(dy, y, weight, axes)
    f = _layout(axes, groups, cg, og, n, size)
    dx = np.empty((n, cg * groups, *(a.size for a in axes)), dtype)
    arrays = [flat(a, size) for a in (dy, y, weight, bias, dx)]
    direct = f.direct and y is None and bias is None

    def some(part: int) -> None:
        i, c = divmod(part, f.by_channels)
        dys = flat(None, size) if direct else cleared(f.number, "dy", f.room, dtype)
        ys = flat(None, size) if direct else scratch(0, "products", 64 * (BAND + 16), dtype)
        input_gradient(
            multiply.address(size), every.address(size), *arrays, f.tables,
            n * i // f.by_images, n * (i + 1) // f.by_images,
            cg * c // f.by_channels, cg * (c + 1) // f.by_channels, dys, ys,
        )  # fmt: skip

    parallel(some, f.by_images * f.by_channels)
    return dx

"""The gradients of a convolution on the CPU: sums of products with shifted planes, in both directions.

The images of a chunk are laid out and used while they are in the cache; the mask of ReLU is applied when dy is laid out
(`_gradients.py`). Images are distributed over threads.

Rows of dy are stored with zeros between them, and an infinite x times 0 is NaN. So more of dweight may become NaN than
with im2col.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu._gradients import gradients, pack_transposed
from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND, flops, grouped, layout, volume
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._sums import add_rows
from xcnn.threads import parallel, parts

__all__ = ["conv_gradients", "rows_sum"]

_CHUNK_BYTES = 800_000
"""Size of the planes of x and dy that backward processes together; they should stay in the second-level cache."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""


def conv_gradients(
    x: np.ndarray | None,
    dy: np.ndarray,
    y: np.ndarray | None,
    weight: np.ndarray,
    axes: tuple[Any, ...],
    groups: int,
    needs: Sequence[bool],
) -> tuple[np.ndarray | None, ...]:
    """Return dx, dweight and dbias, as needed; dy is masked to where y is not 0.

    Parameters
    ----------
    x : None if only dx is needed.
    y : None if dy is not masked.
    """
    n, o, w = dy.shape[0], dy.shape[1], grouped(weight, groups)
    _, og, cg, _ = w.shape
    c, dtype = cg * groups, dy.dtype
    f = layout(axes, cg, og)
    # Empty arrays are not computed.
    nothing = np.empty((1, 0, 0, 0, 0), dtype)
    dx = np.empty((n if needs[0] else 0, c, *(axis.size for axis in axes)), dtype)
    packed = np.empty(w.size if needs[0] else 0, dtype)
    if needs[0]:
        pack_transposed(w, f.order, f.bounds, packed)
    count = parts(min(n, max(2, _PARTIAL_BYTES // weight.nbytes)), 2 * flops(n, weight, f) / FLOPS_PER_MICROSECOND)
    dweight = np.zeros((count, weight.size if needs[1] else 0), dtype)
    of_images = np.zeros((n, o if needs[2] else 0), dtype)
    chunk = max(1, _CHUNK_BYTES // ((c * f.phases * f.plane + o * f.dy_plane) * dtype.itemsize))
    chunk = min(chunk, -(-n // count))
    arrays = (
        nothing if x is None else volume(x), volume(dy), nothing if y is None else volume(y), packed, volume(dx)
    )  # fmt: skip

    def some(part: int) -> None:
        xs = scratch(f.number, "x chunk", chunk * c * f.phases * f.plane if needs[1] else 0, dtype)
        dys = scratch(f.number, "dy", chunk * o * f.dy_plane, dtype)
        ys = scratch(f.number, "dx", cg * f.row, dtype)
        first, last = n * part // count, n * (part + 1) // count
        gradients(*arrays, dweight[part], of_images, *f[:9], groups, first, last, chunk, xs, dys, ys)

    parallel(some, count)
    return (
        dx if needs[0] else None,
        (dweight[0] if count == 1 else dweight.sum(axis=0)).reshape(weight.shape) if needs[1] else None,
        rows_sum(of_images) if needs[2] else None,
    )


def rows_sum(rows: np.ndarray) -> np.ndarray:
    """Return the sum of the rows."""
    total: np.ndarray = rows[0]
    if len(rows) > 1:
        total = np.empty(rows.shape[1], rows.dtype)
        add_rows(rows, total)
    return total

"""The compiled passes of the gradients of a convolution. `conv_gradients.py` calls them.

Names as in `_passes.py`.
"""

import math

from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._passes import lay, product, spans
from xcnn.kernels.cpu._planes import OUT, STEP, STRIDE
from xcnn.kernels.cpu._simd import BYTES, CORRELATION_BLOCKS, PRODUCT_BLOCKS, TERMS, correlation
from xcnn.kernels.cpu._sums import BLOCK

__all__ = ["gradients", "pack_transposed"]

_R0, _R1, _R2, _R3 = (rows for rows, _ in PRODUCT_BLOCKS)
_S0, _S1, _S2 = (rows for rows, _ in CORRELATION_BLOCKS)
_C0, _C1, _C2 = (correlation(*block) for block in CORRELATION_BLOCKS)


@compiled
def pack_transposed(weight, order, bounds, packed):
    """Copy weight (g, og, cg, taps) for the input gradient: by group and phase, rows c, a column for each o and tap."""
    groups, og, cg, _ = weight.shape
    at = 0
    for g in range(groups):
        for phase in range(bounds.size - 1):
            r = 0
            for size in (_R0, _R1, _R2, _R3):
                while r + size <= cg:
                    for o in range(og):
                        for tap in order[bounds[phase] : bounds[phase + 1]]:
                            for i in range(size):
                                packed[at + i] = weight[g, o, r + i, tap]
                            at += size
                    r += size


@compiled
def _correlate(dy, dy0, plane, dy_step, x, x_step, shifts, images, length, out, out0, rows):
    """Add the products of dy's rows with the shifted x to out (rows, K)."""
    count = shifts.size
    b0 = rows // _S0
    _C0(dy, dy0, plane, dy_step, x, x_step, shifts, count, images, length, out, out0, b0)
    r = b0 * _S0
    b1 = (rows - r) // _S1
    _C1(dy, dy0 + r * plane, plane, dy_step, x, x_step, shifts, count, images, length, out, out0 + r * count, b1)
    r += b1 * _S1
    b2 = (rows - r) // _S2
    _C2(dy, dy0 + r * plane, plane, dy_step, x, x_step, shifts, count, images, length, out, out0 + r * count, b2)


@compiled
def _gather(ys, step, axes, phase, dx):
    """Write the rows of one phase of the input gradient to its pixels in dx (c, d, h, w)."""
    (_, z, nz), (_, y, ny), (_, x, nx) = spans(axes, phase)
    for c in range(dx.shape[0]):
        for i in range(nz):
            for j in range(ny):
                at = c * step + i * axes[0, STEP] + j * axes[1, STEP]
                source = ys[at : at + nx]
                target = dx[c, z + i * axes[0, STRIDE], y + j * axes[1, STRIDE]][x:]
                if axes[2, STRIDE] == 1:
                    for k in range(nx):
                        target[k] = source[k]
                else:
                    for k in range(nx):
                        target[k * axes[2, STRIDE]] = source[k]


@summing
def _lay_gradient(dy, y, axes, plane, start, dys, dy0, dbias, first, end):
    """Copy columns first .. end - 1 of dy (o, od, oh, ow) to its planes, where y is not 0 if there is a y.

    Adds their sums to dbias (o,), unless it is empty.
    """
    zero, width = dys.dtype.type(0), end - first
    many = int(math.sqrt(axes[0, OUT] * axes[1, OUT]))
    for o in range(dy.shape[0]):
        total, part, rows = zero, zero, 0
        for i in range(axes[0, OUT]):
            for j in range(axes[1, OUT]):
                at = dy0 + o * plane + start + i * axes[0, STEP] + j * axes[1, STEP]
                target = dys[at + first : at + end]
                source = dy[o, i, j][first:]
                if y.size:
                    mask = y[o, i, j][first:]
                    for k in range(width):
                        value = source[k] if mask[k] != zero else zero
                        target[k] = value
                        part += value
                else:
                    for k in range(width):
                        target[k] = source[k]
                        part += source[k]
                rows += 1
                if rows == many:
                    total, part, rows = total + part, zero, 0
        if dbias.size:
            dbias[o] += total + part


@compiled
def gradients(
    x, dy, y, weights, dx, dweight, dbias, axes, plane, phases, length, shifts, dy_plane, start, phase_shifts, bounds,
    groups, first, last, chunk, xs, dys, ys,
):  # fmt: skip
    """Compute the gradients of images first .. last - 1, `chunk` at a time, except those whose array is empty.

    Adds to dweight and to the images' rows of dbias (n, o), and sets those of dx.
    """
    c, o = dx.shape[1], dy.shape[1]
    span = TERMS * (BYTES // dys.itemsize)
    places = min(length, span)
    several = max(1, span // places)
    cg, og, count = c // groups, o // groups, shifts.size
    step = ys.size // max(cg, 1)
    for n in range(first, last, chunk):
        images = min(chunk, last - n)
        for i in range(images):
            mask = y[n + i] if y.size else y[0]
            for left in range(0, axes[2, OUT], BLOCK):
                right = min(left + BLOCK, axes[2, OUT])
                _lay_gradient(
                    dy[n + i], mask, axes, dy_plane, start, dys, i * o * dy_plane, dbias[n + i], left, right
                )  # fmt: skip
            if dweight.size:
                lay(x[n + i], axes, plane, xs, i * c * phases * plane)
        if dweight.size:
            for g in range(groups):
                for i in range(0, images, several):
                    for at in range(0, length, places):
                        _correlate(
                            dys, (i * o + g * og) * dy_plane + start + at, dy_plane, o * dy_plane,
                            xs[(i * c + g * cg) * phases * plane + at :], c * phases * plane, shifts,
                            min(several, images - i), min(places, length - at), dweight, g * og * count, og,
                        )  # fmt: skip
        if dx.size:
            for i in range(images):
                for g in range(groups):
                    for phase in range(phases):
                        (tz, _, nz), (ty, _, ny), (tx, _, nx) = spans(axes, phase)
                        if nz <= 0 or ny <= 0 or nx <= 0:
                            continue
                        begin = (i * o + g * og) * dy_plane + tz * axes[0, STEP] + ty * axes[1, STEP] + tx
                        places = (nz - 1) * axes[0, STEP] + (ny - 1) * axes[1, STEP] + nx
                        taps = phase_shifts[og * bounds[phase] : og * bounds[phase + 1]]
                        w0 = g * cg * phase_shifts.size + cg * og * bounds[phase]
                        product(dys, begin, taps, weights, w0, ys, step, cg, places)
                        _gather(ys, step, axes, phase, dx[n + i, g * cg : (g + 1) * cg])

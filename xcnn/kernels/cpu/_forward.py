"""The compiled passes of a convolution: lay out, multiply, write. `conv.py` calls them, `_stacks.py` lays out.

Names: z, y, x count along the three axes; g groups, n images, c channels, o output channels.
"""

import numpy as np

from xcnn.kernels.cpu._compile import by_address, compiled
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply, next_strip
from xcnn.kernels.cpu._simd import BYTES

from xcnn.kernels.cpu._stacks import (  # isort: skip
    AXIS, BAND, BAND_AXIS, BANDS, BEFORE, BLOCK, BLOCKS, COUNT, DIRECT, GROUPS, HEADER, IMAGES, IN_PLACE, OUT, PADDED,
    PHASES, PLACES, PLANE, ROWS, SIZE, STACKS, STEP, STRIDE, SUM_ROWS, SUMS, WIDTH, C, F, N,
)  # fmt: skip

__all__ = ["convolve", "fold", "lay"]

_Z, _Y, _X = HEADER, HEADER + AXIS, HEADER + 2 * AXIS


@compiled
def fold(bias, mean, var, weight, add, eps, scale, shift):
    """Set scale and shift of each channel so that they add a bias and apply a batch norm; either may be empty."""
    for o in range(scale.size):
        factor = 1 / (var[o] + eps) ** 0.5
        if weight.size:
            factor *= weight[o]
        centre = (bias[o] if bias.size else 0.0) - mean[o]
        scale[o] = factor
        shift[o] = centre * factor + (add[o] if add.size else 0.0)


@compiled
def _inside(layout, axis, phase, origin):
    """Return the first place of a phase that is a pixel, its pixel, and how many there are from there on."""
    stride, before = layout[axis + STRIDE], layout[axis + BEFORE] - origin * layout[axis + STRIDE] - phase
    first = max(0, (before + stride - 1) // stride)
    pixel = first * stride - before
    count = (layout[axis + SIZE] - 1 - pixel) // stride + 1
    return first, pixel, max(0, min(count, layout[axis + PLACES] - first))


@by_address("nxninnnx")
def lay(copy, x, x0, layout, z0, y0, images, xs):
    """Sort the pixels of the images at x0, of the channels of a group, into planes, with zeros around them."""
    channels, stack, pitch = layout[SUMS] // (layout[PHASES] * layout[PLANE]), layout[IMAGES], layout[_Y + STEP]
    pitch //= stack
    width, lines, stride = layout[_X + SIZE], layout[_Y + SIZE], layout[_X + STRIDE]
    pixels = layout[_Z + SIZE] * lines * width
    step = layout[_Y + STEP]
    origins = (z0, y0, z0 - z0)
    spans = np.empty((3, 3), np.int64)
    for c in range(channels):
        for k in range(layout[PHASES]):
            at = HEADER + 3 * AXIS + 3 * k
            for axis in range(3):  # one call, as each is compiled for its types
                first, pixel, many = _inside(layout, HEADER + axis * AXIS, layout[at + axis], origins[axis])
                spans[axis, 0], spans[axis, 1], spans[axis, 2] = first, pixel, many
            tz, pz, nz = spans[0, 0], spans[0, 1], spans[0, 2]
            ty, py, ny = spans[1, 0], spans[1, 1], spans[1, 2]
            tx, px, nx = spans[2, 0], spans[2, 1], spans[2, 2]
            plane = (c * layout[PHASES] + k) * layout[PLANE]
            for j in range(plane, plane + layout[PLANE] * layout[PADDED]):
                xs[j] = 0
            for i in range(images):
                source = x0 + (i * layout[C] + c) * pixels
                for z in range(nz):
                    begin = source + ((pz + z * layout[_Z + STRIDE]) * lines + py) * width + px
                    target = plane + (tz + z) * layout[_Z + STEP] + ty * step + i * pitch + tx
                    down = layout[_Y + STRIDE] * width
                    every(copy, x, begin, down, stride, x[:0], xs, target, step, 1, ny, nx)


@compiled
def convolve(calls, x, w, scale, shift, residual, low, high, y, layout, first, last, xs):
    """Do jobs first .. last - 1: y = clip(convolution * scale + shift + residual, low, high).

    Parameters
    ----------
    calls : addresses of `lay`, `every`, `multiply` and `affine`.
    scale, shift : of each output channel, or one for all.
    residual : of the shape of y, or empty.
    """
    n, c, o, groups = layout[N], layout[C], layout[F], layout[GROUPS]
    cg, og, count, blocks, bands = c // groups, o // groups, layout[COUNT], layout[BLOCKS], layout[BANDS]
    at = HEADER + 3 * AXIS + 3 * layout[PHASES]
    shifts, columns = layout[at : at + count], layout[at + count : at + 2 * count]
    pixels = layout[_Z + SIZE] * layout[_Y + SIZE] * layout[_X + SIZE]
    out_y, out_x = layout[_Y + OUT], layout[_X + OUT]
    outputs = layout[_Z + OUT] * out_y * out_x
    width = layout[WIDTH]
    stack, pitch = layout[IMAGES], layout[_Y + STEP] // layout[IMAGES]
    sums, in_place, direct = layout[SUMS], layout[IN_PLACE], layout[DIRECT]
    for job in range(first, last):
        rest, block = divmod(job, blocks)
        rest, g = divmod(rest, groups)
        part, band = divmod(rest, bands)
        n0 = n * part // layout[STACKS]
        images = n * (part + 1) // layout[STACKS] - n0
        line0 = band * layout[BAND]
        lines = min(layout[BAND], layout[HEADER + layout[BAND_AXIS] * AXIS + OUT] - line0)
        z0, y0, nz, ny = 0, line0, layout[_Z + OUT], lines
        if layout[BAND_AXIS] == 0:
            z0, y0, nz, ny = line0, 0, lines, out_y
        image = (n0 * c + g * cg) * pixels
        if not in_place and (job == first or block == 0):
            lay(calls[0], calls[1], x, image, layout, z0, y0, images, xs)
        length = (nz - 1) * layout[_Z + STEP] + (ny - 1) * layout[_Y + STEP] + (stack - 1) * pitch + out_x
        begin = g * og + block * layout[BLOCK]
        end = min(g * og + og, begin + layout[BLOCK])
        to = n0 * o * outputs + (z0 * out_y + y0) * out_x
        source, source0 = (x, image) if in_place else (xs, image - image)
        results, step = (y, outputs) if direct else (xs, width)
        for row0 in range(begin, end, layout[SUM_ROWS]):
            stop = min(row0 + layout[SUM_ROWS], end)
            place = length - length
            while place < length:
                p, vectors, place = next_strip(place, length, x.itemsize)
                for row in range(row0, stop, ROWS):
                    rows = min(ROWS, stop - row)
                    at = (to + row * outputs if direct else sums + (row - row0) * width) + p
                    multiply(
                        calls[2], source, source0 + p, shifts, w, row * count, count, columns, count, results, at, step,
                        rows, vectors * (BYTES // x.itemsize),
                    )  # fmt: skip
                    if direct:
                        affine(
                            calls[3], y, at, step, scale, shift, row, 1, residual, low, high, y, at, step, rows,
                            vectors * (BYTES // x.itemsize),
                        )  # fmt: skip
            if direct:
                continue
            for row in range(row0, stop):
                for i in range(images):
                    at, target = sums + (row - row0) * width + i * pitch, to + (i * o + row) * outputs
                    for z in range(nz):
                        affine(
                            calls[3], xs, at + z * layout[_Z + STEP], layout[_Y + STEP], scale, shift, row, 0,
                            residual, low, high, y, target + z * out_y * out_x, out_x, ny, out_x,
                        )  # fmt: skip

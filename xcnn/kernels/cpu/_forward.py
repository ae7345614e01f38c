"""The compiled passes of a convolution: lay out, multiply, write. `conv.py` calls them, `_stacks.py` lays out.

Names: z, y, x count along the three axes; g groups, n images, c channels, o output channels.
"""

from xcnn.kernels.cpu._compile import by_address, compiled
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply, next_strip
from xcnn.kernels.cpu._simd import BYTES

from xcnn.kernels.cpu._stacks import (  # isort: skip
    AXIS, BAND, BAND_AXIS, BANDS, BLOCK, BLOCKS, COUNT, DIRECT, GROUPS, HEADER, IMAGES, IN_PLACE, OUT, PADDED,
    PHASES, PLANE, ROWS, SIZE, STACKS, STEP, STRIDE, SUM_ROWS, SUMS, WIDTH, C, F, N,
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


@by_address("nxninnx")
def lay(copy, x, x0, layout, band, images, xs):
    """Sort the pixels of the images at x0, of the channels of a group, into planes, with zeros around them."""
    phases, plane, stack = layout[PHASES], layout[PLANE], layout[IMAGES]
    lines, width, down = layout[_Y + SIZE], layout[_X + SIZE], layout[_Y + STRIDE] * layout[_X + SIZE]
    step, pixels = layout[_Y + STEP], layout[_Z + SIZE] * lines * width
    for j in range(layout[SUMS] * layout[PADDED]):
        xs[j] = 0
    spans = HEADER + 3 * AXIS + 2 * layout[COUNT] + band * phases * 9
    for c in range(layout[SUMS] // (phases * plane)):
        for k in range(phases):
            at = spans + 9 * k
            for i in range(images):
                for z in range(layout[at + 2]):
                    line = (layout[at + 1] + z * layout[_Z + STRIDE]) * lines + layout[at + 4]
                    every(
                        copy, x, x0 + (i * layout[C] + c) * pixels + line * width + layout[at + 7], down,
                        layout[_X + STRIDE], x[:0], xs,
                        (c * phases + k) * plane + (layout[at] + z) * layout[_Z + STEP] + layout[at + 3] * step
                        + i * (step // stack) + layout[at + 6], step, 1, layout[at + 5], layout[at + 8],
                    )  # fmt: skip


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
    at = HEADER + 3 * AXIS
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
            lay(calls[0], calls[1], x, image, layout, band, images, xs)
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

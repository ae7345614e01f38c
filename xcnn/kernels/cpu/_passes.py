"""The compiled passes of a convolution over some images: lay out, multiply, write. `conv.py` calls them.

Names: x0, dy0, ... are start offsets; cg, og channels per group; K the number of products summed for one output,
channels times taps.
"""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._planes import BEFORE, OUT, SIZE, STEP, STRIDE
from xcnn.kernels.cpu._simd import PRODUCT_BLOCKS, shifted_product

__all__ = ["convolve", "lay", "pack", "product", "spans"]

_R0, _R1, _R2, _R3 = (rows for rows, _ in PRODUCT_BLOCKS)
_P0, _P1, _P2, _P3 = (shifted_product(*block) for block in PRODUCT_BLOCKS)


@compiled
def pack(weight, packed):
    """Copy weight (g, og, K) as `product` reads it: blocks of rows o, in each the K columns of its rows."""
    groups, og, count = weight.shape
    at = 0
    for g in range(groups):
        r = 0
        for size in (_R0, _R1, _R2, _R3):
            while r + size <= og:
                for i in range(size):
                    source = weight[g, r + i]
                    for k in range(count):
                        packed[at + k * size + i] = source[k]
                r += size
                at += size * count


@compiled
def product(x, x0, shifts, w, w0, y, step, rows, length):
    """Set y (rows, step) to the packed matrix times the shifted x."""
    count = shifts.size
    b0 = rows // _R0
    _P0(x, x0, shifts, count, w, w0, y, 0, step, b0, length)
    r = b0 * _R0
    b1 = (rows - r) // _R1
    _P1(x, x0, shifts, count, w, w0 + r * count, y, r * step, step, b1, length)
    r += b1 * _R1
    b2 = (rows - r) // _R2
    _P2(x, x0, shifts, count, w, w0 + r * count, y, r * step, step, b2, length)
    r += b2 * _R2
    _P3(x, x0, shifts, count, w, w0 + r * count, y, r * step, step, (rows - r) // _R3, length)


@compiled
def _span(axis, phase):
    """Return the first place of a phase that is a pixel, its pixel, and how many there are."""
    first = max(0, -((phase - axis[BEFORE]) // axis[STRIDE]))
    pixel = first * axis[STRIDE] + phase - axis[BEFORE]
    return first, pixel, (axis[SIZE] - 1 + axis[BEFORE] - phase) // axis[STRIDE] - first + 1


@compiled
def spans(axes, phase):
    """Return the span of a phase along each axis; phases are counted with the last axis running fastest."""
    rest, px = divmod(phase, axes[2, STRIDE])
    pz, py = divmod(rest, axes[1, STRIDE])
    return _span(axes[0], pz), _span(axes[1], py), _span(axes[2], px)


@compiled
def lay(image, axes, plane, xs, x0):
    """Sort the pixels of an image (c, d, h, w) into the planes of x, c * phases of them."""
    for c in range(image.shape[0]):
        for phase in range(axes[0, STRIDE] * axes[1, STRIDE] * axes[2, STRIDE]):
            (tz, z, nz), (ty, y, ny), (tx, x, nx) = spans(axes, phase)
            for i in range(nz):
                for j in range(ny):
                    at = x0 + (tz + i) * axes[0, STEP] + (ty + j) * axes[1, STEP] + tx
                    target = xs[at : at + nx]
                    source = image[c, z + i * axes[0, STRIDE], y + j * axes[1, STRIDE]][x:]
                    if axes[2, STRIDE] == 1:  # this becomes a vector copy
                        for k in range(nx):
                            target[k] = source[k]
                    else:
                        for k in range(nx):
                            target[k] = source[k * axes[2, STRIDE]]
            x0 += plane


@compiled
def _write(ys, step, axes, bias, relu, y):
    """Write the rows of outputs to y (o, od, oh, ow), adding the bias and applying ReLU."""
    zero = ys.dtype.type(0)
    for o in range(y.shape[0]):
        b = bias[o] if bias.size else zero
        for i in range(axes[0, OUT]):
            for j in range(axes[1, OUT]):
                at = o * step + i * axes[0, STEP] + j * axes[1, STEP]
                source = ys[at : at + axes[2, OUT]]
                target = y[o, i, j]
                if relu:
                    for k in range(axes[2, OUT]):
                        value = source[k] + b
                        target[k] = zero if value <= zero else value
                else:
                    for k in range(axes[2, OUT]):
                        target[k] = source[k] + b


@compiled
def convolve(x, weights, bias, y, axes, plane, phases, length, shifts, groups, relu, first, last, xs, ys):
    """Convolve images first .. last - 1."""
    cg, og, count = x.shape[1] // groups, y.shape[1] // groups, shifts.size
    step = ys.size // og
    for n in range(first, last):
        for g in range(groups):
            lay(x[n, g * cg : (g + 1) * cg], axes, plane, xs, 0)
            product(xs, 0, shifts, weights, g * og * count, ys, step, og, length)
            _write(ys, step, axes, bias[g * og : (g + 1) * og], relu, y[n, g * og : (g + 1) * og])

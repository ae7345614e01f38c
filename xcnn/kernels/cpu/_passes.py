"""Compiled passes of the gradients of a convolution: lay out and multiply. `_gradients.py` calls them.

Names: x0, dy0, ... are start offsets; cg, og channels per group; K the number of products summed for one output,
channels times taps.
"""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._planes import BEFORE, SIZE, STEP, STRIDE
from xcnn.kernels.cpu._simd import PRODUCT_BLOCKS, shifted_product

__all__ = ["lay", "product", "spans"]

_R0, _R1, _R2, _R3 = (rows for rows, _ in PRODUCT_BLOCKS)
_P0, _P1, _P2, _P3 = (shifted_product(*block) for block in PRODUCT_BLOCKS)


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

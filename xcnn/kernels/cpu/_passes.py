"""The compiled pass that lays out the planes of `_planes.py`."""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._planes import BEFORE, SIZE, STEP, STRIDE

__all__ = ["lay"]


@compiled
def _span(axis, phase):
    """Return the first place of a phase that is a pixel, its pixel, and how many there are."""
    first = max(0, -((phase - axis[BEFORE]) // axis[STRIDE]))
    pixel = first * axis[STRIDE] + phase - axis[BEFORE]
    return first, pixel, (axis[SIZE] - 1 + axis[BEFORE] - phase) // axis[STRIDE] - first + 1


@compiled
def _spans(axes, phase):
    """Return the span of a phase along each axis; phases are counted with the last axis running fastest."""
    rest, px = divmod(phase, axes[2, STRIDE])
    pz, py = divmod(rest, axes[1, STRIDE])
    return _span(axes[0], pz), _span(axes[1], py), _span(axes[2], px)


@compiled
def lay(image, axes, plane, xs, x0):
    """Sort the pixels of an image (c, d, h, w) into the planes of x, c * phases of them."""
    for c in range(image.shape[0]):
        for phase in range(axes[0, STRIDE] * axes[1, STRIDE] * axes[2, STRIDE]):
            (tz, z, nz), (ty, y, ny), (tx, x, nx) = _spans(axes, phase)
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

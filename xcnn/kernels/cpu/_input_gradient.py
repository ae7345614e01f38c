"""The compiled pass of a bias gradient."""

from xcnn.kernels.cpu._compile import summing
from xcnn.kernels.cpu._sums import BLOCK

__all__ = ["bias_gradient"]

@summing
def bias_gradient(dy, y, out, pixels, first, last):
    """Set rows first .. last - 1 of out to the sums of dy's maps, where y is not 0 if it is not empty."""
    zero = dy.dtype.type(0)
    for i in range(first, last):
        total = zero
        for at in range(i * pixels, (i + 1) * pixels, BLOCK):
            source, part = dy[at : min(at + BLOCK, (i + 1) * pixels)], zero
            if y.size:
                mask = y[at : min(at + BLOCK, (i + 1) * pixels)]
                for k in range(source.size):
                    part += source[k] if mask[k] != zero else zero
            else:
                for k in range(source.size):
                    part += source[k]
            total += part
        out[i] = total

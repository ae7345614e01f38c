"""The product of a matrix and shifted vectors: strip by strip of pixels, all rows of each.

    y[y0 + i * step + j] = sum over k of w[w0 + i * row + offsets[k]] * x[x0 + shifts[k] + j]    i < rows, j < length

The matrix lies anywhere: its rows are `row` apart, and column k is at `offsets[k]`. So a convolution reads its weights,
or their transpose, where they are. If `row` is negative, row i begins at `offsets[i - row]`, so rows lie anywhere, too.
Vector k is x from `shifts[k]` on, a plane of pixels or a row of another matrix.

Indices count elements; bounds are not checked.
"""

from xcnn.kernels.cpu._compile import by_address
from xcnn.kernels.cpu._simd import BYTES, STRIP, strip

__all__ = ["multiply"]


@by_address("xnixnninxnnnn")
def multiply(x, x0, shifts, w, w0, row, offsets, count, y, y0, step, rows, length):
    """Set y as above, for k < `count`. If `length` is less than a vector, whole ones are read and written."""
    lanes, at = BYTES // x.itemsize, length - length
    while at < length:
        vectors, first = (length - at + lanes - 1) // lanes, at
        if vectors > STRIP:
            vectors = STRIP
        elif vectors * lanes <= length:  # some pixels are computed twice, with the same result
            first = length - vectors * lanes
        elif vectors > 1:
            vectors -= 1
        strip(x, x0 + first, shifts, w, w0, row, offsets, count, y, y0 + first, step, rows, vectors)
        at = first + vectors * lanes

"""The product of a matrix and shifted vectors: strip by strip of pixels, all rows of each.

    y[y0 + i * step + j] = sum over k of w[w0 + i * row + offsets[k]] * x[x0 + shifts[k] + j]    i < rows, j < length

The matrix lies anywhere: its rows are `row` apart, and column k is at `offsets[k]`. So a convolution reads its weights,
or their transpose, where they are. If `row` is negative, row i begins at `offsets[i - row]`, so rows lie anywhere, too.
Vector k is x from `shifts[k]` on, a plane of pixels or a row of another matrix.

Indices count elements; bounds are not checked.
"""

from xcnn.kernels.cpu._compile import by_address
from xcnn.kernels.cpu._simd import next_strip, strip

__all__ = ["multiply", "next_strip"]


@by_address("xnixnninxnnnn")
def multiply(x, x0, shifts, w, w0, row, offsets, count, y, y0, step, rows, length):
    """Set y as above, for k < `count`. If `length` is less than a vector, whole ones are read and written."""
    at = length - length
    while at < length:
        first, vectors, at = next_strip(at, length, x.itemsize)
        strip(x, x0 + first, shifts, w, w0, row, offsets, count, y, y0 + first, step, rows, vectors)

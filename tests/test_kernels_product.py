"""The product of a matrix and shifted vectors, against NumPy; it must neither read nor write beyond the pixels."""

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from xcnn.kernels.cpu._product import STRIP, TERMS, multiply
from xcnn.kernels.cpu._vectors import BYTES


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 7, TERMS + 1])
def test_products_of_all_sizes(dtype: str, count: int) -> None:
    rng = np.random.default_rng(0)
    size = np.dtype(dtype).itemsize
    lanes, product = BYTES // size, multiply(size)
    for rows in (0, 1, 2, 3, 5, 8, 13, 23):
        edges = lanes - 1, lanes, lanes + 1, 3 * lanes - 1, STRIP * lanes - 5, STRIP * lanes, STRIP * lanes + 1
        for length in (0, 1, *edges, (STRIP + 1) * lanes, (STRIP + 1) * lanes + 1, 200):
            shifts = rng.integers(0, 500, count)
            x = np.full(503 + max(length, lanes), np.nan, dtype)  # NaN where no product may read
            x[3 : 503 + length] = rng.standard_normal(500 + length)
            w = rng.standard_normal((count, 31)).astype(dtype)  # column k of the matrix is row k of w, from 4 on
            y = np.full((rows, 300), 9, dtype)
            offsets = np.arange(count) * 31
            product(x, 3, shifts, w, 4, 1, offsets, count, y, 2, 300, rows, length)
            pixels = np.array([x[3 + shift : 3 + shift + length] for shift in shifts]).reshape(count, length)
            expected = w[:, 4 : 4 + rows].T.astype(np.float64) @ pixels
            tolerance = 1e-4 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(y[:, 2 : 2 + length], expected, rtol=tolerance, atol=tolerance)
            if length >= lanes or length == 0:
                assert (np.delete(y, np.s_[2 : 2 + length], axis=1) == 9).all()
            # The same rows, in a table behind the offsets, from the last to the first.
            again, table = np.full_like(y, 9), np.concatenate([offsets, [0], np.arange(4, 4 + rows)[::-1]])
            product(x, 3, shifts, w, 0, -count - 1, table, count, again, 2, 300, rows, length)
            np.testing.assert_array_equal(again[::-1, 2 : 2 + length], y[:, 2 : 2 + length])

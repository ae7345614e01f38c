"""The kernels of `linear` and what follows it: accuracy, edges of blocks, threads."""

import math
from typing import Any

import numpy as np
import pytest

from xcnn import ops
from xcnn._dispatch import kernels, portable
from xcnn.ops.linear import linear_inference
from xcnn.threads import get_num_threads, set_num_threads

pytest.importorskip("llvmlite")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("sizes", [(10, 84), (1, 1 << 16), (1 << 16, 1), (129, 513), (257, 256)], ids=str)
@pytest.mark.parametrize("alike", [False, True], ids=["drawn", "alike"])
def test_products_are_accurate_however_many_terms_they_have(
    sizes: tuple[int, int], rows: int, dtype: str, alike: bool
) -> None:
    rng = np.random.default_rng(0)
    x, dy = (np.full((rows, n), 0.1) if alike else rng.standard_normal((rows, n)) for n in reversed(sizes))
    weight, bias = np.full(sizes, 0.1) if alike else rng.standard_normal(sizes), rng.standard_normal(sizes[0])
    x, weight, bias, dy = (a.astype(dtype) for a in (x, weight, bias, dy))
    y, backward = ops.linear(x, weight, bias)
    wide = [a.astype(np.longdouble) for a in (x, weight, bias, dy)]
    wanted = [wide[0] @ wide[1].T + wide[2], wide[3] @ wide[1], wide[3].T @ wide[0], wide[3].sum(axis=0)]
    x, weight, bias, dy = map(np.abs, wide)
    scales = [x @ weight.T + bias, dy @ weight, dy.T @ x, dy.sum(axis=0)]
    for actual, exact, scale, terms in zip(
        (y, *backward(dy=wide[3].astype(dtype))), wanted, scales, (sizes[1] + 1, sizes[0], rows, rows), strict=True
    ):
        assert (actual.dtype, actual.shape) == (dtype, exact.shape)
        assert np.all(np.abs(actual - exact) <= (2 + 2 * math.sqrt(terms)) * np.finfo(dtype).eps * scale)


@pytest.mark.parametrize("rows", [1, 5])
def test_strided_and_read_only_arrays_have_the_products_of_their_copies(rows: int) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((rows, 14))[:, ::2], rng.standard_normal((7, 6)).T, rng.standard_normal(6)
    for array in (x, weight, bias):
        array.flags.writeable = False
    dy = rng.standard_normal((6, rows)).T
    y, backward = ops.linear(x, weight, bias, activation="relu")
    np.testing.assert_allclose(y, np.maximum(np.einsum("ni,oi->no", x, weight) + bias, 0), rtol=1e-12)
    dx, dweight, dbias = backward(dy)
    slope = dy * (y > 0)
    np.testing.assert_allclose(dx, np.einsum("no,oi->ni", slope, weight), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dweight, np.einsum("no,ni->oi", slope, x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dbias, slope.sum(axis=0), rtol=1e-12, atol=1e-14)


def test_what_is_not_finite_stays_so_in_its_row() -> None:
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    x[0, 1] = np.nan
    y, backward = ops.linear(x, weight)
    assert np.isnan(y[0]).all()
    assert np.array_equal(y[1], [3, 3, 3, 3])
    dx, dweight, _ = backward(np.array([[1.0, 0, 0, 0], [np.inf, 0, 0, 0]]))
    assert np.array_equal(dx, [[1, 1, 1], [np.inf] * 3])
    assert np.isnan(dweight[:, 1]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "sizes", [(2, 9, 35), (9, 300, 101), (40, 5, 193), (1100, 130, 300), (150, 300, 1001)], ids=str
)
@pytest.mark.parametrize("activation", [("relu",), ("hardtanh", -1.0, 2.0), ("sigmoid",)], ids=lambda it: it[0])
def test_blocks_and_parts_have_the_results_of_portable_code(
    sizes: tuple[int, int, int], activation: tuple[Any, ...], dtype: str
) -> None:
    (n, i, o), rng = sizes, np.random.default_rng(0)
    draw: Any = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    x, weight, bias, mean, scale, shift, residual = draw(n, i), draw(o, i), *(draw(o) for _ in range(4)), draw(n, o)
    norm = mean, rng.uniform(0.5, 2, o).astype(dtype), scale, shift, 1e-3
    dy = draw(n, o)
    with portable(np):
        plain, plain_backward = ops.linear(x, weight, bias)
        for end in activation[1:] or (0.0,):
            dy[np.abs(plain - end) < 1e-3] = 0  # rounding decides on which side of an end they are
        wanted, slope = getattr(ops, activation[0])(plain, *activation[1:])
        after = linear_inference(np, x, weight, bias, norm, residual, activation)
        expected = [wanted, *plain_backward(slope(dy)[0]), after]

    def results() -> list[np.ndarray]:
        y, backward = ops.linear(x, weight, bias, activation)
        return [y, *backward(dy), linear_inference(np, x, weight, bias, norm, residual, activation)]

    threads = get_num_threads()
    try:
        set_num_threads(1)
        once = results()
        set_num_threads(3)
        assert all(np.array_equal(a, b) for a, b in zip(once, results(), strict=True))
    finally:
        set_num_threads(threads)
    eps = np.finfo(dtype).eps
    for actual, exact, terms in zip(once, expected, (i, o, n, n, i), strict=True):
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, exact, rtol=1e3 * eps, atol=40 * eps * terms)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shapes",
    [((2, 3, 5, 9), (2, 3, 9, 70)), ((3, 1, 40, 300), (4, 300, 3)), ((6, 7), (2, 2, 7, 33)), ((90, 257), (257, 1))],
    ids=str,
)
def test_stacks_of_matrices_have_the_products_of_portable_code(shapes: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, other = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    with portable(np):
        wanted, wanted_backward = ops.matmul(x, other)
    dy = rng.standard_normal(wanted.shape).astype(dtype)
    for strided in (False, True):
        if strided:
            x, other = (np.repeat(a, 2, axis=-1)[..., ::2] for a in (x, other))
        y, backward = ops.matmul(x, other)
        for actual, exact in zip((y, *backward(dy)), (wanted, *wanted_backward(dy)), strict=True):
            assert actual.dtype == dtype
            np.testing.assert_allclose(actual, exact, rtol=0, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize(("count", "size", "taken"), [(64, 3, True), (65, 3, False), (65, 16, True)])
def test_many_small_matrices_are_left_to_portable_code(count: int, size: int, taken: bool) -> None:
    x = np.ones((count, size, size), np.float32)
    (kernel,) = (one for one in kernels(np)["matmul"] if one.__module__ == "xcnn.kernels.cpu.linear")
    assert (kernel(x, x) is not NotImplemented) == taken
    np.testing.assert_array_equal(ops.matmul(x, x)[0], np.full(x.shape, size, np.float32))


@pytest.mark.parametrize("rows", [1, 20, 64])
def test_few_columns_are_computed_twice(rows: int) -> None:
    """The last panel of columns is as wide as the others, and computes some of those of the panel before again."""
    from xcnn.kernels.cpu._matrices import Product, table
    from xcnn.kernels.cpu._vectors import BYTES

    lanes = BYTES // 4
    for vectors in range(1, 33):
        n = vectors * lanes
        steps = (1, 256) if rows == 1 else (n, 1)
        for part in table(4, Product((0, 256, 1), (1, *steps), 2, rows, n, 256, bare=False)).table.tolist():
            columns, width = part[-7], part[-3]
            assert -(-columns // width) * width <= columns + lanes * (rows > 1)

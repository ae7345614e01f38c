"""Branches of the kernels for windows, interpolation and dropout that the samples of the ops do not reach."""

from collections.abc import Iterator

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable

pytest.importorskip("numba")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = threads.get_num_threads()
    threads.set_num_threads(3)
    yield
    threads.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 16_384, 65_536, 65_537, 200_001])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_draws_the_numbers_of_the_portable_code(three_threads: None, p: float, size: int, dtype: str) -> None:
    """Twice, as an odd size leaves half of 64 bits for the next call; then the generators give equal numbers."""
    x = np.random.default_rng(1).standard_normal(size).astype(dtype)
    x[0] = np.inf
    kernels, body = np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(2):
        with np.errstate(invalid="ignore"):
            y, backward = ops.dropout(x, p, rng=kernels)
            with portable(np):
                wanted, portable_backward = ops.dropout(x, p, rng=body)
        np.testing.assert_array_equal(y, wanted)
        dy = np.random.default_rng(3).standard_normal(size).astype(dtype)
        np.testing.assert_array_equal(backward(dy)[0], portable_backward(dy)[0])
    np.testing.assert_array_equal(kernels.random(5, np.float32), body.random(5, np.float32))


def test_dropout_leaves_other_generators_to_the_portable_code() -> None:
    x = np.ones(100_000, np.float32)
    streams = [np.random.Generator(np.random.Philox(1)) for _ in range(2)]
    y = ops.dropout(x, 0.5, rng=streams[0])[0]
    np.testing.assert_array_equal(y != 0, streams[1].random(x.shape, np.float32) >= 0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((2, 21, 5, 7), (0, 2, 3, 1)),
        ((3, 5, 7, 40), (0, 3, 1, 2)),
        ((33, 50), (1, 0)),
        ((2, 3, 17, 18, 19), (4, 0, 2, 3, 1)),
        ((2, 3, 4, 5, 2, 3, 2), (6, 5, 4, 3, 2, 1, 0)),
        ((1, 7, 1, 9), (3, 2, 1, 0)),
        ((3, 0, 2), (2, 1, 0)),
    ],
)
def test_permute_puts_numbers_where_numpy_does(shape: tuple[int, ...], dims: tuple[int, ...], dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y, backward = ops.permute(x, dims)
    np.testing.assert_array_equal(y, np.transpose(x, dims))
    np.testing.assert_array_equal(backward(np.ascontiguousarray(y))[0], x)
    np.testing.assert_array_equal(ops.permute(x[..., ::-1], dims)[0], np.transpose(x[..., ::-1], dims))

"""The kernel of ReLU when it is cut into parts, and for NaN."""

import numpy as np
import pytest

from xcnn import ops, threads

pytest.importorskip("numba")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_does_not_depend_on_the_number_of_threads(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 400_001)).astype(dtype)
    dy, before = x[::-1] + 1, threads.get_num_threads()
    for n in (1, 3):
        threads.set_num_threads(n)
        y, backward = ops.relu(x)
        assert np.array_equal(y, np.maximum(x, 0))
        assert np.array_equal(backward(dy)[0], np.where(x > 0, dy, 0))
    threads.set_num_threads(before)


def test_relu_keeps_nan_and_stops_an_infinite_gradient() -> None:
    y, backward = ops.relu(np.array([np.nan, np.inf, -np.inf, -1.0, 0.0]))
    assert np.array_equal(y, [np.nan, np.inf, 0.0, 0.0, 0.0], equal_nan=True)
    assert np.array_equal(backward(np.full(5, np.inf))[0], [np.inf, np.inf, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_gradient_of_elu_keeps_its_digits_far_below_zero(alpha: float) -> None:
    x = -np.logspace(-6, 1.9, 200, dtype=np.float32)
    _, backward = ops.elu(x, alpha)
    wanted = alpha * np.exp(x.astype(np.float64))
    error = np.abs(backward(np.ones_like(x))[0] - wanted) / wanted
    assert error.max() <= 3 * np.finfo(np.float32).eps


def test_elu_of_nan_and_infinities() -> None:
    y, backward = ops.elu(np.array([np.nan, np.inf, -np.inf]))
    assert np.array_equal(y, [np.nan, np.inf, -1.0], equal_nan=True)
    assert np.array_equal(backward(np.ones(3))[0], [np.nan, 1.0, 0.0], equal_nan=True)

"""Softmax and its logarithm along any axis, against the portable code."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable

pytest.importorskip("llvmlite")

CALLS: Any = [
    ((64, 10), -1),
    ((7, 131), 1),
    ((3, 4, 5, 17), -1),
    ((2, 5, 9, 13), 1),
    ((2, 3, 1100), 1),  # long lines of pixels
    ((600,), 0),
    ((1, 5, 40, 40), 0),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_all_axes_agree_with_the_portable_code(name: str, dtype: str) -> None:
    rng, eps, op = np.random.default_rng(0), np.finfo(dtype).eps, getattr(ops, name)
    for (shape, dim), scale in itertools.product(CALLS, (1.0, 1e3)):
        x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        x *= np.asarray(scale, dtype)
        x.flags.writeable = False
        for one in (x, np.asfortranarray(x)):
            with portable(np):
                wanted, wanted_backward = op(x, dim)
            y, backward = op(one, dim)
            assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(y, wanted, rtol=32 * eps, atol=32 * eps)
            dx = backward(dy)[0]
            np.testing.assert_allclose(dx, wanted_backward(dy)[0], rtol=256 * eps, atol=256 * eps * math.sqrt(x.size))
            assert backward(dy, (False,)) == (None,)


@pytest.mark.parametrize("shape", [(32, 20), (2, 20, 16)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_special_values_stay_in_their_example(name: str, shape: Any) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    for i, value in enumerate([math.nan, math.inf, -math.inf]):
        x[(0, 3, i) if len(shape) == 3 else (i, 3)] = value
    x[(slice(None), slice(None), -1) if len(shape) == 3 else -1] = -math.inf
    with portable(np):
        wanted, wanted_backward = getattr(ops, name)(x, 1)
    y, backward = getattr(ops, name)(x, 1)
    np.testing.assert_allclose(y, wanted, rtol=1e-14)
    np.testing.assert_allclose(
        backward(np.ones_like(x))[0], wanted_backward(np.ones_like(x))[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("shape", "dim"), [((3000, 40), 1), ((3, 5, 33_000), 1), ((400, 30, 20), 1)])
def test_results_do_not_depend_on_the_number_of_threads(shape: Any, dim: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    before, results = threads.get_num_threads(), []
    for n in (1, 3):
        threads.set_num_threads(n)
        y, backward = ops.softmax(x, dim)
        results.append((y, backward(x)[0]))
    threads.set_num_threads(before)
    for one, another in zip(*results, strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize("pixels", [1, 2])
def test_sums_of_many_numbers_have_few_rounding_errors(pixels: int) -> None:
    """Equal terms are rounded alike, so that errors would add up."""
    n = 1_000_000 // pixels
    x = np.full((1, n, pixels), -0.1)
    x[:, 0] = 0
    wanted = 1 / (1 + (n - 1) * np.exp(np.longdouble(-0.1)))
    y, _ = ops.softmax(x, 1)
    np.testing.assert_allclose(y[0, 0], float(wanted), rtol=n**0.5 * 2.3e-16)

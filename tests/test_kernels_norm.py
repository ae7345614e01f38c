"""The kernel of batch norm against float64 and against the portable code, with any number of threads."""

from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable
from xcnn.ops.norm import norm_inference

pytest.importorskip("numba")


def draw(shape: tuple[int, ...], dtype: Any, centre: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    c = shape[1]
    arrays = {
        "x": centre + rng.standard_normal(shape),
        "running_mean": rng.standard_normal(c),
        "running_var": rng.uniform(0.5, 2, c),
        "weight": rng.standard_normal(c),
        "bias": rng.standard_normal(c),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}, rng.standard_normal(shape).astype(dtype)


def run(arrays: dict[str, np.ndarray], dy: np.ndarray, training: bool) -> list[np.ndarray]:
    results, backward = ops.batch_norm(**arrays, training=training)
    return [*results, *(gradient for gradient in backward(dy) if gradient is not None)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5), (4, 5, 2, 1), (3, 2, 7, 9), (2, 70, 4, 4)])
def test_results_equal_those_of_the_portable_code(shape: tuple[int, ...], training: bool) -> None:
    arrays, dy = draw(shape, np.float64)
    with portable(np):
        wanted = run(arrays, dy, training)
    for actual, expected in zip(run(arrays, dy, training), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("centre", [0.0, 100.0, -3000.0])
def test_float32_loses_no_digits_far_from_zero(centre: float) -> None:
    arrays, dy = draw((32, 3, 16, 16), np.float32, centre)
    with portable(np):
        wanted = run({name: array.astype(np.float64) for name, array in arrays.items()}, dy.astype(np.float64), True)
    for actual, expected in zip(run(arrays, dy, True), wanted, strict=True):
        size = np.max(np.abs(expected)) * (1 + abs(centre))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * np.finfo(np.float32).eps * size)


@pytest.mark.parametrize("training", [True, False])
def test_it_does_not_depend_on_the_number_of_threads(training: bool) -> None:
    arrays, dy = draw((32, 32, 33, 31), np.float32)
    before, results = threads.get_num_threads(), []
    for n in (1, 3):
        threads.set_num_threads(n)
        results.append(run(arrays, dy, training))
    threads.set_num_threads(before)
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))


def test_statistics_that_change_later_do_not_change_the_gradients() -> None:
    arrays, dy = draw((4, 3, 5), np.float32)
    _, backward = ops.batch_norm(**arrays, training=False)
    wanted = backward(dy)
    arrays["running_mean"] += 1
    arrays["running_var"] += 1
    for actual, before in zip(backward(dy), wanted, strict=True):
        assert (actual is None and before is None) or np.array_equal(actual, before)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize(("adds", "activation"), [(False, None), (True, ("relu",)), (False, ("leaky_relu", 0.1))])
def test_inference_is_the_norm_by_running_statistics(rank: int, adds: bool, activation: Any) -> None:
    arrays, residual = draw((5, 3, *(4, 3, 2)[:rank]), np.float64)
    mean, var, weight = arrays["running_mean"], arrays["running_var"], arrays["weight"]
    for scale, shift in [(weight, arrays["bias"]), (weight, None), (None, arrays["bias"]), (None, None)]:
        ours = norm_inference(np, arrays["x"], (mean, var, scale, shift, 0.1), residual if adds else None, activation)
        (theirs, *_), _ = ops.batch_norm(
            arrays["x"],
            mean,
            var,
            scale,
            shift,
            False,
            0.1,
            0.1,
            residual if adds else None,
            activation,
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)

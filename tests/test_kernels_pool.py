"""Branches of the pooling kernels that the samples of the ops do not reach."""

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable

pytest.importorskip("llvmlite")


def both(name: str, x: np.ndarray, **options: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Run an op with and without kernels; return y and dx of each."""
    results = []
    dy = None
    for setting in (False, True):
        with portable(np) if setting else contextlib.nullcontext():
            y, backward = getattr(ops, name)(x, **options)
            dy = np.random.default_rng(1).standard_normal(y.shape).astype(x.dtype) if dy is None else dy
            results.append((y, backward(dy)[0]))
    return results


def draw(kind: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    if kind == "ties":
        return np.maximum(np.round(x), 0)
    if kind == "nan":
        x[rng.random(shape) < 0.3] = np.nan
    if kind == "infinite":
        x[rng.random(shape) < 0.6] = -np.inf
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "infinite"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 70), (3, 5, 7), (2, 2, 2, 3), (1, 1, 9, 33)])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 2, "stride": 1},
        {"kernel_size": 2, "ceil_mode": True},
        {"kernel_size": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": 2, "padding": (0, 1)},
    ],
)
def test_max_pool_is_the_portable_one_to_the_bit(
    options: dict[str, Any], shape: tuple[int, ...], kind: str, dtype: str
) -> None:
    (y, dx), (wanted_y, wanted_dx) = both("max_pool2d", draw(kind, shape, dtype), **options)
    np.testing.assert_array_equal(y, wanted_y)
    np.testing.assert_allclose(dx, wanted_dx, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


def test_a_window_without_pixels_has_no_maximum_and_no_gradient() -> None:
    for y, dx in both("max_pool1d", np.ones((1, 1, 1)), kernel_size=2, padding=1, dilation=2):
        assert y.tolist() == [[[-np.inf]]]
        assert dx.tolist() == [[[0.0]]]


def test_windows_too_large_for_a_byte_are_pooled_all_the_same() -> None:
    (y, dx), (wanted_y, wanted_dx) = both("max_pool2d", draw("normal", (1, 2, 20, 20), "float32"), kernel_size=16)
    assert np.array_equal(y, wanted_y)
    assert np.array_equal(dx, wanted_dx)


@pytest.mark.parametrize("shape", [(2, 3, 8, 70), (3, 5, 7), (2, 2, 2, 3)])
@pytest.mark.parametrize("divisor", [None, 3])
def test_average_pool_is_the_portable_one(shape: tuple[int, ...], divisor: int | None) -> None:
    x = draw("normal", shape, "float64")
    for actual, wanted in zip(*both("avg_pool2d", x, kernel_size=2, divisor_override=divisor), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("max_pool2d", {"kernel_size": 2}),
        ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg_pool2d", {"kernel_size": 2}),
        ("global_avg_pool", {}),
    ],
)
def test_pools_do_not_depend_on_the_number_of_threads(name: str, options: dict[str, Any]) -> None:
    x = draw("normal", (16, 32, 57, 58), "float32")
    before, results = threads.get_num_threads(), []
    for n in (1, 3):
        threads.set_num_threads(n)
        y, backward = getattr(ops, name)(x, **options)
        results.append((y, *backward(y)))
    threads.set_num_threads(before)
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))
    with portable(np):
        wanted, _ = getattr(ops, name)(x, **options)
    np.testing.assert_allclose(results[0][0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(16, 16), (15, 17)])
def test_the_last_position_of_a_large_window_may_win(sizes: tuple[int, int]) -> None:
    """The last of 256 positions is the byte that marks a window without pixels; the last of 255 is not."""
    x = draw("normal", (1, 2, 2 * sizes[0], 2 * sizes[1]), "float64")
    x[..., sizes[0] - 1 :: sizes[0], sizes[1] - 1 :: sizes[1]] = 10
    (y, dx), (wanted_y, wanted_dx) = both("max_pool2d", x, kernel_size=sizes)
    assert np.all(y == 10)
    assert np.array_equal(y, wanted_y)
    assert np.array_equal(dx, wanted_dx)


@pytest.mark.parametrize("name", ["max_pool1d", "avg_pool1d"])
def test_maps_may_have_gaps_between_their_numbers(name: str) -> None:
    """NumPy's `reshape(-1)` keeps the gaps if they are all alike."""
    x, dy = np.random.default_rng(0).standard_normal((2, 3, 4, 24))
    y, backward = getattr(ops, name)(x, 1)
    of_strided, strided_backward = getattr(ops, name)(np.repeat(x, 2, axis=-1)[..., ::2], 1)
    assert np.array_equal(of_strided, y)
    assert np.array_equal(*strided_backward(np.repeat(dy, 2, axis=-1)[..., ::2]), *backward(dy))


@pytest.mark.parametrize("sizes", [(1500, 1), (1, 300_000)])
def test_many_pixels_of_windows_do_not_fill_the_memory_with_their_places(sizes: tuple[int, int]) -> None:
    kernel, stride = ((750, 1), (1, 1)) if sizes[1] == 1 else ((1, 10), (1, 10))
    x = np.ones((1, 1, *sizes), np.float32)
    ops.max_pool2d(x[..., :10, :10], 1)  # loads and compiles
    tracemalloc.start()
    ops.max_pool2d(x, kernel, stride)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000

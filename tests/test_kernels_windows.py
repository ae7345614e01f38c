"""Branches of the kernels for windows, interpolation and dropout that the samples of the ops do not reach."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable

pytest.importorskip("llvmlite")


def test_no_table_of_all_pixels_is_kept_when_large_maps_are_resized() -> None:
    x = np.zeros((1, 1, 500, 600), np.float32)
    ops.interpolate(x[..., :300, :300], scale_factor=2)  # loads and compiles
    tracemalloc.start()
    y, _ = ops.interpolate(x, scale_factor=2)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2.5 * y.nbytes  # y, and half of that between two passes, twice


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = threads.get_num_threads()
    threads.set_num_threads(3)
    yield
    threads.set_num_threads(before)


def test_small_maps_are_not_resized_together_if_many_pixels_are_between_two_passes(three_threads: None) -> None:
    x = np.zeros((4, 4, 900, 1), np.float32)
    ops.interpolate(x[..., :40, :], size=(1, 40), mode="bilinear")  # loads and compiles
    tracemalloc.start()
    ops.interpolate(x, size=(1, 900), mode="bilinear")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 900 * 900 * x.itemsize


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


@pytest.mark.parametrize("size", [3, 150_000])
def test_concat_returns_numbers_in_the_byte_order_of_the_machine(size: int) -> None:
    """As NumPy does, however many there are."""
    x = np.ones((4, size), np.dtype(np.float32).newbyteorder())
    y = ops.concat([x, x], 1)[0]
    assert y.dtype == np.float32
    assert np.all(y == 1)


POOLS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("max_pool1d", (2, 3, 70), {"kernel_size": 5, "stride": 3, "padding": 2, "dilation": 2}),
    ("max_pool1d", (5, 1, 400), {"kernel_size": 300, "stride": 7}),
    ("max_pool2d", (2, 5, 9, 35), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max_pool2d", (2, 3, 6, 34), {"kernel_size": 2}),
    ("max_pool3d", (1, 5, 6, 7, 19), {"kernel_size": (2, 3, 3), "stride": (2, 1, 4), "padding": 1, "ceil_mode": True}),
    ("avg_pool1d", (3, 2, 80), {"kernel_size": 4, "stride": 3, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", (2, 3, 9, 35), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("avg_pool2d", (2, 3, 9, 35), {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", (2, 3, 9, 34), {"kernel_size": 2, "dilation": 2, "stride": 1, "padding": ((0, 1), (1, 0))}),
    ("avg_pool2d", (3, 2, 6, 34), {"kernel_size": 2}),
    ("avg_pool2d", (3, 2, 5, 7), {"kernel_size": (5, 7)}),
    ("avg_pool2d", (3, 2, 5, 6), {"kernel_size": (4, 6)}),
    ("avg_pool2d", (3, 2, 40, 40), {"kernel_size": 36, "stride": 2, "divisor_override": 3}),
    ("avg_pool3d", (1, 3, 4, 7, 19), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("adaptive_avg_pool2d", (2, 3, 9, 35), {"output_size": (4, 11)}),
    ("adaptive_avg_pool2d", (2, 3, 8, 36), {"output_size": (4, 9)}),
    ("adaptive_avg_pool3d", (2, 2, 3, 5, 4), {"output_size": (2, 7, 3)}),
    ("adaptive_max_pool2d", (2, 3, 9, 35), {"output_size": (4, 11)}),
    ("adaptive_max_pool2d", (2, 3, 8, 36), {"output_size": (4, 9)}),
    ("adaptive_max_pool3d", (2, 2, 3, 5, 4), {"output_size": (2, 7, 3)}),
    ("interpolate", (2, 3, 5, 40), {"size": (8, 21), "mode": "bilinear"}),
    ("interpolate", (2, 3, 5, 40), {"size": (13, 90), "mode": "nearest-exact"}),
    ("interpolate", (2, 1, 3, 5, 20), {"size": (5, 5, 41), "mode": "trilinear", "align_corners": True}),
    ("interpolate", (2, 3, 5, 40), {"size": (2, 40)}),
    ("interpolate", (2, 3, 5, 37), {"scale_factor": 2}),
    ("interpolate", (2, 3, 5, 20), {"size": (5, 10)}),
    # Of too few maps, or too large ones, to be turned:
    ("interpolate", (1, 1, 5, 40), {"size": (8, 21), "mode": "bilinear"}),
    ("interpolate", (1, 1, 5, 37), {"scale_factor": 2}),
    ("interpolate", (3, 3, 64, 65), {"size": (32, 90)}),
    ("interpolate", (3, 3, 90, 101), {"size": (99, 230), "mode": "bilinear"}),
]


def gradient(name: str, x: np.ndarray, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    y, backward = getattr(ops, name)(x, **options)
    return y, backward(np.random.default_rng(1).standard_normal(y.shape).astype(x.dtype))[0]


@pytest.mark.parametrize(("name", "shape", "options"), POOLS)
def test_windows_are_those_of_the_portable_code(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Also of a read-only view that is not contiguous."""
    x = np.random.default_rng(0).standard_normal(shape)
    x.flat[3] = np.inf if "max" in name else 3.0
    found = gradient(name, x, options)
    with portable(np):
        wanted = gradient(name, x, options)
    for actual, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    view = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    view.flags.writeable = False
    for actual, expected in zip(found, gradient(name, view, options), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("name", "shape", "options"), POOLS)
def test_no_bit_depends_on_the_parts_into_which_maps_are_divided(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    alone = gradient(name, x, options)
    monkeypatch.setattr(threads, "_PART_MICROSECONDS", 0.01)
    for actual, expected in zip(gradient(name, x, options), alone, strict=True):
        np.testing.assert_array_equal(actual, expected)

"""The kernels of convolution: a layout that random shapes seldom need, and no reads outside an array."""

import ctypes
import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_kernels_processes import run

from xcnn import ops
from xcnn._dispatch import portable
from xcnn.ops._window import window_axes

pytest.importorskip("llvmlite")


def test_each_phase_has_a_first_pixel_of_its_own() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in [(2, 2, 5, 1), (3, 2, 1, 2), (3,)])
    options: dict[str, Any] = {"stride": (1, 2), "padding": ((0, 0), (1, 2)), "dilation": (1, 3)}
    y, backward = ops.conv2d(x, weight, bias, **options)
    with portable(np):
        wanted, wanted_backward = ops.conv2d(x, weight, bias, **options)
    dy = rng.standard_normal(y.shape)
    for actual, expected in zip((y, *backward(dy)), (wanted, *wanted_backward(dy)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "groups", "stride", "padding"),
    [
        ((1, 52, 1, 2), 52, (2, 1), ((1, 0), (0, 0))),  # the only window of the only pixel is beside it
        ((2, 3, 4, 5), 1, (2, 1), ((0, 3), (0, 0))),  # as many windows as pixels, but not one for each
        ((2, 3, 4, 4), 1, 2, ((0, 3), (0, 3))),
        ((1, 3, 43), 1, 4, ((0, 126),)),
    ],
)
def test_an_axis_without_windows_is_one_of_which_each_pixel_has_its_own(
    shape: tuple[int, ...], groups: int, stride: Any, padding: Any
) -> None:
    rng, convolve = np.random.default_rng(0), ops.conv1d if len(shape) == 3 else ops.conv2d
    x, weight = rng.standard_normal(shape), rng.standard_normal((shape[1], shape[1] // groups, *(1,) * len(shape[2:])))
    y, backward = convolve(x, weight, None, stride, padding, groups=groups)
    with portable(np):
        wanted, wanted_backward = convolve(x, weight, None, stride, padding, groups=groups)
    dy = rng.standard_normal(y.shape)
    for actual, expected in zip((y, *backward(dy)[:2]), (wanted, *wanted_backward(dy)[:2]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_tiles_that_are_not_finite_are_computed_directly(value: float) -> None:
    """As the differences of large pixels may be infinite, and those of infinite ones are NaN."""
    rng = np.random.default_rng(0)
    x, weight, dy = (
        rng.uniform(-0.1, 0.1, shape).astype("f4") for shape in [(3, 32, 16, 16), (32, 32, 3, 3), (3, 32, 16, 16)]
    )
    for changed in (x, dy):
        changed[1, 2, 5, 6:9], changed[2, 4, 15, 15] = (value, 0, -value), value
    y, backward = ops.conv2d(x, weight, None, padding=1)
    actuals = y, backward(dy)[0]
    with portable(np), np.errstate(invalid="ignore", over="ignore"):
        wanted, wanted_backward = ops.conv2d(x, weight, None, padding=1)
        expecteds = wanted, wanted_backward(dy)[0]
    for actual, expected in zip(actuals, expecteds, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_tiles_are_used_for_full_maps_and_never_depend_on_the_batch_in_inference() -> None:
    from xcnn.kernels.cpu._winograd import tiles
    from xcnn.ops._window import window_axes

    def used(n: int, c: int, size: int, steady: bool = False) -> bool:
        axes = window_axes("conv", (size, size), (3, 3), (1, 1), 1, (1, 1))
        return tiles(axes, n, (c, c, 3, 3), 1, 4, False, steady) is not None

    assert not used(64, 3, 32)
    for c, size in [(16, 32), (32, 16), (64, 8), (128, 14), (64, 4), (32, 5)]:
        assert len({used(n, c, size, True) for n in (1, 2, 7, 64, 500)}) == 1


def test_tiles_of_large_maps_take_little_memory() -> None:
    from xcnn.kernels.cpu._winograd import tiles
    from xcnn.ops._window import window_axes

    for c, o, sizes in [(8, 64, (300, 3000)), (500, 50, (200, 150)), (2000, 40, (300, 300)), (2000, 40, (9, 20))]:
        plan = tiles(window_axes("conv", sizes, (3, 3), (1, 1), 1, (1, 1)), 9, (o, c, 3, 3), 1, 4, False, False)
        assert plan is None or 4 * max(plan.pixels, plan.sums) < 8e6


def at_the_edge(side: str) -> Callable[..., np.ndarray]:
    """Return a `scratch` whose arrays end, or begin, at a page that may not be accessed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def scratch(owner: int, name: str, size: int, dtype: Any) -> np.ndarray:
        nbytes = size * dtype.itemsize
        pages = -(-nbytes // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        forbidden = 0 if side == "behind" else pages * mmap.PAGESIZE
        assert libc.mprotect(start + forbidden, mmap.PAGESIZE, 0) == 0
        first = mmap.PAGESIZE if side == "behind" else forbidden - nbytes
        return np.frombuffer(memory, np.uint8, nbytes, first).view(dtype)

    return scratch


def convolve_at_the_edge(side: str) -> None:
    """Run random convolutions, forward and backward, on such memory; a read outside it ends the process."""
    from xcnn.kernels.cpu import _winograd, conv, depthwise, weight_gradients

    memory = depthwise.scratch = _winograd.scratch = at_the_edge(side)
    _winograd._GAIN, _winograd._FEWEST = 1e9, 1
    for module in (conv, weight_gradients):
        module.scratch = module.cleared = memory
    depthwise._cheapest = depthwise._cheapest.__wrapped__  # type: ignore[assignment]
    depthwise._maps = depthwise._maps.__wrapped__  # type: ignore[assignment]
    depthwise._rows = depthwise._rows.__wrapped__  # type: ignore[assignment]
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = memory(0, "", math.prod(shape), np.dtype(dtype)).reshape(shape)
        array[...] = rng.standard_normal(shape)
        return array

    for i in range(90):
        sizes, stride, dilation = rng.integers(1, 5, 2), rng.integers(1, 4, 2), rng.integers(1, 3, 2)
        if i % 3 == 0:
            sizes, stride = (1, 1), (1, 1)
        if i % 5 == 0:
            sizes, stride, dilation = (3, 3), (1, 1), np.array((1, 1))
        maps = dilation * (np.array(sizes) - 1) + rng.integers(1, 12, 2)
        groups, cg, og = rng.integers(1, [3, 40 if i % 2 else 5, 40 if i % 2 else 12])
        if i % 4 == 0:
            groups, cg, og = rng.integers(2, 40), 1, 1
        arrays = (3, groups * cg, *maps), (groups * og, cg, *sizes), (groups * og,)
        dtype = rng.choice(["f4", "f8"])
        x, weight, bias = (normal(tuple(map(int, shape)), dtype) for shape in arrays)
        options = {"stride": tuple(map(int, stride)), "dilation": tuple(map(int, dilation)), "groups": int(groups)}
        depthwise._MOVE = 10**9 * (i // 4 % 2)
        y, backward = ops.conv2d(x, weight, bias, padding=int(rng.integers(0, 3)) if i % 3 else 0, **options)
        dy = normal(y.shape, dtype)
        assert all(math.isfinite(a.sum()) for a in (y, *backward(dy)))
    # The last band of a plane is shorter than a vector.
    _, backward = ops.conv2d(normal((3, 24, 27, 36), "f4"), normal((1, 24, 1, 1), "f4"), activation="relu")
    assert math.isfinite(backward(normal((3, 1, 27, 36), "f4"))[0].sum())


@pytest.mark.skipif(sys.platform != "linux", reason="forbids pages by mprotect")
@pytest.mark.parametrize("side", ["behind", "before"])
def test_nothing_outside_of_scratch_memory_is_touched(side: str) -> None:
    run("import sys; from test_kernels_conv import convolve_at_the_edge; convolve_at_the_edge(sys.argv[1])", side)


@pytest.mark.parametrize("transposed", [False, True])
def test_small_volumes_are_multiplied_plane_by_plane(transposed: bool) -> None:
    """The lines between planes are left out of the products, and results are those of portable code."""
    from xcnn.kernels.cpu import _stacks

    maps, three = (4, 7, 6), (3, 3, 3)
    axes = window_axes("conv", maps, three, (1, 1, 1), (1, 1, 1), (1, 1, 1))
    p = _stacks._stack([_stacks._line(_stacks._forward(axis, False)) for axis in axes], 1, 0, 4)
    _, places = _stacks._product(p, 16, 8 * 27)
    assert places == p.steps[0] < p.length
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 8, *maps)), rng.standard_normal((8, 8, *three))
    convolve = ops.conv_transpose3d if transposed else ops.conv3d
    y, backward = convolve(x, weight, None, padding=1)
    with portable(np):
        wanted, expected = convolve(x, weight, None, padding=1)
    for one, other in zip((y, *backward(y)[:2]), (wanted, *expected(y)[:2]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)

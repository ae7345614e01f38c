"""The gradients of convolutions: each way to them, against portable code in float64."""

import contextlib
import math
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable

pytest.importorskip("llvmlite")

from xcnn.kernels.cpu import _winograd_gradient, depthwise, weight_gradients
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.ops._window import window_axes

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@every_dtype
def test_transposition_between_any_places(dtype: str) -> None:
    rng = np.random.default_rng(0)
    size = np.dtype(dtype).itemsize
    lanes = BYTES // size
    for r, c in [(1, 5), (lanes, lanes), (lanes + 1, 3 * lanes - 1), (lanes - 1, 40), (40, lanes - 1)]:
        x = rng.standard_normal((r, 60)).astype(dtype)
        y = np.full(100 * 50, 9, dtype)
        places = rng.permutation(99)[:c] * 50
        transpose(size)(x, 3, np.arange(r) * 60, r, y, 2, places, c, 0, 10**9)  # nobody reads what is fetched ahead
        expected = np.full(100 * 50, 9, dtype)
        for j, place in enumerate(places):
            expected[2 + place : 2 + place + r] = x[:, 3 + j]
        np.testing.assert_array_equal(y, expected)


def check(dtype: str, x: Any, weight: Any, rank: int, **options: Any) -> None:
    """Compare the gradients with those of portable code in float64, in units of rounding, for 1 and for 3 threads."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (x, weight, weight[:1])]
    conv = getattr(ops, f"conv{rank}d")
    y, backward = conv(*arrays, **options)
    dy = rng.standard_normal(y.shape).astype(dtype)
    gradients = backward(dy)
    mask = dy * (y != 0 if options.pop("activation", None) else np.ones(()))
    with portable(np):
        wanted = conv(*map(np.float64, arrays), **options)[1](np.float64(mask))
        sizes = conv(*(np.abs(np.float64(a)) for a in arrays), **options)[1](np.abs(np.float64(mask)))
    places = len(y) * math.prod(y.shape[2:])
    terms = weight[0] // options.get("groups", 1) * math.prod(weight[2:]), places, places
    for actual, exact, size, many in zip(gradients, wanted, sizes, terms, strict=True):
        assert np.all(np.abs(actual - exact) <= 2 * np.finfo(dtype).eps * math.sqrt(many) * size)
    before = threads.get_num_threads()
    for count in (1, 3):
        threads.set_num_threads(count)
        again = backward(dy)
        threads.set_num_threads(before)
        for one, other in zip(gradients, again, strict=True):
            np.testing.assert_array_equal(one, other)


@every_dtype
@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((3, 5, 9, 8), (34, 5, 3, 3), {"padding": 1}),
        (
            (2, 40, 13, 7),
            (34, 20, 3, 2),
            {"stride": (1, 2), "padding": ((2, 0), (0, 1)), "groups": 2, "activation": "relu"},
        ),
        ((3, 2 * 70, 9, 8), (2 * 35, 70, 3, 3), {"padding": ((1, 3), (0, 2)), "groups": 2, "activation": "relu"}),
        ((30, 17, 9, 10), (100, 17, 3, 3), {"padding": 1}),
        ((1, 65, 48, 48), (17, 65, 3, 3), {"padding": 1}),  # more tiles than images fill parts
        ((2, 33, 11, 12), (34, 33, 2, 3), {"dilation": (1, 2), "stride": 2}),
        ((1, 70, 1500), (34, 70, 3), {"stride": 3, "padding": 4}),
        ((3, 18, 5, 6, 4), (34, 18, 2, 1, 3), {"stride": (2, 1, 1), "padding": (1, 0, 1)}),
        ((20, 24, 4, 4), (34, 24, 1, 1), {"activation": "relu"}),
        ((3, 40, 7, 9), (34, 20, 1, 1), {"stride": (2, 3), "groups": 2}),
        ((2, 17, 40, 40), (34, 17, 1, 1), {}),
        ((1, 18, 20, 2), (34, 18, 1, 1), {"stride": (1, 2)}),
        ((1, 17, 8, 10), (34, 17, 1, 1), {"stride": (2, 1), "padding": ((0, 2), (0, 1))}),
        ((2, 3, 40, 70), (34, 3, 3, 4), {"padding": 2, "activation": "relu"}),  # dy in pieces
        ((3, 2, 9, 20), (5, 2, 3, 5), {"padding": 1, "activation": "relu"}),  # several windows in a vector
        ((2, 4, 7, 5, 6), (2, 2, 2, 1, 3), {"padding": (0, 1, 2), "stride": (2, 1, 1), "groups": 2}),
        ((5, 2, 6, 9), (34, 1, 3, 3), {"stride": 2, "groups": 2, "dilation": 3, "padding": 4}),
    ],
)
def test_every_way_to_the_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: str, x: Any, weight: Any, options: Any
) -> None:
    """Choose vectors of channels of x or of dy, or Winograd's tiles, whatever is cheapest; all must be right."""
    plans = [partial(weight_gradients._plan, swapped=swapped) for swapped in (False, True)]
    for plan in (*plans, weight_gradients.winograd):
        # Where there are no tiles, the first plan again.
        monkeypatch.setattr(weight_gradients, "_ways", lambda *s, plan=plan: (plan(*s) or plans[0](*s),))
        check(dtype, x, weight, len(x) - 2, **options)


@every_dtype
@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((1, 33, 5, 6), (70, 33, 1, 1), {}),  # x is its columns
        ((1, 33, 1, 1), (40, 33, 1, 1), {}),
        ((1, 33, 3, 3), (40, 33, 1, 1), {"stride": 2, "padding": 1}),  # as many windows as pixels, but other ones
        ((1, 65, 4, 7), (90, 65, 3, 2), {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2)}),
        ((1, 40, 3, 4, 2), (66, 40, 2, 3, 1), {"padding": (0, 1, 2), "activation": "relu"}),
        ((1, 130, 9), (70, 130, 3), {"padding": 1}),
    ],
)
def test_columns_of_one_image_give_the_weight_gradient(
    monkeypatch: pytest.MonkeyPatch, dtype: str, x: Any, weight: Any, options: Any
) -> None:
    planned, plan = [], weight_gradients._product
    monkeypatch.setattr(weight_gradients, "_product", lambda *s: planned.append(plan(*s[:-1], 1e12)) or planned[-1])
    check(dtype, x, weight, len(x) - 2, **options)
    assert planned
    assert None not in planned


@every_dtype
@pytest.mark.parametrize(
    ("x", "weight", "function"),
    [
        ((8, 64, 8, 8), (64, 64, 3, 3), _winograd_gradient._products),  # its tiles add infinite numbers of both signs
        ((2, 1, 20, 20), (8, 1, 3, 3), weight_gradients.weight_gradient),  # zeros between lines of dy
        ((2, 1, 9, 9), (8, 1, 5, 5), weight_gradients.weight_gradient),
        ((2, 4, 20, 20), (4, 1, 5, 5), None),  # depthwise
        ((2, 4, 40, 40), (4, 1, 3, 3), None),
    ],
)
def test_infinite_numbers_reach_the_sums_that_they_do_in_portable_code(
    dtype: str, x: tuple[int, ...], weight: tuple[int, ...], function: Any
) -> None:
    rng, (n, c, h, w), (o, cg, k, _) = np.random.default_rng(0), x, weight
    if function is not None:
        ways = weight_gradients._ways(
            np.dtype(dtype).itemsize, n, window_axes("", (h, w), (k, k), 1, 1), c // cg, o, cg
        )
        assert len(ways) > 1
        assert ways[0].function is function
    for place, value in ((0, np.inf), (1, np.nan), (1, -np.inf), (0, np.finfo(dtype).max)):
        zeros = np.zeros(weight, dtype)
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in (x, (n, o, h + 3 - k, w + 3 - k))]
        arrays[place][1, c - 1, 0, 4] = value
        results = []
        for code in (contextlib.nullcontext(), portable(np)):
            with code, np.errstate(all="ignore"):
                backward = ops.conv2d(arrays[0], zeros, padding=1, groups=c // cg)[1]
                results.append(backward(arrays[1], (False, True, False))[1])
        np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-3)


@every_dtype
@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ((3, 25, 9, 8), (3, 3), {"padding": 1, "activation": "relu"}),
        ((3, 20, 2, 3), (3, 5), {"padding": ((2, 4), (6, 2)), "dilation": (3, 2)}),  # taps of no pixel
        ((2, 20, 40), (9,), {"padding": 4}),
        (
            (2, 10, 8, 11),
            (3, 5),
            {"padding": ((3, 3), (8, 4)), "dilation": 3},
        ),  # a tap reads the next vector of float64
        ((2, 5, 8, 31), (5, 2), {"stride": (1, 2), "padding": (2, 1), "dilation": (1, 2)}),
        ((2, 20, 13, 37), (3, 5), {"stride": (1, 2), "padding": (1, 3)}),
        ((2, 40, 300), (7,), {"stride": 2}),
        ((2, 25, 5, 1, 6), (3, 2, 1), {"stride": (3, 2, 3), "padding": ((1, 1), (1, 0), (0, 1))}),  # phases of no pixel
        ((5, 19, 11, 13), (5, 5), {"padding": (2, 3), "dilation": (2, 1)}),
        (
            (2, 17, 12, 11),
            (7, 7),
            {"stride": (1, 2), "padding": 3},
        ),  # more sums than registers
        ((1, 16, 40), (29,), {}),
    ],
)
def test_depthwise_convolutions(monkeypatch: pytest.MonkeyPatch, dtype: str, x: Any, kernel: Any, options: Any) -> None:
    """Vectors of channels or, where they can do it, of the pixels of maps or rows: all of these must be right."""
    for plan in ("_maps", "_rows", "_plan", "_cheapest"):
        monkeypatch.setattr(depthwise, plan, getattr(depthwise, plan).__wrapped__)
    costs = [(moving, speed) for moving in (0, 10**9) for speed in (4000, 0.1)]  # as one part or as many
    for whole in (True, False):
        for moving, speed in costs:
            monkeypatch.setattr(depthwise, "_MOVE", moving)
            monkeypatch.setattr(depthwise, "CYCLES_PER_MICROSECOND", speed)
            check(dtype, x, (x[1], 1, *kernel), len(kernel), groups=x[1], **options)
        if whole:
            monkeypatch.setattr(depthwise, "_maps", lambda *_: None)


def test_masks_of_large_maps_take_little_memory() -> None:
    axes = window_axes("", (1000, 1000), (5, 5), 1, 2)
    tracemalloc.start()
    try:
        depthwise._maps.__wrapped__(axes, 1, 16, 16, 4, "forward")
        assert tracemalloc.get_traced_memory()[1] < 32e6  # less than the map and the result of a few channels
    finally:
        tracemalloc.stop()


def test_a_gradient_of_large_maps_hardly_rounds_more_than_one_of_small_maps() -> None:
    """Terms that are alike: added one after another, each sum would be wrong in its fourth digit."""
    for groups, channels in ((1, 48), (48, 1)):
        x, weight = np.full((2, 48, 200, 200), 0.1, np.float32), np.zeros((48, channels, 1, 1), np.float32)
        y, backward = ops.conv2d(x, weight, groups=groups)
        dy = np.full(y.shape, 0.1, np.float32)
        dweight = backward(dy, (False, True, False))[1]
        np.testing.assert_allclose(dweight, 80_000 * np.float64(x.flat[0]) ** 2, rtol=1e-5)


@pytest.mark.parametrize("kernel", [(4, 3, 1, 1), (4, 3, 3, 3), (20, 1, 3, 3)], ids=["single", "square", "depthwise"])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "weight", "dy"])
def test_numbers_of_one_image_may_have_gaps_between_them(kernel: tuple[int, ...], place: int) -> None:
    """NumPy's `reshape(-1)` keeps the gaps if they are all alike."""
    rng, groups = np.random.default_rng(0), kernel[0] if kernel[1] == 1 else 1
    x, weight = rng.standard_normal((1, kernel[1] * groups, 9, 12)), rng.standard_normal(kernel)
    arrays = [x, weight, rng.standard_normal((1, kernel[0], 9, 12))]

    def run(x: np.ndarray, weight: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
        y, backward = ops.conv2d(x, weight, None, padding="same", groups=groups)
        return [y, *backward(dy)[:2]]

    wanted = run(*arrays)
    arrays[place] = np.repeat(arrays[place], 2, axis=-1)[..., ::2]
    for actual, expected in zip(run(*arrays), wanted, strict=True):
        np.testing.assert_array_equal(actual, expected)


@every_dtype
@pytest.mark.parametrize("rank", [1, 2])
def test_a_transposed_convolution_sets_pixels_beyond_its_windows(dtype: str, rank: int) -> None:
    """With output padding and kernels of one pixel, no product reaches the last pixels."""
    x, weight = np.ones((2, 3, *(5, 6)[:rank]), dtype), np.ones((3, 4, *(1, 1)[:rank]), dtype)
    np.full(10_000, np.nan, dtype)  # likely to be the memory of y
    transposed = getattr(ops, f"conv_transpose{rank}d")
    y, _ = transposed(x, weight, output_padding=1, dilation=2)
    with portable(np):
        expected, _ = transposed(x, weight, output_padding=1, dilation=2)
    np.testing.assert_array_equal(y, expected)


def test_no_part_of_a_weight_gradient_is_without_images() -> None:
    pytest.importorskip("llvmlite")
    from xcnn.kernels.cpu import _winograd_gradient

    axes = window_axes("", (64, 64), (3, 3), 1, 1)
    plans = [_winograd_gradient.winograd(4, n, axes, 1, 64, 64) for n in (1, 2, 3, 64)]
    assert all(plan is None or 1 <= plan.parts <= n for plan, n in zip(plans, (1, 2, 3, 64), strict=True))

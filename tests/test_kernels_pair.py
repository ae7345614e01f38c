"""The arithmetic of two arrays against the portable code: shapes that broadcast, sums in the same pass, activations."""

import itertools
from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable

pytest.importorskip("llvmlite")
from xcnn.kernels.cpu._rows import kinds, space

NAMES = ["add", "subtract", "multiply", "divide", "maximum", "minimum"]
SHAPES: Any = [
    ((), ()),
    ((1,), ()),
    ((3, 4), (3, 4)),
    ((3, 4), ()),
    ((3, 1), (4,)),  # sums of rows and of columns
    ((2, 3, 5, 7), (2, 3, 1, 1)),  # a gate
    ((2, 3, 5, 7), (3, 1, 1)),  # a number per channel
    ((200, 40), (40,)),  # a vector along the last axis
    ((50, 33, 3), (33, 1)),
    ((2, 3, 4), (2, 1, 4)),  # groups of columns
    ((2, 3, 4, 5), (3, 4, 5)),
    ((40, 3, 100), (3, 1)),
    ((9000,), ()),
    ((2, 3, 4, 5), (1, 3, 1, 5)),  # too many axes: portable
    ((6, 1, 5), (1, 4, 5)),  # the place of sums depends on the row: portable
]


def assert_alike(name: str, x: Any, other: Any, **options: Any) -> None:
    rng, eps = np.random.default_rng(1), np.finfo(x.dtype).eps
    with portable(np):
        y, backward = getattr(ops, name)(x, other, **options)
        dy = np.asarray(rng.standard_normal(y.shape), x.dtype)
        wanted = [y, *backward(dy)]
    y, backward = getattr(ops, name)(x, other, **options)
    found = [y, *backward(dy)]
    for actual, expected in zip(found, wanted, strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(actual, expected, rtol=64 * eps, atol=64 * eps * max(1, dy.size / y.size) * 8)
    for needs in itertools.product((False, True), repeat=2):
        for need, full, part in zip(needs, found[1:], backward(dy, needs), strict=True):
            assert part is None if not need or full is None else np.array_equal(part, full)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("one", "another"), SHAPES)
def test_all_shapes_agree_with_the_portable_code(one: Any, another: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    names = NAMES if one == another else ["multiply"] if dtype == "float32" else ["divide"]
    for name, (a, b) in itertools.product(names, [(one, another), (another, one)]):
        x, other = rng.standard_normal(a), np.abs(rng.standard_normal(b)) + 0.3
        assert_alike(name, np.asarray(x, dtype), np.asarray(other, dtype))


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.2), "sigmoid"])
@pytest.mark.parametrize("other", [(2, 3, 5), (3, 1), None])
def test_an_activation_after_a_sum_is_a_part_of_it(other: Any, activation: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5))
    assert_alike("add", x, 0.5 if other is None else rng.standard_normal(other), activation=activation)
    y, backward = ops.add(x, x, activation=activation)
    alone, alone_backward = getattr(ops, activation if isinstance(activation, str) else activation[0])(
        x + x, *(activation[1:] if isinstance(activation, tuple) else ())
    )
    np.testing.assert_array_equal(y, alone)
    np.testing.assert_array_equal(backward(x)[0], alone_backward(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_number_and_arrays_that_are_not_contiguous(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 8, 10))
    x.flags.writeable = False
    assert_alike(name, x[::2].transpose(2, 0, 1), 1.5)
    assert_alike(name, x[::2], x[1::2, :1])


@pytest.mark.parametrize(("shape", "other"), [((37, 900), (37, 1)), ((3000, 40), (40,)), ((400_000,), ())])
def test_parts_are_cut_by_shapes_alone(shape: Any, other: Any) -> None:
    rng, before, results = np.random.default_rng(0), threads.get_num_threads(), []
    x, scale, dy = (rng.standard_normal(one).astype(np.float32) for one in (shape, other, shape))
    for n in (1, 3):
        threads.set_num_threads(n)
        y, backward = ops.multiply(x, np.asarray(scale, np.float32))
        results.append((y, *backward(dy)))
    threads.set_num_threads(before)
    for one, another in zip(*results, strict=True):
        np.testing.assert_array_equal(one, another)
    axes = tuple(i for i in range(len(shape)) if i >= len(other) or other[i] == 1) if len(other) != 1 else (0,)
    wanted = np.sum(x.astype(np.float64) * dy, axis=axes or None).reshape(other)
    np.testing.assert_allclose(results[0][2], wanted, rtol=1e-5, atol=1e-3)


def test_long_sums_of_float64_hardly_lose_digits() -> None:
    n = 300_000
    for shape, other in (((n,), ()), ((n, 2), (2,))):
        dy = np.full(shape, 0.1)
        total = ops.add(np.zeros(shape), np.zeros(other))[1](dy)[1]
        assert np.all(np.abs(total / n - 0.1) <= 0.1 * np.sqrt(n) * np.finfo(float).eps)


def test_axes_are_merged() -> None:
    assert space((2, 3, 4, 5), (2, 3, 4, 5), (3, 1, 1)) == ((2, 3, 20), ((60, 20, 1), (0, 1, 0)))
    assert space((2, 3, 4), (2, 3, 4), (2, 3, 4)) == ((1, 1, 24), ((0, 0, 1), (0, 0, 1)))
    assert space((), ()) == ((1, 1, 1), ((0, 0, 0),))
    assert space((2, 3, 4, 5), (2, 3, 4, 5), (1, 3, 1, 5)) is None
    assert kinds(space((6, 4, 5), (6, 4, 5), (6, 1, 5), (1, 4, 5))) is None  # type: ignore[arg-type]


def test_a_sum_does_not_depend_on_which_gradients_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PART_MICROSECONDS", 1)
    x, other, dy = (np.random.default_rng(0).standard_normal(shape) for shape in [(77, 5, 22), (1, 5, 22), (77, 5, 22)])
    _, backward = ops.maximum(x, other)
    assert np.array_equal(backward(dy)[1], backward(dy, (False, True))[1])

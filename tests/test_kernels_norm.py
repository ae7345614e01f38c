"""The kernel of normalisations against float64 and against the portable code, with any number of threads."""

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from xcnn import ops, threads
from xcnn._dispatch import portable
from xcnn.ops.norm import norm_inference

pytest.importorskip("llvmlite")


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
@pytest.mark.parametrize("shape", [(1, 3, 5), (4, 5, 2, 1), (3, 2, 7, 9), (2, 70, 4, 4), (19, 150), (21, 70, 3, 5)])
def test_results_equal_those_of_the_portable_code(shape: tuple[int, ...], training: bool) -> None:
    arrays, dy = draw(shape, np.float64)
    with portable(np):
        wanted = run(arrays, dy, training)
    for actual, expected in zip(run(arrays, dy, training), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", ("hardtanh", -0.5, 1.5), "tanh"])
@pytest.mark.parametrize("shape", [(3, 4, 1), (4, 6, 7, 7), (5, 4, 23, 37), (2, 2, 70, 71), (1, 520, 2)])
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "layer", "features"])
def test_every_kind_of_norm_equals_the_portable_code(kind: str, shape: tuple[int, ...], activation: Any) -> None:
    """Rows of a channel, of joined channels, of a group and of features, in pieces and with incomplete vectors."""
    rng = np.random.default_rng(0)
    if math.prod(shape[2:]) <= 2 and kind in ("instance", "features"):
        shape = (*shape[:-1], 9)  # the mean of one number is itself
    x, residual, dy = rng.standard_normal((3, *shape))
    of = {"layer": shape[1:], "features": shape[-1:]}.get(kind, shape[1:2])
    weight, bias = rng.standard_normal((2, *of))
    calls: dict[str, Any] = {
        "batch": lambda *a, **k: ops.batch_norm(a[0], None, None, *a[1:], True, **k),
        "instance": lambda *a, **k: ops.instance_norm(a[0], None, None, *a[1:], **k),
        "group": lambda *a, **k: ops.group_norm(a[0], 2, *a[1:], **k),
    }
    call = calls.get(kind, lambda *a, **k: ops.layer_norm(a[0], of, *a[1:], **k))

    def both(*parameters: Any, added: Any) -> list[Any]:
        y, backward = call(x, *parameters, residual=added, activation=activation)
        return [y[0] if type(y) is tuple else y, *backward(dy)]

    for given in [(weight, bias, residual), (None, bias, None), (weight, None, residual), (None, None, None)]:
        actual = both(*given[:2], added=given[2])
        with portable(np):
            wanted = both(*given[:2], added=given[2])
        for one, other in zip(actual, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 2, 40, 5), (9, 300)])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_stay_in_their_channel(shape: tuple[int, ...], special: float) -> None:
    arrays, dy = draw(shape, np.float64)
    for place in [(0, 0), (1, 1)]:
        changed = {**arrays, "x": arrays["x"].copy()}
        changed["x"][(*place, *(0 for _ in shape[2:]))] = special
        for training in (True, False):
            with portable(np), np.errstate(invalid="ignore"):
                wanted = run(changed, dy, training)
            for actual, expected in zip(run(changed, dy, training), wanted, strict=True):
                np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [None, -1, (1, 2), (2, 3), 1, (0, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["mean", "sum"])
def test_reductions_equal_those_of_the_portable_code(name: str, keepdim: bool, dim: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4, 33, 3)).transpose(0, 1, 3, 2)
    y, backward = getattr(ops, name)(x, dim, keepdim)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    with portable(np):
        wanted, portable_backward = getattr(ops, name)(x, dim, keepdim)
        gradients = portable_backward(dy)
    for actual, expected in zip((y, *backward(dy)), (wanted, *gradients), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        assert actual.shape == expected.shape


def test_read_only_and_strided_arrays_give_the_same_bits() -> None:
    arrays, dy = draw((4, 96, 5, 12), np.float32)
    wanted = run(arrays, dy, True)
    wide = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in arrays.items()}
    wide["x"] = np.ascontiguousarray(arrays["x"].transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)
    for array in arrays.values():
        array.flags.writeable = False
    for given in (arrays, wide):
        for actual, expected in zip(run(given, dy, True), wanted, strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("shape", [(32, 3, 16, 16), (700, 3, 3, 3)])
@pytest.mark.parametrize("centre", [0.0, 100.0, -3000.0])
def test_float32_loses_no_digits_far_from_zero(centre: float, shape: tuple[int, ...]) -> None:
    arrays, dy = draw(shape, np.float32, centre)
    with portable(np):
        wanted = run({name: array.astype(np.float64) for name, array in arrays.items()}, dy.astype(np.float64), True)
    for actual, expected in zip(run(arrays, dy, True), wanted, strict=True):
        size = np.max(np.abs(expected)) * (1 + abs(centre))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * np.finfo(np.float32).eps * size)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(32, 32, 33, 31), (200, 300, 3, 3), (250, 2000)])
def test_it_does_not_depend_on_the_number_of_threads(shape: tuple[int, ...], training: bool) -> None:
    arrays, dy = draw(shape, np.float32)
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
@pytest.mark.parametrize("engine", [contextlib.nullcontext, lambda: portable(np)], ids=["kernels", "portable"])
def test_inference_is_the_norm_by_running_statistics(rank: int, adds: bool, activation: Any, engine: Any) -> None:
    arrays, residual = draw((5, 3, *(4, 3, 2)[:rank]), np.float64)
    mean, var, weight = arrays["running_mean"], arrays["running_var"], arrays["weight"]
    for scale, shift in [(weight, arrays["bias"]), (weight, None), (None, arrays["bias"]), (None, None)]:
        with engine():
            ours = norm_inference(
                np, arrays["x"], (mean, var, scale, shift, 0.1), residual if adds else None, activation
            )
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


@pytest.mark.parametrize("shape", [(1, 1, 1_000_000), (1_000_000, 1), (100_000, 1, 10)])
def test_sums_of_many_numbers_have_few_rounding_errors(shape: tuple[int, ...]) -> None:
    """Equal numbers are rounded alike, so that errors would add up."""
    n = 1_000_000
    x = np.full(shape, 0.1)
    x.flat[0] = 0
    (_, mean, _), _ = ops.batch_norm(x, np.zeros(1), np.ones(1), training=True, momentum=1.0)
    np.testing.assert_allclose(mean, math.fsum(x.flat) / n, rtol=n**0.5 * 2.3e-16)


def test_a_number_that_is_its_own_mean_has_no_gradient() -> None:
    """Its weight and its factor, which is large, must not be rounded differently in the terms that cancel."""
    x, dy, weight = np.random.default_rng(0).standard_normal((3, 64, 1)).astype(np.float32)
    _, backward = ops.layer_norm(x, 1, weight[:1, 0])
    np.testing.assert_array_equal(backward(dy)[0], 0)

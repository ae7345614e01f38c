"""Formulas as compiled loops: rounding errors, special values, memory, threads, and formulas that are not compiled."""

import math
import sys
from typing import Any

import numpy as np
import pytest
from test_kernels_conv import at_the_edge

from xcnn import ops, threads
from xcnn._dispatch import FORMULAS
from xcnn.ops._formula import apply, times_slope
from xcnn.ops._op import OPS

pytest.importorskip("llvmlite")
from xcnn.kernels.cpu import elementwise as compiled
from xcnn.kernels.cpu._loops import EACH, traced
from xcnn.kernels.cpu._trace import Namespace
from xcnn.kernels.cpu._vectors import FUSED

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def _called(xp: Namespace, name: str, x: Any) -> list[Any]:
    return [getattr(xp, name)(x)]


def calculate(name: str, x: np.ndarray) -> np.ndarray:
    """Return a function of the tracing namespace, compiled."""
    y, loop = np.empty_like(x), traced(_called, name, (EACH,), (True,), (), x.itemsize)
    assert loop is not None
    loop.call(y.ctypes.data, x.ctypes.data, x.size)
    return y


RANGES = {
    "exp": (-103, 88),
    "expm1": (-30, 88),
    "log": (1e-3, 4),
    "log1p": (-0.99, 9),
    "tanh": (-12, 12),
    "erf": (-5, 5),
}
ULPS = {"exp": 1.1, "expm1": 2.1, "log": 0.9, "log1p": 0.9, "tanh": 1.6, "erf": 1.3}
"""Above the largest errors that twelve million random numbers showed."""


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """Return a function with more digits than x has."""
    if name == "erf":
        mpmath = pytest.importorskip("mpmath")
        with mpmath.workprec(90):
            return np.array([np.longdouble(mpmath.nstr(mpmath.erf(float(v)), 25)) for v in x])
    return np.asarray(getattr(np, name)(x.astype(np.longdouble)))


@every_dtype
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="there is no wider type to compare with")
def test_functions_are_right_to_a_few_units_in_the_last_place(name: str, dtype: Any) -> None:
    rng, n = np.random.default_rng(0), 2_000 if name == "erf" else 100_000
    tiny = np.exp(rng.uniform(-80, 0, n)) * (1 if name.startswith("log") else rng.choice([-1, 1], n))
    x = np.concatenate([rng.uniform(*RANGES[name], n), tiny]).astype(dtype)
    wanted = exact(name, x)
    error = np.abs(calculate(name, x) - wanted) / np.spacing(np.abs(wanted).astype(dtype))
    assert error.max() <= ULPS[name] * (1 if FUSED else 2)


@every_dtype
@pytest.mark.parametrize("name", RANGES)
def test_functions_of_special_values_are_those_of_numpy(name: str, dtype: Any) -> None:
    numbers = [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        5e-320,
        -5e-320,
        1,
        -1,
        -2,
        100,
        -100,
        900,
        -900,
    ]
    x = np.array(numbers, dtype)
    if name == "erf":
        wanted = np.array([math.erf(v) for v in x]).astype(dtype)
    else:
        with np.errstate(all="ignore"):
            wanted = getattr(np, name)(x)
    y = calculate(name, x)
    np.testing.assert_allclose(y, wanted, rtol=3e-7 if dtype == np.float32 else 5e-16, atol=0)
    there = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(y[there]), np.signbit(wanted[there]))


def fenced(n: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return an array between numbers that must not change, and all of them."""
    whole = np.full(n + 64, 77, dtype)
    return whole[32 : 32 + n], whole


@every_dtype
@pytest.mark.parametrize("name", FORMULAS)
def test_any_number_of_elements_is_what_the_portable_code_computes(name: str, dtype: Any) -> None:
    rng, eps = np.random.default_rng(1), np.finfo(dtype).eps
    for sample in OPS[name].samples:
        activation = (name, *FORMULAS[name].check(name, **sample.options))
        for n in (1, 3, 8, 17, 63, 131):
            x = np.abs(rng.standard_normal(n)).astype(dtype) + dtype(0.1) if name in ("log", "sqrt") else None
            x = rng.standard_normal(n).astype(dtype) if x is None else x
            y, whole = fenced(n, dtype)
            y[...] = x
            compiled.applying(activation, y.itemsize)(y, y)
            np.testing.assert_allclose(y, apply(np, x, activation), rtol=8 * eps, atol=8 * eps)
            assert np.all(np.delete(whole, np.s_[32:-32]) == 77)
            kept, dy = {"x": x, "y": y.copy()}[FORMULAS[name].keeps], rng.standard_normal(n).astype(dtype)
            dx, whole = fenced(n, dtype)
            compiled.sloping(activation, dy.itemsize)(dx, kept, dy)
            np.testing.assert_allclose(dx, times_slope(np, dy, kept, activation), rtol=16 * eps, atol=16 * eps)
            assert np.all(np.delete(whole, np.s_[32:-32]) == 77)


@pytest.mark.skipif(sys.platform == "win32", reason="protects memory as Unix does")
@every_dtype
@pytest.mark.parametrize("n", [1, 7, 16, 40])
def test_nothing_is_read_beyond_the_end(n: int, dtype: Any) -> None:
    x = at_the_edge("before")(0, "x", n, np.dtype(dtype))
    x[...] = 2
    compiled.applying(("silu",), x.itemsize)(x, x)
    compiled.sloping(("silu",), x.itemsize)(x, x, x)
    assert np.all(x == x[0])


@pytest.mark.parametrize("name", FORMULAS)
def test_a_result_depends_on_its_number_alone(name: str) -> None:
    """Not on its place, the number of threads, or whether it is written over x."""
    x = np.abs(np.random.default_rng(0).standard_normal(1_000_003)).astype(np.float32) + np.float32(0.1)
    x[::2] *= -1 if name not in ("log", "sqrt") else 1
    x[-70:] = x[:70]
    before, results = threads.get_num_threads(), []
    activation = (name, *FORMULAS[name].check(name))
    for n in (1, 3):
        threads.set_num_threads(n)
        y, backward = OPS[name].function(x)
        results.append((y, backward(x)[0]))
    threads.set_num_threads(before)
    compiled.applying(activation, x.itemsize)(x, x)
    for y, dx in results:
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(y[-70:], y[:70])
        np.testing.assert_array_equal(dx, results[0][1])
        np.testing.assert_array_equal(dx[-70:], dx[:70])


def test_arrays_that_are_not_contiguous() -> None:
    x = np.random.default_rng(0).standard_normal((6, 8, 10)).astype(np.float32)
    x.flags.writeable = False
    for view in (x[::2, ::-1], x.transpose(2, 0, 1), x[:, :, 3], x[0, 0, 0], x[:0]):
        y, backward = ops.silu(view)
        wanted, wanted_backward = ops.silu(view.copy())
        assert y.shape == view.shape
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(backward(view)[0], wanted_backward(view.copy())[0])


def test_parameters_are_not_compiled_in() -> None:
    x = np.linspace(-2, 2, 9)
    ops.leaky_relu(x, 0.5)[1](x)
    before = traced.cache_info().misses
    for slope in (0.1, 0.2, 3):
        y, backward = ops.leaky_relu(x, slope)
        assert y[0] == backward(x)[0][0] == -2 * slope
    assert traced.cache_info().misses == before


@pytest.mark.parametrize(
    ("activation", "interval"),
    [
        (None, (-math.inf, math.inf)),
        (("relu",), (0.0, math.inf)),
        (("relu6",), (0.0, 6.0)),
        (("hardtanh", -0.5, 2.0), (-0.5, 2.0)),
        (("leaky_relu", 0.1), None),
        (("gelu", "none"), None),
        (("hardsigmoid", 1 / 6, 0.5), None),
    ],
)
def test_activations_that_only_limit_numbers_are_recognised(activation: Any, interval: Any) -> None:
    assert compiled.clamp(activation) == interval


def test_a_formula_from_outside_is_compiled() -> None:
    def forward(xp: Any, x: Any, width: float, kind: str) -> Any:
        root = (x * x + width) ** 0.5
        return xp.where((x > 0) & ~xp.isnan(x), x, -root) if kind == "corner" else xp.clip(root + abs(x), min=width)

    def slope(xp: Any, x: Any, width: float, kind: str) -> Any:
        return 1.0 - xp.reciprocal(width + xp.square(x)) * xp.astype((x <= width) | (x != x), x.dtype)

    try:
        outside = ops.formula("outside", forward, slope, "x", lambda caller, *options: options)
        x = np.linspace(-2, 2, 41)
        for kind in ("corner", "smooth"):
            before = traced.cache_info().misses
            y, backward = outside(x, 2, kind)
            np.testing.assert_allclose(y, forward(np, x, 2, kind), rtol=1e-15)
            np.testing.assert_allclose(backward(x, (True,))[0], x * slope(np, x, 2, kind), rtol=1e-15)
            assert traced.cache_info().misses == before + 2
            for function, arrays in ((compiled._forward, [x]), (compiled._gradient, [x, x])):
                assert compiled._loop(function, FORMULAS["outside"], len(arrays), 8, "outside", 2, kind)[0] is not None
    finally:
        FORMULAS.pop("outside", None)


def _stairs(xp: Any, x: Any, steps: float) -> Any:
    return xp.floor(x * steps) / steps if steps > 1 else xp.floor(x)


def test_a_formula_that_is_no_list_of_steps_runs_as_it_is() -> None:
    """It uses a function that is not compiled, and a parameter in a condition."""
    try:
        apply_stairs = ops.formula("stairs", _stairs, lambda xp, x, steps: x == x, "x", lambda caller, steps: (steps,))
        x = np.array([0.3, 0.8, -0.1])
        y, backward = apply_stairs(x, 2.0)
        assert y.tolist() == [0.0, 0.5, -0.5]
        assert backward(x, (True,))[0].tolist() == x.tolist()
        compiled.applying(("stairs", 2.0), x.itemsize)(x, x)
        assert x.tolist() == y.tolist()
        assert compiled.clamp(("stairs", 2.0)) is None
    finally:
        FORMULAS.pop("stairs", None)


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

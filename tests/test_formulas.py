"""Formulas of elementwise functions, and activations as options of other ops."""

import numpy as np
import pytest

from xcnn import nn, ops
from xcnn.errors import UsageError
from xcnn.ops._formula import FORMULAS, activation_of, apply, formula, times_slope
from xcnn.ops._op import OPS
from xcnn.ops._options import activation


@pytest.mark.parametrize("name", FORMULAS)
def test_an_op_its_activation_and_its_slope_are_the_same_function(name: str) -> None:
    rng = np.random.default_rng(0)
    for sample in OPS[name].samples:
        x = sample.draw(rng)["x"]
        dy = rng.standard_normal(x.shape)
        y, backward = OPS[name].function(x, **sample.options)
        chosen = activation_of(name, sample.options)
        np.testing.assert_allclose(apply(np, x, chosen), y, rtol=1e-13)
        kept = {"x": x, "y": y}[FORMULAS[name].keeps]
        np.testing.assert_allclose(times_slope(np, dy, kept, chosen), backward(dy)[0], rtol=1e-13)


def test_no_activation_changes_nothing() -> None:
    x = np.ones(3)
    assert apply(np, x, None) is x
    assert times_slope(np, x, x, None) is x
    assert activation_of("conv2d", {}) is None


@pytest.mark.parametrize(
    ("value", "checked"),
    [
        (None, None),
        ("relu", ("relu",)),
        (("relu",), ("relu",)),
        ("leaky_relu", ("leaky_relu", 0.01)),
        (("leaky_relu", 1), ("leaky_relu", 1.0)),
        (("hardtanh", 0), ("hardtanh", 0.0, 1.0)),
        ("sigmoid", ("sigmoid",)),
    ],
)
def test_an_activation_is_a_name_with_parameters(value: object, checked: object) -> None:
    assert activation("conv2d", value) == checked  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("rellu", r"^unknown activation of conv2d 'rellu'; did you mean 'relu'\? \(known: .*sigmoid.*\)"),
        ("silu", r"^conv2d: activation must be one whose slope is a function of y \(.*\), got 'silu'; apply it to y"),
        ((), "^conv2d: activation must be None, a name such as 'relu', or a tuple of a name and numbers, got "),
        (3, "^conv2d: activation must be None, a name such as 'relu', or a tuple of a name and numbers, got 3"),
        (("relu", 1), "^conv2d: activation 'relu': too many positional arguments"),
        (("leaky_relu", -1), "^conv2d: negative_slope must be a number in \\[0, inf\\), got -1"),
    ],
)
def test_other_activations_are_refused(value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        activation("conv2d", value)  # type: ignore[arg-type]


def test_a_formula_keeps_one_of_two() -> None:
    with pytest.raises(UsageError, match=r"^formula: keeps must be 'x' or 'y', got 'z'"):
        ops.formula("identity", lambda xp, x: x, lambda xp, x: x == x, "z")


def test_the_name_of_a_formula_is_taken_once() -> None:
    with pytest.raises(UsageError, match=r"^relu: there is a formula of this name already, in xcnn\.ops\.activation"):
        ops.formula("relu", lambda xp, x: x, lambda xp, x: x == x, "x")


@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh"])
def test_a_gradient_that_is_stopped_is_zero_even_if_it_is_infinite(name: str) -> None:
    _, backward = getattr(ops, name)(np.array([-9.0, 0.5, 9.0]))
    stopped = [0.0, np.inf, np.inf if name == "relu" else 0.0]
    assert backward(np.full(3, np.inf))[0].tolist() == stopped


def test_a_formula_that_is_registered_again_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMULAS, "softsign", FORMULAS["softsign"])  # put back at the end
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Softsign()), np.ones((3, 2), np.float32)
    model(x)
    before, home = FORMULAS["softsign"], FORMULAS["softsign"].forward.__module__

    def forward(xp: object, x: np.ndarray) -> np.ndarray:
        return 3.0 * x

    forward.__module__ = home
    formula("softsign", forward, before.slope, before.keeps)
    np.testing.assert_allclose(model(x), 3.0 * model[0](x), rtol=1e-6)
    formula("softsign", before.forward, before.slope, before.keeps, before.check)
    np.testing.assert_allclose(model(x), ops.softsign(model[0](x))[0], rtol=1e-6)

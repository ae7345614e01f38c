"""Elementwise functions as data: the formulas of y and of its slope, and the activations that other ops apply.

A formula is registered once, by `formula`, next to its op. The op, the ops that take the option `activation`, and
kernels all use it. An activation is None, or a tuple of the name of a formula and its parameters, such as
`("relu",)` or `("leaky_relu", 0.01)`.

If the slope is a function of the result, backward keeps y instead of x, because the next layer keeps y anyway. No
intermediate result overflows. Numbers are masked by factors, because `where` is several times slower on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace
from xcnn._dispatch import FORMULAS, Formula, add_formula, body
from xcnn.errors import UsageError
from xcnn.ops._op import Gradients, Result

__all__ = [
    "FORMULAS",
    "Activation",
    "Formula",
    "activation_of",
    "apply",
    "clip",
    "formula",
    "inside",
    "logistic",
    "times_slope",
]

Activation = tuple[Any, ...] | None
"""None, or the name of a formula and its parameters."""


def _none(caller: str) -> tuple[float, ...]:
    return ()


def formula(
    name: str,
    forward: Callable[..., Array],
    slope: Callable[..., Array],
    keeps: str,
    check: Callable[..., tuple[float | str, ...]] = _none,
) -> Callable[..., Result]:
    """Register an elementwise function of one array, and return it as a function `(x, *options)` to make an op of.

    Parameters
    ----------
    name : the name of the op.
    forward : a function `(xp, x, *parameters)` that returns y.
    slope : a function `(xp, kept, *parameters)` that returns the slope of y, or a mask where it is 1 or 0. In the
        latter case, an infinite dy becomes 0 where the slope is 0.
    keeps : what `slope` is a function of and backward keeps, `"x"` or `"y"`.
    check : a function `(caller, *options)` that checks the op's options, which have the same names and defaults there,
        and returns the parameters: numbers, or strings by which the functions choose.

    Raises
    ------
    UsageError
        If `keeps` is neither, or another module has a formula of this name.
    """
    if keeps not in ("x", "y"):
        raise UsageError(f"formula: keeps must be 'x' or 'y', got {keeps!r}")
    if name in FORMULAS and FORMULAS[name].forward.__module__ != forward.__module__:
        home = FORMULAS[name].forward.__module__
        raise UsageError(f"{name}: there is a formula of this name already, in {home}; choose another name")
    add_formula(Formula(name, forward, slope, keeps, check))

    def elementwise(x: Array, *options: Any) -> Result:
        xp = namespace(name, x=x)
        return _elementwise(xp, x, (name, *check(name, *options)))

    return elementwise


@body
def _elementwise(xp: ModuleType, x: Array, activation: tuple[Any, ...]) -> Result:
    """Apply a formula to an array."""
    result = apply(xp, x, activation)
    keeps_x = FORMULAS[activation[0]].keeps == "x"
    x, y = (x, None) if keeps_x else (None, result)  # backward keeps one of them

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (times_slope(xp, dy, x if keeps_x else y, activation) if needs[0] else None,)

    return result, backward


def apply(xp: ModuleType, x: Array, activation: Activation) -> Array:
    """Return an activation of x, or x for None."""
    if activation is None:
        return x
    name, *parameters = activation
    return FORMULAS[name].forward(xp, x, *parameters)


def times_slope(xp: ModuleType, dy: Array, kept: Array, activation: Activation) -> Array:
    """Return `dy * slope`, the gradient of an activation from what its formula keeps, or dy for None."""
    if activation is None:
        return dy
    name, *parameters = activation
    slope = FORMULAS[name].slope(xp, kept, *parameters)
    return xp.where(slope, dy, 0.0) if slope.dtype == xp.bool else dy * slope


def activation_of(op: str, options: Mapping[str, Any]) -> Activation:
    """Return the activation that an op of this name applies if it is called with these options; None if it is none."""
    return (op, *FORMULAS[op].check(op, **options)) if op in FORMULAS else None


def clip(xp: ModuleType, x: Array, low: float, high: float) -> Array:
    """Return x limited to an interval; NaN propagates."""
    return xp.minimum(xp.maximum(x, low), high)


def inside(xp: ModuleType, y: Array, low: float, high: float) -> Array:
    """Return the slope of `clip` from its result: True inside the interval, False outside and, as in PyTorch, at its
    ends; True for NaN.
    """
    return xp.logical_not((y <= low) | (y >= high))


def logistic(xp: ModuleType, x: Array) -> Array:
    """Return `1 / (1 + exp(-x))`, computed without overflow; the losses use it too."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0.0, 1.0, e) / (1.0 + e)

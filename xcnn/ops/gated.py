"""Gated activations, `y = x * gate(x)` with a gate from 0 to 1: SiLU, hard swish, Mish and GELU.

A gate is a function of (xp, x) with another one of (xp, x, gate), which returns `x * gate'(x)`: the slope of y is the
sum of both. Backward keeps x.
"""

import math
from collections.abc import Callable
from types import ModuleType

from xcnn._array import Array, namespace
from xcnn._check import choice
from xcnn.ops._erf import erf
from xcnn.ops._op import Result, op, sample
from xcnn.ops.activation import clip, hard_gate, inside, logistic, times

__all__ = ["gelu", "hardswish", "mish", "silu"]


_X = {"x": (2, 3, 4)}

Gate = tuple[Callable[[ModuleType, Array], Array], Callable[[ModuleType, Array, Array], Array]]


def _gated(xp: ModuleType, x: Array, functions: Gate) -> Result:
    gate, lean = functions

    def slope() -> Array:
        g = gate(xp, x)
        return g + lean(xp, x, g)

    return x * gate(xp, x), times(slope)


_SIGMOID: Gate = logistic, lambda xp, x, gate: x * (gate * (1.0 - gate))


@op("x", saves="x", samples=[sample(_X)])
def silu(x: Array) -> Result:
    """Apply the sigmoid linear unit `y = x * sigmoid(x)`, also called swish.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.
    """
    return _gated(namespace("silu", x=x), x, _SIGMOID)


_HARD: Gate = hard_gate, lambda xp, x, gate: x * (inside(xp, gate, 0.0, 1.0) / 6.0)


@op("x", saves="x", samples=[sample(_X)])
def hardswish(x: Array) -> Result:
    """Apply hard swish, `y = x * hardsigmoid(x)`.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.

    Notes
    -----
    A. Howard et al., Searching for MobileNetV3, 2019, arXiv:1905.02244.
    """
    return _gated(namespace("hardswish", x=x), x, _HARD)


def _tanh_softplus(xp: ModuleType, x: Array) -> Array:
    # With e = exp(x), tanh(log(1 + e)) = n / (n + 2) where n = e * (e + 2). It is 1 beyond 40; n would overflow.
    e = xp.exp(xp.minimum(x, 40.0))
    n = e * (e + 2.0)
    return n / (n + 2.0)


_MISH: Gate = _tanh_softplus, lambda xp, x, gate: x * ((1.0 - gate * gate) * logistic(xp, x))


@op("x", saves="x", samples=[sample(_X)])
def mish(x: Array) -> Result:
    """Apply mish, `y = x * tanh(softplus(x))`.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.

    Notes
    -----
    D. Misra, Mish: a self regularized non-monotonic activation function, 2019, arXiv:1908.08681.
    """
    return _gated(namespace("mish", x=x), x, _MISH)


def _clipped(xp: ModuleType, x: Array) -> Array:
    return clip(xp, x, -40.0, 40.0)  # the gates of GELU are constant beyond; powers of x would overflow


def _normal(xp: ModuleType, x: Array) -> Array:
    return 0.5 + 0.5 * erf(xp, _clipped(xp, x) * math.sqrt(0.5))


def _normal_lean(xp: ModuleType, x: Array, gate: Array) -> Array:
    u = _clipped(xp, x)
    return u * (math.sqrt(0.5 / math.pi) * xp.exp(-0.5 * u * u))


def _tanh_normal(xp: ModuleType, x: Array) -> Array:
    u = _clipped(xp, x)
    return 0.5 + 0.5 * xp.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u * u * u))


def _tanh_normal_lean(xp: ModuleType, x: Array, gate: Array) -> Array:
    u = _clipped(xp, x)
    return u * (2.0 * gate * (1.0 - gate) * (math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * u * u)))


_GELU: dict[str, Gate] = {"none": (_normal, _normal_lean), "tanh": (_tanh_normal, _tanh_normal_lean)}


@op("x", saves="x", samples=[sample(_X), sample(_X, approximate="tanh")])
def gelu(x: Array, approximate: str = "none") -> Result:
    """Apply the Gaussian error linear unit `y = x * P(N <= x)`, N standard normal.

    Parameters
    ----------
    x : floating-point array of any shape.
    approximate : `'none'`, or `'tanh'` to approximate P by `(1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2`.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,). It keeps x.

    Raises
    ------
    UsageError, DtypeError
        If approximate is another name, or x is not a floating-point array.

    Notes
    -----
    D. Hendrycks and K. Gimpel, Gaussian error linear units, 2016, arXiv:1606.08415.
    """
    xp = namespace("gelu", x=x)
    return _gated(xp, x, _GELU[choice("gelu", "approximate", approximate, _GELU)])

"""Gated activations, `y = x * gate(x)` with a gate from 0 to 1: SiLU, hard swish, Mish and GELU.

The slope of y is the gate plus x times the slope of the gate. Backward keeps x.
"""

import math
from collections.abc import Callable
from types import ModuleType

from xcnn._array import Array
from xcnn._check import choice
from xcnn.ops._erf import erf
from xcnn.ops._formula import clip, formula, inside, logistic
from xcnn.ops._op import Result, op, sample
from xcnn.ops.activation import hard_gate

__all__ = ["gelu", "hardswish", "mish", "silu"]


_X = {"x": (2, 3, 4)}

_Gate = Callable[[ModuleType, Array], Array]
_Lean = Callable[[ModuleType, Array, Array], Array]


def _gated(name: str, gate: _Gate, lean: _Lean) -> Callable[..., Result]:
    """Register the formula of `x * gate(xp, x)`, where `lean(xp, x, gate)` is x times the slope of the gate."""

    def slope(xp: ModuleType, x: Array) -> Array:
        g = gate(xp, x)
        return g + lean(xp, x, g)

    return formula(name, lambda xp, x: x * gate(xp, x), slope, "x")


_SILU = _gated("silu", logistic, lambda xp, x, gate: x * (gate * (1.0 - gate)))


@op("x", saves="x", samples=[sample(_X)], apart=True)
def silu(x: Array) -> Result:
    """Apply the sigmoid linear unit `y = x * sigmoid(x)`, also called swish.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.
    """
    return _SILU(x)


_HARDSWISH = _gated(
    "hardswish", hard_gate, lambda xp, x, gate: x * (xp.astype(inside(xp, gate, 0.0, 1.0), x.dtype) / 6.0)
)


@op("x", saves="x", samples=[sample(_X)], apart=True)
def hardswish(x: Array) -> Result:
    """Apply hard swish, `y = x * hardsigmoid(x)`.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.

    Notes
    -----
    A. Howard et al., Searching for MobileNetV3, 2019, arXiv:1905.02244.
    """
    return _HARDSWISH(x)


def _tanh_softplus(xp: ModuleType, x: Array) -> Array:
    # With e = exp(x), tanh(log(1 + e)) = n / (n + 2) where n = e * (e + 2). It is 1 beyond 40; n would overflow.
    e = xp.exp(xp.minimum(x, 40.0))
    n = e * (e + 2.0)
    return n / (n + 2.0)


_MISH = _gated("mish", _tanh_softplus, lambda xp, x, gate: x * ((1.0 - gate * gate) * logistic(xp, x)))


@op("x", saves="x", samples=[sample(_X)], apart=True)
def mish(x: Array) -> Result:
    """Apply mish, `y = x * tanh(softplus(x))`.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.

    Notes
    -----
    D. Misra, Mish: a self regularized non-monotonic activation function, 2019, arXiv:1908.08681.
    """
    return _MISH(x)


def _clipped(xp: ModuleType, x: Array) -> Array:
    return clip(xp, x, -40.0, 40.0)  # the gates of GELU are constant beyond; powers of x would overflow


def _normal(xp: ModuleType, x: Array, approximate: str) -> Array:
    u = _clipped(xp, x)
    if approximate == "tanh":
        return 0.5 + 0.5 * xp.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u * u * u))
    return 0.5 + 0.5 * erf(xp, u * math.sqrt(0.5))


def _gelu_slope(xp: ModuleType, x: Array, approximate: str) -> Array:
    u, gate = _clipped(xp, x), _normal(xp, x, approximate)
    if approximate == "tanh":
        return gate + u * (2.0 * gate * (1.0 - gate) * (math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * u * u)))
    return gate + u * (math.sqrt(0.5 / math.pi) * xp.exp(-0.5 * u * u))


def _gelu_options(caller: str, approximate: str = "none") -> tuple[str]:
    return (choice(caller, "approximate", approximate, ("none", "tanh")),)


_GELU = formula("gelu", lambda xp, x, approximate: x * _normal(xp, x, approximate), _gelu_slope, "x", _gelu_options)


@op("x", saves="x", samples=[sample(_X), sample(_X, approximate="tanh")], apart=True)
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
    return _GELU(x, approximate)

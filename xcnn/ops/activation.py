"""Activations: elementwise functions of one array.

If the slope is a function of the result, backward keeps y instead of x, because the next layer keeps y anyway. No
intermediate result overflows. Masks are used as factors, because `where` is several times slower on a CPU.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType

from xcnn._array import Array, namespace
from xcnn._check import choice, number
from xcnn._dispatch import body
from xcnn.ops._erf import erf
from xcnn.ops._op import Gradients, Result, op, sample

__all__ = ["elu", "gelu", "leaky_relu", "logistic", "relu", "sigmoid", "silu", "tanh"]


_X = {"x": (2, 3, 4)}


@body
def _relu(xp: ModuleType, x: Array) -> Result:
    y = xp.maximum(x, 0.0)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (xp.where(y != 0.0, dy, 0.0) if needs[0] else None,)

    return y, backward


@op("x", saves="y", samples=[sample(_X)])
def relu(x: Array) -> Result:
    """Apply the rectified linear unit, `y = max(x, 0)`.

    Parameters
    ----------
    x : floating-point array of any shape. NaN propagates.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,), with slope 0 at x = 0. It keeps y. Where the slope is 0 an infinite dy becomes 0.

    Raises
    ------
    DtypeError
        If x is not a floating-point array.
    """
    return _relu(namespace("relu", x=x), x)


def _times(slope: Callable[[], Array]) -> Callable[[Array, Sequence[bool]], Gradients]:
    """Return the backward pass of an elementwise function whose slope is `slope()`."""

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy * slope() if needs[0] else None,)

    return backward


@op("x", saves="y", samples=[sample(_X), sample(_X, negative_slope=0.2)])
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Result:
    """Apply the leaky rectified linear unit: `y = x` where x > 0, else `negative_slope * x`.

    Parameters
    ----------
    x : floating-point array of any shape.
    negative_slope : a number of at least 0, so that the sign of x can be read off y. (PyTorch allows any number and
        keeps x.)

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,), with slope `negative_slope` at x = 0. It keeps y.

    Raises
    ------
    UsageError, DtypeError
        If negative_slope is not such a number, or x is not a floating-point array.
    """
    xp = namespace("leaky_relu", x=x)
    negative_slope = number("leaky_relu", "negative_slope", negative_slope, "[0, inf)")
    y = xp.maximum(x, 0.0) + negative_slope * xp.minimum(x, 0.0)  # inf * 0 would be NaN

    def slope() -> Array:
        positive = xp.astype(y > 0.0, y.dtype)
        return positive + negative_slope * (1.0 - positive)

    return y, _times(slope)


@op("x", saves="x", samples=[sample(_X), sample(_X, alpha=0.5)])
def elu(x: Array, alpha: float = 1.0) -> Result:
    """Apply the exponential linear unit: `y = x` where x > 0, else `alpha * (exp(x) - 1)`.

    Parameters
    ----------
    x : floating-point array of any shape.
    alpha : a number of at least 0.

    Returns
    -------
    y : the shape of x. NaN propagates.
    backward : dy -> (dx,), with slope `alpha` at x = 0, and NaN where x is NaN. It keeps x: `y + alpha`, the slope of
        negative numbers, loses all digits where y is close to `-alpha`.

    Raises
    ------
    UsageError, DtypeError
        If alpha is not such a number, or x is not a floating-point array.

    Notes
    -----
    D.-A. Clevert, T. Unterthiner and S. Hochreiter, Fast and accurate deep network learning by exponential linear
    units, 2016, arXiv:1511.07289.
    """
    xp = namespace("elu", x=x)
    alpha = number("elu", "alpha", alpha, "[0, inf)")
    y = xp.maximum(x, 0.0) + alpha * xp.expm1(xp.minimum(x, 0.0))

    def slope() -> Array:
        positive = xp.astype(x > 0.0, x.dtype)
        return positive + (1.0 - positive) * (alpha * xp.exp(xp.minimum(x, 0.0)))

    return y, _times(slope)


@op("x", saves="y", samples=[sample(_X)])
def sigmoid(x: Array) -> Result:
    """Apply the logistic function `y = 1 / (1 + exp(-x))`, to full relative precision in both tails.

    Arguments, shapes and errors are those of `relu`. Backward keeps y.
    """
    y = logistic(namespace("sigmoid", x=x), x)
    return y, _times(lambda: y * (1.0 - y))


def logistic(xp: ModuleType, x: Array) -> Array:
    """Return `1 / (1 + exp(-x))`, computed without overflow; the losses use it too."""
    return xp.exp(xp.minimum(x, 0.0)) / (1.0 + xp.exp(-xp.abs(x)))


@op("x", saves="y", samples=[sample(_X)])
def tanh(x: Array) -> Result:
    """Apply the hyperbolic tangent. Arguments, shapes and errors are those of `relu`. Backward keeps y."""
    y = namespace("tanh", x=x).tanh(x)
    return y, _times(lambda: 1.0 - y * y)


@op("x", saves="x", samples=[sample(_X)])
def silu(x: Array) -> Result:
    """Apply the sigmoid linear unit `y = x * sigmoid(x)`, also called swish.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.
    """
    xp = namespace("silu", x=x)

    def slope() -> Array:
        gate = logistic(xp, x)
        return gate * (1.0 + x * (1.0 - gate))

    return x * logistic(xp, x), _times(slope)


# GELU multiplies by a gate, the normal distribution function or its approximation. A slope is the derivative of a gate.


def _normal(xp: ModuleType, u: Array) -> Array:
    return 0.5 + 0.5 * erf(xp, u * math.sqrt(0.5))


def _normal_slope(xp: ModuleType, u: Array, gate: Array) -> Array:
    return math.sqrt(0.5 / math.pi) * xp.exp(-0.5 * u * u)


def _tanh_normal(xp: ModuleType, u: Array) -> Array:
    return 0.5 + 0.5 * xp.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u * u * u))


def _tanh_normal_slope(xp: ModuleType, u: Array, gate: Array) -> Array:
    return 2.0 * gate * (1.0 - gate) * (math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * u * u))


_GATES = {"none": (_normal, _normal_slope), "tanh": (_tanh_normal, _tanh_normal_slope)}


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
    gate, gate_slope = _GATES[choice("gelu", "approximate", approximate, _GATES)]

    def clipped() -> Array:
        return xp.maximum(xp.minimum(x, 40.0), -40.0)  # both gates are constant beyond; powers of x would overflow

    def slope() -> Array:
        u = clipped()
        g = gate(xp, u)
        return g + u * gate_slope(xp, u, g)

    return x * gate(xp, clipped()), _times(slope)

"""Activations: elementwise functions of one array, and PReLU, whose slope is a weight."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace
from xcnn._check import number
from xcnn._dispatch import binds, body, bound
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._formula import clip, formula, inside, logistic
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._pair import Pair, pair

__all__ = [
    "celu",
    "elu",
    "hard_gate",
    "hardsigmoid",
    "hardtanh",
    "interval",
    "leaky_relu",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "softplus",
    "tanh",
]


_X = {"x": (2, 3, 4)}


_RELU = formula("relu", lambda xp, x: xp.maximum(x, 0.0), lambda xp, y: y != 0.0, keeps="y")


@op("x", saves="y", samples=[sample(_X)], apart=True)
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
    return _RELU(x)


def _leaky_slope(xp: ModuleType, y: Array, negative_slope: float) -> Array:
    positive = xp.astype(y > 0.0, y.dtype)
    return positive + negative_slope * (1.0 - positive)


def _leaky_options(caller: str, negative_slope: float = 0.01) -> tuple[float]:
    return (number(caller, "negative_slope", negative_slope, "[0, inf)"),)


_LEAKY = formula(
    "leaky_relu",
    lambda xp, x, negative_slope: xp.maximum(x, 0.0) + negative_slope * xp.minimum(x, 0.0),  # inf * 0 would be NaN
    _leaky_slope,
    "y",
    _leaky_options,
)


@op("x", saves="y", samples=[sample(_X), sample(_X, negative_slope=0.2)], apart=True)
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
    return _LEAKY(x, negative_slope)


def _prelu_slope(xp: ModuleType, dy: Array, x: Array, weight: Array, y: Array) -> Array:
    positive = xp.astype(x > 0.0, x.dtype)
    return dy * (positive + (1.0 - positive) * weight)


_PRELU = Pair(
    lambda xp, x, weight: xp.maximum(x, 0.0) + weight * xp.minimum(x, 0.0),
    _prelu_slope,
    lambda xp, dy, x, weight, y: dy * xp.minimum(x, 0.0),
    ("x", "other"),
)


def _spread(x: Array, weight: Array) -> tuple[int, ...]:
    """Return the shape in which the weights of channels broadcast with x."""
    return (*weight.shape, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (1,) * x.ndim


@body
def _prelu(xp: ModuleType, x: Array, weight: Array) -> Result:
    """Apply a slope per channel, or one for all."""
    y, of_pair = pair(xp, x, xp.reshape(weight, _spread(x, weight)), _PRELU, None)
    shape = weight.shape

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight = of_pair(dy, needs)
        return dx, None if dweight is None else xp.reshape(dweight, shape)

    return y, backward


@binds(_prelu)
def _bind(xp: ModuleType, x: Array, weight: Array) -> Any:
    spread = _spread(x, weight)
    run = bound(pair, xp, (x, xp.reshape(weight, spread), _PRELU, None))
    return NotImplemented if run is None else lambda x, weight: run(x, xp.reshape(weight, spread), _PRELU, None)


@op("x weight", saves="x other", samples=[sample({"x": (2, 3, 4), "weight": (3,)})], apart=True)
def prelu(x: Array, weight: Array) -> Result:
    """Apply the parametric rectified linear unit: `y = x` where x > 0, else `weight * x`.

    Parameters
    ----------
    x : floating-point array (n, c, ...), or one of any shape if there is one weight.
    weight : (c,), a slope per channel, or (1,), one for all.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx, dweight), with slope `weight` at x = 0. It keeps x and weight.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit each other or are not floating-point arrays.

    Notes
    -----
    K. He et al., Delving deep into rectifiers, 2015, arXiv:1502.01852.
    """
    xp = namespace("prelu", x=x, weight=weight)
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.shape not in ((1,), (channels,)):
        raise ShapeError(
            f"prelu: weight must have shape ({channels},), one per channel, or (1,), got {tuple(weight.shape)}"
        )
    return _prelu(xp, x, weight)


def interval(caller: str, min_val: float = -1.0, max_val: float = 1.0) -> tuple[float, float]:
    """Return the ends of hardtanh's interval, if the first one is smaller."""
    low = number(caller, "min_val", min_val, "(-inf, inf)")
    high = number(caller, "max_val", max_val, "(-inf, inf)")
    if low >= high:
        raise UsageError(f"{caller}: min_val must be smaller than max_val, got {min_val!r} and {max_val!r}")
    return low, high


_HARDTANH = formula("hardtanh", clip, inside, "y", interval)


@op("x", saves="y", samples=[sample(_X), sample(_X, min_val=-0.3, max_val=1.5)], apart=True)
def hardtanh(x: Array, min_val: float = -1.0, max_val: float = 1.0) -> Result:
    """Limit x to an interval: `y = min(max(x, min_val), max_val)`.

    Parameters
    ----------
    x : floating-point array of any shape. NaN propagates.
    min_val, max_val : the ends of the interval, the first one smaller.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,), with slope 1 inside the interval, and 0 outside and at its ends. It keeps y.

    Raises
    ------
    UsageError, DtypeError
        If the ends are not such numbers, or x is not a floating-point array.
    """
    return _HARDTANH(x, min_val, max_val)


_RELU6 = formula("relu6", lambda xp, x: clip(xp, x, 0.0, 6.0), lambda xp, y: inside(xp, y, 0.0, 6.0), "y")


@op("x", saves="y", samples=[sample(_X)], apart=True)
def relu6(x: Array) -> Result:
    """Limit x to the interval from 0 to 6: `hardtanh(x, 0, 6)`, whose arguments and errors it shares. It keeps y."""
    return _RELU6(x)


def hard_gate(xp: ModuleType, x: Array, alpha: float = 1 / 6, beta: float = 0.5) -> Array:
    """Return hardsigmoid's y, computed so that it is exactly 1 where it ends: `min(max(x + 3, 0), 6) / 6`."""
    width = 1.0 / alpha
    return clip(xp, x + beta * width, 0.0, width) / width


def _hard_options(caller: str, alpha: float = 1 / 6, beta: float = 0.5) -> tuple[float, float]:
    return number(caller, "alpha", alpha, "(0, inf)"), number(caller, "beta", beta, "(-inf, inf)")


_HARDSIGMOID = formula(
    "hardsigmoid",
    hard_gate,
    lambda xp, y, alpha, beta: xp.astype(inside(xp, y, 0.0, 1.0), y.dtype) * alpha,
    "y",
    _hard_options,
)


@op("x", saves="y", samples=[sample(_X), sample(_X, alpha=0.5, beta=0.25)], apart=True)
def hardsigmoid(x: Array, alpha: float = 1 / 6, beta: float = 0.5) -> Result:
    """Apply the piecewise linear sigmoid `y = min(max(alpha * x + beta, 0), 1)`.

    Parameters
    ----------
    x : floating-point array of any shape. NaN propagates.
    alpha, beta : numbers, alpha above 0. The defaults are those of PyTorch; ONNX's default alpha is 0.2.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,), with slope `alpha` where y is between 0 and 1, and 0 elsewhere. It keeps y.

    Raises
    ------
    UsageError, DtypeError
        If an option is not such a number, or x is not a floating-point array.
    """
    return _HARDSIGMOID(x, alpha, beta)


def _softplus(xp: ModuleType, x: Array, beta: float, threshold: float) -> Array:
    z = beta * clip(xp, x, -800.0 / beta, 800.0 / beta)  # y is 0 or x beyond
    smooth = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(z))) / beta
    return xp.where(z > threshold, x, smooth)


def _softplus_slope(xp: ModuleType, x: Array, beta: float, threshold: float) -> Array:
    z = beta * clip(xp, x, -800.0 / beta, 800.0 / beta)
    smooth = xp.astype(z <= threshold, x.dtype)
    return 1.0 - smooth + smooth * logistic(xp, z)


def _softplus_options(caller: str, beta: float = 1.0, threshold: float = 20.0) -> tuple[float, float]:
    return number(caller, "beta", beta, "(0, inf)"), number(caller, "threshold", threshold, "(-inf, inf)")


_SOFTPLUS = formula("softplus", _softplus, _softplus_slope, "x", _softplus_options)


@op("x", saves="x", samples=[sample(_X), sample(_X, beta=2.0, threshold=0.5)], apart=True)
def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Result:
    """Apply the softplus function `y = log(1 + exp(beta * x)) / beta`, a smooth ReLU.

    Parameters
    ----------
    x : floating-point array of any shape.
    beta : a number above 0.
    threshold : y is x where `beta * x` is above this number, as in PyTorch.

    Returns
    -------
    y : the shape of x. NaN propagates.
    backward : dy -> (dx,). It keeps x.

    Raises
    ------
    UsageError, DtypeError
        If an option is not such a number, or x is not a floating-point array.
    """
    return _SOFTPLUS(x, beta, threshold)


def _exponential(xp: ModuleType, x: Array, top: float, depth: float, width: float) -> Array:
    """Return `top * x` where x > 0, else `depth * (exp(x / width) - 1)`."""
    return top * xp.maximum(x, 0.0) + depth * xp.expm1(xp.minimum(x, 0.0) / width)


def _exponential_slope(xp: ModuleType, x: Array, top: float, depth: float, width: float) -> Array:
    positive = xp.astype(x > 0.0, x.dtype)
    return top * positive + (1.0 - positive) * (depth / width * xp.exp(xp.minimum(x, 0.0) / width))


def _elu_options(caller: str, alpha: float = 1.0) -> tuple[float]:
    return (number(caller, "alpha", alpha, "[0, inf)"),)


_ELU = formula(
    "elu",
    lambda xp, x, alpha: _exponential(xp, x, 1.0, alpha, 1.0),
    lambda xp, x, alpha: _exponential_slope(xp, x, 1.0, alpha, 1.0),
    "x",
    _elu_options,
)


@op("x", saves="x", samples=[sample(_X), sample(_X, alpha=0.5)], apart=True)
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
    return _ELU(x, alpha)


def _celu_options(caller: str, alpha: float = 1.0) -> tuple[float]:
    return (number(caller, "alpha", alpha, "(0, inf)"),)


_CELU = formula(
    "celu",
    lambda xp, x, alpha: _exponential(xp, x, 1.0, alpha, alpha),
    lambda xp, x, alpha: _exponential_slope(xp, x, 1.0, alpha, alpha),
    "x",
    _celu_options,
)


@op("x", saves="x", samples=[sample(_X, alpha=0.5)], apart=True)
def celu(x: Array, alpha: float = 1.0) -> Result:
    """Apply the continuously differentiable ELU: `y = x` where x > 0, else `alpha * (exp(x / alpha) - 1)`.

    Parameters
    ----------
    x : floating-point array of any shape.
    alpha : a number above 0.

    Returns
    -------
    y : the shape of x. NaN propagates.
    backward : dy -> (dx,). It keeps x.

    Raises
    ------
    UsageError, DtypeError
        If alpha is not such a number, or x is not a floating-point array.

    Notes
    -----
    J. T. Barron, Continuously differentiable exponential linear units, 2017, arXiv:1704.07483.
    """
    return _CELU(x, alpha)


_SCALE, _ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
"""They keep mean 0 and variance 1; from the paper."""

_SELU = formula(
    "selu",
    lambda xp, x: _exponential(xp, x, _SCALE, _SCALE * _ALPHA, 1.0),
    lambda xp, x: _exponential_slope(xp, x, _SCALE, _SCALE * _ALPHA, 1.0),
    "x",
)


@op("x", saves="x", samples=[sample(_X)], apart=True)
def selu(x: Array) -> Result:
    """Apply the scaled ELU: `scale * elu(x, alpha)`, by which layers keep mean 0 and variance 1.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.

    Notes
    -----
    G. Klambauer et al., Self-normalizing neural networks, 2017, arXiv:1706.02515.
    """
    return _SELU(x)


_SIGMOID = formula("sigmoid", logistic, lambda xp, y: y * (1.0 - y), "y")


@op("x", saves="y", samples=[sample(_X)], apart=True)
def sigmoid(x: Array) -> Result:
    """Apply the logistic function `y = 1 / (1 + exp(-x))`, to full relative precision in both tails.

    Arguments, shapes and errors are those of `relu`. Backward keeps y.
    """
    return _SIGMOID(x)


_TANH = formula("tanh", lambda xp, x: xp.tanh(x), lambda xp, y: 1.0 - y * y, "y")


@op("x", saves="y", samples=[sample(_X)], apart=True)
def tanh(x: Array) -> Result:
    """Apply the hyperbolic tangent. Arguments, shapes and errors are those of `relu`. Backward keeps y."""
    return _TANH(x)

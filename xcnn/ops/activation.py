"""Activations: elementwise functions of one array, and PReLU, whose slope is a weight.

If the slope is a function of the result, backward keeps y instead of x, because the next layer keeps y anyway. No
intermediate result overflows. Masks are used as factors, because `where` is several times slower on a CPU.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

from xcnn._array import Array, namespace
from xcnn._check import number
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._broadcast import sum_to
from xcnn.ops._op import Gradients, Result, op, sample

__all__ = [
    "celu",
    "clip",
    "elu",
    "hard_gate",
    "hardsigmoid",
    "hardtanh",
    "inside",
    "interval",
    "leaky_relu",
    "logistic",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "softplus",
    "tanh",
    "times",
]


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


def times(slope: Callable[[], Array]) -> Callable[[Array, Sequence[bool]], Gradients]:
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

    return y, times(slope)


@op("x weight", saves="x weight", samples=[sample({"x": (2, 3, 4), "weight": (3,)})])
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
    spread = (*weight.shape, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (1,) * x.ndim
    y = xp.maximum(x, 0.0) + xp.reshape(weight, spread) * xp.minimum(x, 0.0)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = dweight = None
        if needs[0]:
            positive = xp.astype(x > 0.0, x.dtype)
            dx = dy * (positive + (1.0 - positive) * xp.reshape(weight, spread))
        if needs[1]:
            dweight = xp.reshape(sum_to(xp, dy * xp.minimum(x, 0.0), spread), weight.shape)
        return dx, dweight

    return y, backward


def clip(xp: ModuleType, x: Array, low: float, high: float) -> Array:
    """Return x limited to an interval; NaN propagates."""
    return xp.minimum(xp.maximum(x, low), high)


def inside(xp: ModuleType, y: Array, low: float, high: float) -> Array:
    """Return the slope of `clip` from its result: 1 inside the interval, 0 outside and, as in PyTorch, at its ends."""
    return 1.0 - xp.astype((y <= low) | (y >= high), y.dtype)


@op("x", saves="y", samples=[sample(_X), sample(_X, min_val=-0.3, max_val=1.5)])
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
    xp = namespace("hardtanh", x=x)
    low, high = interval("hardtanh", min_val, max_val)
    y = clip(xp, x, low, high)
    return y, times(lambda: inside(xp, y, low, high))


def interval(caller: str, min_val: float, max_val: float) -> tuple[float, float]:
    """Return the ends of hardtanh's interval, if the first one is smaller."""
    low = number(caller, "min_val", min_val, "(-inf, inf)")
    high = number(caller, "max_val", max_val, "(-inf, inf)")
    if low >= high:
        raise UsageError(f"{caller}: min_val must be smaller than max_val, got {min_val!r} and {max_val!r}")
    return low, high


@op("x", saves="y", samples=[sample(_X)])
def relu6(x: Array) -> Result:
    """Limit x to the interval from 0 to 6: `hardtanh(x, 0, 6)`, whose arguments and errors it shares. It keeps y."""
    xp = namespace("relu6", x=x)
    y = clip(xp, x, 0.0, 6.0)
    return y, times(lambda: inside(xp, y, 0.0, 6.0))


@op("x", saves="y", samples=[sample(_X), sample(_X, alpha=0.5, beta=0.25)])
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
    xp = namespace("hardsigmoid", x=x)
    alpha = number("hardsigmoid", "alpha", alpha, "(0, inf)")
    beta = number("hardsigmoid", "beta", beta, "(-inf, inf)")
    y = hard_gate(xp, x, alpha, beta)
    return y, times(lambda: inside(xp, y, 0.0, 1.0) * alpha)


def hard_gate(xp: ModuleType, x: Array, alpha: float = 1 / 6, beta: float = 0.5) -> Array:
    """Return hardsigmoid's y, computed so that it is exactly 1 where it ends: `min(max(x + 3, 0), 6) / 6`."""
    width = 1.0 / alpha
    return clip(xp, x + beta * width, 0.0, width) / width


@op("x", saves="x", samples=[sample(_X), sample(_X, beta=2.0, threshold=0.5)])
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
    xp = namespace("softplus", x=x)
    beta = number("softplus", "beta", beta, "(0, inf)")
    threshold = number("softplus", "threshold", threshold, "(-inf, inf)")

    def scaled() -> Array:
        return beta * clip(xp, x, -800.0 / beta, 800.0 / beta)  # y is 0 or x beyond

    def slope() -> Array:
        z = scaled()
        smooth = xp.astype(z <= threshold, x.dtype)
        return 1.0 - smooth + smooth * logistic(xp, z)

    z = scaled()
    smooth = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(z))) / beta
    return xp.where(z > threshold, x, smooth), times(slope)


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
    return _exponential(xp, x, 1.0, number("elu", "alpha", alpha, "[0, inf)"), 1.0)


def _exponential(xp: ModuleType, x: Array, top: float, depth: float, width: float) -> Result:
    """Return `top * x` where x > 0, else `depth * (exp(x / width) - 1)`, and its backward pass."""
    y = top * xp.maximum(x, 0.0) + depth * xp.expm1(xp.minimum(x, 0.0) / width)

    def slope() -> Array:
        positive = xp.astype(x > 0.0, x.dtype)
        return top * positive + (1.0 - positive) * (depth / width * xp.exp(xp.minimum(x, 0.0) / width))

    return y, times(slope)


@op("x", saves="x", samples=[sample(_X, alpha=0.5)])
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
    xp = namespace("celu", x=x)
    alpha = number("celu", "alpha", alpha, "(0, inf)")
    return _exponential(xp, x, 1.0, alpha, alpha)


_SELU = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
"""The scale and alpha that keep mean 0 and variance 1, from the paper."""


@op("x", saves="x", samples=[sample(_X)])
def selu(x: Array) -> Result:
    """Apply the scaled ELU: `scale * elu(x, alpha)`, by which layers keep mean 0 and variance 1.

    Arguments, shapes and errors are those of `relu`. Backward keeps x.

    Notes
    -----
    G. Klambauer et al., Self-normalizing neural networks, 2017, arXiv:1706.02515.
    """
    scale, alpha = _SELU
    return _exponential(namespace("selu", x=x), x, scale, scale * alpha, 1.0)


@op("x", saves="y", samples=[sample(_X)])
def sigmoid(x: Array) -> Result:
    """Apply the logistic function `y = 1 / (1 + exp(-x))`, to full relative precision in both tails.

    Arguments, shapes and errors are those of `relu`. Backward keeps y.
    """
    y = logistic(namespace("sigmoid", x=x), x)
    return y, times(lambda: y * (1.0 - y))


def logistic(xp: ModuleType, x: Array) -> Array:
    """Return `1 / (1 + exp(-x))`, computed without overflow; the losses use it too."""
    return xp.exp(xp.minimum(x, 0.0)) / (1.0 + xp.exp(-xp.abs(x)))


@op("x", saves="y", samples=[sample(_X)])
def tanh(x: Array) -> Result:
    """Apply the hyperbolic tangent. Arguments, shapes and errors are those of `relu`. Backward keeps y."""
    y = namespace("tanh", x=x).tanh(x)
    return y, times(lambda: 1.0 - y * y)

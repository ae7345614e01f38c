"""The formula of all normalisations, and its gradient."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from xcnn._array import Array, sum_over
from xcnn._dispatch import body
from xcnn.ops._formula import Activation, apply, times_slope
from xcnn.ops._op import Gradients

__all__ = ["View", "moments", "norm", "norm_gradient"]


@dataclass(slots=True)
class View:
    """How an op views x: its `shape`, the `axes` to average over, and the shape of `weight` and bias that fits it.

    `count` is the number of elements per mean.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    weight: tuple[int, ...]
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = math.prod([self.shape[axis] for axis in self.axes])


@body
def norm(
    xp: ModuleType,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    view: View,
    given: tuple[Array, Array] | None = None,
    residual: Array | None = None,
    activation: Activation = None,
) -> tuple[Array, Callable[[Array, Sequence[bool]], Gradients], Array, Array]:
    """Normalise x by its own mean and variance, or by given ones, add the residual and apply the activation.

    Return y, backward, mean and variance; the gradients are those of x, weight, bias and residual.
    """
    count, constant, shape = view.count or 1, given is not None, x.shape
    bias_shape, has_residual = None if bias is None else bias.shape, residual is not None
    result = xp.reshape(x, view.shape)
    if given is None:
        mean = sum_over(xp, result, view.axes, keepdims=True) / count
        result = result - mean
        var = sum_over(xp, result * result, view.axes, keepdims=True) / count  # E[x^2] - E[x]^2 would lose digits
    else:
        mean, var = (xp.reshape(array, view.weight) for array in given)
        result = result - mean
    rstd = 1.0 / xp.sqrt(var + eps)
    result *= rstd if weight is None else rstd * xp.reshape(weight, view.weight)
    if bias is not None:
        result += xp.reshape(bias, view.weight)
    if has_residual:
        result += xp.reshape(residual, view.shape)
    result = xp.reshape(apply(xp, result, activation), shape)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        # With xhat = (x - mean) * rstd and d = dy * weight, `dx = rstd * (d - mean(d) - xhat * mean(d * xhat))`, or
        # `rstd * d` if the mean and variance are given. The sums that dweight, dbias and these means share come first.
        dx = dweight = dbias = None
        if y is not None:
            dy = times_slope(xp, dy, y, activation)
        dresidual = dy if needs[3] and has_residual else None
        dy = xp.reshape(dy, view.shape)
        shared = tuple(axis for axis, size in enumerate(view.weight) if size == 1)  # axes with one weight for all
        common = tuple(axis for axis in view.axes if axis in shared)
        statistics = needs[0] and not constant
        if statistics or (needs[2] and bias_shape is not None):
            sums = sum_over(xp, dy, common, keepdims=True)
            if needs[2] and bias_shape is not None:
                dbias = xp.reshape(sum_over(xp, sums, shared), bias_shape)
        if statistics or (needs[1] and weight is not None):
            centred = xp.reshape(x, view.shape) - mean
            products = sum_over(xp, dy * centred, common, keepdims=True) * rstd
            if needs[1] and weight is not None:
                dweight = xp.reshape(sum_over(xp, products, shared), weight.shape)
        if needs[0]:
            factor = 1.0 if weight is None else xp.reshape(weight, view.weight)
            dx = dy * (rstd * factor)
            if statistics:
                centred *= sum_over(xp, products * factor, view.axes, keepdims=True) * (rstd * rstd / count)
                centred += sum_over(xp, sums * factor, view.axes, keepdims=True) * (rstd / count)
                dx -= centred
            dx = xp.reshape(dx, shape)
        return dx, dweight, dbias, dresidual

    return result, backward, mean, var


@body
def moments(xp: ModuleType, x: Array, view: View) -> tuple[Array, Array]:
    """Return the mean and the variance by which `norm` would normalise x."""
    x, count = xp.reshape(x, view.shape), view.count or 1
    mean = sum_over(xp, x, view.axes, keepdims=True) / count
    centred = x - mean
    return mean, sum_over(xp, centred * centred, view.axes, keepdims=True) / count


@body
def norm_gradient(
    xp: ModuleType,
    x: Array,
    dy: Array,
    y: Array | None,
    weight: Array,
    mean: Array,
    rstd: Array,
    shift: Array,
    slope: Array,
    view: View,
    activation: Activation,
) -> Array:
    """Return `rstd * (dy * weight - ((x - mean) * slope + shift))`, the gradient of x when two of its sums are known.

    All but x, dy and y have one number for each weight. With an activation, dy is the gradient of y, its result.
    """
    if activation is not None:
        dy = times_slope(xp, dy, y, activation)
    weight, mean, rstd, shift, slope = (xp.reshape(one, view.weight) for one in (weight, mean, rstd, shift, slope))
    line = (xp.reshape(x, view.shape) - mean) * slope + shift
    return xp.reshape((xp.reshape(dy, view.shape) * weight - line) * rstd, x.shape)

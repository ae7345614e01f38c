"""Batch normalisation: a pass for mean and variance, one that normalises; backward has two.

An addition and an activation after it are passes of their own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._array import namespace_of
from xcnn._dispatch import BODIES, kernel
from xcnn.kernels.cuda._launch import launch, launch_blocks, supports
from xcnn.kernels.cuda._library import empty, namespace
from xcnn.kernels.cuda._maps import Maps, maps, slices
from xcnn.kernels.cuda.activation import elementwise

__all__ = ["moments", "norm", "norm_gradient", "running_statistics"]


def _laid_like(x: Maps, shape: tuple[int, ...]) -> Maps:
    """Return an empty array (n, c, *sizes) with the memory layout of x: images or channels first."""
    n, c, *sizes = shape
    if x.channel <= x.image or n == 1:
        made = empty(shape, x.array.dtype)
    else:
        made = empty((c, n, *sizes), x.array.dtype).swapaxes(0, 1)
    return Maps(made, *(stride // made.itemsize for stride in made.strides[:2]))


@kernel(namespace)
def norm(
    x: Any,
    weight: Any | None,
    bias: Any | None,
    eps: float,
    view: Any,
    given: tuple[Any, Any] | None = None,
    residual: Any | None = None,
    activation: tuple[Any, ...] | None = None,
) -> Any:
    """Normalise channels over a batch, then add and activate; other groups are left to the portable code."""
    if view.axes != (0, 2) or not supports(x):
        return NotImplemented
    y, backward, mean, var = _norm(x, weight, bias, eps, view, given)
    has_residual = residual is not None
    if has_residual:
        y += residual
    activated = None if activation is None else elementwise(y, activation)
    if activated is NotImplemented:
        activated = BODIES["elementwise"](namespace_of(y), y, activation)
    if activated is None:
        return y, lambda dy, needs: (*backward(dy, needs), dy if needs[3] and has_residual else None), mean, var
    y, slope = activated

    def all_backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        (dy,) = slope(dy, (True,))
        return *backward(dy, needs), dy if needs[3] and has_residual else None

    return y, all_backward, mean, var


def _norm(x: Any, weight: Any | None, bias: Any | None, eps: float, view: Any, given: tuple[Any, Any] | None) -> Any:
    """Normalise channels over a batch."""
    n, c, pixels = view.shape
    has_bias, constant, dtype, cut = bias is not None, given is not None, x.dtype, slices(c, n * pixels)
    if given is None:
        mean, var, rstd = _statistics(x, eps, view)
    else:
        mean, var = (a.copy() for a in given)
        rstd = 1.0 / namespace.sqrt(var + eps)
    y = empty(x.shape, dtype)
    launch("normalise", y.size, *_as_maps(x), mean, rstd, weight, bias, y, n, c, pixels)

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        laid, gradients = _as_maps(x), _as_maps(dy)
        wants_weight, wants_bias = needs[1] and weight is not None, needs[2] and has_bias
        dx = dweight = dbias = slope = shift = None
        if wants_weight or wants_bias or (needs[0] and not constant):
            totals = empty((2, c, cut), np.float64)
            dweight, dbias, slope, shift = (empty(c, dtype) for _ in range(4))
            launch_blocks("gradient_sums", c * cut, *laid, *gradients, mean, totals, n, c, pixels, cut)
            made = dweight, dbias, slope, shift
            launch_blocks("gradient_statistics", c, totals, rstd, weight, *made, n * pixels, c, cut)
        if needs[0]:
            factors = mean, rstd, weight, *((None, None) if constant else (slope, shift))
            dx = _input_gradient(x, laid, gradients, factors, view)
        return dx, dweight if wants_weight else None, dbias if wants_bias else None

    return y, backward, mean.reshape(view.weight), var.reshape(view.weight)


def _as_maps(a: Any) -> Maps:
    return maps(a if a.ndim > 2 else a[..., None], max(1, a.ndim - 2))


def _statistics(x: Any, eps: float, view: Any) -> tuple[Any, Any, Any]:
    """Return mean, variance and rstd of each channel."""
    n, c, pixels = view.shape
    cut, made = slices(c, n * pixels), (empty(c, x.dtype), empty(c, x.dtype), empty(c, x.dtype))
    totals = empty((2, c, cut), np.float64)
    launch_blocks("moments", c * cut, *_as_maps(x), totals, n, c, pixels, cut)
    launch_blocks("statistics", c, totals, *made, eps, n * pixels, c, cut)
    return made


def _input_gradient(x: Any, laid: Maps, gradients: Maps, factors: tuple[Any, ...], view: Any) -> Any:
    """Return the gradient of x from mean, rstd, weight, slope and shift of each channel."""
    target = _laid_like(laid, laid.array.shape)
    launch("input_gradient", x.size, *laid, *gradients, *factors, *target, *view.shape)
    return target.array.reshape(x.shape) if x.ndim == 2 else target.array


@kernel(namespace)
def moments(x: Any, view: Any) -> Any:
    """Return mean and variance of each channel of a batch."""
    if view.axes != (0, 2) or not supports(x):
        return NotImplemented
    mean, var, _ = _statistics(x, 1.0, view)
    return mean.reshape(view.weight), var.reshape(view.weight)


@kernel(namespace)
def norm_gradient(
    x: Any,
    dy: Any,
    y: Any | None,
    weight: Any,
    mean: Any,
    rstd: Any,
    shift: Any,
    slope: Any,
    view: Any,
    activation: tuple[Any, ...] | None,
) -> Any:
    """Return the gradient of channels of a batch, after no activation or ReLU."""
    if view.axes != (0, 2) or not supports(x) or activation not in (None, ("relu",)):
        return NotImplemented
    if activation is not None:
        dy, above = empty(dy.shape, dy.dtype), dy
        launch("mask", dy.size, above, y, dy, dy.size)
    factors = mean, rstd, weight, slope * rstd, shift * rstd
    return _input_gradient(x, _as_maps(x), _as_maps(dy), factors, view)


@kernel(namespace)
def running_statistics(running_mean: Any, running_var: Any, mean: Any, var: Any, momentum: float, unbias: float) -> Any:
    """Return the new running statistics in one pass."""
    if not supports(mean):
        return NotImplemented
    made = empty(mean.shape, mean.dtype), empty(mean.shape, mean.dtype)
    arrays = running_mean, running_var, mean, var
    launch("running", mean.size, *arrays, *made, 1.0 - momentum, momentum, unbias, mean.size)
    return made

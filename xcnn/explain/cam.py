"""Class activation maps: where in the maps of a layer the evidence for a class lies."""

import math
from collections.abc import Callable

from xcnn import ops
from xcnn._array import Array, is_array, namespace_of
from xcnn._check import integers, shown
from xcnn.errors import ShapeError, UsageError, explained
from xcnn.explain.target import Target, check_input, weights
from xcnn.explain.trace import Call, Trace, trace
from xcnn.nn import Module

__all__ = ["grad_cam", "grad_cam_plus_plus", "upsample"]

_MOST_NAMES = 12
"""Of layers in an error."""


@explained
def grad_cam(model: Module, x: Array, target: Target = None, layer: str | None = None) -> Array:
    """Return where the maps of a layer speak for a class: their sum, each times its mean gradient.

    Parameters
    ----------
    model, x, target : as in `input_gradient`.
    layer : dotted name of a module whose output is maps (n, c, *sizes); by default the last layer before the scores
        whose output is. The deeper it is, the more its maps know of the class, and the coarser they are.

    Returns
    -------
    (n, *sizes), of the size of the maps; `upsample` makes them as large as the image. Negative sums, which speak
    against the class, are 0.

    Raises
    ------
    UsageError
        If there is no such layer, or it has no maps; the message names the layers that have.
    ShapeError, DtypeError
        If x has no batch axis or is not floating point.

    Notes
    -----
    R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh and D. Batra, Grad-CAM: visual explanations from deep
    networks via gradient-based localization, 2017, arXiv:1610.02391.
    """

    def importance(maps: Array, gradient: Array) -> Array:
        xp, axes = namespace_of(maps), tuple(range(2, maps.ndim))
        return xp.mean(gradient, axis=axes, keepdims=True)

    return _cam("grad_cam", model, x, target, layer, importance)


@explained
def grad_cam_plus_plus(model: Module, x: Array, target: Target = None, layer: str | None = None) -> Array:
    """Return a map as `grad_cam` does that also shows the weaker ones of several places that speak for the class.

    Arguments, shapes and errors are those of `grad_cam`. The weight of a map is not its mean gradient, but the sum of
    g / (2 + s * g) over the pixels of positive gradient g, where s is the sum of the map. The factor exp(score) of the
    paper, the same for all pixels, is left out.

    Notes
    -----
    A. Chattopadhay, A. Sarkar, P. Howlader and V. N. Balasubramanian, Grad-CAM++: generalized gradient-based visual
    explanations for deep convolutional networks, 2018, arXiv:1710.11063, equations 10 and 19.
    """

    def importance(maps: Array, gradient: Array) -> Array:
        xp, axes = namespace_of(maps), tuple(range(2, maps.ndim))
        zero = xp.zeros_like(gradient)
        rise = xp.where(gradient > 0, gradient, zero)  # the others have no weight
        below = 2 + xp.sum(maps, axis=axes, keepdims=True) * rise  # the paper's, divided by the square of the gradient
        share = xp.where(below != 0, rise / xp.where(below != 0, below, xp.ones_like(below)), zero)
        return xp.sum(share, axis=axes, keepdims=True)

    return _cam("grad_cam_plus_plus", model, x, target, layer, importance)


def _cam(
    caller: str,
    model: Module,
    x: Array,
    target: Target,
    layer: str | None,
    importance: Callable[[Array, Array], Array],
) -> Array:
    """Return the positive part of the sum of the maps times their importance (n, c, 1, ...)."""
    found = trace(model, check_input(caller, model, x))
    call = _call(caller, found, layer)
    found.backward(weights(caller, x, found.y, target))
    xp = namespace_of(call.y)
    if call.dy is None:
        raise UsageError(f"{caller}: no gradient reaches the layer {call.name!r}; name another one")
    cam = xp.sum(call.y * importance(call.y, call.dy), axis=1)
    return xp.where(cam > 0, cam, xp.zeros_like(cam))


def _has_maps(call: Call) -> bool:
    """Return whether the output of a call is maps (n, c, *sizes) of several pixels."""
    return bool(is_array(call.y) and call.y.ndim > 2 and math.prod(call.y.shape[2:]) > 1)


def _call(caller: str, found: Trace, layer: str | None) -> Call:
    """Return the call whose maps are used."""
    layers = [call for call in found.layers if _has_maps(call) and call.y is not found.y]
    if layer is not None and _has_maps(found[layer]):
        return found[layer]
    if not layers:
        raise UsageError(f"{caller}: the network has no layer with maps (n, c, h, w); use input_gradient or occlusion")
    if layer is not None:
        names = list(dict.fromkeys(call.name for call in layers))
        some = names if len(names) <= _MOST_NAMES else ["...", *names[-_MOST_NAMES:]]
        raise UsageError(f"{caller}: {layer!r} has no maps (n, c, h, w); the layers that have are {', '.join(some)}")
    return layers[-1]


@explained
def upsample(maps: Array, size: tuple[int, ...]) -> Array:
    """Return maps of another size, bilinearly: those of `grad_cam` as large as the image, to lay over it.

    Parameters
    ----------
    maps : (n, h, w), or (n, w) of signals.
    size : height and width of the result.

    Returns
    -------
    (n, *size).

    Raises
    ------
    ShapeError, UsageError
        If `maps` or `size` are not as above.
    """
    if not is_array(maps) or maps.ndim not in (2, 3, 4):
        raise ShapeError(f"upsample: maps must be (n, h, w), got {shown(maps)}")
    rank = maps.ndim - 1
    mode = ("linear", "bilinear", "trilinear")[rank - 1]
    y, _ = ops.interpolate(maps[:, None, ...], integers("upsample", "size", size, rank), mode=mode)
    return y[:, 0, ...]

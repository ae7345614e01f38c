"""Attributions from gradients at the input: how much each pixel would change a score.

All of them are sums of gradients that a hand-written backward pass returns anyway.
"""

from collections.abc import Callable

import numpy as np

from xcnn._array import Array, is_array, namespace_of
from xcnn._check import generator, integer, number, shown
from xcnn.devices import like
from xcnn.errors import ShapeError, UsageError, explained
from xcnn.explain.target import Target, as_input, check_input, per_pass, score, weights
from xcnn.explain.trace import Call, Rule, trace
from xcnn.nn import Module
from xcnn.nn._calls import calls

__all__ = [
    "completeness",
    "gradient_times_input",
    "guided",
    "guided_backprop",
    "input_gradient",
    "integrated_gradients",
    "smooth_grad",
]

_RELUS = ("relu", "relu6")


@explained
def input_gradient(model: Module, x: Array, target: Target = None, rule: Rule | None = None) -> Array:
    """Return the gradient of a score with respect to the input, the "saliency map" with its signs.

    Parameters
    ----------
    model : the network, on any device; it runs in inference mode.
    x : its input (n, ...), a floating-point array on that device.
    target : None for the highest score of each example, a class, a class per example, or an array of the shape of the
        output, the weights of the outputs whose sum is explained. See `Target`.
    rule : replaces the backward pass of every layer, for an attribution of your own; see `Rule`.

    Returns
    -------
    An array of the shape of x. Where it is positive, a larger number would raise the score.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If x has no batch axis or is not floating point, or `target` is no class of the output.

    Notes
    -----
    K. Simonyan, A. Vedaldi and A. Zisserman, Deep inside convolutional networks: visualising image classification
    models and saliency maps, 2013, arXiv:1312.6034. There, the largest absolute value of the channels is drawn.
    """
    return _gradient("input_gradient", model, x, target, rule)


@explained
def gradient_times_input(model: Module, x: Array, target: Target = None) -> Array:
    """Return the gradient of a score times the input: what each pixel adds to the score if the network were linear.

    Arguments, shapes and errors are those of `input_gradient`. A black pixel, which is 0, always gets 0.

    Notes
    -----
    A. Shrikumar, P. Greenside, A. Shcherbina and A. Kundaje, Not just a black box: learning important features through
    propagating activation differences, 2016, arXiv:1605.01713.
    """
    return _gradient("gradient_times_input", model, x, target) * x


@explained
def guided_backprop(model: Module, x: Array, target: Target = None) -> Array:
    """Return the gradient at the input if every ReLU passes back only what is positive: crisp edges.

    Arguments, shapes and errors are those of `input_gradient`. The map shows what the first layers react to more than
    what decides the score: it changes little if the weights of the last layers are drawn anew (Adebayo et al., 2018).

    Raises
    ------
    UsageError
        If the network has no ReLU, and for the reasons of `input_gradient`.

    Notes
    -----
    J. T. Springenberg, A. Dosovitskiy, T. Brox and M. Riedmiller, Striving for simplicity: the all convolutional net,
    2014, arXiv:1412.6806.
    """
    check_input("guided_backprop", model, x)
    if not any(_is_relu(module) for _, module in model.modules()):
        raise UsageError("guided_backprop: the network has no ReLU, so that it is the gradient; use input_gradient")
    return _gradient("guided_backprop", model, x, target, guided)


def guided(call: Call, dy: Array, backward: Callable[[Array], Array]) -> Array:
    """Return the gradient of a layer, of a ReLU its positive part alone: the `Rule` of guided backpropagation."""
    dx = backward(dy)
    if not _is_relu(call.module):
        return dx
    xp = namespace_of(dx)
    return xp.where(dx > 0, dx, xp.zeros_like(dx))


def _is_relu(module: Module) -> bool:
    known = calls(module, watched=True)
    return known is not None and known[0] in _RELUS


def _gradient(caller: str, model: Module, x: Array, target: Target, rule: Rule | None = None) -> Array:
    found = trace(model, check_input(caller, model, x), rule=rule)
    dx: Array = found.backward(weights(caller, x, found.y, target))
    return dx


@explained
def smooth_grad(
    model: Module,
    x: Array,
    target: Target = None,
    samples: int = 50,
    noise: float = 0.15,
    rng: np.random.Generator | int = 0,
) -> Array:
    """Return the mean of the gradients at noisy copies of the input: the gradient without most of its noise.

    Parameters
    ----------
    model, x, target : as in `input_gradient`; without a target, it is the highest score for x itself.
    samples : the number of copies.
    noise : standard deviation of the noise, as a share of the difference of the largest and smallest number of each
        example.
    rng : a generator or a seed. The noise is drawn on the host, the same on every device: for each copy in turn,
        standard normal numbers of the shape of x.

    Returns
    -------
    An array of the shape of x.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As `input_gradient`, and if an option is out of range.

    Notes
    -----
    D. Smilkov, N. Thorat, B. Kim, F. Viegas and M. Wattenberg, SmoothGrad: removing noise by adding noise, 2017,
    arXiv:1706.03825.
    """
    caller = "smooth_grad"
    xp = namespace_of(check_input(caller, model, x))
    integer(caller, "samples", samples)
    drawn, share = generator(caller, "rng", rng), number(caller, "noise", noise, "[0, inf)")
    dy = weights(caller, x, model(x), target)
    axes = tuple(range(1, x.ndim))
    spread = share * (xp.max(x, axis=axes, keepdims=True) - xp.min(x, axis=axes, keepdims=True))

    def variant(i: int) -> Array:
        return x + spread * like(drawn.standard_normal(tuple(x.shape)), x)

    return _weighted_gradients(model, x, dy, variant, [1 / samples] * samples)


@explained
def integrated_gradients(
    model: Module, x: Array, target: Target = None, baseline: Array | float | None = None, steps: int = 50
) -> Array:
    """Return how the difference of a score from that of a baseline is shared among the pixels.

    It is the input's difference from the baseline, times the mean gradient on the straight way between both. The sum
    of the attributions is the difference of the scores, but for the error of the integral: see `completeness`.

    Parameters
    ----------
    model, x, target : as in `input_gradient`; without a target, it is the highest score for x.
    baseline : an input without what is to be explained, a number or an array that broadcasts to the shape of x; by
        default zeros, a black image. Where x equals it, the attribution is 0.
    steps : the number of points of the Gauss-Legendre rule, as in captum; more for a smaller error.

    Returns
    -------
    An array of the shape of x.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As `input_gradient`, and if `baseline` does not fit x or `steps` is out of range.

    Notes
    -----
    M. Sundararajan, A. Taly and Q. Yan, Axiomatic attribution for deep networks, 2017, arXiv:1703.01365.
    """
    caller = "integrated_gradients"
    check_input(caller, model, x)
    integer(caller, "steps", steps)
    start = as_input(caller, "baseline", 0.0 if baseline is None else baseline, x)
    dy = weights(caller, x, model(x), target)
    points, shares = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]

    def variant(i: int) -> Array:
        return start + float((1 + points[i]) / 2) * (x - start)

    return (x - start) * _weighted_gradients(model, x, dy, variant, (shares / 2).tolist())


@explained
def completeness(
    model: Module,
    x: Array,
    attribution: Array,
    target: Target = None,
    baseline: Array | float | None = None,
) -> Array:
    """Return how far the sum of attributions is from the difference of the scores of x and the baseline.

    Parameters
    ----------
    model, x, target, baseline : as in `integrated_gradients`.
    attribution : what a method returned for them, of the shape of x.

    Returns
    -------
    (n,) : the sum of the attributions less the difference of the scores, of each example. It is 0 but for rounding
    errors and those of the integral, if the method shares out the difference.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As `integrated_gradients`, and if `attribution` does not have the shape of x.
    """
    caller = "completeness"
    xp = namespace_of(check_input(caller, model, x))
    if not is_array(attribution) or tuple(attribution.shape) != tuple(x.shape):
        raise ShapeError(f"{caller}: attribution must have the shape of x, {tuple(x.shape)}, got {shown(attribution)}")
    y = model(x)
    dy = weights(caller, x, y, target)
    difference = score(y, dy) - score(model(as_input(caller, "baseline", 0.0 if baseline is None else baseline, x)), dy)
    return xp.sum(xp.reshape(attribution, (x.shape[0], -1)), axis=1) - difference


def _weighted_gradients(
    model: Module, x: Array, dy: Array, variant: Callable[[int], Array], shares: list[float]
) -> Array:
    """Return the sum of `shares[i]` times the gradients at `variant(i)`, of as many in one pass as memory allows."""
    xp, n, together = namespace_of(x), x.shape[0], per_pass(x)
    total = xp.zeros_like(x)
    for first in range(0, len(shares), together):
        some = shares[first : first + together]
        inputs = xp.concat([variant(first + i) for i in range(len(some))], axis=0)
        dx = trace(model, inputs).backward(xp.concat([dy] * len(some), axis=0))
        for i, share in enumerate(some):
            total = total + share * dx[i * n : (i + 1) * n, ...]
    return total

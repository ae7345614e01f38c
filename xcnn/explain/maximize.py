"""Activation maximisation: draw the image that a channel or a class reacts to most."""

from collections.abc import Callable, Sequence

import numpy as np

from xcnn._array import Array, is_array
from xcnn._check import generator, integer, interval, is_integer, number, shown
from xcnn.devices import like, to_numpy
from xcnn.errors import UsageError, explained
from xcnn.explain.trace import Call, Trace, trace
from xcnn.nn import Module

__all__ = ["maximize_activation"]


@explained
def maximize_activation(
    model: Module,
    layer: str | None,
    channel: int,
    shape: Sequence[int],
    steps: int = 200,
    lr: float = 0.05,
    rng: np.random.Generator | int = 0,
    decay: float = 0.01,
    blur: float = 0.02,
    jitter: int | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Array:
    """Return an image for which the mean of a channel is large, by gradient ascent from noise.

    The image shows what the channel reacts to, often as a texture all over the image, not what it has learned from: it
    is unlike any image of the data. Other noise, another `rng`, may lead to another image.

    Parameters
    ----------
    model : the network, on any device; it runs in inference mode.
    layer : dotted name of a module; None for the output of the network, whose channels are the classes.
    channel : its channel, or its number if it returns rows of numbers.
    shape : shape of the image (c, h, w).
    steps : the number of steps.
    lr : how far a step moves: the root of the mean square of the change of the pixels, as a share of the distance of
        the bounds.
    rng : a generator or a seed of the noise and the jitter, which are drawn on the host, the same on every device.
    decay : the share of its distance from the middle of `bounds`, or from 0, that each pixel loses per step.
    blur : the share of each neighbour that is mixed into a pixel per step and axis, at most 1/3: it suppresses the
        checkerboards to which networks react strongly.
    jitter : the most pixels by which the image is shifted before a step, and back after it; by default a sixteenth of
        its smallest side, rounded down.
    bounds : the smallest and largest number of an image, here those of `data.to_float`; None for none.

    Returns
    -------
    An array of the given shape of the library, device and dtype of the network.

    Raises
    ------
    UsageError
        If there is no such layer or channel, or an option is out of range.

    Notes
    -----
    D. Erhan, Y. Bengio, A. Courville and P. Vincent, Visualizing higher-layer features of a deep network, 2009. Decay
    and blur are of J. Yosinski, J. Clune, A. Nguyen, T. Fuchs and H. Lipson, Understanding neural networks through deep
    visualization, 2015, arXiv:1506.06579; jitter of A. Mordvintsev, C. Olah and M. Tyka, Inceptionism, 2015.
    """
    caller = "maximize_activation"
    if not isinstance(model, Module):
        raise UsageError(f"{caller}: model must be a module, got {shown(model)}")
    if not isinstance(shape, Sequence) or len(shape) < 1 or not all(is_integer(n) and n > 0 for n in shape):
        raise UsageError(f"{caller}: shape must be that of one image, (c, h, w), got {shown(shape)}")
    integer(caller, "steps", steps)
    most = min(shape[1:], default=0) // 16 if jitter is None else integer(caller, "jitter", jitter, minimum=0)
    number(caller, "lr", lr, "(0, inf)")
    number(caller, "decay", decay, "[0, 1)")
    number(caller, "blur", blur, "[0, 0.34)")
    low, high = (-np.inf, np.inf) if bounds is None else interval(caller, "bounds", bounds, "(-inf, inf)")
    middle, spread = (0.0, 1.0) if bounds is None else ((low + high) / 2, high - low)
    drawn, axes = generator(caller, "rng", rng), tuple(range(1, len(shape)))
    first = next(iter(model.parameters()), None)

    def placed(image: np.ndarray) -> Array:
        return image.astype(np.float32) if first is None else like(image, first.data)

    image = np.clip(middle + 0.1 * spread * drawn.standard_normal(tuple(shape)), low, high)
    for _ in range(steps):
        shifts = drawn.integers(-most, most + 1, len(axes)).tolist()
        slope = _slope(caller, model, layer, channel, placed(np.roll(image, shifts, axes)[None]))
        slope = np.roll(slope, [-shift for shift in shifts], axes)
        size = float(np.sqrt(np.mean(slope * slope)))
        image = image + lr * spread * slope / size if size > 0 else image
        image = middle + (1 - decay) * (image - middle)
        for axis in axes:
            edges = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
            before, after = (np.take(edges, range(i, i + image.shape[axis]), axis) for i in (0, 2))
            image = (1 - 2 * blur) * image + blur * (before + after)
        image = np.clip(image, low, high)
    return placed(image)


def _slope(caller: str, model: Module, layer: str | None, channel: int, x: Array) -> np.ndarray:
    """Return the gradient of the sum of a channel at x, on the host, without the batch axis."""
    wanted: list[Call] = []

    def rule(call: Call, dy: Array, backward: Callable[[Array], Array]) -> Array:
        return backward(dy + seed if call in wanted else dy)

    found = trace(model, x, rule=rule)
    scores: Array = found.y
    y = scores if layer is None else found[layer].y
    seed = _seed(caller, "the output" if layer is None else layer, channel, y)
    if layer is None:
        dx = found.backward(seed)
    else:
        wanted.append(_leaf(caller, found, layer))
        dx = found.backward(like(np.zeros(tuple(scores.shape), np.float32), scores))
        if wanted[0].dy is None:
            raise UsageError(f"{caller}: no gradient reaches the layer {layer!r}; name another one")
    return np.asarray(to_numpy(dx)[0], np.float64)


def _leaf(caller: str, found: Trace, layer: str) -> Call:
    """Return the call of the layer that made the output of a module."""
    y = found[layer].y
    for call in reversed(found.layers):
        if call.y is y:
            return call
    raise UsageError(f"{caller}: {layer!r} computes its output by code of its own; name a layer inside it")


def _seed(caller: str, name: str, channel: int, y: Array) -> Array:
    """Return the gradient of the sum of a channel of y, in the direction of that of its mean."""
    if not is_array(y) or y.ndim < 2:
        came = f"shape {tuple(y.shape)}" if is_array(y) else type(y).__name__
        raise UsageError(f"{caller}: {name} must be an array (n, c, ...), got {came}")
    integer(caller, "channel", channel, 0, int(y.shape[1]) - 1)
    seed = np.zeros(tuple(y.shape), np.float32)
    seed[:, channel] = 1
    return like(seed, y)

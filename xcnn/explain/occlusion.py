"""Occlusion: cover a part of the image, and see how much the score falls."""

import itertools
import math

import numpy as np

from xcnn._array import Array, namespace_of
from xcnn._check import integers
from xcnn.devices import like, to_numpy
from xcnn.errors import ShapeError, UsageError, explained
from xcnn.explain.target import Target, as_input, check_input, per_pass, score, weights
from xcnn.nn import Module
from xcnn.ops._options import Integers

__all__ = ["occlusion"]

_PER_AXIS = 7
"""The default window is so many times smaller than the image."""


@explained
def occlusion(
    model: Module,
    x: Array,
    target: Target = None,
    window: Integers | None = None,
    stride: Integers | None = None,
    fill: Array | float = 0.0,
) -> Array:
    """Return by how much a score falls if the pixels are covered.

    A window slides over the image, and the network runs once for each of its places. Unlike a gradient, this needs no
    backward pass and shows what really happens; but the network may never have seen an image with a hole.

    Parameters
    ----------
    model, target : as in `input_gradient`; without a target, it is the highest score for x.
    x : images (n, c, h, w), or signals or volumes.
    window : height and width of the window, by default a seventh of the image.
    stride : pixels from one window to the next, at most the size of the window; by default half of it. The last windows
        end at the border.
    fill : what covers the pixels of all channels: a number, or an array that broadcasts to the shape of x.

    Returns
    -------
    (n, h, w) : the fall of the score, the mean over the windows that cover a pixel. Negative where covering raises it.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As `input_gradient`, and if an option is out of range.

    Notes
    -----
    M. D. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, 2013, arXiv:1311.2901.
    """
    caller = "occlusion"
    xp = namespace_of(check_input(caller, model, x))
    if x.ndim < 3:
        raise ShapeError(f"{caller}: x must be images (n, c, h, w), got shape {tuple(x.shape)}")
    sizes, rank = tuple(map(int, x.shape[2:])), x.ndim - 2
    default = tuple(max(1, size // _PER_AXIS) for size in sizes)
    windows = default if window is None else integers(caller, "window", window, rank)
    windows = tuple(map(min, windows, sizes))
    steps = tuple(max(1, one // 2) for one in windows) if stride is None else integers(caller, "stride", stride, rank)
    if any(step > one for step, one in zip(steps, windows, strict=True)):
        raise UsageError(f"{caller}: stride must be at most the window, {windows}, or pixels are left out; got {steps}")
    cover, n = as_input(caller, "fill", fill, x), x.shape[0]
    y = model(x)
    dy = weights(caller, x, y, target)
    whole = to_numpy(score(y, dy)).astype(np.float64)

    places = [
        [slice(i * step, i * step + one) for i in range(math.ceil((size - one) / step) + 1)]
        for size, one, step in zip(sizes, windows, steps, strict=True)
    ]
    boxes = list(itertools.product(*places))
    falls, counts = np.zeros((n, *sizes)), np.zeros(sizes)
    together = per_pass(x)
    for first in range(0, len(boxes), together):
        some = boxes[first : first + together]
        inputs = xp.concat([xp.where(_inside(x, box), cover, x) for box in some], axis=0)
        scores = to_numpy(score(model(inputs), xp.concat([dy] * len(some), axis=0))).astype(np.float64)
        for box, covered in zip(some, scores.reshape(-1, n), strict=True):
            falls[(slice(None), *box)] += (whole - covered).reshape(-1, *(1,) * rank)
            counts[box] += 1
    return like(falls / counts, x)


def _inside(x: Array, box: tuple[slice, ...]) -> Array:
    """Return which pixels of x are in a box, bool (1, 1, h, w)."""
    inside = np.zeros((1, 1, *x.shape[2:]), np.float32)
    inside[(slice(None), slice(None), *box)] = 1
    return like(inside, x) > 0

"""Augmentations of the values of pixels; targets are returned unchanged."""

from typing import Any

import numpy as np

from xcnn._check import flag, number
from xcnn.data.augment import adjust
from xcnn.data.augment._batch import Images, Random, begin, in_unit_range
from xcnn.errors import ShapeError, explained

__all__ = ["color_jitter", "gaussian_noise"]


@explained
def color_jitter(
    x: Images,
    y: Any,
    rng: Random,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.0,
) -> tuple[Images, Any]:
    """Change brightness, contrast, saturation and hue, in this order, of images with values in [0, 1].

    The factors of the first three are drawn uniformly from [max(0, 1 - option), 1 + option], and the turn of the hue
    from [-hue, hue], as a part of the circle of colours. Images of one channel have no saturation and hue; `hue` takes
    images of one or three channels.
    """
    rng = begin("color_jitter", x, y, rng)
    x = in_unit_range("color_jitter", x)
    turn = number("color_jitter", "hue", hue, "[0, 0.5]")
    if turn and x.shape[1] not in (1, 3):
        raise ShapeError(f"color_jitter: x must have 1 or 3 channels for hue, got {x.shape}")
    x = x.copy()
    for function, option in (
        (adjust.brightness, brightness),
        (adjust.contrast, contrast),
        (adjust.saturation, saturation),
    ):
        limit = number("color_jitter", function.__name__, option, "[0, 100]")
        factor = rng.uniform(max(0.0, 1 - limit), 1 + limit)
        if limit:
            x = function(x, factor)
    turns = rng.uniform(-turn, turn)
    return adjust.hue(x, turns) if turn else x, y


@explained
def gaussian_noise(x: Images, y: Any, rng: Random, sigma: float = 0.05, clip: bool = True) -> tuple[Images, Any]:
    """Add normal noise of mean 0 and standard deviation `sigma` to each element of x (n, ...).

    With `clip`, the values of `x` must lie in [0, 1], and those of the result are limited to it.
    """
    rng = begin("gaussian_noise", x, y, rng, rank=None)
    clip, sigma = flag("gaussian_noise", "clip", clip), number("gaussian_noise", "sigma", sigma, "[0, 1e6]")
    noisy = rng.normal(0, sigma, x.shape[1:], x.dtype)
    noisy += in_unit_range("gaussian_noise", x) if clip else x
    return np.clip(noisy, 0, 1, out=noisy) if clip else noisy, y

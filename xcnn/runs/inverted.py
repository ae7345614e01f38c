"""Whether an image looks inverted against the training images: dark on light instead of light on dark."""

from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn.data import Dataset, to_float

__all__ = ["border", "border_of", "looks_inverted"]

_LOOKED_AT, _AT_ONCE = 256, 32
"""Training images: of which the border is taken, and in memory at a time."""

_FAR, _NEAR = 0.6, 0.4
"""Differences of the brightness, from 0 to 1."""


def border(images: npt.NDArray[np.floating]) -> float:
    """Return the mean brightness of the outermost pixels of images (n, c, h, w)."""
    edge = np.ones(images.shape[-2:], bool)
    edge[1:-1, 1:-1] = False
    return float(images[..., edge].mean(dtype=np.float64))


def border_of(dataset: Dataset) -> float | None:
    """Return the mean of `border` over 256 images of a data set, evenly spaced; None if they are not uint8."""
    if len(dataset.shape) != 3 or dataset.x.dtype != np.uint8:
        return None
    places = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(int))
    parts = [places[start : start + _AT_ONCE] for start in range(0, len(places), _AT_ONCE)]
    return sum(len(part) * border(to_float(dataset.gather(part)[0])) for part in parts) / len(places)


def looks_inverted(image: npt.NDArray[np.floating], expected: Any) -> bool:
    """Return whether the border of an image (c, h, w) is far from that of the training images, and near inverted.

    `expected` is what `border_of` returned, or what a file says that it did.
    """
    if not isinstance(expected, float | int) or not 0 <= expected <= 1:
        return False
    came = border(image[None])
    return abs(came - expected) > _FAR and abs(1 - came - expected) < _NEAR

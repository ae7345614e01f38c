"""Adjustments of images (n, C, H, W) with values in [0, 1], by one number for each image, without random numbers.

The operations are those of Pillow's ImageEnhance and ImageOps. Each returns new images, whose bits do not depend on the
other images of the batch. The factor of brightness, contrast, saturation and sharpness is 1 for an unchanged image.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn.data.augment._batch import Images

__all__ = [
    "autocontrast",
    "brightness",
    "contrast",
    "equalize",
    "hue",
    "posterize",
    "saturation",
    "sharpness",
    "solarize",
]

Numbers = npt.NDArray[np.floating[Any]]


def brightness(x: Images, factor: Numbers) -> Images:
    """Multiply by the factor: with 0, the image becomes black."""
    return _clip(x * _each(factor, x))


def contrast(x: Images, factor: Numbers) -> Images:
    """Multiply the differences from the mean of the grey image by the factor."""
    grey = _grey(x)
    size = math.prod(x.shape[2:])
    # Each sum is over contiguous elements, so its order does not depend on the number of images.
    mean = grey.reshape(len(x), size).sum(axis=1) / x.dtype.type(size)
    return _blend(x, mean[:, None, None, None], factor)


def saturation(x: Images, factor: Numbers) -> Images:
    """Multiply the differences from the grey image by the factor: with 0, it becomes grey."""
    return _blend(x, _grey(x), factor)


def sharpness(x: Images, factor: Numbers) -> Images:
    """Multiply the differences from a smoothed image by the factor: with 0, it becomes blurred. The edge is kept.

    A pixel of the smoothed image is the mean of 3 x 3, of which that in the middle counts five times.
    """
    if min(x.shape[2:]) < 3:
        return x.copy()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    smooth = x.copy()
    middle = smooth[:, :, 1:-1, 1:-1]
    middle *= 4
    middle += rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    middle /= 13
    return _blend(x, smooth, factor)


def hue(x: Images, turn: Numbers) -> Images:
    """Turn the hue, in turns of the circle of colours: by a third, red becomes green. Grey images are unchanged.

    x is (n, 1, H, W) or (n, 3, H, W).
    """
    if x.shape[1] == 1:
        return x.copy()
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    most = np.maximum(np.maximum(red, green), blue)
    chroma = most - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma == 0, x.dtype.type(1), chroma)
    sixths = np.where(
        most == red,
        (green - blue) / divisor,
        np.where(most == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths += (6 * turn).astype(x.dtype)[:, None, None]
    turned = np.empty_like(x)
    for channel, start in enumerate((5, 3, 1)):
        place = sixths + start
        place -= 6 * np.floor(place / 6)
        np.minimum(place, 4 - place, out=place)
        turned[:, channel] = most - chroma * _clip(place)
    return _clip(turned)


def posterize(x: Images, bits: Numbers) -> Images:
    """Keep the first `bits` of the 8 bits of each value."""
    kept = (0xFF << (8 - bits.astype(np.int64))) & 0xFF
    return _from_bytes(_to_bytes(x) & kept.astype(np.uint8)[:, None, None, None], x)


def solarize(x: Images, threshold: Numbers) -> Images:
    """Invert the values from the threshold on."""
    return np.where(x >= _each(threshold, x), 1 - x, x)


def autocontrast(x: Images, unused: Numbers) -> Images:
    """Stretch each channel so that its values reach from 0 to 1."""
    least, most = (f(x, axis=(2, 3), keepdims=True) for f in (np.min, np.max)) if x.size else (x, x)
    flat = least == most
    return _clip((x - np.where(flat, 0, least)) / np.where(flat, 1, most - least))


def equalize(x: Images, unused: Numbers) -> Images:
    """Make the 256 values of 8 bits as frequent as each other in each channel."""
    n, c, h, w = x.shape
    channels = _to_bytes(x).reshape(n * c, h * w)
    index = channels + 256 * np.arange(n * c)[:, None]
    counts = np.bincount(index.ravel(), minlength=256 * n * c).reshape(-1, 256)
    last = 255 - np.argmax(counts[:, ::-1] > 0, axis=1)
    step = (h * w - counts[np.arange(n * c), last])[:, None] // 255
    table = (np.cumsum(counts, axis=1) - counts + step // 2) // np.maximum(step, 1)
    table = np.where(step == 0, np.arange(256), np.minimum(table, 255)).astype(np.uint8)
    return _from_bytes(table.ravel()[index].reshape(x.shape), x)


def _each(numbers: Numbers, x: Images) -> Images:
    """Return one number per image in the type of the images, (n, 1, 1, 1)."""
    return numbers.astype(x.dtype)[:, None, None, None]


def _clip(x: Images) -> Images:
    """Limit the values to [0, 1], in place."""
    return np.clip(x, 0, 1, out=x)


def _blend(x: Images, other: Images, factor: Numbers) -> Images:
    """Return other + factor (x - other), limited to [0, 1]."""
    blended = x - other
    blended *= _each(factor, x)
    blended += other
    return _clip(blended)


def _grey(x: Images) -> Images:
    """Return grey images (n, 1, H, W), with the weights of ITU-R BT.601 for three channels."""
    c = x.shape[1]
    weights = (0.299, 0.587, 0.114) if c == 3 else (1 / c,) * c
    grey = x[:, :1] * x.dtype.type(weights[0])
    for channel in range(1, c):
        grey += x[:, channel : channel + 1] * x.dtype.type(weights[channel])
    return grey


def _to_bytes(x: Images) -> npt.NDArray[np.uint8]:
    return np.rint(x * x.dtype.type(255)).astype(np.uint8)


def _from_bytes(values: npt.NDArray[np.uint8], like: Images) -> Images:
    return values.astype(like.dtype) / like.dtype.type(255)

"""Augmentations that move the pixels of an image, and those of its mask with them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._check import flag, integer, integers, interval, number
from xcnn.data.augment._batch import Images, Random, begin, with_mask
from xcnn.errors import explained

__all__ = ["affine", "affine_matrix", "crop", "flip", "random_resized_crop", "resample", "rotate", "shift", "zoom"]

Matrices = npt.NDArray[np.float64]


@explained
def flip(x: Images, y: Any, rng: Random, p: float = 0.5, vertical: bool = False) -> tuple[Images, Any]:
    """Flip each image with probability `p`: left becomes right or, if `vertical`, up becomes down.

    Unsuitable for digits and letters.
    """
    rng = begin("flip", x, y, rng)
    chosen = rng.random() < number("flip", "p", p, "[0, 1]")
    axis = 2 if flag("flip", "vertical", vertical) else 3

    def move(array: Any, outside: int) -> Any:
        moved = array.copy()
        moved[chosen] = np.flip(array[chosen], axis)
        return moved

    return with_mask("flip", x, y, move)


@explained
def shift(x: Images, y: Any, rng: Random, pixels: int = 2) -> tuple[Images, Any]:
    """Shift by a number of pixels drawn uniformly from [-pixels, pixels], vertically and horizontally."""
    return _shift("shift", x, y, rng, integer("shift", "pixels", pixels, minimum=0))


@explained
def crop(x: Images, y: Any, rng: Random, pad: int = 4) -> tuple[Images, Any]:
    """Pad with `pad` zeros on every side and crop a random window of the original size, as is usual for CIFAR-10.

    It is the same as `shift` by up to `pad` pixels.
    """
    return _shift("crop", x, y, rng, integer("crop", "pad", pad, minimum=0))


def _shift(name: str, x: Images, y: Any, rng: Random, pixels: int) -> tuple[Images, Any]:
    moves = begin(name, x, y, rng).integers(-pixels, pixels + 1, 2)
    pad = min(pixels, max(x.shape[2:]))  # an image that moves by more than its size is out of sight all the same
    top, left = np.clip(moves, -pad, pad).T + pad

    def move(array: Any, outside: int) -> Any:
        windows = np.lib.stride_tricks.sliding_window_view(_pad(array, outside, pad, pad), array.shape[2:], (2, 3))
        return windows[np.arange(len(array)), :, top, left]  # of (n, C, 2p+1, 2p+1, H, W)

    return with_mask(name, x, y, move)


@explained
def random_resized_crop(
    x: Images,
    y: Any,
    rng: Random,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    size: int | Sequence[int] | None = None,
) -> tuple[Images, Any]:
    """Crop a window of random size, shape and place, and enlarge it to the size of the image, or to `size`.

    The area of the window is drawn uniformly from `scale`, as a part of that of the image, and the logarithm of width
    to height from that of `ratio`, up to ten times until the window fits; otherwise it is the whole image. To shrink
    windows to a much smaller `size` causes aliasing.

    Source: C. Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842.
    """
    rng = begin("random_resized_crop", x, y, rng)
    scale = interval("random_resized_crop", "scale", scale, "(0, 1]")
    low, high = interval("random_resized_crop", "ratio", ratio, "[0.01, 100]")
    n, _, h, w = x.shape
    oh, ow = (h, w) if size is None else integers("random_resized_crop", "size", size, 2)
    area = rng.uniform(*scale, 10) * (h * w)
    aspect = np.exp(rng.uniform(math.log(low), math.log(high), 10))
    heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (heights >= 1) & (heights <= h) & (widths >= 1) & (widths <= w)
    first = np.arange(n), np.argmax(fits, axis=1)
    height, width = np.where(fits[first], heights[first], h), np.where(fits[first], widths[first], w)
    top, left = np.floor(rng.random() * (h - height + 1)), np.floor(rng.random() * (w - width + 1))
    matrix = np.zeros((n, 2, 3))
    matrix[:, 0, 0], matrix[:, 1, 1] = height / oh, width / ow
    matrix[:, 0, 2], matrix[:, 1, 2] = top + (height - h) / 2, left + (width - w) / 2
    window = np.stack((top, top + height - 1, left, left + width - 1), axis=1)
    return with_mask("random_resized_crop", x, y, lambda a, outside: resample(a, matrix, outside, (oh, ow), window))


@explained
def rotate(x: Images, y: Any, rng: Random, degrees: float = 10) -> tuple[Images, Any]:
    """Rotate about the centre by an angle drawn uniformly from [-degrees, degrees], with bilinear interpolation."""
    rng = begin("rotate", x, y, rng)
    degrees = number("rotate", "degrees", degrees, "[0, 360]")
    matrix = affine_matrix(rng.uniform(-degrees, degrees))
    return with_mask("rotate", x, y, lambda array, outside: resample(array, matrix, outside))


@explained
def zoom(x: Images, y: Any, rng: Random, scale: Sequence[float] = (0.8, 1.2)) -> tuple[Images, Any]:
    """Enlarge about the centre by a factor drawn uniformly from `scale`, with bilinear interpolation."""
    rng = begin("zoom", x, y, rng)
    matrix = affine_matrix(0, scale=rng.uniform(*interval("zoom", "scale", scale, "[0.01, 100]")))
    return with_mask("zoom", x, y, lambda array, outside: resample(array, matrix, outside))


@explained
def affine(
    x: Images,
    y: Any,
    rng: Random,
    degrees: float = 10,
    translate: float = 0.1,
    scale: Sequence[float] = (0.9, 1.1),
    shear: float = 10,
) -> tuple[Images, Any]:
    """Rotate, shift, enlarge and shear at once, with one bilinear interpolation.

    Drawn uniformly are the angle from [-degrees, degrees], the shift from [-translate, translate], as a part of the
    height and of the width, the factor from `scale`, and the angle of shearing from [-shear, shear] degrees.
    """
    rng = begin("affine", x, y, rng)
    degrees = number("affine", "degrees", degrees, "[0, 360]")
    translate = number("affine", "translate", translate, "[0, 1]")
    shear = number("affine", "shear", shear, "[0, 89]")
    moves = rng.uniform(-translate, translate, 2) * x.shape[2:]
    angles, shears = rng.uniform(-degrees, degrees), rng.uniform(-shear, shear)
    matrix = affine_matrix(angles, moves, rng.uniform(*interval("affine", "scale", scale, "[0.01, 100]")), shears)
    return with_mask("affine", x, y, lambda array, outside: resample(array, matrix, outside))


def affine_matrix(
    degrees: npt.ArrayLike, translate: npt.ArrayLike = (0, 0), scale: npt.ArrayLike = 1, shear: npt.ArrayLike = 0
) -> Matrices:
    """Return matrices (n, 2, 3) for `resample`, from numbers or arrays (n,).

    The image is sheared about its centre so that the upper part moves right for positive degrees, rotated
    anticlockwise by `degrees`, and enlarged by `scale`. Then it is moved down and right by `translate` (2,) or (n, 2),
    in pixels.
    """
    angle, slope = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    cos, sin = np.cos(angle), np.sin(angle)
    inverse = np.stack(np.broadcast_arrays(cos, sin, slope * cos - sin, slope * sin + cos), axis=-1).reshape(-1, 2, 2)
    inverse = inverse / np.reshape(scale, (-1, 1, 1))
    moved = np.asarray(translate, np.float64).reshape(-1, 2, 1)
    start = -(inverse[:, :, :1] * moved[:, :1] + inverse[:, :, 1:] * moved[:, 1:])  # (n, 2, 1)
    return np.concatenate((np.broadcast_to(inverse, (len(start), 2, 2)), start), axis=2)


def resample(
    x: Any,
    matrix: Matrices,
    outside: int = 0,
    size: tuple[int, int] | None = None,
    window: Matrices | None = None,
) -> Any:
    """Return images of the size (H', W') of `size`, by default that of `x`, whose pixels come from others of `x`.

    A pixel at (v, u), counted downwards and to the right from the centre of the image, comes from (v', u') =
    matrix @ (v, u, 1), counted from the centre of `x`. Floating point is interpolated between the four neighbours,
    integers are those of the nearest pixel.

    Parameters
    ----------
    x : images (n, C, H, W).
    matrix : (n, 2, 3).
    outside : value of the pixels outside of `x`.
    size : (H', W').
    window : first and last row, first and last column (n, 4); pixels outside the window are those at its edge.
    """
    n, c, h, w = x.shape
    oh, ow = size or (h, w)
    nearest = x.dtype.kind != "f"
    # An index into an image, calculated below, must be exact.
    dtype: Any = np.float32 if x.dtype != np.float64 and (h + 3) * (w + 3) < 2**24 else np.float64
    v = np.arange(oh, dtype=dtype) - dtype((oh - 1) / 2)
    u = np.arange(ow, dtype=dtype) - dtype((ow - 1) / 2)
    limits = np.broadcast_to((-1.0, h, -1, w), (n, 4)) if window is None else window
    matrices = matrix.astype(dtype)[:, :, :, None]  # (n, 2, 3, 1)
    limits = (limits + 1).astype(dtype)[:, :, None, None]  # (n, 4, 1, 1)
    result = np.empty((n, c, oh, ow), x.dtype)
    block = max(1, _BLOCK // (oh * ow))
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        m, (top, bottom, left, right) = matrices[part], limits[part].swapaxes(0, 1)
        # Places in the image with a border of one pixel (b, H', W').
        rows = (m[:, 0, 0] * v + (m[:, 0, 2] + dtype((h + 1) / 2)))[:, :, None] + (m[:, 0, 1] * u)[:, None]
        columns = (m[:, 1, 0] * v)[:, :, None] + (m[:, 1, 1] * u + (m[:, 1, 2] + dtype((w + 1) / 2)))[:, None]
        for places, low, high in ((rows, top, bottom), (columns, left, right)):
            np.maximum(places, low, out=places)
            np.minimum(places, high, out=places)
        pixels = _pad(x[part], outside, 1, 2)
        _interpolate(pixels, rows, columns, nearest, result[part])
    return result


_BLOCK = 2**13
"""Pixels interpolated at a time: the arrays of one block stay in the cache."""


def _interpolate(pixels: Any, rows: Any, columns: Any, nearest: bool, out: Any) -> None:
    """Write pixels (b, C, H, W) at places (b, H', W') to `out` (b, C, H', W'); none is in the last row or column."""
    b, c, h, w = pixels.shape
    if nearest:
        top, left = np.rint(rows), np.rint(columns)
    else:
        top, left = np.floor(rows), np.floor(columns)
    index = (top * w + left).astype(np.intp).reshape(b, 1, -1) + (np.arange(b * c) * (h * w)).reshape(b, c, 1)
    if nearest:
        pixels.take(index.reshape(out.shape), out=out, mode="clip")
        return
    down, right = (rows - top).reshape(b, 1, -1), (columns - left).reshape(b, 1, -1)  # 0..1
    out = out.reshape(b, c, -1)
    one, two = np.empty_like(out), np.empty_like(out)

    for result in (out, two):  # between left and right, above and below
        pixels.take(index, out=result, mode="clip")
        index += 1
        pixels.take(index, out=one, mode="clip")
        np.subtract(one, result, out=one)
        np.multiply(one, right, out=one)
        np.add(result, one, out=result)
        index += w - 1
    np.subtract(two, out, out=two)
    np.multiply(two, down, out=two)
    np.add(out, two, out=out)


def _pad(x: Any, value: int, before: int, after: int) -> Any:
    """Return images with more rows and columns before and after them. np.pad is slower for small ones."""
    n, c, h, w = x.shape
    padded = np.full((n, c, h + before + after, w + before + after), value, x.dtype)
    padded[:, :, before : before + h, before : before + w] = x
    return padded

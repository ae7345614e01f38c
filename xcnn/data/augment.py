"""Random augmentations of a batch: functions (images, rng, **options) -> images, by name in `AUGMENTATIONS`.

Each takes a float32 batch (n, C, H, W), draws from `rng` for every image, and returns a new batch of the same shape.
Pixels outside the original image are zero. To add one, write the function and add it to the table.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from xcnn._check import generator, integer, number
from xcnn.errors import DtypeError, ShapeError

__all__ = ["AUGMENTATIONS", "Augmentation", "crop", "cutout", "flip", "rotate", "shift"]

Images = npt.NDArray[np.float32]
Augmentation = Callable[[Images, np.random.Generator], Images]


def flip(images: Images, rng: np.random.Generator, p: float = 0.5) -> Images:
    """Flip each image horizontally with probability `p`. Unsuitable for digits and letters."""
    rng = _check("flip", images, rng)
    chosen = rng.random(len(images)) < number("flip", "p", p, "[0, 1]")
    return np.where(chosen[:, None, None, None], images[..., ::-1], images)


def shift(images: Images, rng: np.random.Generator, pixels: int = 2) -> Images:
    """Shift by a number of pixels drawn uniformly from [-pixels, pixels], vertically and horizontally."""
    rng = _check("shift", images, rng)
    pixels = integer("shift", "pixels", pixels, minimum=0)
    h, w = images.shape[2:]
    top, left = rng.integers(0, 2 * pixels + 1, size=(2, len(images)))
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))  # (n, C, 2p+1, 2p+1, H, W)
    shifted: Images = windows[np.arange(len(images)), :, top, left]
    return shifted


def crop(images: Images, rng: np.random.Generator, pad: int = 4) -> Images:
    """Pad with `pad` zeros on every side and crop a random window of the original size, as is usual for CIFAR-10.

    It is the same as `shift` by up to `pad` pixels.
    """
    return shift(images, rng, integer("crop", "pad", pad, minimum=0))


def rotate(images: Images, rng: np.random.Generator, degrees: float = 10) -> Images:
    """Rotate about the centre by an angle drawn uniformly from [-degrees, degrees], with bilinear interpolation."""
    rng = _check("rotate", images, rng)
    degrees = number("rotate", "degrees", degrees, "[0, inf)")
    return _turn(images, np.deg2rad(rng.uniform(-degrees, degrees, len(images))))


def _turn(images: Images, angles: npt.NDArray[np.float64]) -> Images:
    """Rotate each image anticlockwise by its angle in radians."""
    n, c, h, w = images.shape
    cos, sin = (f(angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    v = np.arange(h, dtype=np.float32)[:, None] - np.float32((h - 1) / 2)  # (H, 1), downwards from the centre
    u = np.arange(w, dtype=np.float32) - np.float32((w - 1) / 2)  # (W,), to the right
    # The source of each pixel (n, H, W) in the image with a border of one zero pixel. Sources farther outside are moved
    # to the border.
    y = np.clip(sin * u + cos * v + np.float32((h + 1) / 2), 0, h + 1)
    x = np.clip(cos * u - sin * v + np.float32((w + 1) / 2), 0, w + 1)
    top, left = np.minimum(np.floor(y), h), np.minimum(np.floor(x), w)
    down, right = y - top, x - left  # 0..1

    pixels = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))).reshape(n, c, (h + 2) * (w + 2))
    corner = top.astype(np.int64) * (w + 2) + left.astype(np.int64)
    corner = corner.reshape(n, 1, h * w)
    turned = np.zeros_like(images)
    for offset, weight in (
        (0, (1 - down) * (1 - right)),
        (1, (1 - down) * right),
        (w + 2, down * (1 - right)),
        (w + 3, down * right),
    ):
        turned += weight[:, None] * np.take_along_axis(pixels, corner + offset, axis=2).reshape(images.shape)
    return turned


def cutout(images: Images, rng: np.random.Generator, size: int = 8) -> Images:
    """Set a square of `size` x `size` pixels around a random pixel to zero; the square may extend beyond the image.

    Source: T. DeVries and G. W. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv:1708.04552.
    """
    rng = _check("cutout", images, rng)
    size = integer("cutout", "size", size, minimum=0)
    n, _, h, w = images.shape
    y = np.arange(h) - rng.integers(0, h, size=(n, 1)) + size // 2  # (n, H), counted from the square's first row
    x = np.arange(w) - rng.integers(0, w, size=(n, 1)) + size // 2  # (n, W)
    inside = ((y >= 0) & (y < size))[:, :, None] & ((x >= 0) & (x < size))[:, None, :]  # (n, H, W)
    return np.where(inside[:, None], np.float32(0), images)


def _check(name: str, images: Images, rng: np.random.Generator) -> np.random.Generator:
    if not isinstance(images, np.ndarray):
        raise DtypeError(f"{name}: images must be a NumPy array, got {type(images).__name__}")
    if images.ndim != 4:
        raise ShapeError(f"{name}: images must be (n, C, H, W), got {images.shape}")
    if images.dtype != np.float32:
        raise DtypeError(f"{name}: images must be float32, got {images.dtype}; use data.to_float")
    return generator(name, "rng", rng)


AUGMENTATIONS: dict[str, Augmentation] = {
    function.__name__: function for function in (flip, shift, crop, rotate, cutout)
}
"""Every augmentation by name, with its default options."""

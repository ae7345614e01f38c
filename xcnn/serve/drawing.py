"""A drawing made like the images on which a network was trained."""

import numpy as np
import numpy.typing as npt

__all__ = ["SIDE", "made_like"]

SIDE = 112
"""Height and width of a drawing, in which the page sends it."""

_FAINT = 32
"""The least ink, from 0 to 255, that counts for the box around a digit."""


def made_like(ink: npt.NDArray[np.uint8], shape: tuple[int, ...], dataset: str, light: bool) -> npt.NDArray[np.float32]:
    """Return the image (c, h, w), 0 to 1, of a drawing.

    Digits are placed as in the data set: those of MNIST fill a box of 20 x 20 of 28 x 28 pixels and have their centre
    of mass in the middle (LeCun et al. 1998), those of `digits` fill all rows. Otherwise the whole drawing is scaled.

    Parameters
    ----------
    ink : uint8 (SIDE, SIDE), 255 where the pen was.
    shape : (c, h, w).
    dataset : the name of the data set.
    light : whether its images are light on dark.
    """
    c, h, w = shape
    mnist = dataset == "mnist" or (not dataset and shape == (1, 28, 28))
    placed = mnist or dataset == "digits"
    image = _placed(ink, h, w, 20 / 28 if mnist else 1.0, mnist) if placed else _scaled(ink, h, w)
    image = image if light else 1 - image
    return np.repeat(image[None], c, axis=0)


def _placed(ink: npt.NDArray[np.uint8], h: int, w: int, share: float, by_mass: bool) -> npt.NDArray[np.float32]:
    """Return the digit in a box that is a share of the image, by its centre of mass or that of its box."""
    image = np.zeros((h, w), np.float32)
    rows, columns = (np.flatnonzero((ink > _FAINT).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return image
    part = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tall, wide = part.shape
    scale = share * min(h / tall, w / wide)
    box = _scaled(part, max(1, round(tall * scale)), max(1, round(wide * scale)))
    (bh, bw), total = box.shape, float(box.sum())
    top, left = (h - bh + 1) // 2, (w - bw + 1) // 2
    if by_mass and total > 0:
        top = round(h / 2 - float(box.sum(axis=1) @ np.arange(bh)) / total)
        left = round(w / 2 - float(box.sum(axis=0) @ np.arange(bw)) / total)
    top, left = min(max(top, 0), h - bh), min(max(left, 0), w - bw)
    image[top : top + bh, left : left + bw] = box
    return image


def _scaled(ink: npt.NDArray[np.uint8], h: int, w: int) -> npt.NDArray[np.float32]:
    """Return the ink scaled to a size, 0 to 1; each pixel is a weighted mean of those that it covers."""
    from PIL import Image

    scaled = Image.fromarray(np.ascontiguousarray(ink)).resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(scaled).astype(np.float32) / np.float32(255)

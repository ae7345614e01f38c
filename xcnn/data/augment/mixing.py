"""Augmentations that replace parts of an image, or mix it with another one of the batch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._check import integer, interval, number
from xcnn.data.augment._batch import Images, Random, begin
from xcnn.data.dataset import IGNORED
from xcnn.errors import ShapeError, UsageError, explained

__all__ = ["cutmix", "cutout", "mixup", "random_erasing"]

Numbers = npt.NDArray[Any]


@explained
def cutout(x: Images, y: Any, rng: Random, size: int = 8) -> tuple[Images, Any]:
    """Set a square of `size` x `size` pixels around a random pixel to zero; the square may extend beyond the image.

    Source: T. DeVries and G. W. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv:1708.04552.
    """
    rng = begin("cutout", x, y, rng)
    size = integer("cutout", "size", size, minimum=0)
    size = min(size, 2 * max(x.shape[2:]))  # at most what covers the image from any of its pixels
    centre = np.floor(rng.random(2) * x.shape[2:])
    top, left = (centre - size // 2).T
    return np.where(_inside(x, top, left, size, size), x.dtype.type(0), x), y


@explained
def random_erasing(
    x: Images,
    y: Any,
    rng: Random,
    p: float = 0.5,
    scale: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
    value: float = 0.0,
) -> tuple[Images, Any]:
    """Set a rectangle within the image to `value`, with probability `p`.

    Its area is drawn uniformly from `scale`, as a part of that of the image, and the logarithm of its height to its
    width from that of `ratio`, up to ten times until the rectangle is smaller than the image; otherwise nothing is
    erased.

    Source: Z. Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896.
    """
    rng = begin("random_erasing", x, y, rng)
    value = number("random_erasing", "value", value, "[-1e6, 1e6]")
    scale = interval("random_erasing", "scale", scale, "(0, 1]")
    low, high = interval("random_erasing", "ratio", ratio, "[0.01, 100]")
    n, _, h, w = x.shape
    area = rng.uniform(*scale, 10) * (h * w)
    aspect = np.exp(rng.uniform(math.log(low), math.log(high), 10))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < h) & (widths < w)
    first = np.arange(n), np.argmax(fits, axis=1)
    chosen = fits[first] & (rng.random() < number("random_erasing", "p", p, "[0, 1]"))
    height, width = np.where(chosen, heights[first], 0), widths[first]
    top, left = (np.floor(rng.random() * (size - part + 1)) for size, part in ((h, height), (w, width)))
    return np.where(_inside(x, top, left, height, width), x.dtype.type(value), x), y


@explained
def mixup(x: Images, y: Any, rng: Random, classes: int | None = None, alpha: float = 0.2) -> tuple[Images, Any]:
    """Mix each example with another one of the batch: lam x + (1 - lam) x', and in the same way the targets.

    lam is drawn for each example from the beta distribution of (alpha, alpha). x is (n, ...). Labels (n,) become soft
    targets (n, classes), in which the label -100, ignored by the losses, is a row of zeros; floating targets (n,) or
    (n, k), and those of 0 and 1 (n, k), keep their shape and need no `classes`. With `alpha` of 0, nothing is mixed.
    A `Loader` passes the number of `classes` of its data set.

    Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412.
    """
    rng = begin("mixup", x, y, rng, rank=None)
    y = _soft("mixup", x, y, classes)
    partner, lam = rng.permuted(), _lam("mixup", rng, alpha)
    return _mixed(x, x[partner], lam), _mixed(y, y[partner], lam)


@explained
def cutmix(x: Images, y: Any, rng: Random, classes: int | None = None, alpha: float = 1.0) -> tuple[Images, Any]:
    """Replace a rectangle of each image by that of another one of the batch, and mix the targets by area.

    The rectangle has the shape of the image and lies around a random pixel; what is outside of the image is cut off.
    Its area before is 1 - lam of that of the image, with lam drawn from the beta distribution of (alpha, alpha).
    Targets are those of `mixup`. With `alpha` of 0, nothing is mixed.

    Source: S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    arXiv:1905.04899.
    """
    rng = begin("cutmix", x, y, rng)
    y = _soft("cutmix", x, y, classes)
    partner, lam, sizes = rng.permuted(), _lam("cutmix", rng, alpha), np.asarray(x.shape[2:])
    centre = np.floor(rng.random(2) * sizes)
    half = np.floor(np.sqrt(1 - lam)[:, None] / 2 * sizes)
    start, end = np.maximum(centre - half, 0), np.minimum(centre + half, sizes)
    (top, left), (height, width) = start.T, (end - start).T
    inside = _inside(x, top, left, height, width)
    lam = 1 - inside.mean(axis=(1, 2, 3))
    return np.where(inside, x[partner], x), _mixed(y, y[partner], lam)


def _inside(x: Images, top: Numbers, left: Numbers, height: Any, width: Any) -> npt.NDArray[np.bool_]:
    """Return which pixels are in the rectangle of each image, (n, 1, H, W)."""
    rows = np.arange(x.shape[2]) - top[:, None]  # (n, H)
    columns = np.arange(x.shape[3]) - left[:, None]  # (n, W)
    within = (rows >= 0) & (rows < np.reshape(height, (-1, 1))), (columns >= 0) & (columns < np.reshape(width, (-1, 1)))
    inside: npt.NDArray[np.bool_] = within[0][:, None, :, None] & within[1][:, None, None, :]
    return inside


def _soft(name: str, x: Images, y: Any, classes: int | None) -> Images:
    """Return the targets of a batch as floating point, (n,) or (n, k)."""
    if y is None or y.ndim > 2:
        got = "None" if y is None else f"{y.shape}"
        raise ShapeError(f"{name}: y must be labels (n,) or floating targets (n,) or (n, k), not masks; got {got}")
    if y.ndim == 2 and y.dtype.kind != "f" and not ((y == 0) | (y == 1)).all():
        raise UsageError(f"{name}: y of shape (n, k) must be 0 or 1, or floating, got {y.min()} to {y.max()}")
    if y.ndim == 2 or y.dtype.kind == "f":
        soft: Images = y.astype(x.dtype)
        return soft
    if classes is None:
        raise UsageError(
            f"{name}: labels (n,) need classes, the number of them: name the classes of the data set or pass "
            "functools.partial(..., classes=10); for regression, make y floating point"
        )
    y, classes = y.astype(np.int64, copy=False), integer(name, "classes", classes)
    labelled = y != IGNORED
    if y.size and not (((y >= 0) & (y < classes)) | ~labelled).all():
        raise UsageError(f"{name}: y must be labels from 0 to {classes - 1}, or {IGNORED}, got {y.min()} to {y.max()}")
    soft = np.zeros((len(y), classes), x.dtype)
    soft[labelled, y[labelled]] = 1
    return soft


def _lam(name: str, rng: Any, alpha: float) -> Numbers:
    """Return the part that each example keeps, float64 (n,)."""
    alpha = number(name, "alpha", alpha, "[0, 1e6]")
    lam: Numbers = rng.beta(alpha, alpha) if alpha >= 1e-6 else np.ones(len(rng))
    return lam


def _mixed(a: Numbers, b: Numbers, lam: Numbers) -> Numbers:
    """Return lam a + (1 - lam) b, in the type of `a`."""
    lam = lam.astype(a.dtype).reshape(-1, *(1,) * (a.ndim - 1))
    mixed: Numbers = lam * a
    mixed += (1 - lam) * b
    return mixed

"""What every augmentation does first, and what a mask is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._check import is_integer
from xcnn.data.dataset import IGNORED
from xcnn.data.draws import Draws
from xcnn.errors import DtypeError, ShapeError, UsageError

__all__ = ["Augmentation", "Images", "Random", "begin", "in_unit_range", "with_mask"]

Images = npt.NDArray[np.floating[Any]]
Random = Draws | np.random.Generator | int
Augmentation = Callable[..., tuple[Images, Any]]


def begin(name: str, x: Images, y: Any, rng: Random, rank: int | None = 4) -> Draws:
    """Check a batch, and return its random numbers."""
    if not isinstance(x, np.ndarray):
        raise DtypeError(f"{name}: x must be a NumPy array, got {type(x).__name__}")
    if x.ndim != rank if rank else x.ndim < 2:
        raise ShapeError(f"{name}: x must be {'(n, C, H, W)' if rank else '(n, ...)'}, got {x.shape}")
    if 0 in x.shape[1:]:
        raise ShapeError(f"{name}: x must have at least one element per example, got {x.shape}")
    if x.dtype not in (np.float32, np.float64):
        fix = "use data.to_float" if x.dtype == np.uint8 else "use x.astype('float32')"
        raise DtypeError(f"{name}: x must be float32 or float64, got {x.dtype}; {fix}")
    if y is not None and (not isinstance(y, np.ndarray) or y.shape[:1] != x.shape[:1]):
        got = f"{y.shape}" if isinstance(y, np.ndarray) else type(y).__name__
        raise ShapeError(f"{name}: y must be a NumPy array with {len(x)} targets, or None, got {got}")
    if y is not None and y.dtype.kind not in "biuf":
        raise DtypeError(f"{name}: y must be of real numbers or bool, got {y.dtype}")
    if isinstance(rng, Draws):
        if len(rng) != len(x):
            raise ShapeError(f"{name}: x has {len(x)} examples, rng has numbers for {len(rng)}")
        return rng
    if isinstance(rng, np.random.Generator):
        return Draws(int(rng.integers(2**63)), 0, np.arange(len(x)))
    if is_integer(rng) and rng >= 0:
        return Draws(rng, 0, np.arange(len(x)))
    raise UsageError(f"{name}: rng must be a data.Draws, a numpy.random.Generator or a seed of at least 0, got {rng!r}")


def with_mask(name: str, x: Images, y: Any, move: Callable[[Any, int], Any]) -> tuple[Images, Any]:
    """Return the moved images and, if it is a mask, the moved `y`; any other targets are returned unchanged.

    `move(array, outside)` takes an array (n, K, H, W) and the value of pixels from outside of it.
    """
    if y is None or y.ndim < 3:
        return move(x, 0), y
    n, _, h, w = x.shape
    if y.ndim > 4 or y.shape[-2:] != (h, w):
        raise ShapeError(f"{name}: y must be (n,), (n, k), or a mask of the size of x {(n, h, w)}, got {y.shape}")
    if y.dtype.kind in "iu":
        y = y.astype(np.int64, copy=False)
    moved = move(y.reshape(n, *y.shape[1:-2] or (1,), h, w), IGNORED if y.dtype.kind == "i" else 0)
    return move(x, 0), moved.reshape(*y.shape[:-2], *moved.shape[-2:])


def in_unit_range(name: str, x: Images) -> Images:
    """Return `x` if its values lie in [0, 1], but for errors of rounding."""
    if x.size and not (x.min() >= -1e-3 and x.max() <= 1 + 1e-3):
        fix = "; pass clip=False for other ranges" if name == "gaussian_noise" else ""
        raise UsageError(f"{name}: x must have values in [0, 1], got {x.min():.4g} to {x.max():.4g}{fix}")
    return x

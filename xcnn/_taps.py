"""Tables of taps: which pixels of an axis an interpolation adds, with which weights.

Each new pixel is a weighted sum of a few old ones, its taps. The gradient is the same sum with the transposed table: it
reads where others would scatter, and so adds in a fixed order. Tables are computed on the host, in float64.
"""

import functools

import numpy as np

__all__ = ["MODES", "Taps", "tables"]

MODES = {"nearest": 0, "nearest-exact": 0, "linear": 1, "bilinear": 2, "trilinear": 3}
"""The modes of `interpolate`, and the number of spatial axes that each takes; 0 is any."""

Taps = tuple[np.ndarray, np.ndarray]
"""Indices of the pixels to add, and their weights: one row per term of the sums, one column per sum."""


@functools.lru_cache(maxsize=32)
def tables(size: int, out: int, step: float, mode: str, align: bool) -> tuple[Taps, Taps]:
    """Return the taps of `out` pixels of an axis that are `step` old pixels apart, and the transposed ones."""
    new = np.arange(out)
    if not MODES[mode]:
        place = (new + 0.5 * (mode == "nearest-exact")).astype(np.float32) * np.float32(step)  # float32 as in PyTorch
        index = np.minimum(place.astype(np.int64), size - 1)[None]
        taps = index, np.ones_like(index, dtype=np.float64)
    else:
        place = new * ((size - 1) / max(out - 1, 1)) if align else np.maximum((new + 0.5) * step - 0.5, 0.0)
        first = np.minimum(place.astype(np.int64), size - 1)
        second = np.minimum(first + 1, size - 1)
        share = (place - first) * (second != first)
        taps = np.stack([first, second]), np.stack([1.0 - share, share])
    return taps, _transposed(*taps, size)


def _transposed(index: np.ndarray, weight: np.ndarray, size: int) -> Taps:
    """Return the taps of the gradients of an axis' pixels: the new pixels that each one went into."""
    used = weight != 0.0
    old, new = index[used], np.broadcast_to(np.arange(index.shape[1]), index.shape)[used]
    order = np.argsort(old, kind="stable")
    counts = np.bincount(old, minlength=size)
    term = np.arange(old.size) - np.repeat(np.cumsum(counts) - counts, counts)
    indices, weights = np.zeros((counts.max(), size), np.int64), np.zeros((counts.max(), size))
    indices[term, old[order]] = new[order]
    weights[term, old[order]] = weight[used][order]
    return indices, weights

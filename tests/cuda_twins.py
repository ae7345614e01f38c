"""The index arithmetic of the CUDA kernels in NumPy: the elements that an item of a launch reads and writes.

Items are int64 arrays, so that nothing overflows. A function returns indices into flat arrays; -1 is padding.
"""

import itertools
from typing import Any

import numpy as np

__all__ = ["col2im", "finish_maps", "im2col", "lead_channels"]

Places = np.ndarray


def _sizes(axes: Any, name: str) -> tuple[int, ...]:
    return tuple(getattr(axis, name) for axis in axes)


def _split(i: Places, sizes: tuple[int, ...]) -> list[Places]:
    places = []
    for size in reversed(sizes):
        i, place = np.divmod(i, size)
        places.append(place)
    return places[::-1]


def _join(places: list[Places], sizes: tuple[int, ...]) -> Places:
    joined = np.zeros_like(places[0])
    for place, size in zip(places, sizes, strict=True):
        joined = joined * size + place
    return joined


def _taps(axes: Any) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(axis.kernel) for axis in axes)))


def im2col(i: Places, n: int, c: int, axes: Any) -> tuple[Places, Places]:
    """Return the pixels of x (n, c, *sizes) and their places in columns (c, taps, n, *outs): both (taps, items).

    An item is a channel, an image and a window, in this order.
    """
    sizes, outs = _sizes(axes, "size"), _sizes(axes, "out")
    channel, image, *out = _split(i, (c, n, *outs))
    read, written = [], []
    for number, tap in enumerate(_taps(axes)):
        pixels = [o * a.stride - a.before + t * a.dilation for o, a, t in zip(out, axes, tap, strict=True)]
        inside = np.logical_and.reduce([(p >= 0) & (p < size) for p, size in zip(pixels, sizes, strict=True)])
        read.append(np.where(inside, _join([image, channel, *pixels], (n, c, *sizes)), -1))
        written.append(_join([channel, np.full_like(i, number), image, *out], (c, len(_taps(axes)), n, *outs)))
    return np.array(read), np.array(written)


def col2im(i: Places, n: int, c: int, axes: Any) -> Places:
    """Return the places of columns (c, taps, n, *outs) that are summed for items of x (n, c, *sizes): (taps, items)."""
    sizes, outs, taps = _sizes(axes, "size"), _sizes(axes, "out"), _taps(axes)
    image, channel, *pixel = _split(i, (n, c, *sizes))
    read = []
    for number, tap in enumerate(taps):
        starts = [p + a.before - t * a.dilation for p, a, t in zip(pixel, axes, tap, strict=True)]
        out = [start // a.stride for start, a in zip(starts, axes, strict=True)]
        seen = [
            (start >= 0) & (start % a.stride == 0) & (o < a.out) for start, o, a in zip(starts, out, axes, strict=True)
        ]
        place = _join([channel, np.full_like(i, number), image, *out], (c, len(taps), n, *outs))
        read.append(np.where(np.logical_and.reduce(seen), place, -1))
    return np.array(read)


def finish_maps(i: Places, n: int, c: int, size: int) -> Places:
    """Return the place in (c, n, size) that an item of (n, c, size) reads."""
    image, channel, pixel = _split(i, (n, c, size))
    return _join([channel, image, pixel], (c, n, size))


def lead_channels(i: Places, n: int, c: int, size: int) -> Places:
    """Return the place in (n, c, size) that an item of (c, n, size) reads."""
    channel, image, pixel = _split(i, (c, n, size))
    return _join([image, channel, pixel], (n, c, size))

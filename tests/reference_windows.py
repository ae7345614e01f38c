"""The part of `reference.py` for windows that slide over maps: convolution, pooling, padding and resizing."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "global_avg_pool",
    "global_max_pool",
    "interpolate",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "window_starts",
]

# --- windows --------------------------------------------------------------------------------------------------------


def _per_axis(value: Any, rank: int) -> tuple[Any, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def window_starts(
    size: int, kernel: int, stride: int = 1, padding: Any = 0, dilation: int = 1, ceil_mode: bool = False
) -> list[int]:
    """Return the pixels where the windows along one axis start; `padding` is an integer, a pair or 'same'."""
    extent = dilation * (kernel - 1) + 1
    if padding == "same":
        count = math.ceil(size / stride)
        missing = max((count - 1) * stride + extent - size, 0)
        padding = (missing // 2, missing - missing // 2)
    before, after = (0, 0) if padding == "valid" else _per_axis(padding, 2)
    starts, start = [], -before
    while start + extent <= size + after:
        starts.append(start)
        start += stride
    uncovered = start - stride + extent < size + after  # the window before, which may also start too early
    if ceil_mode and uncovered and start < size:
        starts.append(start)
    return starts


def _starts(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> list[list[int]]:
    rank = len(sizes)
    stride, dilation = _per_axis(stride, rank), _per_axis(dilation, rank)
    padding = (padding,) * rank if isinstance(padding, (int, str)) else padding
    return [
        window_starts(*axis, ceil_mode=ceil_mode) for axis in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]


def _inside(pixel: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    return all(0 <= p < size for p, size in zip(pixel, sizes, strict=True))


def _taps(window: tuple[int, ...], starts: Any, kernel: Any, dilation: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each kernel position of a window with its pixel, which may be outside the map."""
    for tap in np.ndindex(*kernel):
        yield tap, tuple(s[w] + t * d for s, w, t, d in zip(starts, window, tap, dilation, strict=True))


# --- convolution ----------------------------------------------------------------------------------------------------


def _conv(
    rank: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: Any = None,
) -> np.ndarray:
    if x.ndim == rank + 1:
        return _conv(rank, x[None], weight, bias, stride, padding, dilation, groups, activation)[0]
    (n, _, *sizes), (o, channels, *kernel) = x.shape, weight.shape
    starts = _starts(sizes, kernel, stride, padding, dilation)
    y = np.zeros((n, o, *map(len, starts)))
    for image, out, *window in np.ndindex(*y.shape):
        total = 0.0 if bias is None else float(bias[out])
        first = out // (o // groups) * channels
        for tap, pixel in _taps(window, starts, kernel, _per_axis(dilation, rank)):
            if _inside(pixel, sizes):
                for channel in range(channels):
                    total += x[(image, first + channel, *pixel)] * weight[(out, channel, *tap)]
        y[(image, out, *window)] = max(total, 0.0) if activation == "relu" else total
    return y


def _conv_transpose(
    rank: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> np.ndarray:
    if x.ndim == rank + 1:
        return _conv_transpose(rank, x[None], weight, bias, stride, padding, output_padding, groups, dilation)[0]
    (n, c, *sizes), (_, outs, *kernel) = x.shape, weight.shape
    stride, dilation = _per_axis(stride, rank), _per_axis(dilation, rank)
    pads = [_per_axis(p, 2) for p in _per_axis(padding, rank)]
    results = [
        (size - 1) * s - sum(p) + d * (k - 1) + extra + 1
        for size, s, p, d, k, extra in zip(
            sizes, stride, pads, dilation, kernel, _per_axis(output_padding, rank), strict=True
        )
    ]
    y = np.zeros((n, outs * groups, *results))
    for image, channel, *pixel in np.ndindex(*x.shape):
        first = channel // (c // groups) * outs
        for out, *tap in np.ndindex(outs, *kernel):
            target = tuple(
                i * s + t * d - p[0] for i, s, t, d, p in zip(pixel, stride, tap, dilation, pads, strict=True)
            )
            if _inside(target, results):
                y[(image, first + out, *target)] += x[(image, channel, *pixel)] * weight[(channel, out, *tap)]
    if bias is not None:
        for index in np.ndindex(*y.shape):
            y[index] += bias[index[1]]
    return y


conv1d, conv2d, conv3d = (functools.partial(_conv, rank) for rank in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (functools.partial(_conv_transpose, rank) for rank in (1, 2, 3))

# --- pooling and padding --------------------------------------------------------------------------------------------


def _max_pool(
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> np.ndarray:
    lead, sizes, kernel = x.shape[:-rank], x.shape[-rank:], _per_axis(kernel_size, rank)
    starts = _starts(sizes, kernel, kernel if stride is None else stride, padding, dilation, ceil_mode)
    y = np.zeros((*lead, *map(len, starts)))
    for index in np.ndindex(*y.shape):
        best = -math.inf
        for _, pixel in _taps(index[-rank:], starts, kernel, _per_axis(dilation, rank)):
            if _inside(pixel, sizes):
                value = x[(*index[:-rank], *pixel)]
                if value > best or math.isnan(value):  # NaN compares false, so the first NaN stays
                    best = value
        y[index] = best
    return y


def _avg_pool(
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
) -> np.ndarray:
    lead, sizes, kernel = x.shape[:-rank], x.shape[-rank:], _per_axis(kernel_size, rank)
    starts = _starts(sizes, kernel, kernel if stride is None else stride, padding, dilation, ceil_mode)
    after = [_per_axis(p, 2)[1] for p in _per_axis(padding, rank)]
    y = np.zeros((*lead, *map(len, starts)))
    for index in np.ndindex(*y.shape):
        total, count = 0.0, 0
        for _, pixel in _taps(index[-rank:], starts, kernel, _per_axis(dilation, rank)):
            if _inside(pixel, sizes):
                total += x[(*index[:-rank], *pixel)]
                count += 1
            elif count_include_pad and all(p < size + a for p, size, a in zip(pixel, sizes, after, strict=True)):
                count += 1  # padding counts, but not the pixels beyond it that ceil mode adds
        y[index] = total / (divisor_override or count)
    return y


def _adaptive_pool(reduce: Callable[[list[float]], float], rank: int, x: Any, output_size: Any) -> np.ndarray:
    sizes, lead = x.shape[-rank:], x.shape[:-rank]
    outs = [size if o is None else o for size, o in zip(sizes, _per_axis(output_size, rank), strict=True)]
    y = np.zeros((*lead, *outs))
    for index in np.ndindex(*y.shape):
        ranges = [
            range(math.floor(i * size / o), math.ceil((i + 1) * size / o))
            for i, size, o in zip(index[-rank:], sizes, outs, strict=True)
        ]
        pixels = itertools.product(*ranges)
        y[index] = reduce([float(x[(*index[:-rank], *pixel)]) for pixel in pixels])
    return y


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


max_pool1d, max_pool2d, max_pool3d = (functools.partial(_max_pool, rank) for rank in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (functools.partial(_avg_pool, rank) for rank in (1, 2, 3))
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    functools.partial(_adaptive_pool, _mean, rank) for rank in (1, 2, 3)
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    functools.partial(_adaptive_pool, max, rank) for rank in (1, 2, 3)
)


def global_avg_pool(x: Any) -> np.ndarray:
    return _over_maps(x, _mean)


def global_max_pool(x: Any) -> np.ndarray:
    return _over_maps(x, max)


def _over_maps(x: Any, reduce: Callable[[list[float]], float]) -> np.ndarray:
    y = np.zeros(x.shape[:2])
    for image, channel in np.ndindex(*y.shape):
        y[image, channel] = reduce([float(x[(image, channel, *pixel)]) for pixel in np.ndindex(*x.shape[2:])])
    return y


_SOURCES: dict[str, Callable[[int, int], int | None]] = {
    "constant": lambda i, size: i if 0 <= i < size else None,
    "replicate": lambda i, size: min(max(i, 0), size - 1),
    "circular": lambda i, size: i % size,
    "reflect": lambda i, size: -i if i < 0 else 2 * (size - 1) - i if i >= size else i,
}
"""For each mode of `pad`, the pixel that a position outside the map repeats; None for the constant."""


def pad(x: Any, pad: Any, mode: str = "constant", value: float = 0.0) -> np.ndarray:
    sides = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    for axis, (before, after) in enumerate(sides):  # negative padding crops, first
        x = np.take(x, range(max(0, -before), x.shape[axis] + min(0, after)), axis)
    sides = [(max(0, before), max(0, after)) for before, after in sides]
    y = np.zeros([size + sum(side) for size, side in zip(x.shape, sides, strict=True)])
    for index in np.ndindex(*y.shape):
        source = [_SOURCES[mode](i - side[0], size) for i, side, size in zip(index, sides, x.shape, strict=True)]
        y[index] = value if None in source else x[tuple(source)]
    return y


# --- other sizes ----------------------------------------------------------------------------------------------------


def _sources(mode: str, align: Any, i: int, size: int, out: int, factor: float | None) -> list[tuple[int, float]]:
    """Return the pixels that new pixel i of an axis mixes, with their weights."""
    step = size / out if factor is None else 1 / factor
    if mode.startswith("nearest"):
        return [(min(math.floor((i + (mode == "nearest-exact") / 2) * step), size - 1), 1.0)]
    if size == out:
        place = float(i)
    elif align:
        place = i * (size - 1) / (out - 1) if out > 1 else 0.0
    else:
        place = min(max((i + 0.5) * step - 0.5, 0.0), size - 1.0)
    low = math.floor(place)
    return [(low, 1 - place + low), (min(low + 1, size - 1), place - low)]


def interpolate(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> np.ndarray:
    rank = x.ndim - 2
    factors = scale_factor if isinstance(scale_factor, tuple) else (scale_factor,) * rank
    outs = _per_axis(size, rank) if size else [math.floor(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
    y = np.zeros((*x.shape[:2], *outs))
    for image, channel, *pixel in np.ndindex(*y.shape):
        axes = [_sources(mode, align_corners, *axis) for axis in zip(pixel, x.shape[2:], outs, factors, strict=True)]
        for taps in itertools.product(*axes):
            source, weights = zip(*taps, strict=True)
            y[(image, channel, *pixel)] += x[(image, channel, *source)] * math.prod(weights)
    return y


def channel_shuffle(x: Any, groups: int) -> np.ndarray:
    """Deal the channels out like cards: the first of every group, then the second of every group."""
    y, size = np.zeros(x.shape), x.shape[1] // groups
    channels = [group * size + i for i in range(size) for group in range(groups)]
    for n, c, *pixel in np.ndindex(*x.shape):
        y[(n, c, *pixel)] = x[(n, channels[c], *pixel)]
    return y


def pixel_shuffle(x: Any, upscale_factor: int) -> np.ndarray:
    r = upscale_factor
    y = np.zeros((*x.shape[:-3], x.shape[-3] // r**2, x.shape[-2] * r, x.shape[-1] * r))
    for *lead, c, i, j in np.ndindex(*y.shape):
        y[(*lead, c, i, j)] = x[(*lead, c * r**2 + (i % r) * r + j % r, i // r, j // r)]
    return y


def pixel_unshuffle(x: Any, downscale_factor: int) -> np.ndarray:
    r = downscale_factor
    y = np.zeros((*x.shape[:-3], x.shape[-3] * r**2, x.shape[-2] // r, x.shape[-1] // r))
    for *lead, c, i, j in np.ndindex(*x.shape):
        y[(*lead, c * r**2 + (i % r) * r + j % r, i // r, j // r)] = x[(*lead, c, i, j)]
    return y

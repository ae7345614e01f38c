"""The exporters of the ops on maps: convolutions, pools, padding, and maps of another size.

What depends on the size of a map, such as the padding `"same"`, is computed for the size that the network is exported
for.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._taps import MODES, tables
from xcnn.onnx.builder import EXPORTS, Builder, Exporter, exports
from xcnn.onnx.layers import reduced, sliced
from xcnn.ops._window import Axes, transposed_axes, window_axes
from xcnn.ops.adaptive import adaptive_sizes
from xcnn.ops.pool import _counts, pool_axes
from xcnn.ops.upsample import check_target

__all__: list[str] = []


def _ranked(name: str) -> Callable[[Exporter], Exporter]:
    """Decorate a function of (rank, graph, ...) to make it the exporter of `name` for one, two and three sizes."""

    def register(function: Exporter) -> Exporter:
        EXPORTS.update({f"{name}{rank}d": functools.partial(function, rank) for rank in (1, 2, 3)})
        return function

    return register


def _sizes(g: Builder, x: str, rank: int) -> tuple[int, ...]:
    """Return the sizes of maps (n, c, *sizes)."""
    shape = g.shape(x)
    if len(shape) != rank + 2:
        raise g.refuse(f"x must be (n, c, *sizes) with {rank} sizes, got {shape}")
    return shape[2:]


# Convolution.


def _window(axes: Axes) -> dict[str, Any]:
    """Return the attributes of a window."""
    return {
        "kernel_shape": [a.kernel for a in axes],
        "strides": [a.stride for a in axes],
        "dilations": [a.dilation for a in axes],
        "pads": [*(a.before for a in axes), *(a.after for a in axes)],
    }


@_ranked("conv")
def _conv(
    rank: int,
    g: Builder,
    x: str,
    weight: str,
    bias: str | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    axes = window_axes("conv", _sizes(g, x, rank), g.shape(weight)[2:], stride, padding, dilation)
    return g.node("Conv", [x, weight, bias], **_window(axes), group=groups)


@_ranked("conv_transpose")
def _conv_transpose(
    rank: int,
    g: Builder,
    x: str,
    weight: str,
    bias: str | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> str:
    sizes = _sizes(g, x, rank)
    axes = transposed_axes("conv", sizes, g.shape(weight)[2:], stride, padding, output_padding, dilation)
    # The size of the result is `(size - 1) * stride - pads + extent + output_padding`.
    extra = [a.size + a.before + a.after - a.extent - (a.out - 1) * a.stride for a in axes]
    return g.node("ConvTranspose", [x, weight, bias], **_window(axes), output_padding=extra, group=groups)


# Pools.


def _padded(g: Builder, x: str, axes: Axes, fill: float) -> tuple[str, dict[str, Any]]:
    """Return x and the attributes of a pool's window; padding of a kernel's size, which pools refuse, is added to x."""
    window = _window(axes)
    if all(max(a.before, a.after) < a.kernel for a in axes):
        return x, window
    sides = [side for a in reversed(axes) for side in (a.before, a.after)]
    return _pad(g, x, sides, value=fill), window | {"pads": [0] * len(sides)}


@_ranked("max_pool")
def _max_pool(
    rank: int,
    g: Builder,
    x: str,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> str:
    axes = pool_axes("max_pool", _sizes(g, x, rank), kernel_size, stride, padding, dilation, ceil_mode)
    x, window = _padded(g, x, axes, -math.inf)
    return g.node("MaxPool", [x], **window)


@_ranked("avg_pool")
def _avg_pool(
    rank: int,
    g: Builder,
    x: str,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Any = 1,
) -> str:
    axes = pool_axes("avg_pool", _sizes(g, x, rank), kernel_size, stride, padding, dilation, ceil_mode)
    x, window = _padded(g, x, axes, 0.0)
    if any(a.dilation > 1 for a in axes):
        if g.opset < 19:
            raise g.refuse(f"average pools with dilation need opset 19, got {g.opset}")
    else:
        del window["dilations"]
    counts = [_counts(a, count_include_pad) for a in axes]
    whole = all(count == a.kernel for a, found in zip(axes, counts, strict=True) for count in found)
    native = window["pads"] == _window(axes)["pads"]
    if divisor_override is None and (whole or (native and not count_include_pad)):
        return g.node("AveragePool", [x], **window, count_include_pad=int(whole))
    mean = g.node("AveragePool", [x], **window, count_include_pad=1)
    kernel = math.prod(a.kernel for a in axes)
    divisors = functools.reduce(np.multiply.outer, map(np.asarray, counts))
    return g.node("Mul", [mean, kernel / (divisors if divisor_override is None else divisor_override)])


@exports("global_avg_pool")
def _global_avg_pool(g: Builder, x: str) -> str:
    return reduced(g, "ReduceMean", x, tuple(range(2, len(g.shape(x)))), keepdim=False)


@exports("global_max_pool")
def _global_max_pool(g: Builder, x: str) -> str:
    return g.node("Flatten", [g.node("GlobalMaxPool", [x])], axis=1)


def _adaptive(rank: int, g: Builder, x: str, output_size: Any, pool: str, shrink: Exporter) -> str:
    """Write an adaptive pool: a pool if its windows are all alike, else `shrink` along each axis."""
    sizes = _sizes(g, x, rank)
    outs = adaptive_sizes("adaptive_pool", sizes, output_size)
    if all(out == 1 for out in outs):
        return g.node(f"Global{pool}", [x])
    if all(size % out == 0 for size, out in zip(sizes, outs, strict=True)):
        kernel = [size // out for size, out in zip(sizes, outs, strict=True)]
        return g.node(pool, [x], kernel_shape=kernel, strides=kernel)
    for dim, (size, out) in reversed(list(enumerate(zip(sizes, outs, strict=True), 2))):
        if size != out:
            x = shrink(g, x, dim, rank + 2, [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)])
    return x


def _mean_along(g: Builder, x: str, dim: int, axes: int, windows: Sequence[tuple[int, int]]) -> str:
    """Return the means of windows along an axis, as the product with a matrix."""
    matrix = np.zeros((windows[-1][1], len(windows)))
    for column, (start, stop) in enumerate(windows):
        matrix[start:stop, column] = 1 / (stop - start)
    if dim == axes - 1:
        return g.node("MatMul", [x, matrix])
    swap = [*range(axes)]
    swap[dim], swap[-1] = swap[-1], swap[dim]
    return g.node("Transpose", [g.node("MatMul", [g.node("Transpose", [x], perm=swap), matrix])], perm=swap)


def _max_along(g: Builder, x: str, dim: int, axes: int, windows: Sequence[tuple[int, int]]) -> str:
    parts = [reduced(g, "ReduceMax", sliced(g, x, dim, start, stop), dim, keepdim=True) for start, stop in windows]
    return g.node("Concat", parts, axis=dim)


@_ranked("adaptive_avg_pool")
def _adaptive_avg_pool(rank: int, g: Builder, x: str, output_size: Any) -> str:
    return _adaptive(rank, g, x, output_size, "AveragePool", _mean_along)


@_ranked("adaptive_max_pool")
def _adaptive_max_pool(rank: int, g: Builder, x: str, output_size: Any) -> str:
    return _adaptive(rank, g, x, output_size, "MaxPool", _max_along)


# Maps of another size.


@exports("pixel_shuffle")
def _pixel_shuffle(g: Builder, x: str, upscale_factor: int) -> str:
    _sizes(g, x, 2)
    return g.node("DepthToSpace", [x], blocksize=upscale_factor, mode="CRD")


@exports("pixel_unshuffle")
def _pixel_unshuffle(g: Builder, x: str, downscale_factor: int) -> str:
    (h, w), (_, c, *_), r = _sizes(g, x, 2), g.shape(x), downscale_factor
    split = g.node("Reshape", [x, np.asarray([0, c, h // r, r, w // r, r])])
    return g.node(
        "Reshape", [g.node("Transpose", [split], perm=[0, 1, 3, 5, 2, 4]), np.asarray([0, c * r * r, h // r, w // r])]
    )


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@exports("pad")
def _pad(g: Builder, x: str, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> str:
    rank = len(g.shape(x))
    sides = {rank - 1 - i: pair for i, pair in enumerate(zip(pad[::2], pad[1::2], strict=True)) if any(pair)}
    for dim, (before, after) in sides.items():  # cropping comes first
        if min(before, after) < 0:
            x = sliced(g, x, dim, max(0, -before), min(0, after) or None)
    sides = {dim: (max(0, before), max(0, after)) for dim, (before, after) in sides.items()}
    if mode == "circular":
        for dim, (before, after) in sides.items():
            ends = [sliced(g, x, dim, -before)] * (before > 0), [sliced(g, x, dim, 0, after)] * (after > 0)
            x = g.node("Concat", [*ends[0], x, *ends[1]], axis=dim)
        return x
    pads = [sides.get(dim, (0, 0))[side] for side in (0, 1) for dim in range(rank)]
    fill = float(value) if mode == "constant" else None
    return g.node("Pad", [x, np.asarray(pads), fill], mode=_PAD_MODES[mode]) if any(pads) else x


@exports("interpolate")
def _interpolate(
    g: Builder,
    x: str,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> str:
    sizes = g.shape(x)[2:]
    outs, factors = check_target("interpolate", size, scale_factor, mode, align_corners, len(sizes))
    outs = outs or tuple(math.floor(n * factor) for n, factor in zip(sizes, factors, strict=True))
    whole = align_corners or not factors  # then the factors decide nothing but the number of pixels
    steps = [n / out for n, out in zip(sizes, outs, strict=True)] if whole else [1 / factor for factor in factors]
    axes = list(zip(sizes, outs, steps, strict=True))
    if not MODES[mode] and any(step != n / out or (n % out and out % n) for n, out, step in axes):
        for dim, (n, out, step) in enumerate(axes, 2):  # an operator that rounds otherwise may choose other pixels
            x = g.node("Gather", [x, tables(n, out, step, mode, False)[0][0][0]], axis=dim)
        return x
    places = "align_corners" if align_corners else "half_pixel" if mode != "nearest" else "asymmetric"
    scales = np.asarray([1.0, 1.0, *(_scale(*axis) for axis in axes)], np.float32)
    rounding = {"nearest": "floor", "nearest-exact": "round_prefer_ceil"}.get(mode)
    return g.node(
        "Resize", [x, None, scales],
        mode="linear" if rounding is None else "nearest", coordinate_transformation_mode=places, nearest_mode=rounding,
    )  # fmt: skip


def _scale(size: int, out: int, step: float) -> np.float32:
    """Return `1 / step` as the nearest float32 that gives exactly `out` pixels; as many pixels stay as they are."""
    if size == out:
        return np.float32(1)
    scale = np.float32(1 / step)
    for towards in (np.inf, 0.0):
        while (size * float(scale) < out) if towards else (size * float(scale) >= out + 1):
            scale = np.nextafter(scale, np.float32(towards))
    return scale

"""Convolution as one product of two matrices: the weights, and the windows of all images (`columns.cu`).

The product has its channels outside and its images inside. Bias and ReLU are applied in the pass
that moves images outside; without them, the product is returned in its own order.
"""

import math
from collections.abc import Sequence
from typing import Any

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, launch_blocks, supports
from xcnn.kernels.cuda._library import empty, matmul, namespace
from xcnn.kernels.cuda._maps import maps, row_sums, slices, total, windows

__all__ = ["conv", "conv_transpose"]


def _outs(axes: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(axis.out for axis in axes)


def _grouped(weight: Any, groups: int) -> Any:
    """Return weight as (g, og, cg K)."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _product(a: Any, b: Any) -> Any:
    """Multiply a (g, i, j) by b (g, j, k). Only a product of two matrices is fast, and takes transposed views."""
    return matmul(a[0], b[0])[None] if len(a) == 1 else matmul(a, b)


def _columns(x: Any, axes: tuple[Any, ...], groups: int) -> Any:
    """Return the windows of x (n, c, *sizes) as (g, cg K, n L)."""
    n, c = x.shape[:2]
    width = n * math.prod(_outs(axes))
    columns = empty((groups, c // groups * math.prod(axis.kernel for axis in axes), width), x.dtype)
    launch("im2col", c * width, *maps(x, len(axes)), columns, n, c, windows(axes))
    return columns


def _led(dy: Any, y: Any, groups: int, summed: bool = False) -> tuple[Any, Any]:
    """Return dy (n, o, *outs) as (g, og, n L), 0 where y is 0, and if `summed` its sums (o,).

    It is a view if dy has this layout and there is no y.
    """
    n, o = dy.shape[:2]
    pixels = math.prod(dy.shape[2:])
    source = maps(dy, dy.ndim - 2)
    if y is None and (source.channel == n * pixels or o == 1) and (source.image == pixels or n == 1):
        led = source.array.swapaxes(0, 1).reshape(groups, o // groups, n * pixels)
        return led, row_sums(led.reshape(o, -1)) if summed else None
    cut = slices(o, n * pixels)
    led, sums = empty((groups, o // groups, n * pixels), dy.dtype), empty((o, cut), dy.dtype) if summed else None
    launch_blocks("lead_channels", o * cut, *source, y, led, sums, n, o, pixels, cut)
    return led, total(sums) if summed else None


def _convolve(x: Any, weight: Any, axes: tuple[Any, ...], groups: int) -> Any:
    """Return the products (g, og, n L)."""
    return _product(_grouped(weight, groups), _columns(x, axes, groups))


def _as_maps(products: Any, n: int, axes: tuple[Any, ...]) -> Any:
    """View products (g, og, n L) as maps (n, o, *outs)."""
    return products.reshape(-1, n, *_outs(axes)).swapaxes(0, 1)


def _input_gradient(led: Any, weight: Any, n: int, axes: tuple[Any, ...], groups: int) -> Any:
    """Return the input gradient (n, c, *sizes) for led (g, og, n L)."""
    c = weight.shape[1] * groups
    columns = _product(_grouped(weight, groups).swapaxes(1, 2), led)
    x = empty((n, c, *(axis.size for axis in axes)), led.dtype)
    launch("col2im", x.size, columns, x, n, c, windows(axes))
    return x


def _weight_gradient(x: Any, led: Any, shape: tuple[int, ...], axes: tuple[Any, ...], groups: int) -> Any:
    columns = _columns(x, axes, groups)
    if groups == 1:
        return _product(led, columns.swapaxes(1, 2)).reshape(shape)
    # Products of stacks copy transposed arrays; led is the smaller one.
    return _product(columns, led.swapaxes(1, 2)).swapaxes(1, 2).reshape(shape)


@kernel(namespace)
def conv(
    x: Any, weight: Any, bias: Any | None, axes: tuple[Any, ...], groups: int, activation: tuple[Any, ...] | None
) -> Any:
    """Convolve, with bias and ReLU in one pass over the product."""
    if not supports(x, weight) or activation not in (None, ("relu",)):
        return NotImplemented
    relu = activation is not None
    has_bias, n, o = bias is not None, x.shape[0], weight.shape[0]
    products = _convolve(x, weight, axes, groups)
    if has_bias or relu:
        result = empty((n, o, *_outs(axes)), x.dtype)
        launch("finish_maps", result.size, products, bias, result, n, o, math.prod(_outs(axes)), relu)
    else:
        result = _as_maps(products, n, axes)
    y = result if relu else None  # backward keeps it

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        led, dbias = _led(dy, y, groups, needs[2] and has_bias)
        dx = _input_gradient(led, weight, n, axes, groups) if needs[0] else None
        dweight = _weight_gradient(x, led, weight.shape, axes, groups) if needs[1] else None
        return dx, dweight, dbias

    return result, backward


@kernel(namespace)
def conv_transpose(x: Any, weight: Any, bias: Any | None, axes: tuple[Any, ...], groups: int) -> Any:
    """Spread x over the kernels: the input gradient of the convolution with these axes."""
    if not supports(x, weight):
        return NotImplemented
    has_bias, n = bias is not None, x.shape[0]
    y = _input_gradient(_led(x, None, groups)[0], weight, n, axes, groups)
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(axes))

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx = _as_maps(_convolve(dy, weight, axes, groups), n, axes) if needs[0] else None
        dweight = None
        if needs[1]:
            dweight = _weight_gradient(dy, _led(x, None, groups)[0], weight.shape, axes, groups)
        dbias = _led(dy, None, 1, True)[1] if needs[2] and has_bias else None
        return dx, dweight, dbias

    return y, backward

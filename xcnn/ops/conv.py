"""Convolution and transposed convolution in one, two and three dimensions, by im2col.

Both are the same three products. With `columns` the windows of x, for each image and group:

    y       = weight @ columns                  _convolve
    dx      = col2im(weight^T @ dy)             _spread, the input gradient
    dweight = sum over images dy @ columns^T    _weight_gradient

A transposed convolution is the input gradient used as a forward pass, so its own input gradient is a convolution. The
columns are never kept: backward makes them again, which costs a copy and saves K times the memory of x.

Sizes: n images, c input channels, o output channels, g groups, cg = c / g, og = o / g, K kernel positions, L outputs.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace, sum_over
from xcnn._check import integers
from xcnn._dispatch import body
from xcnn.errors import DtypeError, ShapeError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import Integers, is_relu
from xcnn.ops._window import Axes, Padding, col2im, im2col, transposed_axes, window_axes

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

_TERMS = 1 << 16
"""Outputs of an image whose products are left to one matrix product: some libraries add them one after another."""


def _convolve(xp: ModuleType, x: Array, weight: Array, axes: Axes, g: int) -> Array:
    n, c, o = x.shape[0], x.shape[1], weight.shape[0]
    k, ell = math.prod(a.kernel for a in axes), math.prod(a.out for a in axes)
    columns = xp.reshape(im2col(xp, x, axes), (n, g, c // g * k, ell))
    y = xp.reshape(weight, (g, o // g, c // g * k)) @ columns  # (n, g, og, L)
    return xp.reshape(y, (n, o, *(a.out for a in axes)))


def _spread(xp: ModuleType, dy: Array, weight: Array, axes: Axes, g: int) -> Array:
    n, o, c = dy.shape[0], dy.shape[1], weight.shape[1] * g
    k, outs = math.prod(a.kernel for a in axes), tuple(a.out for a in axes)
    transposed = xp.matrix_transpose(xp.reshape(weight, (g, o // g, c // g * k)))
    columns = transposed @ xp.reshape(dy, (n, g, o // g, math.prod(outs)))  # (n, g, cg K, L)
    return col2im(xp, xp.reshape(columns, (n, c, k, *outs)), axes)


def _weight_gradient(xp: ModuleType, x: Array, dy: Array, axes: Axes, g: int) -> Array:
    n, c, o = x.shape[0], x.shape[1], dy.shape[1]
    k, ell = math.prod(a.kernel for a in axes), math.prod(a.out for a in axes)
    columns = xp.reshape(im2col(xp, x, axes), (n, g, c // g * k, ell))
    rows = xp.reshape(dy, (n, g, o // g, ell))
    cuts = [*range(0, ell, _TERMS), ell]
    products = [rows[..., i:j] @ xp.matrix_transpose(columns[..., i:j]) for i, j in itertools.pairwise(cuts)]
    dweight = sum(products[1:], products[0])  # (n, g, og, cg K)
    return xp.reshape(sum_over(xp, dweight, (0,)), (o, c // g, *(a.kernel for a in axes)))


@body
def _conv_transpose(xp: ModuleType, x: Array, weight: Array, bias: Array | None, axes: Axes, g: int) -> Result:
    """Spread a batch."""
    has_bias = bias is not None
    y = _add_bias(xp, _spread(xp, x, weight, axes, g), bias)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = _convolve(xp, dy, weight, axes, g) if needs[0] else None
        dweight = _weight_gradient(xp, dy, x, axes, g) if needs[1] else None
        return dx, dweight, _bias_gradient(xp, dy) if needs[2] and has_bias else None

    return y, backward


def _bias_gradient(xp: ModuleType, dy: Array) -> Array:
    return sum_over(xp, dy, (0, *range(2, dy.ndim)))


def _add_bias(xp: ModuleType, y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + xp.reshape(bias, (1, -1, *(1,) * (y.ndim - 2)))


@body
def _conv(xp: ModuleType, x: Array, weight: Array, bias: Array | None, axes: Axes, g: int, relu: bool) -> Result:
    """Convolve a batch, then cut off what is negative if `relu` says so."""
    has_bias = bias is not None
    result = _add_bias(xp, _convolve(xp, x, weight, axes, g), bias)
    result = xp.maximum(result, 0.0) if relu else result
    y = result if relu else None  # backward keeps it

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if y is not None:
            dy = xp.where(y != 0.0, dy, 0.0)
        dx = _spread(xp, dy, weight, axes, g) if needs[0] else None
        dweight = _weight_gradient(xp, x, dy, axes, g) if needs[1] else None
        return dx, dweight, _bias_gradient(xp, dy) if needs[2] and has_bias else None

    return result, backward


def _check(name: str, rank: int, x: Array, weight: Array, bias: Array | None, groups: int, transposed: bool) -> None:
    if weight is None:
        raise DtypeError(f"{name}: weight must be an array, got None")

    def shapes() -> str:
        return f"(x: {tuple(x.shape)}, weight: {tuple(weight.shape)})"

    if x.ndim not in (rank + 1, rank + 2):
        raise ShapeError(
            f"{name}: x must have {rank + 2} axes (n, c, *sizes), or {rank + 1} for one image; got {x.shape}"
        )
    if weight.ndim != rank + 2 or 0 in weight.shape:
        raise ShapeError(f"{name}: weight must have {rank + 2} axes, none of them empty, got {tuple(weight.shape)}")
    (groups,) = integers(name, "groups", groups, 1)
    if weight.shape[0] % groups:
        raise ShapeError(
            f"{name}: groups {groups} does not divide the {weight.shape[0]} leading channels of weight {shapes()}"
        )
    c = x.shape[-rank - 1]
    takes = weight.shape[0] if transposed else weight.shape[1] * groups
    if c != takes:
        raise ShapeError(f"{name}: weight takes {takes} input channels, x has {c} {shapes()}")
    o = weight.shape[1] * groups if transposed else weight.shape[0]
    if bias is not None and bias.shape != (o,):
        raise ShapeError(f"{name}: bias must have shape ({o},), one per output channel, got {tuple(bias.shape)}")


def _conv_nd(
    rank: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Integers,
    padding: Padding,
    dilation: Integers,
    groups: int,
    activation: str | None,
) -> Result:
    name = f"conv{rank}d"
    xp = namespace(name, x=x, weight=weight, bias=bias)
    _check(name, rank, x, weight, bias, groups, transposed=False)
    relu = is_relu(name, activation)
    axes = window_axes(name, tuple(x.shape[-rank:]), tuple(weight.shape[2:]), stride, padding, dilation)
    return _batched(_conv, rank, xp, x, weight, bias, axes, groups, relu)


def _conv_transpose_nd(
    rank: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Integers,
    padding: Integers,
    output_padding: Integers,
    groups: int,
    dilation: Integers,
) -> Result:
    name = f"conv_transpose{rank}d"
    xp = namespace(name, x=x, weight=weight, bias=bias)
    _check(name, rank, x, weight, bias, groups, transposed=True)
    sizes, kernel = tuple(x.shape[-rank:]), tuple(weight.shape[2:])
    axes = transposed_axes(name, sizes, kernel, stride, padding, output_padding, dilation)
    return _batched(_conv_transpose, rank, xp, x, weight, bias, axes, groups)


def _batched(body: Callable[..., Result], rank: int, xp: ModuleType, x: Array, *rest: Any) -> Result:
    """Call a body, which takes a batch, also for one image without a batch axis."""
    if x.ndim == rank + 2:
        return body(xp, x, *rest)
    y, batch_backward = body(xp, x[None, ...], *rest)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias = batch_backward(dy[None, ...], needs)
        return None if dx is None else dx[0, ...], dweight, dbias

    return y[0, ...], backward


def _samples(rank: int) -> list[Any]:
    """Give the options that matter at each rank: plain, everything at once, depthwise, one image without a batch."""
    sizes, kernel = (7, 6, 5)[:rank], (3, 2, 2)[:rank]
    return [
        sample({"x": (2, 3, *sizes), "weight": (4, 3, *kernel), "bias": (4,)}),
        sample(
            {"x": (2, 4, *sizes), "weight": (6, 2, *kernel), "bias": (6,)},
            stride=(2, 1, 2)[:rank],
            padding=((2, 1), (0, 1), (1, 1))[:rank],
            dilation=(2, 1, 1)[:rank],
            groups=2,
        ),
        sample({"x": (2, 3, *sizes), "weight": (6, 1, *kernel), "bias": None}, stride=2, padding="same", groups=3),
        sample({"x": (3, *sizes), "weight": (2, 3, *kernel), "bias": (2,)}, padding=1, activation="relu"),
    ]


def _transposed_samples(rank: int) -> list[Any]:
    sizes, kernel = (4, 3, 3)[:rank], (3, 2, 2)[:rank]
    return [
        sample({"x": (2, 3, *sizes), "weight": (3, 4, *kernel), "bias": (4,)}),
        sample(
            {"x": (2, 4, *sizes), "weight": (4, 3, *kernel), "bias": (6,)},
            stride=(3, 2, 2)[:rank],
            padding=(1, 0, 1)[:rank],
            output_padding=(1, 1, 0)[:rank],
            groups=2,
            dilation=(2, 1, 1)[:rank],
        ),
        sample({"x": (3, *sizes), "weight": (3, 2, *kernel), "bias": None}, stride=2),
    ]


@op("x weight bias", saves="x weight y?", samples=_samples(2))
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Result:
    """Convolve images with a bank of kernels (cross-correlation: the kernel is not flipped).

    `y[n, o, i, j] = bias[o] + sum over c, p, q of weight[o, c, p, q] * x[n, c, i * sh + p * dh - top, j * sw + q * dw -
    left]` with strides s, dilations d, and the sum over the channels of o's group and the kernel's positions.

    Parameters
    ----------
    x : (n, c, h, w), or (c, h, w) for one image; floating point.
    weight : (o, c / groups, kh, kw), the dtype of x.
    bias : (o,) or None.
    stride, dilation : an integer, or one per axis.
    padding : zeros around each map: an integer, one per axis, a (before, after) pair per axis, `'valid'` (none) or
        `'same'`, which gives `ceil(size / stride)` outputs at any stride with the odd zero at the end.
    groups : the channels are split into so many groups, each with its own `o / groups` kernels; `c` is depthwise.
    activation : None, or `'relu'` to apply it to y in the same pass; backward then keeps y, too.

    Returns
    -------
    y : (n, o, oh, ow) with `oh = (h + before + after - dilation * (kh - 1) - 1) // stride + 1`, and `(o, oh, ow)` for
        one image.
    backward : dy -> (dx, dweight, dbias). It keeps x and weight.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other or the options, or the kernel is larger than the padded map.

    Notes
    -----
    V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning, 2016, arXiv:1603.07285.
    """
    return _conv_nd(2, x, weight, bias, stride, padding, dilation, groups, activation)


@op("x weight bias", saves="x weight y?", samples=_samples(1))
def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Result:
    """Convolve signals: `conv2d` with one spatial axis. x (n, c, w) or (c, w), weight (o, c / groups, kw)."""
    return _conv_nd(1, x, weight, bias, stride, padding, dilation, groups, activation)


@op("x weight bias", saves="x weight y?", samples=_samples(3))
def conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Result:
    """Convolve volumes: `conv2d` with three spatial axes. x (n, c, d, h, w) or (c, d, h, w)."""
    return _conv_nd(3, x, weight, bias, stride, padding, dilation, groups, activation)


@op("x weight bias", saves="x weight", samples=_transposed_samples(2))
def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: int = 1,
    dilation: Integers = 1,
) -> Result:
    """Spread each pixel over a kernel: the input gradient of `conv2d`, used as a forward pass.

    Parameters
    ----------
    x : (n, c, h, w), or (c, h, w) for one image; floating point.
    weight : (c, o / groups, kh, kw), the dtype of x.
    bias : (o,) or None.
    stride, padding, dilation : of the convolution that this one transposes; padding also as (before, after) pairs.
    output_padding : pixels added at the end of each axis, smaller than stride or dilation: it says which of the sizes
        that the strided convolution maps to h is meant.
    groups : as in `conv2d`.

    Returns
    -------
    y : (n, o, oh, ow) with
        `oh = (h - 1) * stride - before - after + dilation * (kh - 1) + output_padding + 1`.
    backward : dy -> (dx, dweight, dbias). It keeps x and weight.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other or the options.
    """
    return _conv_transpose_nd(2, x, weight, bias, stride, padding, output_padding, groups, dilation)


@op("x weight bias", saves="x weight", samples=_transposed_samples(1))
def conv_transpose1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: int = 1,
    dilation: Integers = 1,
) -> Result:
    """Spread signals: `conv_transpose2d` with one spatial axis. x (n, c, w) or (c, w)."""
    return _conv_transpose_nd(1, x, weight, bias, stride, padding, output_padding, groups, dilation)


@op("x weight bias", saves="x weight", samples=_transposed_samples(3))
def conv_transpose3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: int = 1,
    dilation: Integers = 1,
) -> Result:
    """Spread volumes: `conv_transpose2d` with three spatial axes. x (n, c, d, h, w) or (c, d, h, w)."""
    return _conv_transpose_nd(3, x, weight, bias, stride, padding, output_padding, groups, dilation)

"""Convolution and transposed convolution in one, two and three dimensions, by im2col.

Both are the same three products. With `columns` the windows of x, for each image and group:

    y       = weight @ columns                  _convolve
    dx      = col2im(weight^T @ dy)             _input_gradient
    dweight = sum over images dy @ columns^T    _weight_gradient

A transposed convolution is the input gradient used as a forward pass, so its own input gradient is a convolution.
Backward makes the columns again instead of keeping them, which costs a copy and saves K times the memory of x.

Sizes: n images, c input channels, o output channels, g groups, cg = c / g, og = o / g, K kernel positions, L outputs.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace, sum_over
from xcnn._check import check_shape, integer
from xcnn._dispatch import body
from xcnn.errors import ShapeError
from xcnn.ops._formula import Activation, apply, times_slope
from xcnn.ops._op import Gradients, Result, Sample, op_of_ranks, sample
from xcnn.ops._options import Integers
from xcnn.ops._options import activation as checked_activation
from xcnn.ops._window import Axes, Padding, col2im, im2col, map_sizes, transposed_axes, window_axes

__all__ = [
    "ChannelNorm",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_inference",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]

ChannelNorm = tuple[Array, Array, Array | None, Array | None, float]
"""The mean, variance, weight and bias of a batch norm with running statistics, (o,) or None each, and its eps."""

_TERMS = 1 << 16
"""The most terms that one matrix product of a weight gradient adds, as some libraries add them one after another."""


def _convolve(xp: ModuleType, x: Array, weight: Array, axes: Axes, g: int) -> Array:
    n, c, o = x.shape[0], x.shape[1], weight.shape[0]
    k, ell = math.prod(a.kernel for a in axes), math.prod(a.out for a in axes)
    columns = xp.reshape(im2col(xp, x, axes), (n, g, c // g * k, ell))
    y = xp.reshape(weight, (g, o // g, c // g * k)) @ columns  # (n, g, og, L)
    return xp.reshape(y, (n, o, *(a.out for a in axes)))


def _input_gradient(xp: ModuleType, dy: Array, weight: Array, axes: Axes, g: int) -> Array:
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


def _bias_gradient(xp: ModuleType, dy: Array) -> Array:
    return sum_over(xp, dy, (0, *range(2, dy.ndim)))


def _add_bias(xp: ModuleType, y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + xp.reshape(bias, (1, -1, *(1,) * (y.ndim - 2)))


@body
def _conv(
    xp: ModuleType, x: Array, weight: Array, bias: Array | None, axes: Axes, g: int, activation: Activation
) -> Result:
    """Convolve a batch and apply an activation, whose slope is a function of y."""
    has_bias = bias is not None
    result = apply(xp, _add_bias(xp, _convolve(xp, x, weight, axes, g), bias), activation)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if y is not None:
            dy = times_slope(xp, dy, y, activation)
        dx = _input_gradient(xp, dy, weight, axes, g) if needs[0] else None
        dweight = _weight_gradient(xp, x, dy, axes, g) if needs[1] else None
        return dx, dweight, _bias_gradient(xp, dy) if needs[2] and has_bias else None

    return result, backward


@body
def conv_inference(
    xp: ModuleType,
    x: Array,
    weight: Array,
    bias: Array | None,
    norm: ChannelNorm | None,
    residual: Array | None,
    activation: Activation,
    axes: Axes,
    g: int,
) -> Array:
    """Return y of a convolution and what follows it in a network, in this order, without a gradient.

    Parameters
    ----------
    x, weight, bias : a batch, and the parameters of the convolution.
    norm : the batch norm that is applied to y, or None.
    residual : an array that is added to y, of its shape, or None.
    activation : any, applied to y at the end, or None.
    axes, g : the windows and groups of the convolution.
    """
    y = _add_bias(xp, _convolve(xp, x, weight, axes, g), bias)
    if norm is not None:
        mean, var, scale, shift, eps = norm
        rstd = 1.0 / xp.sqrt(var + eps)
        column = (-1, *(1,) * len(axes))
        y = (y - xp.reshape(mean, column)) * xp.reshape(rstd if scale is None else rstd * scale, column)
        y = _add_bias(xp, y, shift)
    return apply(xp, y if residual is None else y + residual, activation)


@body
def _conv_transpose(xp: ModuleType, x: Array, weight: Array, bias: Array | None, axes: Axes, g: int) -> Result:
    """Apply a transposed convolution to a batch."""
    has_bias = bias is not None
    y = _add_bias(xp, _input_gradient(xp, x, weight, axes, g), bias)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx = _convolve(xp, dy, weight, axes, g) if needs[0] else None
        dweight = _weight_gradient(xp, dy, x, axes, g) if needs[1] else None
        return dx, dweight, _bias_gradient(xp, dy) if needs[2] and has_bias else None

    return y, backward


def _check_weight(
    name: str, rank: int, x: Array, weight: Array, bias: Array | None, groups: int, transposed: bool
) -> None:
    """Check that the weight and bias fit x and the groups."""
    if weight.ndim != rank + 2 or 0 in weight.shape:
        raise ShapeError(f"{name}: weight must have {rank + 2} axes, none of them empty, got {tuple(weight.shape)}")
    integer(name, "groups", groups)
    c, first, second = x.shape[-rank - 1], weight.shape[0], weight.shape[1] * groups
    takes, o = (first, second) if transposed else (second, first)
    if first % groups or c != takes:
        shapes = f"(x: {tuple(x.shape)}, weight: {tuple(weight.shape)})"
        if first % groups:
            raise ShapeError(f"{name}: groups {groups} does not divide the {first} leading channels of weight {shapes}")
        alone = x.ndim == rank + 1
        hint = f"; x of {x.ndim} axes is one example, a batch of one channel is x[:, None]" if alone else ""
        channels = "1 input channel" if takes == 1 else f"{takes} input channels"
        raise ShapeError(f"{name}: weight takes {channels}, x has {c} {shapes}{hint}")
    check_shape(name, (o,), "one per output channel", bias=bias)


def _batched(body: Callable[..., Result], rank: int, xp: ModuleType, x: Array, *rest: Any) -> Result:
    """Call a body, which takes a batch, for a batch or for one image without a batch axis."""
    if x.ndim == rank + 2:
        return body(xp, x, *rest)
    y, batch_backward = body(xp, x[None, ...], *rest)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        dx, dweight, dbias = batch_backward(dy[None, ...], needs)
        return None if dx is None else dx[0, ...], dweight, dbias

    return y[0, ...], backward


def _conv_nd(
    rank: int,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: int = 1,
    activation: str | tuple[Any, ...] | None = None,
) -> Result:
    """Convolve signals (1d), images (2d) or volumes (3d) with kernels, which are not flipped (cross-correlation).

    In two dimensions, `y[n, o, i, j] = bias[o] + sum over c, p, q of weight[o, c, p, q] * x[n, c, i * sh + p * dh -
    top, j * sw + q * dw - left]`, with strides s and dilations d. The sum is over the channels of the group of o and
    the kernel positions.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image. The sizes are (w,), (h, w) or (d, h, w).
    weight : (o, c / groups, *kernel), of the dtype of x.
    bias : (o,) or None.
    stride, dilation : an integer, or one per axis.
    padding : number of zeros on both sides of each map: an integer, one per axis, a (before, after) pair per axis,
        `'valid'` for none, or `'same'` for `ceil(size / stride)` outputs, with the odd zero at the end.
    groups : number of groups that the channels are split into, each with its own `o / groups` kernels; c groups make a
        depthwise convolution.
    activation : None, or an activation to apply to y in the same pass, whose slope is a function of y: the name of its
        op, such as `'relu'`, or a tuple of the name and its options, such as `('leaky_relu', 0.1)`.

    Returns
    -------
    y : (n, o, *outs), or (o, *outs) for one image, with
        `out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1` along each axis.
    backward : dy -> (dx, dweight, dbias). It keeps x and weight, and y if there is an activation.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other or the options, or the kernel is larger than the padded map.

    Notes
    -----
    V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning, 2016, arXiv:1603.07285.
    """
    name = f"conv{rank}d"
    xp = namespace(name, optional=("bias",), x=x, weight=weight, bias=bias)
    sizes = map_sizes(name, x, rank)
    _check_weight(name, rank, x, weight, bias, groups, transposed=False)
    activation = checked_activation(name, activation)
    axes = window_axes(name, sizes, tuple(weight.shape[2:]), stride, padding, dilation)
    return _batched(_conv, rank, xp, x, weight, bias, axes, groups, activation)


def _conv_samples(rank: int) -> list[Sample]:
    """Return the samples of a rank: plain, all options at once, depthwise, and one image without a batch axis."""
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


conv1d, conv2d, conv3d = op_of_ranks(_conv_nd, "x weight bias", "x weight y?", _conv_samples, apart=True)


def _conv_transpose_nd(
    rank: int,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    output_padding: Integers = 0,
    groups: int = 1,
    dilation: Integers = 1,
) -> Result:
    """Apply a transposed convolution: the input gradient of a convolution of the same rank, used as a forward pass.

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image. The sizes are (w,), (h, w) or (d, h, w).
    weight : (c, o / groups, *kernel), of the dtype of x.
    bias : (o,) or None.
    stride, padding, dilation : those of the convolution that this one transposes. Padding may be a (before, after)
        pair per axis, but neither `'same'` nor `'valid'`.
    output_padding : number of pixels added at the end of each axis, smaller than stride or dilation. It chooses one of
        the sizes that the strided convolution maps to the size of x.
    groups : number of groups that the channels are split into.

    Returns
    -------
    y : (n, o, *outs), or (o, *outs) for one image, with
        `out = (size - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1` along each axis.
    backward : dy -> (dx, dweight, dbias). It keeps x and weight.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If the arrays do not fit each other or the options.
    """
    name = f"conv_transpose{rank}d"
    xp = namespace(name, optional=("bias",), x=x, weight=weight, bias=bias)
    sizes = map_sizes(name, x, rank)
    _check_weight(name, rank, x, weight, bias, groups, transposed=True)
    kernel = tuple(weight.shape[2:])
    axes = transposed_axes(name, sizes, kernel, stride, padding, output_padding, dilation)
    return _batched(_conv_transpose, rank, xp, x, weight, bias, axes, groups)


def _conv_transpose_samples(rank: int) -> list[Sample]:
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


conv_transpose1d, conv_transpose2d, conv_transpose3d = op_of_ranks(
    _conv_transpose_nd, "x weight bias", "x weight", _conv_transpose_samples, apart=True
)

"""Bad calls of ops: each raises one of xcnn's errors, and names what was expected and what came."""

import inspect
import math
from typing import Any

import array_api_strict
import numpy as np
import pytest

from xcnn import ops
from xcnn.errors import DtypeError, ShapeError, UsageError, XcnnError
from xcnn.ops._op import OPS, Op, Sample


def f(*shape: int, dtype: str = "float64") -> np.ndarray:
    return np.ones(shape, dtype)


def i(*shape: int, value: int = 1) -> np.ndarray:
    return np.full(shape, value)


def conv(**options: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return "conv2d", (f(1, 4, 5, 5), f(4, 4, 3, 3)), options


def call(name: str, *args: Any, **options: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return name, args, options


Call = tuple[str, tuple[Any, ...], dict[str, Any]]

AXES = "x must have 4 axes (n, c, *sizes), or 3 for one image; got (5, 5)"
LABELS = "target must hold integer class indices of shape (3,)"
LABELS_OR_SOFT = f"{LABELS}, or float64 probabilities of shape (3, 4)"
KNOWN = "expected class indices 0 .. 3 (or ignore_index -100)"
STATISTICS = "running_mean and running_var must both be arrays or, if training is True, both be None"
NO_FLOAT = "x must be a floating-point array, got int64; convert it first"

BAD_CALLS: list[tuple[Call, type[XcnnError], str]] = [
    # arrays: rank, channels, sizes
    (call("conv2d", f(5, 5), f(2, 3, 3, 3)), ShapeError, AXES),
    (call("max_pool2d", f(5, 5), 2), ShapeError, AXES),
    (call("adaptive_avg_pool2d", f(5, 5), 1), ShapeError, AXES),
    (
        call("conv2d", f(8, 4, 32, 32), f(2, 3, 3, 3)),
        ShapeError,
        "weight takes 3 input channels, x has 4 (x: (8, 4, 32, 32), weight: (2, 3, 3, 3))",
    ),
    (
        call("conv_transpose2d", f(1, 4, 5, 5), f(3, 4, 3, 3)),
        ShapeError,
        "weight takes 3 input channels, x has 4 (x: (1, 4, 5, 5), weight: (3, 4, 3, 3))",
    ),
    (
        call("conv2d", f(1, 3, 5, 5), f(2, 3, 3)),
        ShapeError,
        "weight must have 4 axes, none of them empty, got (2, 3, 3)",
    ),
    (
        call("conv2d", f(1, 3, 5, 5), f(2, 3, 0, 3)),
        ShapeError,
        "weight must have 4 axes, none of them empty, got (2, 3, 0, 3)",
    ),
    (
        call("conv2d", f(1, 3, 5, 5), f(2, 3, 3, 3), f(3)),
        ShapeError,
        "bias must have shape (2,), one per output channel, got (3,)",
    ),
    (
        call("conv2d", f(1, 3, 5, 5), f(2, 3, 7, 3), padding=(0, 1)),
        ShapeError,
        "kernel (7, 3) with dilation (1, 1) does not fit the map (5, 5), padded (5, 7)",
    ),
    (
        conv(dilation=3),
        ShapeError,
        "kernel (3, 3) with dilation (3, 3) does not fit the map (5, 5), padded (5, 5)",
    ),
    (
        call("conv2d", f(1, 3, 0, 5), f(2, 3, 3, 3), padding=3),
        ShapeError,
        "kernel (3, 3) with dilation (1, 1) does not fit the map (0, 5), padded (6, 11)",
    ),
    (
        call("conv_transpose1d", f(4, 5), f(4, 2, 3), padding=9),
        ShapeError,
        "a map of (5,) with kernel (3,) and padding 9 gives no pixels",
    ),
    (
        call("max_pool1d", f(2, 5), 6),
        ShapeError,
        "kernel (6,) with dilation (1,) does not fit the map (5,), padded (5,)",
    ),
    (
        call("adaptive_avg_pool2d", f(1, 2, 0, 5), 1),
        ShapeError,
        "the maps of x must not be empty, got (1, 2, 0, 5)",
    ),
    (
        call("global_avg_pool", f(2, 3)),
        ShapeError,
        "x must be (n, c, *sizes) with at least one size, and none 0; got (2, 3)",
    ),
    (
        call("global_max_pool", f(2, 3, 0)),
        ShapeError,
        "x must be (n, c, *sizes) with at least one size, and none 0; got (2, 3, 0)",
    ),
    (
        call("linear", f(2, 3), f(4, 5)),
        ShapeError,
        "weight takes 5 features, x has 3 (x: (2, 3), weight: (4, 5))",
    ),
    (call("linear", f(2, 3), f(4, 3, 1)), ShapeError, "weight must have 2 axes (out, in), got (4, 3, 1)"),
    (
        call("linear", f(2, 3), f(4, 3), f(3)),
        ShapeError,
        "bias must have shape (4,), one per output feature, got (3,)",
    ),
    (call("add", f(2, 3), f(2)), ShapeError, "other must broadcast with x (2, 3), got (2,)"),
    (call("add", f(2), math.inf), UsageError, "other must be a number in (-inf, inf), got inf"),
    (call("add", f(2), True), DtypeError, "other must be an array, got bool"),
    (call("multiply", f(2, 3), f(2)), ShapeError, "other must broadcast with x (2, 3), got (2,)"),
    (call("multiply", f(2), math.nan), UsageError, "other must be a number in (-inf, inf), got nan"),
    (
        call("prelu", f(2, 3), f(2)),
        ShapeError,
        "weight must have shape (3,), one per channel, or (1,), got (2,)",
    ),
    (call("dropout2d", f(5, 5), rng=0), ShapeError, AXES),
    (call("adaptive_max_pool2d", f(5, 5), 1), ShapeError, AXES),
    (
        call("interpolate", f(2, 3), 4),
        ShapeError,
        "x must be (n, c, *sizes) with at least one size, and none 0; got (2, 3)",
    ),
    (
        call("interpolate", f(1, 2, 3), 4, mode="bilinear"),
        ShapeError,
        "mode 'bilinear' takes x with 4 axes, got (1, 2, 3)",
    ),
    (
        call("interpolate", f(1, 2, 3, 4), scale_factor=0.3),
        ShapeError,
        "maps of (3, 4) cannot be scaled by 0.3 to (0, 1)",
    ),
    (call("pixel_shuffle", f(3, 2, 2), 2), ShapeError, "x must be (..., c * 4, h, w), got (3, 2, 2)"),
    (call("pixel_unshuffle", f(3, 2, 3), 2), ShapeError, "x must be (..., c, h * 2, w * 2), got (3, 2, 3)"),
    (call("channel_shuffle", f(2, 5, 3), 2), ShapeError, "x must be (n, 2 * c, ...), got (2, 5, 3)"),
    (call("channel_shuffle", f(4), 2), ShapeError, "x must be (n, 2 * c, ...), got (4,)"),
    (call("stochastic_depth", f(), 0.5, rng=0), ShapeError, "x must be (n, ...), got ()"),
    (call("subtract", f(2, 3), f(2)), ShapeError, "other must broadcast with x (2, 3), got (2,)"),
    (call("divide", f(2), 0), UsageError, "other must not be the number 0"),
    (call("divide", f(2), "2"), DtypeError, "other must be an array, got str"),
    (call("local_response_norm", f(3), 2), ShapeError, "x must be (n, c, ...), got (3,)"),
    (
        call("concat", [f(2, 3), f(2, 4)]),
        ShapeError,
        "xs[1] must have the shape of xs[0] (2, 3) except along axis 0, got (2, 4)",
    ),
    (call("batch_norm", f(3)), ShapeError, "x must be (n, c, *sizes), got (3,)"),
    (
        call("batch_norm", f(3, 2), f(3), f(3)),
        ShapeError,
        "running_mean must have shape (2,), one per channel, got (3,)",
    ),
    (
        call("batch_norm", f(3, 2), f(2), f(2), f(1)),
        ShapeError,
        "weight must have shape (2,), one per channel, got (1,)",
    ),
    (
        call("batch_norm", f(1, 2), f(2), f(2), training=True),
        ShapeError,
        "x needs more than one element per mean if training is True, got (1, 2); "
        "for a last batch of one example, see drop_last of data.Loader",
    ),
    (call("layer_norm", f(3, 2), 3), ShapeError, "x must end in normalized_shape (3,), got (3, 2)"),
    (
        call("layer_norm", f(3, 2), (2,), f(3)),
        ShapeError,
        "weight must have shape (2,), which is normalized_shape, got (3,)",
    ),
    (call("group_norm", f(3), 1), ShapeError, "x must be (n, c, *sizes), got (3,)"),
    *(
        (call(name, f(3, 4, 2), *given, residual=f(3, 4, 1), **options), ShapeError, residual)
        for residual in ["residual must have shape (3, 4, 2), that of x, got (3, 4, 1)"]
        for name, given, options in [
            ("batch_norm", (), {"training": True}),
            ("instance_norm", (), {}),
            ("layer_norm", (2,), {}),
            ("group_norm", (2,), {}),
        ]
    ),
    (
        call("instance_norm", f(3, 4)),
        ShapeError,
        "x must be (n, c, *sizes) with at least one size, got (3, 4)",
    ),
    (
        call("instance_norm", f(3, 4, 1)),
        ShapeError,
        "x needs more than one element per mean if use_input_stats is True, got (3, 4, 1)",
    ),
    (call("mse_loss", f(3), f(4)), ShapeError, "target must have shape (3,), that of x, got (4,)"),
    (call("l1_loss", f(3), f(3, 1)), ShapeError, "target must have shape (3,), that of x, got (3, 1)"),
    (
        call("binary_cross_entropy_with_logits", f(3), f(3), f(2)),
        ShapeError,
        "weight must broadcast to x (3,), got (2,)",
    ),
    (call("cross_entropy", f(3, 4), i(3), f(3)), ShapeError, "weight must have shape (4,), one per class, got (3,)"),
    (call("cross_entropy", f(3, 0), i(3)), ShapeError, "x must be (n, classes, ...) or (classes,), got (3, 0)"),
    # labels
    (
        call("binary_cross_entropy_with_logits", f(3), f(3) * -1),
        UsageError,
        "target holds -1.0, expected probabilities from 0 to 1; "
        "divide masks of 0 and 255 by 255, and use mse_loss for regression",
    ),
    (call("cross_entropy", f(3, 4), i(3, value=4)), UsageError, f"target holds 4, {KNOWN}"),
    (call("cross_entropy", f(3, 4), i(3, value=-1)), UsageError, f"target holds -1, {KNOWN}"),
    (call("nll_loss", f(3, 4), i(3, value=9)), UsageError, f"target holds 9, {KNOWN}"),
    (call("cross_entropy", f(3, 4), i(4)), ShapeError, f"{LABELS_OR_SOFT}, got int64 of shape (4,)"),
    (call("cross_entropy", f(3, 4), f(3)), DtypeError, f"{LABELS_OR_SOFT}, got float64 of shape (3,)"),
    (call("cross_entropy", f(3, 4), i(3) > 0), DtypeError, f"{LABELS_OR_SOFT}, got bool of shape (3,)"),
    (
        call("cross_entropy", f(3, 4), f(3, 4, dtype="float32")),
        DtypeError,
        f"{LABELS_OR_SOFT}, got float32 of shape (3, 4)",
    ),
    (call("nll_loss", f(3, 4), f(3, 4)), DtypeError, f"{LABELS}, got float64 of shape (3, 4)"),
    (call("cross_entropy", f(3, 4), [1, 2, 3]), DtypeError, "target must be a numpy array like x, got list"),
    (
        call("cross_entropy", f(3, 4), f(3, 4), ignore_index=0),
        UsageError,
        "ignore_index 0 needs class indices, target holds probabilities",
    ),
    (
        call("cross_entropy", f(3, 4), i(3), label_smoothing=2),
        UsageError,
        "label_smoothing must be a number in [0, 1], got 2",
    ),
    # dtypes and libraries
    (call("conv2d", i(1, 4, 5, 5), f(4, 4, 3, 3)), DtypeError, NO_FLOAT),
    (call("max_pool2d", i(1, 2, 5, 5), 2), DtypeError, NO_FLOAT),
    (call("relu", i(2)), DtypeError, NO_FLOAT),
    (call("cross_entropy", i(3, 4), i(3)), DtypeError, NO_FLOAT),
    (
        call("conv2d", f(1, 4, 5, 5, dtype="float32"), f(4, 4, 3, 3)),
        DtypeError,
        "weight is float64, x is float32; convert one",
    ),
    (
        call("concat", [f(2, 3), f(2, 3, dtype="float32")]),
        DtypeError,
        "xs[1] is float32, xs[0] is float64; convert one",
    ),
    (call("mse_loss", f(3), i(3)), DtypeError, "target is int64, x is float64; convert one"),
    (
        call("conv2d", f(1, 4, 5, 5), array_api_strict.ones((4, 4, 3, 3))),
        DtypeError,
        "weight is a array_api_strict array, x a numpy array; move one of them",
    ),
    (call("conv2d", f(1, 4, 5, 5), f(4, 4, 3, 3), 3.0), DtypeError, "bias must be an array, got float"),
    (call("relu", [1.0]), DtypeError, "x must be an array, got list"),
    (call("relu", None), DtypeError, "x must be an array, got None"),
    (call("linear", f(2, 3), None), DtypeError, "weight must be an array, got None"),
    (call("add", f(3), None), DtypeError, "other must be an array, got None"),
    (call("concat", [f(3), None]), DtypeError, "xs[1] must be an array, got None"),
    (call("mse_loss", f(3), None), DtypeError, "target must be an array, got None"),
    (call("l1_loss", f(3), None), DtypeError, "target must be an array, got None"),
    (call("binary_cross_entropy_with_logits", f(3), None), DtypeError, "target must be an array, got None"),
    (call("conv2d", f(1, 1, 3, 3), None), DtypeError, "weight must be an array, got None"),
    (call("concat", [f(2, 3), 3]), DtypeError, "xs[1] must be an array, got int"),
    # options
    (
        conv(groups=3),
        ShapeError,
        "groups 3 does not divide the 4 leading channels of weight (x: (1, 4, 5, 5), weight: (4, 4, 3, 3))",
    ),
    (conv(groups=0), UsageError, "groups must be an integer of at least 1, got 0"),
    (conv(groups=True), UsageError, "groups must be an integer of at least 1, got True"),
    (conv(groups=1.0), UsageError, "groups must be an integer of at least 1, got 1.0"),
    (conv(stride=0), UsageError, "stride takes integers of at least 1, got 0"),
    (conv(stride=True), UsageError, "stride takes integers of at least 1, got True"),
    (conv(stride=1.5), UsageError, "stride takes integers of at least 1, got 1.5"),
    (conv(stride=(1, 2, 3)), UsageError, "stride takes an integer or 2 of them, got (1, 2, 3)"),
    (conv(dilation=(1, 0)), UsageError, "dilation takes integers of at least 1, got (1, 0)"),
    (conv(padding=-1), UsageError, "padding takes integers of at least 0, got -1"),
    (conv(padding=None), UsageError, "padding takes integers of at least 0, got None"),
    (conv(padding=False), UsageError, "padding takes integers of at least 0, got False"),
    (conv(padding=np.array([1, 1])), UsageError, "padding takes integers of at least 0, got array([1, 1])"),
    (conv(padding=(1, 2, 3)), UsageError, "padding takes an integer or 2 of them, got (1, 2, 3)"),
    (conv(padding=((1, 2), 3)), UsageError, "padding takes 2 (before, after) pairs, got ((1, 2), 3)"),
    (conv(padding=((1, 2), (3, -1))), UsageError, "padding takes integers of at least 0, got (3, -1)"),
    (
        conv(padding="full"),
        UsageError,
        "padding takes 'same', 'valid', an integer, 2 integers or pairs, got 'full'",
    ),
    (
        call("conv_transpose1d", f(4, 5), f(4, 2, 3), padding="same"),
        UsageError,
        "padding takes integers or (before, after) pairs, got 'same'",
    ),
    (
        call("conv_transpose1d", f(4, 5), f(4, 2, 3), output_padding=1),
        UsageError,
        "output_padding must be smaller than stride or dilation, got 1",
    ),
    (call("max_pool1d", f(2, 5), 0), UsageError, "kernel_size takes integers of at least 1, got 0"),
    (
        call("max_pool1d", f(2, 5), 2, 1, 2),
        UsageError,
        "padding must be smaller than the extent (2,) of a window, got 2",
    ),
    (
        call("avg_pool2d", f(1, 5, 5), 2, 1, ((0, 3), (0, 0)), dilation=2),
        UsageError,
        "padding must be smaller than the extent (3, 3) of a window, got ((0, 3), (0, 0))",
    ),
    (
        call("avg_pool1d", f(1, 1), 2, 1, (1,), False, False, dilation=2),
        ShapeError,
        "a window of kernel 2 with dilation 2 has no pixel of the map (1,); set count_include_pad=True",
    ),
    (conv(stride=2**31), UsageError, "stride takes integers of at most 2147483647, got 2147483648"),
    (
        call("avg_pool2d", f(1, 2, 5, 5), 2, divisor_override=0),
        UsageError,
        "divisor_override must be an integer from 1 to 2147483647, got 0",
    ),
    (
        call("adaptive_avg_pool2d", f(1, 2, 5, 5), (1, 2, 3)),
        UsageError,
        "output_size takes an integer or 2 of them, got (1, 2, 3)",
    ),
    (
        call("pad", f(2, 3), (1,)),
        UsageError,
        "pad takes integers, two for each of at most 2 axes, got (1,)",
    ),
    (
        call("pad", f(2, 3), (True, 1)),
        UsageError,
        "pad takes integers, two for each of at most 2 axes, got (True, 1)",
    ),
    (
        call("pad", f(2, 3), (3, 0), mode="reflect"),
        ShapeError,
        "mode 'reflect' adds at most 2 to 3 pixels, got (3, 0) for axis -1 of x (2, 3)",
    ),
    (
        call("pad", f(2, 3), (-4, 0)),
        ShapeError,
        "pad crops more pixels than there are, (-4, 0) for axis -1 of x (2, 3)",
    ),
    (call("flatten", f(2, 3), 1, 0), UsageError, "x (2, 3) has no axes 1 to 0 in this order"),
    (
        call("unflatten", f(2, 6), 1, (4, 2)),
        ShapeError,
        "unflattened_size must multiply to 6, axis 1 of x (2, 6), got (4, 2)",
    ),
    (call("unflatten", f(2, 6), 1, ()), UsageError, "unflattened_size takes an integer or 1 of them, got ()"),
    (call("permute", f(2, 3), (0, 0)), UsageError, "dims must name each axis of x (2, 3) once, got (0, 0)"),
    (call("permute", f(2, 3), (0, 1, 2)), UsageError, "dims must name each axis of x (2, 3) once, got (0, 1, 2)"),
    (call("permute", f(2, 3), (0, True)), UsageError, "dims must name each axis of x (2, 3) once, got (0, True)"),
    (call("permute", f(2), 0), UsageError, "dims must name each axis of x (2,) once, got 0"),
    (call("reshape", f(2, 3), (4, -1)), ShapeError, "shape must hold the 6 numbers of x (2, 3), got (4, -1)"),
    (call("reshape", f(2, 3), (5,)), ShapeError, "shape must hold the 6 numbers of x (2, 3), got (5,)"),
    (call("reshape", f(2, 0), (0, -1)), ShapeError, "shape must hold the 0 numbers of x (2, 0), got (0, -1)"),
    (call("reshape", f(2, 3), (-1, -1)), UsageError, "shape may have one -1, got (-1, -1)"),
    (call("reshape", f(2, 3), (-2, 3)), UsageError, "shape takes integers of at least -1, got (-2, 3)"),
    (call("reshape", f(2, 3), "ab"), UsageError, "shape takes integers of at least -1, got 'ab'"),
    (call("reshape", f(2, 3), None), UsageError, "shape takes integers of at least -1, got None"),
    (call("power", f(2), "2"), UsageError, "exponent must be a number in (-inf, inf), got '2'"),
    (call("power", f(2), math.inf), UsageError, "exponent must be a number in (-inf, inf), got inf"),
    (call("exp", [1.0]), DtypeError, "x must be an array, got list"),
    (call("sum", f(2, 3), 2), UsageError, "dim must be an axis of x (2, 3), got 2"),
    (call("celu", f(2), 0), UsageError, "alpha must be a number in (0, inf), got 0"),
    (call("hardsigmoid", f(2), 0), UsageError, "alpha must be a number in (0, inf), got 0"),
    (call("hardsigmoid", f(2), 1, None), UsageError, "beta must be a number in (-inf, inf), got None"),
    (call("maximum", f(2, 3), f(2)), ShapeError, "other must broadcast with x (2, 3), got (2,)"),
    (call("minimum", f(2), "0"), DtypeError, "other must be an array, got str"),
    *(
        (
            call("matmul", x, other),
            ShapeError,
            f"x must be (..., n, k) or (k,) and other (..., k, m) or (k,), got {x.shape} and {other.shape}",
        )
        for x, other in [(f(2, 3), f(2, 3)), (f(), f(2)), (f(2), f()), (f(2, 2, 3), f(3, 3, 4)), (f(2), f(3))]
    ),
    (call("slice", f(2, 3), 2), UsageError, "dim must be an axis of x (2, 3), got 2"),
    (call("slice", f(2, 3), 1, 0.5), UsageError, "start must be an integer or None, got 0.5"),
    (call("slice", f(2, 3), 1, 0, "3"), UsageError, "stop must be an integer or None, got '3'"),
    (call("slice", f(2, 3), 1, step=0), UsageError, "step must be an integer other than 0, got 0"),
    (call("mean", f(2, 3), 2), UsageError, "dim must be an axis of x (2, 3), got 2"),
    (
        call("mean", f(2, 3), (1, -1)),
        UsageError,
        "dim must be None, an axis or several different ones, got (1, -1)",
    ),
    (call("mean", f(2, 3), ()), UsageError, "dim must be None, an axis or several different ones, got ()"),
    (call("mean", f(2, 3), 1, 1), UsageError, "keepdim must be True or False, got 1"),
    (call("stochastic_depth", f(2), 1.5, rng=0), UsageError, "p must be a number in [0, 1], got 1.5"),
    (call("concat", []), UsageError, "xs must be a sequence of at least one array, got list"),
    (call("concat", [f(2, 3)], 2), UsageError, "dim must be an axis of xs[0] (2, 3), got 2"),
    (call("softmax", f(2), 1), UsageError, "dim must be an axis of x (2,), got 1"),
    (call("dropout", f(2), 1.5, rng=0), UsageError, "p must be a number in [0, 1], got 1.5"),
    (
        call("dropout", f(2), rng=None),
        UsageError,
        "rng must be a numpy.random.Generator or a seed of at least 0, got None",
    ),
    (
        call("interpolate", f(1, 2, 3), mode="linear"),
        UsageError,
        "give either size or scale_factor, got None and None",
    ),
    (call("interpolate", f(1, 2, 3), 4, 2.0), UsageError, "give either size or scale_factor, got 4 and 2.0"),
    (call("interpolate", f(1, 2, 3), (4, 4)), UsageError, "size takes an integer or 1 of them, got (4, 4)"),
    (
        call("interpolate", f(1, 2, 3, 3), None, (2.0,)),
        UsageError,
        "scale_factor takes a number or 2 of them, got (2.0,)",
    ),
    (
        call("interpolate", f(1, 2, 3), 4, align_corners=True),
        UsageError,
        "align_corners is for the linear modes, not for 'nearest'; leave it out",
    ),
    (call("hardtanh", f(2), 1, 1), UsageError, "min_val must be smaller than max_val, got 1 and 1"),
    (call("softplus", f(2), 0), UsageError, "beta must be a number in (0, inf), got 0"),
    (call("leaky_relu", f(2), -1), UsageError, "negative_slope must be a number in [0, inf), got -1"),
    (call("elu", f(2), None), UsageError, "alpha must be a number in [0, inf), got None"),
    (call("layer_norm", f(2), 2, eps=None), UsageError, "eps must be a number in [0, inf), got None"),
    (call("batch_norm", f(3, 2)), UsageError, STATISTICS),
    (call("batch_norm", f(3, 2), f(2), training=True), UsageError, STATISTICS),
    (
        call("layer_norm", f(3, 4), np.array([3, 4])),
        UsageError,
        "normalized_shape takes integers of at least 0, got array([3, 4])",
    ),
    (call("group_norm", f(3, 4), 3), UsageError, "num_groups must divide the 4 channels of x, got 3"),
    (call("group_norm", f(3, 4), True), UsageError, "num_groups must be an integer of at least 1, got True"),
]
"""The call, the error, and its message after the name of the op."""


@pytest.mark.parametrize(
    ("bad", "error", "sentence"), BAD_CALLS, ids=[f"{n}-{c[0][0]}" for n, c in enumerate(BAD_CALLS)]
)
def test_a_bad_call_says_what_was_expected_and_what_came(bad: Call, error: type[XcnnError], sentence: str) -> None:
    name, args, options = bad
    with pytest.raises(error) as caught:
        getattr(ops, name)(*args, **options)
    assert str(caught.value) == f"{name}: {sentence}"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (
            call("pad", f(3), (1, 1), "mirror"),
            "unknown pad mode 'mirror' (known: circular, constant, reflect, replicate)",
        ),
        (
            call("interpolate", f(1, 2, 3), 4, mode="cubic"),
            "unknown interpolate mode 'cubic' (known: bilinear, linear, nearest, nearest-exact, trilinear)",
        ),
        (call("gelu", f(3), "tan"), "unknown gelu approximate 'tan'; did you mean 'tanh'? (known: none, tanh)"),
        (call("gelu", f(3), None), "unknown gelu approximate None; did you mean 'none'? (known: none, tanh)"),
        (call("mse_loss", f(3), f(3), 5), "unknown mse_loss reduction 5 (known: mean, none, sum)"),
        (
            call("mse_loss", f(3), f(3), "men"),
            "unknown mse_loss reduction 'men'; did you mean 'mean'? (known: mean, none, sum)",
        ),
    ],
)
def test_an_unknown_name_is_answered_by_the_known_ones(bad: Call, sentence: str) -> None:
    name, args, options = bad
    with pytest.raises(UsageError) as caught:
        getattr(ops, name)(*args, **options)
    assert str(caught.value) == sentence


LIKE_Y = "relu: dy must be a numpy array of float64 like y, got"

BAD_BACKWARDS: list[tuple[tuple[Any, ...], type[XcnnError], str]] = [
    ((), ShapeError, "relu: only a 0-d y may omit dy; pass one of shape (2, 3)"),
    ((f(3, 2),), ShapeError, "relu: dy must have the shape of y (2, 3), got (3, 2)"),
    ((f(2, 3, dtype="float32"),), DtypeError, f"{LIKE_Y} ndarray of float32"),
    ((array_api_strict.ones((2, 3)),), DtypeError, f"{LIKE_Y} Array of array_api_strict.float64"),
    ((1.0,), DtypeError, f"{LIKE_Y} float of no dtype"),
    ((f(2, 3), (True, True)), UsageError, "relu: needs takes 1 bools, one per array argument, got (True, True)"),
    ((f(2, 3), True), UsageError, "relu: needs takes 1 bools, one per array argument, got True"),
]


@pytest.mark.parametrize(("args", "error", "sentence"), BAD_BACKWARDS)
def test_a_bad_backward_says_what_was_expected_and_what_came(
    args: tuple[Any, ...], error: type[XcnnError], sentence: str
) -> None:
    _, backward = ops.relu(f(2, 3))
    with pytest.raises(error) as caught:
        backward(*args)
    assert str(caught.value) == sentence


def test_needs_counts_the_arrays_of_a_sequence() -> None:
    _, backward = ops.concat([f(1), f(2)])
    with pytest.raises(UsageError, match="concat: needs takes 2 bools"):
        backward(f(3), (True,))


def test_a_label_out_of_range_on_a_device_makes_its_row_nan() -> None:
    """Reading it on the host would stall a GPU; no other row may change, and no other class may be trained instead."""
    x = array_api_strict.ones((2, 3))
    target = array_api_strict.asarray([0, 3])
    y, backward = ops.cross_entropy(x, target, reduction="none")
    dx = np.asarray(backward(array_api_strict.ones((2,)))[0])
    assert np.isnan(np.asarray(y)).tolist() == [False, True]
    assert np.isnan(dx).tolist() == [[False] * 3, [True] * 3]


STRANGE: list[Any] = [
    *(
        None,
        True,
        False,
        np.True_,
        "x",
        "",
        "same",
        b"x",
        1j,
        object(),
        len,
        [],
        [1],
        [1.0, 2.0],
        (1, 2),
        [None],
        [[1]],
    ),
    *({}, {"a": 1}, range(3), ((1, 2), 3), ((1, 2), (3, 4)), [f(2), None]),
    *(-1, 0, 1, 2, 2**31, 2**63, 10**400, np.int64(2), -1.5, 3.5, 1e300, math.nan, math.inf, -math.inf, np.float32(1)),
    *(i(3), i(2, 2) > 0, f(), f(2), f(0), f(1, 0, 2), f(*(2,) * 6), f(3, dtype="float32")),
    *(np.array(["a"]), np.array([None]), np.array([1j]), array_api_strict.ones((2, 3))),
]
"""Values that most arguments do not accept."""


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in power")
@pytest.mark.parametrize(("op", "sample"), [(op, sample) for op in OPS.values() for sample in op.samples])
def test_no_value_of_an_argument_gives_another_error_than_ours(op: Op, sample: Sample) -> None:
    """Replace each argument by each of these values: the op returns a result and gradients, or raises our error."""
    arrays = sample.draw(np.random.default_rng(0))
    for name in inspect.signature(op.function).parameters:
        for value in STRANGE:
            try:
                y, backward = op.function(**{**arrays, **sample.options, name: value})
                y = y[0] if type(y) is tuple else y
                backward(np.ones_like(y) if isinstance(y, np.ndarray | np.generic) else y)
            except XcnnError as error:
                named = f"{op.name}: ", f"unknown {op.name} ", f"unknown activation of {op.name} "
                if not str(error).startswith(named):
                    raise
            except Exception as error:
                raise AssertionError(f"{op.name}: {name}={value!r} gives {error!r}") from error

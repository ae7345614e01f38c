"""Ops with hand-written gradients: pure functions `y, backward = op(arrays, options)`, on arrays of any library.

`op` registers a function as an op, with example calls from `sample`; `OPS` is the table of all ops. `formula` registers
an elementwise function, to make an op of.
"""

from xcnn.ops._formula import formula
from xcnn.ops._op import OPS, Draw, Op, Sample, labels, op, positive, probabilities, sample
from xcnn.ops.activation import (
    celu,
    elu,
    hardsigmoid,
    hardtanh,
    leaky_relu,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    softplus,
    tanh,
)
from xcnn.ops.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    global_avg_pool,
    global_max_pool,
)
from xcnn.ops.combine import add, concat, divide, maximum, minimum, multiply, subtract
from xcnn.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from xcnn.ops.cross_entropy import cross_entropy, nll_loss
from xcnn.ops.dropout import dropout, dropout1d, dropout2d, dropout3d, stochastic_depth
from xcnn.ops.elementwise import abs, erf, exp, log, negative, power, softsign, sqrt
from xcnn.ops.gated import gelu, hardswish, mish, silu
from xcnn.ops.linear import linear, matmul
from xcnn.ops.loss import binary_cross_entropy_with_logits, huber_loss, l1_loss, mse_loss
from xcnn.ops.norm import batch_norm, group_norm, instance_norm, layer_norm
from xcnn.ops.pad import pad
from xcnn.ops.pool import avg_pool1d, avg_pool2d, avg_pool3d, max_pool1d, max_pool2d, max_pool3d
from xcnn.ops.reduce import mean, sum
from xcnn.ops.response_norm import local_response_norm
from xcnn.ops.shape import flatten, permute, reshape, slice, unflatten
from xcnn.ops.softmax import log_softmax, softmax
from xcnn.ops.upsample import channel_shuffle, interpolate, pixel_shuffle, pixel_unshuffle

__all__ = [
    "OPS",
    "Draw",
    "Op",
    "Sample",
    "abs",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "add",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "celu",
    "channel_shuffle",
    "concat",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "divide",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "erf",
    "exp",
    "flatten",
    "formula",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "group_norm",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "l1_loss",
    "labels",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "matmul",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "maximum",
    "mean",
    "minimum",
    "mish",
    "mse_loss",
    "multiply",
    "negative",
    "nll_loss",
    "op",
    "pad",
    "permute",
    "pixel_shuffle",
    "pixel_unshuffle",
    "positive",
    "power",
    "prelu",
    "probabilities",
    "relu",
    "relu6",
    "reshape",
    "sample",
    "selu",
    "sigmoid",
    "silu",
    "slice",
    "softmax",
    "softplus",
    "softsign",
    "sqrt",
    "stochastic_depth",
    "subtract",
    "sum",
    "tanh",
    "unflatten",
]

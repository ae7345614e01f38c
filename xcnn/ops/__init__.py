"""Ops with hand-written gradients: pure functions `y, backward = op(arrays, options)`, on arrays of any library."""

from xcnn.ops.activation import elu, gelu, leaky_relu, relu, sigmoid, silu, tanh
from xcnn.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from xcnn.ops.cross_entropy import cross_entropy, nll_loss
from xcnn.ops.linear import flatten, linear
from xcnn.ops.pool import avg_pool1d, avg_pool2d, avg_pool3d, max_pool1d, max_pool2d, max_pool3d
from xcnn.ops.softmax import log_softmax, softmax

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "elu",
    "flatten",
    "gelu",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "nll_loss",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]

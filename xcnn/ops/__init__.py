"""Ops with hand-written gradients: pure functions `y, backward = op(arrays, options)`, on arrays of any library."""

from xcnn.ops.activation import log_softmax, relu, softmax
from xcnn.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from xcnn.ops.linear import flatten, linear
from xcnn.ops.pool import max_pool1d, max_pool2d, max_pool3d

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "flatten",
    "linear",
    "log_softmax",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "relu",
    "softmax",
]

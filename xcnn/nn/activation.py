"""Activation layers. Each is one op; its fields are the options of the op, with the names and defaults of PyTorch."""

from xcnn import ops
from xcnn.nn._layer import Layer
from xcnn.nn._module import options

__all__ = ["ELU", "GELU", "LeakyReLU", "LogSoftmax", "ReLU", "SiLU", "Sigmoid", "Softmax", "Tanh"]


class ReLU(Layer, op=ops.relu):
    """Cut off negative numbers: `max(x, 0)`."""


@options
class LeakyReLU(Layer, op=ops.leaky_relu):
    """Multiply negative numbers by `negative_slope`."""

    negative_slope: float = 0.01


@options
class ELU(Layer, op=ops.elu):
    """Bend negative numbers to `alpha * (exp(x) - 1)`."""

    alpha: float = 1.0


@options
class GELU(Layer, op=ops.gelu):
    """Multiply x by the normal distribution's probability of less than x, exact or with `approximate="tanh"`."""

    approximate: str = "none"


class SiLU(Layer, op=ops.silu):
    """Multiply x by its sigmoid."""


class Sigmoid(Layer, op=ops.sigmoid):
    """Squash numbers into 0..1: `1 / (1 + exp(-x))`."""


class Tanh(Layer, op=ops.tanh):
    """Squash numbers into -1..1."""


@options
class Softmax(Layer, op=ops.softmax):
    """Turn scores into probabilities along axis `dim`."""

    dim: int = -1


@options
class LogSoftmax(Layer, op=ops.log_softmax):
    """Turn scores into the logarithms of probabilities along axis `dim`."""

    dim: int = -1

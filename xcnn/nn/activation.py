"""Activation layers. Names, order and defaults are those of PyTorch."""

from xcnn import ops
from xcnn._check import choice, number
from xcnn.nn._layer import Layer
from xcnn.nn._module import options

__all__ = ["ELU", "GELU", "LeakyReLU", "LogSoftmax", "ReLU", "SiLU", "Sigmoid", "Softmax", "Tanh"]


class ReLU(Layer, op=ops.relu):
    """Apply the rectified linear unit: `max(x, 0)`."""


@options
class LeakyReLU(Layer, op=ops.leaky_relu):
    """Apply the leaky rectified linear unit: x where it is positive, else `negative_slope * x`."""

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        self.negative_slope = number("LeakyReLU", "negative_slope", self.negative_slope, "[0, inf)")


@options
class ELU(Layer, op=ops.elu):
    """Apply the exponential linear unit: x where it is positive, else `alpha * (exp(x) - 1)`."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        self.alpha = number("ELU", "alpha", self.alpha, "[0, inf)")


@options
class GELU(Layer, op=ops.gelu):
    """Apply the Gaussian error linear unit, exact or approximated by `approximate="tanh"`; see `ops.gelu`."""

    approximate: str = "none"

    def __post_init__(self) -> None:
        choice("GELU", "approximate", self.approximate, ("none", "tanh"))


class SiLU(Layer, op=ops.silu):
    """Apply the sigmoid linear unit: x times its sigmoid."""


class Sigmoid(Layer, op=ops.sigmoid):
    """Apply the logistic function: `1 / (1 + exp(-x))`."""


class Tanh(Layer, op=ops.tanh):
    """Apply the hyperbolic tangent."""


@options
class Softmax(Layer, op=ops.softmax):
    """Apply softmax along axis `dim`, which turns scores into probabilities."""

    dim: int = -1


@options
class LogSoftmax(Layer, op=ops.log_softmax):
    """Apply the logarithm of softmax along axis `dim`."""

    dim: int = -1

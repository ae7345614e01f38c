"""Activation layers. Names, order and defaults are those of PyTorch."""

import numpy as np

from xcnn import ops
from xcnn._array import full, namespace_of
from xcnn._check import choice, integer, number
from xcnn.nn._layer import Layer
from xcnn.nn._module import options
from xcnn.nn._weighted import filled
from xcnn.ops.activation import interval
from xcnn.parameter import Parameter

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
]


class ReLU(Layer, op=ops.relu):
    """Apply the rectified linear unit: `max(x, 0)`."""


@options
class LeakyReLU(Layer, op=ops.leaky_relu):
    """Apply the leaky rectified linear unit: x where it is positive, else `negative_slope * x`."""

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        self.negative_slope = number("LeakyReLU", "negative_slope", self.negative_slope, "[0, inf)")


@options
class PReLU(Layer, op=ops.prelu):
    """Apply the parametric rectified linear unit: x where it is positive, else x times a weight that is learned.

    Parameters
    ----------
    num_parameters : number of weights: 1 for all channels, or the number of channels.
    init : the first value of the weights.

    Raises
    ------
    UsageError
        If an argument is not such a number.
    """

    num_parameters: int = 1
    init: float = 0.25

    def __post_init__(self) -> None:
        shape = (integer("PReLU", "num_parameters", self.num_parameters),)
        self.init = number("PReLU", "init", self.init, "(-inf, inf)")
        self.weight = filled(Parameter, shape, self.init)

    def initialize(self, rng: np.random.Generator) -> None:
        data = self.weight.data
        self.weight.data = full(namespace_of(data), data.shape, self.init, data)


class ReLU6(Layer, op=ops.relu6):
    """Limit x to the interval from 0 to 6."""


@options
class Hardtanh(Layer, op=ops.hardtanh):
    """Limit x to the interval from `min_val` to `max_val`."""

    min_val: float = -1.0
    max_val: float = 1.0

    def __post_init__(self) -> None:
        self.min_val, self.max_val = interval("Hardtanh", self.min_val, self.max_val)


class Hardsigmoid(Layer, op=ops.hardsigmoid):
    """Apply the piecewise linear sigmoid: `min(max(x + 3, 0), 6) / 6`."""


@options
class Softplus(Layer, op=ops.softplus):
    """Apply the softplus function: `log(1 + exp(beta * x)) / beta`, or x where `beta * x` is above `threshold`."""

    beta: float = 1.0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        self.beta = number("Softplus", "beta", self.beta, "(0, inf)")
        self.threshold = number("Softplus", "threshold", self.threshold, "(-inf, inf)")


@options
class ELU(Layer, op=ops.elu):
    """Apply the exponential linear unit: x where it is positive, else `alpha * (exp(x) - 1)`."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        self.alpha = number("ELU", "alpha", self.alpha, "[0, inf)")


@options
class CELU(Layer, op=ops.celu):
    """Apply the continuously differentiable ELU: x where it is positive, else `alpha * (exp(x / alpha) - 1)`."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        self.alpha = number("CELU", "alpha", self.alpha, "(0, inf)")


class SELU(Layer, op=ops.selu):
    """Apply the scaled ELU, which keeps mean 0 and variance 1 in deep networks; see `ops.selu`."""


@options
class GELU(Layer, op=ops.gelu):
    """Apply the Gaussian error linear unit, exact or approximated by `approximate="tanh"`; see `ops.gelu`."""

    approximate: str = "none"

    def __post_init__(self) -> None:
        choice("GELU", "approximate", self.approximate, ("none", "tanh"))


class SiLU(Layer, op=ops.silu):
    """Apply the sigmoid linear unit: x times its sigmoid."""


class Hardswish(Layer, op=ops.hardswish):
    """Apply hard swish: x times its `Hardsigmoid`."""


class Mish(Layer, op=ops.mish):
    """Apply mish: x times the hyperbolic tangent of its `Softplus`."""


class Sigmoid(Layer, op=ops.sigmoid):
    """Apply the logistic function: `1 / (1 + exp(-x))`."""


class Softsign(Layer, op=ops.softsign):
    """Apply softsign: `x / (1 + abs(x))`."""


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

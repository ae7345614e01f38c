"""The base of layers with a weight and a bias.

Both are drawn at construction, without a seed; `reset_parameters(seed)` of the network makes them repeatable.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xcnn._check import flag
from xcnn.devices import like
from xcnn.errors import UsageError
from xcnn.nn import init as inits
from xcnn.nn._layer import Layer
from xcnn.parameter import Parameter

__all__ = ["Weighted", "undrawn"]

Init = str | inits.Init

_DRAWN = contextvars.ContextVar("_DRAWN", default=True)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Build layers without drawing weights inside a `with`, for a network whose weights will be loaded.

    The layers have zeros that take no memory; they are read-only and must be replaced.
    """
    token = _DRAWN.set(False)
    try:
        yield
    finally:
        _DRAWN.reset(token)


def _zeros(shape: tuple[int, ...]) -> Parameter:
    """Return a parameter of zeros that takes no memory, whatever its shape."""
    parameter = Parameter(np.zeros((), np.float32))
    parameter.data = np.broadcast_to(parameter.data, shape)
    return parameter


class Weighted(Layer):
    """A layer with a weight and, unless `bias` is False, a bias."""

    weight: Parameter
    bias: Parameter | None
    init: Init

    def _set(self, weight: tuple[int, ...], outputs: int, bias: bool, init: Init) -> None:
        inits.resolve(init)
        flag(type(self).__name__, "bias", bias)
        self.init = init
        self.weight = _zeros(weight)
        self.bias = _zeros((outputs,)) if bias else None
        self.initialize(np.random.default_rng())

    def initialize(self, rng: np.random.Generator) -> None:
        if not _DRAWN.get():
            return
        weight, bias = self.weight, self.bias
        shape = tuple(weight.data.shape)
        drawn = inits.resolve(self.init)(rng, shape)
        if getattr(drawn, "shape", None) != shape:
            came = getattr(drawn, "shape", type(drawn).__name__)
            raise UsageError(f"{type(self).__name__}: init must return an array of shape {shape}, got {came}")
        weight.data = like(drawn, weight.data)
        if bias is not None:
            # PyTorch's default draws the bias like the weight; in the papers of the other initialisers it is zero.
            bound = 1 / math.sqrt(inits.fans(shape)[0]) if self.init == "fan_in_uniform" else 0.0
            bias.data = like(inits.uniform(rng, tuple(bias.data.shape), -bound, bound), bias.data)

    def multiply_adds(self, x: Any, y: Any) -> int:
        # Each element of y is a sum over the weights of one output.
        return int(math.prod(y.shape) * math.prod(self.weight.data.shape[1:]))

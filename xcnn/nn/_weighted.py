"""The base of layers with a weight and a bias.

Both are drawn at construction, without a seed; `reset_parameters(seed)` of the network makes them repeatable.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from xcnn._check import flag
from xcnn.devices import like
from xcnn.errors import UsageError, XcnnError, wrong_call
from xcnn.nn import init as inits
from xcnn.nn._layer import Layer
from xcnn.parameter import Buffer, Parameter

__all__ = ["Weighted", "filled", "undrawn"]

Init = str | inits.Init
Slot = TypeVar("Slot", Parameter, Buffer)

_DRAWN = contextvars.ContextVar("_DRAWN", default=True)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Build layers without drawing weights inside a `with`, for a network whose weights will be loaded.

    The layers have arrays that take no memory, whatever their shapes; they are read-only and must be replaced.

    Raises
    ------
    UsageError
        If the code inside writes into one.
    """
    token = _DRAWN.set(False)
    try:
        yield
    except ValueError as error:
        if "read-only" not in str(error) or isinstance(error, XcnnError):
            raise
        remedy = "assign a new array, as in layer.weight.data = ..."
        raise UsageError(f"weights cannot be written into while a network is made; {remedy}") from error
    finally:
        _DRAWN.reset(token)


def filled(kind: type[Slot], shape: tuple[int, ...], value: float = 0, dtype: Any = np.float32) -> Slot:
    """Return a parameter or buffer of one value; inside `undrawn` it takes no memory."""
    slot = _repeated(kind(np.asarray(value, dtype)), shape)
    slot.data = np.array(slot.data, order="C") if _DRAWN.get() else slot.data
    return slot


def _repeated(slot: Slot, shape: tuple[int, ...]) -> Slot:
    """Give a slot of one number a shape, without taking memory."""
    slot.data = np.broadcast_to(slot.data, shape)
    return slot


class Weighted(Layer):
    """A layer with a weight and, unless `bias` is False, a bias."""

    weight: Parameter
    bias: Parameter | None
    init: Init

    def _set(self, weight: tuple[int, ...], outputs: int, bias: bool, init: Init) -> None:
        inits.resolve(init)
        flag(type(self).__name__, "bias", bias)
        self.init = init
        self.weight = _repeated(Parameter(np.zeros((), np.float32)), weight)
        self.bias = _repeated(Parameter(np.zeros((), np.float32)), (outputs,)) if bias else None
        self.initialize(np.random.default_rng())

    def initialize(self, rng: np.random.Generator) -> None:
        if not _DRAWN.get():
            return
        weight, bias = self.weight, self.bias
        shape = tuple(weight.data.shape)
        draw = inits.resolve(self.init)
        try:
            drawn = draw(rng, shape)
        except TypeError:
            if wrong_call("init", draw, (rng, shape), {}) is None:
                raise
            raise UsageError(f"{type(self).__name__}: init must take (rng, shape)") from None
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

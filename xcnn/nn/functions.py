"""Layers without parameters: each is one op, and its fields are the op's options, with PyTorch's names and defaults."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xcnn import ops
from xcnn._check import integer
from xcnn.errors import UsageError
from xcnn.nn._layer import Layer
from xcnn.nn._module import Module
from xcnn.ops._options import Integers
from xcnn.ops._window import ANY_SIZE
from xcnn.ops.pool import pool_axes

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "Add",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Concat",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Identity",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Pad",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]

Sizes = int | Sequence[int | None]
Backward = Callable[[Any, bool], Any]


class Identity(Module):
    """Return x."""

    def _forward(self, x: Any, train: bool) -> tuple[Any, Backward]:
        return x, lambda dy, need_dx: dy if need_dx else None


class ReLU(Layer, op=ops.relu):
    """Cut off negative numbers: `max(x, 0)`."""


@dataclass(eq=False, repr=False)
class LeakyReLU(Layer, op=ops.leaky_relu):
    """Multiply negative numbers by `negative_slope`."""

    negative_slope: float = 0.01


@dataclass(eq=False, repr=False)
class ELU(Layer, op=ops.elu):
    """Bend negative numbers to `alpha * (exp(x) - 1)`."""

    alpha: float = 1.0


@dataclass(eq=False, repr=False)
class GELU(Layer, op=ops.gelu):
    """Multiply x by the normal distribution's probability of less than x, exact or with `approximate="tanh"`."""

    approximate: str = "none"


class SiLU(Layer, op=ops.silu):
    """Multiply x by its sigmoid."""


class Sigmoid(Layer, op=ops.sigmoid):
    """Squash numbers into 0..1: `1 / (1 + exp(-x))`."""


class Tanh(Layer, op=ops.tanh):
    """Squash numbers into -1..1."""


@dataclass(eq=False, repr=False)
class Softmax(Layer, op=ops.softmax):
    """Turn scores into probabilities along axis `dim`."""

    dim: int = -1


@dataclass(eq=False, repr=False)
class LogSoftmax(Layer, op=ops.log_softmax):
    """Turn scores into the logarithms of probabilities along axis `dim`."""

    dim: int = -1


class Dropout(Layer, op=ops.dropout):
    """Set each number to zero with probability `p` in training and divide the others by 1 - p.

    Its masks come from `rng`, a stream of its own, which `reset_parameters` seeds.

    Parameters
    ----------
    p : from 0 to 1.

    Raises
    ------
    UsageError
        For a probability out of range.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise UsageError(f"Dropout: p must be a probability from 0 to 1, got {p!r}")
        self.p = p
        self.rng = np.random.default_rng()

    def _reset(self, rng: np.random.Generator) -> None:
        self.rng = np.random.default_rng(rng.integers(2**63))

    def _forward(self, x: Any, train: bool) -> tuple[Any, Backward]:
        return self._call(x, training=train)


@dataclass(eq=False, repr=False)
class Flatten(Layer, op=ops.flatten):
    """Join the axes from `start_dim` to `end_dim` into one; by default all but the batch axis."""

    start_dim: int = 1
    end_dim: int = -1


@dataclass(eq=False, repr=False)
class Pad(Layer, op=ops.pad):
    """Pad the last axes by `pad = (left, right, top, bottom, ...)`, the last axis first; `ops.pad` has the modes."""

    pad: Sequence[int]
    mode: str = "constant"
    value: float = 0.0


@dataclass(eq=False, repr=False)
class _MaxPool(Layer):
    _rank: ClassVar[int]

    kernel_size: Integers
    stride: Integers | None = None
    padding: Integers = 0
    dilation: Integers = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        maps = (ANY_SIZE,) * self._rank
        pool_axes(type(self).__name__, maps, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool1d(_MaxPool, op=ops.max_pool1d):
    """Take the maximum of each window of signals (n, c, w); by default the windows touch: stride = kernel_size."""

    _rank = 1


class MaxPool2d(_MaxPool, op=ops.max_pool2d):
    """Take the maximum of each window of images (n, c, h, w); by default the windows touch: stride = kernel_size."""

    _rank = 2


class MaxPool3d(_MaxPool, op=ops.max_pool3d):
    """Take the maximum of each window of volumes (n, c, d, h, w); by default the windows touch."""

    _rank = 3


@dataclass(eq=False, repr=False)
class AvgPool1d(Layer, op=ops.avg_pool1d):
    """Take the mean of each window of signals (n, c, w); by default the windows touch: stride = kernel_size."""

    _rank: ClassVar[int] = 1

    kernel_size: Integers
    stride: Integers | None = None
    padding: Integers = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        maps = (ANY_SIZE,) * self._rank
        pool_axes(type(self).__name__, maps, self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)


@dataclass(eq=False, repr=False)
class AvgPool2d(AvgPool1d, op=ops.avg_pool2d):
    """Take the mean of each window of images (n, c, h, w); `divisor_override` replaces the number of pixels."""

    _rank = 2

    divisor_override: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divisor_override is not None:
            integer(type(self).__name__, "divisor_override", self.divisor_override)


class AvgPool3d(AvgPool2d, op=ops.avg_pool3d):
    """Take the mean of each window of volumes (n, c, d, h, w); `divisor_override` replaces the number of voxels."""

    _rank = 3


@dataclass(eq=False, repr=False)
class AdaptiveAvgPool1d(Layer, op=ops.adaptive_avg_pool1d):
    """Average signals (n, c, w) to `output_size`, whatever their length."""

    output_size: Sizes


class AdaptiveAvgPool2d(AdaptiveAvgPool1d, op=ops.adaptive_avg_pool2d):
    """Average images (n, c, h, w) to `output_size`, one integer or one per axis; None keeps the axis."""


class AdaptiveAvgPool3d(AdaptiveAvgPool1d, op=ops.adaptive_avg_pool3d):
    """Average volumes (n, c, d, h, w) to `output_size`, one integer or one per axis; None keeps the axis."""


class GlobalAvgPool(Layer, op=ops.global_avg_pool):
    """Take the mean of each map: x (n, c, *sizes), y (n, c)."""


class GlobalMaxPool(Layer, op=ops.global_max_pool):
    """Take the maximum of each map: x (n, c, *sizes), y (n, c)."""


def _arrays(layer: Module, x: Any) -> Sequence[Any]:
    if not isinstance(x, tuple | list) or not x:
        raise UsageError(f"{type(layer).__name__}: x must be a tuple of arrays, got {type(x).__name__}")
    return x


class Add(Module):
    """Add a tuple of arrays of one shape."""

    def _forward(self, x: Any, train: bool) -> tuple[Any, Backward]:
        count = len(_arrays(self, x))
        y = functools.reduce(lambda total, term: ops.add(total, term)[0], x)
        return y, lambda dy, need_dx: (dy,) * count if need_dx else None


@dataclass(eq=False, repr=False)
class Concat(Module):
    """Join a tuple of arrays along axis `dim`, by default the channels."""

    dim: int = 1

    def _forward(self, x: Any, train: bool) -> tuple[Any, Backward]:
        y, backward = ops.concat(_arrays(self, x), self.dim)
        return y, lambda dy, need_dx: backward(dy) if need_dx else None

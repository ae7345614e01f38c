"""Layers without parameters: each is one op, and its fields are the op's options, with PyTorch's names and defaults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xcnn import ops
from xcnn.nn._layer import Layer
from xcnn.nn._module import Module

__all__ = [
    "Flatten",
    "Identity",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "ReLU",
    "Softmax",
]

Integers = int | Sequence[int]


class Identity(Module):
    """Return x."""

    def _forward(self, x: Any, train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
        return x, lambda dy, need_dx: dy if need_dx else None


class ReLU(Layer, op=ops.relu):
    """Cut off negative numbers: `max(x, 0)`."""


@dataclass(eq=False, repr=False)
class Softmax(Layer, op=ops.softmax):
    """Turn scores into probabilities along axis `dim`."""

    dim: int = -1


@dataclass(eq=False, repr=False)
class LogSoftmax(Layer, op=ops.log_softmax):
    """Turn scores into the logarithms of probabilities along axis `dim`."""

    dim: int = -1


@dataclass(eq=False, repr=False)
class Flatten(Layer, op=ops.flatten):
    """Join the axes from `start_dim` to `end_dim` into one; by default all but the batch axis."""

    start_dim: int = 1
    end_dim: int = -1


@dataclass(eq=False, repr=False)
class _MaxPool(Layer):
    """The maximum of each window; see `ops.max_pool2d`. The stride is the kernel size unless given."""

    kernel_size: Integers
    stride: Integers | None = None
    padding: Integers = 0
    dilation: Integers = 1
    ceil_mode: bool = False


class MaxPool1d(_MaxPool, op=ops.max_pool1d):
    """Take the maximum of each window of signals (n, c, w)."""


class MaxPool2d(_MaxPool, op=ops.max_pool2d):
    """Take the maximum of each window of images (n, c, h, w)."""


class MaxPool3d(_MaxPool, op=ops.max_pool3d):
    """Take the maximum of each window of volumes (n, c, d, h, w)."""

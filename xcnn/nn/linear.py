"""The linear layer, the ways from maps to its vectors and back, and the identity."""

from collections.abc import Callable, Sequence
from typing import Any

from xcnn import ops
from xcnn._check import integer
from xcnn.nn._layer import Layer
from xcnn.nn._module import Module, options
from xcnn.nn._weighted import Init, Weighted
from xcnn.ops.shape import split_sizes

__all__ = ["Flatten", "Identity", "Linear", "Unflatten"]


class Identity(Module):
    """Return x."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return x, lambda dy, need_dx: dy if need_dx else None


class Linear(Weighted, op=ops.linear):
    """Apply a linear map, `y = x @ weight.T + bias`, to x (..., in_features); y is (..., out_features).

    Parameters
    ----------
    in_features, out_features : sizes of the last axis of x and y.
    bias : whether there is a bias.
    init : initialiser of the weight: a name of `nn.init.INITS` or a function of (rng, shape). By default the weight and
        the bias are drawn from U(-b, b) with `b = 1 / sqrt(fan_in)`, as in PyTorch. With any other `init` the bias
        starts at zero.

    Raises
    ------
    UsageError
        If a size is below 1, or the initialiser is unknown.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, init: Init = "fan_in_uniform"
    ) -> None:
        self.in_features = integer("Linear", "in_features", in_features)
        self.out_features = integer("Linear", "out_features", out_features)
        self._set((out_features, in_features), out_features, bias, init)


@options
class Flatten(Layer, op=ops.flatten):
    """Join the axes from `start_dim` to `end_dim` into one; by default all but the batch axis."""

    start_dim: int = 1
    end_dim: int = -1


@options
class Unflatten(Layer, op=ops.unflatten):
    """Split axis `dim` into axes of the sizes `unflattened_size`, such as vectors into maps (channels, h, w)."""

    dim: int
    unflattened_size: Sequence[int]

    def __post_init__(self) -> None:
        split_sizes("Unflatten", self.unflattened_size)

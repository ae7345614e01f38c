"""Normalisation by constants, the mean and standard deviation of each channel of the training data."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._array import Array, namespace
from xcnn._check import numbers
from xcnn.devices import like
from xcnn.errors import ShapeError, UsageError
from xcnn.nn._module import Module, options

__all__ = ["Normalize"]


@options
class Normalize(Module):
    """Subtract the mean of each channel from x (n, c, *sizes) and divide by its standard deviation.

    `y = (x - mean[c]) / std[c]`, with two constants per channel that are not trained, as those of
    `data.channel_statistics`. This is a layer, not a step of loading the data, so that it belongs to the network: it is
    saved and loaded with it, and evaluation and prediction cannot forget it. It has no entries in `state_dict`, so the
    keys of the layers after it begin with 1 in a Sequential; `Sequential(Normalize(...), network)` keeps a network's
    own keys, after `1.`.

    Parameters
    ----------
    mean : one number per channel; a single number is for one channel.
    std : as many numbers, above 0.

    Raises
    ------
    UsageError
        If the numbers are not as above.
    ShapeError, DtypeError
        In a forward pass, if x has another number of channels or is not a floating-point array.

    Examples
    --------
    >>> import numpy as np
    >>> Normalize((0.5, 2.0), (0.25, 1.0))(np.ones((1, 2)))
    array([[ 2., -1.]])
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        self.mean = numbers("Normalize", "mean", self.mean, "(-inf, inf)")
        self.std = numbers("Normalize", "std", self.std, "(0, inf)")
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"Normalize: mean and std must have one number per channel each, got {len(self.mean)} and "
                f"{len(self.std)}"
            )

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        namespace("Normalize", x=x)
        mean, std = (self._constants(x, np.asarray(values)) for values in (self.mean, self.std))
        return (x - mean) / std, lambda dy, need_dx: dy / std if need_dx else None

    def _constants(self, x: Array, values: np.ndarray) -> Array:
        """Return one number per channel as an array that broadcasts to x, on its device."""
        if x.ndim < 2 or x.shape[1] != len(values):
            raise ShapeError(f"Normalize: x must be (n, {len(values)}, *sizes), got {tuple(x.shape)}")
        return like(np.reshape(values, (-1, *(1,) * (x.ndim - 2))), x)

"""Statistics of the activations of every layer over a data set, which show dead ReLUs and saturated sigmoids."""

import collections
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._array import Array, is_array, namespace_of
from xcnn._check import integer, shown
from xcnn.data import Dataset, Loader
from xcnn.devices import Device, device, like, to_numpy
from xcnn.errors import DataError, UsageError, explained
from xcnn.explain.trace import Call, trace
from xcnn.nn import Module
from xcnn.nn._calls import calls
from xcnn.training.feed import Data, inputs

__all__ = ["LayerStatistics", "activation_statistics", "batches_of"]

_NEAR = 0.01
"""How near to a bound an activation is saturated, as a share of the distance of both bounds."""


@dataclass(frozen=True)
class LayerStatistics:
    """The numbers that a layer returned for all examples.

    Attributes
    ----------
    name, layer : dotted name of the layer, and its class.
    shape : shape of its output without the batch axis.
    mean, std, minimum, maximum : of all its numbers.
    zeros : the share of zeros.
    units : the number of channels, or of numbers per example if there are no maps.
    dead : of a ReLU, how many of these were zero everywhere and in every example, so that no gradient has passed them;
        None of other layers.
    saturated : of a sigmoid or tanh, the share of numbers within 1 % of their bounds, where the slope is nearly zero;
        None of other layers.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    mean: float
    std: float
    minimum: float
    maximum: float
    zeros: float
    units: int
    dead: int | None
    saturated: float | None


@explained
def activation_statistics(model: Module, data: Data, batch_size: int = 64) -> list[LayerStatistics]:
    """Return statistics of the output of every layer, in the order of the forward pass, over all examples.

    A layer that is called several times, such as a shared ReLU, has a row for each of its calls.

    Parameters
    ----------
    model : the network, on any device; it runs in inference mode.
    data : what `Trainer.predict` takes: an array (n, ...), a `Dataset`, a `Loader`, ... uint8 is divided by 255.
    batch_size : examples per pass, whose activations are all in memory at a time.

    Raises
    ------
    UsageError, DataError, ShapeError
        If an argument is not as above, or there are no examples.

    Examples
    --------
    >>> import numpy as np
    >>> from xcnn import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> model[0].weight.data, model[0].bias.data = np.zeros((3, 2)), np.asarray([-1.0, 0.0, 2.0])
    >>> found = activation_statistics(model, np.ones((5, 2)))[1]
    >>> found.dead, found.units, found.maximum
    (2, 3, 2.0)
    """
    sums: dict[tuple[str, int], _Sums] = {}
    for x in batches_of("activation_statistics", model, data, batch_size):
        seen = collections.Counter[str]()
        for call in trace(model, x).layers:
            seen[call.name] += 1
            if is_array(call.y) and call.y.ndim > 0 and 0 not in call.y.shape:
                sums.setdefault((call.name, seen[call.name]), _Sums(call)).add(call.y)
    return [one.result() for one in sums.values()]


def batches_of(caller: str, model: Any, data: Data, batch_size: int) -> Iterator[Array]:
    """Yield the examples of data in order in batches, in the dtype and on the device of the model."""
    if not isinstance(model, Module):
        raise UsageError(f"{caller}: model must be a module, got {shown(model)}")
    integer(caller, "batch_size", batch_size)
    first = next(iter(model.parameters()), None)
    made, _ = inputs(f"{caller}: data", data, batch_size, _where(data))
    empty = True
    with contextlib.closing(made) as parts:
        for part in parts:
            empty = False
            same = first is None or (namespace_of(part) is namespace_of(first.data) and part.dtype == first.data.dtype)
            yield part if first is None or same else like(to_numpy(part), first.data)
    if empty:
        raise DataError(f"{caller}: data has no batch (an iterator gives its batches only once)")


def _where(data: Data) -> Device:
    """Return where the data are."""
    held = data.dataset if isinstance(data, Loader) else data
    return held.device if isinstance(held, Dataset) else device("cpu")


class _Sums:
    """The statistics of one layer so far; the means and variances of batches are combined as by Chan et al., 1983."""

    def __init__(self, call: Call) -> None:
        known = calls(call.module, watched=True)
        self.name, self.layer = call.name, type(call.module).__name__
        self.shape = tuple(map(int, call.y.shape[1:]))
        self.units = int(call.y.shape[1]) if call.y.ndim > 1 else 1
        self.positive = np.zeros(self.units, bool) if known and known[0] in ("relu", "relu6") else None
        self.bounds = _bounds(*known) if known else None
        self.count = self.zeros = self.saturated = 0
        self.mean = self.squares = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, y: Array) -> None:
        xp = namespace_of(y)
        mean, variance = xp.mean(y), xp.var(y)
        counts = [_count(y != 0)]
        if self.bounds is not None:
            low, high = self.bounds
            near = _NEAR * (high - low)
            counts.append(_count((y <= low + near) | (y >= high - near)))
        if self.positive is not None:
            others = tuple(axis for axis in range(y.ndim) if axis != 1)
            self.positive |= to_numpy(xp.any(y > 0, axis=others)).reshape(-1)
        n = math.prod(y.shape)
        found = float(mean) - self.mean
        total = self.count + n
        self.squares += n * float(variance) + found * found * self.count * n / total
        self.mean += found * n / total
        self.count = total
        self.zeros += n - counts[0]
        self.saturated += counts[-1] if self.bounds is not None else 0
        self.low = float(np.minimum(self.low, float(xp.min(y))))  # which is NaN if one of them is
        self.high = float(np.maximum(self.high, float(xp.max(y))))

    def result(self) -> LayerStatistics:
        return LayerStatistics(
            self.name,
            self.layer,
            self.shape,
            self.mean,
            math.sqrt(max(self.squares / self.count, 0.0)),
            self.low,
            self.high,
            self.zeros / self.count,
            self.units,
            None if self.positive is None else int(np.count_nonzero(~self.positive)),
            None if self.bounds is None else self.saturated / self.count,
        )


def _count(mask: Array) -> int:
    xp = namespace_of(mask)
    return int(xp.sum(xp.astype(mask, xp.int32), dtype=xp.int32))


def _bounds(op: str, options: dict[str, Any]) -> tuple[float, float] | None:
    """Return the bounds of an activation that saturates at both, None for others."""
    if op == "hardtanh":
        return options["min_val"], options["max_val"]
    return {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(op)

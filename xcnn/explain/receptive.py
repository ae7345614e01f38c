"""Receptive fields: the part of the input that each number of a layer can depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcnn._array import Array, is_array
from xcnn._check import is_integer, shown
from xcnn.devices import like
from xcnn.errors import UsageError, explained
from xcnn.explain._boxes import Reach, image, nothing, passed, whole
from xcnn.explain.trace import Call, trace
from xcnn.nn import Module

__all__ = ["Field", "fields_of_calls", "receptive_fields"]


@dataclass(frozen=True)
class Field:
    """The receptive fields of a module.

    Attributes
    ----------
    name : dotted name of the module.
    layer : its class.
    shape : shape of its output without the batch axis.
    size : pixels along each axis of the input that a number sees, as if the image had no end; for layers that have no
        maps in step with the image, such as linear ones, the most inside the image.
    jump : pixels of the input from one number to the next along each axis, the product of the strides; None for layers
        without maps in step with the image.
    start : first pixel that the first number sees along each axis, negative in the padding; None as for `jump`.
    exact : False if a layer of unknown code came before, which may use all of its input, and so is taken to.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    size: tuple[float, ...]
    jump: tuple[float, ...] | None
    start: tuple[float, ...] | None
    exact: bool
    _ends: Array = field(repr=False, compare=False)

    @explained
    def window(self, position: Sequence[int] | int = ()) -> tuple[slice, ...]:
        """Return the box of one number inside the image, one slice per axis of the input.

        Parameters
        ----------
        position : index of the number in the output without the batch axis, or without the channel, too, for the box of
            all channels there.

        Returns
        -------
        Slices that are empty if the number depends on no pixel, as it sees only padding.

        Raises
        ------
        UsageError
            If there is no such number.

        Examples
        --------
        >>> from xcnn import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2))
        >>> pool = receptive_fields(model, (1, 8, 8))["1"]
        >>> pool.size, pool.jump, pool.window((0, 1))
        ((4, 4), (2, 2), (slice(0, 3, None), slice(1, 5, None)))
        """
        place: tuple[Any, ...] = tuple(position) if isinstance(position, Sequence) else (position,)
        sizes = self.shape[1:] if len(place) == len(self.shape) - 1 else self.shape
        fits = len(place) == len(sizes) and all(is_integer(i) for i in place)
        fits = fits and all(0 <= i < n for i, n in zip(place, sizes, strict=True))
        if not fits:
            wanted = f"an index of the output {self.shape}, with or without the channel"
            raise UsageError(f"window: position must be {wanted}, got {shown(position)}")
        axes = self._ends.shape[len(self._ends.shape) - len(place) :]
        there = (0 if n == 1 else i for i, n in zip(place, axes, strict=True))
        found = self._ends[(..., *there)]
        ends = found if found.ndim == 1 else found.max(axis=1)
        return tuple(_slice(-first, end) for first, end in zip(ends[::2], ends[1::2], strict=True))


def _slice(first: float, end: float) -> slice:
    return slice(int(first), int(end)) if end > first else slice(0, 0)


@explained
def receptive_fields(model: Module, shape: Sequence[int]) -> dict[str, Field]:
    """Return the receptive fields of all modules of a network, in the order in which their outputs are computed.

    They hold for every number exactly, also at the border, behind upsampling and in any graph; but they are boxes, and
    with dilation not every pixel inside counts. They say what a number may depend on; how much it does is another
    matter: W. Luo et al., Understanding the effective receptive field in deep convolutional neural networks, 2016.

    Parameters
    ----------
    model : the network, on any device.
    shape : shape of one input (c, *sizes).

    Returns
    -------
    A dict by dotted name; of a module that is called several times, the last call.

    Raises
    ------
    UsageError
        If `shape` is not as above.

    Notes
    -----
    A. Araujo, W. Norris and J. Sim, Computing receptive fields of convolutional neural networks, 2019, has the closed
    form of `size`, `jump` and `start`, https://distill.pub/2019/computing-receptive-fields.
    """
    return {field.name: field for field in fields_of_calls(model, shape) if field is not None}


def fields_of_calls(model: Module, shape: Sequence[int]) -> list[Field | None]:
    """Return the same for each of `Trace.calls`, None for one whose output is not an array."""
    if not isinstance(model, Module):
        raise UsageError(f"receptive_fields: model must be a module, got {shown(model)}")
    if not isinstance(shape, Sequence) or len(shape) < 2 or not all(is_integer(n) and n > 0 for n in shape):
        raise UsageError(f"receptive_fields: shape must be that of one input, (c, h, w), got {shown(shape)}")
    sizes = tuple(map(int, shape[1:]))
    host = np.zeros((1, *shape), np.float32)
    first = next(iter(model.parameters()), None)
    with np.errstate(all="ignore"):  # the numbers do not matter
        found = trace(model, host if first is None else like(host, first.data))
    slots = [*model.named_parameters(), *model.named_buffers()]
    known: dict[int, Reach | None] = {id(slot.data): None for _, slot in slots} | {id(found.x): image(sizes)}
    fields: list[Field | None] = []
    for call in found.calls:
        for y in call.y if isinstance(call.y, tuple) else (call.y,):
            if is_array(y) and id(y) not in known:
                known[id(y)] = passed(call, y, known, sizes) if call.leaf else whole(y, sizes)
        reach = known[id(call.y)] or nothing(call.y, sizes) if is_array(call.y) else None
        fields.append(None if reach is None else _field(call, reach, len(sizes)))
    return fields


def _field(call: Call, reach: Reach, axes: int) -> Field:
    extents = np.maximum(reach.ends[::2] + reach.ends[1::2], 0)
    most = extents.reshape(axes, -1).max(axis=1).tolist()
    size, jump, start = map(_plain, zip(*reach.lines, strict=True)) if reach.lines else (_plain(most), None, None)
    shape = tuple(map(int, call.y.shape[1:]))
    return Field(call.name, type(call.module).__name__, shape, size, jump, start, reach.exact, reach.ends)


def _plain(values: Sequence[float]) -> tuple[float, ...]:
    """Return numbers as integers where they are: behind upsampling, they may be fractions."""
    return tuple(int(value) if float(value).is_integer() else float(value) for value in values)

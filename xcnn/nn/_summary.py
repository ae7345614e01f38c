"""`summary`: the layers of a network, their parameters, work and memory, from one forward pass."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from xcnn._array import Array, is_array, namespace_of
from xcnn._check import integer, is_integer, shown
from xcnn.devices import like
from xcnn.errors import UsageError, explained
from xcnn.nn._module import Module
from xcnn.nn._observe import observing
from xcnn.parameter import Buffer, Parameter

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One call of a layer, or the total.

    Attributes
    ----------
    name : dotted name of the layer.
    layer : name of its class.
    shape : shape of its output.
    parameters : number of elements of its parameters, without those that an earlier row has counted.
    frozen : how many of these are frozen; the others are trainable.
    multiply_adds : number of multiply-adds of a forward pass; a backward pass takes about twice as many.
    kept : bytes that stay in memory from its forward to its backward pass, without parameters and the network's input.
        An array that several layers keep counts for the first of them.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    parameters: int
    frozen: int
    multiply_adds: int
    kept: int


@dataclass(frozen=True)
class Summary:
    """The rows in the order of the forward pass, and their total; `str` formats them as a table.

    The table has a column `frozen` if some parameters are.

    Attributes
    ----------
    rows : one per call of a layer.
    total : the sums, with the shape of the network's output.
    """

    rows: tuple[Row, ...]
    total: Row

    def __str__(self) -> str:
        head = ("name", "layer", "output", "parameters", "frozen", "multiply-adds", "kept")
        lines = [head, *(_cells(row) for row in self.rows), _cells(self.total)]
        if not self.total.frozen:
            lines = [(*line[:4], *line[5:]) for line in lines]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        texts = ("  ".join(map(str.ljust, line[:3], widths[:3])) for line in lines)
        numbers = ("  ".join(map(str.rjust, line[3:], widths[3:])) for line in lines)
        table = ["  ".join(halves) for halves in zip(texts, numbers, strict=True)]
        rule = "-" * len(table[0])
        return "\n".join([table[0], rule, *table[1:-1], rule, table[-1]])


def _cells(row: Row) -> tuple[str, ...]:
    name, layer, shape, *counts, kept = astuple(row)
    return name, layer, "x".join(map(str, shape)), *(f"{count:,}" for count in counts), _bytes(kept)


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


@explained
def summary(module: Module, shape: tuple[int, ...], batch: int = 1) -> Summary:
    """Run a network forward once, on zeros, and return the output shape, parameters, work and memory of each layer.

    The network runs as in training, except that batch norm uses its running statistics: a batch of one may have no
    variance. Running statistics and random generators are restored afterwards.

    Parameters
    ----------
    module : the network, on any device.
    shape : shape of one input without its batch axis, such as (1, 28, 28).
    batch : number of inputs; multiply-adds and kept bytes grow with it.

    Raises
    ------
    UsageError
        If `batch` is not an integer of at least 1, or `shape` not a sequence of such integers.
    ShapeError
        If a layer does not take the shape of its input.

    Examples
    --------
    >>> from xcnn import nn
    >>> print(summary(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU()), (3, 2, 2)))
    name   layer    output  parameters  multiply-adds  kept
    -------------------------------------------------------
    0      Flatten  1x12             0              0   0 B
    1      Linear   1x5             65             60   0 B
    2      ReLU     1x5              0              0  20 B
    -------------------------------------------------------
    total           1x5             65             60  20 B
    """
    integer("summary", "batch", batch)
    if not isinstance(shape, Sequence) or not all(is_integer(size) and size >= 1 for size in shape):
        wanted = "the sizes of one input, such as (1, 28, 28)"
        raise UsageError(f"summary: shape must be {wanted}, got {shown(shape)}")
    x: Array = np.zeros((batch, *shape), np.float32)
    if parameters := module.parameters():
        x = like(x, parameters[0].data)
    rows: list[Row] = []
    # What is counted stays alive here, so that no other object gets its identity.
    known = map(_root, [x, *(slot.data for _, slot in module._attributes(Parameter, Buffer))])
    counted: dict[int, Any] = {id(array): array for array in known}

    def observer(name: str, layer: Module) -> Callable[..., tuple[Any, Any]]:
        forward: Callable[..., tuple[Any, Any]] = layer.forward
        has_statistics = any(layer.named_buffers())

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train and not has_statistics)
            fresh = {id(root): root for root in map(_root, backward.saved().values()) if id(root) not in counted}
            owned = {id(p): p for p in layer.parameters() if id(p) not in counted}
            counted.update(fresh | owned)
            sizes = [(math.prod(p.data.shape), p.trainable) for p in owned.values()]
            parameters, frozen = sum(n for n, _ in sizes), sum(n for n, trainable in sizes if not trainable)
            work, kept = layer.multiply_adds(x, y), sum(map(_size, fresh.values()))
            rows.append(Row(name, type(layer).__name__, tuple(y.shape), parameters, frozen, work, kept))
            return y, backward

        return observed

    with _restored(module), observing(module, observer):
        y, _ = module.forward(x, train=True)
    within = {id(p) for _, layer in module.modules() if not any(layer.children()) for p in layer.parameters()}
    for name, slot in module.named_parameters():
        if id(slot) not in within:  # of a container itself
            size = math.prod(slot.data.shape)
            frozen = 0 if slot.trainable else size
            rows.append(Row(name, type(slot).__name__, tuple(slot.data.shape), size, frozen, 0, 0))
    sums = (sum(getattr(row, field) for row in rows) for field in ("parameters", "frozen", "multiply_adds", "kept"))
    return Summary(tuple(rows), Row("total", "", tuple(y.shape), *sums))


@contextlib.contextmanager
def _restored(module: Module) -> Iterator[None]:
    """Restore buffers and random generators at the end of a `with`.

    Inside, the buffers are copies, so that those that a layer keeps count as the statistics of a batch would.
    """
    buffers = [(slot, slot.data) for _, slot in module._attributes(Buffer)]
    streams = [(generator.bit_generator, generator.bit_generator.state) for _, generator in module.named_generators()]
    for slot, data in buffers:
        slot.data = namespace_of(data).asarray(data, copy=True)
    try:
        yield
    finally:
        for slot, data in buffers:
            slot.data = data
        for stream, state in streams:
            stream.state = state


def _root(array: Array) -> Array:
    """Return the array whose memory a view holds."""
    while is_array(getattr(array, "base", None)):
        array = array.base
    return array


def _size(array: Array) -> int:
    xp = namespace_of(array)
    if xp.isdtype(array.dtype, "bool"):
        return int(math.prod(array.shape))
    info = xp.finfo if xp.isdtype(array.dtype, "real floating") else xp.iinfo
    return int(math.prod(array.shape)) * int(info(array.dtype).bits) // 8

"""Parts of a batch: cut by its length alone, dealt out to the processes, and each with random streams of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from xcnn._array import Array, is_kind, namespace_of, zeros
from xcnn.errors import ShapeError, UsageError
from xcnn.parameter import Buffer
from xcnn.training.processes import Processes
from xcnn.training.sums import Sum

__all__ = ["Cut", "Part", "Parts", "Statistics", "Streams", "widest"]

_TAG = 8
_APART = 1 << 64
"""How far apart the random numbers of two parts are in their stream."""


def widest(xp: ModuleType) -> Any:
    """Return float64, or float32 where a library has no other."""
    known = xp.__array_namespace_info__().dtypes()
    return known.get("float64", known["float32"])


class Part(NamedTuple):
    """A part of a batch: its number, x and y."""

    number: int
    x: Any
    y: Any


@dataclass(frozen=True)
class Parts:
    """A batch as one process sees it.

    Attributes
    ----------
    samples : the number of samples of the whole batch.
    count : the number of its parts.
    mine : those of this process, in order.
    """

    samples: int
    count: int
    mine: Sequence[Part]


@dataclass(frozen=True)
class Cut:
    """How batches are cut: n samples into min(most, n) parts, of which part p of P begins with sample p * n // P.

    Raises
    ------
    UsageError
        If there are more processes than parts.
    """

    most: int = 1
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        if self.most < self.processes.size:
            raise UsageError(
                f"accumulate must be at least the number of processes, {self.processes.size}, got {self.most}; start "
                "fewer, or raise it, which changes the results",
                setting="accumulate",
            )

    @property
    def whole(self) -> bool:
        """Whether each batch is one part, computed by the only process."""
        return self.most == 1 and self.processes.size == 1

    def count(self, n: int) -> int:
        """Return the number of parts of n samples."""
        return max(1, min(self.most, n))

    def rows(self, n: int) -> list[tuple[int, int]]:
        """Return where the parts of this process begin and end among n samples."""
        count = self.count(n)
        return [(k * n // count, (k + 1) * n // count) for k in self.processes.mine(count)]

    def made(self, n: int, pairs: Sequence[tuple[Any, Any]]) -> Parts:
        """Return a batch of n samples of which the parts of this process are made."""
        count = self.count(n)
        return Parts(n, count, [Part(k, *pair) for k, pair in zip(self.processes.mine(count), pairs, strict=True)])

    def parts(self, x: Array, y: Array) -> Parts:
        """Cut a batch."""
        n = x.shape[0] if x.ndim else 1
        if self.whole:
            return Parts(n, 1, [Part(0, x, y)])
        if self.count(n) == 1:
            return self.made(n, [(x, y)][: len(self.processes.mine(1))])
        if y.shape[:1] != (n,):
            raise ShapeError(f"step: x has {n} samples, y has {y.shape[0] if y.ndim else 'no axis'}")
        return self.made(n, [(x[a:b, ...], y[a:b, ...]) for a, b in self.rows(n)])


class Streams:
    """The random streams of a model while the parts of a batch are computed.

    Part p draws from the place p * 2**64 numbers after that of the batch, so that its numbers depend neither on other
    parts nor on who computes them; the next batch begins after its last part.
    """

    def __init__(self, streams: Sequence[Any]) -> None:
        for bits in streams:
            if not hasattr(bits, "advance"):
                kind = type(bits).__name__
                raise UsageError(f"a random stream of the model is a {kind}, which cannot be cut into parts; use PCG64")
        self._bits, self._states = streams, [bits.state for bits in streams]

    def go_to(self, part: int) -> None:
        """Go to the numbers of a part; the number of all parts is where the next batch begins."""
        for bits, state in zip(self._bits, self._states, strict=True):
            bits.state = state
            bits.advance(part * _APART)


class Statistics:
    """Buffers, such as running statistics, while the parts of a batch are computed.

    Each part begins with the buffers of before the batch. Afterwards each of their numbers has moved by the mean of the
    parts' changes. `mine` is whether this process has a part.
    """

    def __init__(self, buffers: Sequence[Buffer], processes: Processes, count: int, mine: bool) -> None:
        self._buffers = [buffer for buffer in buffers if buffer.trainable]
        self._before, self.count = [buffer.data for buffer in self._buffers], count
        self._sum: Sum | None = None
        if self._before:
            xp = namespace_of(self._before[0])
            self._wide = widest(xp)
            origin = xp.astype(zeros(xp, (1,), self._before[0]), self._wide)
            self._sum = Sum(processes, count, _TAG, origin, sum(math.prod(array.shape) for array in self._before))
            if not mine:  # before the gradients, as in other processes
                self._sum.start()

    def reset(self) -> None:
        """Let the next part begin with the buffers of before the batch."""
        for buffer, array in zip(self._buffers, self._before, strict=True):
            buffer.data = array

    def take(self, part: int, last: bool) -> None:
        """Take the buffers of a part; after the last one of this process, those of others are asked for."""
        if self._sum is None:
            return
        flat = self._flat([buffer.data for buffer in self._buffers])
        self._sum.add(part, flat if self.count == 1 else flat - self._flat(self._before))
        if last:
            self._sum.start()

    def finish(self, processes: Processes) -> None:
        """Set the buffers to those of after the batch."""
        if self._sum is None:
            return
        processes.wait(self._sum.advance)
        flat, start = self._sum.total, 0
        if self.count > 1:
            flat = flat / self.count + self._flat(self._before)
        xp = namespace_of(flat)
        for buffer, before in zip(self._buffers, self._before, strict=True):
            size = math.prod(before.shape)
            made = flat[start : start + size]
            if not is_kind(xp, before.dtype, "real floating"):
                made = xp.round(made)
            buffer.data = xp.astype(xp.reshape(made, before.shape), before.dtype)
            start += size

    def _flat(self, arrays: Sequence[Array]) -> Array:
        xp = namespace_of(arrays[0])
        return xp.concat([xp.reshape(xp.astype(array, self._wide), (-1,)) for array in arrays])

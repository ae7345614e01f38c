"""Sums over the parts of a batch, in an order that depends on the number of parts alone.

Parts 2i and 2i + 1 are added first, then such pairs, and so on: a node of level k is the sum of the 2**k parts from a
multiple of 2**k on. What is left of an incomplete tree is added from the right. Each process adds its own parts as far
as they are nodes. The nodes of all processes are then added by parts of their length: each process is sent one slice
of every node, adds these in the order of the tree, and sends the sum of its slice to all (a reduce-scatter and an
all-gather), so that 2 (N - 1) / N of the length go to and from each of N processes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from xcnn._array import Array, empty, namespace_of, zeros
from xcnn._dispatch import body
from xcnn.errors import DtypeError, XcnnError
from xcnn.parameter import Parameter
from xcnn.training.processes import Done, Processes

__all__ = ["Gradients", "Sum", "tree_sum"]

Node = tuple[int, int, Array]
"""The number of the first part, the level, and the sum."""

_FIRST_TAG = 16
"""The tag of the first bucket; those below are of other exchanges."""


def _push(nodes: list[Node], first: int, level: int, array: Array) -> None:
    """Add the next node to those on its left, which may change in place: two siblings become their parent."""
    while nodes:
        start, depth, left = nodes[-1]
        if depth != level or start >> level & 1 or start + (1 << level) != first:
            break
        nodes.pop()
        left += array
        first, level, array = start, level + 1, left
    nodes.append((first, level, array))


def _fold(nodes: list[Node]) -> Array:
    """Return the sum of what is left of a tree, added from the right."""
    *rest, (_, _, total) = nodes
    for _, _, left in reversed(rest):
        left += total
        total = left
    return total


@body
def tree_sum(xp: ModuleType, nodes: Sequence[Node]) -> Array:
    """Return the sum of all parts from nodes in the order of their parts; their arrays may change."""
    stack: list[Node] = []
    for first, level, array in nodes:
        _push(stack, first, level, array)
    return _fold(stack)


def _levels(parts: range) -> Iterator[tuple[int, int]]:
    """Yield first part and level of the nodes that are the sums of consecutive parts, as `_push` makes them."""
    first = parts.start
    while first < parts.stop:
        level = (first & -first).bit_length() - 1 if first else parts.stop.bit_length()
        while first + (1 << level) > parts.stop:
            level -= 1
        yield first, level
        first += 1 << level


class Sum:
    """The sum of flat arrays of one length, one for each part of a batch.

    Parameters
    ----------
    processes : those among which the parts are dealt out.
    count : the number of parts.
    tag : that of the exchanges.
    like : an array of the same library, dtype and device.
    length : the number of entries.
    """

    def __init__(self, processes: Processes, count: int, tag: int, like: Array, length: int) -> None:
        self.processes, self.count, self.tag, self.like, self.length = processes, count, tag, like, length
        self.nodes: list[Node] = []
        self.total: Array = None
        self._stage, self._came = 0, list[Node]()
        self._done: Done = lambda: False

    def add(self, part: int, flat: Array) -> None:
        """Add the array of the next part of this process; the array may be changed from now on."""
        _push(self.nodes, part, 0, flat)

    def start(self) -> None:
        """Begin the exchange with the other processes, after the last part of this one."""
        if self.processes.size == 1:
            self.total, self._stage = _fold(self.nodes), 3
            return
        a, b = self._slice(self.processes.rank)
        sends, receives = [], []
        for k in range(self.processes.size):
            if k == self.processes.rank:
                continue
            c, d = self._slice(k)
            if d > c:
                sends += [(k, flat[c:d]) for _, _, flat in self.nodes]
            if b > a:
                for first, level in _levels(self.processes.share(self.count, k)):
                    self._came.append((first, level, self._room(b - a)))
                    receives.append((k, self._came[-1][2]))
        self._done, self._stage = self.processes.exchange(sends, receives, self.tag), 1

    def advance(self) -> bool:
        """Go on as far as is possible without waiting; return whether `total` is there."""
        if 0 < self._stage < 3:
            with self.processes.beside():
                if self._stage == 1 and self._done():
                    self._gather()
                if self._stage == 2 and self._done():
                    self._stage = 3
        return self._stage == 3

    def _gather(self) -> None:
        """Add the nodes of all processes in the slice of this one, and send it to all."""
        rank, size = self.processes.rank, self.processes.size
        a, b = self._slice(rank)
        flat = self.nodes[0][2] if self.nodes else self._room(self.length)
        if b > a:
            mine = [(first, level, node[a:b]) for first, level, node in self.nodes]
            flat[a:b] = tree_sum(namespace_of(flat), sorted([*mine, *self._came], key=lambda one: one[0]))
        others = [(k, flat[slice(*self._slice(k))]) for k in range(size) if k != rank]
        sends = [(k, flat[a:b]) for k, _ in others] if b > a else []
        receives = [(k, piece) for k, piece in others if piece.shape[0]]
        self.nodes, self._came = [], []
        self.total, self._stage = flat, 2
        self._done = self.processes.exchange(sends, receives, self.tag)

    def _slice(self, rank: int) -> tuple[int, int]:
        part = self.processes.share(self.length, rank)
        return part.start, part.stop

    def _room(self, length: int) -> Array:
        return empty(namespace_of(self.like), (length,), self.like)


class _Bucket:
    """Consecutive parameters of one dtype, whose gradients are summed as one flat array."""

    def __init__(self, parameters: Sequence[Parameter], tag: int) -> None:
        self.parameters, self.tag = parameters, tag
        self.sizes = [math.prod(parameter.data.shape) for parameter in parameters]
        self.sum: Sum | None = None

    def begin(self, processes: Processes, count: int) -> None:
        """Begin the sum of another batch."""
        self.sum = Sum(processes, count, self.tag, self.parameters[0].data, sum(self.sizes))

    def take(self, got: set[Parameter]) -> Array:
        """Return all gradients in one array, zeros in place of None, and set them to None; add to those `got`."""
        like, arrays = self.parameters[0].data, []
        xp = namespace_of(like)
        for parameter, size in zip(self.parameters, self.sizes, strict=True):
            grad = parameter.grad
            if grad is None:
                arrays.append(zeros(xp, (size,), like))
                continue
            if grad.dtype != like.dtype:
                raise DtypeError(f"the gradient of {parameter!r} is {grad.dtype}, the parameter {like.dtype}")
            arrays.append(xp.reshape(grad, (-1,)))
            parameter.grad = None
            got.add(parameter)
        return xp.concat(arrays)

    def give(self, got: set[Parameter], divisor: Any) -> None:
        """Set the gradient of each parameter that `got` one to its part of the sum, divided unless that is None."""
        assert self.sum is not None
        flat, start = self.sum.total, 0
        self.sum = None
        if divisor is not None:
            host = isinstance(divisor, float)  # which divides by 0 with a warning
            flat /= (divisor or math.nan) if host else namespace_of(flat).astype(divisor, flat.dtype)
        for parameter, size in zip(self.parameters, self.sizes, strict=True):
            if parameter in got:
                parameter.grad = namespace_of(flat).reshape(flat[start : start + size], parameter.data.shape)
            start += size


class Gradients:
    """The sum of the gradients of a batch's parts, which is exchanged while the last backward pass still runs.

    Parameters
    ----------
    processes : those among which the parts are dealt out.
    nbytes : the least size of a bucket but the last, in bytes.
    """

    def __init__(self, processes: Processes, nbytes: int) -> None:
        self.processes, self.nbytes = processes, nbytes
        self._buckets: list[_Bucket] = []
        self._parameters: list[Parameter] = []
        self._counts: Counter[Parameter] = Counter()  # the most gradients that each got in a backward pass
        self._begun = 0  # buckets whose exchange has begun

    def begin(self, parameters: Sequence[Parameter], count: int) -> None:
        """Begin a batch of `count` parts."""
        trained = [parameter for parameter in parameters if parameter.trainable]
        if trained != self._parameters:
            self._parameters, self._counts = trained, Counter()
            self._buckets = [*_buckets(trained[::-1], self.nbytes)]  # a backward pass ends with the first layer
        for bucket in self._buckets:
            bucket.begin(self.processes, count)
        self._got: set[Parameter] = set()
        self._begun = 0

    def drop(self) -> None:
        """Forget what is left of a batch that has failed, which may be as large as the gradients of several parts."""
        for bucket in self._buckets:
            bucket.sum = None

    @contextmanager
    def part(self, number: int, last: bool) -> Iterator[None]:
        """Take the gradients of a part that the backward pass inside the `with` adds, where there are none before.

        Those of the `last` part of this process are sent as soon as a bucket is complete: when each parameter has got
        as many gradients as it ever did, and at least one. What is not complete by then is sent after the pass.
        """
        watched = last and self.processes.size > 1
        if not watched:
            yield
        else:
            with self._watching(number):
                yield
        for bucket in self._buckets[self._begun :]:
            self._take(bucket, number, last)

    @contextmanager
    def _watching(self, number: int) -> Iterator[None]:
        missing = {parameter: max(1, self._counts[parameter]) for parameter in self._parameters}
        counts = Counter[Parameter]()
        left = [sum(missing[parameter] for parameter in bucket.parameters) for bucket in self._buckets]
        home = {parameter: k for k, bucket in enumerate(self._buckets) for parameter in bucket.parameters}

        def note(parameter: Parameter) -> None:
            counts[parameter] += 1
            if missing[parameter] > 0:
                missing[parameter] -= 1
                left[home[parameter]] -= 1
                while self._begun < len(left) and self._counts and left[self._begun] == 0:
                    self._take(self._buckets[self._begun], number, last=True)
            self.advance()

        for parameter in self._parameters:
            parameter.hook = note
        try:
            yield
        finally:
            for parameter in self._parameters:
                parameter.hook = None
        self._counts |= counts
        late = [p for bucket in self._buckets[: self._begun] for p in bucket.parameters if p.grad is not None]
        if late:
            fix = "let the network do the same in each step"
            raise XcnnError(f"the gradient of {late[0]!r} was sent before it was complete; {fix}")

    def _take(self, bucket: _Bucket, number: int, last: bool) -> None:
        assert bucket.sum is not None
        bucket.sum.add(number, bucket.take(self._got))
        if last:
            self.start(bucket)

    def start(self, bucket: _Bucket) -> None:
        """Begin the exchange of a bucket. Where exchanges do not overtake each other, all processes have one order."""
        assert bucket.sum is not None
        bucket.sum.start()
        self._begun += 1
        self.advance()

    def advance(self) -> bool:
        """Go on with all exchanges that have begun; return whether all buckets are summed."""
        done = [bucket.sum is None or bucket.sum.advance() for bucket in self._buckets[: self._begun]]
        return len(done) == len(self._buckets) and all(done)

    def finish(self, divisor: Any) -> None:
        """Wait for all sums, and set the gradients to the sums divided by `divisor`, unless that is None."""
        for bucket in self._buckets[self._begun :]:  # of a process without a part
            self.start(bucket)
        mine = np.asarray([parameter in self._got for parameter in self._parameters])
        found, gathered = self.processes.begin_gather(mine)
        self.processes.wait(lambda: self.advance() & gathered())
        got = np.any(found, axis=0)
        kept = {parameter for parameter, is_there in zip(self._parameters, got, strict=True) if is_there}
        for bucket in self._buckets:
            bucket.give(kept, divisor)


def _buckets(parameters: Sequence[Parameter], nbytes: int) -> Iterator[_Bucket]:
    """Yield buckets of consecutive parameters of one dtype."""
    together: list[Parameter] = []
    number = size = 0
    for parameter in parameters:
        if together and (parameter.data.dtype != together[0].data.dtype or size >= nbytes):
            yield _Bucket(together, _FIRST_TAG + number)
            together, size, number = [], 0, number + 1
        together.append(parameter)
        kind = namespace_of(parameter.data).finfo(parameter.data.dtype)
        size += math.prod(parameter.data.shape) * kind.bits // 8
    if together:
        yield _Bucket(together, _FIRST_TAG + number)

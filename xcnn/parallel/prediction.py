"""A model of the time of a training step in several processes, from a few measured numbers.

Each process computes its part of the batch, forward and backward. A bucket of gradients is exchanged as soon as the
backward pass has computed it, while the pass goes on. A link carries one exchange after the other, in both directions
at once. The processor packs the bucket, posts and receives messages, moves their bytes unless a device does that, and
adds what has arrived, in between, which delays the pass.

Not modelled are a network that is slower when all use it at once, processes of unequal speed, and an exchange that goes
on late as the processor looks for it only between two layers.
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xcnn import nn
from xcnn.training.processes import Processes

__all__ = ["WAYS", "Link", "Prediction", "Work", "buckets", "efficiency", "gradients", "measure", "step"]

WAYS = ("direct", "halving", "ring")
"""How gradients are added: as xcnn does, by recursive halving and doubling, or around a ring.

The last two are those of usual allreduces, whose order of addition depends on the number of processes.
"""


@dataclass(frozen=True)
class Link:
    """What connects a process with the others, and how fast it adds.

    Attributes
    ----------
    latency : seconds from one process to another, besides those of `message` and the size over the bandwidth.
    bandwidth : bytes per second that a process sends while it receives as many.
    message : seconds that the processor spends on a message, once where it is sent and once where it is received.
    copying : bytes per second that the processor moves, to send or to receive them; infinite if a device does that.
    adding : bytes per second of an array that is added to another, packed or divided.
    """

    latency: float
    bandwidth: float
    message: float
    copying: float
    adding: float


@dataclass(frozen=True)
class Work:
    """What a step computes.

    Attributes
    ----------
    images : the number of images of the whole batch.
    fixed : seconds of a step that do not depend on the number of images, such as those of the update.
    each : seconds per image.
    gradients : where gradients are ready: the share of the backward pass, and their size in bytes; see `gradients`.
    backward : share of the backward pass in the time of the images.
    figures : exchanges of a few numbers, besides gradients: 4 with the running statistics of batch norm.
    """

    images: int
    fixed: float
    each: float
    gradients: Sequence[tuple[float, int]]
    backward: float = 2 / 3
    figures: int = 2


@dataclass(frozen=True)
class Prediction:
    """The parts of the time of a step, in seconds.

    Attributes
    ----------
    computing : the forward and backward pass, and the update.
    serving : the processor's part of communication.
    waiting : for other processes.
    """

    computing: float
    serving: float
    waiting: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.computing + self.serving + self.waiting


def gradients(network: nn.Module, shape: tuple[int, ...]) -> list[tuple[float, int]]:
    """Return the gradients of a network on images of a shape, in the order of the backward pass; see `Work`.

    The time of a layer is taken to be in proportion to its multiply-adds, and numbers to have 4 bytes.
    """
    rows = nn.summary(network, shape).rows[::-1]
    done = list(itertools.accumulate(row.multiply_adds for row in rows))
    return [(now / done[-1], 4 * row.parameters) for now, row in zip(done, rows, strict=True) if row.parameters]


def step(work: Work, link: Link, ranks: int, bucket: int, way: str = "direct") -> Prediction:
    """Return the time of a step.

    Parameters
    ----------
    work, link : what is computed, and what connects the processes.
    ranks : the number of processes.
    bucket : the size in bytes from which gradients are sent, as `xcnn.training.step.bucket(ranks)`.
    way : one of `WAYS`.
    """
    images = -(-work.images // ranks) * work.each
    computing = work.fixed + images
    if ranks == 1:
        return Prediction(computing, 0.0, 0.0)
    start, length = images * (1 - work.backward), images * work.backward
    ready = [(start + share * length, size) for share, size in buckets(work.gradients, bucket)]
    stages = _stages(link, ranks, way)
    # Events are (time, bucket, stage): one of a bucket's stages may begin. The processor serves them in order; while
    # the backward pass runs, what they take of it delays the pass, and so the buckets that are not ready yet.
    events: list[tuple[float, int, int]] = []
    delay = served = free = last = 0.0  # until when the processor serves, the link is used, and what has arrived
    waiting_for = 0
    while events or waiting_for < len(ready):
        if waiting_for < len(ready) and (not events or ready[waiting_for][0] + delay <= events[0][0]):
            now, number, stage = ready[waiting_for][0] + delay, waiting_for, 0
            waiting_for += 1
        else:
            now, number, stage = heapq.heappop(events)
        size = ready[number][1]
        spent = stages[stage].processor(size)
        if max(now, served) < start + length + delay:
            delay += spent
        served = max(now, served) + spent
        link_time = stages[stage].link
        if link_time is None:
            last = max(last, served)
            continue
        free = max(free, served) + link_time(size)
        heapq.heappush(events, (free + stages[stage].latency, number, stage + 1))
    figures = work.figures * 2 * link.message * (ranks - 1 if way == "direct" else math.ceil(math.log2(ranks)))
    end = max(start + length + delay + figures + link.latency, served + figures, last)
    serving = figures + sum(one.processor(size) for _, size in ready for one in stages)
    return Prediction(computing, serving, max(0.0, end - images - serving))


@dataclass(frozen=True)
class _Stage:
    """A part of the exchange of a bucket: the processor's time, then that of the link, as functions of the size."""

    processor: Callable[[int], float]
    link: Callable[[int], float] | None = None
    latency: float = 0.0


def _stages(link: Link, ranks: int, way: str) -> list[_Stage]:
    """Return the stages of a reduce-scatter and an all-gather, of which the last one ends a bucket."""
    others = ranks - 1
    steps = {"direct": 1, "halving": math.ceil(math.log2(ranks)), "ring": others}[way]
    messages = 2 * link.message * (others if way == "direct" else steps)
    latency = steps * link.latency + (steps - 1) * 2 * link.message
    share = others / ranks  # of a bucket, that is sent and received

    def carried(size: int) -> float:
        return share * size / link.bandwidth

    def begin(size: int) -> float:
        return size / link.adding + messages + share * size / link.copying

    def middle(size: int) -> float:
        return share * size / link.copying + share * size / link.adding + messages + share * size / link.copying

    def end(size: int) -> float:
        return share * size / link.copying + size / link.adding

    return [_Stage(begin, carried, latency), _Stage(middle, carried, latency), _Stage(end)]


def buckets(gradients: Sequence[tuple[float, int]], least: int) -> list[tuple[float, int]]:
    """Return where buckets of at least `least` bytes are ready, and their sizes, as `gradients` does for layers."""
    found: list[tuple[float, int]] = []
    together = 0
    for number, (share, size) in enumerate(gradients, 1):
        together += size
        if together >= least or number == len(gradients):
            found.append((share, together))
            together = 0
    return found


def efficiency(work: Work, link: Link, ranks: int, bucket: int, way: str = "direct") -> float:
    """Return the speed per process as a share of that of one process with the whole batch."""
    alone = step(work, link, 1, bucket).seconds
    return alone / step(work, link, ranks, bucket, way).seconds / ranks


def measure(processes: Processes, nbytes: int = 1 << 20, count: int = 1, repeats: int = 30) -> Link:
    """Return the link between the processes of this launch, which all call this; there must be several.

    Time steps before: many small messages at once, with which this ends, make a connection of TCP slower for a while.

    Parameters
    ----------
    processes : the processes.
    nbytes : size of the arrays that are sent to each other process, and of those that are added.
    count : how many of them are under way at once, as the buckets of a step may be.
    repeats : of each measurement, of which the median counts.
    """
    rank, size = processes.rank, processes.size
    others = [(rank + k) % size for k in range(1, size)]
    after, before = others[0], others[-1]

    def timed(
        function: Callable[[], None], times: int = repeats, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        found = []
        for _ in range(times):
            processes.gather(np.zeros(1))  # begin together
            begun = clock()
            function()
            found.append(clock() - begun)
        return max(float(one[0]) for one in processes.gather(np.asarray([np.median(found)])))

    def exchanged(length: int, count: int = 1) -> Callable[[], None]:
        sent, room = np.ones(length, np.float32), [np.empty(length, np.float32) for _ in others]
        sends, receives = [(k, sent) for k in others], [*zip(others, room, strict=True)]
        return lambda: processes.wait(processes.exchange(count * sends, count * receives))

    def to_and_fro() -> None:
        sent, room = np.zeros(1, np.float32), np.empty(1, np.float32)
        processes.wait(processes.exchange([(after, sent)], [(before, room)]))
        processes.wait(processes.exchange([(before, sent)], [(after, room)]))

    few, many, messages = max(3, repeats // 4), 64, count * len(others)
    both = 2 * nbytes * messages
    round_trip, large = timed(to_and_fro), timed(exchanged(nbytes // 4, count), few)
    spent = timed(exchanged(nbytes // 4, count), few, time.process_time)
    one, several = (timed(exchanged(1, count), clock=time.process_time) for count in (1, many))
    message = max(0.0, several - one) / (2 * (many - 1) * len(others))
    latency, spent = max(0.0, round_trip / 2 - 2 * message), max(0.0, spent - 2 * messages * message)
    copying = both / max(spent, 1e-9)
    bandwidth = both / 2 / max(large - spent - latency - 2 * messages * message, 1e-9)
    arrays = np.ones((max(2, _COLD // nbytes), nbytes // 4), np.float32)  # more than caches hold

    def added() -> None:
        for k in range(0, len(arrays) - 1, 2):
            np.add(arrays[k], arrays[k + 1], out=arrays[k])

    return Link(latency, bandwidth, message, copying, nbytes * (len(arrays) // 2) / timed(added, few))


_COLD = 1 << 26

"""How a contestant's steps are measured where they run: by the host's clock and memory, or by a GPU's."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from xcnn.compare.contestants import Step
from xcnn.compare.gpu import CPU, Gauge, gauge, hardware
from xcnn.compare.memory import growth

__all__ = ["Meter", "Turn", "by_clock", "by_events", "held", "meter"]

Turn = Callable[[Step, float], tuple[float, float]]
"""(step, seconds): does a step or more, for about so long; gives the seconds of a step, and those of all."""


@dataclass(frozen=True)
class Meter:
    """What measures.

    Attributes
    ----------
    turn : times several steps.
    settle : waits until all that was begun is done.
    growth : begins to watch memory; gives the function that tells the bytes at the peak since, over what is held now,
        or None where nobody knows.
    """

    turn: Turn
    settle: Callable[[], object]
    growth: Callable[[], Callable[[], int | None]]


def meter(spec: str) -> Meter:
    """Give what measures on a device: events where its library has them, else the clock of the host.

    Without events a step counts until its value is on the host: an update that the device has not done yet by then
    falls into the next step. The memory of a GPU is not known either then; that of the process is another.
    """
    found = gauge(spec)
    if found is not None:
        return Meter(functools.partial(by_events, found), found.synchronize, functools.partial(held, found))
    return Meter(by_clock, lambda: None, growth if hardware(spec) == CPU else lambda: lambda: None)


def by_clock(step: Step, seconds: float) -> tuple[float, float]:
    """Time each step with the host's clock; a step's time is their median."""
    times: list[float] = []
    start = time.perf_counter()
    end = start + seconds
    while not times or start < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times), math.fsum(times)


def by_events(on: Gauge, step: Step, seconds: float) -> tuple[float, float]:
    """Time all steps together, from an event before the first to one after the last; a step's time is their mean."""
    count, end = 0, time.perf_counter() + seconds
    before = on.mark()
    while not count or time.perf_counter() < end:
        step()
        count += 1
    on.synchronize()  # in whichever streams the work is
    after = on.mark()
    after.synchronize()
    elapsed = on.elapsed(before, after) / 1e3
    return elapsed / count, elapsed


def held(on: Gauge) -> Callable[[], int]:
    """Begin to watch a GPU's memory."""
    on.reset()
    before = on.held()
    return lambda: max(0, on.held() - before)

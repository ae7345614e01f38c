"""Meters of time and memory: the host's clock and the memory of this process, or a GPU's events and memory pool."""

import contextlib
import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xcnn.compare.contestants import Step
from xcnn.compare.gpu import CPU, Gauge, gauge, hardware

__all__ = ["Clock", "Events", "growth", "meter"]


@dataclass(frozen=True)
class Clock:
    """The host's clock, and on the CPU the memory of this process.

    On a device without events, a step ends when its value is on the host. An update that the device has not finished
    by then counts in the next step. The memory of such a device is unknown.
    """

    on_cpu: bool = True

    def settle(self) -> None:
        """Do nothing: work on the host is already done."""

    def turn(self, step: Step, seconds: float, count: int = 0) -> tuple[float, float]:
        """Run `count` steps, or if that is 0, at least one for about `seconds`.

        Return the median seconds of a step, and those of all steps.
        """
        times: list[float] = []
        start = time.perf_counter()
        end = start + seconds
        while len(times) < count if count else not times or start < end:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return statistics.median(times), math.fsum(times)

    def growth(self) -> Callable[[], int | None]:
        """Return a function that returns the growth in bytes from the memory in use now to the peak since now."""
        return growth() if self.on_cpu else lambda: None


@dataclass(frozen=True)
class Events:
    """A GPU's events, and the memory pool of its library. It has the methods of `Clock`."""

    gauge: Gauge

    def settle(self) -> None:
        """Wait until the GPU has done all work."""
        self.gauge.synchronize()

    def turn(self, step: Step, seconds: float, count: int = 0) -> tuple[float, float]:
        """Like `Clock.turn`, but with the mean: one event precedes the first step, one follows the last."""
        done, end = 0, time.perf_counter() + seconds
        before = self.gauge.mark()
        while done < count if count else not done or time.perf_counter() < end:
            step()
            done += 1
        self.gauge.synchronize()  # the work may be in several streams
        after = self.gauge.mark()
        after.synchronize()
        elapsed = self.gauge.elapsed(before, after) / 1e3
        return elapsed / done, elapsed

    def growth(self) -> Callable[[], int]:
        """Like `Clock.growth`, for the pool."""
        self.gauge.reset()
        before = self.gauge.held()
        return lambda: max(0, self.gauge.held() - before)


def meter(spec: str) -> Clock | Events:
    """Return the meter of a device: events if its library has them, else the host's clock."""
    found = gauge(spec)
    return Clock(hardware(spec) == CPU) if found is None else Events(found)


def growth() -> Callable[[], int | None]:
    """Like `Clock.growth`, for this process. The bytes are None outside Linux."""
    with contextlib.suppress(OSError):  # starts a new peak: importing a library may have taken more than is in use now
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = _resident("VmRSS")

    def grown() -> int | None:
        peak = _resident("VmHWM")
        return None if before is None or peak is None else max(0, peak - before)

    return grown


def _resident(what: str) -> int | None:
    """Return the bytes of resident memory, now (VmRSS) or at its peak (VmHWM); `ru_maxrss` would include the parent."""
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])

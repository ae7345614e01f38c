"""A benchmark: contestants run the same case in turns, round by round, so that all see the same noise of the machine.

What is compared is taken within a round, between neighbours in time, and the median over the rounds is given: a machine
that slows down for a while slows all of them.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xcnn.compare.case import Case
from xcnn.compare.contestants import PEERS, SGEMM, Contestant
from xcnn.compare.contestants.sgemm import FLOPS
from xcnn.compare.profile import Row
from xcnn.compare.worker import Worker
from xcnn.errors import UsageError

__all__ = ["SETTLE", "Result", "Timing", "bench", "contestants"]

SETTLE = 0.03
"""Seconds between two contestants, in which the threads of the first fall asleep; they spin a while before."""


@dataclass(frozen=True)
class Timing:
    """What one contestant did.

    Attributes
    ----------
    contestant : who.
    batch : images per step.
    first : seconds of the first step.
    rounds : seconds per step, the median of each round.
    memory : bytes at the peak, over what was held before the first step; None where the system does not tell. What the
        first step compiles is in it; compiled kernels come from the disk the next time.
    waited : the share of its time that its threads waited for a core, which others had; None where unknown. More than
        a few percent, and the figures tell of them.
    profile : where the time went; empty unless asked for.
    """

    contestant: Contestant
    batch: int
    first: float
    rounds: tuple[float, ...]
    memory: int | None
    waited: float | None
    profile: tuple[Row, ...] = ()

    @property
    def seconds(self) -> float:
        """Per step: the median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def images_per_second(self) -> float:
        """The batch size over `seconds`."""
        return self.batch / self.seconds

    @property
    def quartiles(self) -> tuple[float, float]:
        """Images per second that a quarter of the rounds stayed below, and above."""
        rates = [self.batch / seconds for seconds in self.rounds]
        if len(rates) == 1:
            return rates[0], rates[0]
        low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
        return low, high

    def ratio(self, other: "Timing") -> float:
        """Say how many times as fast as another this one is: the median over the rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.rounds, other.rounds, strict=True))


@dataclass(frozen=True)
class Result:
    """What came of one case.

    Attributes
    ----------
    case : what was run.
    ours : xcnn on each device.
    peers : every peer in each of its layouts.
    flops : floating-point operations of a step.
    peak : floating-point operations per second of a large matrix product, the best of the same rounds.
    """

    case: Case
    ours: tuple[Timing, ...]
    peers: tuple[Timing, ...]
    flops: int
    peak: float

    @property
    def best(self) -> Timing | None:
        """The fastest peer; None where there is none."""
        return min(self.peers, key=lambda timing: timing.seconds, default=None)


def contestants(devices: Sequence[str], peers: Sequence[str]) -> list[Contestant]:
    """Give xcnn on each device and each peer in each of its layouts."""
    return [Contestant("xcnn", device) for device in devices] + [
        Contestant(peer, layout) for peer in peers for layout in PEERS[peer]
    ]


def bench(
    cases: Sequence[Case], entered: Sequence[Contestant], rounds: int, seconds: float, profiled: bool = False
) -> Iterator[Result]:
    """Run one case after the other and give what came of each, when it is asked for.

    Parameters
    ----------
    cases : to run.
    entered : who takes part.
    rounds : how often each has its turn.
    seconds : how long a turn is, about; a turn is a step or more.
    profiled : whether xcnn is also profiled layer by layer, after the rounds, for as long as they took.

    Raises
    ------
    UsageError
        For no round, or a turn of no length.
    SpeedError
        Where a contestant fails.
    """
    if rounds < 1:
        raise UsageError(f"bench: rounds must be at least 1, got {rounds}")
    if not seconds > 0:
        raise UsageError(f"bench: seconds must be more than 0, got {seconds}")
    return (_result(case, _run(case, [*entered, SGEMM], rounds, seconds, profiled)) for case in cases)


def _result(case: Case, timings: Sequence[Timing]) -> Result:
    *found, sgemm = timings
    return Result(
        case,
        tuple(timing for timing in found if timing.contestant.name == "xcnn"),
        tuple(timing for timing in found if timing.contestant.name != "xcnn"),
        sum(case.flops().values()),
        FLOPS / min(sgemm.rounds),
    )


def _run(case: Case, entered: Sequence[Contestant], rounds: int, seconds: float, profiled: bool) -> list[Timing]:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(contestant, case)) for contestant in entered]
        for worker in workers:
            worker.ask("ready")
        first = {worker: _alone(worker, "first") for worker in workers}
        turns: dict[Worker, list[tuple[float, float | None]]] = {worker: [] for worker in workers}
        for number in range(rounds):
            for worker in workers if number % 2 == 0 else workers[::-1]:  # so that drift favours none
                turns[worker].append(_alone(worker, "burst", seconds=seconds))
        timings = []
        for worker in workers:
            memory = worker.ask("memory")
            rows: tuple[Row, ...] = ()
            if profiled and worker.contestant.name == "xcnn":
                rows = tuple(Row(**row) for row in worker.ask("profile", seconds=rounds * seconds))
            times, waits = zip(*turns[worker], strict=True)
            waited = None if None in waits else statistics.fmean(waits)
            timings.append(Timing(worker.contestant, case.batch, first[worker], times, memory, waited, rows))
        return timings


def _alone(worker: Worker, request: str, **arguments: float) -> Any:
    answer = worker.ask(request, **arguments)
    time.sleep(SETTLE)
    return answer

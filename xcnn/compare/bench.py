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
from xcnn.compare.contestants import PEERS, YARDSTICKS, Contestant
from xcnn.compare.gpu import CPU, hardware, kind
from xcnn.compare.launches import UNCOUNTED, Launches
from xcnn.compare.profile import Row
from xcnn.compare.speed import SpeedError
from xcnn.compare.worker import Worker
from xcnn.errors import UsageError

__all__ = ["SETTLE", "Dropped", "Result", "Timing", "bench", "contestants"]

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
    rounds : seconds per step in each round: the median on the CPU, the mean by a GPU's events.
    memory : bytes at the peak, over what was held before the first step; None where the system does not tell. On a GPU
        what the library's pool holds; else the process, and what the first step compiles is in it; compiled kernels
        come from the disk the next time.
    waited : the share of its time that its threads waited for a core, which others had; None where unknown. More than
        a few percent, and the figures tell of them.
    profile : where the time went; empty unless asked for.
    launches : what a step calls a GPU for; counts nothing on the CPU.
    """

    contestant: Contestant
    batch: int
    first: float
    rounds: tuple[float, ...]
    memory: int | None
    waited: float | None
    profile: tuple[Row, ...] = ()
    launches: Launches = UNCOUNTED

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
class Dropped:
    """A way of a peer, or a yardstick, that does not work here.

    Attributes
    ----------
    contestant : who.
    reason : one line.
    """

    contestant: Contestant
    reason: str


@dataclass(frozen=True)
class Result:
    """What came of one case.

    Attributes
    ----------
    case : what was run.
    ours : xcnn on each device.
    peers : every peer in each of its ways, on the hardware of each device.
    flops : floating-point operations of a step.
    moved : bytes that a step moves at the least.
    rates : what the yardsticks reach, the best of the same rounds, by hardware and name: operations, or bytes read and
        written, per second.
    dropped : who does not work here.
    """

    case: Case
    ours: tuple[Timing, ...]
    peers: tuple[Timing, ...]
    flops: int
    moved: int
    rates: dict[str, dict[str, float]]
    dropped: tuple[Dropped, ...] = ()

    def rivals(self, timing: Timing) -> list[Timing]:
        """Give the peers on the same hardware."""
        return [peer for peer in self.peers if peer.contestant.hardware == timing.contestant.hardware]

    def best(self, timing: Timing) -> Timing | None:
        """Give the fastest peer on the same hardware; None where there is none."""
        return min(self.rivals(timing), key=lambda peer: peer.seconds, default=None)

    def share(self, timing: Timing, yardstick: str) -> float | None:
        """Give the operations (of `"sgemm"`) or bytes moved (of `"copy"`) per second, as a share of a yardstick's.

        None where that was not measured on the same hardware.
        """
        rate = self.rates.get(timing.contestant.hardware, {}).get(yardstick)
        done = {"sgemm": self.flops, "copy": self.moved}[yardstick]
        return None if rate is None else done / timing.seconds / rate


def contestants(devices: Sequence[str], peers: Sequence[str]) -> list[Contestant]:
    """Give xcnn on each device, and each peer in each of its ways on the hardware of each.

    Raises
    ------
    SpeedError
        For a peer that is not measured on such hardware.
    """
    found = [Contestant("xcnn", device) for device in devices]
    for where in dict.fromkeys(map(hardware, devices)):
        for peer in peers:
            if kind(where) not in PEERS[peer]:
                raise SpeedError(f"bench: {peer} is measured on the {', '.join(PEERS[peer])} only, not on {where}")
            found += [Contestant(peer, f"{peer}:{where}", way) for way in PEERS[peer][kind(where)]]
    return found


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
        Where xcnn fails, or all peers on some hardware do.
    """
    if rounds < 1:
        raise UsageError(f"bench: rounds must be at least 1, got {rounds}")
    if not seconds > 0:
        raise UsageError(f"bench: seconds must be more than 0, got {seconds}")
    # NumPy measures the CPU, our own library a GPU: CuPy where it takes part.
    devices = {one.hardware: one.device for one in reversed(entered) if one.name == "xcnn"}
    devices |= {where: where for where in devices if where == CPU or Contestant("xcnn", where) in entered}
    measures = [Contestant(name, one) for one in devices.values() for name in YARDSTICKS[kind(one)]]
    return (_result(case, *_run(case, [*entered, *measures], rounds, seconds, profiled)) for case in cases)


def _result(case: Case, timings: Sequence[Timing], dropped: Sequence[Dropped]) -> Result:
    rates: dict[str, dict[str, float]] = {}
    for timing in timings:
        one = timing.contestant
        if one.name in YARDSTICKS[kind(one.device)]:
            rates.setdefault(one.hardware, {})[one.name] = one.work() / min(timing.rounds)
    return Result(
        case,
        tuple(timing for timing in timings if timing.contestant.name == "xcnn"),
        tuple(timing for timing in timings if timing.contestant.name in PEERS),
        sum(case.flops().values()),
        case.moved(),
        rates,
        tuple(dropped),
    )


def _run(
    case: Case, entered: Sequence[Contestant], rounds: int, seconds: float, profiled: bool
) -> tuple[list[Timing], list[Dropped]]:
    with contextlib.ExitStack() as stack:
        first, dropped = _begun([stack.enter_context(Worker(contestant, case)) for contestant in entered])
        workers = list(first)
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
            figures = (first[worker], times, memory, waited, rows, _launches(worker))
            timings.append(Timing(worker.contestant, case.batch, *figures))
        return timings, dropped


def _begun(workers: Sequence[Worker]) -> tuple[dict[Worker, float], list[Dropped]]:
    """Let all do their first step; give its seconds, and who cannot do it."""
    first: dict[Worker, float] = {}
    dropped: list[Dropped] = []
    left = list(workers)
    for request in ("ready", "first"):
        for worker in tuple(left):
            try:
                first[worker] = _alone(worker, request)
            except SpeedError as error:
                if worker.contestant.name == "xcnn":
                    raise
                left.remove(worker)
                first.pop(worker, None)
                dropped.append(Dropped(worker.contestant, str(error).removeprefix("bench: ")))
        played = {worker.contestant.hardware for worker in left if worker.contestant.name in PEERS}
        for one in dropped:
            if one.contestant.name in PEERS and one.contestant.hardware not in played:
                raise SpeedError(f"bench: no peer is left on {one.contestant.hardware}: {one.reason}")
    return first, dropped


def _launches(worker: Worker) -> Launches:
    """Count what a step calls a GPU for; nothing is lost where that fails, for it comes last."""
    if worker.contestant.hardware == CPU or worker.contestant.name in YARDSTICKS[kind(worker.contestant.device)]:
        return UNCOUNTED
    try:
        return Launches(**worker.ask("launches"))
    except SpeedError as error:
        return Launches(missing=str(error))


def _alone(worker: Worker, request: str, **arguments: float) -> Any:
    answer = worker.ask(request, **arguments)
    time.sleep(SETTLE)
    return answer

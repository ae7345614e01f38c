"""A benchmark: contestants run the same case in turns, round by round.

A machine that slows down for a while slows all contestants down. Ratios are therefore taken within a round, and the
median over the rounds counts.
"""

import contextlib
import importlib.util
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xcnn._check import integer, number
from xcnn.compare.busy import busy
from xcnn.compare.case import Case
from xcnn.compare.contestants import PEERS, SEVERAL, YARDSTICKS, Contestant, refusal
from xcnn.compare.gpu import CPU, hardware, kind
from xcnn.compare.launches import UNCOUNTED, Launches
from xcnn.compare.worker import SpeedError, Worker, started
from xcnn.devices import LIBRARIES
from xcnn.errors import UsageError, XcnnError, unknown
from xcnn.parallel import launch_command
from xcnn.parallel.launch import INSTALL

__all__ = ["SETTLE", "Dropped", "Failed", "Growth", "Result", "Timing", "bench", "contestants", "growths", "speed"]

SETTLE = 0.03
"""Seconds between two turns. Threads spin for a while after their work, and must sleep before the next turn."""


@dataclass(frozen=True)
class Timing:
    """The measurements of one contestant.

    Attributes
    ----------
    contestant : what was measured.
    batch : images per step.
    first : seconds of the first step.
    rounds : seconds per step in each round: the median on the CPU, the mean by a GPU's events.
    memory : growth in bytes from before the first step to the peak: of the library's memory pool on a GPU, else of the
        process, or of all together, including the memory of the compiler if the first step compiles. None if unknown.
    waited : share of the time that its threads waited for a core in use by other programs; None if unknown. Timings
        with more than a few percent are not reliable.
    launches : GPU calls of a step.
    loaded : seconds per step in each round while other programs kept cores busy; empty if that was not measured.
    waiting : share of the time that its processes waited for each other; None if unknown.
    under_way : share of the time that exchanges between them were under way; None if unknown.
    """

    contestant: Contestant
    batch: int
    first: float
    rounds: tuple[float, ...]
    memory: int | None
    waited: float | None
    launches: Launches = UNCOUNTED
    loaded: tuple[float, ...] = ()
    waiting: float | None = None
    under_way: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds per step: the median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def images_per_second(self) -> float:
        """The batch size over `seconds`."""
        return self.batch / self.seconds

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and upper quartile of images per second over the rounds."""
        rates = [self.batch / seconds for seconds in self.rounds]
        if len(rates) == 1:
            return rates[0], rates[0]
        low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of `images_per_second`."""
        low, high = self.quartiles
        return (high - low) / 2 / self.images_per_second

    @property
    def kept(self) -> float | None:
        """Images per second while other programs kept cores busy, as a share of those without, or None."""
        shares = [alone / loaded for alone, loaded in zip(self.rounds, self.loaded, strict=False)]
        return statistics.median(shares) if shares else None

    @property
    def overlap(self) -> float | None:
        """Share of the time of communication in which its processes computed, or None."""
        if self.waiting is None or not self.under_way:
            return None
        return max(0.0, 1.0 - self.waiting / self.under_way)

    def ratio(self, other: "Timing") -> float:
        """Return how many times as fast as `other` this contestant is: the median over the rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.rounds, other.rounds, strict=True))


@dataclass(frozen=True)
class Dropped:
    """A contestant that fails here, and the reason in one line."""

    contestant: Contestant
    reason: str


@dataclass(frozen=True)
class Failed:
    """A case that cannot be measured, and the reason in one line."""

    case: Case
    reason: str


@dataclass(frozen=True)
class Result:
    """The result of one case.

    Attributes
    ----------
    case : the case.
    ours : timings of xcnn on each device.
    peers : timings of each peer in each of its ways, on the hardware of each device.
    flops : floating-point operations of a step.
    moved : least number of bytes that a step moves.
    rates : best speed of each yardstick, by hardware and name: operations, or bytes read and written, per second.
    dropped : ways of peers, and yardsticks, that fail here.
    """

    case: Case
    ours: tuple[Timing, ...]
    peers: tuple[Timing, ...]
    flops: int
    moved: int
    rates: dict[str, dict[str, float]]
    dropped: tuple[Dropped, ...] = ()

    def rivals(self, timing: Timing) -> list[Timing]:
        """Return the peers on the same hardware, with the same number of processes."""
        one = timing.contestant
        return [
            peer
            for peer in self.peers
            if (peer.contestant.hardware, peer.contestant.ranks) == (one.hardware, one.ranks)
        ]

    def best(self, timing: Timing, *libraries: str) -> Timing | None:
        """Return the fastest peer on the same hardware, of all or of some libraries, or None if there is none."""
        rivals = [peer for peer in self.rivals(timing) if not libraries or peer.contestant.name in libraries]
        return min(rivals, key=lambda peer: peer.seconds, default=None)

    def share(self, timing: Timing, yardstick: str) -> float | None:
        """Return operations (`"sgemm"`) or bytes moved (`"copy"`) per second as a share of the yardstick's speed.

        None if the yardstick was not measured on the same hardware.
        """
        rate = self.rates.get(timing.contestant.hardware, {}).get(yardstick)
        done = {"sgemm": self.flops, "copy": self.moved}[yardstick]
        return None if rate is None else done / timing.seconds / rate / timing.contestant.ranks

    def efficiency(self, timing: Timing) -> float | None:
        """Return images/s per process as a share of those of the same contestant with the fewest processes, or None.

        Of a peer, the fastest way with the fewest processes counts.
        """
        one = timing.contestant
        alike = [
            other
            for other in (*self.ours, *self.peers)
            if (other.contestant.name, other.contestant.hardware) == (one.name, one.hardware)
            and (one.name in PEERS or other.contestant.device == one.device)
        ]
        base = min(alike, key=lambda other: (other.contestant.ranks, other.seconds))
        if base.contestant.ranks == one.ranks:
            return None
        return timing.ratio(base) * base.contestant.ranks / one.ranks


def contestants(
    devices: Sequence[str], peers: Sequence[str], ways: Sequence[str] = (), ranks: Sequence[int] = (1,)
) -> list[Contestant]:
    """Return xcnn on each device, and the ways of each peer on the hardware of each device; for each number of ranks.

    Parameters
    ----------
    devices : device strings of xcnn.
    peers : names in `PEERS`.
    ways : the ways in `PEERS` that take part; by default all.
    ranks : numbers of processes that train together.

    Raises
    ------
    UsageError
        If a peer is unknown, no peer has one of the ways, `ways` is given without peers, or a number of ranks is
        below 1.
    SpeedError
        If a peer cannot be measured on the hardware of a device, in several processes, or has none of the ways there.
    """
    for one in ranks:
        integer("bench", "ranks", one)
    for peer in peers:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    known = {way for peer in peers for kinds in PEERS[peer].values() for way in kinds}
    if ways and not peers:
        raise UsageError("ways selects ways of the libraries in against; name one there, such as torch", setting="ways")
    for way in ways:
        if way not in known:
            raise unknown("way", way, known)
    if max(ranks) > 1:
        for peer in peers:
            if peer not in SEVERAL:
                raise SpeedError(f"bench: {peer} is measured in one process only, not in {max(ranks)}")
        for device in devices:
            if hardware(device) != CPU:
                raise SpeedError(f"bench: several processes are measured on the CPU only, not on {hardware(device)}")
    found = [Contestant("xcnn", device) for device in devices]
    for where in dict.fromkeys(map(hardware, devices)):
        for peer in peers:
            if kind(where) not in PEERS[peer]:
                raise SpeedError(f"bench: {peer} is measured on the {', '.join(PEERS[peer])} only, not on {where}")
            possible = PEERS[peer][kind(where)]
            chosen = [way for way in possible if way in ways or not ways]
            if not chosen:
                raise SpeedError(f"bench: on {where} {peer} has the ways {', '.join(possible)}, not {', '.join(ways)}")
            library = Contestant(peer).library
            at = f"{library}:{where}" if library in LIBRARIES else where
            found += [Contestant(peer, at, way) for way in chosen]
    return [replace(one, ranks=count) for count in ranks for one in found]


def bench(
    cases: Sequence[Case],
    entered: Sequence[Contestant],
    rounds: int,
    seconds: float,
    goes_on: bool = False,
    cores: int = 0,
) -> Iterator[Result | Failed]:
    """Run one case after another, and yield the result of each.

    Parameters
    ----------
    cases : the cases.
    entered : the contestants.
    rounds : number of turns of each contestant.
    seconds : approximate length of a turn; a turn has at least one step.
    goes_on : whether a case in which xcnn fails yields `Failed`, and one in which all peers fail a result without any;
        otherwise these raise SpeedError.
    cores : if not 0, each contestant has a second turn in each round, while other processes keep this number of cores
        busy: `Timing.loaded`.

    Raises
    ------
    UsageError
        If `rounds` is below 1, `seconds` is not positive or `cores` is negative.
    SpeedError
        If a peer is not installed, or xcnn or all peers on some hardware fail.
    """
    integer("bench", "rounds", rounds)
    number("bench", "seconds", seconds, "(0, inf)")
    integer("bench", "busy", cores, 0)
    packages = dict(one.package for one in entered if one.name in PEERS)
    if any(one.ranks > 1 for one in entered):
        packages["mpi4py"] = INSTALL
    if missing := [module for module in packages if importlib.util.find_spec(module) is None]:
        verb, hints = "are" if len(missing) > 1 else "is", "; ".join(packages[module] for module in missing)
        raise SpeedError(f"bench: {' and '.join(missing)} {verb} not installed; {hints}")
    if "mpi4py" in packages:
        launch_command(1)  # raises if it cannot
    # On the CPU NumPy runs the yardsticks; on a GPU CuPy if it takes part, else the library that does.
    devices = {one.hardware: one.device for one in reversed(entered) if one.name == "xcnn"}
    devices |= {where: where for where in devices if where == CPU or Contestant("xcnn", where) in entered}
    yardsticks = [Contestant(name, one) for one in devices.values() for name in YARDSTICKS[kind(one)]]
    settings = [*entered, *yardsticks], rounds, seconds, goes_on, cores
    return (_tried(case, *settings) if goes_on else _run(case, *settings) for case in cases)


def _tried(case: Case, *settings: Any) -> Result | Failed:
    try:
        return _run(case, *settings)
    except Exception as error:  # of any kind, as the case may run into an error of the library
        reason = " ".join(str(error).split())
        return Failed(case, reason if isinstance(error, XcnnError) else f"{type(error).__name__}: {reason}")


def _run(case: Case, entered: Sequence[Contestant], rounds: int, seconds: float, goes_on: bool, cores: int) -> Result:
    case = case.fitted() if case.mode == "train" else case
    reasons = {one: refusal(one, case) for one in entered}
    unable = [Dropped(one, reason) for one, reason in reasons.items() if reason]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(started(one, case)) for one, reason in reasons.items() if not reason]
        first, dropped = _begin(workers, goes_on)
        turns: dict[Worker, list[_Turn]] = {one: [] for one in first}
        for number in range(rounds):
            for one in [*turns][:: 1 if number % 2 == 0 else -1]:  # so that drift favours no contestant
                try:
                    alone, loaded = _ask_alone(one, "burst", seconds=seconds), None
                    if cores and not one.contestant.is_yardstick:
                        with busy(cores):
                            loaded = one.ask("loaded", seconds=seconds)
                    turns[one].append((*alone, loaded))
                except SpeedError as error:
                    if not goes_on or one.contestant.name == "xcnn":
                        raise
                    del turns[one]
                    dropped.append(Dropped(one.contestant, str(error)))
        timings = [_timing(one, first[one], turns[one]) for one in turns]
    rates: dict[str, dict[str, float]] = {}
    for timing in timings:
        measure = timing.contestant
        if measure.is_yardstick:
            rates.setdefault(measure.hardware, {})[measure.name] = measure.work() / min(timing.rounds)
    ours = tuple(timing for timing in timings if timing.contestant.name == "xcnn")
    peers = tuple(timing for timing in timings if timing.contestant.name in PEERS)
    return Result(case, ours, peers, sum(case.flops().values()), case.moved(), rates, (*unable, *dropped))


_Turn = tuple[float, float | None, tuple[float, float] | None, float | None]
"""Seconds per step; the shares of the time spent waiting for a core, and waiting for other processes and exchanging;
seconds per step on busy cores."""


def _timing(worker: Worker, first: float, turns: Sequence[_Turn]) -> Timing:
    """Collect the measurements of a contestant."""
    one = worker.contestant
    memory, calls = worker.ask("memory"), UNCOUNTED
    if one.hardware != CPU and not one.is_yardstick:
        try:
            calls = Launches(**worker.ask("launches"))
        except SpeedError as error:  # everything else has been measured
            calls = Launches(missing=str(error))
    waits = [wait for _, wait, _, _ in turns if wait is not None]
    shares = [share for _, _, share, _ in turns if share is not None]
    loaded = tuple(time for *_, time in turns if time is not None)
    waited = statistics.fmean(waits) if waits else None
    waiting, under_way = (statistics.fmean(column) for column in zip(*shares, strict=True)) if shares else (None, None)
    rounds = tuple(time for time, *_ in turns)
    return Timing(one, worker.case.batch, first, rounds, memory, waited, calls, loaded, waiting, under_way)


def _begin(workers: Sequence[Worker], goes_on: bool) -> tuple[dict[Worker, float], list[Dropped]]:
    """Run the first step of each worker; return the seconds of those that succeed, and the contestants that fail."""
    first: dict[Worker, float] = {}
    dropped: dict[Worker, Dropped] = {}
    for request in ("ready", "first"):
        for worker in workers:
            if worker in dropped:
                continue
            try:
                first[worker] = _ask_alone(worker, request)
            except SpeedError as error:
                if worker.contestant.name == "xcnn":
                    raise
                first.pop(worker, None)
                dropped[worker] = Dropped(worker.contestant, str(error))
        left = {worker.contestant.hardware for worker in first if worker.contestant.name in PEERS}
        for one in dropped.values():
            if one.contestant.name in PEERS and one.contestant.hardware not in left and not goes_on:
                raise SpeedError(f"bench: no peer is left on {one.contestant.hardware}: {one.reason}")
    return first, list(dropped.values())


def _ask_alone(worker: Worker, request: str, **arguments: float) -> Any:
    answer = worker.ask(request, **arguments)
    time.sleep(SETTLE)
    return answer


def speed(case: Case, device: str, steps: int) -> Timing:
    """Time the first step of xcnn on a device, and a number of later steps, in a process of its own.

    Raises
    ------
    UsageError
        If `steps` is below 1.
    SpeedError
        If a step fails.
    """
    integer("speed", "steps", steps)
    with Worker(Contestant("xcnn", device), case) as worker:
        first = worker.ask("first")
        rounds = tuple(worker.ask("burst", seconds=0)[0] for _ in range(steps))
        return Timing(worker.contestant, case.batch, first, rounds, worker.ask("memory"), None)


@dataclass(frozen=True)
class Growth:
    """The growth of the time of a step over cases that differ in one size only. Linear growth has factor 1.

    Attributes
    ----------
    cases : what the cases have in common, such as `"lenet5, train"`.
    device : device of xcnn.
    unit : `"image"` for several batch sizes, `"pixel"` for several image sizes.
    smallest, largest : batch size, or height and width of the images.
    factor : the longest time per unit over the shortest.
    """

    cases: str
    device: str
    unit: str
    smallest: int
    largest: int
    factor: float


def growths(results: Iterable[Result]) -> list[Growth]:
    """Compare the results that differ in batch size only, and those that differ in image size only."""
    groups: dict[tuple[str, str, str], dict[int, float]] = {}
    for result in results:
        case, sizes = result.case, result.case.shape[1:]
        for timing in result.ours:
            device, cost = timing.contestant.variant, timing.seconds / timing.batch
            groups.setdefault((f"{case.named}, {case.mode}", device, "image"), {})[case.batch] = cost
            alike = f"{case.model}, batch {case.batch}, {case.mode}"
            groups.setdefault((alike, device, "pixel"), {})[sizes[0]] = cost / math.prod(sizes)
    return [
        Growth(*group, min(costs), max(costs), max(costs.values()) / min(costs.values()))
        for group, costs in groups.items()
        if len(costs) > 1
    ]

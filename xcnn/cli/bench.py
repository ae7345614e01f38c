"""`xcnn bench`."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xcnn import compare as room
from xcnn import plots
from xcnn.cli._console import check_writable, note, print_json, print_line, print_table
from xcnn.devices import LIBRARIES, device
from xcnn.errors import UsageError, unknown
from xcnn.threads import get_num_threads

__all__ = ["DISTURBED", "bench"]

DISTURBED = 0.05
"""The share of its time that a contestant may wait for a core."""


def bench(
    *,
    models: str = "report,lenet5,mnist_cnn,vgg_small",
    batch_sizes: Annotated[str, Parameter(name=["--batch-sizes", "-b"])] = "1,64,256",
    sizes: Annotated[str, Parameter(show_default=False)] = "",
    mode: str = "train",
    devices: Annotated[str, Parameter(name=["--devices", "--device"])] = "cpu",
    against: Annotated[str, Parameter(show_default=False)] = "",
    ways: Annotated[str, Parameter(show_default=False)] = "",
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 0.4,
    profile: Annotated[bool, Parameter(negative=())] = False,
    plot: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Measure the speed and memory of training and inference, also of other libraries at the same work.

    Each contestant runs in its own process, and they take turns. The other libraries build the same network with the
    same weights, batch, loss and optimizer on the same CPU or GPU in several ways, of which the fastest counts. A
    ratio is xcnn's images/s to theirs within a round, as the median over the rounds: above 1, xcnn is faster.

    Parameters
    ----------
    models
        networks, separated by commas; see `xcnn models`.
    batch_sizes
        images per step, separated by commas.
    sizes
        heights and widths of the images, separated by commas; by default that of each network.
    mode
        train (with the update of the weights), infer, or both.
    devices
        devices for xcnn, separated by commas; see `xcnn devices`.
    against
        libraries to compare with, separated by commas: torch, jax (on the CPU only).
    ways
        ways in which those libraries run, separated by commas; by default all. `--ways NCHW,channels_last` leaves out
        PyTorch's compiled networks on a GPU, which take minutes to compile.
    threads
        threads for each contestant; by default all cores that this process may use.
    rounds
        turns of each contestant.
    seconds
        approximate length of a turn.
    profile
        show the time that xcnn spends in each layer, forward and backward.
    plot
        PNG file for a picture of the speeds.
    json
        print JSON lines on stdout: one for the machine, one per contestant and case, then the mean ratios and the
        growth of the cost with batches and images.
    """
    threads = get_num_threads() if threads is None else threads
    peers, ours = _names(against), [device(name).name for name in _names(devices)]
    modes = room.MODES if mode == "both" else (mode,)
    edges: list[int | None] = [*_numbers("--sizes", sizes)] or [None]
    cases = [
        room.Case(model, batch, one, threads, size=edge)
        for one in modes
        for model in _names(models)
        for batch in _numbers("--batch-sizes", batch_sizes)
        for edge in edges
    ]
    if not cases or not ours:
        raise UsageError("bench: name at least one model, one batch size and one device")
    contestants = _contestants(ours, peers, _names(ways))
    if plot is not None:
        plots.check()
    check_writable(plot)
    running = room.bench(cases, contestants, rounds, seconds, profile)
    _head(room.machine([LIBRARIES[name].module for name in peers]), room.describe(ours), threads, json)
    results: list[room.Result] = []
    for number, case in enumerate(cases, 1):
        note(f"{case} ({number} of {len(cases)})")
        results.append(next(running))
        for dropped in results[-1].dropped:
            note(f"{dropped.contestant} is left out: {dropped.reason}")
        _warn(results[-1])
        if json:
            _print_lines(results[-1])
    for one in modes:
        chosen = [result for result in results if result.case.mode == one]
        if not json:
            _print_results(one, chosen)
        _print_means(one, chosen, json)
        _print_growths(chosen, json)
    if profile and not json:
        for result in results:
            _print_profiles(result)
    if plot is not None:
        rows = {str(r.case): {str(t.contestant): (t.images_per_second, *t.quartiles) for t in (*r.ours, *r.peers)}
                for r in results}  # fmt: skip
        note(f"picture: {plots.speeds(rows, plot, _threads(threads))}")
    return 0


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise UsageError(f"{flag} takes integers separated by commas, got {text!r}") from None


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _contestants(ours: Sequence[str], peers: Sequence[str], ways: Sequence[str]) -> list[room.Contestant]:
    for name in peers:
        if name not in room.PEERS:
            raise unknown("peer", name, room.PEERS)
    contestants = room.contestants(ours, peers, ways)
    for name in peers:
        if importlib.util.find_spec(LIBRARIES[name].module) is None:
            raise room.SpeedError(f"bench: {name} is not installed; {LIBRARIES[name].hint}")
    return contestants


def _head(machine: dict[str, Any], gpus: Sequence[dict[str, Any]], threads: int, as_json: bool) -> None:
    """Print the machine, the GPUs and the versions."""
    machine["versions"] |= {gpu["library"]: gpu["version"] for gpu in gpus if gpu["version"]}
    if as_json:
        print_json({"kind": "machine", **machine, "threads": threads, **({"gpus": list(gpus)} if gpus else {})})
    else:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        where = f"{machine['cpu'] or 'unknown processor'}, {_threads(threads)} of {machine['cores']} cores"
        print_line(f"{where}; {versions}")
        for gpu in gpus:
            tf32 = _TF32[gpu["tf32"]].format(ours=f"xcnn {gpu['device']}")
            line = f"{gpu['device']}: {gpu['name'] or 'unknown GPU'}, driver {gpu['driver'] or 'unknown'}; TF32 {tf32}"
            print_line(line)


_TF32 = {
    False: "off on both sides",
    True: "on for {ours} (CUPY_TF32), off for its peers and the matrix product that of-peak refers to",
    None: "as its library has it for {ours}, off for its peers",
}


def _warn(result: room.Result) -> None:
    """Warn if other programs used the cores, which slows contestants down, those with several threads most."""
    shares = [f"{t.contestant} {_lost(t):.0%}" for t in (*result.ours, *result.peers) if _lost(t) > DISTURBED]
    if shares:
        note(f"other programs use the cores; time spent waiting for one: {', '.join(shares)}")


def _lost(timing: room.Timing) -> float:
    return timing.waited or 0.0


def _print_lines(result: room.Result) -> None:
    """Print a JSON line per contestant, and per line of its profile."""
    case = {
        "mode": result.case.mode,
        "model": result.case.model,
        "batch": result.case.batch,
        "shape": result.case.shape,
    }
    for timing in (*result.ours, *result.peers):
        who = _who(timing.contestant)
        low, high = timing.quartiles
        figures = {
            "images_per_second": timing.images_per_second,
            "quartiles": [low, high],
            "rounds": timing.rounds,
            "first": timing.first,
            "memory": timing.memory,
            "waited": timing.waited,
            "gflops": result.flops / timing.seconds / 1e9,
            "peak_share": result.share(timing, "sgemm"),
            "copy_share": result.share(timing, "copy"),
            "rates": result.rates.get(timing.contestant.hardware, {}),
            "launches": dataclasses.asdict(timing.launches),
        }
        ratios = {str(peer.contestant): timing.ratio(peer) for peer in result.rivals(timing)}
        best = result.best(timing)
        of_best = {"best_peer": str(best.contestant), "ratio": timing.ratio(best)} if best else {}
        ours = {"ratios": ratios, **of_best} if timing in result.ours else {}
        print_json({"kind": "speed", **case, **who, **figures, **ours})
        for row in timing.profile:
            print_json({"kind": "profile", **case, **who, **dataclasses.asdict(row)})
    for one in result.dropped:
        print_json({"kind": "dropped", **case, **_who(one.contestant), "reason": one.reason})


def _who(contestant: room.Contestant) -> dict[str, str]:
    return {"contestant": contestant.name, "variant": contestant.variant, "hardware": contestant.hardware}


_YARDSTICKS = {
    "sgemm": "a large matrix product does {:,.0f} GFLOP/s, without TF32",
    "copy": "a large copy reads and writes {:,.0f} GB/s",
}
"""Sentences on the yardsticks of a GPU."""


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of the table: its name, cells and meaning, when it is shown, and whether peers have it as well."""

    name: str
    cell: Callable[[room.Result, room.Timing], str]
    meaning: str = ""
    when: str = ""
    theirs: bool = False


_COLUMNS = (
    _Column("device", lambda result, one: one.contestant.variant, when="several"),
    _Column("images/s", lambda result, one: f"{one.images_per_second:,.0f}", theirs=True),
    _Column("spread", lambda result, one: _spread(one), "half the distance of their quartiles", theirs=True),
    _Column("GFLOP/s", lambda result, one: f"{result.flops / one.seconds / 1e9:.1f}"),
    _Column(
        "of-peak", lambda result, one: _share(result.share(one, "sgemm")), "share of a large matrix product's speed"
    ),
    _Column(
        "of-copy",
        lambda result, one: _share(result.share(one, "copy")),
        "share of a large copy's speed, of the bytes that layers have to move",
        "gpu",
    ),
    _Column("launches", lambda result, one: _count(one.launches.kernels), "of kernels or graphs, a step", "gpu", True),
    _Column("copies", lambda result, one: _count(one.launches.copies), "memory copied or filled, a step", "gpu", True),
    _Column(
        "memory",
        lambda result, one: _bytes(one.memory),
        "growth of the process (on a GPU: of the library's memory pool) since before the first step",
        theirs=True,
    ),
    _Column("first", lambda result, one: f"{one.first:.2f} s", "the first step"),
)


def _print_results(mode: str, results: Sequence[room.Result]) -> None:
    rates = {place: rate for result in results for place, rate in result.rates.items() if place != room.CPU}
    facts = {"": True, "several": any(len(result.ours) > 1 for result in results), "gpu": bool(rates)}
    ours = [column for column in _COLUMNS if facts[column.when]]
    theirs = [column for column in ours if column.theirs and any(result.peers for result in results)]
    rows = []
    for result in results:
        for timing in result.ours:
            row = [result.case.named, str(result.case.batch), *(column.cell(result, timing) for column in ours)]
            if best := result.best(timing):
                row += [f"{timing.ratio(best):.2f}", str(best.contestant)]
                row += [column.cell(result, best) for column in theirs]
            rows.append(tuple(row))
    columns = ["model", "batch", *(column.name for column in ours)]
    columns += ["ratio", "best peer", *(column.name for column in theirs)] if theirs else []
    meanings = [f"{column.name}: {column.meaning}" for column in ours if column.meaning]
    title = "; ".join([f"{mode}: medians over the rounds", *meanings])
    right = " ".join({*columns} - {"model", "device", "best peer"})
    print_table(*columns, rows=rows, right=right, title=title, gap=True, fold=False)
    for place, rate in rates.items():
        text = "; ".join(_YARDSTICKS[name].format(number / 1e9) for name, number in rate.items())
        print_line(f"{place}: {text}", gap=True)
    timings = [timing for result in results for timing in (*result.ours, *result.peers)]
    for reason in dict.fromkeys(timing.launches.missing for timing in timings):
        if reason:
            print_line(f"launches not counted: {reason}", gap=True)
    lost = max(map(_lost, timings), default=0.0)
    if lost > DISTURBED:
        text = f"not reliable: a contestant waited up to {lost:.0%} of its time for cores that other programs used"
        print_line(text, gap=True)


def _spread(timing: room.Timing) -> str:
    low, high = timing.quartiles
    return f"{(high - low) / 2 / timing.images_per_second:.0%}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _count(count: float | None) -> str:
    return "-" if count is None else f"{count:,.0f}"


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f} MiB"


def _print_means(mode: str, results: Sequence[room.Result], as_json: bool) -> None:
    """Print the geometric mean and the lowest of the ratios to the best peer, for each device."""
    ratios: dict[str, dict[str, float]] = {}
    for result in results:
        for timing in result.ours:
            if best := result.best(timing):
                of = f"{result.case.named}, batch {result.case.batch}"
                ratios.setdefault(timing.contestant.variant, {})[of] = timing.ratio(best)
    for name, found in ratios.items():
        mean, lowest = (
            math.exp(math.fsum(map(math.log, found.values())) / len(found)),
            min(found, key=found.__getitem__),
        )
        if as_json:
            line = {"kind": "mean", "mode": mode, "device": name, "geometric_mean": mean}
            print_json(line | {"lowest": found[lowest], "lowest_of": lowest})
        else:
            text = f"geometric mean of the ratios {mean:.2f}, lowest {found[lowest]:.2f} ({lowest})"
            print_line(f"{mode} on {name}: {text}", gap=True)


def _print_growths(results: Sequence[room.Result], as_json: bool) -> None:
    """Print how the cost of an image grows with the batch, and that of a pixel with the image, if several were run."""
    for number, growth in enumerate(room.growths(results)):
        if as_json:
            print_json({"kind": "growth", **dataclasses.asdict(growth)})
        else:
            what = f"{growth.smallest} to {growth.largest}"
            span = f"batch {what}" if growth.unit == "image" else f"{what} pixels square"
            times = f"time per {growth.unit} at most {growth.factor:.2f} times its least"
            print_line(f"{growth.cases} on {growth.device}: {times}, {span}", gap=not number)


def _print_profiles(result: room.Result) -> None:
    for timing in result.ours:
        rows: list[tuple[Any, ...]] = []
        for row in timing.profile:
            both = row.forward + row.backward
            speed = f"{row.flops / both / 1e9:.1f}" if row.flops and both else ""
            rows.append((row.name, row.what, _milli(row.forward), _milli(row.backward), f"{row.share:.1%}", speed))
        whole = [sum(times) for times in zip(*((row.forward, row.backward) for row in timing.profile), strict=True)]
        rows.append(("", "all", *map(_milli, whole), "", ""))
        title = f"{result.case}, {timing.contestant}: milliseconds of a step, medians"
        columns = ("layer", "what", "forward", "backward", "share", "GFLOP/s")
        right = "forward backward share GFLOP/s"
        print_table(*columns, rows=rows, right=right, title=title, gap=True, fold=False)


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}" if seconds else ""

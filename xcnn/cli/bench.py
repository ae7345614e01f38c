"""`xcnn bench`."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xcnn import compare as room
from xcnn import plots
from xcnn.cli._console import check_writable, note, print_json, print_line, print_table, split_names
from xcnn.devices import device
from xcnn.errors import UsageError
from xcnn.threads import get_num_threads

__all__ = ["DISTURBED", "bench"]

DISTURBED = 0.05
"""The share of its time that a contestant may wait for a core before its timings count as unreliable."""


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
    """Measure the speed and memory of training and inference, and compare them with other libraries.

    Each contestant runs in its own process, and they take turns. The other libraries run the same network with the
    same weights, batch, loss and optimizer on the same CPU or GPU, in several ways, of which the fastest counts. A
    ratio is xcnn's images/s over theirs within a round, as the median over the rounds: above 1, xcnn is faster. It is
    that to the fastest of all; with several libraries, those to the fastest way of each stand beside it.

    Parameters
    ----------
    models
        networks, separated by commas; see `xcnn models`.
    batch_sizes
        images per step, separated by commas.
    sizes
        sizes of square images, separated by commas; by default that of each network.
    mode
        train (including the update of the weights), infer, or both.
    devices
        devices for xcnn, separated by commas; see `xcnn devices`.
    against
        libraries to compare with, separated by commas: torch, jax (on the CPU only), onnxruntime (on the CPU, inference
        only).
    ways
        ways in which those libraries run, separated by commas; by default all. `--ways NCHW,channels_last` leaves out
        compiled PyTorch networks on a GPU, which take minutes to compile.
    threads
        threads for each contestant; by default all cores that this process may use.
    rounds
        number of turns of each contestant.
    seconds
        approximate length of a turn.
    profile
        show the time of each layer in xcnn, forward and backward.
    plot
        PNG file for a picture of the speeds.
    json
        print JSON lines on stdout: one for the machine, one per contestant and case, then the mean ratios and the
        growth of the cost with batches and images.
    """
    threads = get_num_threads() if threads is None else threads
    peers, ours = split_names(against), [device(name).name for name in split_names(devices)]
    modes = room.MODES if mode == "both" else (mode,)
    edges: list[int | None] = [*_numbers("sizes", sizes)] or [None]
    cases = [
        room.Case(model, batch, one, threads, size=edge)
        for one in modes
        for model in split_names(models)
        for batch in _numbers("batch_sizes", batch_sizes)
        for edge in edges
    ]
    if not cases or not ours:
        raise UsageError("bench: name at least one model, one batch size and one device")
    contestants = room.contestants(ours, peers, split_names(ways))
    if plot is not None:
        plots.check()
    check_writable(plot)
    running = room.bench(cases, contestants, rounds, seconds, profile)
    cores = f"{threads} thread{'s' * (threads > 1)}"
    _print_machine(
        room.machine([one.package[0] for one in contestants if one.name in peers]),
        room.describe(ours),
        cores,
        threads,
        json,
    )
    results: list[room.Result] = []
    for number, case in enumerate(cases, 1):
        note(f"{case} ({number} of {len(cases)})")
        result = next(running)
        results.append(result)
        for dropped in result.dropped:
            note(f"{dropped.contestant} is left out: {dropped.reason}")
        lost = [f"{one.contestant} {_lost(one):.0%}" for one in _timings(result) if _lost(one) > DISTURBED]
        if lost:
            note(f"other programs use the cores; time spent waiting for one: {', '.join(lost)}")
        if json:
            _print_lines(result)
    for one in modes:
        chosen = [result for result in results if result.case.mode == one]
        if not json:
            _print_results(one, chosen)
        _print_means(one, chosen, json)
        _print_growths(chosen, json)
    if profile and not json:
        for timing, case in ((timing, result.case) for result in results for timing in result.ours):
            _print_profile(timing, case)
    if plot is not None:
        rows = {
            str(result.case): {str(one.contestant): (one.images_per_second, *one.quartiles) for one in _timings(result)}
            for result in results
        }
        note(f"picture: {plots.speeds(rows, plot, cores)}")
    return 0


def _numbers(setting: str, text: str) -> list[int]:
    try:
        return [int(name) for name in split_names(text)]
    except ValueError:
        raise UsageError(f"{setting} takes integers separated by commas, got {text!r}", setting=setting) from None


def _timings(result: room.Result) -> list[room.Timing]:
    return [*result.ours, *result.peers]


def _lost(timing: room.Timing) -> float:
    return timing.waited or 0.0


_TF32 = {
    False: "off on both sides",
    True: "on for {ours} (CUPY_TF32), off for its peers and the matrix product of of-peak",
    None: "as its library sets it for {ours}, off for its peers",
}


def _print_machine(
    machine: dict[str, Any], gpus: Sequence[dict[str, Any]], cores: str, threads: int, as_json: bool
) -> None:
    """Print the machine, the GPUs and the versions."""
    machine["versions"] |= {gpu["library"]: gpu["version"] for gpu in gpus if gpu["version"]}
    if as_json:
        print_json({"kind": "machine", **machine, "threads": threads} | ({"gpus": list(gpus)} if gpus else {}))
        return
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print_line(f"{machine['cpu'] or 'unknown processor'}, {cores} of {machine['cores']} cores; {versions}")
    for gpu in gpus:
        tf32 = _TF32[gpu["tf32"]].format(ours=f"xcnn {gpu['device']}")
        name, driver = gpu["name"] or "unknown GPU", gpu["driver"] or "unknown"
        print_line(f"{gpu['device']}: {name}, driver {driver}; TF32 {tf32}")


def _print_lines(result: room.Result) -> None:
    """Print a JSON line per contestant, and per row of its profile."""
    case = {name: getattr(result.case, name) for name in ("mode", "model", "batch", "shape")}
    for timing in _timings(result):
        who = _who(timing.contestant)
        figures = {
            "images_per_second": timing.images_per_second,
            "quartiles": timing.quartiles,
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
        if timing in result.ours:
            figures["ratios"] = {str(peer.contestant): timing.ratio(peer) for peer in result.rivals(timing)}
            if best := result.best(timing):
                figures |= {"best_peer": str(best.contestant), "ratio": timing.ratio(best)}
        print_json({"kind": "speed", **case, **who, **figures})
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
    """A column of the table: name, format, value and meaning, when it is shown, and whether peers have a value too."""

    name: str
    form: str
    value: Callable[[room.Result, room.Timing], Any]
    meaning: str = ""
    when: str = ""
    theirs: bool = False

    def cell(self, result: room.Result, timing: room.Timing) -> str:
        value = self.value(result, timing)
        return "-" if value is None else self.form.format(value)


_MEMORY = "growth of the process (on a GPU: of the library's memory pool) since before the first step"
_COPY = "share of the speed of a large copy, by the bytes that layers have to move"
_COLUMNS = (
    _Column("device", "{}", lambda result, one: one.contestant.variant, when="several"),
    _Column("images/s", "{:,.0f}", lambda result, one: one.images_per_second, theirs=True),
    _Column("spread", "{:.0%}", lambda result, one: one.spread, "half the distance between the quartiles", theirs=True),
    _Column("GFLOP/s", "{:.1f}", lambda result, one: result.flops / one.seconds / 1e9),
    _Column(
        "of-peak", "{:.0%}", lambda result, one: result.share(one, "sgemm"), "share of a large matrix product's speed"
    ),
    _Column("of-copy", "{:.0%}", lambda result, one: result.share(one, "copy"), _COPY, "gpu"),
    _Column(
        "launches", "{:,.0f}", lambda result, one: one.launches.kernels, "of kernels or graphs per step", "gpu", True
    ),
    _Column("copies", "{:,.0f}", lambda result, one: one.launches.copies, "and fills of memory per step", "gpu", True),
    _Column("memory", "{:.1f} MiB", lambda result, one: one.memory and one.memory / 2**20, _MEMORY, theirs=True),
    _Column("first", "{:.2f} s", lambda result, one: one.first, "the first step"),
)


def _print_results(mode: str, results: Sequence[room.Result]) -> None:
    rates = {place: rate for result in results for place, rate in result.rates.items() if place != room.CPU}
    facts = {"": True, "several": any(len(result.ours) > 1 for result in results), "gpu": bool(rates)}
    ours = [column for column in _COLUMNS if facts[column.when]]
    theirs = [column for column in ours if column.theirs and any(result.peers for result in results)]
    libraries = list(dict.fromkeys(peer.contestant.name for result in results for peer in result.peers))
    shown = libraries if len(libraries) > 1 else []
    rows = []
    for result in results:
        for timing in result.ours:
            row = [result.case.named, str(result.case.batch), *(column.cell(result, timing) for column in ours)]
            if best := result.best(timing):
                each = (result.best(timing, library) for library in shown)
                row += [f"{timing.ratio(one):.2f}" if one else "-" for one in (*each, best)]
                row.append(str(best.contestant))
                row += [column.cell(result, best) for column in theirs]
            rows.append(tuple(row))
    columns = ["model", "batch", *(column.name for column in ours)]
    columns += (
        [*(f"to {library}" for library in shown), "ratio", "best peer", *(column.name for column in theirs)]
        if theirs
        else []
    )
    meanings = [f"{column.name}: {column.meaning}" for column in ours if column.meaning]
    title = "; ".join([f"{mode}: medians over the rounds", *meanings])
    print_table(
        *columns, rows=rows, right={*columns} - {"model", "device", "best peer"}, title=title, gap=True, fold=False
    )
    for place, rate in rates.items():
        text = "; ".join(_YARDSTICKS[name].format(number / 1e9) for name, number in rate.items())
        print_line(f"{place}: {text}", gap=True)
    timings = [timing for result in results for timing in _timings(result)]
    for reason in dict.fromkeys(timing.launches.missing for timing in timings if timing.launches.missing):
        print_line(f"launches not counted: {reason}", gap=True)
    lost = max(map(_lost, timings), default=0.0)
    if lost > DISTURBED:
        text = f"not reliable: a contestant waited up to {lost:.0%} of its time for cores that other programs used"
        print_line(text, gap=True)


def _print_means(mode: str, results: Sequence[room.Result], as_json: bool) -> None:
    """Print the geometric mean and the lowest of the ratios to the best peer, for each device."""
    ratios: dict[str, dict[str, float]] = {}
    for result in results:
        for timing in result.ours:
            if best := result.best(timing):
                of = f"{result.case.named}, batch {result.case.batch}"
                ratios.setdefault(timing.contestant.variant, {})[of] = timing.ratio(best)
    for name, found in ratios.items():
        mean, lowest = statistics.geometric_mean(found.values()), min(found, key=found.__getitem__)
        if as_json:
            line = {"kind": "mean", "mode": mode, "device": name, "geometric_mean": mean}
            print_json(line | {"lowest": found[lowest], "lowest_of": lowest})
        else:
            text = f"geometric mean of the ratios {mean:.2f}, lowest {found[lowest]:.2f} ({lowest})"
            print_line(f"{mode} on {name}: {text}", gap=True)


def _print_growths(results: Sequence[room.Result], as_json: bool) -> None:
    """Print how the time per image grows with the batch, and that per pixel with the image, if there are several."""
    for number, growth in enumerate(room.growths(results)):
        if as_json:
            print_json({"kind": "growth", **dataclasses.asdict(growth)})
        else:
            what = f"{growth.smallest} to {growth.largest}"
            span = f"batch {what}" if growth.unit == "image" else f"{what} pixels square"
            times = f"time per {growth.unit} at most {growth.factor:.2f} times its least"
            print_line(f"{growth.cases} on {growth.device}: {times}, {span}", gap=not number)


def _print_profile(timing: room.Timing, case: room.Case) -> None:
    forward, backward = (math.fsum(getattr(row, way) for row in timing.profile) for way in ("forward", "backward"))
    rows: list[tuple[str, ...]] = []
    for row in timing.profile:
        both = row.forward + row.backward
        speed = f"{row.flops / both / 1e9:.1f}" if row.flops and both else ""
        rows.append((row.name, row.what, _milli(row.forward), _milli(row.backward), f"{row.share:.1%}", speed))
    rows.append(("", "all", _milli(forward), _milli(backward), "", ""))
    title = f"{case}, {timing.contestant}: milliseconds of a step, medians"
    figures = ("forward", "backward", "share", "GFLOP/s")
    print_table("layer", "what", *figures, rows=rows, right=figures, title=title, gap=True, fold=False)


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}" if seconds else ""

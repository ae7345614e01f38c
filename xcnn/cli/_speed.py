"""What `xcnn bench` prints: the machine, tables or JSON lines of speed, means, and profiles."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xcnn import compare as room
from xcnn.cli._console import print_json, print_line, print_table
from xcnn.models import entry

__all__ = [
    "DISTURBED",
    "lost",
    "print_growths",
    "print_lines",
    "print_machine",
    "print_means",
    "print_profile",
    "print_results",
    "print_worst",
    "timings",
]

DISTURBED = 0.05
"""The share of its time that a contestant may wait for a core before its timings count as unreliable."""


def timings(result: room.Result) -> list[room.Timing]:
    """Return the timings of xcnn and all peers."""
    return [*result.ours, *result.peers]


def lost(timing: room.Timing) -> float:
    """Return the share of its time for which a contestant waited for a core."""
    return timing.waited or 0.0


_TF32 = {
    False: "off on both sides",
    True: "on for {ours} (CUPY_TF32), off for its peers and the matrix product of of-peak",
    None: "as its library sets it for {ours}, off for its peers",
}


def print_machine(
    machine: dict[str, Any], gpus: Sequence[dict[str, Any]], cores: str, threads: int, as_json: bool
) -> None:
    """Print the machine, the GPUs and the versions."""
    machine["versions"] |= {gpu["library"]: gpu["version"] for gpu in gpus if gpu["version"]}
    if as_json:
        print_json({"kind": "machine", **machine, "threads": threads} | ({"gpus": list(gpus)} if gpus else {}))
        return
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    print_line(f"{machine['cpu'] or 'unknown processor'}, {cores} of {machine['cores']} cores; {versions}")
    for gpu in gpus:
        tf32 = _TF32[gpu["tf32"]].format(ours=f"xcnn {gpu['device']}")
        name, driver = gpu["name"] or "unknown GPU", gpu["driver"] or "unknown"
        print_line(f"{gpu['device']}: {name}, driver {driver}; TF32 {tf32}")


def print_lines(result: room.Result) -> None:
    """Print a JSON line per contestant."""
    case = _case(result.case)
    for timing in timings(result):
        who = _who(timing.contestant)
        figures = {
            "images_per_second": timing.images_per_second,
            "quartiles": timing.quartiles,
            "rounds": timing.rounds,
            "first": timing.first,
            "memory": timing.memory,
            "waited": timing.waited,
            "loaded": timing.loaded,
            "kept": timing.kept,
            "waiting": timing.waiting,
            "overlap": timing.overlap,
            "efficiency": result.efficiency(timing),
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
    for one in result.dropped:
        print_json({"kind": "dropped", **case, **_who(one.contestant), "reason": one.reason})


def _case(case: room.Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("mode", "model", "batch", "shape")}


def _who(contestant: room.Contestant) -> dict[str, Any]:
    kind = {"contestant": contestant.name, "variant": contestant.way or contestant.device}
    return {**kind, "hardware": contestant.hardware, "ranks": contestant.ranks}


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
_EFFICIENCY = "images/s per rank as a share of those with the fewest ranks and the same batch"
_OVERLAP = "share of the time of exchanges in which the ranks did not wait for them"
_COLUMNS = (
    _Column("device", "{}", lambda result, one: one.contestant.device, when="several"),
    _Column("ranks", "{}", lambda result, one: one.contestant.ranks, "processes that train together", "ranks"),
    _Column("ms/step", "{:.2f}", lambda result, one: 1e3 * one.seconds, when="ranks"),
    _Column("images/s", "{:,.0f}", lambda result, one: one.images_per_second, theirs=True),
    _Column("spread", "{:.0%}", lambda result, one: one.spread, "half the distance between the quartiles", theirs=True),
    _Column("efficiency", "{:.2f}", lambda result, one: result.efficiency(one), _EFFICIENCY, "ranks", theirs=True),
    _Column("waiting", "{:.1%}", lambda result, one: one.waiting, "share of the time waiting for other ranks", "ranks"),
    _Column("overlap", "{:.0%}", lambda result, one: one.overlap, _OVERLAP, "ranks"),
    _Column("GFLOP/s", "{:.1f}", lambda result, one: result.flops / one.seconds / 1e9),
    _Column(
        "of-peak",
        "{:.0%}",
        lambda result, one: result.share(one, "sgemm"),
        "GFLOP/s as a share of a large matrix product's, above 100% where tiles save operations that are counted",
    ),
    _Column("of-copy", "{:.0%}", lambda result, one: result.share(one, "copy"), _COPY, "gpu"),
    _Column(
        "launches", "{:,.0f}", lambda result, one: one.launches.kernels, "of kernels or graphs per step", "gpu", True
    ),
    _Column("copies", "{:,.0f}", lambda result, one: one.launches.copies, "and fills of memory per step", "gpu", True),
    _Column("memory", "{:.1f} MiB", lambda result, one: one.memory and one.memory / 2**20, _MEMORY, theirs=True),
    _Column(
        "busy", "{:.0%}", lambda result, one: one.kept, "speed kept while other programs use cores", "busy", theirs=True
    ),
    _Column("first", "{:.2f} s", lambda result, one: one.first, "the first step, with compiling", theirs=True),
)


def print_results(mode: str, results: Sequence[room.Result]) -> None:
    """Print a table with a row per case and device."""
    rates = {place: rate for result in results for place, rate in result.rates.items() if place != room.CPU}
    loaded = any(timing.loaded for result in results for timing in timings(result))
    devices = {timing.contestant.device for result in results for timing in result.ours}
    facts = {"": True, "busy": loaded, "several": len(devices) > 1, "gpu": bool(rates)}
    facts["ranks"] = any(timing.contestant.ranks > 1 for result in results for timing in result.ours)
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
    every = [timing for result in results for timing in timings(result)]
    for reason in dict.fromkeys(timing.launches.missing for timing in every if timing.launches.missing):
        print_line(f"launches not counted: {reason}", gap=True)
    most = max(map(lost, every), default=0.0)
    if most > DISTURBED:
        text = f"not reliable: a contestant waited up to {most:.0%} of its time for cores that other programs used"
        print_line(text, gap=True)


def print_means(results: Sequence[room.Result], as_json: bool) -> None:
    """Print the geometric mean and the lowest of the ratios to the best peer, and to each of several."""
    for mean in room.means(results):
        if as_json:
            print_json({"kind": "mean", **dataclasses.asdict(mean)})
            continue
        to = f" to {mean.peer}" if mean.peer else ""
        text = f"geometric mean of the ratios{to} {mean.geometric_mean:.2f}, lowest {mean.lowest:.2f}"
        below = [f"{share:.0%} below {bound:g}" for bound, share in mean.below.items() if share]
        counted = f"; of {mean.cells} cells {', '.join(below)}" if below and mean.cells > 1 else ""
        print_line(f"{mean.mode} on {mean.device}: {text} ({mean.lowest_of}){counted}", gap=not mean.peer)


def print_worst(results: Sequence[room.Result], count: int) -> None:
    """Print the cells with the lowest ratios, and what their networks are."""
    rows = [
        (
            result.case.named,
            str(result.case.batch),
            result.case.mode,
            f"{timing.ratio(best):.2f}",
            str(best.contestant),
            "x".join(map(str, result.case.shape)),
            entry(result.case.model).summary,
        )
        for result, timing, best in room.worst(results, count)
    ]
    if rows:
        columns = ("model", "batch", "mode", "ratio", "best peer", "images", "network")
        print_table(*columns, rows=rows, right=("batch", "ratio"), title="the lowest ratios", gap=True, fold=False)


def print_growths(results: Sequence[room.Result], as_json: bool) -> None:
    """Print how the time per image grows with the batch, and that per pixel with the image, if there are several."""
    for number, growth in enumerate(room.growths(results)):
        if as_json:
            print_json({"kind": "growth", **dataclasses.asdict(growth)})
        else:
            what = f"{growth.smallest} to {growth.largest}"
            span = f"batch {what}" if growth.unit == "image" else f"{what} pixels square"
            times = f"time per {growth.unit} at most {growth.factor:.2f} times its least"
            print_line(f"{growth.cases} on {growth.device}: {times}, {span}", gap=not number)


def print_profile(case: room.Case, profiles: Mapping[room.Contestant, Sequence[room.Row]], as_json: bool) -> None:
    """Print the time of each part of the network in xcnn, and beside it in peers."""
    if as_json:
        for one, found in profiles.items():
            for row in found:
                print_json({"kind": "profile", **_case(case), **_who(one), **dataclasses.asdict(row)})
        return
    (mine, ours), *others = profiles.items()
    ways = ("forward", "backward") if case.mode == "train" else ("forward",)
    whole = ours[-1].seconds or math.nan
    table: list[tuple[str, ...]] = []
    for number, row in enumerate(ours):
        speed = f"{row.flops / row.seconds / 1e9:.0f}" if row.flops and row.seconds else ""
        cells = [row.name, row.what, "x".join(map(str, row.shape))]
        cells += [*(_milli(getattr(row, way)) for way in ways), f"{row.share:.1%}", speed]
        for _, theirs in others:
            other, part = theirs[number], bool(row.name)
            cells += [_milli(getattr(other, way)) for way in ways]
            both = row.seconds and other.seconds and (part or number == len(ours) - 1)
            cells += [f"{other.seconds / row.seconds:.2f}" if both else ""]  # type: ignore[operator]
            known = row.seconds is not None and other.seconds is not None
            cells += [f"{(row.seconds - other.seconds) / whole:+.1%}" if known else ""]  # type: ignore[operator]
        table.append(tuple(cells))
    figures = [*ways, "share", "GFLOP/s"]
    for peer, _ in others:
        first, *more = (f"{peer.name} {way}" for way in ways)
        figures += [first, *more, f"to {peer.name}", f"lost to {peer.name}"]
    title = f"{case}, {mine}: milliseconds of each part alone, fastest calls"
    title += "".join(f"; {peer}" for peer, _ in others)
    if ours[-1].share < 1:
        title += f"; the whole step takes {ours[-1].share:.0%} of the sum of its parts"
    meaning = "; to: their time over ours; lost: ours less theirs, as a share of our step" if others else ""
    columns = ("part", "what", "input", *figures)
    print_table(*columns, rows=table, right=figures, title=title + meaning, gap=True, fold=False)


def _milli(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}"

"""What `xcnn compare` prints: tables or JSON lines of errors, training steps and speed."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xcnn import compare as room
from xcnn.cli._console import error_line, note, print_json, print_table
from xcnn.compare import Finding

__all__ = ["Parting", "report_errors", "report_files", "report_speed", "report_steps", "report_verdict", "shares"]


@dataclass(frozen=True)
class Parting:
    """The distance of a device's weights from those of the CPU after each step."""

    device: str
    dtype: str
    distances: Sequence[float]

    @property
    def bound(self) -> float:
        return room.PARTING[self.dtype]

    @property
    def within(self) -> bool:
        return all(distance <= self.bound for distance in self.distances)

    def __str__(self) -> str:
        distance = f"{max(self.distances):.1e} from those of the cpu run, at most {self.bound:g}"
        return f"weights on {self.device} in {self.dtype}: {distance}"


def _row(what: bool) -> Callable[[Finding], tuple[str, ...]]:
    return lambda finding: (finding.place, finding.what) if what else (finding.place,)


def report_errors(findings: Sequence[Finding], place: str, what: str, as_json: bool) -> None:
    """Print every error as JSON, or a table of the errors nearest to their bounds by place and device.

    `place` and `what` are the headings of `Finding.place` and `Finding.what`; an empty `what` omits the second column.
    """
    if as_json:
        for f in findings:
            where = {"kind": place, place: f.place, "what": f.what, "device": f.device, "dtype": f.dtype}
            print_json(where | dataclasses.asdict(f.error) | {"within": f.error.within})
        return
    table = room.nearest(findings, _row(bool(what)), lambda f: f.device)
    names = list(dict.fromkeys(f.device for f in findings))
    cells = {key: [row[name].error if name in row else None for name in names] for key, row in table.items()}
    rows = [(*key, *(f"{e.tensor} {e}" if e else "-" for e in errors)) for key, errors in cells.items()]
    title = f"{findings[0].dtype}: per {place}, the tensor nearest to its bound: error and bound in eps * S (and ULP)"
    print_table(*([place, what] if what else [place]), *names, rows=rows, title=title)


def report_steps(parted: Sequence[Parting], as_json: bool) -> None:
    """Print the distances of the weights after each step as JSON, or a table of some steps."""
    if as_json:
        for one in parted:
            for step, distance in enumerate(one.distances, 1):
                where = {"kind": "steps", "device": one.device, "dtype": one.dtype, "step": step}
                print_json(where | {"distance": distance, "bound": one.bound, "within": distance <= one.bound})
        return
    last = len(parted[0].distances)
    shown = sorted({step for step in (1, 2, 5, 10, 20, 50, 100) if step < last} | {last})
    names = [one.device for one in parted]
    rows = [(step, *(f"{one.distances[step - 1]:.1e}" for one in parted)) for step in shown]
    title = f"{parted[0].dtype}: relative distance of the weights from the cpu run's after some steps of training"
    right = ["steps", *names]
    print_table(*right, rows=rows, right=right, title=f"{title} (at most {parted[0].bound:g})", gap=True)


def report_speed(timings: dict[str, room.Timing], dtype: str, as_json: bool) -> None:
    """Print the speed of a training step on each device: JSON lines, or a table."""
    if as_json:
        for name, one in timings.items():
            figures = {"cold": one.first, "warm": one.seconds, "images_per_second": one.images_per_second}
            print_json({"kind": "speed", "device": name, "dtype": dtype, **figures, "memory": one.memory})
        return
    rows = [
        (
            name,
            f"{1e3 * one.first:.1f} ms",
            f"{1e3 * one.seconds:.1f} ms",
            f"{one.images_per_second:,.0f}",
            "-" if one.memory is None else f"{one.memory / 2**20:.1f} MiB",
        )
        for name, one in timings.items()
    ]
    title = (
        f"{dtype}: a training step in a process per device, cold (the first) and warm (the median of the others); "
        "memory: growth of the process (on a GPU: of the library's memory pool) since before the first step"
    )
    columns = ("cold", "warm", "images/s", "memory")
    print_table("device", *columns, rows=rows, right=columns, title=title, gap=True)


def report_verdict(findings: Sequence[Finding], parted: Sequence[Parting], as_json: bool) -> int:
    """Print whether all errors are within their budgets, or the worst one that is not, and return the exit code."""
    worst = sorted(findings, key=lambda f: -f.error.share)
    over = [*(str(f) for f in worst if not f.error.within), *(str(one) for one in parted if not one.within)]
    if as_json:
        print_json({"kind": "verdict", "within": not over, "exceeded": over})
    if over:
        error_line(f"over budget: {over[0]}" + (f" (and {len(over) - 1} more)" if len(over) > 1 else ""))
    else:
        note(f"all {len(findings)} errors are within their budgets; the nearest to its bound: {worst[0]}")
    return int(bool(over))


def report_files(a: room.Opened, b: room.Opened, found: room.Comparison, as_json: bool) -> int:
    """Print what two files have in common and where they differ, and return the exit code."""
    differing = [(one, other, off) for one, other, off in found.weights if off]
    if as_json:
        for what, *values in found.facts:
            print_json({"kind": "fact", "what": what, "a": values[0], "b": values[1]})
        for pair in found.pairs:
            print_json({"kind": "layer", **dataclasses.asdict(pair), "parted": pair.parted})
        for one, other, off in found.weights:
            print_json({"kind": "weights", "a": one, "b": other, "difference": off})
        for side, names in zip("ab", found.alone, strict=True):
            for name in names:
                print_json({"kind": "weights", side: name})
        verdict = {"units": found.units, "bound": room.TOGETHER, "agreed": found.agreed, "same": found.same}
        parting = found.first and {"a": found.first.a, "b": found.first.b}
        print_json({"kind": "verdict", **verdict, "first": parting, "reason": found.reason})
    else:
        print_table("", "A", "B", rows=[("file", str(a.path), str(b.path)), *found.facts], fold=False)
        if rows := [_layers(one, found.first) for one in found.pairs if not one.equal]:
            title = (
                f"{len(rows)} of {len(found.pairs)} layers differ; largest differences: of weights, relative to A's, "
                "and of activations, in eps * S"
            )
            print_table("A", "B", "op", "weights", "activations", rows=rows, title=title, gap=True, fold=False)
        elif differing and not found.pairs:
            changed = [(one, other, f"{off:.1e}") for one, other, off in differing]
            title = "weights that differ; largest difference relative to A's largest"
            print_table("A", "B", "difference", rows=changed, title=title, gap=True, fold=False)
    layers = {one.a for one in found.pairs}
    loose = [name for name, *_ in differing if found.pairs and name.rpartition(".")[0] not in layers]
    how = "in their order, as their names differ" if found.in_order else "by name"
    note(f"weights: {len(found.weights)} arrays are matched {how}, {len(differing)} of them differ")
    if loose:
        note(f"of those, in no layer of the table: {_some(loose)}")
    for path, names in zip((a.path, b.path), found.alone, strict=True):
        if names:
            note(f"only in {path}, or of another shape: {len(names)} arrays, {_some(names)}")
    if found.pairs:
        note(f"layers: {len(found.pairs)}, of which {sum(one.equal for one in found.pairs)} are equal in all bits")
    if found.agreed is not None:
        note(f"the largest score is that of the same class for {found.agreed:.0%} of the inputs")
    if found.same:
        note("the weights are equal" if found.units is None else f"the outputs agree: {_outputs(found.units)}")
        return 0
    first, at = found.first, ""
    if first is not None:
        at = f"; the activations part at {first.a} of A, {first.b} of B ({first.op})"
    if found.reason:
        error_line(f"the outputs cannot be compared: {found.reason}{at}")
    elif found.units is None:
        error_line("the weights differ")
    else:
        error_line(f"the outputs differ: {_outputs(found.units)}{at}")
    return 1


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _outputs(units: float) -> str:
    return f"{units:.3g} units of eps * S, where at most {room.TOGETHER:g} count as rounding"


def _layers(pair: room.Pair, first: room.Pair | None) -> tuple[str, ...]:
    offs = ["-" if off is None else f"{off:.1e}" if off else "equal" for off in (pair.weights, pair.units)]
    return pair.a or "-", pair.b or "-", pair.op, offs[0], offs[1] + " <- the first to part" * (pair is first)


def shares(findings: Sequence[Finding], column: Callable[[Finding], str]) -> dict[str, dict[str, float]]:
    """Return the largest error of each place as a share of its bound, by column and place."""
    every_op = len({f.place for f in findings}) > 1 and all(f.place == f.op for f in findings)
    table = room.nearest(findings, column, lambda finding: " ".join(_row(not every_op)(finding)))
    return {name: {place: finding.error.share for place, finding in row.items()} for name, row in table.items()}

"""`xcnn compare`."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from xcnn import compare as room
from xcnn import models, plots
from xcnn.cli._console import error_line, note, print_json, print_table
from xcnn.device import Device, device
from xcnn.device import devices as try_devices
from xcnn.errors import UsageError, unknown
from xcnn.ops._op import OPS

__all__ = ["compare"]


@dataclass(frozen=True)
class _Finding:
    """The error of one tensor: where (a layer or an op), what that is (its class, a sample), and on which device."""

    place: str
    what: str
    device: str
    error: room.Error

    def __str__(self) -> str:
        error = self.error
        return f"{self.place} ({self.what}) {error.tensor} on {self.device}: {_units(error)}, {error.ulp:.0f} ULP"


def compare(
    *,
    devices: str | None = None,
    op: str | None = None,
    model: str = "resnet20",
    dataset: str = "digits",
    data_dir: Path | None = None,
    batch_size: Annotated[int, Parameter(name=["--batch-size", "-b"])] = 8,
    steps: int = 10,
    dtype: str = "float32",
    plot: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run the same network, weights and batches on several devices; show errors, how far training parts, and speed.

    Errors are those of each layer by itself, against the same layer in a wider dtype, in units of |error| / (eps * S),
    S being the sum of the magnitudes that were added. Each has a bound; the exit code is 1 where one is exceeded.

    Parameters
    ----------
    devices
        what to compare, with commas between, such as cpu,torch,jax; everything that can be used here if left out.
    op
        compare an op over its sample inputs instead of a network; `all` for every op.
    model
        network by name; see `xcnn models`.
    dataset
        data set by name; see `xcnn datasets`.
    data_dir
        folder that holds the data set's files.
    batch_size
        images per step.
    steps
        training steps to follow and to time; 0 leaves both out.
    dtype
        float32 or float64.
    plot
        a PNG to draw the errors to.
    json
        print JSON lines on stdout: one per tensor, device and step, and a last one with the verdict.
    """
    if dtype not in room.WIDE:
        raise unknown("dtype", dtype, room.WIDE)
    if steps < 0:
        raise UsageError(f"steps must be 0 or more, got {steps}")
    opened = _open(devices, dtype)
    findings: list[_Finding] = []
    parted: dict[str, list[float]] = {}
    if op is not None:
        for name in _ops(op):
            note(f"{name} in {dtype} on {', '.join(one.name for one in opened)}")
            findings += _op_findings(name, opened, dtype, each_sample=op != "all")
        _report(findings, "op", json)
    else:
        found, classes = room.batches(dataset, model, batch_size, max(1, steps), data_dir)
        (x, y), *_ = found
        network = models.build(model, x.shape[1:], classes)
        note(f"{model} on {dataset}: images {x.shape}, {dtype}, on {', '.join(one.name for one in opened)}")
        errors = room.layer_errors(network, x, y, opened, dtype)
        findings += [_Finding(e.layer, e.kind, e.device, e.error) for e in errors]
        _report(findings, "layer", json)
        if steps:
            for one in opened:
                note(f"{steps} steps of training on {one.name}")
                parted[one.name] = room.distances(network, found, one, dtype)
            _report_steps(parted, room.PARTING[dtype], json)
            rows = {}
            for one in opened:
                note(f"speed of {one.name}")
                rows[one.name] = room.speed(one.name, model, x.shape[1:], classes, batch_size, steps, dtype)
            _report_speed(rows, json)
    if plot is not None:
        plots.comparison(_shares(findings), parted, plot, f"{op or f'{model} on {dataset}'} in {dtype}")
        note(f"picture: {plot}")
    return _verdict(findings, parted, room.PARTING[dtype], json)


def _open(names: str | None, dtype: str) -> list[Device]:
    """Open the devices that were asked for, or all that there are, and try the dtype on each."""
    if names is not None:
        opened = [device(name) for name in names.split(",") if name]
    else:
        opened = [found for found in try_devices().values() if isinstance(found, Device)]
    if not opened:
        raise UsageError(f"devices takes names with commas between, got {names!r}")
    for one in opened:
        one.asarray(np.zeros(1, dtype))
    return opened


def _ops(name: str) -> list[str]:
    if name == "all":
        return list(OPS)
    if name not in OPS:
        raise unknown("op", name, [*OPS, "all"])
    return [name]


def _op_findings(name: str, devices: Sequence[Device], dtype: str, each_sample: bool) -> Iterator[_Finding]:
    for one in devices:
        for number, error in room.op_errors(name, one, dtype):
            yield _Finding(name, f"sample {number}" if each_sample else "samples", one.name, error)


def _units(error: room.Error) -> str:
    return f"{error.units:.2f} units of at most {error.bound:.1f}"


def _worst(findings: Iterable[_Finding]) -> dict[tuple[str, str], dict[str, room.Error]]:
    """Give, by place and device, the error that takes the largest share of its budget."""
    table: dict[tuple[str, str], dict[str, room.Error]] = {}
    for f in findings:
        row = table.setdefault((f.place, f.what), {})
        if f.device not in row or f.error.share > row[f.device].share:
            row[f.device] = f.error
    return table


def _shares(findings: Iterable[_Finding]) -> dict[str, dict[str, float]]:
    """Give the share of the budget by device and place."""
    shares: dict[str, dict[str, float]] = {}
    for (place, what), row in _worst(findings).items():
        for name, error in row.items():
            shares.setdefault(name, {})[f"{place} {what}"] = error.share
    return shares


def _report(findings: Sequence[_Finding], place: str, as_json: bool) -> None:
    """Print every error, or a table of the worst of each place and device."""
    if as_json:
        for f in findings:
            where = {"kind": place, place: f.place, "what": f.what, "device": f.device}
            print_json(where | dataclasses.asdict(f.error) | {"within": f.error.within})
        return
    table = _worst(findings)
    names = list(dict.fromkeys(f.device for f in findings))
    rows = [(*key, *(_cell(row[name]) for name in names)) for key, row in table.items()]
    title = "largest error of each, in units of eps * S, of the most that it may be (and in ULP)"
    print_table(place, "", *names, rows=rows, title=title)


def _cell(error: room.Error) -> str:
    return f"{error.tensor} {error.units:.2f} of {error.bound:.1f} ({error.ulp:.0f})" + (
        "" if error.within else " OVER"
    )


def _report_steps(parted: dict[str, list[float]], bound: float, as_json: bool) -> None:
    """Print how far the weights are from the cpu run's after each step, or a table of a few."""
    if as_json:
        for name, distances in parted.items():
            for step, distance in enumerate(distances, 1):
                record = {"kind": "steps", "device": name, "step": step, "distance": distance, "bound": bound}
                print_json(record | {"within": distance <= bound})
        return
    last = len(next(iter(parted.values())))
    shown = sorted({step for step in (1, 2, 5, 10, 20, 50, 100) if step < last} | {last})
    rows = [(step, *(f"{distances[step - 1]:.1e}" for distances in parted.values())) for step in shown]
    title = f"\ndistance of the weights from the cpu run's, relative, after so many steps (at most {bound:g})"
    print_table("steps", *parted, rows=rows, right=" ".join(["steps", *parted]), title=title)


def _report_speed(speeds: dict[str, room.Speed], as_json: bool) -> None:
    if as_json:
        for name, speed in speeds.items():
            print_json({"kind": "speed", "device": name, **dataclasses.asdict(speed)})
        return
    columns = ("first step", "later steps", "images/s", "peak memory")
    rows = [
        (
            name,
            f"{1e3 * s.cold:.1f} ms",
            f"{1e3 * s.warm:.1f} ms",
            f"{s.images_per_second:,.0f}",
            "-" if s.memory is None else f"{s.memory / 2**20:.1f} MiB",
        )
        for name, s in speeds.items()
    ]
    title = (
        "\nspeed of a training step, each device in a process of its own; memory: the process's growth while training"
    )
    table = [(name, *cells) for name, *cells in rows]
    print_table("device", *columns, rows=table, right="step steps images/s memory", title=title)


def _verdict(findings: Sequence[_Finding], parted: dict[str, list[float]], bound: float, as_json: bool) -> int:
    """Say which budgets are exceeded, the worst first, and return the exit code."""
    over = [str(f) for f in sorted(findings, key=lambda f: -f.error.share) if not f.error.within]
    over += [
        f"weights on {name}: {max(distances):.1e} from the cpu run, at most {bound:g}"
        for name, distances in parted.items()
        if not max(distances) <= bound
    ]
    if as_json:
        print_json({"kind": "verdict", "within": not over, "exceeded": over})
    if over:
        error_line(f"over budget: {over[0]}" + (f" (and {len(over) - 1} more)" if len(over) > 1 else ""))
    return int(bool(over))

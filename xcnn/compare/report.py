"""Benchmarks read back from the JSON lines of `xcnn bench`, as one Markdown report: means, and every cell."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcnn.compare.bench import Result, Timing
from xcnn.compare.case import Case
from xcnn.compare.contestants import Contestant, refusal
from xcnn.compare.markdown import line
from xcnn.compare.sweep import BOUNDS, means, rivals, worst
from xcnn.errors import UsageError
from xcnn.models import draw, entry
from xcnn.models.grammar import number_of

__all__ = ["Record", "read", "report"]


@dataclass
class Record:
    """What the lines of several benchmarks hold.

    Attributes
    ----------
    results : a result per cell; of several measurements of a cell, the last counts.
    machines : the machines and versions, without their load.
    failed : cells that could not be measured, with the reasons.
    dropped : contestants that failed with the reasons, and in how many cells.
    """

    results: list[Result] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)


def read(files: Sequence[str]) -> Record:
    """Return what files with JSON lines of `xcnn bench` hold.

    Raises
    ------
    UsageError
        If a file cannot be read, or a line is not one of `xcnn bench`.
    """
    record, cells = Record(), dict[tuple[Any, ...], dict[Contestant, Timing]]()
    threads = 1
    for file in files:
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"report: cannot read {file}: {reason}", setting="report") from None
        for number, text in enumerate(lines, 1):
            try:
                found = json.loads(text)
                kind = found.pop("kind")
                if kind == "machine":
                    threads = found["threads"]
                    machine = {key: found[key] for key in ("cpu", "cores", "threads", "versions")}
                    record.machines += [machine] if machine not in record.machines else []
                elif kind == "speed":
                    key = found["model"], found["batch"], found["mode"], tuple(found["shape"]), threads
                    one, timing = _timing(found)
                    if one.name == "xcnn" and one in cells.get(key, {}):
                        cells[key] = {}  # measured again
                    cells.setdefault(key, {})[one] = timing
                elif kind == "failed":
                    record.failed[f"{found['model']}, batch {found['batch']}, {found['mode']}"] = found["reason"]
                elif kind == "dropped":
                    case = Case(found["model"], found["batch"], found["mode"], threads, images=tuple(found["shape"]))
                    if not refusal(_contestant(found), case):  # which is no failure
                        reason = found["reason"].rpartition(f" fails at {case}: ")[2]
                        record.dropped[str(_contestant(found)), reason] += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UsageError(f"report: {file}:{number} is not a line of bench --json", setting="report") from None
    for (model, batch, mode, shape, cores), timings in cells.items():
        ours = tuple(timing for one, timing in timings.items() if one.name == "xcnn")
        peers = tuple(timing for one, timing in timings.items() if one.name != "xcnn")
        case = Case(model, batch, mode, cores, images=shape)
        record.failed.pop(str(case), None)
        record.results.append(Result(case, ours, peers, 0, 0, {}))
    return record


def _contestant(found: dict[str, Any]) -> Contestant:
    name, variant, ranks = found["contestant"], found["variant"], found.get("ranks", 1)
    if name == "xcnn":
        return Contestant(name, variant, ranks=ranks)
    return Contestant(name, found["hardware"], variant, ranks)


def _timing(found: dict[str, Any]) -> tuple[Contestant, Timing]:
    one = _contestant(found)
    rounds = tuple(float(seconds) for seconds in found["rounds"])
    return one, Timing(one, int(found["batch"]), found["first"], rounds, found["memory"], found["waited"])


def report(record: Record) -> str:
    """Return Markdown with the machines, the means by mode and batch, and all cells with the lowest ratios first."""
    results = record.results
    tables = [_machines(record), *_means(results)]
    for mode in dict.fromkeys(result.case.mode for result in results):
        tables.append(_cells(mode, [result for result in results if result.case.mode == mode]))
    tables += [_networks(results)]
    rows = [(case, reason) for case, reason in record.failed.items()]
    tables += [_table(("not measured", "reason"), rows)]
    rows = [(f"{who} ({count} cells)", reason) for (who, reason), count in record.dropped.items()]
    return "\n\n".join(table for table in (*tables, _table(("left out", "reason"), rows)) if table)


def _machines(record: Record) -> str:
    return "\n".join(
        f"- {one['cpu'] or 'unknown processor'}, {one['threads']} of {one['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        for one in record.machines
    )


def _means(results: Sequence[Result]) -> list[str]:
    columns = ("step", "batch", "to", "cells", "geometric mean", "lowest", *(f"below {one:g}" for one in BOUNDS))
    found = means(results, by_batch=True)
    several = len({one.device for one in found}) > 1
    rows = [
        (
            f"{one.mode} on {one.device}" if several else one.mode,
            one.batch or "all",
            one.peer or "the fastest",
            str(one.cells),
            f"**{one.geometric_mean:.2f}**",
            f"{one.lowest:.2f}",
            *(f"{share:.0%}" for share in one.below.values()),
            "-" if one.memory is None else f"{one.memory:.2f}",
        )
        for one in found
    ]
    return [_table((*columns, "memory, ours to theirs"), rows, right=3)]


def _cells(mode: str, results: Sequence[Result]) -> str:
    """Return the table of the cells of a mode."""
    peers, named = rivals(results), [f"network, {mode}", "batch", "images/s"]
    compared = [*(f"to {peer}" for peer in peers), "fastest", "memory", "theirs"]
    alone = [(result, one, None) for result in results for one in result.ours if not result.best(one)]
    rows, count = [], sum(len(result.ours) for result in results)
    for result, timing, best in [*worst(results, count), *alone]:
        each = [result.best(timing, *names) for names in peers.values()]
        ratios = [f"{timing.ratio(one):.2f}" if one else "-" for one in each]
        ours, theirs = (
            f"{one.memory / 2**20:.1f} MiB" if one and one.memory is not None else "-" for one in (timing, best)
        )
        cells = [*ratios, str(best.contestant) if best else "-", ours, theirs] if peers else [ours]
        ranks = f", {timing.contestant.ranks} ranks" * (timing.contestant.ranks > 1)
        rows.append(
            (f"`{result.case.model}`{ranks}", str(result.case.batch), f"{timing.images_per_second:,.0f}", *cells)
        )
    return _table([*named, *(compared if peers else ["memory"])], rows, right=1)


def _networks(results: Sequence[Result]) -> str:
    """Return the table of the random networks."""
    rows = []
    for name in dict.fromkeys(result.case.model for result in results):
        if number := number_of(name):
            one, shape = draw(*number), entry(name).shape
            sizes = "x".join(map(str, shape))
            rows.append((f"`{name}`", one.summary, sizes, f"{one.multiply_adds / 1e6:.1f}"))
    return _table(("network", "what", "images", "million multiply-adds"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Return a table, or "" without rows; columns from number `right` on are aligned to the right."""
    if not rows:
        return ""
    marks = ["---" if right is None or i < right else "---:" for i in range(len(columns))]
    return "\n".join([line(columns), line(marks), *map(line, rows)])

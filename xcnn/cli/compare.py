"""`xcnn compare`."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from xcnn import compare as room
from xcnn import models, nn, plots
from xcnn._files import replacing
from xcnn.cli._comparison import Parting, report_errors, report_speed, report_steps, report_verdict, shares
from xcnn.cli._console import check_writable, note, use_threads
from xcnn.compare import Finding
from xcnn.compare.steps import Batches
from xcnn.devices import Device, device
from xcnn.devices import devices as try_devices
from xcnn.errors import UsageError, unknown
from xcnn.ops._op import OPS
from xcnn.threads import get_num_threads

__all__ = ["compare"]


def compare(
    *,
    devices: Annotated[str | None, Parameter(name=["--devices", "--device"])] = None,
    op: str | None = None,
    model: str = "resnet20",
    dataset: str = "digits",
    data_dir: Path | None = None,
    batch_size: Annotated[int, Parameter(name=["--batch-size", "-b"])] = 8,
    steps: int = 10,
    dtype: str = "float32",
    threads: int | None = None,
    plot: Path | None = None,
    markdown: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run the same network, weights and batches on several devices; show errors, how far training parts, and speed.

    The error is that of each layer by itself, against the same layer in a wider dtype, in units of |error| / (eps * S),
    where S is the sum of the magnitudes that were added. It measures rounding: it cannot find a wrong formula. If an
    error exceeds its bound, the exit code is 1.

    Parameters
    ----------
    devices
        devices to compare, separated by commas, such as cpu,torch,jax; by default all that can be used here.
    op
        compare an op over its sample inputs instead of a network: its name, package.module:name for your own op, or
        `all` for every op.
    model
        network by name; see `xcnn models`.
    dataset
        data set by name; see `xcnn datasets`.
    data_dir
        folder that holds the data set's files.
    batch_size
        images per step.
    steps
        training steps to follow and to time; 0 skips both.
    dtype
        float32, float64, or float32,float64.
    threads
        threads for the cpu; by default all cores that the process may use. No error or distance depends on it.
    plot
        PNG file for a picture of the errors.
    markdown
        Markdown file for the error and the budget of every tensor.
    json
        print JSON lines on stdout: one per tensor, device and step, and a last one with the verdict.
    """
    dtypes = _dtypes(dtype)
    use_threads(threads)
    for setting, value, least in (("steps", steps, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise UsageError(f"{setting} must be at least {least}, got {value}", setting=setting)
    if plot is not None:
        plots.check()
    check_writable(plot, markdown)
    opened = _open(devices, dtypes)
    parted: list[Parting] = []
    if op is not None:
        subject, command = "every op" if op == "all" else op, ["--op", op]
        findings = _compare_ops(_ops(op), opened, dtypes, json)
    else:
        subject, command = f"{model} on {dataset}", ["--model", model, "--dataset", dataset, "-b", str(batch_size)]
        found, classes = room.batches(dataset, model, batch_size, max(1, steps), data_dir)
        network = _Network(model, subject, models.build(model, found[0][0].shape[1:], classes), found, classes)
        findings, parted = _compare_network(network, steps, opened, dtypes, json)
    if plot is not None:
        column = _column(dtypes)
        distances = {column(p): p.distances for p in parted}
        plots.comparison(shares(findings, column), distances, plot, f"{subject} in {' and '.join(dtypes)}")
        note(f"picture: {plot}")
    if markdown is not None:
        names = devices or ",".join(one.name for one in opened)
        command = ["xcnn", "compare", *command, "--devices", names, "--dtype", dtype, "--markdown", str(markdown)]
        text = room.markdown(findings, opened, f"Error budgets: {subject}", shlex.join(command))
        with replacing(markdown) as temporary:
            temporary.write_text(text, "utf-8")
        note(f"table: {markdown}")
    return report_verdict(findings, parted, json)


def _dtypes(names: str) -> list[str]:
    for name in (found := names.split(",")):
        if name not in room.WIDE:
            raise unknown("dtype", name, room.WIDE)
    return list(dict.fromkeys(found))


def _open(names: str | None, dtypes: Sequence[str]) -> list[Device]:
    """Open the named devices, or all that can be used, and try the dtypes on each."""
    if names is not None:
        opened = [device(name) for name in names.split(",") if name]
    else:
        opened = [found for found in try_devices().values() if isinstance(found, Device)]
    if not opened:
        raise UsageError(f"devices takes names separated by commas, got {names!r}", setting="devices")
    for one in opened:
        for dtype in dtypes:
            one.asarray(np.zeros(1, dtype))
    return opened


def _ops(name: str) -> list[str]:
    if name == "all":
        return list(OPS)
    return [room.op_name(name)]


def _compare_ops(names: Sequence[str], opened: Sequence[Device], dtypes: Sequence[str], as_json: bool) -> list[Finding]:
    findings: list[Finding] = []
    for dtype in dtypes:
        found: list[Finding] = []
        for name in names:
            note(f"{name} in {dtype} on {_list(opened)}")
            found += [finding for one in opened for finding in room.op_errors(name, one, dtype)]
        report_errors(found, "op", "" if len(names) > 1 else "which", as_json)
        findings += found
    return findings


@dataclass(frozen=True)
class _Network:
    """The network to compare, and the batches on which it is trained."""

    name: str
    title: str
    model: nn.Module
    batches: Batches
    classes: int


def _compare_network(
    network: _Network, steps: int, opened: Sequence[Device], dtypes: Sequence[str], as_json: bool
) -> tuple[list[Finding], list[Parting]]:
    findings: list[Finding] = []
    parted: list[Parting] = []
    x, y = network.batches[0]
    for dtype in dtypes:
        note(f"{network.title}: images {x.shape}, {dtype}, on {_list(opened)}")
        found = list(room.layer_errors(network.model, x, y, opened, dtype))
        report_errors(found, "layer", "class", as_json)
        findings += found
        if not steps:
            continue
        apart, speeds = [], {}
        for one in opened:
            note(f"{steps} steps of training on {one.name}")
            apart.append(Parting(one.name, dtype, room.distances(network.model, network.batches, one, dtype)))
        report_steps(apart, as_json)
        parted += apart
        for one in opened:
            note(f"speed of {one.name}")
            _, c, h, w = x.shape
            case = room.Case(
                network.name, len(x), "train", get_num_threads(), images=(c, h, w), classes=network.classes, dtype=dtype
            )
            speeds[one.name] = room.speed(case, one.name, steps)
        report_speed(speeds, dtype, as_json)
    return findings, parted


def _list(opened: Sequence[Device]) -> str:
    return ", ".join(one.name for one in opened)


def _column(dtypes: Sequence[str]) -> Callable[[Finding | Parting], str]:
    """Return the function that names the column of a finding: its device, with the dtype if there are several."""
    return lambda one: one.device if len(dtypes) == 1 else f"{one.device} {one.dtype}"

"""`xcnn compare`."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from xcnn import compare as room
from xcnn import data, models, nn, plots
from xcnn._files import replacing
from xcnn.cli._comparison import (
    Parting,
    report_errors,
    report_files,
    report_speed,
    report_steps,
    report_verdict,
    shares,
)
from xcnn.cli._console import check_writable, note, split_names, use_threads
from xcnn.compare.steps import Batches
from xcnn.devices import Device, device
from xcnn.devices import devices as try_devices
from xcnn.errors import UsageError, unknown
from xcnn.ops._op import OPS
from xcnn.threads import get_num_threads

__all__ = ["LARGE", "compare"]

LARGE = 64
"""Networks of images with more pixels than this on a side are compared on two random images by default."""


def compare(
    *files: Path,
    devices: Annotated[str | None, Parameter(name=["--devices", "--device"])] = None,
    op: str | None = None,
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    dataset: Annotated[str | None, Parameter(show_default=False)] = None,
    data_dir: Path | None = None,
    batch_size: Annotated[int | None, Parameter(name=["--batch-size", "-b"], show_default=False)] = None,
    steps: Annotated[int | None, Parameter(show_default=False)] = None,
    dtype: Annotated[str | None, Parameter(show_default=False)] = None,
    threads: int | None = None,
    plot: Path | None = None,
    markdown: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Compare devices on the same network, weights and batches: errors, distances after training, speed; or two files.

    Each layer is compared by itself with the same layer in a wider dtype. Errors are in units of |error| / (eps * S),
    where S is the sum of the magnitudes that were added. They measure rounding and cannot reveal a wrong formula. If an
    error exceeds its bound, the exit code is 1. ONNX Runtime is compared in inference, layer by layer and as a whole.

    Two files, such as `xcnn compare model.onnx RUN`, are compared with each other: what they take and give, which
    weights differ, and the first layers whose activations part on the same input. The exit code is 1 if the outputs
    differ by more than rounding.

    Parameters
    ----------
    files
        two files to compare with each other: ONNX files, checkpoints, weights, or folders of runs.
    devices
        devices to compare, separated by commas, such as cpu,torch,jax,onnxruntime; by default all that can be used here
        but onnxruntime.
    op
        compare an op on its sample inputs instead of a network: its name, package.module:name for your own op, or
        `all` for every op.
    model
        network by name, by default resnet20; see `xcnn models`. For files, the network of plain weights.
    dataset
        data set by name, see `xcnn datasets`; or `random` for random images in the network's own shape, the default for
        files and for networks of images larger than 64 x 64. For others it is digits.
    data_dir
        folder that holds the data set's files.
    batch_size
        images per step; by default 8, or 2 if they are larger than 64 x 64.
    steps
        number of training steps to compare and to time, by default 10; 0 skips both.
    dtype
        float32, the default, float64, or float32,float64.
    threads
        number of threads for the cpu; by default all cores that the process may use. No error or distance depends on
        it.
    plot
        file for a picture, PNG or SVG by its suffix, of the errors.
    markdown
        Markdown file for the error and the budget of every tensor.
    json
        print JSON lines on stdout: one per tensor, device and step, and a last one with whether all are within bounds.
    """
    for setting, value, least in (("steps", steps, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise UsageError(f"{setting} must be at least {least}, got {value}", setting=setting)
    use_threads(threads)
    if files:
        others = {"devices": devices, "op": op, "steps": steps, "dtype": dtype, "plot": plot, "markdown": markdown}
        for setting, given in others.items():
            if given is not None:
                raise UsageError(f"{setting} has no meaning for two files", setting=setting)
        return _files(files, model, dataset, data_dir, batch_size, json)
    steps, dtype, model = 10 if steps is None else steps, "float32" if dtype is None else dtype, model or "resnet20"
    dtypes = split_names(dtype)
    for name in dtypes or [dtype]:
        if name not in room.WIDE:
            raise unknown("dtype", name, room.WIDE)
    shape = () if op is not None else models.entry(model).shape
    batch_size = batch_size or _count(shape)
    dataset = dataset or (room.RANDOM if _large(shape) else "digits")
    if plot is not None:
        plots.check(plot, "plot")
    check_writable(plot, markdown)
    opened = _open(devices, dtypes)
    able, runtimes = _split(opened)
    on = ", ".join(one.name for one in opened)
    findings: list[room.Finding] = []
    parted: list[Parting] = []
    if op is not None:
        subject, flags = "every op" if op == "all" else op, ["--op", op]
        names = list(OPS) if op == "all" else [room.op_name(op)]
        if runtimes:
            _leave_out(able, "compares networks")
        for name in dtypes:
            found = list(_op_errors(names, able, name, on))
            report_errors(found, "op", "" if len(names) > 1 else "which", json)
            findings += found
    else:
        subject, flags = f"{model} on {dataset}", ["--model", model, "--dataset", dataset, "-b", str(batch_size)]
        batches, classes = room.batches(dataset, model, batch_size, max(1, steps), data_dir)
        _, c, h, w = batches[0][0].shape
        network = models.build(model, (c, h, w), classes)
        batches = room.per_pixel(network, batches)
        x, y = batches[0]
        for name in dtypes:
            note(f"{subject}: images {x.shape}, {name}, on {on}")
            within = runtimes if name == "float32" else []
            if runtimes and not within:
                _leave_out(able, "computes in float32")
            found = list(room.layer_errors(network, x, y, able, name)) if able else []
            for one in within:
                found += room.inference_errors(network, x, one, note)
            found += room.network_errors(network, x, [*able, *within], name, note)
            if not found:
                raise UsageError(f"{room.RUNTIME} runs no layer of it; name another device, too", setting="devices")
            report_errors(found, "layer", "class", json)
            findings += found
            if steps and runtimes:
                note(f"{room.RUNTIME} is left out of the steps of training, as it only infers")
            if steps and able:
                threads = get_num_threads()
                case = room.Case(
                    model, len(x), "train", threads, images=(c, h, w), classes=classes, pixels=y.shape[1:], dtype=name
                )
                parted += _train(network, batches, case, steps, able, json)
    if plot is not None:

        def column(one: room.Finding | Parting) -> str:
            return one.device if len(dtypes) == 1 else f"{one.device} {one.dtype}"

        distances = {column(one): one.distances for one in parted}
        plots.comparison(shares(findings, column), distances, plot, f"{subject} in {' and '.join(dtypes)}")
        note(f"picture: {plot}")
    if markdown is not None:
        names = [devices or ",".join(one.name for one in opened)]
        command = ["xcnn", "compare", *flags, "--devices", *names, "--dtype", dtype, "--markdown", str(markdown)]
        text = room.markdown(findings, opened, f"Error budgets: {subject}", shlex.join(command))
        with replacing(markdown) as temporary:
            temporary.write_text(text, "utf-8")
        note(f"table: {markdown}")
    return report_verdict(findings, parted, json)


def _large(shape: Sequence[int]) -> bool:
    return max(shape, default=0) > LARGE


def _count(shape: Sequence[int]) -> int:
    """Return how many inputs of a shape are compared by default."""
    return 2 if _large(shape) else 8


def _files(
    files: Sequence[Path],
    model: str | None,
    dataset: str | None,
    data_dir: Path | None,
    count: int | None,
    as_json: bool,
) -> int:
    """Compare two files on test images, or on random numbers from 0 to 1."""
    if len(files) != 2:
        raise UsageError(f"compare takes two files, got {len(files)}")
    a, b = (room.open_file(path, model) for path in files)
    shape, x = a.shape or b.shape, None
    count = count or _count(shape)
    if dataset not in (None, room.RANDOM):
        x = data.to_float(data.load(dataset, data_dir)[1].x[:count])
    elif shape:
        x = np.random.default_rng(0).random((count, *shape), np.float32)
    if x is None and a.network is not None and b.network is not None:
        raise UsageError("the files do not state the shape of an input; name a data set", setting="dataset")
    return report_files(a, b, room.compare_files(a, b, x), as_json)


def _open(names: str | None, dtypes: Sequence[str]) -> list[Device | room.Runtime]:
    """Open the named devices, or all that can be used, and try the dtypes on each."""
    opened: list[Device | room.Runtime]
    if names is not None:
        opened = [room.Runtime() if name == room.RUNTIME else device(name) for name in split_names(names)]
    else:
        opened = [found for found in try_devices().values() if isinstance(found, Device)]
    if not opened:
        raise UsageError(f"devices takes names separated by commas, got {names!r}", setting="devices")
    for one in opened:
        for dtype in dtypes:
            if isinstance(one, Device):
                one.asarray(np.zeros(1, dtype))
    return opened


def _split(opened: Sequence[Device | room.Runtime]) -> tuple[list[Device], list[room.Runtime]]:
    """Return the devices, which train, and the others."""
    able = [one for one in opened if isinstance(one, Device)]
    return able, [one for one in opened if isinstance(one, room.Runtime)]


def _leave_out(able: Sequence[Device], what: str) -> None:
    """Say that ONNX Runtime is left out as it does something else; that is an error if nothing else is left."""
    if not able:
        raise UsageError(f"{room.RUNTIME} {what} only; name another device, too", setting="devices")
    note(f"{room.RUNTIME} is left out, as it {what} only")


def _op_errors(names: Sequence[str], opened: Sequence[Device], dtype: str, on: str) -> Iterator[room.Finding]:
    for name in names:
        note(f"{name} in {dtype} on {on}")
        for one in opened:
            yield from room.op_errors(name, one, dtype)


def _train(
    network: nn.Module, batches: Batches, case: room.Case, steps: int, opened: Sequence[Device], as_json: bool
) -> list[Parting]:
    """Report how far the weights are apart after each step on each device, and the speed of a step."""
    parted, speeds = [], {}
    for one in opened:
        note(f"{steps} steps of training on {one.name}")
        parted.append(Parting(one.name, case.dtype, room.distances(network, batches, one, case.dtype)))
    report_steps(parted, as_json)
    for one in opened:
        note(f"speed of {one.name}")
        speeds[one.name] = room.speed(case, one.name, steps)
    report_speed(speeds, case.dtype, as_json)
    return parted

"""`xcnn bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn import compare as room
from xcnn import plots
from xcnn._check import choice, integer
from xcnn.cli._console import check_writable, note, print_json, print_line, split_names
from xcnn.cli._speed import (
    DISTURBED,
    lost,
    print_growths,
    print_lines,
    print_machine,
    print_means,
    print_profile,
    print_results,
    print_worst,
    timings,
)
from xcnn.devices import device
from xcnn.errors import UsageError
from xcnn.models import build, draw, drawn_name, sketch
from xcnn.threads import get_num_threads

__all__ = ["KEPT", "WORST", "bench"]

KEPT = 2**30
"""The most bytes that a drawn network may keep for its backward pass; larger batches are halved."""

WORST = 10
"""The number of cells with the lowest ratios that are printed after random networks."""

_MODELS = "report,lenet5,mnist_cnn,vgg_small"


def bench(
    *,
    models: str = _MODELS,
    random: int | None = None,
    seed: int = 0,
    only: Annotated[str | None, Parameter(show_default=False)] = None,
    show: Annotated[bool, Parameter(negative=())] = False,
    batch_sizes: Annotated[str, Parameter(name=["--batch-sizes", "-b"])] = "1,64,256",
    sizes: Annotated[str, Parameter(show_default=False)] = "",
    mode: str = "train",
    devices: Annotated[str, Parameter(name=["--devices", "--device"])] = "cpu",
    against: Annotated[str, Parameter(show_default=False)] = "",
    ways: Annotated[str, Parameter(show_default=False)] = "",
    ranks: Annotated[str, Parameter(show_default=False)] = "1",
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 0.4,
    busy: int = 0,
    profile: Annotated[bool, Parameter(negative=())] = False,
    report: Annotated[str | None, Parameter(show_default=False)] = None,
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
        networks, separated by commas; see `xcnn models`. `random-S-I` is the network number I of the seed S; see
        `--random`.
    random
        measure this number of random networks in place of `--models`: plain ones, and such as VGG, ResNet, MobileNet,
        ConvNeXt, DenseNet, Inception and U-Net, for signals, images and volumes. Batches that take too much memory are
        halved. A network that cannot be measured is reported, and the others go on.
    seed
        seed of the random networks; the same seed gives the same networks.
    only
        numbers of the random networks to measure, such as 7 or 0-9,15; by default all. A long measurement can be done
        in parts.
    show
        print the random networks instead of measuring them.
    batch_sizes
        images per step, separated by commas.
    sizes
        sizes of square images, separated by commas; by default that of each network.
    mode
        train (including the update of the weights), infer, or both.
    devices
        devices for xcnn, separated by commas; see `xcnn devices`.
    against
        libraries to compare with, separated by commas: torch, torch-compile (`torch.compile` on the CPU; the first step
        compiles, for a minute or more), jax (on the CPU only), onnxruntime (on the CPU, inference
        only).
    ways
        ways in which those libraries run, separated by commas; by default all. `--ways NCHW,channels_last` leaves out
        compiled PyTorch networks on a GPU, which take minutes to compile.
    ranks
        numbers of processes that train together, separated by commas, such as 1,2: each computes its part of the batch
        (`mpiexec` starts them; needs mpi4py). torch is then its `DistributedDataParallel` over gloo, in as many
        processes. Shows the time of a step, the efficiency beside the first number of ranks for the same batch, the
        share of the time spent waiting for other ranks, and that of communication that is hidden behind computation.
    threads
        threads for each process; by default all cores that this one may use, divided among the ranks.
    rounds
        number of turns of each contestant.
    seconds
        approximate length of a turn.
    busy
        give each contestant a second turn in each round, while other processes keep this number of cores busy, and
        show which share of its speed it keeps.
    profile
        show the time of each layer, with those that run as one with it, in xcnn and the libraries in `--against` that
        can run it alone, torch and onnxruntime, and where time is lost. With `--random` and `--against`, only in the
        worst cells.
    report
        files with the JSON lines of earlier measurements, separated by commas, such as those of a long one in parts.
        Nothing is measured: the Markdown tables of all their cells and means are printed.
    plot
        file for a picture, PNG or SVG by its suffix, of the speeds.
    json
        print JSON lines on stdout: one for the machine, one per contestant and case, then the mean ratios and the
        growth of the cost with batches and images.
    """
    if report is not None:
        if not (files := split_names(report)):
            raise UsageError(f"report takes files separated by commas, got {report!r}", setting="report")
        text = room.report(room.read(files))
        if not text:
            raise UsageError(f"report: there is no line of bench --json in {report}", setting="report")
        for line in text.splitlines():
            print_line(line)
        return 0
    several = _numbers("ranks", ranks)
    peers, ours = split_names(against), [device(name).name for name in split_names(devices)]
    modes = room.MODES if choice("", "mode", mode, (*room.MODES, "both")) == "both" else (mode,)
    counts = _numbers("batch_sizes", batch_sizes)
    named: dict[str, tuple[str, Sequence[object]]] = {
        "batch_sizes": (batch_sizes, counts),
        "ranks": (ranks, several),
        "models": (models, split_names(models)),
        "devices": (devices, ours),
        "against": (against, peers),
        "ways": (ways, split_names(ways)),
    }
    for setting, (given, found) in named.items():
        if not found and (given or setting not in ("against", "ways")):  # which may be left out
            raise UsageError(f"{setting} takes values separated by commas, got {given!r}", setting=setting)
    for one in several:
        integer("bench", "ranks", one)
    if max(several) > 1 and mode != "train":
        raise UsageError("several ranks train together; pass mode train", setting="mode")
    if max(several) > max(1, min(counts)):
        need = f"{max(several)} ranks need a batch of as many images or more, got {min(counts)}"
        raise UsageError(need, setting="batch_sizes")
    threads = max(1, get_num_threads() // max(several)) if threads is None else threads
    edges: list[int | None] = [*_numbers("sizes", sizes)] or [None]
    if random is not None and models != _MODELS:
        raise UsageError("models and random networks cannot be measured together; pass one of both", setting="models")
    drawn = _drawn(random, seed, only)
    if show:
        return _show(seed, drawn, json)
    cases = [
        room.Case(model, batch, one, threads, size=edge)
        for one in modes
        for model in ([drawn_name(seed, index) for index in drawn] if random else split_names(models))
        for batch in counts
        for edge in edges
    ]
    contestants = room.contestants(ours, peers, split_names(ways), several)
    if random:
        cases = list(dict.fromkeys(case.capped(KEPT) for case in cases))
    if plot is not None:
        plots.check(plot, "plot")
    check_writable(plot)
    running = room.bench(cases, contestants, rounds, seconds, goes_on=random is not None, cores=busy)
    cores = f"{threads} thread{'s' * (threads > 1)}{' per rank' * (max(several) > 1)}"
    print_machine(
        room.machine([one.package[0] for one in contestants if one.name in peers]),
        room.describe(ours),
        cores,
        threads,
        json,
    )
    results: list[room.Result] = []
    failed: list[room.Failed] = []
    told: set[room.Dropped] = set()
    try:
        for number, case in enumerate(cases, 1):
            note(f"{case} ({number} of {len(cases)})")
            result = next(running)
            if isinstance(result, room.Failed):
                failed.append(result)
                note(f"{case} is left out: {result.reason}")
                if json:
                    cell = {"model": case.model, "batch": case.batch, "mode": case.mode}
                    print_json({"kind": "failed", **cell, "reason": result.reason})
                continue
            results.append(result)
            for dropped in result.dropped:
                if dropped not in told:
                    note(f"{dropped.contestant} is left out: {dropped.reason}")
            told.update(result.dropped)
            waited = [f"{one.contestant} {lost(one):.0%}" for one in timings(result) if lost(one) > DISTURBED]
            if waited:
                note(f"other programs use the cores; time spent waiting for one: {', '.join(waited)}")
            if json:
                print_lines(result)
    finally:  # also of an interrupted measurement
        _print_tables(results, modes, json, random is not None)
    if profile:
        shown = [(result, one) for result in results for one in result.ours if one.contestant.ranks == 1]
        for result, timing in [one[:2] for one in room.worst(results, WORST)] if random and peers else shown:
            note(f"{result.case}: part by part")
            best = [result.best(timing, peer) for peer in peers]
            entered = [timing.contestant, *(one.contestant for one in best if one)]
            print_profile(result.case, room.profile(result.case, entered, rounds, seconds), json)
    if plot is not None:
        rows = {
            str(result.case): {str(one.contestant): (one.images_per_second, *one.quartiles) for one in timings(result)}
            for result in results
        }
        note(f"picture: {plots.speeds(rows, plot, cores)}")
    return int(bool(failed))


def _print_tables(results: Sequence[room.Result], modes: Sequence[str], as_json: bool, random: bool) -> None:
    """Print what is known of all finished cases, unless it is printed already: as JSON, only the means and growths."""
    for mode in modes:
        chosen = [result for result in results if result.case.mode == mode]
        if not as_json and chosen:
            print_results(mode, chosen)
        print_means(chosen, as_json)
        if not random:
            print_growths(chosen, as_json)
    if random and not as_json:
        print_worst(results, WORST)


def _drawn(random: int | None, seed: int, only: str | None) -> list[int]:
    """Return the numbers of the random networks to measure."""
    if random is None:
        for setting, given, does in (("only", only, "selects"), ("seed", seed or None, "draws")):
            if given is not None:
                kind = f"{setting} {does} random networks"
                raise UsageError(f"{kind}; pass --random, the number of networks", setting=setting)
        return []
    integer("bench", "random", random)
    integer("bench", "seed", seed, 0)
    found: list[int] = []
    for part in (f"0-{random - 1}" if only is None else only).split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise UsageError(f"only takes numbers and ranges separated by commas, got {only!r}", setting="only")
        if not int(first) <= int(last or first) < random:
            kind = "numbers and rising ranges"
            raise UsageError(f"only takes {kind} below {random}, the number of networks, got {only!r}", setting="only")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def _show(seed: int, indices: Sequence[int], as_json: bool) -> int:
    """Print random networks."""
    if not indices:
        raise UsageError("show prints random networks; pass --random, the number of networks", setting="show")
    for index in indices:
        name, drawn = drawn_name(seed, index), draw(seed, index)
        network = build(name, seed=None)
        parameters = sum(parameter.data.size for parameter in network.parameters())
        if as_json:
            facts = {"shape": drawn.shape, "classes": drawn.classes, "parameters": parameters}
            work = {"multiply_adds": drawn.multiply_adds, "summary": drawn.summary, "layers": sketch(network)}
            print_json({"model": name, **facts, **work})
            continue
        sizes = f"{'x'.join(map(str, drawn.shape))} to {drawn.classes}"
        work_text = f"{parameters:,} parameters, {drawn.multiply_adds / 1e6:.2f} million multiply-adds"
        print_line(f"{name}: {drawn.summary}; {sizes}; {work_text}")
        print_line(f"    {sketch(network)}")
    return 0


def _numbers(setting: str, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(map(int, text.split(",")))) if text else []
    except ValueError:
        raise UsageError(f"{setting} takes integers separated by commas, got {text!r}", setting=setting) from None

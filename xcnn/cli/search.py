"""`xcnn search`."""

import shlex
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xcnn import plots
from xcnn.cli._console import Bar, in_flags, note, percent, print_json, print_line, print_table, program, use_threads
from xcnn.cli.train import Flags, given
from xcnn.errors import UsageError, XcnnError
from xcnn.runs import Config, Reporter, Search, Trial
from xcnn.runs import search as run_search
from xcnn.training import Metrics, Trainer
from xcnn.training.terminal import duration

__all__ = ["search"]

_PICTURE = "search.png"

_SHOWN = 10
"""The number of the best trials in the table."""


def search(
    flags: Flags | None = None,  # type: ignore[valid-type]
    *,
    vary: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    trials: int = 30,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    prune: Annotated[bool, Parameter(negative="--no-prune", show_default=False)] = True,
    config: Path | None = None,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Search for good settings: train with many, chosen by Optuna from the results so far, and test the best.

    The trials are compared by the best --monitor on held-out images. The test images are read once, for the best trial.
    A search that was interrupted goes on when the same command is started again, or one with more --trials. Several
    processes may run the same command at once: they share the trials; give each its part of the --threads.

    Parameters
    ----------
    vary
        a setting and its values, such as lr=1e-4..1e-1:log, batch_size=32,64,128 or model_options.filters=4..32; `+`
        joins several names, as in augment=none,shift,shift+rotate. For several settings, repeat the flag.
    trials
        number of trials in all.
    out
        folder of the search: a folder per trial, a table (trials.csv) and a picture (search.png).
    prune
        end a trial after an epoch in which it is worse than the median of the others; the default.
    config
        file with the settings that are not given here: JSON, such as the `config.json` of a run, or TOML.
    threads
        number of threads; by default all cores that the process may use. No result depends on it.
    json
        print JSON lines on stdout, one per trial and a last one with the best.
    """
    settings = given(flags)
    if out is None:
        raise UsageError("out is missing: a search needs a folder, from which it can go on", setting="out")
    if not vary:
        raise UsageError("vary is missing: name a setting and its values, such as lr=1e-4..1e-1:log", setting="vary")
    use_threads(threads)
    report = _Report(trials, settings)
    found = run_search(settings, vary, trials, out, [report], prune=prune, watch=report.watch)
    _draw(found, settings)
    useless = not found.interrupted and found.best is None
    if found.interrupted:
        ended = sum(one.ended for one in found.trials)
        note(f"interrupted after {ended} of {trials} trials; the same command goes on with them")
    if json:
        for one in found.trials:
            print_json(_record(one, found.monitor))
        best = found.best
        tested = {} if best is None else {**_record(best, found.monitor), "folder": str(best.folder)}
        print_json({"best": None if best is None else best.number, **tested})
    elif not useless:
        _print(found, settings)
    if useless:
        raise XcnnError(f"none of the {len(found.trials)} trials is complete; the reasons are in {out / 'trials.csv'}")
    return found.interrupted


class _Report(Reporter):
    """A line for each trial on stderr, and on a terminal a bar for its epochs."""

    shows_progress = True

    def __init__(self, trials: int, settings: Config) -> None:
        self.trials, self.settings, self.bar = trials, settings, Bar()
        self.told: set[str] = set()
        self.name, self.epochs = "", 0
        self.batches: int | None = None

    def watch(self, trial: Trial) -> None:
        """Remember a trial that begins; print the line of one that has ended."""
        self.name = f"trial {trial.number}"
        self.bar.stop()
        if trial.ended:
            note(f"{self.name:<{len(f'trial {self.trials}')}}  {_line(trial, self.settings.monitor)}")

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Remember how long the bar is."""
        self.batches, self.epochs = batches, epochs

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Move the bar."""
        self.bar.batch(f"{self.name}, epoch {epoch}/{self.epochs}", batch, self.batches, metrics)

    def on_note(self, message: str) -> None:
        """Print a note, once."""
        if message not in self.told:
            self.told.add(message)
            note(in_flags(message))

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """Show the bar of a download."""
        self.bar(file, done, total)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Hide the bar."""
        self.bar.stop()


def _value(monitor: str, value: float | None) -> str:
    if value is None:
        return "-"
    return percent(value) if monitor.endswith("accuracy") else f"{value:.4f}"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(trial: Trial, monitor: str) -> str:
    """Return what a trial has reached, and with which values."""
    values = "  ".join(f"{name} {_shown(value)}" for name, value in trial.values.items())
    if trial.state == "failed":
        return f"failed  {values}  {in_flags(trial.note)}"
    reached = f"{monitor.replace('_', ' ')} {_value(monitor, trial.value)} in epoch {trial.epoch}"
    ended = f"pruned after epoch {trial.epochs}" if trial.state == "pruned" else ""
    return "  ".join(filter(None, (reached, values, duration(trial.seconds), ended)))


def _record(trial: Trial, monitor: str) -> dict[str, Any]:
    """Return the fields of a trial for JSON."""
    tested = {name: getattr(trial, name) for name in ("test_loss", "test_accuracy")}
    names = ("epoch", "epochs", "seconds", "note")
    record = {"trial": trial.number, "state": trial.state, monitor: trial.value, "values": trial.values}
    record |= {name: getattr(trial, name) for name in names}
    return record | (tested if trial.test_loss is not None else {})


def _print(found: Search, settings: Config) -> None:
    """Print the best trials, and the best of them."""
    monitor, names = found.monitor, [variable.name for variable in found.variables]
    counts = {state: found.count(state) for state in ("complete", "pruned", "failed", "running", "interrupted")}
    title = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    rows = [
        (
            one.number,
            _value(monitor, one.value),
            one.epoch,
            *(_shown(one.values[name]) for name in names),
            duration(one.seconds),
        )
        for one in found.ranking[:_SHOWN]
    ]
    best, title = found.best, f"{settings.title}: {title}"
    if best is None:
        print_line(title)
        return
    columns = ("trial", monitor.replace("_", " "), "epoch", *names, "time")
    print_table(*columns, rows=rows, right=("trial", columns[1], "epoch", "time"), title=title)
    table = [("folder", f"{best.folder}/")]
    if best.test_accuracy is not None:
        table = [("test accuracy", percent(best.test_accuracy)), ("test loss", f"{best.test_loss:.4f}"), *table]
    print_table("best", f"trial {best.number}", rows=table, fold=False, gap=True)
    note(f"next: {program()} predict {shlex.quote(str(best.folder))} --index 0")


def _draw(found: Search, settings: Config) -> None:
    """Draw the picture, if Matplotlib is installed and there is something to see."""
    if not any(one.value is not None for one in found.trials):
        return
    try:
        plots.search(found, found.folder / _PICTURE, f"{settings.title}: {len(found.trials)} trials")
    except plots.NoMatplotlibError as error:
        note(f"no picture: {error}")

"""What the commands share: two consoles, JSON lines, the progress of a training run, and `--threads`."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xcnn.errors import UsageError, printable
from xcnn.runs import Reporter
from xcnn.threads import set_num_threads
from xcnn.training import Metrics, Trainer, clock

__all__ = [
    "Bar",
    "EpochReport",
    "announce_compiling",
    "check_writable",
    "error_line",
    "note",
    "percent",
    "print_json",
    "print_table",
    "stderr",
    "stdout",
    "use_threads",
]

# Rich honours NO_COLOR and plain pipes by itself; the width keeps piped tables from folding.
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True, highlight=False)

_UNLIMITED = 10_000


def error_line(message: str) -> None:
    """Print an error on stderr, on one line however long."""
    stderr.print("[bold red]error:[/] ", end="")
    stderr.print(message, markup=False, soft_wrap=True)


def use_threads(threads: int | None) -> None:
    """Do what `--threads` says; None leaves kernels all the cores that the process may use."""
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        set_num_threads(threads)


def announce_compiling() -> None:
    """Say why nothing moves for a while."""
    note("compiling kernels for this processor, once (up to a minute; it does not count as training)")


def check_writable(*files: Path | None) -> None:
    """Refuse files that cannot be written, before anything is computed; None is passed over."""
    for file in files:
        if file is None:
            continue
        folder = file.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"cannot write {file}: there is no folder {file.parent}")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {file}: {file.parent} is read-only")


def note(message: str) -> None:
    """Print a remark on stderr; what it quotes may come from a file."""
    stderr.print(printable(message), markup=False, soft_wrap=True)


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON line on stdout, at once; what JSON cannot hold (NaN) becomes null."""
    print(json.dumps(_json(record)), flush=True)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    *columns: str, rows: list[tuple[Any, ...]], right: str = "", title: str | None = None, fold: bool = True
) -> None:
    """Print a table on stdout; `right` names the columns that are numbers, `fold` lets the others break their cells."""
    if title is not None:
        stdout.print(title, markup=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in right.split()
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric or not fold, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    # What must not break is left to the terminal to fold: better than columns of no width.
    (stdout if fold else Console(file=stdout.file, highlight=False, width=_UNLIMITED)).print(table)


def percent(share: float | None) -> str:
    """Format an accuracy."""
    return "-" if share is None else f"{share:.2%}"


class Bar:
    """A progress bar on stderr over one thing after another, each gone when it is done; also takes downloads."""

    def __init__(self) -> None:
        self.progress, self.name = _bar(), ""

    def __call__(self, name: str, done: int, total: int | None, figures: str = "") -> None:
        """Move the bar of `name`, opened at the first call, to `done` of `total`."""
        if name != self.name:
            self.progress.stop()
            self.progress, self.name, self.started = _bar(), name, time.perf_counter()
            self.task = self.progress.add_task(name, total=total, figures="")
            self.progress.start()
        self.progress.update(self.task, completed=done, figures=figures)
        if total is not None and done >= total:
            self.progress.stop()

    def test(self, images: int, metrics: Metrics) -> None:
        """Move the bar of a test to what `metrics` has seen of `images`."""
        rate = metrics.images / max(time.perf_counter() - self.started, 1e-9) if self.name == "test" else 0.0
        self("test", metrics.images, images, _figures(metrics, rate))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
        console=stderr,
        transient=True,
        expand=True,
        disable=not stderr.is_terminal,
    )


def _figures(metrics: Metrics, rate: float) -> str:
    return f"loss {metrics.loss:.4f}  acc {percent(metrics.accuracy)}  {rate:,.0f} img/s"


class EpochReport(Reporter):
    """A progress bar on stderr while an epoch runs, and a line, or a JSON object on stdout, when it ends."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.progress = _bar()
        self.bar = Bar()

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Open the bar."""
        self.batches, self.epochs = batches, epochs
        self.seen: int | None = None
        self.task = self.progress.add_task("", total=batches, figures="")
        self.progress.start()

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Move the bar."""
        if self.progress.disable:
            return
        if self.seen is None:  # the first batch here, maybe not of the epoch
            self.seen, self.started = metrics.images, clock()
        rate = (metrics.images - self.seen) / max(clock() - self.started, 1e-9)
        name = f"epoch {epoch}/{self.epochs}"
        self.progress.update(self.task, description=name, completed=batch, figures=_figures(metrics, rate))

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Report the epoch and start the bar again."""
        if self.as_json:
            with contextlib.suppress(BrokenPipeError):  # the reader left; the training is still wanted
                print_json(record)
        held_out = record["val_loss"] is not None
        validated = f"  val {record['val_loss']:.4f} {percent(record['val_accuracy']):>7}" if held_out else ""
        self.progress.console.print(
            f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
            f"  loss {record['train_loss']:.4f} acc {percent(record['train_accuracy']):>7}{validated}"
            f"  {record['seconds']:.1f} s  {record['images_per_second']:,.0f} images/s",
            soft_wrap=True,
        )
        self.seen = None
        self.progress.reset(self.task, total=self.batches)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Remove the bar."""
        self.progress.stop()

    def on_test_batch(self, trainer: Trainer, images: int, metrics: Metrics) -> None:
        """Show the bar of the test."""
        self.bar.test(images, metrics)

    def on_note(self, message: str) -> None:
        """Print the note."""
        note(message)

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """Show the bar of a download."""
        self.bar(file, done, total)

"""What the commands share: the terminal, JSON lines, tables, progress bars, and checks of common flags.

Commands print only through the functions here. Names of files, classes and layers may be untrusted, so all text
is escaped here and nowhere else.
"""

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xcnn.errors import UsageError, XcnnError, printable
from xcnn.runs import Reporter
from xcnn.threads import set_num_threads
from xcnn.training import Metrics, Trainer, clock

__all__ = [
    "Bar",
    "EpochReport",
    "OutputError",
    "check_writable",
    "error_line",
    "help_console",
    "leave_terminal",
    "note",
    "percent",
    "print_json",
    "print_line",
    "print_table",
    "split_names",
    "use_threads",
]

_UNFOLDED, _LEAST, _PIPED = 10_000, 30, 200
"""Widths in characters: of tables without folding, of the narrowest help (Rich takes minutes for width 1), of pipes."""


class OutputError(XcnnError):
    """Results cannot be written to stdout.

    The exit code is 141 if the reader has exited, as for a program ended by SIGPIPE, otherwise 1.
    """

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(f"cannot write to stdout: {reason}")
        self.reader_left = isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE
        self.exit_code = 141 if self.reader_left else 1


class _Stream:
    """`sys.stdout` or `sys.stderr`, looked up at each write. Characters that its encoding lacks become escapes.

    Progress that cannot be written to stderr is dropped, so a lost terminal does not end a run. Results that cannot
    be written to stdout raise an `OutputError`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> int:
        try:
            encoding = getattr(self, "encoding", None) or "utf-8"
            getattr(sys, self.name).write(text.encode(encoding, "backslashreplace").decode(encoding))
            getattr(sys, self.name).flush()
        except (OSError, ValueError, AttributeError) as error:  # broken, closed, or never open
            if self.name == "stdout":
                raise OutputError(error) from None
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self.name), name)


def _console(name: str, width: int | None = None) -> Console:
    return Console(file=cast(IO[str], _Stream(name)), highlight=False, width=width)


# Rich writes no escapes to pipes, and no colours if NO_COLOR is set, which does not affect bold text.
_stderr = _console("stderr")
help_console = _console("stdout", max(_LEAST, _console("stdout").width))


def leave_terminal() -> None:
    """Show the cursor, which a progress bar hides and an error may leave hidden."""
    _stderr.show_cursor()


def error_line(message: str) -> None:
    """Print an error on stderr."""
    _stderr.print(Text.assemble(("error:", "bold red"), " ", printable(message)), soft_wrap=True)


def note(message: str) -> None:
    """Print a message on stderr."""
    _stderr.print(Text(printable(message)), soft_wrap=True)


def print_line(text: str, gap: bool = False) -> None:
    """Print a line on stdout, after an empty line if `gap`."""
    _print("\n" * gap + printable(text))


def print_json(record: dict[str, Any]) -> None:
    """Print a record as a line of JSON on stdout. Numbers that are not finite become null."""
    _print(json.dumps(_json(record)))


def _print(text: str) -> None:
    """Write lines on stdout, over the progress bar if it is on the same terminal; it is drawn again below them."""
    # In one write, as the thread that draws the bar may run between two.
    erase = "\r\x1b[2K" if help_console.is_terminal and _stderr.is_terminal and not _stderr.is_dumb_terminal else ""
    _Stream("stdout").write(f"{erase}{text}\n")


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    *columns: str,
    rows: list[tuple[Any, ...]],
    right: Collection[str] = (),
    title: str = "",
    gap: bool = False,
    fold: bool = True,
) -> None:
    """Print a table on stdout, below its title if it has one.

    Parameters
    ----------
    columns : names of the columns.
    rows : the cells, one per column in each row.
    right : names of the columns that are aligned to the right.
    title : title of the table.
    gap : whether to print an empty line first.
    fold : whether a cell that is too wide for the terminal takes several lines. If not, the terminal wraps the row.
    """
    if title or gap:
        print_line(title, gap=gap and bool(title))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in right
        justify, head = ("right" if numeric else "left"), Text(printable(column))
        table.add_column(head, justify=justify, no_wrap=numeric or not fold, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console = _console("stdout", _UNFOLDED if not fold else None if help_console.is_terminal else _PIPED)
    with console.capture() as drawn:
        console.print(table)
    _print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def use_threads(threads: int | None) -> None:
    """Set the number of threads to `--threads`, if it is given."""
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", setting="threads")
        set_num_threads(threads)


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list, each once."""
    return list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def check_writable(*files: Path | None) -> None:
    """Raise a UsageError if a file cannot be written, before anything is computed. None is skipped."""
    for file in filter(None, files):
        folder = file.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"cannot write {file}: there is no folder {file.parent}")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {file}: {file.parent} is read-only")


def percent(share: float | None) -> str:
    """Return an accuracy as a percentage."""
    return "-" if share is None else f"{share:.2%}"


class Bar:
    """A progress bar on stderr for one task after another, such as a download; it is hidden between them."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=_stderr,
            transient=True,
            expand=True,
            disable=not _stderr.is_terminal,
            redirect_stdout=False,  # results must reach stdout while a bar is shown
            redirect_stderr=False,
        )

    def __call__(self, name: str, done: int, total: int | None, figures: str = "") -> None:
        """Show `done` of `total` for the task `name`, with figures beside the bar; hide the bar at the end."""
        if name != self.name:
            self.stop()
            self.name, self.task = name, self.progress.add_task(printable(name), total=total, figures="")
            self.progress.start()
        self.progress.update(self.task, completed=done, figures=figures)
        if done == total:
            self.stop()

    def batch(self, name: str, done: int, total: int | None, metrics: Metrics) -> None:
        """Show the metrics and the speed after a batch."""
        if self.progress.disable:
            return
        if name != self.name:
            self.first, self.started = metrics.images, clock()
        rate = (metrics.images - self.first) / max(clock() - self.started, 1e-9)
        self(name, done, total, f"loss {metrics.loss:.4f}  acc {percent(metrics.accuracy)}  {rate:,.0f} img/s")

    def test(self, images: int, metrics: Metrics) -> None:
        """Show the metrics of a test so far."""
        self.batch("test", metrics.images, images, metrics)

    def stop(self) -> None:
        """Hide the bar."""
        self.progress.stop()
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        self.name = None


class EpochReport(Reporter):
    """A progress bar and a line per epoch on stderr, and with `as_json` a JSON object per epoch on stdout."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.bar = Bar()

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Show the empty bar."""
        self.batches, self.epochs = batches, epochs
        self.bar("", 0, batches)

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Move the bar."""
        self.bar.batch(f"epoch {epoch}/{self.epochs}", batch, self.batches, metrics)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Report the epoch."""
        if self.as_json:
            with contextlib.suppress(OutputError):  # training goes on; the last line raises the error again
                print_json(record)
        held_out = record["val_loss"] is not None
        validated = f"  val {record['val_loss']:.4f} {percent(record['val_accuracy']):>7}" if held_out else ""
        note(
            f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
            f"  loss {record['train_loss']:.4f} acc {percent(record['train_accuracy']):>7}{validated}"
            f"  {record['seconds']:.1f} s  {record['images_per_second']:,.0f} images/s"
        )

    def on_fit_end(self, trainer: Trainer) -> None:
        """Hide the bar."""
        self.bar.stop()

    def on_test_batch(self, trainer: Trainer, images: int, metrics: Metrics) -> None:
        """Show the bar of the test."""
        self.bar.test(images, metrics)

    def on_note(self, message: str) -> None:
        """Print the note."""
        note(message)

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """Show the bar of a download."""
        self.bar(file, done, total)

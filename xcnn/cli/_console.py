"""Output shared by the commands: the terminal, JSON lines, the progress of a training run; and `--threads`.

Commands print through the functions here only, a line at a time. Names of files, classes and layers may come from
strangers, so every text is made printable here and nowhere else.
"""

import contextlib
import errno
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import ControlType
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
    "announce_compiling",
    "check_writable",
    "error_line",
    "help_console",
    "leave_terminal",
    "note",
    "percent",
    "print_json",
    "print_line",
    "print_table",
    "use_threads",
]

_UNFOLDED, _LEAST, _PIPED = 10_000, 30, 200
"""Columns of a table that must not fold, of the help (Rich takes minutes for one column), and of a pipe."""


class OutputError(XcnnError):
    """Results cannot be written to stdout: its reader has left (exit code 141, as of a program that SIGPIPE ends), or
    the disk is full (1).
    """

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(f"cannot write to stdout: {reason}")
        self.reader_left = isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE
        self.exit_code = 141 if self.reader_left else 1


class _Stream:
    """`sys.stdout` or `sys.stderr`, looked up at each write. Characters that its encoding lacks become escapes.

    Progress that cannot be written to stderr is dropped: a terminal that is gone must not end a run. Results that
    cannot be written to stdout raise an `OutputError`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> int:
        try:
            encoding = getattr(self, "encoding", None) or "utf-8"
            getattr(sys, self.name).write(text.encode(encoding, "backslashreplace").decode(encoding))
            getattr(sys, self.name).flush()
        except (OSError, ValueError, AttributeError) as error:  # it broke, it was closed, it was never open
            if self.name == "stdout":
                raise OutputError(error) from None
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self.name), name)


def _console(name: str, width: int | None = None) -> Console:
    return Console(file=cast(IO[str], _Stream(name)), highlight=False, width=width)


# Rich honours NO_COLOR and plain pipes by itself.
_stderr = _console("stderr")
help_console = _console("stdout", max(_LEAST, _console("stdout").width))


def _is_terminal(name: str) -> bool:
    try:
        return bool(getattr(sys, name).isatty())
    except (ValueError, AttributeError):
        return False


def leave_terminal() -> None:
    """Show the cursor again: a progress bar hides it, and an error may have ended the bar."""
    _stderr.show_cursor()


def error_line(message: str) -> None:
    """Print an error on stderr."""
    _stderr.print(Text.assemble(("error:", "bold red"), " ", printable(message)), soft_wrap=True)


def note(message: str) -> None:
    """Print a remark on stderr."""
    _stderr.print(Text(printable(message)), soft_wrap=True)


def print_line(text: str, gap: bool = False) -> None:
    """Print a line on stdout, below an empty one if `gap`."""
    _print("\n" * gap + printable(text))


def print_json(record: dict[str, Any]) -> None:
    """Print a JSON line on stdout. Numbers that are not finite become null."""
    _print(json.dumps(_json(record)))


def _print(line: str) -> None:
    _make_room()
    _Stream("stdout").write(f"{line}\n")


def _make_room() -> None:
    """Clear the line of a progress bar if results are printed on the same terminal; it is drawn again below them."""
    if _is_terminal("stdout"):
        _stderr.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    *columns: str, rows: list[tuple[Any, ...]], right: str = "", title: str = "", gap: bool = False, fold: bool = True
) -> None:
    """Print a table on stdout, below its title if it has one.

    Parameters
    ----------
    columns : their names.
    rows : their cells, one for each column.
    right : names of the columns of numbers, separated by blanks.
    title : title of the table.
    gap : whether to print an empty line first.
    fold : whether a cell that is too wide for the terminal takes several lines. If not, the terminal breaks the row.
    """
    if title or gap:
        print_line(title, gap=gap and bool(title))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in right.split()
        justify, head = ("right" if numeric else "left"), Text(printable(column))
        table.add_column(head, justify=justify, no_wrap=numeric or not fold, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    _make_room()
    _console("stdout", _UNFOLDED if not fold else None if _is_terminal("stdout") else _PIPED).print(table)


def use_threads(threads: int | None) -> None:
    """Set the number of threads to `--threads`; None leaves it at the cores that the process may use."""
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", setting="threads")
        set_num_threads(threads)


def announce_compiling() -> None:
    """Print that kernels are being compiled."""
    note("compiling kernels for this processor, once (up to a minute; it does not count as training)")


def check_writable(*files: Path | None) -> None:
    """Refuse files that cannot be written, before anything is computed. None is skipped."""
    for file in files:
        if file is None:
            continue
        folder = file.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"cannot write {file}: there is no folder {file.parent}")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {file}: {file.parent} is read-only")


def percent(share: float | None) -> str:
    """Return an accuracy as text."""
    return "-" if share is None else f"{share:.2%}"


class Bar:
    """A progress bar on stderr for one task after another, such as a download; each disappears when it is done."""

    def __init__(self) -> None:
        self.progress, self.name = _bar(), ""

    def __call__(self, name: str, done: int, total: int | None, figures: str = "") -> None:
        """Move the bar of `name`, opened at the first call, to `done` of `total`."""
        if name != self.name:
            self.progress.stop()
            self.progress, self.name, self.started = _bar(), name, time.perf_counter()
            self.task = self.progress.add_task(printable(name), total=total, figures="")
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
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=_stderr,
        transient=True,
        expand=True,
        disable=not _stderr.is_terminal,
        redirect_stdout=False,  # results must reach stdout, whatever is on the terminal meanwhile
        redirect_stderr=False,
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
            with contextlib.suppress(OutputError):  # the training is still wanted; the last line will raise it again
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

"""What the commands share: the terminal, JSON lines, tables, progress bars, and checks of common flags.

Commands print only through the functions here. Names of files, classes and layers may be untrusted, so all text
is escaped here and nowhere else.
"""

import contextlib
import errno
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from xcnn.errors import UsageError, XcnnError, printable
from xcnn.runs import Reporter
from xcnn.threads import set_num_threads
from xcnn.training import Metrics, Progress, Trainer
from xcnn.training.terminal import Bar, Stream, console, note, percent, stderr

__all__ = [
    "Bar",
    "EpochReport",
    "OutputError",
    "check_writable",
    "error_line",
    "help_console",
    "in_flags",
    "leave_terminal",
    "note",
    "one_voice",
    "percent",
    "print_json",
    "print_line",
    "print_table",
    "program",
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


class _Stdout(Stream):
    """`sys.stdout`; results that cannot be written raise an `OutputError`."""

    def __init__(self) -> None:
        super().__init__("stdout")

    def lost(self, error: Exception) -> None:
        """Raise the error as an `OutputError`."""
        raise OutputError(error) from None


help_console = console(_Stdout(), max(_LEAST, console(_Stdout()).width))


def leave_terminal() -> None:
    """Show the cursor, which a progress bar hides and an error may leave hidden."""
    stderr().show_cursor()


_FLAGS = {
    "skip_broken=True": "--skip-broken",
    "class_weight='balanced'": "--class-weight balanced",
    "omit data_dir": "omit --data-dir",
    "pass their folder as data_dir": "name their folder with --data-dir",
    "use the data_dir of the run": "use the --data-dir of the run",
    "name the model, or build the network and call load_state_dict": "name it with --model",
    ", or name the model": "",
    "name the data set or the image_size": "name the data set (--dataset) or the --image-size",
    "opset must be": "--opset must be",
    "set lr instead of": "pass --lr instead of",
    "set momentum instead of": "pass --momentum instead of",
    "set wd instead of": "pass --wd instead of",
}
"""The words of the library for what the command line does with flags."""

_PASSED = re.compile(r"pass them: modules=\{[^}]*\}")
_BUILDER = "name the function (shape, classes) that builds it: --model package.module:function"


def in_flags(message: str) -> str:
    """Return a sentence of the library in which flags replace arguments of functions."""
    for words, flags in _FLAGS.items():
        message = message.replace(words, flags)
    return _PASSED.sub(_BUILDER, message)


@contextlib.contextmanager
def one_voice(rank: int) -> Iterator[None]:
    """Discard all that is written to stdout and stderr inside a `with`, in all processes of a job but the first."""
    if rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def error_line(message: str) -> None:
    """Print an error on stderr."""
    stderr().print(Text.assemble(("error:", "bold red"), " ", printable(message)), soft_wrap=True)


def print_line(text: str, gap: bool = False) -> None:
    """Print a line on stdout, after an empty line if `gap`."""
    _print("\n" * gap + printable(text))


def print_json(record: dict[str, Any]) -> None:
    """Print a record as a line of JSON on stdout. Numbers that are not finite become null."""
    _print(json.dumps(_json(record)))


def _print(text: str) -> None:
    """Write lines on stdout, over the progress bar if it is on the same terminal; it is drawn again below them."""
    # In one write, as the thread that draws the bar may run between two.
    erase = "\r\x1b[2K" if help_console.is_terminal and stderr().is_terminal and not stderr().is_dumb_terminal else ""
    _Stdout().write(f"{erase}{text}\n")


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
    output = console(_Stdout(), _UNFOLDED if not fold else None if help_console.is_terminal else _PIPED)
    with output.capture() as drawn:
        output.print(table)
    _print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def use_threads(threads: int | None) -> None:
    """Set the number of threads to `--threads`, if it is given."""
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", setting="threads")
        set_num_threads(threads)


def program() -> str:
    """Return the words that start the command again in the user's shell, such as `.venv/bin/xcnn`."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("xcnn", "__main__.py"):  # python -m xcnn
        found = shutil.which(Path(sys.executable).name)
        python = Path(sys.executable).name if found and Path(found) == Path(sys.executable) else sys.executable
        return f"{shlex.quote(python)} -m xcnn"
    if called.name != "xcnn" or Path(shutil.which("xcnn") or "").absolute() == called.absolute():
        return "xcnn"
    return shlex.quote(str(called))


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list, each once."""
    return list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def check_writable(*files: Path | None) -> None:
    """Raise a UsageError if a file cannot be written, before anything is computed. None is skipped."""
    for file in filter(None, files):
        if file.is_dir():
            raise UsageError(f"cannot write {file}: it is a folder; name a file in it")
        folder = file.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"cannot write {file}: there is no folder {file.parent}")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {file}: {file.parent} is read-only")


class EpochReport(Progress, Reporter):
    """Progress on stderr, and with `as_json` a JSON object per epoch on stdout."""

    redirect = False  # results must reach stdout while a bar is shown

    def __init__(self, as_json: bool, name: str = "") -> None:
        super().__init__(name)
        self.as_json = as_json

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Report the epoch."""
        if self.as_json:
            with contextlib.suppress(OutputError):  # training goes on; the last line raises the error again
                print_json(record)
        super().on_epoch_end(trainer, record)

    def on_test_batch(self, trainer: Trainer, images: int, metrics: Metrics) -> None:
        """Show the bar of the test."""
        self.bar.test(images, metrics)

    def on_note(self, message: str) -> None:
        """Print the note."""
        note(in_flags(message))

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """Show the bar of a download."""
        self.bar(file, done, total)

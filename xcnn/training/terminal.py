"""The terminal: lines and a progress bar on stderr. Rich is imported when something is first shown.

Names of files, classes and layers may be untrusted, so all text is escaped here.
"""

import functools
import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

from xcnn._dispatch import COMPILATION
from xcnn.errors import printable
from xcnn.training.evaluation import Metrics

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Bar", "Stream", "console", "duration", "in_notebook", "note", "percent", "stderr", "watched"]

_PAUSE = 0.1
"""The least time in seconds from one drawing of a bar to the next."""

_TURN = threading.Lock()
"""Held by the bar that is shown. Rich shows several bars at once only if they belong to one thread."""


class Stream:
    """`sys.stdout` or `sys.stderr`, looked up at each write. Characters that its encoding lacks become escapes.

    What cannot be written is dropped, so that a lost terminal does not end a run; a subclass may raise in `lost`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def target(self) -> Any:
        """The stream itself, also while a progress bar replaces it to write above the bar."""
        stream = getattr(sys, self.name, None)
        return getattr(stream, "rich_proxied_file", stream)

    def write(self, text: str) -> int:
        """Write all of a text, and flush."""
        try:
            encoding = getattr(self, "encoding", None) or "utf-8"
            self.target.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.target.flush()
        except (OSError, ValueError, AttributeError) as error:  # broken, closed, or never open
            self.lost(error)
        return len(text)

    def lost(self, error: Exception) -> None:
        """Called with the error of a write."""

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def console(stream: Stream, width: int | None = None) -> "Console":
    """Return a console of Rich. It writes no escapes to pipes, and no colours if NO_COLOR is set."""
    from rich.console import Console

    terminal = False if in_notebook() else None  # a notebook says that it is one, but obeys few escapes
    file = cast(Any, stream)
    return Console(file=file, highlight=False, width=width, force_jupyter=False, force_terminal=terminal)


@functools.cache
def stderr() -> "Console":
    """Return the console of stderr."""
    return console(Stream("stderr"))


def in_notebook() -> bool:
    """Return whether stderr is the output of a notebook's cell."""
    return type(Stream("stderr").target).__module__.startswith("ipykernel")


def watched() -> bool:
    """Return whether somebody watches stderr: on a terminal or in a notebook, but not in a test."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return False
    try:
        return bool(Stream("stderr").isatty()) or in_notebook()
    except (AttributeError, ValueError):  # it is none, has no such method, or is closed
        return False


def note(message: str) -> None:
    """Print a message on stderr, above the progress bar if there is one."""
    from rich.text import Text

    stderr().print(Text(printable(message)), soft_wrap=True)


def percent(share: float | None) -> str:
    """Return a share as a percentage."""
    return "-" if share is None else f"{share:.2%}"


def duration(seconds: float) -> str:
    """Return a time in the units that fit.

    >>> [duration(seconds) for seconds in (0.31, 59, 100, 8000, 3e5)]
    ['0.3 s', '59 s', '1 min 40 s', '2 h 13 min', '83 h 20 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min"


class Bar:
    """A progress bar on stderr for one task after another, such as a download; it is hidden between them.

    While a bar is shown, others are not, such as those of trainers in other threads.

    Parameters
    ----------
    redirect : whether what others print on the same terminal is shown above the bar. Results that go elsewhere are
        left alone.
    """

    def __init__(self, redirect: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.name: str | None = None
        self.shown = stderr().is_terminal or in_notebook()
        self._text = ""  # in a notebook
        self._drawn, self._measured = -math.inf, ""  # when it was drawn, and the task whose speed is measured
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=stderr(),
            transient=True,
            expand=True,
            disable=not stderr().is_terminal,
            redirect_stdout=redirect and Stream("stdout").isatty(),
            redirect_stderr=redirect,
        )

    def __call__(self, name: str, done: int, total: int | None, figures: str = "", left: float | None = None) -> None:
        """Show `done` of `total` for the task `name`, and figures; hide the bar at the end.

        `left` is the time in seconds that is left of a longer work, for which the bar stays, or NaN if it is not known
        yet; by default, that of the task.
        """
        from rich.errors import LiveError

        if not self.shown:
            return
        if name != self.name:
            self.stop()
            if not _TURN.acquire(blocking=False):
                return
            self.name = name  # before anything can fail, so that `stop` gives the turn back
            self.task = self.progress.add_task(printable(name), total=total, figures="", left="")
            try:
                self.progress.start()
            except LiveError:  # the program shows one of its own, and this is Rich before 14.1
                self.shown = False
        rest = self.progress.tasks[0].time_remaining if left is None and done != total else left
        after = "" if rest is None or math.isnan(rest) else f"{duration(rest)} left"
        self.progress.update(self.task, completed=done, figures=figures, left=after)
        if in_notebook():
            count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            self._line(f"{printable(name)}  {count}  {figures}  {after}")
        if done == total and not left:
            self.stop()

    def _line(self, text: str) -> None:
        """Write over the line on which a notebook shows the bar."""
        Stream("stderr").write(f"\r{text:<{len(self._text)}}" if text else f"\r{'':<{len(self._text)}}\r")
        self._text = text

    def batch(self, name: str, done: int, total: int | None, metrics: Metrics, left: float | None = None) -> None:
        """Show the metrics and the speed after a batch, ten times a second."""
        now = COMPILATION.clock()
        if not self.shown or (name == self._measured and done != total and now < self._drawn + _PAUSE):
            return
        if name != self._measured:
            self._measured, self._first, self._start = name, metrics.samples, now
        self._drawn = now
        rate = (metrics.samples - self._first) / max(now - self._start, 1e-9)
        accuracy = "" if metrics.accuracy is None else f"acc {percent(metrics.accuracy)}"
        figures = (f"loss {metrics.loss:.4f}", accuracy, f"{rate:,.0f} samples/s" if rate else "")
        self(name, done, total, "  ".join(filter(None, figures)), left)

    def test(self, images: int, metrics: Metrics) -> None:
        """Show the metrics of a test so far."""
        self.batch("test", metrics.samples, images, metrics)

    def stop(self) -> None:
        """Hide the bar."""
        if self.name is None:
            return
        try:
            if self._text:
                self._line("")
            self.progress.stop()
            for task in self.progress.task_ids:
                self.progress.remove_task(task)
        finally:
            self.name = None
            _TURN.release()

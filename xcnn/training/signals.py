"""Delaying Ctrl-C and SIGTERM to the end of a step, so that the weights are always those of a complete step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

__all__ = ["Signals", "delayed_signals", "terminable"]

T = TypeVar("T")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
"""The signals that end a program, and what they raise: KeyboardInterrupt, or SystemExit with the code 143."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM raise SystemExit inside a `with`, so that files and locks are released.

    A handler that the program has set is kept.
    """
    mine = _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    """Return whether this is the thread in which Python delivers signals and allows handlers to be set."""
    return threading.current_thread() is threading.main_thread()


class Signals:
    """The signals that came inside a `with delayed_signals()`."""

    def __init__(self) -> None:
        self._came: list[signal.Signals] = []
        self._at_rest = False

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: at once between two steps, and if it is not the first one."""
        self._came.append(signal.Signals(signum))
        if self._at_rest or len(self._came) > 1:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came, and SystemExit if SIGTERM did."""
        if self._came:
            _SIGNALS[self._came[0]](self._came[0], None)

    def at_rest(self, function: Callable[[], T]) -> T:
        """Return `function()`, which leaves the weights alone, so that a signal interrupts it at once."""
        self._at_rest = True
        try:
            self.check()
            return function()
        finally:
            self._at_rest = False


@contextlib.contextmanager
def delayed_signals() -> Iterator[Signals]:
    """Delay Ctrl-C and SIGTERM inside a `with` to the next `Signals.check`, `Signals.at_rest`, or to its end.

    A second signal raises at once. Outside the main thread, and for signals that the program handles itself, nothing
    changes.
    """
    signals = Signals()
    before = {}
    if _in_main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = (signal.SIG_DFL, *_SIGNALS.values())
    taken = {number: handler for number, handler in before.items() if handler in ours}
    for number in taken:
        signal.signal(number, signals.note)
    try:
        yield signals
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
    signals.check()  # for a signal after the last step

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
    """The signals that came inside a `with delayed_signals()`.

    If several processes train `together`, a signal waits until all have agreed to it, so that they stop at the same
    step.
    """

    def __init__(self, together: bool = False) -> None:
        self._came: list[signal.Signals] = []
        self._at_rest, self._waits = False, together

    @property
    def number(self) -> int:
        """The number of the first signal that came, or 0."""
        return self._came[0] if self._came else 0

    def agree(self, number: int) -> None:
        """Take over the signal that any process has got, if `number` is not 0; it has an effect from now on."""
        if number:
            self._came, self._waits = self._came or [signal.Signals(number)], False

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: at once between two steps, and if it is not the first one."""
        self._came.append(signal.Signals(signum))
        if len(self._came) > 1:
            self._waits = False
            self.check()
        elif self._at_rest:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came, and SystemExit if SIGTERM did."""
        if self._came and not self._waits:
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
def delayed_signals(together: bool = False) -> Iterator[Signals]:
    """Delay Ctrl-C and SIGTERM inside a `with` to the next `Signals.check`, `Signals.at_rest`, or to its end.

    A second signal raises at once. Outside the main thread, and for signals that the program handles itself, nothing
    changes.
    """
    signals = Signals(together)
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
    signals.agree(signals.number)
    signals.check()  # for a signal after the last step

"""Delaying Ctrl-C and SIGTERM to the end of a step, so that the weights are always those of a complete step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["delayed_signals", "terminable"]


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


@contextlib.contextmanager
def delayed_signals() -> Iterator[Callable[[], None]]:
    """Provide a function to call between steps: it raises KeyboardInterrupt after Ctrl-C, SystemExit after SIGTERM.

    A second signal raises at once. Outside the main thread, and for signals that the program handles itself, nothing
    changes.
    """
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if len(came) > 1:
            _SIGNALS[signal.Signals(came[0])](came[0], frame)

    def check() -> None:
        if came:
            _SIGNALS[signal.Signals(came[0])](came[0], None)

    before = {}
    if _in_main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = (signal.SIG_DFL, *_SIGNALS.values())
    taken = {number: handler for number, handler in before.items() if handler in ours}
    for number in taken:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
    check()  # for a signal after the last step

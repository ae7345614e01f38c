"""Ctrl-C and SIGTERM between two steps, never inside one: the weights that are left are those of a whole step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["delayed_signals", "terminable"]


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
"""What ends a program, and what is to happen then: KeyboardInterrupt, or SystemExit with the code 143."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise SystemExit inside a `with`, so that files and folders are let go of, unless it is handled."""
    mine = _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    """Say whether Python delivers signals here, and lets handlers be set."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def delayed_signals() -> Iterator[Callable[[], None]]:
    """Give a function to call between steps: it raises KeyboardInterrupt after Ctrl-C, SystemExit after SIGTERM.

    A second signal raises at once, wherever it is. Outside the main thread, where Python delivers no signals, nothing
    changes; neither does a handler of someone else.
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
    check()  # one that came after the last step

"""Ctrl-C and SIGTERM between two steps, never inside one: the weights that are left are those of a whole step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["SIGNALS", "delayed_signals", "terminate"]


def terminate(signum: int, frame: FrameType | None) -> None:
    """End the program with the exit code of SIGTERM, after all that waits in `finally` and `with` is done."""
    raise SystemExit(128 + signum)


SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
"""What ends a program, and what is to happen then: KeyboardInterrupt, or SystemExit with the code 143."""


@contextlib.contextmanager
def delayed_signals() -> Iterator[Callable[[], None]]:
    """Give a function to call between steps: it raises what `SIGNALS` says if such a signal came since.

    A second signal ends the program at once, wherever it is. Outside the main thread, where Python delivers no signals,
    nothing changes; neither does a handler of someone else.
    """
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if len(came) > 1:
            SIGNALS[signal.Signals(came[0])](came[0], frame)

    def check() -> None:
        if came:
            SIGNALS[signal.Signals(came[0])](came[0], None)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = (signal.SIG_DFL, *SIGNALS.values())
    taken = {number: handler for number, handler in before.items() if handler in ours}
    for number in taken:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)

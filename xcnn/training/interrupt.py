"""Ctrl-C between two steps, never inside one: the weights that are left are those of a whole step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["delayed_interrupt"]


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[Callable[[], None]]:
    """Give a function to call between steps: it raises KeyboardInterrupt if Ctrl-C was pressed since.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python delivers no signals, nothing changes.
    """
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    inside_main = threading.current_thread() is threading.main_thread()
    if not inside_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check  # someone else's handler stays
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

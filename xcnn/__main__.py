"""The command `xcnn`, also as `python -m xcnn`: `xcnn.cli.main`, with signals and standard streams set up."""

import os
import signal
import sys
from types import FrameType

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds, in which Ctrl-C would print a traceback
    from typing import NoReturn

__all__ = ["main"]


def main() -> int:
    """Run the command that `sys.argv` holds, and return its exit code."""
    # Before any other import. A shell starts background jobs with SIGINT ignored.
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _leave)
    _open_closed()
    _hush_pillow()
    from xcnn.cli import main as command

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = command()
        if heard:
            signal.signal(signal.SIGINT, _leave)
    except KeyboardInterrupt:  # just before or after `command`, which handles its own
        _leave()
    _flush()
    return code


def _leave(signum: int = signal.SIGINT, frame: FrameType | None = None) -> "NoReturn":
    """Exit at once: while modules load there is nothing to clean up, and some modules swallow exceptions."""
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(130)


def _open_closed() -> None:
    """Open `os.devnull` in place of closed standard streams, so that no other file gets their descriptors.

    Otherwise, text printed to the stream would end up in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor


def _hush_pillow() -> None:
    """Suppress Pillow's warnings and log messages about damaged images: the command prints one sentence itself."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _flush() -> None:
    """Flush the streams; discard the output of a broken one, or Python prints an error when it exits."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            if stream := getattr(sys, name):  # None if it was closed
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


if __name__ == "__main__":
    sys.exit(main())

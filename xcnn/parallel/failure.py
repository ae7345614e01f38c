"""The end of a job of several processes, so that none waits for one that never comes.

Each process tells all others when it ends, and why. If it ends with an error, it waits for the others for a second:

- All have come: each exits with its own code, and each message is printed once. So it is with mistakes that all make.
- Some have not: they wait for this process, or will. It prints its message with its number, and aborts the job.

A process that ends without an error waits for all others, without a limit, as the last one may still write results.
"""

import atexit
import contextlib
import hashlib
import io
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np

from xcnn.parallel.launch import abort, launch
from xcnn.training.processes import Done, Processes

__all__ = ["PATIENCE", "TAG", "Ending", "end_together", "fail", "watch"]

PATIENCE = 1.0
"""Seconds for which a process that has failed waits for the others."""

TAG = 32_767
"""The tag of the messages about the end."""

_PAUSE = 2e-3


class Ending:
    """What the processes of a job tell each other when they end.

    Parameters
    ----------
    processes : the processes. Their last tag is for this object alone.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes, self.said = processes, False
        self._others = [rank for rank in range(processes.size) if rank != processes.rank]
        # For each process its exit code, as far as it is known, and the hash of its message.
        self._words = np.zeros((processes.size, 5), np.int64)
        self._absent: dict[int, Done] = {
            rank: processes.exchange([], [(rank, self._words[rank])], TAG) for rank in self._others
        }

    def left(self) -> set[int]:
        """Return which other processes have ended, or are about to."""
        for rank in [rank for rank, came in self._absent.items() if came()]:
            del self._absent[rank]
        return {rank for rank in self._others if rank not in self._absent}

    def failed(self, rank: int) -> bool:
        """Return whether a process that has ended did so with an error."""
        return bool(self._words[rank].any())

    def meet(self, code: int = 0, message: str = "", patience: float = float("inf")) -> bool:
        """Tell the others that this process ends, wait for them, and return whether all have come."""
        here, deadline = self.processes.rank, time.monotonic() + patience
        self.said = True
        self._words[here, 0] = code
        if message:
            digest = hashlib.sha256(message.encode("utf-8", "backslashreplace")).digest()
            self._words[here, 1:] = np.frombuffer(digest, np.int64)
        told = self.processes.exchange([(rank, self._words[here]) for rank in self._others], [], TAG)
        while (len(self.left()) < len(self._others)) | (not told()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def alike(self) -> list[int]:
        """Return the processes that end with the same code and message as this one, in order."""
        mine = self._words[self.processes.rank]
        return [rank for rank in range(self.processes.size) if (self._words[rank] == mine).all()]


_ending: Ending | None = None
_process = 0
"""The id of the process that has opened the job: its forks have no part in it."""


def _here() -> Ending | None:
    return _ending if os.getpid() == _process else None


def watch(processes: Processes) -> Ending:
    """From now on, wait for the others at the end of this process."""
    global _ending
    if _ending is None:
        _ending = Ending(processes)
        atexit.register(_end)
    return _ending


def end_together() -> None:
    """From now on, let `fail` print the exception that ends this program."""
    global _process
    if not _process:
        _process = os.getpid()
        sys.excepthook = _Hook(sys.excepthook)


def fail(code: int, message: str, show: Callable[[str], object]) -> int:
    """End this process with an error, and the job unless all its processes end; return the exit code.

    Call it last, and exit with the code.

    Parameters
    ----------
    code : exit code, not 0.
    message : what happened; "" to say nothing.
    show : prints a message. It is called in one of the processes that fail with the same code and message.
    """
    ending = _here()
    if ending is None and os.getpid() == _process:
        return _unopened(code, message, show)
    if ending is None or ending.said:
        if message:
            show(message)
        return code
    processes = ending.processes
    together, alike = False, [processes.rank]
    try:
        together = ending.meet(code, message, PATIENCE)
        alike = ending.alike() if together else alike
    finally:  # also after a second Ctrl-C
        if message and alike[0] == processes.rank:
            show(message if len(alike) == processes.size else f"rank {processes.rank}: {message}")
        if not together:
            processes.abort(code)
    return code


def _unopened(code: int, message: str, show: Callable[[str], object]) -> int:
    """Fail before MPI is initialised, and so without a word from the others: the first one speaks first."""
    started = launch()
    rank = 0 if started is None else started.rank
    if rank:
        time.sleep(PATIENCE)  # if the first one fails too, it ends this one meanwhile
    if message:
        show(f"rank {rank}: {message}" if rank else message)
    abort(code)
    return code


def _end() -> None:
    """Wait for the other processes at the end of this one."""
    ending = _here()
    if ending is not None and not ending.said:
        try:
            ending.meet()
        except BaseException:
            ending.processes.abort(130)


class _Hook:
    """Prints the exception that ends a program, as `before` does, and ends the job."""

    def __init__(self, before: Callable[[type[BaseException], BaseException, TracebackType | None], object]) -> None:
        self.before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Print and end."""
        sentence = f"{kind.__name__}: {error}"

        def show(message: str) -> None:
            with contextlib.redirect_stderr(io.StringIO()) as text:
                self.before(kind, error, trace)
            sys.stderr.write(message.removesuffix(sentence) + text.getvalue())  # at once, as others may write too
            sys.stderr.flush()

        fail(130 if issubclass(kind, KeyboardInterrupt) else 1, sentence, show)

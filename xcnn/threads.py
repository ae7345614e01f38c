"""The threads that kernels share, and their number.

A kernel splits its work into parts that depend only on the shapes, and adds their results in order. Each thread takes
the next part when it has finished one. So no result depends on the number of threads.
"""

import contextlib
import contextvars
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from xcnn._check import integer

__all__ = ["get_num_threads", "longer", "parallel", "parts", "serially", "set_num_threads", "share_cores"]

_PART_MICROSECONDS = 50
"""The least work of a part."""

_PASS_SECONDS = 25e-6
"""About how long it takes to pass a part to a thread."""

_MOST_PARTS = 16

_pool: "_Pool | None" = None
_threads = 0
_sharing = 1
_lock = threading.Lock()


class _Here(threading.local):
    """Whether this thread runs a part already, and so the parts of nested calls in order; what that took longer."""

    serial, longer = False, 0.0


_here = _Here()


def get_num_threads() -> int:
    """Return the number of threads that kernels use; by default, the number of cores available to the process.

    The processes of a host that train together share its cores.
    """
    return _threads or max(1, _cores() // _sharing)


@functools.cache
def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def set_num_threads(n: int) -> None:
    """Set the number of threads that kernels use in this process. Results do not depend on it.

    NumPy's matrix products outside kernels keep their own number of threads.

    Raises
    ------
    UsageError
        If `n` is not an integer of at least 1.
    """
    global _threads, _pool
    n = integer("set_num_threads", "n", n)
    with _lock:
        if _pool is not None:
            _pool.end()
        _threads, _pool = n, None


def share_cores(processes: int) -> None:
    """Use a share of the cores by default, as that many processes use the same ones."""
    global _sharing, _pool
    with _lock:
        if _pool is not None:
            _pool.end()
        _sharing, _pool = processes, None


def parts(most: int, microseconds: float) -> int:
    """Return the number of parts, at most `most`, into which to split work that takes one thread `microseconds`."""
    if microseconds < 2 * _PART_MICROSECONDS:  # most calls
        return 1
    count = max(4 if microseconds >= 4 * _PART_MICROSECONDS else 2, int(microseconds / (4 * _PART_MICROSECONDS)) * 2)
    return max(1, min(most, _MOST_PARTS, count))  # an even number: two threads end at the same time


@contextlib.contextmanager
def serially() -> Iterator[None]:
    """Run all parts of `parallel` in order on this thread inside a `with`; it can be nested. Results are the same."""
    before, _here.serial = _here.serial, True
    try:
        yield
    finally:
        _here.serial = before


def longer(call: Callable[[], object]) -> float:
    """Make a call on this thread alone; return about how many seconds it would have taken less on several."""
    _here.longer = 0.0
    with serially():
        call()
    return _here.longer


def parallel(task: Callable[[int], object], parts: int) -> None:
    """Call `task(part)` for every part, in several threads if there are several parts.

    An exception of a task is raised after the other threads have stopped. Inside a task, and inside `serially`, all
    parts run in order on the same thread.
    """
    threads = 1 if parts == 1 else min(get_num_threads(), parts)
    if threads == 1 or _here.serial:
        start = time.perf_counter()
        for part in range(parts):
            task(part)
        if threads > 1:
            _here.longer += max(0.0, (time.perf_counter() - start) * (1 - 1 / threads) - _PASS_SECONDS)
        return
    queue = iter(range(parts))  # next() on it is atomic

    def work() -> None:
        with serially():
            for part in queue:
                task(part)

    pool = _started()
    # With the context of this thread, which includes the handling of floating-point errors.
    offers = [_Offer(contextvars.copy_context().run, work) for _ in range(min(threads - 1, pool.size))]
    for offer in offers:
        pool.offers.put(offer)
    try:
        work()
    finally:
        # Offers that no thread has taken have nothing left to do. If calls are nested, waiting could be a deadlock.
        taken = [offer for offer in offers if not offer.take()]
        errors = [error for error in map(_Offer.wait, taken) if error is not None]
    if errors:
        raise errors[0]


class _Offer:
    """A call that another thread may make, once."""

    __slots__ = ("_arguments", "_done", "_ended", "_error", "_open")

    def __init__(self, *arguments: Any) -> None:
        self._arguments, self._open = arguments, [True]
        self._done = threading.Lock()
        self._error: BaseException | None = None
        self._ended = False
        self._done.acquire()

    def take(self) -> bool:
        """Return whether nobody has taken the offer before."""
        try:
            return self._open.pop()  # atomic
        except IndexError:
            return False

    def accept(self) -> None:
        """Make the call."""
        function, *arguments = self._arguments
        try:
            function(*arguments)
        except BaseException as error:
            self._error = error
        self._ended = True
        self._done.release()

    def wait(self) -> BaseException | None:
        """Wait for the end of the call, also if this thread is interrupted, as it still writes; return its error."""
        while not self._ended:
            try:
                self._done.acquire()  # an interruption may also follow when it has been acquired
            except BaseException as error:
                self._error = self._error or error
        return self._error


class _Pool:
    """Threads that wait for offers. An executor of the standard library takes 10 microseconds more per call."""

    def __init__(self, size: int) -> None:
        self.offers: SimpleQueue[_Offer | None] = SimpleQueue()
        self.size = 0
        with contextlib.suppress(RuntimeError):  # no thread can be started, for example while the interpreter exits
            for _ in range(size):
                threading.Thread(target=self._wait, name="xcnn", daemon=True).start()
                self.size += 1

    def _wait(self) -> None:
        while (offer := self.offers.get()) is not None:
            if offer.take():
                offer.accept()
            del offer  # an idle thread keeps no arrays

    def end(self) -> None:
        """Let all threads end when their work is done."""
        for _ in range(self.size):
            self.offers.put(None)


def _started() -> _Pool:
    """Return the pool of the other threads, which number one less than `get_num_threads`."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = _Pool(get_num_threads() - 1)
        return _pool


def _after_fork() -> None:
    """Replace the pool and the lock in a child process: the parent's threads, which may hold it, do not exist."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

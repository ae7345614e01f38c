"""The threads that kernels share, and their number.

A kernel splits its work into parts that depend only on the shapes, and adds their results in order. Each thread takes
the next part when it has finished one. So no result depends on the number of threads.
"""

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from xcnn._check import integer

__all__ = ["get_num_threads", "parallel", "parts", "serially", "set_num_threads"]

_PART_MICROSECONDS = 100
"""The least work of a part; passing it to a thread takes about 30 microseconds."""

_MOST_PARTS = 16

_pool: ThreadPoolExecutor | None = None
_threads = 0
_lock = threading.Lock()


class _Here(threading.local):
    """Whether this thread runs a part already, and so the parts of nested calls in order."""

    serial = False


_here = _Here()


def get_num_threads() -> int:
    """Return the number of threads that kernels use; by default, the number of cores available to the process."""
    return _threads or _cores()


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
        _threads, _pool = n, None  # the old threads end when their work is done


def parts(most: int, microseconds: float) -> int:
    """Return the number of parts, at most `most`, into which to split work that takes one thread `microseconds`."""
    return max(1, min(most, _MOST_PARTS, int(microseconds) // _PART_MICROSECONDS))


@contextlib.contextmanager
def serially() -> Iterator[None]:
    """Run all parts of `parallel` in order on this thread inside a `with`; it can be nested. Results are the same."""
    before, _here.serial = _here.serial, True
    try:
        yield
    finally:
        _here.serial = before


def parallel(task: Callable[[int], object], parts: int) -> None:
    """Call `task(part)` for every part, in several threads if there are several parts.

    An exception of a task is raised after the other threads have stopped. Inside a task, and inside `serially`, all
    parts run in order on the same thread.
    """
    threads = 1 if parts == 1 or _here.serial else min(get_num_threads(), parts)
    if threads == 1:
        for part in range(parts):
            task(part)
        return
    queue = iter(range(parts))  # next() on it is atomic

    def work() -> None:
        with serially():
            for part in queue:
                task(part)

    pool, others = _executor(), []
    with contextlib.suppress(RuntimeError):  # no thread can be started, for example while the interpreter exits
        for _ in range(threads - 1):
            # With the context of this thread, which includes the handling of floating-point errors.
            others.append(pool.submit(contextvars.copy_context().run, work))
    try:
        work()
    finally:
        # Tasks that have not begun have nothing left to do. If calls are nested, waiting for them could be a deadlock.
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()


def _executor() -> ThreadPoolExecutor:
    """Return the pool of the other threads, at least one even if `set_num_threads(1)` was called meanwhile."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, get_num_threads() - 1), "xcnn")
        return _pool


def _after_fork() -> None:
    """Replace the pool and the lock in a child process: the parent's threads, which may hold it, do not exist."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

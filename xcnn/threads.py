"""The threads that kernels share, and how many there may be.

A kernel cuts its work into parts, by the shapes alone, and adds up what the parts give in their order; threads take the
next part when they are done with one. So no result depends on how many threads there are.
"""

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from xcnn._check import integer

__all__ = ["get_num_threads", "parallel", "parts", "set_num_threads"]

_PART_MICROSECONDS = 100
"""What is worth a thread's while: to hand it over takes some 30."""

_MOST_PARTS = 16

_pool: ThreadPoolExecutor | None = None
_threads = 0
_lock = threading.Lock()


def get_num_threads() -> int:
    """Return how many threads kernels use: by default as many as there are cores that the process may use."""
    global _threads
    if not _threads:
        affinity = getattr(os, "sched_getaffinity", None)
        _threads = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return _threads


def set_num_threads(n: int) -> None:
    """Set how many threads kernels use. Results do not depend on it.

    The number belongs to the process. NumPy's own products, outside of kernels, keep the threads that they have.

    Raises
    ------
    UsageError
        If `n` is not an integer of at least 1.
    """
    global _threads, _pool
    n = integer("set_num_threads", "n", n)
    with _lock:
        _threads, _pool = n, None  # its threads end when nothing uses it any more


def parts(most: int, microseconds: float) -> int:
    """Return into how many parts, at most `most`, to cut work that takes one thread so long."""
    return max(1, min(most, _MOST_PARTS, int(microseconds) // _PART_MICROSECONDS))


def parallel(task: Callable[[int], object], parts: int) -> None:
    """Call `task(part)` for every part, in threads if there are several of both.

    If a task raises an exception, it is raised here after the other threads have ended.
    """
    threads = min(get_num_threads(), parts)
    if threads == 1:
        for part in range(parts):
            task(part)
        return
    queue = iter(range(parts))  # next() on it is atomic

    def work() -> None:
        for part in queue:
            task(part)

    pool, others = _executor(), []
    with contextlib.suppress(RuntimeError):  # at the end of the interpreter, when no thread can be had any more
        for _ in range(threads - 1):
            # In this context, so that they handle floating-point errors as this thread does.
            others.append(pool.submit(contextvars.copy_context().run, work))
    try:
        work()
    finally:
        # Nothing is left for those that have not begun, and all threads may be waiting for each other like this one.
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()


def _executor() -> ThreadPoolExecutor:
    """Return the threads beside the caller's: at least one, whatever another thread sets meanwhile."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, get_num_threads() - 1), "xcnn")
        return _pool


def _after_fork() -> None:
    """Start anew in a child process, where the threads of its parent are missing and the lock may be held by one."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

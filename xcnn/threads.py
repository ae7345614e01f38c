"""The threads that kernels share, and how many there may be.

A kernel cuts its work into parts, by the shapes alone, and adds up what the parts give in their order; threads take the
next part when they are done with one. So no result depends on how many threads there are.
"""

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from xcnn.errors import UsageError

__all__ = ["blas_is_held", "get_num_threads", "one_blas_thread", "parallel", "parts", "set_num_threads"]

_PART_MICROSECONDS = 100
"""What is worth a thread's while: to hand it over takes some 30."""

_MOST_PARTS = 16

_pool: ThreadPoolExecutor | None = None
_process = 0
_threads = 0
_holders = 0
_limits: Any = None
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

    Raises
    ------
    UsageError
        For anything but an integer of at least 1.
    """
    global _threads, _pool
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UsageError(f"set_num_threads: n must be an integer of at least 1, got {n!r}")
    _pool = None  # its threads end when nothing uses it any more
    _threads = n


def parts(most: int, microseconds: float) -> int:
    """Say into how many parts, at most `most`, to cut work that takes one thread so long."""
    return max(1, min(most, _MOST_PARTS, int(microseconds) // _PART_MICROSECONDS))


def parallel(task: Callable[[int], object], parts: int) -> None:
    """Call `task(part)` for every part, in threads where there are several of both.

    An exception of a task is raised again, after the others have ended.
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

    others = []
    with contextlib.suppress(RuntimeError):  # at the end of the interpreter, when no thread can be had any more
        for _ in range(threads - 1):
            # In this context, so that they mind what leaves its range as little as this thread does.
            others.append(_executor().submit(contextvars.copy_context().run, work))
    try:
        work()
    finally:
        # Nothing is left for those that have not begun, and all threads may be waiting for each other like this one.
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()


def _executor() -> ThreadPoolExecutor:
    global _pool, _process
    if _pool is None or _process != os.getpid():  # threads do not survive a fork
        _pool, _process = ThreadPoolExecutor(get_num_threads() - 1, "xcnn"), os.getpid()
    return _pool


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold NumPy's matrix products to one thread inside a `with`.

    A network's products are small: on two busy cores their threads spend ten times as long waiting for each other. What
    is large, kernels cut into parts.
    """
    global _holders, _limits
    from threadpoolctl import threadpool_limits

    with _lock:
        if _holders == 0:
            _limits = threadpool_limits(limits=1, user_api="blas")
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _limits.restore_original_limits()


def blas_is_held() -> bool:
    """Say whether matrix products are held to one thread now, so that parts of them may run side by side."""
    return _holders > 0

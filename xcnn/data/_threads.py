"""Work that threads do ahead, in order, and that ends between two items once nobody waits for its results."""

import collections
import contextvars
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead", "check_wanted"]

A = TypeVar("A")
B = TypeVar("B")

_ended: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("_ended", default=None)


class _NotWantedError(Exception):
    """Nobody waits for the result of this thread."""


def check_wanted() -> None:
    """End the work of a thread of `ahead` whose results nobody waits for; call it before each item of longer work."""
    ended = _ended.get()
    if ended is not None and ended.is_set():
        raise _NotWantedError


def ahead(work: Callable[[A], B], items: Iterable[A], threads: int, most: int, name: str) -> Iterator[B]:
    """Yield `work(item)` in order, with at most `most` begun or ready; an exception is raised at its item.

    When the iteration ends, no thread is left: each ends at its next `check_wanted`. Only after Ctrl-C during the wait
    for a result, they end on their own, so that the interrupt acts at once.
    """
    rest, ended = iter(items), threading.Event()
    pool = ThreadPoolExecutor(threads, name)
    coming: collections.deque[Future[B]] = collections.deque()
    wait = True
    try:
        while True:
            for item in itertools.islice(rest, most - len(coming)):
                # With the context of this thread, which includes the handling of floating-point errors.
                context = contextvars.copy_context()
                context.run(_ended.set, ended)
                coming.append(pool.submit(context.run, work, item))
            if not coming:
                return
            try:
                result = coming.popleft().result()
            except (KeyboardInterrupt, SystemExit):
                wait = False
                raise
            yield result
    finally:
        ended.set()
        pool.shutdown(wait, cancel_futures=True)

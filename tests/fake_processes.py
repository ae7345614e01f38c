"""Processes that train together, played by threads of one process: arrays are copied through queues."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import numpy as np

from xcnn.training.processes import Done, Message, Processes

__all__ = ["Played", "play"]


class _Failed(Exception):
    """Another process has failed."""


class Played(Processes):
    """One of several processes."""

    def __init__(self, rank: int, size: int, queues: dict[Any, SimpleQueue], failed: threading.Event) -> None:
        self.rank, self.size, self._queues, self._failed = rank, size, queues, failed
        self.exchanges = 0

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int = 0) -> Done:
        self.exchanges += 1
        for other, array in sends:
            self._queues[self.rank, other, tag].put(np.array(array))
        left = list(receives)

        def done() -> bool:
            if self._failed.is_set():
                raise _Failed
            while left:
                other, array = left[0]
                try:
                    came = self._queues[other, self.rank, tag].get_nowait()
                except Empty:
                    return False
                assert (came.shape, came.dtype) == (array.shape, array.dtype)
                array[...] = came
                del left[0]
            return True

        return done

    def abort(self, code: int) -> NoReturn:
        self._failed.set()
        raise SystemExit(code)


def play(size: int, act: Callable[[Played], Any]) -> list[Any]:
    """Call a function in each of several processes, and return their results; the first error ends all."""
    queues: dict[Any, SimpleQueue] = defaultdict(SimpleQueue)
    failed, results, errors = threading.Event(), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = act(Played(rank, size, queues, failed))
        except BaseException as error:
            if not isinstance(error, _Failed):
                errors.append(error)
            failed.set()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results

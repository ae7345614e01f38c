"""Several processes in one: threads that exchange arrays through queues, for tests without MPI."""

import collections
import queue
import random
import threading

import numpy as np

from xcnn._array import namespace_of
from xcnn.devices import to_numpy
from xcnn.training.processes import Processes

SECONDS = 120
"""After which a thread that waits for another one gives up."""


class _Net:
    """The queues between threads, one for each pair and tag, and whether one of them has failed."""

    def __init__(self):
        self.queues = collections.defaultdict(queue.Queue)
        self.lock, self.failed = threading.Lock(), threading.Event()

    def between(self, source, target, tag):
        with self.lock:
            return self.queues[source, target, tag]


class Fake(Processes):
    """One of the threads. Messages arrive late, in an order that differs from run to run, as on a network."""

    def __init__(self, rank, size, net, seed=0):
        self.rank, self.size, self.net = rank, size, net
        self.sent = self.exchanges = 0
        self.random = random.Random(f"{rank} {seed}")

    def exchange(self, sends, receives, tag=0):
        assert 0 <= tag < 32768
        self.exchanges += 1
        for k, array in sends:
            assert k != self.rank, "nobody sends to itself"
            sent = to_numpy(array)  # as those of a device may travel too
            assert sent.flags.c_contiguous
            self.sent += sent.nbytes
            self.net.between(self.rank, k, tag).put(sent.copy())
        left = list(receives)
        kept = [(array, to_numpy(array).tobytes()) for _, array in sends]
        for _, array in receives:
            if isinstance(array, np.ndarray):
                array[...] = np.frombuffer(b"\xff" * array.itemsize, array.dtype)[0]  # NaN, for who reads too early

        def done():
            if self.net.failed.is_set():
                raise RuntimeError("another process has failed")
            if left and self.random.random() < 0.3:
                return False
            while left:
                k, array = left[0]
                try:
                    came = self.net.between(k, self.rank, tag).get_nowait()
                except queue.Empty:
                    return False
                room = to_numpy(array)
                assert came.shape == room.shape, (came.shape, room.shape)
                assert came.dtype == room.dtype
                host = isinstance(array, np.ndarray)
                array[...] = came if host else namespace_of(array).asarray(came, device=array.device)
                left.pop(0)
            assert all(to_numpy(array).tobytes() == sent for array, sent in kept), "changed before it was sent"
            kept.clear()
            return True

        return done

    def abort(self, code):
        self.net.failed.set()
        raise SystemExit(code)


def run(size, function, seed=0):
    """Return what `function(processes)` returns in each of `size` threads; if one raises, raise that."""
    net, results, errors = _Net(), [None] * size, []

    def work(rank):
        try:
            results[rank] = function(Fake(rank, size, net, seed))
        except BaseException as error:
            errors.append(error)
            net.failed.set()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a process waits for ever"
    first = [error for error in errors if "another process has failed" not in str(error)]
    if errors:
        raise (first or errors)[0]
    return results


def alike(states):
    """Return whether the arrays of all states have the same bits."""
    first, *others = states
    return all(
        state.keys() == first.keys()
        and all(np.asarray(state[name]).tobytes() == np.asarray(first[name]).tobytes() for name in first)
        for state in others
    )
